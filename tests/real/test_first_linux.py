"""A real Linux as first kernel and another as capture kernel: Debian's, its kexec-tools, and faults in between."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from kexecemu.crash.end import End
from kexecemu.crash.moments import crash as moments_of
from kexecemu.crash.moments import follow
from kexecemu.crash.outcome import Outcome
from kexecemu.data import shipped_scenarios
from kexecemu.errors import InputError, NotFetched
from kexecemu.formats.elf import PT_LOAD
from kexecemu.formats.elfcore import parse_core_header
from kexecemu.linux.capture import load_digests
from kexecemu.linux.first import FirstLinux
from kexecemu.linux.first_records import iomem
from kexecemu.machine.ranges import PhysRange
from kexecemu.scenario.linux_setup import linux_setup
from kexecemu.scenario.read import find_scenario, read_scenario
from kexecemu.scenario.runner import Result, run_scenario, scenario_setup
from kexecemu.scenario.schema import Scenario
from kexecemu.stray.fault import By, Fault
from kexecemu.stray.inject import inject
from kexecemu.testing import run_result

if TYPE_CHECKING:
    from tests.real.conftest import Command

pytestmark = pytest.mark.real

STAMP = b"\xa5\xa5\xa5\xa5"


def scenario(name: str) -> Scenario:
    return read_scenario(find_scenario(name))


REAL = [name for name in shipped_scenarios() if scenario(name).kernel.linux is not None]


def crash(linux: FirstLinux) -> End:
    return follow(moments_of(linux, linux=True), {})


def run(name: str) -> Result:
    try:
        return run_scenario(scenario(name), Path())
    except NotFetched as error:
        pytest.skip(str(error))


@pytest.fixture
def needs(fetched: Callable[[str], Path]) -> None:
    """Skip unless everything is there."""
    for name in ("kernel", "busybox", "kexec-tools"):
        fetched(name)


@pytest.fixture
def loaded(needs: None) -> Callable[..., FirstLinux]:
    """Machines of the scenario linux-captures, or with something changed, that have loaded their crash kernel."""

    def load(**changes: object) -> FirstLinux:
        setup = linux_setup(scenario_setup(scenario("linux-captures"), Path()))
        linux = FirstLinux(replace(setup, **changes))  # type: ignore[arg-type]
        linux.load()
        return linux

    return load


@pytest.fixture(scope="module")
def captured() -> Result:
    """One run of linux-captures."""
    return run("linux-captures")


@pytest.mark.parametrize("name", [name for name in REAL if name != "linux-captures"])
def test_a_scenario_of_two_real_kernels_ends_as_it_says(name: str) -> None:
    result = run(name)
    assert result.mismatches == []
    assert result.expected


def test_two_runs_give_the_same_console_timeline_and_dump(captured: Result, tmp_path: Path) -> None:
    dumps = []
    results = [captured, run("linux-captures")]
    assert captured.mismatches == []
    for number, result in enumerate(results):
        assert result.end.vmcore is not None
        result.end.vmcore.write(tmp_path / str(number))
        dumps.append((tmp_path / str(number)).read_bytes())
    first, second = (result.end for result in results)
    assert first.console == second.console
    assert first.timeline.as_jsonl() == second.timeline.as_jsonl()
    assert dumps[0] == dumps[1]


def test_the_dump_is_the_crashed_machines_memory_and_says_whose_it_is(captured: Result) -> None:
    result = captured
    assert result.end.capture is not None
    linux = result.end.capture.linux
    assert linux is not None
    # All of RAM but the crash region, and the kernel once more; the first kernel's memory has not changed since.
    records = result.kernel.records
    (ram,) = [area for _, area, name in iomem(records["iomem.txt"]) if name == "System RAM"]
    region = result.kernel.crashk_res
    assert region is not None
    text, *loads = linux.read
    assert [load.phys for load in loads] == [
        PhysRange(ram.start, region.start),
        PhysRange(region.end, ram.end),
    ]
    assert load_digests(result.kernel.ram, [text.phys, *(load.phys for load in loads)]) == linux.read
    assert linux.release == result.kernel.release
    assert f"kdump: OSRELEASE={result.kernel.release}" in result.end.console


def test_what_kexec_says_is_what_memory_holds(loaded: Callable[..., FirstLinux]) -> None:
    linux = loaded()
    # The core header, by the kernel's own reading of it, against the lines of kexec -d.
    core = linux.image.segment("elfcorehdr")
    assert core is not None
    headers = parse_core_header(linux.ram.read(core.mem, core.memsz)).program_headers
    said = [(one.type, one.phys, one.virt, one.size) for one in linux.said.headers]
    assert [(one.type, one.paddr, one.vaddr, one.memsz) for one in headers] == said
    assert [one.type for one in headers].count(PT_LOAD) == 3
    # The page of vmcoreinfo that the kernel keeps in the crash region, behind the segments: no free memory.
    control = linux.image.control_pages
    assert linux.ram.read(control[1].start, 10) == b"OSRELEASE="
    assert not any(linux._area("crashkernel-free").overlaps(page) for page in control)


def test_another_seed_moves_the_kernel_and_nothing_else(loaded: Callable[..., FirstLinux]) -> None:
    one, other = loaded(seed=1), loaded(seed=2)
    texts = {
        re.search(r"SYMBOL\(_stext\)=(\w+)", linux.records["vmcoreinfo.txt"])[1] for linux in (one, other)
    }  # type: ignore[index]
    assert len(texts) == 2
    assert [segment.area for segment in one.image.segments] == [
        segment.area for segment in other.image.segments
    ]


@pytest.mark.parametrize("cpus", [4])
def test_several_cpus_come_up_and_are_stopped_at_the_crash(
    loaded: Callable[..., FirstLinux], cpus: int
) -> None:
    linux = loaded(cpus=cpus)
    assert f"SMP: Total of {cpus} processors activated." in linux.records["dmesg.txt"]
    end = crash(linux)
    assert end.outcome is Outcome.CAPTURED, end.timeline.as_jsonl()
    assert "SMP: stopping secondary CPUs" in end.console
    assert "failed to stop" not in end.console


def test_free_memory_that_is_stamped_is_latent_and_the_same_value_is_masked(
    loaded: Callable[..., FirstLinux],
) -> None:
    linux = loaded()
    inject(linux, Fault("crashkernel-free+0x1000", write=STAMP, by=By.DMA))
    assert crash(linux).outcome is Outcome.LATENT
    linux = loaded()
    before = linux.ram.read(linux._area("initrd").start, 1)
    inject(linux, Fault("initrd", write=before, by=By.DMA))
    assert crash(linux).outcome is Outcome.MASKED


def test_a_purgatory_whose_code_is_damaged_ends_otherwise_than_by_its_check(
    loaded: Callable[..., FirstLinux],
) -> None:
    linux = loaded()
    # No instruction: the vectors are the dead kernel's, which is not mapped any more.
    inject(linux, Fault("purgatory:purgatory", write=bytes(4), by=By.DMA))
    end = crash(linux)
    assert end.outcome is Outcome.TRAPPED
    assert [damage.segment for damage in end.damage] == ["purgatory"]


def test_a_damaged_kernel_that_nobody_checks_is_found_out_by_running_it(
    loaded: Callable[..., FirstLinux],
) -> None:
    linux = loaded(checks=False)
    assert linux.image.digest is None
    # b . at the entry: the second Linux stands there for ever.
    inject(linux, Fault("kernel", write=(0x14000000).to_bytes(4, "little"), by=By.DMA))
    end = crash(linux)
    assert end.outcome is Outcome.HUNG
    assert end.capture is not None
    assert end.capture.pc == linux.image.kernel_entry


def test_stores_of_every_width_do_what_dma_does(loaded: Callable[..., FirstLinux]) -> None:
    linux = loaded()
    console = linux.board.uart.text
    # Outside the crash region the linear map is writable.
    spare = linux.said.headers[-1].phys - linux.crashk_res.size - 0x400000  # type: ignore[union-attr]
    for width in (1, 2, 4, 8):
        data = bytes(range(width, width + 16))
        injection = inject(linux, Fault(f"{spare:#x}", write=data, width=width))
        assert injection.exception is None
        assert linux.ram.read(spare, 16) == data
        inject(linux, Fault(f"{spare:#x}", write=injection.before, by=By.DMA))
    assert linux.board.uart.text == console
    assert crash(linux).outcome in (Outcome.CAPTURED, Outcome.MASKED)


def test_a_first_linux_that_loads_nothing_says_why(loaded: Callable[..., FirstLinux]) -> None:
    with pytest.raises(InputError, match=r"kexec failed with status"):
        loaded(cmdline="nokaslr")


def test_a_kernel_without_kexec_file_load_says_so(loaded: Callable[..., FirstLinux]) -> None:
    """Debian's have no CONFIG_KEXEC_FILE; what that call leaves in memory is in linux/test_first_found.py."""
    with pytest.raises(InputError, match="syscall kexec_file_load not available"):
        loaded(syscall="kexec_file_load", checks=False)


def test_the_command_prints_the_object_of_every_run_and_writes_the_dump(
    needs: None, command: Callable[..., Command], tmp_path: Path
) -> None:
    vmcore, timeline = tmp_path / "vmcore", tmp_path / "timeline.jsonl"
    done = command("run", "linux-captures", "--json", "--vmcore", vmcore, "--timeline", timeline)
    assert done.status == 0, done.stderr
    value = done.json
    # The contract's keys, whatever the first kernel is.
    for key in (
        "outcome",
        "as_expected",
        "crashkernel",
        "crashkernel_low",
        "segments",
        "entry",
        "digest",
        "damage",
    ):
        assert key in value
    assert (value["outcome"], value["vmlinux"], value["vmcore"]) == ("captured", None, str(vmcore))
    names = [segment["name"] for segment in value["segments"]]
    assert sorted(names) == ["dtb", "elfcorehdr", "initrd", "kernel", "purgatory"]
    assert value["crashkernel"]["start"] == value["segments"][names.index("kernel")]["mem"]
    assert value["crashkernel"]["end"] == value["segments"][names.index("elfcorehdr")]["mem"] + 0xFFF
    assert vmcore.stat().st_size == value["linux"]["vmcore_bytes"]
    assert parse_core_header(vmcore.read_bytes()[:4096]).program_headers
    assert all(load["same"] for load in value["linux"]["loads"])
    events = [json.loads(line) for line in timeline.read_text().splitlines()]
    assert [event["kind"] for event in events if event["kind"] != "segment"] == [
        "boot",
        "loaded",
        "panic",
        "jump",
        "purgatory",
        "capture",
        "captured",
        "outcome",
    ]


@pytest.mark.usefixtures("needs")
def test_the_command_writes_a_page_and_the_hand_over_of_a_real_first_kernel(
    command: Callable[..., Command], tmp_path: Path
) -> None:
    page, folder = tmp_path / "x.html", tmp_path / "x"
    done = command("run", "linux-captures", "--html", page, "--handoff", folder)
    assert (done.status, done.stderr) == (0, "")
    assert "kexec_load, kexec-tools" in page.read_text()
    assert (folder / "run-qemu.sh").is_file() and (folder / "state.json").is_file()


@pytest.mark.usefixtures("needs")
@pytest.mark.parametrize(
    ("when", "outcome"),
    [("hashing-254", Outcome.SILENT), ("after-check", Outcome.SILENT), ("at-jump", Outcome.DETECTED)],
)
def test_dma_hits_a_real_crash_at_every_moment(when: str, outcome: Outcome) -> None:
    result = run_result("linux-captures", faults=[Fault("initrd+0x1000", flip=1, by=By.DMA, when=when)])  # type: ignore[arg-type]
    (told,) = result.end.timeline.of("fault")
    assert result.end.injections[0].changed and told.facts["by"] == "dma"
    assert result.end.outcome is outcome or (
        outcome is Outcome.SILENT and result.end.outcome is Outcome.TRAPPED
    )
    result.kernel.board.close()


def late(kernel: str, stuck: list[int], when: str, folder: Path, at: str = "initrd+8") -> Result:
    """A run whose late CPU is the first of those that are stuck."""
    (folder / "late.toml").write_text(
        f"""schema = 1
        name = "late"
        [machine]
        cpus = 2
        stuck_cpus = {stuck}
        [kernel]
        linux = "fetched:{kernel}"
        cmdline = "crashkernel=256M"
        [[fault]]
        by = "late-cpu"
        at = "{at}"
        write = "ff"
        when = "{when}"
        """
    )
    try:
        return run_scenario(read_scenario(folder / "late.toml"), folder)
    except NotFetched as error:
        pytest.skip(str(error))


def late_or_crashing(kernel: str, when: str, folder: Path) -> dict[int, Result | InputError]:
    """By the number of the CPU that is to be late: which of the two crashes is the scheduler's affair."""
    found: dict[int, Result | InputError] = {}
    for cpu in (0, 1):
        try:
            found[cpu] = late(kernel, [cpu], when, folder)
        except InputError as error:
            found[cpu] = error
    return found


@pytest.mark.parametrize("when", ["during-panic", "at-jump", "hashing-20"])
def test_a_late_cpu_of_linux_stores_at_every_moment_and_is_named(when: str, tmp_path: Path) -> None:
    found = late_or_crashing("kernel-trixie", when, tmp_path)
    ((cpu, result),) = [(cpu, one) for cpu, one in found.items() if isinstance(one, Result)]
    # Its MMU is off by then, which is no word about the linear map.
    assert f"no store by late-cpu: cpu{1 - cpu} crashes, name another" in str(found[1 - cpu])
    (told,) = result.end.timeline.of("fault")
    assert told.text.startswith(f"cpu{cpu}, which did not stop, stores ff at initrd+8 (")
    assert (told.facts["cpu"], result.end.injections[0].cpu) == (cpu, cpu)
    assert result.end.injections[0].changed
    assert result.end.outcome is Outcome.DETECTED
    assert [(one.segment, one.offset) for one in result.end.damage] == [("initrd", 8)]
    result.kernel.board.close()


def test_a_late_cpu_whose_store_is_refused_goes_on_in_its_loop(tmp_path: Path) -> None:
    """Debian's 6.1 takes the crash region out of its linear map: the stuck CPU runs nothing of an oops."""
    result = late("kernel", [0], "hashing-20", tmp_path)
    (injection,) = result.end.injections
    assert injection.exception is not None and not injection.changed
    assert (injection.cpu, injection.exception.cpu) == (0, 0)
    assert result.end.outcome is Outcome.PREVENTED
    result.kernel.board.close()
