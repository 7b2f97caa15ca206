"""What a QEMU's registers, record and memory say of a purgatory's end: on memory that the model has loaded."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest

from kexecemu import Board, Kernel, KernelConfig
from kexecemu.crash.stages import PurgatoryEnd
from kexecemu.crash.verdict import Verdict, VerdictState
from kexecemu.data import fixture_path, purgatory_path
from kexecemu.errors import InputError
from kexecemu.formats.elfrel import parse
from kexecemu.kbuild.qemu_ends import linux_end, purgatory_end_of
from kexecemu.kbuild.trial import Loaded, place_of
from kexecemu.linux.capture import LinuxEnd
from kexecemu.linux.first_purgatory import FoundPurgatory
from kexecemu.stray.fault import By, Fault

BRANCH_TO_SELF, NOP = 0x14000000, 0xD503201F
AWAY = 0xFFFF800080010A00


@pytest.fixture
def loaded() -> Iterator[Loaded]:
    with Kernel.boot(
        Board("256M"), KernelConfig("6.12", purgatory=True), cmdline="crashkernel=64M"
    ) as kernel:
        image = kernel.kexec_file_load(fixture_path("guests/capture-Image").read_bytes(), b"initrd" * 999, "")
        assert image is not None and kernel.crashk_res is not None
        yield Loaded(kernel.ram, kernel.crashk_res, image, parse(purgatory_path().read_bytes()))


def without_record(loaded: Loaded) -> Loaded:
    """With a purgatory that keeps no record, as the kernel's own."""
    assert loaded.image.purgatory is not None and loaded.obj is not None
    own = loaded.image.purgatory
    found = FoundPurgatory(loaded.obj, own.segment)
    found.has_symbol = lambda name: name != "purgatory_verdict"  # type: ignore[method-assign]
    found.buf[:] = own.buf
    return replace(loaded, image=replace(loaded.image, purgatory=found))


def record(state: VerdictState) -> Verdict:
    return Verdict(state, 0, bytes(32), bytes(32))


@pytest.mark.parametrize(
    ("place", "state", "stopped", "end"),
    [
        ("kernel", VerdictState.MATCH, True, PurgatoryEnd.KERNEL),
        ("door", VerdictState.MATCH, True, PurgatoryEnd.ELSEWHERE),
        ("away", VerdictState.MATCH, True, PurgatoryEnd.ELSEWHERE),
        ("purgatory", VerdictState.MATCH, True, PurgatoryEnd.HUNG),
        ("purgatory", VerdictState.MISMATCH, True, PurgatoryEnd.MISMATCH),
        ("purgatory", VerdictState.TRAPPED, True, PurgatoryEnd.TRAPPED),
        ("away", VerdictState.CHECKING, True, PurgatoryEnd.TRAPPED),
        ("away", VerdictState.CHECKING, False, PurgatoryEnd.HUNG),
        ("purgatory", VerdictState.CHECKING, True, PurgatoryEnd.HUNG),
        ("purgatory", VerdictState.NOT_RUN, False, PurgatoryEnd.HUNG),
    ],
)
def test_the_end_is_read_from_where_it_stands_and_from_its_record(
    loaded: Loaded, place: str, state: VerdictState, stopped: bool, end: PurgatoryEnd
) -> None:
    image = loaded.image
    places = {"kernel": image.kernel_entry, "door": 0x1000, "away": AWAY, "purgatory": image.start}
    doors = {image.kernel_entry, 0x1000}
    assert purgatory_end_of(loaded, places[place], record(state), doors=doors, stopped=stopped) is end


def test_without_a_record_a_refusal_is_a_loop_that_was_loaded_as_one(loaded: Loaded) -> None:
    core, own = without_record(loaded), loaded.image.purgatory
    assert own is not None
    at, _ = own.symbol_table()["purgatory_stop"]

    def ends(here: int) -> PurgatoryEnd:
        return purgatory_end_of(core, here, None, doors=(), stopped=True)

    assert ends(at) is ends(at + 4) is PurgatoryEnd.MISMATCH
    assert ends(own.entry + 0x40) is PurgatoryEnd.HUNG
    loaded.ram.write_u32(own.entry + 0x40, BRANCH_TO_SELF)
    assert ends(own.entry + 0x40) is PurgatoryEnd.HUNG  # a stray write made that loop
    assert purgatory_end_of(core, at, None, doors=(), stopped=False) is PurgatoryEnd.HUNG
    assert purgatory_end_of(core, at, None, doors=(), stopped=True, elr=own.entry + 8) is PurgatoryEnd.TRAPPED
    # An instruction that is none, where no code was loaded: it had gone there.
    away = own.segment.mem - 0x40000
    assert purgatory_end_of(core, at, None, doors=(), stopped=True, elr=away) is PurgatoryEnd.ELSEWHERE
    # A damaged return address, where nothing can be fetched: it has run nothing there, as in the model.
    for esr, end in (
        (0x02000000, PurgatoryEnd.ELSEWHERE),  # undefined, after it was fetched
        (0x96000010, PurgatoryEnd.ELSEWHERE),  # a load of its
        (0x86000000, PurgatoryEnd.TRAPPED),  # instruction abort, address size
        (0x8A000000, PurgatoryEnd.TRAPPED),  # PC alignment
    ):
        nowhere = 0x4B725FA9C02AA0
        assert purgatory_end_of(core, at, None, doors=(), stopped=True, elr=nowhere, esr=esr) is end
    loaded.ram.write_u32(at, NOP)
    loaded.ram.write_u32(at + 4, BRANCH_TO_SELF)
    assert ends(at) is PurgatoryEnd.HUNG  # nor is it one that it was loaded with


def test_without_a_record_an_exception_is_the_end_though_its_vectors_meet_it_for_ever(loaded: Loaded) -> None:
    core, own = without_record(loaded), loaded.image.purgatory
    assert own is not None
    stored_over, vector, away = own.entry + 0x10, own.segment.mem + 0x200, own.segment.mem - 0x40000

    def moves_at(pc: int, elr: int | None, image: Loaded = core) -> PurgatoryEnd:
        said = record(VerdictState.CHECKING) if image is loaded else None
        return purgatory_end_of(image, pc, said, doors=(), stopped=False, elr=elr, esr=0x02000000)

    assert moves_at(vector, stored_over) is moves_at(stored_over, stored_over) is PurgatoryEnd.TRAPPED
    assert moves_at(vector, None) is PurgatoryEnd.HUNG  # no exception since its entry
    assert moves_at(vector, away) is PurgatoryEnd.ELSEWHERE
    assert moves_at(AWAY, stored_over) is PurgatoryEnd.HUNG  # its exceptions are another's
    assert moves_at(vector, stored_over, loaded) is PurgatoryEnd.HUNG  # a record would say so


def test_a_target_is_what_a_scenario_would_call_it(loaded: Loaded) -> None:
    image = loaded.image
    initrd, purgatory = image.segment("initrd"), image.purgatory
    assert initrd is not None and purgatory is not None
    digest = purgatory.symbol_phys("purgatory_sha256_digest")
    for at, phys in (
        ("initrd+0x10", initrd.mem + 0x10),
        ("purgatory:purgatory_sha256_digest+4", digest + 4),
        ("crashkernel+0x1000", loaded.region.start + 0x1000),
        (hex(initrd.mem + 8), initrd.mem + 8),
    ):
        area = place_of(loaded, Fault(at, write=b"\xa5" * 4, by=By.DMA))
        assert (area.start, area.size) == (phys, 4)
    for at, said in (
        ("initramfs", "no such segment .did you mean initrd"),
        (
            "purgatory:purgatory_sha256_digst",
            "no symbol purgatory_sha256_digst .did you mean purgatory_sha256_digest",
        ),
        ("0x1000", "no RAM at physical 0x1000"),
    ):
        with pytest.raises(InputError, match=said):
            place_of(loaded, Fault(at, write=b"\0", by=By.DMA))


@pytest.mark.parametrize(
    ("last", "panicked", "end"),
    [
        ("kdump: end: status 0, 4096 bytes to /dev/vda", False, LinuxEnd.DONE),
        ("kdump: end: headers read, nothing copied", False, LinuxEnd.HEADERS),
        ("kdump: end: no /proc/vmcore, this kernel was not started by a crash", False, LinuxEnd.NO_DUMP),
        ("kdump: end: status 1, 4096 bytes to /dev/vda", False, LinuxEnd.OFF),
        ("Kernel panic - not syncing: VFS: no root", True, LinuxEnd.PANIC),
        ("[    0.100000] printk: console [ttyAMA0] enabled", False, LinuxEnd.STUCK),
    ],
)
def test_a_capture_kernel_s_end_is_its_init_s_last_word(last: str, panicked: bool, end: LinuxEnd) -> None:
    found = linux_end(f"kdump: Linux 6.12.1 is up\n{last}\n", panicked=panicked)
    assert (found.end, found.release) == (end, "6.12.1")
    assert found.last_word == (last.removeprefix("kdump: end: ") if last.startswith("kdump") else "")
    assert found.panic == ("VFS: no root" if panicked else "")
