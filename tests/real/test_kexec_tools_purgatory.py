"""kexec-tools' own purgatory, as Debian builds it, cut out of its `kexec`: loaded, run, and measured."""

from __future__ import annotations

from collections.abc import Callable
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from elftools.elf.elffile import ELFFile

from kexecemu.formats.elfrel import embedded_objects

if TYPE_CHECKING:
    from tests.real.conftest import Command

pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def kexec(fetched: Callable[[str], Path]) -> Path:
    """Debian's arm64 kexec."""
    return fetched("kexec-tools")


@pytest.fixture(scope="module")
def crash(kexec: Path, command: Callable[..., Command]) -> Callable[..., dict[str, Any]]:
    """Load by kexec_load with that purgatory, crash, and return what --json says."""

    def run(*arguments: str) -> dict[str, Any]:
        done = command("crash", "--syscall", "kexec_load", "--purgatory", kexec, "--json", *arguments)
        assert done.status == 0, done.stderr
        return done.json

    return run


def test_there_is_one_object_in_it_and_pyelftools_reads_it_to_its_last_byte(kexec: Path) -> None:
    data = kexec.read_bytes()
    ((offset, found),) = embedded_objects(data)
    elf = ELFFile(BytesIO(found))
    assert (elf["e_type"], elf["e_machine"]) == ("ET_REL", "EM_AARCH64")
    ends = [elf["e_shoff"] + elf.num_sections() * elf["e_shentsize"]]
    ends += [s["sh_offset"] + s["sh_size"] for s in elf.iter_sections() if s["sh_type"] != "SHT_NOBITS"]
    assert len(found) == max(ends)
    assert data[offset : offset + len(found)] == found
    symbols = elf.get_section_by_name(".symtab")
    assert symbols.get_symbol_by_name("purgatory_start") and symbols.get_symbol_by_name("arm64_sink")


def test_info_knows_it_for_what_it_is(kexec: Path, command: Callable[..., Command]) -> None:
    done = command("purgatory", "info", kexec, "--json")
    assert done.status == 0, done.stderr
    assert done.json["interface"] == "kexec-tools"
    assert done.json["links"] is True
    assert set(done.json["symbols"]["kexec-tools"].values()) == {"ok"}
    assert done.json["unsupported_relocations"] == []


def test_a_good_image_boots(crash: Callable[..., dict[str, Any]]) -> None:
    found = crash()
    assert found["outcome"] == "captured"
    assert "I'm in purgatory" in found["console"]


def test_a_word_stamped_on_the_initrd_is_caught(crash: Callable[..., dict[str, Any]]) -> None:
    found = crash("--write", "initrd+0x1000=a5a5a5a5")
    assert found["outcome"] == "detected"
    assert [one["segment"] for one in found["damage"]] == ["initrd"]
    assert "sha256 digests do not match :(" in found["console"]


def test_with_skip_checks_stamped_as_well_nobody_notices(crash: Callable[..., dict[str, Any]]) -> None:
    found = crash("--write", "purgatory:skip_checks=40", "--write", "initrd+0x1000=a5a5a5a5")
    assert found["outcome"] == "silent"


def test_the_stand_in_that_ships_fares_as_the_real_one_does(
    kexec: Path, command: Callable[..., Command]
) -> None:
    stand_in = Path(__file__).parents[2] / "fixtures/guests/kexec-tools-purgatory.ro"
    done = command("purgatory", "check", kexec, stand_in, "--json")
    assert done.status == 0, done.stderr
    real, ours = done.json["purgatories"]
    code = "purgatory's code, 32 bits"  # another compiler's instructions
    assert [one for one in real["faults"] if one["fault"] != code] == [
        one for one in ours["faults"] if one["fault"] != code
    ]
    assert real["alignment_faults"] == 0
    assert 25 < real["instructions_per_byte"] < 40
