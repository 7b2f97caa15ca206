"""Build blockcount.c for each host architecture, byte for byte the same wherever it is done.

    python -m kexecemu.machine.cpu.build_blockcount [--check]

Needs the pinned ziglang wheel (extra "test"). --check builds beside the tree and exits 1 naming what differs.
"""

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

__all__ = ["ARCHITECTURES", "build", "differing", "main"]

HERE = Path(__file__).parent
ARCHITECTURES = ("x86_64", "aarch64")

FLAGS = (
    *("-O2", "-std=c11", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"),
    # Nothing from outside: the library must load under any libc, musl included.
    "-nostdlib",
    "-ffreestanding",
    # zig turns the undefined behaviour sanitizer and the stack protector on by default; both want a runtime.
    "-fno-sanitize=all",
    "-fno-stack-protector",
    # No unwinding through these functions, and a smaller file.
    "-fno-asynchronous-unwind-tables",
    # Nothing that depends on where or when the build ran.
    "-g0",
    "-s",
    "-Wl,--build-id=none",
    "-Wl,-soname,blockcount.so",
)


def build(architecture: str, output: Path) -> None:
    """Compile blockcount.c for one host architecture (x86_64 or aarch64) into `output`."""
    subprocess.run(
        # The glibc version only decides which symbols may be linked against; there are none.
        (
            *(sys.executable, "-m", "ziglang", "cc", "-target", f"{architecture}-linux-gnu.2.17"),
            *FLAGS,
            *("-o", str(output.resolve()), "blockcount.c"),
        ),
        cwd=HERE,
        check=True,
    )


def differing() -> list[str]:
    """The names of the committed libraries that are not what a build gives now."""
    wrong = []
    with tempfile.TemporaryDirectory() as folder:
        for architecture in ARCHITECTURES:
            committed = HERE / f"blockcount-{architecture}.so"
            fresh = Path(folder) / committed.name
            build(architecture, fresh)
            if not committed.exists() or committed.read_bytes() != fresh.read_bytes():
                wrong.append(committed.name)
    return wrong


def main() -> int:
    """Build into the tree, or compare with --check; the exit code."""
    parser = argparse.ArgumentParser(description="build the native block hook for each host architecture")
    parser.add_argument(
        "--check", action="store_true", help="build aside and compare with the committed files"
    )
    if parser.parse_args().check:
        wrong = differing()
        for name in wrong:
            print(f"{name} differs from what blockcount.c builds to", file=sys.stderr)
        return 1 if wrong else 0
    for architecture in ARCHITECTURES:
        build(architecture, HERE / f"blockcount-{architecture}.so")
    return 0


if __name__ == "__main__":
    sys.exit(main())
