#!/usr/bin/env python3
"""Kernels with the series on every machine that they are said to run on: intact images, and thirty stamped words.

    python tests/kbuild/matrix.py 6.12 7.3 [--pages 4k,16k,64k] [--intact] [--cpus 1,2,4] [-j 2]

A machine is a CPU, the level that the kernel lives at, a number of CPUs and a size of page. On each an intact image has
to capture, with a true dump. On each CPU at each level, with numbers of CPUs that take turns, each word of
`kexecemu kernel judge` is stamped on, but for the row of 32 flips in the purgatory's own code: it has to end as the
model says. Kernels that are not built are named, and are a failure: run kexecemu kernel build. Exit status 1 if
anything is not as it should be.
"""

from __future__ import annotations

import argparse
import itertools
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from kexecemu.commands.kernel_given import built_kernel
from kexecemu.crash.purgatory_check import CODE, UNTOUCHED
from kexecemu.errors import KexecemuError
from kexecemu.kbuild.build import BuiltKernel
from kexecemu.kbuild.judge import judge_kernel
from kexecemu.kbuild.on_qemu import run_in_qemu
from kexecemu.kbuild.qemu import WITHOUT_16K, QemuMachine
from kexecemu.kbuild.trial import Trial
from kexecemu.scenario.purgatory_bench import model_replies

_CPUS = ("max", "neoverse-v1", "cortex-a57")
_LEVELS = ("el1", "el2", "vhe")
# By the CPUs' own ID registers, in QEMU 11; the kernel says so and stops.
_WITHOUT = {(cpu, "16k") for cpu in WITHOUT_16K}


def machines(numbers: list[int], pages: str) -> Iterator[QemuMachine]:
    """Those that there are."""
    for cpu, el, cpus in itertools.product(_CPUS, _LEVELS, numbers):
        if (cpu, pages) not in _WITHOUT and (cpu, el) != ("cortex-a57", "vhe"):
            yield QemuMachine(cpu, el, cpus)


def intact(built: BuiltKernel, machine: QemuMachine) -> str:
    """What is wrong, in words; "" for a capture and a true dump."""
    end = run_in_qemu(Trial(built, cpus=machine.cpus), machine, lambda loaded: [])
    if end.captured and end.reply.value == "boots":
        return ""
    return f"{end.outcome.value}, {end.reply.value}, dump {end.dump}, {end.stood}"


def words_of(built: BuiltKernel) -> list[str]:
    """The rows with a word each."""
    obj = built.built_in()
    assert built.purgatory is not None and obj is not None
    return [name for name in model_replies(built.purgatory, obj) if name != CODE]


def stamped(built: BuiltKernel, machine: QemuMachine, rows: list[str], jobs: int) -> tuple[int, list[str]]:
    """How many words were stamped on, and which did not end as the model says."""
    judged = judge_kernel(Trial(built, cpus=machine.cpus), machine, board=False, jobs=jobs, rows=rows)
    judged = [one for one in judged if one.case not in (CODE, UNTOUCHED) and one.replies["model"]]
    bad = [f"{one.case}: {[r.value for r in one.replies['qemu']]}" for one in judged if one.differs]
    return len(judged), bad


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "version", nargs="+", help="6.12 or 7.3, or a folder with an Image (for one size of page)"
    )
    parser.add_argument("--pages", default="4k,16k,64k", help="sizes, with commas")
    parser.add_argument("--cpus", default="1,2,4", help="numbers of CPUs, with commas")
    parser.add_argument("--intact", action="store_true", help="stamp on nothing")
    parser.add_argument("-j", dest="jobs", type=int, default=1, help="QEMUs at a time")
    options = parser.parse_args()
    numbers = [int(one) for one in options.cpus.split(",")]
    captured = words = failed = 0
    for version, pages in itertools.product(options.version, options.pages.split(",")):
        try:
            built = built_kernel(version, None, pages, None, "gcc")
        except KexecemuError as error:
            print(f"{version} {pages}: {error}", flush=True)
            failed += 1
            continue
        every = list(machines(numbers, pages))
        with ThreadPoolExecutor(options.jobs) as pool:
            for machine, wrong in zip(every, pool.map(partial(intact, built), every), strict=True):
                print(f"{version} {pages} {machine.text}: {wrong or 'captured'}", flush=True)
                captured += not wrong
                failed += bool(wrong)
        if options.intact:
            continue
        turns, rows = itertools.cycle(numbers), words_of(built)
        for machine in machines([1], pages):
            machine = QemuMachine(machine.cpu, machine.el, next(turns))
            count, bad = stamped(built, machine, rows, options.jobs)
            print(
                f"{version} {pages} {machine.text}: {count} words, {len(bad)} not as the model says",
                flush=True,
            )
            print("".join(f"    {one}\n" for one in bad), end="")
            words += count - len(bad)
            failed += len(bad)
    print(
        f"{captured} intact images captured, {words} stamped words ended as the model says, {failed} failures"
    )
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
