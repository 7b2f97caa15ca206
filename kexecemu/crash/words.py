"""What the stages of a crash did, in words for its timeline."""

from kexecemu.crash.stages import CaptureEnd, CaptureRun, PurgatoryEnd, PurgatoryRun
from kexecemu.crash.verdict import Damaged, VerdictFlags, VerdictState, describe_damage
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.capture import LinuxCapture, LinuxEnd
from kexecemu.machine.timeline import Timeline

__all__ = ["linux_words", "tell_capture", "tell_purgatory"]


def tell_purgatory(timeline: Timeline, run: PurgatoryRun, image: Kimage) -> None:
    """How a purgatory ended, on the timeline."""
    verdict = run.verdict
    content = "is content and jumps" if image.digest is not None else "checks nothing and jumps"
    if verdict is not None and verdict.objects:
        trapped = verdict.state is VerdictState.TRAPPED
        content = "meets an exception and jumps all the same" if trapped else "jumps all the same"
        if VerdictFlags.REPAIRED in verdict.flags:
            content = "repairs the image and jumps"
    act = {"system_off": "switches off", "system_reset": "resets", "cpu_off": "switches its CPU off"}.get(
        run.power or "", "stops"
    )
    damaged = describe_damage(verdict, image) if verdict is not None else None
    # Code and pointers come before the digests: with these wrong nothing is hashed.
    differs = not run.itself
    if verdict is not None:
        differs = not verdict.damaged & (Damaged.PURGATORY | Damaged.DTB_POINTER)
    found = "the digests differ" if differs else "the image is not as loaded"
    words = {
        PurgatoryEnd.KERNEL: f"the purgatory {content} to the kernel at {image.kernel_entry:#x}",
        PurgatoryEnd.MISMATCH: f"the purgatory finds that {found}, and {act}",
        PurgatoryEnd.RETURNED: f"the purgatory finds that something is wrong, and returns to {run.pc:#x}",
        PurgatoryEnd.ELSEWHERE: f"the purgatory jumps to {run.pc:#x}, which is not the kernel",
        PurgatoryEnd.TRAPPED: f"the purgatory is ended by an exception: {run.fault}",
        PurgatoryEnd.HUNG: f"the purgatory gets nowhere (pc {run.pc:#x})",
    }
    if run.content:
        words[PurgatoryEnd.HUNG] = f"the purgatory is content, and starts no kernel (pc {run.pc:#x})"
    elif run.power is not None:
        words[PurgatoryEnd.HUNG] = f"the purgatory {act} without a verdict (pc {run.pc:#x})"
    timeline.record(
        "purgatory",
        words[run.end] + (f"; damaged: {damaged}" if damaged else ""),
        end=run.end.value,
        pc_phys=run.pc,
        instructions=run.instructions,
        expected=verdict.expected.hex() if verdict else None,
        found=verdict.found.hex() if verdict else None,
        damaged=damaged,
    )


def tell_capture(timeline: Timeline, run: CaptureRun) -> None:
    """How a capture kernel ended, on the timeline."""
    words = {
        CaptureEnd.DONE: "the capture kernel has gone through the dump and powers off",
        CaptureEnd.ENTERED: "a real kernel stands at its first instruction, the entry contract is met",
        CaptureEnd.NO_DUMP: "the kernel that was started finds no dump: no core header where the device tree says",
        CaptureEnd.BAD_ENTRY: "the capture kernel was entered against the boot protocol",
        CaptureEnd.TRAPPED: f"the capture kernel is ended by an exception: {run.fault}",
        CaptureEnd.ELSEWHERE: f"the capture kernel runs away to {run.pc:#x}",
        CaptureEnd.HUNG: f"the capture kernel gets nowhere (pc {run.pc:#x})",
        CaptureEnd.HEADERS: "the capture kernel reads the dump's headers and powers off",
        CaptureEnd.OFF: "the capture kernel powers off",
        CaptureEnd.PANIC: "the capture kernel panics",
    }
    text = words[run.end] if run.linux is None else linux_words(run.linux)
    timeline.record("captured", text, end=run.end.value, pc_phys=run.pc, instructions=run.instructions)


def linux_words(run: LinuxCapture) -> str:
    """What came of a real capture kernel."""
    who = f"Linux {run.release}" if run.release else "the capture kernel"
    if run.end is LinuxEnd.DONE:
        size = f"{run.vmcore.size if run.vmcore is not None else 0:#x} bytes"
        if not run.true_dump:
            return f"{who} has copied a dump of {size} that is not what memory held: {run.wrong_text} differ"
        loads = f"all {len(run.read)} loads are as memory was"
        mute = "" if run.console.strip() else "; it has printed nothing, for want of a driver for the console"
        return f"{who} has copied the dump, {size}, and powers off; {loads}{mute}"
    words = {
        LinuxEnd.NO_DUMP: "finds no dump, and powers off",
        LinuxEnd.HEADERS: "reads the dump's headers, and powers off without copying it",
        LinuxEnd.OFF: f"powers off{f': {run.last_word}' if run.last_word else ' without a word of the dump'}",
        LinuxEnd.PANIC: f"panics: {run.panic}" if run.panic else "panics",
        LinuxEnd.STUCK: "gets nowhere",
        LinuxEnd.LOST: "is ended by an exception",
        LinuxEnd.BUDGET: "has not come to an end",
    }
    return f"{who} {words[run.end]} ({run.where})"
