"""kexecemu kernel judge: every fault of purgatory check, on a real kernel."""

import sys
from typing import Annotated

import typer

from kexecemu.commands.kernel_given import (
    BOOTING,
    CompilerOption,
    ConfigOption,
    CpuOption,
    CpusOption,
    ElOption,
    KaslrOption,
    KernelArgument,
    PagesOption,
    SeriesOption,
    built_kernel,
    counted,
    failed,
    machine_given,
)
from kexecemu.commands.options import JsonOption, option, processes
from kexecemu.commands.outputs import print_json
from kexecemu.errors import InputError, MachineError

__all__ = ["JUDGE_EXAMPLES", "judge"]

JUDGE_EXAMPLES = """\
kexecemu kernel judge 6.12 -j 2
On our board and in QEMU: some minutes.
kexecemu kernel judge 6.12 --on qemu --cpu neoverse-v1 --el vhe --json
Another machine; one JSON object.
kexecemu kernel judge 7.3 --row nothing --row initrd
Only the rows that have one of these words in their name.
"""


def judge(
    kernel: KernelArgument,
    on: Annotated[str, option("--on", "both, qemu, or board: our own.", "WHERE", BOOTING)] = "both",
    cpu: CpuOption = None,
    el: ElOption = None,
    cpus: CpusOption = 1,
    kaslr: KaslrOption = True,
    jobs: Annotated[int, option("-j", "QEMUs at a time.", "N", BOOTING, parser=processes)] = 1,
    row: Annotated[
        list[str] | None, option("--row", "Rows with this in their name alone. Repeatable.", "TEXT")
    ] = None,
    series: SeriesOption = None,
    pages: PagesOption = "4k",
    config: ConfigOption = None,
    compiler: CompilerOption = "gcc",
    json: JsonOption = False,
) -> None:
    """Every fault of purgatory check, and fifteen more, on the real kernel, beside what the model says of it.

    Exit status 1 if an intact image does not capture, or anything is not as the model says.
    """
    from kexecemu.kbuild.judge import judge_kernel
    from kexecemu.kbuild.trial import Trial
    from kexecemu.report.kernel_judge import judge_text

    if on not in ("both", "qemu", "board"):
        raise InputError(f"--on {on!r} is not one of both, qemu, board")
    machine = machine_given("board" if on == "board" else "qemu", cpu, el, cpus)
    trial = Trial(built_kernel(kernel, series, pages, config, compiler), cpus=cpus, kaslr=kaslr)
    try:
        with counted("judging", "runs") as count:
            judged = judge_kernel(trial, machine, board=on != "qemu", jobs=jobs, rows=row or (), on_run=count)
    except MachineError as error:
        raise failed("judge", error) from error
    good = not any(one.differs or one.wrong for one in judged)
    if json:
        rows = [one.as_object() for one in judged]
        print_json({"kernel": str(trial.kernel.folder), "faults": rows, "as_the_model_says": good})
    else:
        sys.stdout.write(judge_text(judged))
    raise typer.Exit(0 if good else 1)
