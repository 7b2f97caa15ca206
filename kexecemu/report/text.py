"""A run told to people: what happened, in order, with addresses and symbols."""

from collections.abc import Iterable

from rich.console import Console
from rich.markup import escape

from kexecemu.crash.dump import Dump
from kexecemu.crash.end import End
from kexecemu.crash.kernel import Kernel
from kexecemu.crash.outcome import Outcome
from kexecemu.kernel.base.config import KernelConfig, Way
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.linux.first import FirstLinux
from kexecemu.machine.board import Board
from kexecemu.machine.ranges import PhysRange, exact_size
from kexecemu.machine.timeline import Event
from kexecemu.report.campaign_words import tone_of
from kexecemu.report.terminal import print_table, say
from kexecemu.scenario.runner import Result
from kexecemu.scenario.setup import no_reservation

__all__ = [
    "console_parts",
    "print_events",
    "print_layout",
    "print_result",
    "purgatory_word",
    "ram_and_cpus",
    "unshown_log",
]

_STYLES = {"good": "bold green", "caught": "bold yellow", "quiet": "bold cyan"}
_DUMP_STYLES = {Dump.TRUE: "green", Dump.WRONG: "bold red", Dump.NONE: "bold yellow"}

# What a real kernel prints before and after its init is hundreds of lines. From one of these on it is in trouble.
_TROUBLE = ("Kernel panic", "Unable to handle", "Internal error", "BUG:", "Unhandled")
_PANIC = ("sysrq: ", "Kernel panic", "Unable to handle")
_FIRST_LINES, _LAST_LINES = 2, 2
_FOLDED = 3


def print_layout(console: Console, kernel: Kernel, image: Kimage | None) -> None:
    """The crash region, "none" without one, and what was loaded where."""
    region, low = kernel.crashk_res, kernel.crashk_low_res
    if region is None:
        say(console, "[bold]crashkernel[/]  ", f"none: {no_reservation(kernel)}")
    rows: list[tuple[str, PhysRange | None]] = [
        ("[bold]crashkernel[/]  ", region),
        ("[bold]low part[/]     ", low),
    ]
    rows += [("[bold]in CMA[/]       ", area) for area in kernel.crashk_cma_ranges]
    for label, area in rows:
        if area is not None:
            say(console, label, f"{area.start:#012x}-{area.last:#012x}  {exact_size(area.size)}")
    if image is None:
        return
    table = []
    for one in image.segments:
        numbers = (one.area.start, one.area.last, one.memsz, one.bufsz)
        table.append([(one.name, ""), *((f"{number:#x}", "") for number in numbers)])
    print_table(console, ("segment", "first", "last", "in memory", "from file"), table)
    say(console, "[bold]entry[/]        ", f"{image.start:#x}")
    digest = image.digest.hex() if image.digest else "none: there is no purgatory"
    say(console, "[bold]digest[/]       ", digest)


def ram_and_cpus(board: Board) -> str:
    """How large a board is: "1 GiB, 2 CPUs"."""
    return f"{exact_size(board.ram.size)}, {len(board.cpus)} CPU{'s' if len(board.cpus) > 1 else ''}"


def purgatory_word(config: KernelConfig, syscall: str) -> str:
    """Which purgatory there is: "default", "none", a path, or kexec-tools' own."""
    purgatory = "default" if config.purgatory is True else str(config.purgatory or "none")
    if config.check_way is Way.MACHINE_KEXEC:
        return "none (machine_kexec() hashes)"
    if config.check_way is Way.TRANS_PGD:
        return f"{purgatory} (entered with the MMU on)"
    # User space brings its own, whatever the kernel has.
    return "kexec-tools'" if syscall == "kexec_load" and purgatory in ("default", "none") else purgatory


def _setting(result: Result) -> str:
    kernel = result.kernel
    if isinstance(kernel, FirstLinux):
        return f"{ram_and_cpus(kernel.board)}{_linux_setting(kernel)}; seed {result.seed}"
    config = kernel.config
    purgatory = purgatory_word(config, result.syscall)
    by = " (loaded by kexec_load)" if purgatory == "kexec-tools'" else ""
    return (
        f"{ram_and_cpus(kernel.board)}; kernel of the {config.release.value} era, protection {config.way.value}, "
        f"purgatory {purgatory}{by}; seed {result.seed}"
    )


def _linux_setting(kernel: FirstLinux) -> str:
    stuck = ", ".join(f"cpu{one}" for one in kernel.setup.stuck_cpus)
    checks = "" if kernel.setup.checks else " with --no-checks"
    told = f", stuck at the crash: {stuck}" if stuck else ""
    return f"{told}; the first kernel is Linux {kernel.release}, kexec-tools' purgatory{checks}"


def print_result(console: Console, result: Result) -> None:
    """The whole account of a run: setting, events, console since the panic, damage, outcome."""
    end = result.end
    say(console, "", f"[bold]{escape(result.name)}[/]")
    say(console, "", escape(_setting(result)))
    say(console)
    print_events(console, end.timeline)
    say(console)
    say(console, "[dim]console, from the panic on[/]")
    before, own = console_parts(end)
    for line in _since_panic(before) + _folded(own):
        say(console, "  ", escape(line))
    if unshown := unshown_log(end):
        say(console, "[dim]what its log in memory has besides, which the console has not shown[/]")
        for line in _folded(unshown):
            say(console, "  ", escape(line))
    say(console)
    for damage in end.damage:
        say(console, "[bold]damage[/]       ", escape(str(damage)))
    style = _STYLES.get(tone_of(end.outcome), "bold red" if end.outcome is Outcome.SILENT else "bold magenta")
    say(console, "[bold]outcome[/]      ", f"[{style}]{end.outcome.value}[/]: {escape(end.reason)}")
    say(console, "[bold]dump[/]         ", f"[{_DUMP_STYLES[end.dump]}]{escape(end.dump_reason)}[/]")
    for mismatch in result.mismatches:
        say(console, "[bold red]unexpected[/]   ", escape(mismatch))


def print_events(console: Console, events: Iterable[Event]) -> None:
    """What happened, in order: a line each, with the instructions that had been retired."""
    say(console, "[dim]instructions  event[/]")
    for event in events:
        say(console, f"{event.when:12,}  [cyan]{event.kind:<14}[/] ", escape(event.text))


def console_parts(end: End) -> tuple[list[str], list[str]]:
    """The console's lines: those up to a real capture kernel's, and its own."""
    lines = end.console.splitlines()
    linux = end.capture.linux if end.capture is not None else None
    before = len(lines) - (len(linux.console.splitlines()) if linux is not None else 0)
    return lines[:before], lines[before:]


def unshown_log(end: End) -> list[str]:
    """What a real capture kernel's log has, and its console has not."""
    linux = end.capture.linux if end.capture is not None else None
    return linux.unshown.splitlines() if linux is not None else []


def _since_panic(lines: list[str]) -> list[str]:
    begins = [number for number, line in enumerate(lines) if any(word in line for word in _PANIC)]
    return lines[min(begins, default=0) :]


def _folded(lines: list[str]) -> list[str]:
    """What a capture kernel printed, with most of its log left out: what its init says stays, and any trouble."""
    troubled = [number for number, line in enumerate(lines) if any(word in line for word in _TROUBLE)]
    trouble = min(troubled, default=len(lines))
    told: list[str] = []
    log: list[str] = []
    for number, line in enumerate(lines):
        if _FIRST_LINES <= number < min(trouble, len(lines) - _LAST_LINES) and line.startswith("["):
            log.append(line)
            continue
        if len(log) > _FOLDED:
            log = [f"... {len(log)} lines of the kernel's log, which -v shows as they are printed"]
        told += [*log, line]
        log = []
    return told
