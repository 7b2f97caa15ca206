"""What makes a kernel build, and what is refused."""

from __future__ import annotations

import pytest

from kexecemu.errors import InputError
from kexecemu.kernel.base.config import Era, KernelConfig, Protection
from kexecemu.kernel.base.kconfig import KNOWN_OPTIONS, check_option, option_rows
from kexecemu.scenario.setup import Setup


@pytest.mark.parametrize(
    ("era", "way", "flags"),
    [("6.1", Protection.PTE, 7), ("6.4", Protection.NONE, 7), ("6.12", Protection.NONE, 15)],
)
def test_an_era_brings_its_own_protection_and_load_flags(era: str, way: Protection, flags: int) -> None:
    config = KernelConfig(era)
    assert (config.way, config.release.rules.file_load_flags) == (way, flags)


def test_a_protection_that_is_asked_for_wins_over_the_era_s() -> None:
    assert KernelConfig("6.1", protection="none").way is Protection.NONE
    assert KernelConfig(Era.V6_12, protection=Protection.PTE).way is Protection.PTE


@pytest.mark.parametrize(
    ("options", "page_size"),
    [
        ({}, 4096),
        ({"ARM64_16K_PAGES": "y"}, 16384),
        ({"CONFIG_ARM64_64K_PAGES": "y"}, 65536),
        ({"ARM64_4K_PAGES": "y", "ARM64_64K_PAGES": "n"}, 4096),
    ],
)
def test_one_page_size_excludes_the_others(options: dict[str, str], page_size: int) -> None:
    assert KernelConfig(options=options).page_size == page_size


@pytest.mark.parametrize(
    ("options", "zones"),
    [
        ({}, True),
        ({"ZONE_DMA": "n"}, False),
        ({"ZONE_DMA": "n", "ZONE_DMA32": "y"}, True),
        ({"ZONE_DMA32": "n"}, True),
    ],
)
def test_dma32_follows_dma_unless_it_is_given(options: dict[str, str], zones: bool) -> None:
    assert KernelConfig(options=options).has_dma_zones is zones


def test_unless_told_otherwise_the_era_is_that_of_the_commands() -> None:
    assert KernelConfig().release is KernelConfig(Setup().era).release is Era.V6_4


def test_the_options_that_there_are_are_listed_by_their_names() -> None:
    with pytest.raises(InputError) as refusal:
        KernelConfig(options={"FOO": "y"})
    names = str(refusal.value).partition("known are ")[2].split(", ")
    assert (
        names == sorted(names) == [row.name for row in option_rows()] and len(set(names)) == len(names) > 30
    )


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (
            {"era": "6.x"},
            "era '6.x' is not modelled (did you mean 6.9?); known are 6.1, 6.2, 6.3, 6.4, 6.5, 6.6,",
        ),
        ({"protection": "pkeys"}, "protection 'pkeys' is not known"),
        ({"options": {"ZONE_DAM": "n"}}, "config option ZONE_DAM is not one that the model knows"),
        ({"options": {"ZONE_DMA": "m"}}, "config option ZONE_DMA is y or n, not 'm'"),
        (
            {"options": {"CMA_SIZE_MBYTES": "y"}},
            "config option CMA_SIZE_MBYTES takes a number below 10^9, not 'y'",
        ),
        (
            {"era": "6.12", "options": {"KEXEC_BUF_GARBAGE": "y"}},
            "config option KEXEC_BUF_GARBAGE=y: there is such a Linux from 6.16 on, before 6.18, not 6.12",
        ),
        (
            {"options": {"ARM64_4K_PAGES": "y", "ARM64_64K_PAGES": "y"}},
            "ARM64_4K_PAGES and ARM64_64K_PAGES exclude",
        ),
    ],
)
def test_what_makes_no_kernel_is_refused_in_one_clear_line(arguments: dict[str, object], words: str) -> None:
    with pytest.raises(InputError) as refusal:
        KernelConfig(**arguments)  # type: ignore[arg-type]
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("name", "least", "most"),
    [
        ("IMA_KEXEC_EXTRA_MEMORY_KB", 0, 40),  # security/integrity/ima/Kconfig
        ("KFENCE_NUM_OBJECTS", 1, 65535),  # lib/Kconfig.kfence
        ("KFENCE_SAMPLE_INTERVAL", 0, 10**9 - 1),
        ("CMA_SIZE_MBYTES", 0, 10**9 - 1),
    ],
)
def test_a_number_is_one_that_kconfig_takes(name: str, least: int, most: int) -> None:
    for value in (least, most):
        assert check_option(f"CONFIG_{name}", str(value)) == name
    for value, words in ((least - 1, f"is {least} at least"), (most + 1, f"is {most} at most")):
        short = "takes a number below 10^9" if value < 0 or value >= 10**9 else words
        with pytest.raises(InputError) as refusal:
            check_option(name, str(value))
        end = repr(str(value)) if short != words else value
        assert str(refusal.value) == f"config option {name} {short}, not {end}"


def test_an_unknown_option_is_answered_with_all_known_ones() -> None:
    with pytest.raises(InputError) as refusal:
        KernelConfig(options={"CONFIG_NFS_FS": "y"})
    assert all(name in str(refusal.value) for name in KNOWN_OPTIONS)
