"""Take what the tests need from a folder of runs (one folder each: loaded.json, segments, registers, console).

    python take.py RUNS PROOF QEMU_MAX_DTB

RUNS has the runs of the project's own purgatory, PROOF the one of a smaller one, and QEMU_MAX_DTB is what
`qemu-system-aarch64 -M virt,gic-version=3,dumpdtb=FILE -cpu max -smp 2 -m 768` of 11.1.2 writes, with a kernel and an
initrd given.
"""

from __future__ import annotations

import gzip
import json
import re
import sys
from pathlib import Path

HERE = Path(__file__).parent


def pack(name: str, data: bytes) -> None:
    (HERE / f"{name}.gz").write_bytes(gzip.compress(data, 9, mtime=0))


def first_line(run: Path, words: str) -> str:
    text = (
        gzip.decompress((run / "console.log.gz").read_bytes()) if (run / "console.log.gz").exists() else b""
    )
    text = text or (run / "console.log").read_bytes()
    return re.search(f"{words}(.*)", text.decode("latin-1"))[1].rstrip("\r")  # type: ignore[index]


def take(name: str, run: Path) -> dict[str, object]:
    loaded = json.loads((run / "loaded.json").read_text())
    pack(f"{name}.purgatory", (run / "purgatory-segment.bin").read_bytes().rstrip(b"\0"))
    if (run / "dtb-segment.bin").exists():
        pack(f"{name}.dtb", (run / "dtb-segment.bin").read_bytes())
    facts = {key: loaded[key] for key in ("segments", "entry", "regions", "digest")}
    symbols = loaded["symbols"]
    facts["symbols"] = {one: symbols[one] for one in sorted(symbols) if one.startswith("purgatory_")}
    facts["release"] = first_line(run, "Linux version ").split("-")[0]
    facts["cmdline"] = first_line(run, "Kernel command line: ")
    facts["each"] = {start: digest for start, _, digest in loaded.get("each", [])}
    for entry in ("purgatory", "kernel"):
        if (run / f"regs-{entry}.json").exists():
            facts[f"{entry}_entry"] = json.loads((run / f"regs-{entry}.json").read_text())
    return facts


def main(runs: Path, proof: Path, max_dtb: Path) -> None:
    folders = {**{one.name: one for one in sorted(runs.iterdir())}, "proof": proof}
    facts = {name: take(name, folder) for name, folder in folders.items()}
    (HERE / "runs.json").write_text(json.dumps(facts, indent=1) + "\n")
    pack("board-initrd.first.dtb", (runs / "board-initrd" / "first.dtb").read_bytes())
    pack("max.first.dtb", max_dtb.read_bytes())


if __name__ == "__main__":
    main(*map(Path, sys.argv[1:]))
