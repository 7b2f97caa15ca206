"""How purgatory and capture kernel ended in a QEMU, as its registers, its memory and its console say."""

import re
from collections.abc import Collection

from kexecemu.crash.stages import PurgatoryEnd
from kexecemu.crash.verdict import Verdict, VerdictState
from kexecemu.kbuild.trial import Loaded
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.capture import LinuxCapture, LinuxEnd
from kexecemu.linux.initramfs import CAPTURE_DONE, HEADERS_READ, NO_VMCORE
from kexecemu.machine.cpu.exceptions import EC_IABT_LOWER, EC_IABT_SAME, EC_PC_ALIGNMENT, GuestException
from kexecemu.machine.cpu.registers import BRANCH_TO_SELF, WFE, WFI

__all__ = ["PANIC_END", "SAID", "linux_end", "place_of_pc", "purgatory_end_of"]
__all__ += ["store_fault"]

PANIC_END = "---[ end Kernel panic"
"""The last line of a panic."""

SAID = "kdump: end: "
"""How the last line of the capture kernel's init begins."""

_FAULT = re.compile(r"Unable to handle kernel .{0,80}? at virtual address ([0-9a-f]{1,16})\b")
_FAULT_ESR = re.compile(r"ESR = 0x([0-9a-f]{1,16})\b")
_FAULT_CPU = re.compile(r"\] CPU: ([0-9]{1,6}) ")
_PANIC = re.compile(r"Kernel panic - not syncing: (.*)")
_NOT_FETCHED = (EC_IABT_LOWER, EC_IABT_SAME, EC_PC_ALIGNMENT)
"""Exceptions of an instruction that was not there."""
_LAST_WORDS = ((CAPTURE_DONE, LinuxEnd.DONE), (HEADERS_READ, LinuxEnd.HEADERS), (NO_VMCORE, LinuxEnd.NO_DUMP))


def linux_end(console: str, *, panicked: bool) -> LinuxCapture:
    """The account of a capture kernel by what it has printed; panicked says that it came to the end of a panic."""
    last = next((line for line in console.splitlines() if line.startswith(SAID)), "")
    end = next((kind for word, kind in _LAST_WORDS if last.startswith(word)), LinuxEnd.OFF)
    if panicked or not last:
        end = LinuxEnd.PANIC if panicked else LinuxEnd.STUCK
    release = re.search(r"^kdump: Linux (\S+) is up", console, re.MULTILINE)
    panic = _PANIC.search(console) if panicked else None
    return LinuxCapture(
        end,
        "",
        0,
        release=release[1] if release else "",
        console=console,
        last_word=last.removeprefix(SAID),
        panic=panic[1].strip() if panic else "",
    )


def store_fault(console: str) -> GuestException | None:
    """The fault at which a kernel died, by its own words (die_kernel_fault()): address, ESR and CPU; None for none."""
    address = _FAULT.search(console)
    if address is None:
        return None
    esr = _FAULT_ESR.search(console, address.end())
    cpu = _FAULT_CPU.search(console, address.end())
    return GuestException(
        cpu=int(cpu[1]) if cpu else 0,
        when=0,
        kind="sync",
        esr=int(esr[1], 16) if esr else 0,
        far=int(address[1], 16),
        pc=0,
        el=1,
        pstate=0,
    )


def purgatory_end_of(
    loaded: Loaded,
    pc: int,
    verdict: Verdict | None,
    *,
    doors: Collection[int],
    stopped: bool,
    elr: int | None = None,
    esr: int | None = None,
) -> PurgatoryEnd:
    """How a purgatory ended whose CPU stands at a physical address, with this record (None: it has none).

    doors are where it was waited for: the kernel's entry, and what it was told of that. stopped says that its CPU
    stands there for good, or has come to a door, and elr where the last exception came from since the purgatory's entry
    (None: there was none), esr what it was. loaded.ram is memory as it is now.
    """
    image = loaded.image
    purgatory = image.purgatory
    assert purgatory is not None
    area, state = purgatory.segment.area, verdict.state if verdict is not None else None
    inside = pc in area
    if pc == image.kernel_entry:
        return PurgatoryEnd.KERNEL
    # Its own vectors have stopped it, but it had left its code before: for code, not for where nothing can be fetched.
    fetched = esr is None or esr >> 26 not in _NOT_FETCHED
    strayed = inside and elr is not None and elr not in area and fetched
    if pc in doors or strayed or (state is VerdictState.MATCH and not inside):
        return PurgatoryEnd.ELSEWHERE
    if state is VerdictState.MISMATCH:
        return PurgatoryEnd.MISMATCH
    if state is VerdictState.TRAPPED or (stopped and not inside):
        return (
            PurgatoryEnd.TRAPPED
        )  # or at the dead kernel's vectors, which cannot be fetched with the MMU off
    keeps = purgatory.has_symbol("purgatory_verdict")
    if inside and elr is not None and not keeps:
        # Stopped or not, as in purgatory_end(): its vectors may lead to the same exception again and again.
        return PurgatoryEnd.TRAPPED
    return PurgatoryEnd.MISMATCH if stopped and not keeps and _refuses(loaded, pc) else PurgatoryEnd.HUNG


def place_of_pc(image: Kimage, pc: int) -> str:
    """In which segment, for people."""
    segment = image.segment_at(pc)
    return f"the {segment.name}" if segment is not None else "nothing that was loaded"


def _refuses(loaded: Loaded, pc: int) -> bool:
    """A purgatory that keeps no record stands in an endless loop of its own, which is as it was loaded."""
    purgatory = loaded.image.purgatory
    assert purgatory is not None
    phys, size = purgatory.symbol_table().get("purgatory_stop", (0, 0))
    if size and pc not in range(phys, phys + size + 4):  # a WFI that an interrupt has ended stands behind it
        return False
    for at in (pc, pc - 4):
        offset = at - purgatory.segment.mem
        word = bytes(purgatory.buf[offset : offset + 4]) if offset >= 0 else b""
        if int.from_bytes(word, "little") in (BRANCH_TO_SELF, WFE, WFI) and loaded.ram.read(at, 4) == word:
            return True
    return False
