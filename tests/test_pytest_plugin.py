"""The pytest plugin, as pytest itself runs it: in sessions of their own, and over xdist's workers."""

from __future__ import annotations

import configparser
import os
import subprocess
import sys
from pathlib import Path

import pytest

from kexecemu.data import fixture_path

pytest_plugins = ["pytester"]

ROOT = Path(__file__).resolve().parent.parent
GOOD = fixture_path("scenarios/initrd-stamped.toml").read_text()
WRONG = GOOD.replace('outcome = "detected"', 'outcome = "silent"').replace("seed   = 1", "seed   = 7")
assert WRONG != GOOD


def write(pytester, name: str, text: str) -> None:
    path = pytester.path / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_a_scenario_file_that_ends_as_expected_is_a_test_that_passes(pytester, inner):
    write(pytester, "one.scenario.toml", GOOD)
    result = inner("-v")
    result.assert_outcomes(passed=1)
    result.stdout.fnmatch_lines(
        ["one.scenario.toml::a stray word in the initrd is found at crash time PASSED*"]
    )


def test_a_scenario_that_ends_otherwise_fails_with_the_timeline_and_the_line_that_does_it_again(
    pytester, inner
):
    write(pytester, "sub/one.scenario.toml", WRONG)
    result = inner()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            "outcome is detected, expected silent",
            "the last 15 of 17 events, time in instructions:",
            "* fault *cpu0 stores a5a5a5a5 at initrd+0x1000*",
            "*outcome *detected: the purgatory found*",
            "damage: initrd+0x1000, 4 bytes",
            "again: kexecemu run sub/one.scenario.toml --seed 7",
        ],
        consecutive=False,
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*pytest_plugin.py*")
    result.stdout.no_fnmatch_line("*boot loader starts*")  # the first event: only the end is shown


def test_the_line_that_does_it_again_does_it_again(pytester, inner):
    write(pytester, "one.scenario.toml", WRONG)
    # On CI pytest repeats the whole text in its summary: the same line twice, then.
    (line,) = {one for one in inner().outlines if one.startswith("again: ")}
    words = line.removeprefix("again: ").split()
    assert words[0] == "kexecemu"
    done = subprocess.run(
        [sys.executable, "-m", *words], cwd=pytester.path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "outcome is detected, expected silent" in done.stdout
    assert "seed 7" in done.stdout


def test_on_ci_pytest_writes_the_text_once_more_in_its_summary_and_nothing_else_changes(
    pytester, inner, monkeypatch
):
    write(pytester, "one.scenario.toml", WRONG)
    at_home = inner()
    monkeypatch.setenv("CI", "true")
    on_ci = inner()
    on_ci.assert_outcomes(failed=1)
    assert {line for line in on_ci.outlines if line.startswith("again: ")} == {
        line for line in at_home.outlines if line.startswith("again: ")
    }


def test_bad_toml_is_a_collection_error_with_one_line(pytester, inner):
    write(pytester, "bad.scenario.toml", GOOD.replace("cpus = 2", "cpu = 2"))
    result = inner()
    result.assert_outcomes(errors=1)
    result.stdout.fnmatch_lines(
        [
            "*bad.scenario.toml: line *: Object contains unknown field `cpu` (did you mean cpus?) - at `$.machine`"
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")
    result.stdout.no_fnmatch_line("*msgspec*")


def test_a_scenario_that_cannot_be_run_fails_with_one_line(pytester, inner):
    write(pytester, "one.scenario.toml", GOOD.replace("crashkernel=128M", "quiet"))
    write(pytester, "two.scenario.toml", GOOD.replace('at    = "initrd+0x1000"', 'at = "nowhere"'))
    result = inner()
    result.assert_outcomes(failed=2)
    result.stdout.fnmatch_lines(
        [
            "one.scenario.toml: no crashkernel memory is reserved*",
            "two.scenario.toml: target nowhere: no such segment*",
        ]
    )
    result.stdout.no_fnmatch_line("*Traceback*")


def test_a_scenario_that_expects_nothing_is_skipped_and_says_so(pytester, inner):
    write(pytester, "one.scenario.toml", GOOD[: GOOD.index("[expect]")])
    result = inner("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*the scenario expects nothing: it has no [[]expect[]]"])


@pytest.mark.parametrize("name", ["debian-captures", "linux-captures"])
def test_a_scenario_whose_kernel_is_not_fetched_is_skipped_with_the_command_that_fetches_it(
    pytester, inner, monkeypatch, name
):
    monkeypatch.setenv("KEXECEMU_CACHE", str(pytester.path / "empty"))
    write(pytester, "one.scenario.toml", fixture_path(f"scenarios/{name}.toml").read_text())
    result = inner("-rs")
    result.assert_outcomes(skipped=1)
    result.stdout.fnmatch_lines(["SKIPPED*kexecemu fetch*"])


def test_a_kernel_that_there_is_none_of_is_no_reason_to_skip(pytester, inner):
    write(
        pytester,
        "one.scenario.toml",
        GOOD.replace("[kernel]", '[load]\nkernel = "fetched:nothing"\n[kernel]'),
    )
    result = inner()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(["one.scenario.toml: fetched:nothing: there is no such kernel to fetch*"])


def test_other_toml_files_are_left_alone_unless_a_pattern_takes_them(pytester, inner):
    write(pytester, "tool.toml", "[tool]\n")
    write(pytester, "crashes/one.toml", GOOD)
    write(pytester, "crash-two.toml", GOOD)
    write(pytester, "deep/crashes/not.toml", GOOD)
    write(pytester, "any/depth/of/it/three.toml", GOOD)
    assert inner("--collect-only", "-q").ret == pytest.ExitCode.NO_TESTS_COLLECTED
    pytester.makeini("[pytest]\nkexecemu_scenarios = crashes/*.toml crash-*.toml any/**/three.toml\n")
    result = inner("-q", "--collect-only")
    assert sorted(line.split("::")[0] for line in result.outlines if "::" in line) == [
        "any/depth/of/it/three.toml",
        "crash-two.toml",
        "crashes/one.toml",
    ]


def test_a_file_that_is_named_is_taken_whatever_its_name(pytester, inner):
    write(pytester, "crash.toml", GOOD)
    inner("crash.toml").assert_outcomes(passed=1)


def test_workers_collect_the_same_and_run_each_once(pytester, inner):
    pytest.importorskip("xdist")
    for number in range(6):
        write(pytester, f"good{number}.scenario.toml", GOOD)
    write(pytester, "wrong.scenario.toml", WRONG)
    pytester.makepyfile(
        """
        def test_in_a_worker(kexecemu_run):
            assert kexecemu_run("golden").outcome == "captured"
        """
    )
    result = inner("-p", "xdist", "-n", "2")
    # xdist refuses to run when two workers disagree about what there is.
    result.assert_outcomes(passed=7, failed=1)
    result.stdout.fnmatch_lines(["again: kexecemu run wrong.scenario.toml --seed 7"])
    result.stdout.no_fnmatch_line("*Different tests were collected*")


def test_the_fixtures_give_what_their_names_say_and_all_is_closed_behind_a_test(pytester, inner):
    write(pytester, "a.scenario.toml", GOOD)  # runs first
    pytester.makepyfile(
        """
        import os

        import pytest
        from kexecemu.testing import Fault, assert_outcome

        memories = lambda: sum(
            "kexecemu-ram" in os.readlink(f"/proc/self/fd/{fd}")
            for fd in os.listdir("/proc/self/fd")
            if os.path.lexists(f"/proc/self/fd/{fd}")
        )

        def test_a_board(kexecemu_board):
            board = kexecemu_board(ram="512M", cpus=3)
            assert board.ram.size == 512 << 20 and len(board.cpus) == 3
            assert memories() > 0

        def test_a_kernel(kexecemu_kernel):
            assert memories() == 0
            kernel = kexecemu_kernel(protection="pte", purgatory="none", ram="512M")
            assert kernel.board.ram.size == 512 << 20
            assert not kernel.stray_write("initrd", b"stray").changed
            assert_outcome(kernel.panic(), "prevented")

        def test_runs(kexecemu_run):
            assert memories() == 0
            assert_outcome(kexecemu_run("initrd-stamped"), "detected", segment="initrd")
            stray = Fault("dtb+8", write=b"x")
            assert_outcome(kexecemu_run(faults=[stray]), "detected", segment="dtb", console="do NOT match")
            assert memories() > 0

        def test_at_the_end():
            assert memories() == 0
        """
    )
    inner().assert_outcomes(passed=5)


def test_a_failed_assertion_ends_where_the_test_asked_and_shows_how_to_have_it_again(pytester, inner):
    pytester.makepyfile(
        """
        from kexecemu.testing import Fault, assert_outcome

        def test_it(kexecemu_run):
            end = kexecemu_run(faults=[Fault("initrd+5", write=b"~~")], purgatory="none", seed=3)
            assert_outcome(end, "detected")
        """
    )
    result = inner()
    result.assert_outcomes(failed=1)
    result.stdout.fnmatch_lines(
        [
            ">*assert_outcome(end, [\"']detected[\"'])",
            "E*outcome is silent, expected detected",
            "E*again: kexecemu crash --purgatory none --seed 3 --write initrd+5=7e7e --expect detected",
        ]
    )
    result.stdout.no_fnmatch_line("*testing.py*")


STRAY = """
schema = 1
name = "stray words by DMA while the purgatory hashes"
[machine]
ram = "128M"
[kernel]
cmdline = "crashkernel=32M"
[campaign]
where = ["initrd"]
models = ["word32"]
by = ["dma"]
moments = ["hashing"]
"""
CAMPAIGN = """
    from kexecemu.testing import assert_no

    def test_nothing_slips_through(kexecemu_campaign):
        assert_no(kexecemu_campaign("stray.toml", faults=40, audit=3), "silent")

    def test_nothing_goes_astray(kexecemu_campaign):
        assert_no(kexecemu_campaign("stray.toml", faults=40, audit=3), "misboot", "hung")
"""


def test_a_campaign_in_a_test_names_what_it_missed_and_that_can_be_run_alone(pytester, inner):
    write(pytester, "stray.toml", STRAY)
    pytester.makepyfile(CAMPAIGN)
    result = inner()
    result.assert_outcomes(passed=1, failed=1)
    result.stdout.fnmatch_lines(
        ["E*silent, expected none: corrupt bytes reached*", "E*based on 40 faults of*"]
    )
    tokens = [line.split()[4] for line in result.outlines if "again: kexecemu replay dma.word32." in line]
    assert tokens
    alone = inner("--kexecemu-replay", tokens[0])
    alone.assert_outcomes(passed=1, failed=1)
    alone.stdout.fnmatch_lines(
        [
            "E*1 silent, expected none*",
            f"E*based on 1 faults of*only {tokens[0]}*",
            "*Captured stdout call*",
            f"{tokens[0]}: concluded silent*, silent when run",
            "*purgatory *is content and jumps*",
            "*outcome *silent*",
        ]
    )


def test_a_campaign_with_other_options_than_its_scenario_is_replayed_with_them(pytester, inner):
    write(pytester, "stray.toml", STRAY.replace("hashing", "after-load"))
    pytester.makepyfile(
        """
        from kexecemu.testing import assert_no

        def test_nothing_slips_through(kexecemu_campaign):
            assert_no(kexecemu_campaign("stray.toml", faults=3, audit=0, purgatory="none"), "silent")
        """
    )
    result = inner()
    result.assert_outcomes(failed=1)
    lines = [line for line in result.outlines if "again: kexecemu replay dma.word32." in line]
    assert lines[0].endswith("stray.toml --purgatory none --not silent")
    token = lines[0].split()[4]
    alone = inner("--kexecemu-replay", token)
    alone.stdout.fnmatch_lines([f"{token}: concluded silent*, silent when run"])


def test_a_replayed_fault_is_none_of_another_campaigns(pytester, inner):
    write(pytester, "stray.toml", STRAY)
    pytester.makepyfile(CAMPAIGN)
    result = inner("-rs", "--kexecemu-replay", "cpu.word32.0.kernel+0.after-load")
    result.assert_outcomes(skipped=2)
    result.stdout.fnmatch_lines(
        ["SKIPPED*--kexecemu-replay: fault cpu.word32.0.kernel+0.after-load is not in the*"]
    )


def test_an_id_that_is_none_is_refused_before_anything_runs(pytester, inner):
    write(pytester, "one.scenario.toml", GOOD)
    result = inner("--kexecemu-replay", "initrd+1")
    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["ERROR: --kexecemu-replay: 'initrd+1' is no fault*"])


def test_a_session_that_crashes_nothing_loads_nothing_of_the_emulator(pytester, inner):
    pytester.makepyfile(
        """
        import sys

        def test_nothing_is_loaded(request):
            ours = {name for name in sys.modules if name.split(".")[0] == "kexecemu"}
            assert ours == {"kexecemu", "kexecemu.pytest_plugin"}
            assert request.config.pluginmanager.has_plugin("kexecemu.pytest_plugin")
            assert not {"unicorn", "msgspec", "rich", "jinja2", "cryptography"} & sys.modules.keys()
        """
    )
    inner().assert_outcomes(passed=1)


def test_importing_the_plugin_adds_two_modules_to_pytest():
    program = (
        "import sys, pytest; before = set(sys.modules); import kexecemu.pytest_plugin; "
        "print(*sorted(set(sys.modules) - before - {'fnmatch'}))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["kexecemu", "kexecemu.pytest_plugin"]


def test_an_installation_registers_the_plugin_by_itself(pytester, tmp_path):
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg")
    info = tmp_path / "site" / "kexecemu-0.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kexecemu\nVersion: 0\n")
    lines = setup["options.entry_points"]["pytest11"]
    (info / "entry_points.txt").write_text(f"[pytest11]\n{lines.strip()}\n")
    write(pytester, "one.scenario.toml", GOOD)
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"],
        cwd=pytester.path,
        env={**environment, "PYTHONPATH": f"{info.parent}{os.pathsep}{ROOT}"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "1 passed" in done.stdout
    assert "plugins: " in done.stdout
    assert "kexecemu-0" in done.stdout


def test_ctrl_c_in_a_device_s_code_ends_a_session(pytester, inner):
    pytester.makepyfile("""
        import signal
        import kexecemu.pytest_plugin
        from kexecemu.machine.board import Board

        def test_a_guest_that_reads_a_register_for_ever():
            handler = signal.getsignal(signal.SIGINT)  # not Python's where we are a shell's job in the background
            signal.signal(signal.SIGALRM, handler if callable(handler) else kexecemu.pytest_plugin._on_ctrl_c)
            board = Board(ram="16M")
            board.ram.write(0x40000000, bytes.fromhex("221840b9 ffffff17"))  # ldr w2, [x1, #0x18]; b .-4
            board.boot_cpu.reset(0x40000000)
            board.boot_cpu.set_x(1, board.uart.base_phys)
            signal.setitimer(signal.ITIMER_REAL, 0.1)
            board.boot_cpu.run(limit=1_000_000_000)
    """)
    found = inner("-q")
    assert found.ret == pytest.ExitCode.INTERRUPTED
    found.stdout.no_fnmatch_line("*ignored*")
