"""A fault of a campaign in one token: read as it is written, refused word for word, and stored as wide as it can be."""

from __future__ import annotations

import itertools

import pytest

from kexecemu.campaign.fault import MOMENTS, CampaignFault, Decided, Ended, How
from kexecemu.errors import InputError
from kexecemu.machine.ranges import PhysRange
from kexecemu.stray.fault import NUMBERED, By, When

ONE = CampaignFault(By.DMA, "bit-flip", 3, "initrd", 0x1A2B, When.AFTER_LOAD)


def test_what_is_not_said_is_nothing() -> None:
    assert CampaignFault(By.DMA, "bit-flip", 3, "initrd", 0x1A2B, When.AFTER_LOAD, 0) == ONE
    assert Ended("hung") == Ended("hung", "none", "", False, None)
    assert Decided(ONE, "hung", How.RUN, "", 5) == Decided(ONE, "hung", How.RUN, "", 5, "", "none", "", False)
    assert set(MOMENTS) == {*When} - {When.BEFORE_PANIC, When.AT_JUMP} and list(MOMENTS) == sorted(
        MOMENTS, key=list(When).index
    )


@pytest.mark.parametrize("moment", MOMENTS)
@pytest.mark.parametrize("by", By)
def test_a_token_is_read_as_it_is_written(by: By, moment: When) -> None:
    most = NUMBERED.get(moment)
    for variant, offset, at in itertools.product(
        (0, 10, 255), (0, 0xABC), (0,) if most is None else (0, 1, most)
    ):
        fault = CampaignFault(by, "use-after-free", variant, "below-initrd", offset, moment, at)
        end = moment.value + ("" if most is None else f"-{at}")
        assert fault.id == f"{by.value}.use-after-free.{variant:x}.below-initrd+{offset:x}.{end}"
        assert CampaignFault.parse(fault.id) == fault


LIKE = "they look like dma.bit-flip.3.initrd+1a2b.after-load"


@pytest.mark.parametrize(
    ("token", "said"),
    [
        ("", LIKE),
        ("dma.bit-flip.3.initrd+1a2b", LIKE),
        ("gpu.bit-flip.3.initrd+1a2b.after-load", LIKE),
        ("dma.bit-flip.3.initrd.after-load", LIKE),
        ("dma.bit-flip.g.initrd+0.after-load", LIKE),
        ("xdma.bit-flip.3.initrd+0.after-load", LIKE),
        ("dma.bit-flip.3.initrd+0.after-load\n", LIKE),
        ("dma.bit-flip.3.initrd+0.at-jump", "no moment 'at-jump'; there are during-load, after-load, during-panic, "
         "hashing, after-check, capture"),
        ("dma.bit-flip.3.initrd+0.after-loa", "no moment 'after-loa' (did you mean after-load?); there are "
         "during-load, after-load, during-panic, hashing, after-check, capture"),
        ("dma.bit-flip.3.initrd+0.after-load-0", "after-load goes without a number"),
        ("dma.bit-flip.3.initrd+0.hashing", "hashing goes with a number"),
        ("dma.bit-flip.3.initrd+0.hashing-257", "hashing goes to 256"),
        ("dma.bit-flip.3.initrd+0.capture-1000000001", "capture goes to 1000000000"),
        ("dma.bit-flip.03.initrd+0.after-load", "it is written dma.bit-flip.3.initrd+0.after-load"),
        ("dma.bit-flip.3.initrd+00.after-load", "it is written dma.bit-flip.3.initrd+0.after-load"),
        ("dma.bit-flip.3.initrd+0.hashing-01", "it is written dma.bit-flip.3.initrd+0.hashing-1"),
    ],
)  # fmt: skip
def test_a_token_that_is_none_is_refused_with_what_is_wrong(token: str, said: str) -> None:
    with pytest.raises(InputError) as refusal:
        CampaignFault.parse(token)
    assert str(refusal.value) == f"{token!r} is no fault: {said}"


@pytest.mark.parametrize("start", range(0x1000, 0x1009))
@pytest.mark.parametrize("size", [1, 2, 3, 4, 6, 8, 12, 16, 4096])
def test_a_cpu_stores_as_widely_as_place_and_length_allow(start: int, size: int) -> None:
    fault = CampaignFault(By.CPU, "memset", 7, "initrd", 0x1A, When.AFTER_LOAD).fault(
        PhysRange.of(start, size)
    )
    widths = [width for width in (1, 2, 4, 8) if start % width == 0 and size % width == 0]
    assert fault.width == max(widths)
    assert (fault.at, fault.by, fault.when, fault.step) == ("initrd+0x1a", By.CPU, When.AFTER_LOAD, 0)
    assert (fault.write, fault.flip, fault.model, fault.variant) == (None, None, "memset", 7)


def test_its_moment_goes_with_it() -> None:
    late = CampaignFault(By.DMA, "byte", 1, "initrd", 0, When.WHILE_HASHING, 99).fault(PhysRange.of(0, 1))
    assert late.moment == (When.WHILE_HASHING, 99)
