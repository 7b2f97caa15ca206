"""Any stray write, from the load to the end of the crash: the outcome follows from where it went and who wrote it."""

from __future__ import annotations

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu import Board, By, Fault, Kernel, KernelConfig, Outcome, When
from kexecemu.data import fixture_path
from kexecemu.kernel.image.kimage import Segment

STUB = fixture_path("guests/capture-Image").read_bytes()
INITRD = fixture_path("guests/initrd.cpio").read_bytes()[:20_000]
HASHED = ("kernel", "elfcorehdr", "initrd", "dtb")


def loaded(
    era: str, purgatory: bool = True, cmdline: str = "crashkernel=16M", protection: str | None = None
) -> Kernel:
    config = KernelConfig(era, purgatory=purgatory, protection=protection)
    kernel = Kernel.boot(Board("64M", 2), config, cmdline=cmdline)
    kernel.kexec_file_load(STUB, INITRD, "panic=5")
    return kernel


def at(kernel: Kernel, name: str, fraction: float, length: int) -> str:
    """A target inside a segment, `length` bytes before its end at the latest."""
    assert kernel.image is not None
    segment = kernel.image.segment(name)
    assert isinstance(segment, Segment)
    return f"{name}+{int(fraction * (segment.memsz - length)):#x}"


fractions = st.floats(0, 1, exclude_max=True)
writes = st.binary(min_size=1, max_size=16)
who = st.sampled_from([By.CPU, By.ALIAS, By.DMA])
moments = st.sampled_from([When.AFTER_LOAD, When.BEFORE_PANIC])


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(HASHED), fractions, writes, who, moments)
def test_with_a_purgatory_every_change_of_a_hashed_byte_is_detected_and_nothing_else(
    name: str, fraction: float, data: bytes, by: By, when: When
) -> None:
    kernel = loaded("6.4")
    injection = kernel.inject(Fault(at(kernel, name, fraction, len(data)), data, by=by, when=when))
    assert injection is not None and injection.after == data
    end = kernel.panic()
    if injection.changed:
        assert end.outcome is Outcome.DETECTED
        assert {one.segment for one in end.damage} == {name}
        wrong = [
            index for index, (old, new) in enumerate(zip(injection.before, data, strict=True)) if old != new
        ]
        assert sum(one.length for one in end.damage) == len(wrong)
        # What the purgatory found is what hashlib finds in the same memory.
        assert kernel.image is not None and end.verdict is not None
        found = hashlib.sha256()
        for region in kernel.image.sha_regions:
            found.update(kernel.ram.read(region.start, region.size))
        assert (end.verdict.expected, end.verdict.found) == (kernel.image.digest, found.digest())
    else:
        assert end.outcome is Outcome.MASKED and end.damage == []


@settings(max_examples=25, deadline=None)
@given(
    st.sampled_from([*HASHED, "purgatory"]),
    fractions,
    writes,
    st.sampled_from(["pte", "readonly", "bbml2"]),
    st.sampled_from(["crashkernel=16M", "crashkernel=16M oops=panic"]),
)
def test_under_protection_no_store_of_a_cpu_reaches_a_segment(
    name: str, fraction: float, data: bytes, protection: str, cmdline: str
) -> None:
    kernel = loaded("6.4", protection=protection, cmdline=cmdline)
    injection = kernel.inject(Fault(at(kernel, name, fraction, len(data)), data))
    assert injection is not None and not injection.changed and injection.exception is not None
    end = kernel.panic()
    assert end.outcome is Outcome.PREVENTED and end.damage == []
    assert end.vmcore is not None
    assert "capture: done" in end.console


@settings(max_examples=40, deadline=None)
@given(st.sampled_from(HASHED), fractions, writes, who)
def test_without_a_purgatory_a_change_is_never_detected_and_never_called_harmless(
    name: str, fraction: float, data: bytes, by: By
) -> None:
    kernel = loaded("6.4", purgatory=False)
    injection = kernel.inject(Fault(at(kernel, name, fraction, len(data)), data, by=by))
    assert injection is not None
    end = kernel.panic()
    assert end.verdict is None
    if injection.changed:
        assert end.outcome in (Outcome.SILENT, Outcome.TRAPPED, Outcome.MISBOOT, Outcome.HUNG)
    else:
        assert end.outcome is Outcome.MASKED


@settings(max_examples=40, deadline=None)
@given(fractions, writes, st.booleans())
def test_a_write_into_the_purgatory_itself_ends_somehow_and_is_told_as_damage_of_the_purgatory(
    fraction: float, data: bytes, also_initrd: bool
) -> None:
    """The blind spot: no outcome is excluded but a clean one."""
    kernel = loaded("6.4")
    injection = kernel.inject(Fault(at(kernel, "purgatory", fraction, len(data)), data, by=By.DMA))
    if also_initrd:
        kernel.inject(Fault("initrd+0x10", b"\x5a\xa5", by=By.DMA))
    assert injection is not None
    end = kernel.panic()
    assert end.outcome is not Outcome.ERROR
    if injection.changed:
        assert any(one.segment == "purgatory" for one in end.damage)
        assert end.outcome not in (Outcome.CAPTURED, Outcome.MASKED, Outcome.PREVENTED)
    elif not also_initrd:
        assert end.outcome is Outcome.MASKED


@settings(max_examples=25, deadline=None)
@given(fractions, writes, who, st.booleans())
def test_a_write_into_unused_crash_memory_is_latent_and_never_an_alarm(
    fraction: float, data: bytes, by: By, purgatory: bool
) -> None:
    kernel = loaded("6.4", purgatory=purgatory)
    offset = int(fraction * (8 << 20))
    injection = kernel.inject(Fault(f"crashkernel-free+{offset:#x}", data, by=by))
    assert injection is not None
    end = kernel.panic()
    assert end.outcome is (Outcome.LATENT if injection.changed else Outcome.MASKED)
    assert end.damage == []


@settings(max_examples=20, deadline=None)
@given(st.sampled_from(HASHED), fractions, st.integers(1, 255))
def test_any_flipped_bits_after_the_check_reach_the_capture_kernel_unnoticed(
    name: str, fraction: float, mask: int
) -> None:
    kernel = loaded("6.1")
    kernel.inject(Fault(at(kernel, name, fraction, 1), flip=mask, by=By.DMA, when=When.AFTER_CHECK))
    end = kernel.panic()
    assert end.verdict is not None and "purgatory: digests match" in end.console
    assert end.outcome in (Outcome.SILENT, Outcome.TRAPPED, Outcome.MISBOOT, Outcome.HUNG)
    assert [(one.segment, one.length) for one in end.damage] == [(name, 1)]
