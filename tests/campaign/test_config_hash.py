"""The hash of all that a campaign's results depend on: every part of it makes another one, and nothing else does."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from kexecemu.campaign.engine import FaultDecider
from kexecemu.errors import InputError
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.scenario.schema import Scenario

SCENARIO = Scenario(schema=1, name="a campaign")


def hashed(scenario: Scenario = SCENARIO, seed: int = 7, start: int = 0x1000, *segments: Segment) -> str:
    engine: Any = SimpleNamespace(image=Kimage(0, list(segments), start))
    return FaultDecider._config_hash(engine, scenario, seed)


KERNEL, INITRD = Segment("kernel", b"abc", 0x1000, 0x1000), Segment("initrd", b"def", 0x3000, 0x1000)


def test_every_part_of_what_was_loaded_and_its_place_counts() -> None:
    renamed = msgspec.structs.replace(SCENARIO, name="another")
    variants = [
        hashed(SCENARIO, 7, 0x1000, KERNEL, INITRD),
        hashed(renamed, 7, 0x1000, KERNEL, INITRD),
        hashed(SCENARIO, 8, 0x1000, KERNEL, INITRD),
        hashed(SCENARIO, 7, 0x1004, KERNEL, INITRD),
        hashed(SCENARIO, 7, 0x1000, KERNEL),
        hashed(SCENARIO, 7, 0x1000, INITRD, KERNEL),
        hashed(SCENARIO, 7, 0x1000, KERNEL, Segment("dtb", b"def", 0x3000, 0x1000)),
        hashed(SCENARIO, 7, 0x1000, KERNEL, Segment("initrd", b"deg", 0x3000, 0x1000)),
        hashed(SCENARIO, 7, 0x1000, KERNEL, Segment("initrd", b"def", 0x4000, 0x1000)),
        hashed(SCENARIO, 7, 0x1000, KERNEL, Segment("initrd", b"def", 0x3000, 0x2000)),
    ]
    assert len(set(variants)) == len(variants) and all(len(one) == 64 for one in variants)
    assert hashed(SCENARIO, 7, 0x1000, KERNEL, INITRD) == variants[0]


def test_an_option_that_is_no_text_is_refused() -> None:
    with pytest.raises(InputError, match=r"a campaign's options are text: .* is no UTF-8"):
        hashed(msgspec.structs.replace(SCENARIO, name="caf\udce9"))
