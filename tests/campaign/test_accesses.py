"""What is recorded of a run's accesses: by native hooks and by Python's alike, and what they see of real guest code."""

from __future__ import annotations

from collections.abc import Iterator
from random import Random
from typing import Any

import pytest
from machine.conftest import CODE, NOP, WFI, Guest, add, b, br, load, mov, store, store_byte
from stray_faults import scenario, start

from kexecemu.campaign.accesses import GRAIN, LINE, Accesses, First, recorded
from kexecemu.machine.ranges import PhysRange

DATA = CODE + 0x10000
REGION = PhysRange.of(DATA, 0x1000)
LDP_Q = 0xAD400400  # ldp q0, q1, [x0]
STP_Q = 0xAD000400  # stp q0, q1, [x0]


@pytest.fixture(params=["native", "python"])
def guest(request: Any, monkeypatch: pytest.MonkeyPatch) -> Iterator[Guest]:
    if request.param == "python":
        monkeypatch.setenv("KEXECEMU_NO_NATIVE", "1")
    else:
        monkeypatch.delenv("KEXECEMU_NO_NATIVE", raising=False)
    guest = Guest()
    guest.cpu.reset(CODE)
    assert (guest.cpu.counter.library is not None) == (request.param == "native")
    yield guest
    guest.board.close()


def accesses(guest: Guest, *words: int | list[int], region: PhysRange = REGION) -> Accesses:
    """Run a program with x0 = DATA."""
    guest.words(CODE, mov(0, DATA), *words, WFI)
    guest.cpu.pc = CODE
    with recorded(guest.cpu, region) as found:
        guest.cpu.run()
    return found


def test_a_load_is_a_read_and_a_store_of_a_whole_grain_before_it_is_none(guest: Guest) -> None:
    found = accesses(guest, load(1, 0, 0), store(1, 0, 0), store(1, 0, 64), load(1, 0, 64))
    assert found.of(PhysRange.of(DATA, 8)) is First.READ
    assert found.of(PhysRange.of(DATA + 64, 8)) is First.WRITTEN_FIRST
    assert found.of(PhysRange.of(DATA, 128)) == First.READ | First.WRITTEN_FIRST
    assert found.untouched(PhysRange.of(DATA + 8, 56)) and not found.untouched(PhysRange.of(DATA + 7, 1))
    assert found.touched() == [PhysRange.of(DATA, 8), PhysRange.of(DATA + 64, 8)]


def test_a_grain_that_is_stored_to_in_part_counts_as_read(guest: Guest) -> None:
    found = accesses(guest, store_byte(1, 0, 3), add(0, 0, 12), store(1, 0, 8))
    assert found.of(PhysRange.of(DATA, 8)) is First.READ
    # The second store is over two halves of grains.
    assert found.of(PhysRange.of(DATA + 16, 16)) is First.READ
    assert found.untouched(PhysRange.of(DATA + 32, 64))


def test_vector_registers_load_and_store_too(guest: Guest) -> None:
    guest.cpu.set_sysreg("CPACR_EL1", 3 << 20)
    found = accesses(guest, LDP_Q, add(0, 0, 256), STP_Q)
    assert found.of(PhysRange.of(DATA, 32)) is First.READ
    assert found.of(PhysRange.of(DATA + 256, 32)) is First.WRITTEN_FIRST
    assert found.touched() == [PhysRange.of(DATA, 32), PhysRange.of(DATA + 256, 32)]


def test_code_that_runs_is_read(guest: Guest) -> None:
    """A block at the end of the region, entered by a branch: the words that run, and none behind the branch."""
    guest.words(DATA + 0x40, NOP, NOP, b(0x100))
    guest.words(DATA + 0x148, WFI)
    found = accesses(guest, mov(1, DATA + 0x40), br(1))
    assert found.of(PhysRange.of(DATA + 0x40, 12)) is First.READ
    assert found.of(PhysRange.of(DATA + 0x148, 4)) is First.READ
    assert found.untouched(PhysRange(DATA + 0x50, DATA + 0x148))


def test_what_lies_outside_the_region_is_nobody_s_business(guest: Guest) -> None:
    inside = PhysRange.of(DATA + 64, 64)
    found = accesses(guest, load(1, 0, 56), load(1, 0, 128), store(1, 0, 120), region=inside)
    assert found.touched() == [PhysRange.of(DATA + 120, 8)]
    assert found.first_read(inside) == -1


def test_reads_have_their_times_first_and_last(guest: Guest) -> None:
    loop = [load(1, 0, 0), b(4), load(1, 0, 256), b(4), load(1, 0, 0), b(4), NOP, b(4)]
    before = guest.cpu.instructions
    found = accesses(guest, loop)
    near, far = PhysRange.of(DATA, 8), PhysRange.of(DATA + 256, 8)
    assert before < found.first_read(near) < found.first_read(far) < found.last_read(near)
    assert found.first_read(far) == found.last_read(far) <= guest.cpu.instructions
    never = PhysRange.of(DATA + LINE, 8)
    assert found.first_read(never) == found.last_read(never) == -1
    assert found.first_read(PhysRange.of(DATA, 512)) == found.first_read(near)


def test_what_is_recorded_does_not_change_what_the_guest_does(guest: Guest) -> None:
    guest.words(CODE, mov(0, DATA), load(1, 0), add(1, 1, 1), store(1, 0), WFI)
    states = []
    for record in (False, True, False):
        guest.ram.write_u64(DATA, 41)
        guest.cpu.pc = CODE
        before = guest.cpu.instructions
        if record:
            with recorded(guest.cpu, REGION):
                guest.cpu.run()
        else:
            guest.cpu.run()
        states.append((guest.cpu.instructions - before, guest.cpu.registers(), guest.ram.read_u64(DATA)))
    assert states[0] == states[1] == states[2] and states[0][2] == 42


def arrays(found: Accesses) -> tuple[bytes, list[int], list[int]]:
    return bytes(found._grains), list(found._first_reads), list(found._last_reads)


def test_native_hooks_and_python_s_record_the_same_of_random_code(monkeypatch: pytest.MonkeyPatch) -> None:
    random = Random(4)
    encoders = (load, store, store_byte)
    words: list[int] = []
    for _ in range(400):
        encode = random.choice(encoders)
        words.append(encode(random.randrange(1, 30), 0, 8 * random.randrange(300)))
        if random.random() < 0.2:
            words.append(b(4))
        if random.random() < 0.1:
            words.append(add(0, 0, random.choice([1, 3, 8])))
    found = []
    for native in ("0", "1"):
        monkeypatch.setenv("KEXECEMU_NO_NATIVE", native)
        guest = Guest()
        guest.cpu.reset(CODE)
        found.append(arrays(accesses(guest, words)))
        guest.board.close()
    assert found[0] == found[1]
    assert len(set(found[0][0])) == 3 and any(found[0][1])


def test_native_hooks_and_python_s_record_the_same_of_a_whole_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    found = []
    for native in ("0", "1"):
        monkeypatch.setenv("KEXECEMU_NO_NATIVE", native)
        engine = start(scenario())
        golden = engine.golden
        found.append([arrays(one) for one in (golden.in_panic, golden.in_check, golden.in_capture)])
        engine.close()
    assert found[0] == found[1]


def test_all_that_is_hashed_is_read_and_nothing_of_free_memory_is() -> None:
    engine = start(scenario())
    golden = engine.golden
    try:
        for region in engine.image.sha_regions:
            for phys in range(region.start, region.end - GRAIN, 4096):
                assert golden.in_check.of(PhysRange.of(phys, GRAIN)) is First.READ
            assert (
                golden.check_began < golden.in_check.first_read(region) <= golden.in_check.last_read(region)
            )
        assert engine.space.places is not None
        free = engine.space.places.area("crashkernel-free")
        assert all(one.untouched(free) for one in (golden.in_panic, golden.in_check, golden.in_capture))
    finally:
        engine.close()
