"""VMCOREINFO of every era against what real kernels wrote, and the release that a kernel says it is."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import pytest
from kernel_bench import boot

from kexecemu import Board, Kernel, KernelConfig
from kexecemu.errors import InputError
from kexecemu.kernel.base.config import Era
from kexecemu.kernel.base.vmlinux import guest_vmlinux
from kexecemu.kernel.boot.vmcoreinfo_lines import vmcoreinfo_lines

DATA = Path(__file__).parents[1] / "data" / "vmcoreinfo"

# What is a kernel's own: where KASLR put it, and the sizes of what its configuration puts into a node and a zone.
OWN = re.compile(
    r"SYMBOL|OSRELEASE|BUILD-ID|KERNELOFFSET|kimage_voffset|pglist_data|zone\b|free_area|printk_info"
)
NUMBERS = re.compile(
    r"NUMBER|SIZE\((page|mem_section|nodemask_t)\)|LENGTH\((mem_section|printk_info_\w+)\)|PAGESIZE"
)


class Real(NamedTuple):
    """A file of tests/data/vmcoreinfo: whose it is, its options, and lines that its machine or KASLR made other."""

    era: str
    options: dict[str, str]
    other: str = "^$"


OWN_612 = {"ARM64_VA_BITS": "48", "HUGETLB_PAGE": "n", "MEMORY_FAILURE": "n", "KEXEC_FILE": "y"}
# KASLR moves the linear map up to 6.15.
MOVED = "PHYS_OFFSET"
# A CPU with 52 bits of addresses and pointer authentication; and struct mem_section with CONFIG_PAGE_EXTENSION.
LARGE = "TCR_EL1_T1SZ|MAX_PHYSMEM_BITS|KERNELPACMASK|VMALLOC_END|PHYS_OFFSET|mem_section"
REAL = {
    "6.1.192-own": Real("6.1", {"NUMA": "n", "HUGETLB_PAGE": "n", "MEMORY_FAILURE": "n"}, MOVED),
    "6.1.0-56-cloud": Real("6.1", {}, MOVED),
    "6.12.117-cloud": Real("6.12", {}, MOVED),
    "6.12.117-own": Real("6.12", OWN_612, MOVED),
    "6.12.117-16k": Real("6.12", {"ARM64_16K_PAGES": "y"}, LARGE),
    "7.3.4-cloud": Real("7.3", {}),
}
RELEASES = [era.value for era in Era]


def keys(lines: list[str]) -> list[str]:
    return [line.partition("=")[0] for line in lines]


@pytest.fixture(scope="module", params=REAL)
def pair(request: pytest.FixtureRequest) -> tuple[Real, list[str], list[str]]:
    """A real kernel's lines, and those of the model configured like it."""
    real = REAL[request.param]
    lines = (DATA / f"{request.param}.txt").read_text().splitlines()
    with boot(era=real.era, options=real.options) as kernel:
        return real, lines, kernel.vmcoreinfo().decode().splitlines()


def test_it_has_the_lines_of_a_real_kernel_in_its_order(pair: tuple[Real, list[str], list[str]]) -> None:
    _, real, ours = pair
    wanted = [key for key in keys(real) if key != "CRASHTIME"]
    # One was read through a core whose notes are cut off.
    complete = wanted[-1] == "NUMBER(KERNELPACMASK)"
    assert keys(ours)[: None if complete else len(wanted)] == wanted
    assert len(wanted) > 100


def test_its_numbers_are_a_real_kernels(pair: tuple[Real, list[str], list[str]]) -> None:
    record, real, ours = pair
    wanted = [line for line in real if NUMBERS.match(line) and not re.search(record.other, line)]
    assert len(wanted) > 20
    assert [line for line in wanted if line not in ours and "kimage_voffset" not in line] == []


def test_its_structures_are_those_of_a_real_kernel_but_for_configured_ones(
    pair: tuple[Real, list[str], list[str]],
) -> None:
    record, real, ours = pair
    wanted = [
        line for line in real if not OWN.search(line) and not re.search(f"{record.other}|CRASHTIME", line)
    ]
    assert len(wanted) > 50
    assert [line for line in wanted if line not in ours] == []


@pytest.mark.parametrize(
    ("era", "hugetlb", "found"),
    [
        ("6.7", "y", {"PG_hugetlb=8", "PAGE_OFFLINE_MAPCOUNT_VALUE=-257"}),
        ("6.7", "n", set()),
        *(
            ("6.9", one, {"PAGE_HUGETLB_MAPCOUNT_VALUE=-2049", "PAGE_OFFLINE_MAPCOUNT_VALUE=-257"})
            for one in ("y", "n")
        ),
        *(
            (
                "6.10",
                one,
                {"PAGE_HUGETLB_MAPCOUNT_VALUE=-201326592", "PAGE_OFFLINE_MAPCOUNT_VALUE=-251658240"},
            )
            for one in ("y", "n")
        ),
    ],
)
def test_how_huge_and_offline_pages_are_told_has_changed_twice(
    era: str, hugetlb: str, found: set[str]
) -> None:
    """d99e3140a4d3 in 6.9; types in the highest byte in 6.10."""
    config = KernelConfig(era, options={"HUGETLB_PAGE": hugetlb})
    numbers = {what for kind, what in vmcoreinfo_lines(config) if kind == "NUMBER"}
    assert {one for one in numbers if "hugetlb" in one.lower() or "OFFLINE" in one} == found


@pytest.mark.parametrize("release", RELEASES)
def test_a_kernel_says_what_release_it_is_wherever_one_looks(release: str) -> None:
    with Kernel.boot(Board("512M"), KernelConfig(release), cmdline="crashkernel=64M") as kernel:
        name = f"{release}.0-kexecemu"
        assert kernel.vmcoreinfo().decode().startswith(f"OSRELEASE={name}\nBUILD-ID=")
        guest = kernel.guest
        uts = guest.phys("init_uts_ns") + guest.vmlinux.offsetof("new_utsname", "release")
        assert guest.ram.read_cstring(uts, 65).decode() == name
        banner = guest.string(guest.vmlinux.virt("linux_banner"))
        assert banner.startswith(f"Linux version {name} (") and banner.endswith("\n")
        assert kernel.board.uart.text.splitlines()[0].endswith(banner.strip())
        # crash(8) compares it with the first string of the file that looks like one.
        strings = re.findall(rb"[\x20-\x7e]{4,}", guest.vmlinux.path.read_bytes())
        assert banner.strip().encode() in next(
            one for one in strings if b"Linux version 6." in one or b"n 7." in one
        )
        kernel.crash()
        assert f"Not tainted {name}" in kernel.board.uart.text


@pytest.mark.parametrize("release", RELEASES)
@pytest.mark.parametrize("page", ["ARM64_4K_PAGES", "ARM64_16K_PAGES", "ARM64_64K_PAGES"])
def test_the_ranges_it_names_are_where_the_guest_has_them(release: str, page: str) -> None:
    with boot(era=release, options={page: "y"}) as kernel:
        found = re.findall(r"NUMBER\((\w+)\)=(0x[0-9a-f]+)", kernel.vmcoreinfo().decode())
        said = {name: int(value, 16) for name, value in found}
        text = kernel.guest.vmlinux.virt("_text")
        assert text == said["MODULES_END"] == said["VMALLOC_START"]
        assert said["MODULES_VADDR"] < text < said["VMALLOC_END"]
        assert said["VMEMMAP_START"] < said["VMEMMAP_END"]
        bits = 64 - said["TCR_EL1_T1SZ"]
        assert kernel.board.boot_cpu.sysreg("TCR_EL1") >> 16 & 0x3F == said["TCR_EL1_T1SZ"]
        assert kernel.tables.fmt.va_bits == bits and said["MODULES_VADDR"] == (1 << 64) - (1 << bits - 1)
        # The struct page of the first byte of RAM, by VMEMMAP_START and PHYS_OFFSET as makedumpfile counts.
        phys = kernel.board.ram.banks[0].start
        pfn = (phys - (said["PHYS_OFFSET"] ^ 1 << 63) + (1 << 63)) // kernel.page_size
        virt = said["VMEMMAP_START"] + pfn * 64
        assert said["VMEMMAP_START"] <= virt < said["VMEMMAP_END"]
        assert virt >= said["VMALLOC_END"]
        assert kernel.tables.walk(virt).phys is not None


@pytest.mark.parametrize(
    ("options", "bits"),
    [
        ({}, 52),
        ({"ARM64_VA_BITS": "48"}, 48),
        ({"ARM64_VA_BITS_48": "y"}, 48),
        ({"CONFIG_ARM64_VA_BITS_52": "n"}, 48),
        ({"ARM64_VA_BITS_48": "n", "ARM64_VA_BITS_52": "y", "ARM64_VA_BITS": "52"}, 52),
    ],
)
def test_bits_of_addresses_may_be_said_as_a_config_file_does(options: dict[str, str], bits: int) -> None:
    config = KernelConfig("6.12", options=options)
    assert config.va_bits == bits
    # And as it was made it can be made again, and of another era.
    assert replace(config).va_bits == bits
    assert replace(config, era="6.1", options={**config.changed, "ARM64_64K_PAGES": "y"}).va_bits == (
        bits if options else 48
    )
    assert set(config.changed) == ({f"ARM64_VA_BITS_{bits}", "ARM64_VA_BITS"} if options else set())


@pytest.mark.parametrize(
    ("era", "options", "words"),
    [
        ("6.12", {"ARM64_VA_BITS": "48", "ARM64_VA_BITS_52": "y"}, "exclude each other"),
        ("7.3", {"ARM64_VA_BITS_48": "y", "ARM64_VA_BITS_52": "y"}, "exclude each other"),
        ("6.1", {"ARM64_VA_BITS_52": "y"}, "needs pages of 64 KiB before 6.9"),
        ("6.7", {"ARM64_VA_BITS": "52", "ARM64_16K_PAGES": "y"}, "needs pages of 64 KiB before 6.9"),
        ("6.12", {"ARM64_VA_BITS": "39"}, "one of era, 48, 52"),
    ],
)
def test_bits_of_addresses_that_no_kernel_has_are_refused(
    era: str, options: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError, match=words):
        KernelConfig(era, options=options)


def test_a_kernel_of_64_kib_pages_could_have_52_bits_before() -> None:
    with boot(era="6.1", options={"ARM64_64K_PAGES": "y", "ARM64_VA_BITS": "52"}) as kernel:
        text = kernel.vmcoreinfo().decode()
        assert "NUMBER(VA_BITS)=52\n" in text and "NUMBER(TCR_EL1_T1SZ)=0x10\n" in text


def test_eras_share_a_guest_kernel_only_where_it_is_linked_alike() -> None:
    names = {release: guest_vmlinux(KernelConfig(release)).path.name for release in RELEASES}
    assert len(set(names.values())) == 6
    large = {guest_vmlinux(KernelConfig(era, options={"ARM64_16K_PAGES": "y"})).path.name for era in RELEASES}
    smaller = {f"vmlinux-{release}-16k" for release in ("6.6", "6.12", "6.18", "7.3")}
    assert large - set(names.values()) == smaller
