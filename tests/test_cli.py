"""The command line as a user or a script meets it: exit status, one clear line, nothing half-written."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from image_header import build

from kexecemu.data import fixture_path, purgatory_path, shipped_scenarios

STUB = fixture_path("guests/capture-Image")


def kexecemu(*arguments: str | Path, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "kexecemu", *map(str, arguments)],
        capture_output=True,
        text=True,
        cwd=cwd,
        check=False,
    )


def refused(*arguments: str | Path) -> str:
    """Run, and return the one line on stderr of a run that was refused."""
    done = kexecemu(*arguments)
    assert done.returncode == 2, done
    assert done.stdout == ""
    lines = done.stderr.splitlines()
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("kexecemu: ")
    return lines[0].removeprefix("kexecemu: ")


def damaged(data: bytes, at: int, value: bytes) -> bytes:
    return data[:at] + value + data[at + len(value) :]


BAD_KERNELS = {
    "empty": (b"", "the file is empty (EINVAL"),
    "too short for a header": (STUB.read_bytes()[:40], "not an arm64 Image: 40 bytes"),
    "no Image": (b"#!/bin/sh\n" * 100, "not an arm64 Image: no"),
    "pages of 16 KiB": (damaged(STUB.read_bytes(), 24, b"\x0c"), "TGran16"),
    "without a size": (damaged(STUB.read_bytes(), 16, bytes(8)), "image_size is 0"),
    "larger than the reservation": (
        build(image_size=1 << 30),
        "crash image does not fit: kernel needs 0x40000000",
    ),
    "longer than it says": (
        build(image_size=0x10000) + bytes(0x20000),
        "0x20040 bytes long but takes only 0x10000",
    ),
}


@pytest.mark.parametrize("kind", BAD_KERNELS)
def test_a_bad_kernel_is_refused_in_one_line_that_names_it(kind: str, tmp_path: Path) -> None:
    data, reason = BAD_KERNELS[kind]
    kernel = tmp_path / "Image"
    kernel.write_bytes(data)
    line = refused("crash", "--kernel", kernel)
    assert reason in line
    if "kernel needs" not in line and "bytes long" not in line:
        assert str(kernel) in line


def test_a_directory_as_kernel_is_refused(tmp_path: Path) -> None:
    assert refused("crash", "--kernel", tmp_path) == f"kernel {tmp_path}: is a directory"


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    assert "No such file" in refused("load", "--initrd", tmp_path / "nothing")


@pytest.mark.parametrize(
    ("cmdline", "reason"),
    [
        ("crashkernel=2G", "cannot allocate crashkernel (size:0x80000000)"),
        ("crashkernel=1M", "crash image does not fit: dtb needs 0x1000 bytes"),
        ("crashkernel=lots", "crashkernel: memory value expected"),
        ("quiet", "has no crashkernel="),
    ],
)
def test_a_reservation_that_does_not_fit_is_refused_with_the_kernels_reason(
    cmdline: str, reason: str
) -> None:
    assert reason in refused("crash", "--cmdline", cmdline)


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("nosuch=ff", "target nosuch: no such segment or symbol"),
        ("purgatory:nosuch=ff", "the purgatory has no symbol nosuch"),
        ("vmlinux:nosuch=ff", "the first kernel has no symbol nosuch"),
        ("initrd+0x7fffffff=ff", "do not fit in the"),
        ("0x100=ff", "no RAM at physical 0x100"),
        ("initrd=f", "not an even number of hex digits"),
        ("initrd=", "nothing to write"),
        ("initrd", "write TARGET=HEX"),
        ("initrd+-1=ff", "neither NAME, NAME+OFFSET nor a physical address"),
    ],
)
def test_a_bad_target_is_refused(target: str, reason: str) -> None:
    assert reason in refused("crash", "--write", target)


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (["--era", "5.10"], "older than 6.1, the oldest that is modelled"),
        (["--protection", "magic"], "known are none, pte, readonly, bbml2"),
        (["--config", "FOO=y"], "FOO is not one that the model knows"),
        (["--config", "ZONE_DMA"], "write NAME=VALUE"),
        (["--config", "ZONE_DMA=maybe"], "is y or n"),
        (["--config", "ARM64_16K_PAGES=y", "--config", "ARM64_64K_PAGES=y"], "exclude each other"),
        (["--ram", "1X"], "not a size"),
        (["--ram", "4M"], "too small"),
        (["--ram", "3T"], "3072 GiB by base pages"),
        (["--cpus", "0"], "not 0"),
        (["--cpus", "65"], "at most 64 CPUs"),
        (["--expect", "bliss"], "is no outcome"),
        (["--capture", "reality"], "capture 'reality' is not known; known are stub, linux"),
        (["--nosuch"], "--nosuch"),
        (["--protection", "bbml2", "--era", "6.1", "--dtb", "/dev/null"], "is no regular file"),
    ],
)
def test_a_bad_option_is_refused(options: list[str], reason: str) -> None:
    assert reason in refused("crash", *options)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            'schema = 1\nname = "x"\n[kernel]\npurgatry = "none"',
            "line 4: Object contains unknown field `purgatry` (did you mean purgatory?) - at `$.kernel`",
        ),
        ('schema = 2\nname = "x"', "at `$.schema`"),
        ("schema = 1\nname =\nseed = 1", "line 2"),
        (
            'schema = 1\nname = "x"\n[[fault]]\nat = "initrd"\nwrite = "zz"',
            "'zz' is not an even number of hex",
        ),
        (
            'schema = 1\nname = "x"\n[[fault]]\nat = "initrd"',
            "one of the bytes to write, the bits to flip, and a model",
        ),
        ('schema = 1\nname = "x"\n[[fault]]\nat = "nosuch"\nwrite = "00"', "target nosuch"),
        ('schema = 1\nname = "x"\n[expect]\noutcome = "bliss"', "at `$.expect.outcome`"),
    ],
)
def test_a_bad_scenario_is_refused_with_file_and_key(text: str, reason: str, tmp_path: Path) -> None:
    scenario = tmp_path / "bad.toml"
    scenario.write_text(text)
    assert reason in refused("run", scenario)


def test_an_unknown_scenario_name_lists_those_that_ship() -> None:
    said = refused("run", "nosuch")
    assert all(name in said for name in shipped_scenarios())


def test_a_purgatory_for_another_machine_is_refused(tmp_path: Path) -> None:
    other = tmp_path / "x86.ro"
    other.write_bytes(damaged(purgatory_path().read_bytes(), 18, b"\x3e\x00"))
    line = refused("crash", "--purgatory", other)
    assert "machine 62" in line
    assert str(other) in line


def test_nothing_is_written_when_an_output_cannot_be(tmp_path: Path) -> None:
    timeline = tmp_path / "timeline.jsonl"
    line = refused("run", "golden", "--timeline", timeline, "--vmcore", tmp_path / "no" / "vmcore")
    assert "there is no folder" in line
    assert list(tmp_path.iterdir()) == []


def without_fetched(tmp_path: Path, *arguments: str | Path) -> str:
    """The one line on stderr where nothing has been fetched."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("KEXECEMU_CACHE", str(tmp_path))
        return refused(*arguments)


@pytest.mark.parametrize(
    ("arguments", "missing"),
    [
        (["run", "debian-captures"], "kernel"),
        (["run", "debian-initrd-stamped", "--json"], "kernel"),
        (["crash", "--capture", "linux"], "kernel"),
        (["crash", "--capture", "linux", "--kernel", "fetched:kernel-trixie"], "kernel-trixie"),
        (["crash", "--kernel", "fetched:kernel-16k"], "kernel-16k"),
        # One's own kernel needs no other, but something has to copy the dump.
        (["crash", "--capture", "linux", "--kernel", str(STUB)], "busybox"),
    ],
)
def test_a_file_that_is_not_fetched_is_named_with_the_command_that_fetches_it(
    arguments: list[str], missing: str, tmp_path: Path
) -> None:
    line = without_fetched(tmp_path, *arguments)
    assert line.startswith(f"{missing} is not fetched yet: ")
    assert f"kexecemu fetch {missing}" in line
    assert list(tmp_path.iterdir()) == []


def test_a_kernel_that_nobody_can_fetch_is_refused_with_those_that_there_are() -> None:
    line = refused("crash", "--kernel", "fetched:busybox")
    assert "fetched:busybox: there is no such kernel to fetch" in line
    assert "kernel-trixie" in line


def test_an_outcome_that_was_not_expected_exits_with_1(tmp_path: Path) -> None:
    scenario = tmp_path / "wrong.toml"
    scenario.write_text('schema = 1\nname = "x"\n[expect]\noutcome = "silent"\nconsole = ["no such line"]\n')
    done = kexecemu("run", scenario)
    assert done.returncode == 1
    assert "outcome is captured, expected silent" in done.stdout
    assert "the console does not say 'no such line'" in done.stdout
    assert kexecemu("crash", "--expect", "detected").returncode == 1
    assert kexecemu("crash", "--expect", "captured").returncode == 0


def test_the_dump_is_told_below_the_outcome() -> None:
    for name, told in {
        "golden": "taken, equal to the crashed memory",
        "initrd-stamped": "none: the purgatory stopped and started no capture kernel",
    }.items():
        lines = kexecemu("run", name).stdout.splitlines()
        assert lines[-2].startswith("outcome      ")
        assert lines[-1] == f"dump         {told}"


def test_json_has_the_keys_that_programs_rely_on(tmp_path: Path) -> None:
    vmcore = tmp_path / "vmcore"
    done = kexecemu("run", "golden", "--json", "--vmcore", vmcore)
    value = json.loads(done.stdout)
    assert done.stderr == ""
    assert list(value)[:14] == [
        "outcome",
        "as_expected",
        "crashkernel",
        "crashkernel_low",
        "segments",
        "entry",
        "digest",
        "damage",
        "console",
        "instructions",
        "seed",
        "vmlinux",
        "vmcore",
        "verdict",
    ]
    assert value["outcome"] == "captured"
    assert (value["dump"], value["dump_reason"]) == ("true", "taken, equal to the crashed memory")
    assert value["as_expected"] is True
    assert [one["name"] for one in value["segments"]] == [
        "kernel",
        "elfcorehdr",
        "initrd",
        "dtb",
        "purgatory",
    ]
    assert set(value["segments"][0]) == {"name", "mem", "memsz", "bufsz"}
    assert value["crashkernel"]["end"] - value["crashkernel"]["start"] == (128 << 20) - 1
    assert value["entry"] == value["segments"][4]["mem"]
    assert value["vmcore"] == str(vmcore)
    assert vmcore.read_bytes()[:4] == b"\x7fELF"
    assert "capture: done" in value["console"]


def test_damage_and_verdict_are_in_the_json() -> None:
    value = json.loads(kexecemu("crash", "--write", "initrd+0x1000=a5a5", "--json").stdout)
    assert value["outcome"] == "detected"
    assert value["damage"] == [{"segment": "initrd", "offset": 0x1000, "length": 2}]
    assert value["verdict"]["state"] == "mismatch"
    assert value["verdict"]["expected"] == value["digest"] != value["verdict"]["found"]
    assert value["vmcore"] is None


def test_load_dumps_each_segment_as_it_is_in_memory(tmp_path: Path) -> None:
    folder = tmp_path / "segments"
    done = kexecemu("load", "--dump-segments", folder, "--json", "--purgatory", "none")
    value = json.loads(done.stdout)
    assert value["digest"] is None
    for segment in value["segments"]:
        data = (folder / f"{segment['name']}.bin").read_bytes()
        assert len(data) == segment["memsz"]
    assert (folder / "kernel.bin").read_bytes().startswith(STUB.read_bytes())
    assert sorted(path.name for path in folder.iterdir()) == [
        "dtb.bin",
        "elfcorehdr.bin",
        "initrd.bin",
        "kernel.bin",
    ]


def test_the_same_seed_gives_the_same_bytes_and_another_seed_other_ones(tmp_path: Path) -> None:
    scenario = tmp_path / "seeded.toml"
    scenario.write_text('schema = 1\nname = "seeds in the device tree"\n[kernel]\nrng_ready = true\n')
    outputs = []
    for number, seed in enumerate((7, 7, 8)):
        timeline = tmp_path / f"{number}.jsonl"
        done = kexecemu("run", scenario, "--seed", str(seed), "--json", "--timeline", timeline)
        outputs.append((json.loads(done.stdout)["digest"], timeline.read_bytes()))
    assert outputs[0] == outputs[1]
    assert outputs[0][0] != outputs[2][0]


def test_a_pipe_gets_no_colours_and_no_progress_bar() -> None:
    done = kexecemu("run", "initrd-stamped")
    assert done.returncode == 0
    assert done.stderr == ""
    assert "\x1b" not in done.stdout


def test_importing_the_package_loads_nothing_heavy() -> None:
    code = "import sys, kexecemu; print(sorted({'unicorn', 'typer', 'rich', 'msgspec'} & set(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
