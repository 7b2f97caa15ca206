"""Nobody's text reaches a terminal, a page or a program's input raw: one property, over every channel there is."""

from __future__ import annotations

import io
import json
import os
import pty
import re
import subprocess
import sys
import tomllib
import unicodedata
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import replace
from functools import cache
from pathlib import Path

import pytest
import signing
from campaign_summaries import made_up_comparison, made_up_summary
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from rich.console import Console
from rich.markup import escape
from rich.text import Text

from kexecemu.campaign.summary import Disagreement
from kexecemu.cli import main
from kexecemu.commands.campaign_compare import _print_comparison
from kexecemu.commands.outputs import print_json, print_written
from kexecemu.crash.damage import Damage
from kexecemu.data import fixture_path
from kexecemu.failure import KexecemuFailure, events_text, failure_text
from kexecemu.machine.timeline import Timeline
from kexecemu.report.campaign_html import render_campaign, render_comparison
from kexecemu.report.campaign_json import campaign_object
from kexecemu.report.campaign_text import print_campaign
from kexecemu.report.html import render
from kexecemu.report.json import result_object
from kexecemu.report.signature import signature_object, signature_text
from kexecemu.report.terminal import account, console_on, print_table, say
from kexecemu.report.text import print_result
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import Result, run_scenario
from kexecemu.scenario.schema import Crash, Scenario
from kexecemu.scenario.toml import scenario_toml
from kexecemu.visible import Visible, json_text, lines_text, listener, visible, visible_line, visible_streams

pytest_plugins = ["pytester"]

# ESC[2J, OSC 52 into the clipboard, text that conceals itself, C1's CSI, DEL, an override, an isolate, an Arabic mark,
# line and paragraph ends of all kinds, no width, tags, a Hangul filler, a lone surrogate, and bytes that are no UTF-8.
HOSTILE = (
    "\x1b[2J\x1b[H\x1b]52;c;YWJj\x07\x1b[8m\b\r\0\x9b2J\x7f\u202eabc\u202c\u2066x\u2069\u200f\u061c"
    "\x85\u2028\u2029\x0b\x0c\u200b\u2060\ufeff\xad\U000e0041\u3164\ufe0f\ud800\udc9b\udcff"
)
_ALLOWED = "\n\t"
# Default_Ignorable_Code_Point of Unicode's DerivedCoreProperties.txt, as far as no category says it.
_IGNORABLE = [
    0x34F,
    0x115F,
    0x1160,
    0x17B4,
    0x17B5,
    *range(0x180B, 0x1810),
    0x3164,
    *range(0xFE00, 0xFE10),
    0xFFA0,
]
_IGNORABLE += range(0xE0100, 0xE01F0)


def is_hidden(character: str) -> bool:
    """By Unicode's own tables, whatever kexecemu.visible says."""
    return character not in _ALLOWED and (
        unicodedata.category(character) in ("Cc", "Cf", "Cs", "Zl", "Zp") or ord(character) in _IGNORABLE
    )


def hidden(text: str) -> list[str]:
    return [one for one in text if is_hidden(one)]


EVERY_HIDDEN = [chr(code) for code in range(sys.maxunicode + 1) if is_hidden(chr(code))]
texts = st.lists(
    st.sampled_from(EVERY_HIDDEN) | st.characters() | st.sampled_from(["[red]", "\\", "[", "<b>", "\n"])
)
hostile = st.builds("".join, texts)


def test_every_character_that_cannot_be_seen_is_an_escape_and_no_other_is_changed():
    for code in range(sys.maxunicode + 1):
        shown = visible(chr(code))
        if is_hidden(chr(code)):
            assert re.fullmatch(r"\\x[0-9a-f]{2}|\\u[0-9a-f]{4}|\\U[0-9a-f]{8}", shown), hex(code)
        else:
            assert shown == chr(code) or unicodedata.category(chr(code)) == "Cn", hex(code)


@given(hostile)
def test_what_is_visible_stays_as_it_is(text):
    assert not hidden(visible(text))
    assert visible(visible(text)) == visible(text)
    assert visible_line(text) == visible(text).replace("\n", "\\n")


def test_escapes_are_those_that_one_knows():
    assert visible("\x1b[2J\x9b\u202e\U000e0041\udc9b\udcff\ud800\x7f") == (
        r"\x1b[2J\x9b\u202e\U000e0041\x9b\xff\ud800\x7f"
    )


# -- the channels ----------------------------------------------------------------------------------------------------


@cache
def _golden() -> Result:
    path = find_scenario("initrd-stamped")
    return run_scenario(read_scenario(path), path.parent)


def _result(text: str) -> Result:
    """A run in which everybody says that."""
    made = _golden()
    timeline = Timeline(lambda: 7)
    for event in made.end.timeline:
        timeline.record(event.kind, event.text + text, **event.facts)
    end = replace(
        made.end,
        reason="x" + text,
        console=made.end.console + text + "\n",
        dump_reason="x" + text,
        timeline=timeline,
        damage=[Damage("initrd" + text, 1, 2), *made.end.damage],
    )
    return replace(made, name=text, mismatches=[text], end=end)


def _summary(text: str) -> object:
    wrong = Disagreement(f"dma.byte.1.{text}+5.after-load", "detected", "hash", "silent", text)
    made = made_up_summary()
    worst = tuple(replace(one, detail=text, fault=one.fault + text, dump_reason=text) for one in made.worst)
    return replace(made, name=text, scenario=text, disagreements=(wrong,), worst=worst)


def _comparison(text: str) -> object:
    made = made_up_comparison()
    return replace(made, first=replace(made.first, scenario=text, purgatory=text))


def _printed(do: Callable[[], object]) -> str:
    out = io.StringIO()
    with redirect_stdout(out), redirect_stderr(out), visible_streams():
        do()
    return out.getvalue()


def _command(*words: str) -> str:
    return _printed(lambda: main(list(words)))


def _heard(text: str) -> str:
    out = io.StringIO()
    data = text.encode("utf-8", "surrogatepass") + b"\x9b\xff\x1b[2J\n"
    with redirect_stderr(out):
        hear = listener()
        for at in range(0, len(data), 3):
            hear(data[at : at + 3])
    return out.getvalue()


def _signature(text: str) -> str:
    image = signing.good().data
    found = signature_object(image, None, None) | {"signer": text, "issuer": text, "signing_time": text}
    found["error"] = {"errno": text, "step": text, "reason": text}
    return signature_text(found)


CHANNELS: dict[str, Callable[[str], str]] = {
    "print": lambda text: _printed(lambda: print(text, file=sys.stdout)),
    "print to stderr": lambda text: _printed(lambda: print(text, file=sys.stderr)),
    "writelines": lambda text: _printed(lambda: sys.stdout.writelines([text, text])),
    "rich": lambda text: _printed(lambda: account().print(Text(text))),
    "rich without our words": lambda text: _printed(lambda: console_on(sys.stderr).print(text, markup=False)),
    "say": lambda text: _printed(lambda: say(account(), escape(text), escape(text))),
    "a table": lambda text: _printed(
        lambda: print_table(account(), ["a", "b"], [[(text, ""), (text, "bold")]])
    ),
    "the account of a run": lambda text: _printed(lambda: print_result(account(), _result(text))),
    "a run's page": lambda text: render(_result(text)),
    "a run's JSON": lambda text: _printed(lambda: print_json(result_object(_result(text), None, text))),
    "a timeline": lambda text: _result(text).end.timeline.as_jsonl(),
    "the account of a campaign": lambda text: _printed(lambda: print_campaign(account(), _summary(text))),
    "a campaign's page": lambda text: render_campaign(_summary(text)),
    "a campaign's JSON": lambda text: json_text(campaign_object(_summary(text)), indent=2),
    "a comparison": lambda text: _printed(lambda: _print_comparison(_comparison(text))),
    "a comparison's page": lambda text: render_comparison(_comparison(text)),
    "a signature": _signature,
    "names of files": lambda text: _printed(lambda: print_written([Path(text.replace("\0", "") or ".")])),
    "a failed test": lambda text: failure_text(_result(text).end, [text], text),
    "a failure": lambda text: str(KexecemuFailure([text], more=[text])),
    "a repr": lambda text: repr(_result(text)) + repr(_result(text).end.timeline) + repr(_result(text).end),
    "events": lambda text: events_text(list(_result(text).end.timeline)),
    "the console as it is printed": _heard,
    "a wrong command": lambda text: _command("x" + text),
    "a wrong option": lambda text: _command("run", f"--{text}"),
    "a wrong value": lambda text: _command("crash", "--era", text),
    "a wrong fault": lambda text: _command("replay", "x" + text, "campaign-16m"),
    "a wrong target": lambda text: _command("crash", "--write", f"{text}=00"),
    "no such scenario": lambda text: _command("run", "x" + text.replace("\0", "")),
    "no such list": lambda text: _command("list", "x" + text),
    "a warning": lambda text: _printed(lambda: main(["list", "outcomes", text])),
}


@pytest.mark.parametrize("channel", CHANNELS)
def test_no_channel_passes_on_what_is_hostile(channel):
    assert not hidden(CHANNELS[channel](HOSTILE))


@pytest.mark.parametrize("channel", CHANNELS)
@settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
@given(hostile)
def test_no_channel_passes_on_what_cannot_be_seen(channel, text):
    assert not hidden(CHANNELS[channel](text))


@pytest.mark.parametrize("channel", ["a signature", "the account of a run", "names of files", "events"])
def test_a_name_makes_no_line_of_its_own(channel):
    shown = CHANNELS[channel]("x\noutcome      captured")
    assert "\\noutcome      captured" in shown
    assert "\noutcome      captured" not in shown


def test_the_same_text_is_in_the_json_as_it_was():
    assert json.loads(json_text({"a": HOSTILE[:-3]})) == {"a": HOSTILE[:-3]}
    assert not hidden(json_text(HOSTILE))
    assert json_text("\x7f") == r'"\u007f"'


def test_a_scenario_s_text_says_the_same_and_shows_it():
    said = HOSTILE[:-3]  # TOML has no surrogates
    text = scenario_toml(Scenario(schema=1, name=said, crash=Crash(said)))
    assert not hidden(text)
    assert tomllib.loads(text)["name"] == said


# -- what may reach a terminal -----------------------------------------------------------------------------------------


def test_bytes_do_not_go_around_it():
    with visible_streams():
        assert not hasattr(sys.stdout, "buffer")
        assert isinstance(sys.stderr, Visible)
    assert not isinstance(sys.stderr, Visible)


def test_nobody_in_the_package_makes_a_console_or_writes_bytes_past_it():
    """A console of rich's own has no use for text of others: console_on() and account() make ours."""
    package = fixture_path(".").resolve().parent / "kexecemu"
    if not package.is_dir():
        package = Path(sys.modules["kexecemu"].__file__ or "").parent
    for path in package.rglob("*.py"):
        text = path.read_text()
        if path.name not in ("terminal.py", "visible.py"):
            assert not re.search(r"\bConsole\((?!Lines)", text), path
            assert "std" + "out.buffer" not in text and "std" + "err.buffer" not in text, path
        if path.name not in (
            "terminal.py",
            "visible.py",
            "interrupt.py",
            "__main__.py",
        ):  # whose line is its own
            assert not re.search(r"sys\.__std|os\.write\([12],|/dev/tty", text), path


def test_colours_are_ours_alone(monkeypatch):
    monkeypatch.delenv("NO_COLOR", raising=False)
    out = io.StringIO()
    console = console_on(out)
    console._color_system = Console(force_terminal=True, color_system="standard")._color_system
    console._force_terminal = True
    say(console, "[bold red]head[/] ", escape("\x1b[8mconcealed\x1b[0m[red]x"))
    told = out.getvalue()
    assert r"\x1b[8mconcealed\x1b[0m[red]x" in told
    assert set(re.findall("\x1b[^h\\\\\n]*", told)) == {"\x1b[1;31m", "\x1b[0m "}


def _in_a_terminal(*words: str, cwd: Path) -> bytes:
    """What a terminal gets of both streams."""
    ours, theirs = pty.openpty()
    environment = {key: value for key, value in os.environ.items() if key != "NO_COLOR"} | {
        "TERM": "xterm-256color"
    }
    with subprocess.Popen(
        [sys.executable, "-m", "kexecemu", *words], stdout=theirs, stderr=theirs, env=environment, cwd=cwd
    ):
        os.close(theirs)
        said = b""
        while True:
            try:
                piece = os.read(ours, 1 << 16)
            except OSError:
                break
            said += piece
    os.close(ours)
    return said


@pytest.mark.parametrize("words", [["run", "a.toml", "-v"], ["run", "a.toml"], ["run", "missing\x1b[2J"]])
def test_a_terminal_gets_no_control_code_but_colours_and_those_of_a_bar(words, tmp_path):
    text = fixture_path("scenarios/initrd-stamped.toml").read_text()
    name = r"\u001b[2J\u001b[Hverified\u009b2J\u202e\u001b[8m"
    text = re.sub(r"(?m)^name .*$", lambda _: f'name = "{name}"', text)
    (tmp_path / "a.toml").write_text(text)
    said = _in_a_terminal(*words, cwd=tmp_path).decode()
    # A bar of rich's hides the cursor, goes up a line, erases it.
    rest = re.sub("\x1b\\[(?:[0-9;]*m|\\?25[lh]|2K|1A)|\r", "", said.replace("\\x1b[2J", ""))
    assert not hidden(rest)
    assert "\\x1b[" in said
    assert "\x1b[8m" not in said


def test_the_console_is_raw_where_that_is_asked_for(capfdbinary):
    hear = listener(raw=True)
    hear(b"\x1b[31mred\x9b\r\n")
    assert capfdbinary.readouterr().err == b"\x1b[31mred\x9b\r\n"


def test_lines_of_a_console_end_as_they_do():
    out = io.StringIO()
    with redirect_stderr(out):
        hear = listener()
        for piece in (b"a\r", b"\nb\rc\xc3", b"\xa9\n\xe2\x80", b"\xaex\n"):
            hear(piece)
    assert out.getvalue() == "a\nb\\x0dc\u00e9\n\\u202ex\n"


# -- pytest ------------------------------------------------------------------------------------------------------------


def test_a_failed_scenario_s_name_is_shown_and_not_obeyed(pytester):
    text = fixture_path("scenarios/initrd-stamped.toml").read_text().replace('"detected"', '"silent"')
    text = re.sub(r"(?m)^name .*$", r'name = "\\u001b[2Jbad\\u202e\\u009b"', text)
    (pytester.path / "a.scenario.toml").write_text(text)
    result = pytester.runpytest("-v", "-p", "no:cacheprovider")
    result.assert_outcomes(failed=1)
    assert not hidden(result.stdout.str() + result.stderr.str())
    assert r"\x1b[2Jbad\u202e\x9b" in result.stdout.str()


def test_a_failed_test_shows_what_its_guest_said(pytester):
    pytester.makepyfile(
        r"""
        from dataclasses import replace

        def test_it(kexecemu_run):
            end = kexecemu_run("initrd-stamped")
            said = replace(end, console="\x1b[2J\u202e\x9b one\ntwo")
            print(said.console)
            assert said.console == "three"
        """
    )
    result = pytester.runpytest("-p", "no:cacheprovider", "-vv")
    result.assert_outcomes(failed=1)
    assert not hidden(result.stdout.str())
    assert r"\x1b[2J\u202e\x9b one" in result.stdout.str()


def test_lines_are_lines():
    assert lines_text(["a\nb", "c\td", "e\x1b"]) == "a\\nb\nc\td\ne\\x1b\n"
