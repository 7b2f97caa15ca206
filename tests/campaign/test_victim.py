"""The machine that a campaign writes to: who may write where, when a moment comes, and what a write does then."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from stray_faults import scenario, start

from kexecemu.campaign.engine import FaultDecider
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import By, Fault, Injection, When


@pytest.fixture(scope="module", params=["none", "pte", "readonly", "bbml2"])
def engine(request: pytest.FixtureRequest) -> Iterator[FaultDecider]:
    engine = start(scenario(protection=request.param))
    yield engine
    engine.close()


def test_what_is_said_of_a_page_is_what_a_store_to_it_meets(engine: FaultDecider) -> None:
    """A page of each kind: a real store by the CPU, through the page tables of the loaded kernel."""
    victim, kernel = engine.victim, engine.kernel
    starts = [segment.mem for segment in engine.image.segments] + [
        page.start for page in engine.image.control_pages
    ]
    assert engine.space.places is not None
    starts.append(engine.space.places.area("crashkernel-free").start)
    protected = engine.kernel.config.way.value != "none"
    said = {phys: victim.store_allowed(phys >> 12) for phys in starts}
    assert any(not allowed for allowed in said.values()) == protected
    for phys, allowed in said.items():
        victim.snapshots.restore(engine.golden.loaded)
        before = kernel.ram.read_u64(phys)
        stored = kernel.stray_write_virt(kernel.space.linear_virt(phys), bytes([before & 0xFF ^ 1]))
        assert stored == allowed and (kernel.ram.read_u64(phys) != before) == allowed


def test_a_moment_comes_until_the_undisturbed_run_is_over(engine: FaultDecider) -> None:
    victim = engine.victim
    assert all(victim.reached(When.WHILE_HASHING, step) for step in range(0, 256, 15))
    assert not victim.reached(When.WHILE_HASHING, 256)
    assert victim.reached(When.IN_CAPTURE, 0) and victim.reached(When.IN_CAPTURE, 1000)
    assert not victim.reached(When.IN_CAPTURE, engine.golden.capture.instructions)
    assert not victim.reached(When.IN_CAPTURE, 10**9)


def test_a_write_is_made_of_what_is_there_at_its_moment(engine: FaultDecider) -> None:
    checker = engine.image.purgatory
    assert checker is not None
    stack, size = checker.symbol_table()["purgatory_stack"]
    changed = 0
    for phys in range(stack, stack + size, size // 32):
        fault = Fault(f"{phys:#x}", flip=0xFF, by=By.DMA, when=When.WHILE_HASHING, step=128)
        seen = []
        for late in (True, False):
            engine.victim.run(fault, PhysRange.of(phys, 1), late=late)
            seen += injections(engine)
        first, second = seen
        # Going on from the middle of hashing, the bytes are those of a run that went through it.
        assert first.before == second.before
        assert all(one.after == bytes([one.before[0] ^ 0xFF]) for one in seen)
        changed += first.before != bytes(1)
    assert changed


def injections(engine: FaultDecider) -> list[Injection]:
    assert engine.victim.end is not None
    return engine.victim.end.injections


@pytest.mark.parametrize("by", [By.CPU, By.LATE_CPU])
def test_a_write_over_the_edge_of_what_is_protected_gets_as_far_as_the_edge(
    engine: FaultDecider, by: By
) -> None:
    victim, region = engine.victim, engine.golden.region
    pages = range((region.start >> 12) + 1, region.end >> 12)
    edge = next(
        (page for page in pages if victim.store_allowed(page - 1) and not victim.store_allowed(page)), None
    )
    if edge is None:
        assert engine.kernel.config.way.value == "none"
        return
    area = PhysRange((edge << 12) - 8, (edge << 12) + 8)
    victim.run(Fault(f"{area.start:#x}", write=b"\xa5" * 16, by=by, when=When.DURING_PANIC), area, late=True)
    seen = injections(engine)
    assert seen[0].after == b"\xa5" * 8 + seen[0].before[8:]
    assert seen[0].exception is not None
    assert seen[0].exception.far == engine.kernel.space.linear_virt(edge << 12)
    assert seen[0].exception.cpu == (1 if by is By.LATE_CPU else 0)
