"""The linear map's alias of the kernel's own data, and blocks that are split live: against real 7.3 kernels."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest
from kernel_bench import DATA, GIB, MIB, boot
from test_linear_map import LINEAR_START, Booted, set_up

from kexecemu.crash.kernel import Kernel
from kexecemu.errors import InputError
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.setup_memory import TextLayout
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.protection import protect_crashkres, unprotect_crashkres
from kexecemu.kernel.image.segment import Segment
from kexecemu.kernel.linear_survey import survey_linear_map
from kexecemu.kernel.memory.pageattr import mark_linear_data_alias
from kexecemu.machine.board import Board, parse_size
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault
from kexecemu.stray.inject import inject

RECORDS = sorted((DATA / "linear-map-7.3").glob("*.txt"))
# The kernel of these recordings: _text, _stext, __init_begin, _end, __init_end, __bss_stop.
LINUX_7_3 = TextLayout(0x40200000, 0x40210000, 0x40560000, 0x40710000, 0x40630000, 0x406FF000)


@dataclass(frozen=True)
class Recorded:
    """A boot of Linux 7.3.4 in QEMU: on a Cortex-A57, or on what says that it is a Neoverse V3."""

    ram: PhysRange
    bbm: int
    cmdline: str
    said: str
    before: list[list[str]]
    after: list[list[str]]

    def boot(self, **config: str) -> Booted:
        booted = set_up(
            KernelConfig("7.3", options={"CMA": "n"}, **config),
            self.cmdline,
            LINUX_7_3,
            (self.ram,),
            bbm=self.bbm,
        )
        mark_linear_data_alias(booted.tables, booted.space, booted.config, self.cmdline, booted.arch.plan)
        return booted

    @property
    def gone(self) -> list[PhysRange]:
        """What the load made invalid, physical."""
        return [area for area in invalid(self.after) if area not in invalid(self.before)]


def invalid(dump: list[list[str]]) -> list[PhysRange]:
    """The stretches of pages without PTE_VALID."""
    found: list[PhysRange] = []
    for line in dump:
        if "F" in line:
            start, end = (int(one, 16) - LINEAR_START + GIB for one in line[0].split("-"))
            if found and found[-1].end == start:
                start = found.pop().start
            found.append(PhysRange(start, end))
    return found


def recorded(path: Path) -> Recorded:
    sections = dict(re.findall(r"^@@ (\w+)\n(.*?)(?=^@@ |\Z)", path.read_text(), re.M | re.S))
    ram, _, bbm = sections["machine"].split()
    dumps = [[line.split() for line in sections.get(name, "").splitlines()] for name in ("before", "after")]
    area = PhysRange.of(GIB, parse_size(ram))
    return Recorded(area, int(bbm), sections["cmdline"].strip(), sections["said"].strip(), *dumps)


each = pytest.mark.parametrize("real", list(map(recorded, RECORDS)), ids=[path.stem for path in RECORDS])
each_with_image = pytest.mark.parametrize(
    "real", [one for one in map(recorded, RECORDS) if one.after], ids=lambda real: f"{real.bbm}-{real.ram}"
)


def test_all_recordings_are_read() -> None:
    assert len(RECORDS) == 8 and sum(bool(recorded(path).after) for path in RECORDS) == 5


@each
def test_the_linear_map_of_7_3_is_the_one_that_a_real_kernel_built(real: Recorded) -> None:
    booted = real.boot()
    assert booted.ptdump() == real.before
    assert real.said in booted.log


@each_with_image
def test_after_a_load_it_is_split_where_a_real_kernel_split_it(real: Recorded) -> None:
    """By the series that protects a crash image where that costs nothing: kernel and initrd, and the rest above."""
    booted = real.boot(protection="pte")
    assert booted.ptdump() == real.before
    first, *more = real.gone
    # The first two segments touch: a kernel of 0x510000 bytes and the initrd.
    initrd = first.start + 0x510000
    areas = [PhysRange(first.start, initrd), PhysRange(initrd, first.end), *more]
    segments = [Segment(str(area), b"", area.start, area.size) for area in areas]
    assert len(segments) == 4
    image = Kimage(control_page=booted.crashk_res.end - 16 * MIB, segments=segments)
    places = booted.tables, booted.space, image, booted.crashk_res
    protect_crashkres(booted.config, *places, splits=booted.arch.plan.splits)
    assert booted.ptdump() == real.after
    unprotect_crashkres(booted.config, *places, splits=booted.arch.plan.splits)
    assert invalid(booted.ptdump()) == invalid(real.before)


# -- the guest ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("era", "cmdline", "word"),
    [
        ("6.1", "", "RW"),
        ("6.18", "", "RW"),
        ("7.0", "", "RW"),
        ("7.2", "", "ro"),
        ("7.2", "rodata=noalias", "ro"),
        ("7.2", "rodata=off", "RW"),
        ("7.3", "", "F"),
        ("7.3", "rodata=noalias", "F"),
        ("7.3", "rodata=noalias rodata=off", "RW"),
        ("7.3", "rodata=off rodata=on", "F"),
        ("7.3", "rodata=off rodata=full", "RW"),
    ],
)
@pytest.mark.parametrize("options", [{}, {"ARM64_16K_PAGES": "y"}, {"ARM64_64K_PAGES": "y"}])
def test_what_the_alias_of_the_kernel_s_data_is(
    era: str, cmdline: str, word: str, options: dict[str, str]
) -> None:
    with boot(era, f"crashkernel=64M {cmdline}", ram="512M", options=options) as kernel:
        start = kernel.space.linear_virt(kernel.guest.phys("__init_end"))
        size = kernel.guest.vmlinux.virt("__bss_stop") - kernel.guest.vmlinux.virt("__init_end")
        kinds = set()
        for leaf in kernel.tables.leaves(start, start + size):
            kinds.add("F" if not leaf.valid else "ro" if leaf.descriptor & 1 << 7 else "RW")
        assert kinds == {word}
        # What lies beside it can be written.
        assert kernel.stray_write_virt(start - 1, b"\xff")
        virt = kernel.space.linear_virt(kernel.guest.phys("panic_request"))
        assert kernel.stray_write_virt(virt, b"\xff") is (word == "RW")


@pytest.mark.parametrize(
    ("era", "status"),
    [("7.0", None), ("7.2", "permission fault level 3"), ("7.3", "translation fault level 3")],
)
@pytest.mark.parametrize("by", [By.CPU, By.ALIAS, By.DMA])
def test_a_stray_store_to_kernel_data_faults_on_its_way_through_the_linear_map_alone(
    era: str, status: str | None, by: By
) -> None:
    with Kernel.boot(Board("256M"), KernelConfig(era), cmdline="crashkernel=64M") as kernel:
        done = inject(kernel, Fault("vmlinux:panic_request", b"\xa5", by=by))
        assert (done.exception.status if done.exception else None) == (status if by is By.CPU else None)
        assert done.changed == int(done.exception is None)


@pytest.mark.parametrize("era", ["7.2", "7.3"])
def test_a_crash_needs_nothing_of_the_alias(era: str) -> None:
    with boot(era, "crashkernel=64M", ram="512M", cpus=2) as kernel:
        assert kernel.stray_write_virt(kernel.guest.vmlinux.virt("panic_request"), b"x")  # by its own mapping
        kernel.begin_crash()
        assert b"Kernel panic - not syncing: sysrq triggered crash" in kernel.board.uart.output


# -- KFENCE's pool -----------------------------------------------------------------------------------------------


def stretches(booted: Booted) -> Iterator[tuple[str, str]]:
    for line in booted.ptdump():
        if "RW" in line and "CON" not in line and "BLK" not in line:
            yield line[0], line[1]


@pytest.mark.parametrize("era", ["6.1", "6.12", "7.3"])
@pytest.mark.parametrize(
    ("options", "cmdline", "pool"),
    [
        ({}, "", False),
        ({"KFENCE": "y"}, "", True),
        ({"KFENCE": "y"}, "kfence.sample_interval=0", False),
        ({"KFENCE": "y", "KFENCE_SAMPLE_INTERVAL": "0"}, "kfence.sample_interval=5", True),
    ],
)
def test_an_early_pool_of_kfence_has_pages_at_the_end_of_ram(
    era: str, options: dict[str, str], cmdline: str, pool: bool
) -> None:
    words = {"6.1": "rodata=on", "6.12": "rodata=on", "7.3": "rodata=noalias"}[era]
    booted = set_up(KernelConfig(era, protection="none", options=options), f"{words} {cmdline}", LINUX_7_3)
    paged = "0xffff00003fe00000-0xffff000040000000", "2M"
    assert (paged in list(stretches(booted))) is pool


def test_a_text_that_was_given_has_no_data_that_is_known() -> None:
    text = PhysRange(0x40210000, 0x405B0000)
    found = survey_linear_map([PhysRange.of(GIB, GIB)], KernelConfig("7.3"), "rodata=on", text=text)
    whole = survey_linear_map(
        [PhysRange.of(GIB, GIB)], KernelConfig("7.3"), "rodata=on", text=text, ptdump=True
    )
    assert found.price == whole.price and " F " not in (whole.ptdump or "")
    with pytest.raises(InputError):
        survey_linear_map([PhysRange.of(GIB, GIB)], KernelConfig("7.3"), "", text=PhysRange(0, 4096))
