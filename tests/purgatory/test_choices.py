"""Every option of the purgatory alone, and every one left out, by both compilers."""

from __future__ import annotations

import hashlib
import shutil
import struct
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest
from elftools.elf.elffile import ELFFile
from unicorn import UC_HOOK_CODE, Uc
from unicorn.arm64_const import UC_ARM64_REG_X1

from kexecemu.errors import InputError
from kexecemu.guests.purgatory import (
    CORE,
    OPTIONS,
    chosen_options,
    files_of,
    purgatory_target,
    sources_of,
)
from kexecemu.guests.toolchain import Toolchain, build_target
from tests.purgatory.conftest import KERNEL_ENTRY, PURGATORY, TOP, Bench, El, Mode, load, sctlr_of
from tests.purgatory.test_policies import (
    CALLER,
    CHOSEN,
    FIRST,
    MISMATCH,
    SECOND,
    STAMP,
    Case,
    Policy,
    from_caller,
)

pytestmark = pytest.mark.slow  # a purgatory is built for each

CHOICES = {
    "core": (),
    **{name: chosen_options([name]) for name in OPTIONS},
    **{f"all but {name}": chosen_options(None, [name]) for name in OPTIONS},
    "all": chosen_options(),
}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, str], Path]:
    """The folder of a build: built.ro, built.chk, and the objects of each source."""

    @cache
    def build(compiler: str, choice: str) -> Path:
        folder = tmp_path_factory.mktemp("choice")
        tools = Toolchain(compiler, TOP, folder / "cache")
        build_target(purgatory_target(CHOICES[choice], "built.ro"), tools, folder)
        return folder

    return build


@pytest.fixture(scope="module", params=["zig", "gcc"])
def compiler(request: pytest.FixtureRequest) -> str:
    if request.param == "gcc" and shutil.which("aarch64-linux-gnu-gcc") is None:
        pytest.skip("aarch64-linux-gnu-gcc is not installed")
    if request.param == "zig":
        pytest.importorskip("ziglang")
    return str(request.param)


def symbols(path: Path) -> Iterator[tuple[str, bool]]:
    """Names of an object that others can see, and whether it has what they stand for."""
    with path.open("rb") as file:
        for one in ELFFile(file).get_section_by_name(".symtab").iter_symbols():
            if one.name and one["st_info"]["bind"] == "STB_GLOBAL":
                yield one.name, one["st_shndx"] != "SHN_UNDEF"


@pytest.mark.parametrize("choice", CHOICES)
def test_nothing_of_an_option_is_there_where_it_is_off(
    built: Callable[[str, str], Path], compiler: str, choice: str
) -> None:
    """And the complete link, which build_target() has made, found nothing undefined."""
    every = built(compiler, "all") / "objects" / "purgatory" / "purgatory"
    off = set(sources_of(CHOICES["all"])) - set(sources_of(CHOICES[choice]))
    theirs = {name for source in off for name, own in symbols(every / f"{source}.o") if own}
    assert bool(theirs) == (choice != "all")
    there = dict(symbols(built(compiler, choice) / "built.ro"))
    assert all(there.values())
    assert theirs & there.keys() == set()
    assert ("purgatory_verdict" in there) == ("record" in CHOICES[choice])


def case_of(path: Path, el: El = El.EL1) -> Case:
    return Case(Bench(load(path, PURGATORY), PURGATORY), Mode(el), conduit=1 if el is El.EL1 else 2)


@pytest.mark.parametrize("el", [El.EL1, El.EL2], ids=lambda el: el.name)
@pytest.mark.parametrize("choice", CHOICES)
def test_an_intact_image_is_started_and_a_damaged_one_is_not(
    built: Callable[[str, str], Path], compiler: str, choice: str, el: El
) -> None:
    path = built(compiler, choice) / "built.ro"
    good, bad = case_of(path, el).run(Policy.STOP), case_of(path, el).run(Policy.STOP, STAMP)
    stop = load(path, PURGATORY).symbols["purgatory_stop"][0]
    assert (good.pc, bad.pc) == (KERNEL_ENTRY, stop)
    assert [good.registers[f"x{number}"] for number in range(4)] == [0x40380000, 0, 0, 0]
    for run in (good, bad):
        assert run.sctlr & 0x1005 == 0
        assert run.unaligned == [] and run.foreign == []
    assert bool(good.console) == bool(bad.console) == ("report" in CHOICES[choice])


def hashed_with(path: Path, option: str) -> bool:
    """Caches on, or the SHA-2 instructions used, when the first region is hashed."""
    case, seen = case_of(path), []
    name = "digest_update" if option == "caches" else "sha256_ce_blocks"

    def note(uc: Uc, *_: object) -> None:
        if uc.reg_read(UC_ARM64_REG_X1) == FIRST:
            seen.append(sctlr_of(uc, El.EL1) & 0x1005)

    def watch(uc: Uc) -> None:
        at = case.bench.loaded.symbols[name][0]
        uc.hook_add(UC_HOOK_CODE, note, begin=at, end=at)

    assert case.run(Policy.STOP, before=watch).pc == KERNEL_ENTRY
    return seen == [0x1005 if option == "caches" else 0]


def located(path: Path, _option: str) -> bool:
    run = case_of(path).run(Policy.STOP, STAMP)
    return (run.verdict.state, run.verdict.damage) == (MISMATCH, [(SECOND + 0x1000, 0x1000)])


def told(path: Path, _option: str) -> bool:
    """With policy=boot-anyway the next kernel would be told of damage; here it is told that there is none."""
    return struct.unpack(">6I", case_of(path).run(Policy.STOP).memory(CHOSEN, 24))[:2] == (2, 2)


def returned(path: Path, _option: str) -> bool:
    run = case_of(path).run(Policy.RETURN, STAMP, before=from_caller)
    kept = [run.registers[f"x{number}"] for number in range(19, 30)]
    return (run.pc, run.registers["x0"]) == (CALLER, 1) and kept == [0xBAD0000 + n for n in range(19, 30)]


def repaired(path: Path, _option: str) -> bool:
    case = case_of(path)
    run = case.run(Policy.REPAIR, STAMP)
    return run.pc == KERNEL_ENTRY and run.memory(SECOND, 0x3000) == case.second


def answered(path: Path, _option: str) -> bool:
    runs = [
        case_of(path).run(Policy.STOP, damage, before=from_caller, start="purgatory_check")
        for damage in ({}, STAMP)
    ]
    return [(run.pc, run.registers["x0"]) for run in runs] == [(CALLER, 0), (CALLER, 1)]


DOES: dict[str, Callable[[Path, str], bool]] = {
    "caches": hashed_with,
    "sha2": hashed_with,
    "report": lambda path, _: b"digests do NOT match" in case_of(path).run(Policy.STOP, STAMP).console,
    "record": lambda path, _: case_of(path).run(Policy.STOP, STAMP).verdict.state == MISMATCH,
    "locate": located,
    "chosen": told,
    "policy": returned,
    "repair": repaired,
    "early": answered,
}


@pytest.mark.parametrize("option", OPTIONS)
def test_an_option_alone_does_what_it_is_for(
    built: Callable[[str, str], Path], compiler: str, option: str
) -> None:
    assert DOES[option](built(compiler, option) / "built.ro", option)


def test_a_purgatory_without_answers_stops_elsewhere_at_an_exception(
    built: Callable[[str, str], Path], compiler: str
) -> None:
    for choice in ("core", "caches", "sha2"):
        bench = Bench(load(built(compiler, choice) / "built.ro", PURGATORY), PURGATORY)
        vectors, at = (bench.loaded.symbols[name] for name in ("purgatory_exception", "regions_match"))

        def stamp(uc: Uc, at: int = at[0]) -> None:
            uc.mem_write(at, bytes(4))

        region = bench.put(FIRST, bytes(64))
        run = bench.run([region], hashlib.sha256(bytes(64)).digest(), before=stamp, ends=(vectors[0],))
        assert run.pc == vectors[0] and vectors[1] == 0x200


# -- the table of options ----------------------------------------------------------------------------------------------


def test_what_an_option_needs_comes_with_it_and_goes_without_it() -> None:
    assert chosen_options(["repair"]) == ("record", "locate", "policy", "repair")
    assert chosen_options(None, ["record"]) == ("caches", "sha2", "report", "policy", "early")
    assert chosen_options([]) == ()
    assert chosen_options() == tuple(OPTIONS)
    for given in ((["nosuch"], ()), (None, ["nosuch"])):
        with pytest.raises(InputError, match="'nosuch' is no option of the purgatory; they are caches, sha2"):
            chosen_options(*given)
    with pytest.raises(InputError, match="repair of the purgatory is wanted"):
        chosen_options(["repair"], ["policy"])


def test_the_header_says_the_same_of_options_as_the_table() -> None:
    """purgatory/options.h: a line for each, with its files and what it needs."""
    text = (TOP / "purgatory" / "options.h").read_text()
    for name, option in OPTIONS.items():
        (line,) = (one for one in text.splitlines() if one.startswith(f" * PURGATORY_{name.upper()}\t"))
        assert ", ".join(option.sources) in line
        needs = ", ".join(one.upper() for one in option.needs)
        assert line.endswith(f"needs {needs}") if needs else "needs" not in line
        for one in option.needs:
            assert f"#error PURGATORY_{name.upper()} needs" in text and f"PURGATORY_{one.upper()}" in text


def test_every_source_belongs_to_the_core_or_to_an_option() -> None:
    known = {*CORE, "trap.c", "trap.S", *(source for one in OPTIONS.values() for source in one.sources)}
    assert {path.name for path in (TOP / "purgatory").glob("*.[cS]")} == known
    assert set(files_of(tuple(OPTIONS))) >= known


def test_the_objects_that_ship_are_the_two_ends(built: Callable[[str, str], Path]) -> None:
    pytest.importorskip("ziglang")
    for choice, name in (("core", "core.ro"), ("all", "purgatory.ro")):
        assert (built("zig", choice) / "built.ro").read_bytes() == (TOP / "purgatory" / name).read_bytes()
