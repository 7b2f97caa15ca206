"""The report of one run: whole, well-formed, safe, and the same each time."""

from __future__ import annotations

import gzip
import re
from pathlib import Path
from time import process_time

import pytest
from html_page import NestedPage
from shipped import every_scenario

from kexecemu.machine.board import parse_size
from kexecemu.report.html import render
from kexecemu.report.picture import size_text
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import Result, crash
from kexecemu.scenario.schema import Expect, Outcome
from kexecemu.scenario.setup import Setup
from kexecemu.stray.fault import By, Fault, When

SMALL = Path(__file__).parents[1] / "data/kernel/purgatory-small.ro.gz"

_BLOCKS = {"p", "div", "li", "dt", "dd", "td", "th", "h1", "h2", "h3", "ul", "text", "summary"}
_FETCHING = {"script", "link", "img", "iframe", "object", "embed", "audio", "video", "source", "base", "form"}


class _Page(NestedPage):
    """And its text, in pieces with the element that each is directly in."""

    void = frozenset({"meta", "br", "link", "img", "hr", "input"})
    svg_empty = frozenset({"rect", "circle", "path", "polygon"})

    def __init__(self, document: str) -> None:
        self.pieces: list[tuple[str, str]] = []
        super().__init__(document)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        super().handle_starttag(tag, attrs)
        if tag in _BLOCKS:
            self.pieces.append(("", " "))

    def handle_data(self, data: str) -> None:
        self.pieces.append((self.open[-1] if self.open else "", data))

    @property
    def text(self) -> str:
        """All text that a reader sees, white space folded."""
        return " ".join("".join(data for tag, data in self.pieces if tag != "style").split())

    def inside(self, tag: str) -> str:
        """The text directly inside elements of one kind."""
        return "".join(data for here, data in self.pieces if here == tag)


def _pairs_text(page: _Page) -> str:
    return re.sub(r"\s", "", page.text)


@pytest.mark.parametrize("name", every_scenario())
def test_every_shipped_scenario_gives_a_well_formed_page(run, name):
    page = _Page(render(run(name)))
    assert page.misnested == []
    assert page.open == []
    ids = [attributes["id"] for _, attributes in page.tags if "id" in attributes]
    assert len(ids) == len(set(ids))


@pytest.mark.parametrize("name", ["golden", "dma-under-pte", "purgatory-code-stamped"])
def test_the_page_asks_for_nothing_from_outside_and_has_no_script(run, name):
    document = render(run(name))
    page = _Page(document)
    assert not _FETCHING & {tag for tag, _ in page.tags}
    assert "http" not in document.lower()
    assert "@import" not in document
    assert set(re.findall(r"url\(([^)]*)\)", document)) == {"#hatch"}
    for _, attributes in page.tags:
        assert not {"src", "href", "xlink:href"} & attributes.keys()
        assert not [key for key in attributes if key.startswith("on")]


@pytest.mark.parametrize("name", every_scenario())
def test_outcome_meaning_and_setting_are_there(run, name):
    result = run(name)
    page = _Page(render(result))
    assert page.inside("h1") == result.name
    assert ("span", {"class": "badge " + _tone(page)}) in page.tags
    assert result.end.outcome.value in page.inside("span")
    assert result.end.reason[1:] in page.text
    assert f"dump {result.end.dump.value}" in page.inside("span")
    assert result.end.dump_reason[1:] in page.text
    assert "As expected" in page.text
    scenario = read_scenario(find_scenario(name))
    assert f"first kernel's command line {scenario.kernel.cmdline}" in page.text
    ram = size_text(parse_size(scenario.machine.ram))
    era = f"kernel era {result.kernel.config.release.value}"
    for said in (f"RAM {ram}", f"CPUs {scenario.machine.cpus or 1}", f"seed {scenario.seed}", era):
        assert said in page.text


def _tone(page: _Page) -> str:
    badges = [
        str(attributes.get("class")) for _, attributes in page.tags if "badge" in str(attributes.get("class"))
    ]
    assert len(badges) == 1
    return badges[0].removeprefix("badge ")


@pytest.mark.parametrize(
    ("name", "tone"),
    [
        ("golden", "good"),
        ("stamped-under-pte", "good"),
        ("initrd-stamped", "caught"),
        ("same-value-write", "quiet"),
        ("free-memory-stamped", "quiet"),
        ("stamped-without-purgatory", "bad"),
        ("purgatory-code-stamped", "bad"),
    ],
)
def test_the_badge_says_how_bad_it_is(run, name, tone):
    assert _tone(_Page(render(run(name)))) == tone


@pytest.mark.parametrize("name", ["golden", "write-after-check", "stamped-under-pte"])
def test_every_event_and_every_console_line_is_there(run, name):
    result = run(name)
    page = _Page(render(result))
    cells = [data for tag, data in page.pieces if tag == "td"]
    for event in result.end.timeline:
        assert f"{event.when:,}" in cells
        assert event.kind in cells
        assert event.text in cells
    console = "".join(
        data for tag, data in page.pieces if tag in ("pre", "span")
    )  # the second kernel's lines are in spans
    for line in result.end.console.splitlines():
        assert line in console
    assert f"{result.end.instructions:,} in the end" in page.text


@pytest.mark.parametrize("name", ["golden", "stamped-under-pte"])
def test_every_segment_is_there_with_its_addresses_and_sizes(run, name):
    result = run(name)
    cells = [data for tag, data in _Page(render(result)).pieces if tag in ("td", "strong")]
    for segment in result.image.segments:
        at = cells.index(segment.name, cells.index("kernel"))
        first, last = f"{segment.mem:#x}", f"{segment.mem + segment.memsz - 1:#x}"
        assert cells[at + 1 : at + 5] == [first, last, f"{segment.bufsz:#x}", f"{segment.memsz:#x}"]
        covered = "yes" if segment.area in result.kernel.protected else "no"
        hashed = "yes" if segment.area in result.image.sha_regions else "no"
        assert cells[at + 5 : at + 7] == [covered, hashed]


def test_the_price_in_page_tables_is_the_timelines(run):
    result = run("stamped-under-pte")
    (booted,) = result.end.timeline.of("booted")
    text = _Page(render(result)).text
    assert f"take {booted.facts['table_pages']} pages" in text
    assert "crashkernel= is reserved too late to be mapped apart" in text


def test_expected_and_found_digest_are_there_when_they_differ(run):
    result = run("initrd-stamped")
    page = _Page(render(result))
    text = _pairs_text(page)
    verdict = result.end.verdict
    assert "expectedbythepurgatory" + verdict.expected.hex() in text
    assert "foundbythepurgatory" + verdict.found.hex() in text
    assert "The digests differ: memory is not as it was loaded." in page.text
    # Each byte that differs is marked.
    marked = [attributes for _, attributes in page.tags if attributes.get("class") == "differs"]
    assert len(marked) == sum(a != b for a, b in zip(verdict.expected, verdict.found, strict=True)) > 20


def test_a_damaged_digest_is_told_from_a_damaged_image(run):
    page = _Page(render(run("digest-stamped")))
    assert "The purgatory's own code or symbols are not as they were loaded" in page.text
    assert "found by the purgatory" not in page.text
    assert "It finds that it is not itself what was loaded, and stops." in page.text


def test_a_damaged_digest_of_a_purgatory_that_trusts_itself_is_a_false_alarm(crashed, tmp_path):
    path = tmp_path / "purgatory.ro"
    path.write_bytes(gzip.decompress(SMALL.read_bytes()))
    fault = Fault("purgatory:purgatory_sha256_digest+4", write=bytes.fromhex("00ff00ff"))
    page = _Page(render(crashed(fault, purgatory=path)))
    assert "A false alarm" in page.text
    assert len([1 for _, attributes in page.tags if attributes.get("class") == "differs"]) == 4


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"PAGE_DIGESTS": "y"}, "Damaged: initrd, 1 page."),
        ({"POLICY": "reset"}, "finds a digest that it does not expect, and resets."),
        ({"POLICY": "boot"}, "It finds that the digests differ, and jumps on all the same."),
        (
            {"POLICY": "repair", "COPY": "y"},
            "differed (initrd), were mended from the second copy, and match now.",
        ),
        ({"POLICY": "repair", "COPY": "y"}, "It finds damage, mends it from the second copy, and jumps on."),
    ],
)
def test_what_the_purgatory_did_about_damage_is_told(crashed, options, words):
    given = {f"KEXEC_PURGATORY_{name}": value for name, value in options.items()}
    result = crashed(Fault("initrd+0x1000", write=b"\xa5" * 4), config=given)
    assert words in _Page(render(result)).text


def test_a_purgatory_that_comes_to_no_kernel_is_told_by_what_kept_it(crashed):
    off = Fault("purgatory:purgatory_start", write=bytes.fromhex("000180520080b072020000d4"), by=By.DMA)
    assert "It switches off without a verdict." in _Page(render(crashed(off))).text
    entry, region = (
        Fault(f"purgatory:{symbol}", write=bytes(8), by=By.DMA, when=When.WHILE_HASHING, step=250)
        for symbol in ("purgatory_kernel_entry", "purgatory_sha_regions")
    )
    content = _Page(render(crashed(entry, region))).text
    assert "It finds the image as loaded, and starts no kernel." in content


def test_without_a_purgatory_no_digest_is_shown(run):
    page = _Page(render(run("stamped-without-purgatory")))
    assert "There is no purgatory" in page.text
    assert "stored by the load" not in page.text


def test_a_write_says_who_where_when_and_what_came_of_it(run):
    result = run("stamped-under-pte")
    (injection,) = result.end.injections
    text = _Page(render(result)).text
    assert "The MMU stopped the store, memory is intact." in text
    assert (
        f"CPU at initrd+0x1000 (physical {injection.phys:#x}), after the load: initrd, 0x1000 bytes in"
        in text
    )
    assert "protected, not hashed" in text
    assert f"Memory before {injection.before.hex()}, after {injection.before.hex()}." in text
    assert "data abort, translation fault level 3, write" in text
    result = run("write-after-check")
    (injection,) = result.end.injections
    text = _Page(render(result)).text
    assert f"DMA at initrd+0x1000 (physical {injection.phys:#x}), after the purgatory's check" in text
    assert f"Memory before {injection.before.hex()}, after a5a5a5a5." in text
    assert "Writes after the jump" in text


def test_an_exception_is_told_with_the_place_where_it_happened_and_not_where_it_was_reported(run):
    result = run("purgatory-code-stamped")
    purgatory, (stamped,) = result.end.purgatory, result.end.injections
    assert purgatory.pc != stamped.phys, "it waits for ever in its own loop, the report behind it"
    page = _Page(render(result))
    assert f"An exception ends it at {stamped.phys:#x}: undefined instruction." in page.text
    assert f"{purgatory.pc:#x}" not in page.text


def test_the_steps_end_where_the_run_ends(run):
    def steps(name: str) -> list[str]:
        page = _Page(render(run(name)))
        tones = {"good", "caught", "quiet", "bad", "none"}
        return [str(a.get("class")) for tag, a in page.tags if tag == "li" and a.get("class") in tones]

    assert steps("golden") == ["good"] * 5
    assert steps("initrd-stamped") == ["good", "bad", "good", "caught", "none"]
    assert steps("stamped-without-purgatory") == ["good", "bad", "good", "quiet", "bad"]
    assert steps("write-after-check") == ["good", "good", "good", "good", "bad", "bad"]
    assert steps("purgatory-code-stamped") == ["good", "bad", "good", "bad", "none"]


@pytest.mark.parametrize(
    ("name", "marked"),
    [
        ("golden", ["good", "good", "good"]),  # purgatory, captured, outcome
        ("initrd-stamped", ["bad", "caught", "caught"]),  # fault, purgatory, outcome
        (
            "stamped-under-pte",
            ["good", "caught", "good", "good", "good"],
        ),  # protect, oops, fault, captured, outcome
        ("same-value-write", ["quiet", "good", "good", "quiet"]),  # fault, purgatory, captured, outcome
        ("purgatory-code-stamped", ["bad", "bad", "bad"]),  # fault, purgatory, outcome
    ],
)
def test_the_timeline_marks_faults_and_verdicts(run, name, marked):
    page = _Page(render(run(name)))
    assert [
        attributes["class"] for tag, attributes in page.tags if tag == "tr" and "class" in attributes
    ] == marked


def test_a_purgatory_that_keeps_no_record_is_not_said_to_have_checked(run):
    found, skipped = (_Page(render(run(f"kexec-load-{name}"))) for name in ("stamped", "check-switched-off"))
    for page in (found, skipped):
        assert "loaded by kexec_load" in page.text
        assert "purgatory kexec-tools'" in page.text
        assert "expected by the purgatory" not in page.text
    assert "The digests differ. This purgatory keeps no record" in found.text
    assert "It left no record of whether it checked." in skipped.text
    assert "finds the digest it expects" not in skipped.text
    assert "The digests match" not in skipped.text


def test_an_overwritten_record_is_told_from_none(crashed):
    # The digest after it stays as it is, so that the purgatory boots all the same.
    fault = Fault("purgatory:purgatory_verdict", write=b"\xff", by=By.DMA)
    page = _Page(render(crashed(fault)))
    assert "record of what it compared was overwritten" in page.text


def test_the_console_shows_who_speaks(run):
    for name in ("golden", "kexec-load-stamped"):
        page = _Page(render(run(name)))
        spoken = "".join(data for tag, data in page.pieces if tag == "span")
        for line in run(name).end.console.splitlines():
            assert (line in spoken) == (not line.startswith("["))


@pytest.mark.real
def test_a_real_capture_kernel_speaks_for_itself_and_its_dump_is_told(run):
    result = run("debian-captures")
    page = _Page(render(result))
    spoken = [data for tag, data in page.pieces if tag == "span"]
    linux = result.end.capture.linux
    assert "Booting Linux on physical CPU" in linux.console.splitlines()[0]
    assert set(linux.console.splitlines()) <= set(spoken)
    assert not any("Starting crashdump kernel" in line for line in spoken)  # that was the first one
    size = f"{linux.vmcore.size / (1 << 20):.1f} MiB"
    assert f"Linux {linux.release} copies a dump of {size} to a disk, all of it as memory was." in page.text


def test_what_was_not_as_expected_is_told():
    result = crash("a crash", Setup(), [], expect=Expect(outcome=Outcome.DETECTED))
    text = _Page(render(result)).text
    assert "Not as expected outcome is captured, expected detected" in text
    assert "As expected" not in text


def test_many_writes_are_all_told(crashed):
    faults = [Fault(f"initrd+{number:#x}", write=b"\xff", by=By.DMA) for number in range(0, 0x3000, 0x400)]
    page = _Page(render(crashed(*faults)))
    assert len(faults) == 12
    for fault in faults:
        assert f"DMA at {fault.at} (physical" in page.text
    assert "and 4 more" in page.text  # in the list
    assert "and 6 more" in page.text  # in the picture


_HOSTILE = (
    '</title></h1></style><script>alert(1)</script><img src=x onerror="alert(2)"> & \' " ]]> '
    "{{ 7*7 }} {% raw %}"
)


def test_a_hostile_name_is_text_and_nothing_else(crashed):
    page = _Page(render(crashed(name=_HOSTILE)))
    assert page.inside("h1") == _HOSTILE
    assert page.inside("title").startswith(f"captured: {_HOSTILE}")
    assert page.misnested == []
    assert not _FETCHING & {tag for tag, _ in page.tags}


def test_a_hostile_command_line_is_text_in_setting_and_console(crashed):
    words = "crashkernel=128M note=<script>alert(1)</script> </pre>"
    page = _Page(render(crashed(cmdline=words)))
    assert words in page.inside("dd")
    assert f"Kernel command line: {words}" in page.inside("pre")
    assert page.misnested == []
    assert not _FETCHING & {tag for tag, _ in page.tags}


def test_control_characters_are_shown_and_not_passed_on(crashed):
    document = render(crashed(name="a\x00b\x1b[31mc\rd\x7f"))
    assert r"<h1>a\x00b\x1b[31mc\x0dd\x7f</h1>" in document
    assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f]", document)


def test_the_same_run_gives_the_same_bytes(run, crashed):
    fault = Fault("initrd+0x1000", write=b"\xa5", by=By.DMA, when=When.BEFORE_PANIC)
    once, again = (render(crashed(fault, protection="readonly", cpus=3, seed=7)) for _ in range(2))
    assert once.encode() == again.encode()
    assert render(run("golden")) == render(run("golden"))


def test_rendering_takes_no_time_worth_mentioning(run):
    result: Result = run("dma-under-pte")
    took = []
    for _ in range(3):
        start = process_time()
        render(result)
        took.append(process_time() - start)
    assert min(took) < 0.3
