"""A kernel of ours: unpacked, edited, configured, made, and kept in the cache by everything that decided it.

A build that is interrupted goes on where it stopped: its folder has the name of its key, and make knows the rest.
"""

import contextlib
import fcntl
import hashlib
import json
import os
import re
import shutil
import subprocess
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from kexecemu.children import child
from kexecemu.errors import BuildError, InputError
from kexecemu.files import replace_file
from kexecemu.formats.elfrel import RelocatableObject
from kexecemu.kbuild.options import fragment_text, not_taken, with_defaults
from kexecemu.kbuild.series import apply_series, read_series, read_step, series_path
from kexecemu.kbuild.source import find_source, package_of, unpack_source
from kexecemu.kbuild.toolchain import Toolchain
from kexecemu.linux.first_purgatory import built_in_purgatory
from kexecemu.shown import shown
from kexecemu.visible import json_text

__all__ = ["BuildPlan", "BuiltKernel", "build_kernel", "find_built", "read_built"]

OnObject = Callable[[], object]
"""Called for each object that make has made."""

_IMAGE = "arch/arm64/boot/Image"
_KEPT = {"Image": _IMAGE, "System.map": "System.map", "config": ".config"}
_SOURCES = (".c", ".S", ".h", ".lds")
_PURGATORY = "arch/arm64/purgatory/purgatory.ro"
# What make says of an object: an indented short word in capitals, and the object.
_OBJECT = re.compile(r"^  (?:CC|AS|LD|AR|HOSTCC|HOSTLD|OBJCOPY|KSYMS) ")
# The first of these is why; make's own lines come after it, and say only where.
_ERROR = re.compile(r"[Ee]rror: |undefined reference|No rule to make")
_MAKE_ERROR = re.compile(r"Error \d+")
# Nothing of the day and the machine gets into what is built.
_SAME = {"KBUILD_BUILD_TIMESTAMP": "@0", "KBUILD_BUILD_USER": "kexecemu", "KBUILD_BUILD_HOST": "kexecemu"}


@shown()
@dataclass(frozen=True)
class BuildPlan:
    """What decides a build: a version of SOURCES, folders with series (none: as upstream), options, the compiler."""

    version: str
    series: tuple[Path, ...]
    options: Mapping[str, str]
    toolchain: Toolchain = field(default_factory=Toolchain)

    def key(self, cache: Path) -> str:
        """A name for what comes of it: of the package, the series, the options and the compiler; needs the source.

        InputError for a series that has no step for this version.
        """
        for one in self.series:
            read_series(one, self.version)
        find_source(self.version, cache)
        parts = [package_of(self.version, cache), series_digest(self.series), fragment_text(self.options)]
        text = "\n".join([*parts, self.toolchain.name, self.toolchain.release()])
        return f"{self.version}-{hashlib.sha256(text.encode()).hexdigest()[:16]}"


@shown()
@dataclass(frozen=True)
class BuiltKernel:
    """What a build has left: files, None for a purgatory.ro that the kernel has not; the rest is in words.

    steps are the subjects of the series' steps.
    """

    folder: Path
    image: Path
    purgatory: Path | None
    version: str = ""
    package: str = ""
    steps: tuple[str, ...] = ()
    compiler: str = ""

    def built_in(self) -> RelocatableObject | None:
        """The purgatory that the Image carries, None for one without."""
        return built_in_purgatory(self.image.read_bytes())


def series_digest(series: tuple[Path, ...]) -> str:
    """SHA-256 over a series' steps, and over the purgatory's sources, which they take files from; "" without one.

    InputError for a step that is none.
    """
    if not series:
        return ""
    ours = series_path().parent.parent
    steps = [path for one in series for path in sorted(one.glob("*.toml"))]
    sources = [one for one in sorted(ours.glob("*")) if one.suffix in _SOURCES]
    sources += sorted((ours / "linux/files").glob("*"))
    named = {ours / new.source for path in steps for new in read_step(path).new}
    sources += sorted(path for path in named.difference(sources) if path.is_file())
    digest = hashlib.sha256()
    for path in [*steps, *sources]:
        data = path.read_bytes()
        digest.update(f"\0{path.name}\0{len(data)}\0".encode() + data)
    return digest.hexdigest()


def kernels_folder(cache: Path) -> Path:
    """Where built kernels are, each in a folder of its key."""
    return cache / "built"


def work_folder(folder: Path) -> Path:
    """Where a build's src and out are while it is under way, and afterwards if they are kept."""
    return folder.with_name(f".{folder.name}")


def find_built(plan: BuildPlan, cache: Path) -> BuiltKernel | None:
    """What was built by this plan, None where nothing was. InputError where the source is not there."""
    folder = kernels_folder(cache) / plan.key(cache)
    return read_built(folder) if (folder / "BUILD.json").is_file() else None


def read_built(folder: Path) -> BuiltKernel:
    """The kernel in a folder: one of the cache, or one that make was given as O=. InputError for another one."""
    told = _told(folder / "BUILD.json") if (folder / "BUILD.json").is_file() else {}
    image = next((one for one in (folder / "Image", folder / _IMAGE) if one.is_file()), None)
    if image is None:
        raise InputError(f"{folder}: no built kernel: it has neither Image nor {_IMAGE}")
    purgatory = next((one for one in (folder / "purgatory.ro", folder / _PURGATORY) if one.is_file()), None)
    steps = told.get("steps", [])
    words = {name: str(told.get(name, "")) for name in ("version", "package", "compiler")}
    return BuiltKernel(
        folder, image, purgatory, steps=tuple(steps) if isinstance(steps, list) else (), **words
    )


def _told(path: Path) -> dict[str, object]:
    try:
        told = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise InputError(f"{path}: is damaged: {str(error)[:200]}") from error
    if not isinstance(told, dict):
        raise InputError(f"{path}: is damaged: no object of JSON")
    return told


def build_kernel(
    plan: BuildPlan,
    cache: Path,
    jobs: int,
    on_object: OnObject = lambda: None,
    on_wait: Callable[[], object] = lambda: None,
    *,
    keep: bool = False,
) -> BuiltKernel:
    """Build it unless it is there, with so many jobs at a time; on_object hears of each object.

    keep leaves source and objects beside it (see work_folder()), which else are deleted. on_wait is called where
    somebody else builds the same, before that is waited for.

    One build of a plan at a time: the next one waits, and then finds it there. Raises InputError where something is
    missing or does not fit (source, tools, series, an option that the kernel does not take), BuildError where make
    fails. What was built is put into the cache whole.
    """
    key = plan.key(cache)
    folder, work = kernels_folder(cache) / key, work_folder(kernels_folder(cache) / key)
    with _lock(kernels_folder(cache) / f".{key}.lock", on_wait):
        if (folder / "BUILD.json").is_file():
            return read_built(folder)
        plan.toolchain.check(plan.options)
        steps = _edited_tree(plan, cache, work)
        _configure(plan, work)
        objects = _make(plan, work, ["Image"], jobs, on_object)
        told = {
            "version": plan.version,
            "package": package_of(plan.version, cache),
            "steps": steps,
            "options": dict(plan.options),
            "compiler": plan.toolchain.release(),
            "objects": objects,
        }
        _keep(work, folder, told)
        if not keep:
            shutil.rmtree(work, ignore_errors=True)
    return read_built(folder)


@contextlib.contextmanager
def _lock(path: Path, on_wait: Callable[[], object]) -> Iterator[None]:
    path.parent.mkdir(parents=True, exist_ok=True)
    while True:
        with open(path, "w") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                on_wait()
                fcntl.flock(file, fcntl.LOCK_EX)
            # Who had it before has deleted it: then another one may have made it anew.
            if not path.exists() or not path.samefile(f"/proc/self/fd/{file.fileno()}"):
                continue
            try:
                yield
            finally:
                path.unlink(missing_ok=True)
            return


def _edited_tree(plan: BuildPlan, cache: Path, work: Path) -> list[str]:
    """The source with the series applied, in work/src; what an interruption has left is used if it is whole."""
    done = work / "STEPS.json"
    with contextlib.suppress(OSError, ValueError, RecursionError):
        told = json.loads(done.read_bytes())
        if (
            isinstance(told, list)
            and all(isinstance(one, str) for one in told)
            and (work / "src/Makefile").is_file()
        ):
            return told
    shutil.rmtree(work, ignore_errors=True)
    work.unlink(missing_ok=True)
    unpack_source(find_source(plan.version, cache), work / "src")
    try:
        steps = [step for one in plan.series for step in apply_series(one, plan.version, work / "src")]
    except InputError:
        shutil.rmtree(work, ignore_errors=True)  # with another series it is another build
        raise
    replace_file(done, json.dumps(steps).encode())
    return steps


def _configure(plan: BuildPlan, work: Path) -> None:
    """allnoconfig with what is wanted, and a look whether the kernel has taken it."""
    wanted = fragment_text(plan.options)
    out, asked = work / "out", work / "out/wanted"
    if (out / ".config").is_file() and asked.is_file() and asked.read_bytes() == wanted.encode():
        return
    out.mkdir(exist_ok=True)
    asked.write_text(wanted)
    _make(plan, work, ["allnoconfig"], 1, more={"KCONFIG_ALLCONFIG": str(asked)})
    (out / ".config").write_text(with_defaults((out / ".config").read_text(), plan.options))
    _make(plan, work, ["olddefconfig"], 1)
    wrong = not_taken(plan.options, (out / ".config").read_text())
    if wrong:
        shutil.rmtree(work, ignore_errors=True)  # with other options it is another build
        raise InputError(f"Linux {plan.version} does not take {', '.join(wrong)}")


def _make(
    plan: BuildPlan,
    work: Path,
    targets: list[str],
    jobs: int,
    on_object: OnObject = lambda: None,
    more: Mapping[str, str] | None = None,
) -> int:
    """Run make; returns how many objects it has made. Its words are kept in work/make.log."""
    command = [
        "make",
        "-C",
        str(work / "src"),
        f"O={work / 'out'}",
        f"-j{jobs}",
        *plan.toolchain.words(),
        *targets,
    ]
    environment = {**os.environ, **_SAME, **(more or {}), "LC_ALL": "C"}
    count = 0
    lines: deque[str] = deque(maxlen=200)
    with open(work / "make.log", "a", buffering=1) as log, child(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        text=True, errors="replace",
    ) as process:  # fmt: skip
        assert process.stdout is not None
        for line in process.stdout:
            log.write(line)
            lines.append(line.strip())
            if _OBJECT.match(line):
                count += 1
                on_object()
        status = process.wait()
    if status:
        errors = [line for pattern in (_ERROR, _MAKE_ERROR) for line in lines if pattern.search(line)]
        said = errors[0] if errors else lines[-1] if lines else ""
        raise BuildError(f"make {' '.join(targets)}: {said or f'status {status}'} (see {work / 'make.log'})")
    return count


def _keep(work: Path, folder: Path, told: Mapping[str, object]) -> None:
    """What is of use afterwards into the cache, in one rename."""
    kept = work / "kept"
    shutil.rmtree(kept, ignore_errors=True)
    kept.mkdir()
    for name, path in {**_KEPT, "purgatory.ro": _PURGATORY}.items():
        if (work / "out" / path).is_file():
            shutil.copy(work / "out" / path, kept / name)
    if not (kept / "Image").is_file():
        raise BuildError(f"make has left no {_IMAGE} (see {work / 'make.log'})")
    (kept / "BUILD.json").write_text(json_text(told, indent=2) + "\n")
    shutil.rmtree(folder, ignore_errors=True)
    kept.rename(folder)
