#!/usr/bin/env python3
# SPDX-License-Identifier: GPL-2.0-or-later
"""How many stray writes a second, and by what? One table, everything measured in one run, side by side, on one core.

    python tests/benchmarks/bench_campaign.py [--faults 100000] [--emulated 20] [--qemu 10] [--write]

The crash is that of the scenario campaign-16m: 16 MiB of loaded image, the purgatory checks. Rows:

    QEMU and its gdb stub   what one would do without kexecemu: qemu-system-aarch64 at the jump out of the first kernel
                            (kexecemu's own hand-over, so that no kernel has to boot and load first), stopped, one bit
                            changed by the remote protocol, on to a breakpoint at the purgatory's end or the capture
                            kernel's entry, the verdict read from memory. A new QEMU for each fault, since only a new
                            one is known to be undisturbed.
    full emulation          FaultDecider.run(): everything since the load, once for each fault
    from a checkpoint       Victim.run(late=True): from the last moment at which the fault cannot have mattered
    native hash             hashlib over the whole of what is hashed with the fault in it, and nothing else
    concluded               FaultDecider.decide() for hashed bytes: from stored states of the hash to the next one
    a whole campaign        `kexecemu campaign` on one process: drawing, deciding, storing; its audit is told apart

Then the same faults, one of each segment and outcome that the campaign has, must end the same in full emulation, from a
checkpoint, in the campaign and in QEMU; exit status 1 if not.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self, cast

from measured_block import replace_block

import kexecemu
from kexecemu.campaign.engine import FaultDecider
from kexecemu.campaign.fault import CampaignFault
from kexecemu.campaign.sampling import sample_uniform
from kexecemu.campaign.store import Store, StoredRow
from kexecemu.crash.handoff import Handoff, write_handoff
from kexecemu.crash.outcome import Outcome
from kexecemu.crash.verdict import VerdictState, read_verdict
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.image.purgatory import LoadedPurgatory
from kexecemu.machine.memory.ram import Ram
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import scenario_setup
from kexecemu.scenario.setup import prepare
from kexecemu.stray.models import find_model

SCENARIO = "campaign-16m"
SEED = 1
QEMU = shutil.which("qemu-system-aarch64")
PC_AT = 32 * 8  # among the registers that the remote protocol gives, behind x0 to x30 and sp

NO_VERDICT = "no verdict"
_NONE_EITHER = (Outcome.TRAPPED, Outcome.MISBOOT, Outcome.HUNG)


class Gdb:
    """The remote protocol of gdb, as far as it is needed here, over a socket."""

    def __init__(self, path: Path, limit_seconds: float) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(limit_seconds)
        self._buffer = b""
        end = time.monotonic() + limit_seconds
        while self._socket.connect_ex(str(path)):
            if time.monotonic() > end:
                raise SystemExit("bench_campaign: QEMU's gdb stub does not answer")
            time.sleep(0.005)

    def close(self) -> None:
        """Hang up."""
        self._socket.close()

    def send(self, packet: str) -> None:
        """A packet, without waiting for its answer."""
        data = packet.encode()
        self._socket.sendall(b"$" + data + f"#{sum(data) % 256:02x}".encode())

    def answer(self) -> str:
        """The next packet that comes; TimeoutError when none does."""
        while True:
            start = self._buffer.find(b"$")
            end = self._buffer.find(b"#", start)
            if 0 <= start < end and len(self._buffer) >= end + 3:
                packet, self._buffer = self._buffer[start + 1 : end], self._buffer[end + 3 :]
                self._socket.sendall(b"+")
                return packet.decode()
            piece = self._socket.recv(1 << 16)
            if not piece:
                raise SystemExit("bench_campaign: QEMU has hung up")
            self._buffer += piece

    def ask(self, packet: str) -> str:
        """A packet and its answer, which must not be an error."""
        self.send(packet)
        answer = self.answer()
        if not answer or answer.startswith("E"):
            raise SystemExit(f"bench_campaign: QEMU answers {answer!r} to {packet!r}")
        return answer

    def read(self, phys: int, size: int) -> bytes:
        """Memory, with the MMU off."""
        return bytes.fromhex(self.ask(f"m{phys:x},{size:x}"))

    def write(self, phys: int, data: bytes) -> None:
        """Likewise."""
        self.ask(f"M{phys:x},{len(data):x}:{data.hex()}")

    def pc(self) -> int:
        """Where the CPU stands."""
        return int.from_bytes(bytes.fromhex(self.ask("g"))[PC_AT : PC_AT + 8], "little")


@dataclass(frozen=True)
class InQemu:
    """The machine of the scenario at the jump, for QEMU."""

    handoff: Handoff
    image: Kimage
    purgatory: LoadedPurgatory

    @classmethod
    def of(cls, folder: Path) -> InQemu:
        path = find_scenario(SCENARIO)
        kernel, image = prepare(scenario_setup(read_scenario(path), path.parent))
        kernel.crash()
        purgatory = image.purgatory
        assert purgatory is not None
        handoff = write_handoff(folder, kernel, image)
        kernel.board.close()
        return cls(handoff, image, purgatory)

    def run(self, fault: CampaignFault, phys: int, limit_seconds: float) -> str:
        """What comes of a fault: an outcome, or NO_VERDICT."""
        with _Stub(self.handoff, limit_seconds) as gdb:
            model = find_model(fault.model)
            before = gdb.read(phys, model.length(fault.variant))
            gdb.write(phys, model.data(fault.variant, before))
            stop, entry = self.purgatory.symbol_phys("purgatory_stop"), self.image.kernel_entry
            for place in (stop, entry):
                gdb.ask(f"Z1,{place:x},4")
            gdb.send("c")
            try:
                gdb.answer()
            except TimeoutError:
                return NO_VERDICT
            verdict = read_verdict(cast(Ram, gdb), self.purgatory)
            where = gdb.pc()
            if verdict is None or where not in (stop, entry):
                return NO_VERDICT
            if where == stop:
                ends = {
                    VerdictState.MISMATCH: Outcome.DETECTED,
                    VerdictState.TRAPPED: Outcome.TRAPPED,
                }
                return ends.get(verdict.state, NO_VERDICT)
            if verdict.objects:
                return Outcome.DETECTED
            segment = self.image.segment_at(phys)
            # The capture kernel never looks at the purgatory.
            return Outcome.LATENT if segment is None or segment.name == "purgatory" else Outcome.SILENT


class _Stub:
    """A new QEMU that waits at its first instruction, and its stub."""

    def __init__(self, handoff: Handoff, limit_seconds: float) -> None:
        # A socket's path has room for about 100 characters.
        self._folder = tempfile.TemporaryDirectory(prefix="gdb-")
        path = Path(self._folder.name) / "stub"
        self._process = subprocess.Popen(
            [*handoff.command, "-no-shutdown", "-S", "-gdb", f"unix:{path},server=on,wait=off"],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
        )
        try:
            self._gdb = Gdb(path, limit_seconds)
        except BaseException:
            self._end()
            raise

    def _end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._folder.cleanup()

    def __enter__(self) -> Gdb:
        return self._gdb

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self._gdb.close()
        self._end()


class Machine:
    """The engine of a campaign, and the ways in which it finds outcomes."""

    def __init__(self) -> None:
        path = find_scenario(SCENARIO)
        self.engine = FaultDecider(read_scenario(path), path.parent)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, where: TracebackType | None) -> None:
        self.engine.close()

    def sample(self, faults: int) -> list[CampaignFault]:
        """The first ones that a campaign of so many would try."""
        return [self.engine.space.fault(one) for one in sample_uniform(self.engine.space, faults, SEED)]

    def hashed(self, faults: int) -> list[CampaignFault]:
        """Faults in hashed bytes."""
        kinds = {one.name: one.kind.value for one in (stratum.area for stratum in self.engine.space.strata)}
        return [one for one in self.sample(faults) if kinds[one.base] == "hashed"]

    def from_checkpoint(self, fault: CampaignFault) -> str:
        """Run, never concluded."""
        area = self.engine.area(fault)
        return self.engine.victim.run(fault.fault(area), area, late=True).outcome

    def hash_natively(self, fault: CampaignFault) -> bool:
        """All that is hashed, with the fault in it: whether the digest is another one."""
        image, golden, area = self.engine.image, self.engine.golden, self.engine.area(fault)
        memory, base = memoryview(golden.memory), golden.region.start
        digest = hashlib.sha256()
        for region in image.sha_regions:
            if not region.covers(area):
                digest.update(memory[region.start - base : region.end - base])
                continue
            before = golden.memory[area.start - base : area.end - base]
            digest.update(memory[region.start - base : area.start - base])
            digest.update(find_model(fault.model).data(fault.variant, before))
            digest.update(memory[area.end - base : region.end - base])
        return digest.digest() != image.digest


@dataclass(frozen=True)
class Line:
    """A row of the table; note is what one should know of it."""

    what: str
    faults: int
    seconds: float
    note: str = ""

    @property
    def rate(self) -> float:
        """Faults a second."""
        return self.faults / self.seconds


def timed(
    what: str, faults: Sequence[CampaignFault], run: Callable[[CampaignFault], object], note: str = ""
) -> Line:
    """Run each fault once."""
    start = time.perf_counter()
    for fault in faults:
        run(fault)
    return Line(what, len(faults), time.perf_counter() - start, note)


def run_campaign(faults: int, audit: int, out: Path) -> dict[str, Any]:
    """`kexecemu campaign` from the shell, on one process; what it prints as JSON."""
    command = [sys.executable, "-m", "kexecemu", "campaign", SCENARIO, "--faults", str(faults)]
    command += ["--seed", str(SEED), "--out", str(out), "--workers", "1", "--audit", str(audit), "--json"]
    packages = str(Path(kexecemu.__file__).parents[1])
    done = subprocess.run(
        command,
        env={**os.environ, "PYTHONPATH": packages},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"bench_campaign: the campaign failed: {done.stderr}{done.stdout[-500:]}")
    return cast(dict[str, Any], json.loads(done.stdout))


def one_of_each(out: Path) -> list[StoredRow]:
    """The campaign's first fault of each segment and outcome."""
    with Store.read(out) as store:
        first: dict[tuple[str, str], StoredRow] = {}
        for row in store.rows():
            first.setdefault((row.segment, row.outcome), row)
    return [first[key] for key in sorted(first)]


def same(outcomes: Sequence[str]) -> bool:
    """All alike; QEMU, where no verdict came, cannot tell in which of three ways it went wrong."""
    ours = {one for one in outcomes if one != NO_VERDICT}
    return len(ours) == 1 and (NO_VERDICT not in outcomes or ours <= set(_NONE_EITHER))


def table(lines: Sequence[Line]) -> str:
    """The first line is what all others are compared with if it is QEMU's."""
    base = lines[0].rate if lines[0].what.startswith("QEMU") else None
    text = [f"{'by what':<26} {'faults':>8} {'seconds':>9} {'faults/s':>10} {'times QEMU':>11}"]
    for line in lines:
        rate = f"{line.rate:,.0f}" if line.rate >= 100 else f"{line.rate:.2f}"
        ratio = "-" if base is None else _ratio(line.rate / base)
        row = f"{line.what:<26} {line.faults:>8,} {line.seconds:>9.1f} {rate:>10} {ratio:>11}"
        text.append(f"{row}  {line.note}".rstrip())
    return "\n".join(text)


def _ratio(value: float) -> str:
    return f"{value:,.0f}" if value >= 10 else f"{value:.2f}"


def comparison(header: Sequence[str], rows: Sequence[tuple[str, list[str]]]) -> str:
    """The second table: outcomes of the same faults."""
    wide = max(len(name) for name, _ in rows)
    text = [" ".join([f"{'the same faults':<{wide}}", *(f"{one:<10}" for one in header)]).rstrip()]
    for name, outcomes in rows:
        cells = [*(f"{one:<10}" for one in outcomes), "" if same(outcomes) else "DIFFER"]
        text.append(" ".join([f"{name:<{wide}}", *cells]).rstrip())
    return "\n".join(text)


def measure(options: argparse.Namespace, folder: Path) -> tuple[str, bool]:
    """Both tables, and whether all outcomes agree."""
    lines: list[Line] = []
    qemu = InQemu.of(folder / "handoff") if QEMU and options.qemu else None
    with Machine() as machine:
        engine = machine.engine
        emulated = machine.sample(options.emulated)
        if qemu is not None:
            lines.append(
                timed(
                    "QEMU and its gdb stub",
                    emulated[: options.qemu],
                    lambda one: qemu.run(one, engine.area(one).start, options.qemu_limit),
                )
            )
        lines.append(timed("full emulation", emulated, engine.run))
        lines.append(timed("from a checkpoint", emulated, machine.from_checkpoint))
        hashed = machine.hashed(options.concluded)
        lines.append(timed("native hash, hashlib", hashed[: options.emulated], machine.hash_natively))
        for one in {fault.base: fault for fault in hashed}.values():
            engine.decide(one)  # once for each segment the damage is run to its end, and kept in mind
        lines.append(timed("concluded from the hash", hashed, engine.decide))
        out = folder / "campaign"
        found = run_campaign(options.faults, options.audit, out)
        lines.append(
            Line(
                "a whole campaign",
                found["faults"],
                found["seconds"],
                f"and {found['audit_seconds']:.1f} s for an audit of {found['audited']:,}",
            )
        )
        header = ["campaign", "full", "checkpoint", *(["QEMU"] if qemu is not None else [])]
        rows = []
        for row in one_of_each(out):
            fault = CampaignFault.parse(row.fault)
            outcomes = [row.outcome, engine.run(fault).outcome, machine.from_checkpoint(fault)]
            if qemu is not None:
                outcomes.append(qemu.run(fault, engine.area(fault).start, options.qemu_limit))
            rows.append((row.fault, outcomes))
    why = (
        ""
        if qemu is not None
        else f"\nQEMU: {'left out' if QEMU else 'qemu-system-aarch64 is not installed'}"
    )
    basis = (
        f"{SCENARIO}, {found['faults']:,} of {found['population']:,} faults, seed {SEED}, "
        f"kexecemu {found['version']}, configuration {found['config_hash'][:12]}, one core"
    )
    agree = all(same(outcomes) for _, outcomes in rows)
    return f"{basis}\n{table(lines)}{why}\n\n{comparison(header, rows)}", agree


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(description="How many stray writes a second, and by what?")
    parser.add_argument("--faults", type=int, default=100_000, help="of the campaign (default: 100,000)")
    parser.add_argument("--audit", type=int, default=300, help="of the campaign (default: 300)")
    parser.add_argument(
        "--emulated", type=int, default=20, help="run in full and from a checkpoint (default: 20)"
    )
    parser.add_argument("--concluded", type=int, default=50_000, help="by decide() (default: 50,000)")
    parser.add_argument("--qemu", type=int, default=10, help="in QEMU, 0 for none (default: 10)")
    parser.add_argument(
        "--qemu-limit",
        type=float,
        default=20,
        help="seconds after which a QEMU gives no verdict (default: 20)",
    )
    parser.add_argument("--write", action="store_true", help="put the tables into docs/figures.md")
    options = parser.parse_args(arguments)
    if min(options.faults, options.emulated, options.concluded) < 1 or options.qemu > options.emulated:
        parser.error("at least one fault of each kind, and no more in QEMU than are emulated")
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {max(os.sched_getaffinity(0))})
    with tempfile.TemporaryDirectory(prefix="bench-campaign-") as name:
        text, agree = measure(options, Path(name))
    print(text)
    if options.write:
        replace_block("bench_campaign", f"```text\n{text}\n```")
    if not agree:
        print("bench_campaign: outcomes differ", file=sys.stderr)
    return int(not agree)


if __name__ == "__main__":
    sys.exit(main())
