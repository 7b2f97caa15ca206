"""One crash is one sequence of moments: each comes in order, and what is done at one is done there and told there."""

from __future__ import annotations

import pytest

from kexecemu import By, Fault, InputError, KexecError, Outcome, When
from kexecemu.campaign.fault import CampaignFault
from kexecemu.crash.dump import Dump
from kexecemu.crash.moments import crash, follow
from kexecemu.kernel.base.vmlinux import load_vmlinux
from kexecemu.machine.snapshot import Snapshots
from kexecemu.scenario.runner import crash as crash_of
from kexecemu.scenario.setup import Setup, prepare
from kexecemu.stray.models import find_model
from kexecemu.testing import run, run_result

NUMBERED = [(When.WHILE_HASHING, 0), (When.WHILE_HASHING, 128), (When.IN_CAPTURE, 1000)]


def test_moments_come_in_the_order_of_their_names_and_numbers() -> None:
    kernel, _ = prepare(Setup(cpus=2))
    seen = []
    steps = crash(kernel, wanted=[*reversed(NUMBERED)])
    while True:
        try:
            seen.append((next(steps), kernel.board.time))
        except StopIteration as stop:
            assert stop.value.outcome is Outcome.CAPTURED
            break
    moments = [at for at, _ in seen]
    assert [when for when, _ in moments] == sorted((when for when, _ in moments), key=list(When).index)
    assert set(moments) == {
        (when, 0) for when in When if when not in (When.DURING_LOAD, When.IN_CAPTURE)
    } | set(NUMBERED)
    assert [time for _, time in seen] == sorted(time for _, time in seen)
    kernel.close()


def test_who_only_looks_changes_nothing() -> None:
    one, other = (prepare(Setup(cpus=2))[0] for _ in range(2))
    plain = one.panic()
    looked = follow(crash(other, wanted=NUMBERED), {})
    assert plain.timeline.as_jsonl() == looked.timeline.as_jsonl()
    assert (plain.console, plain.instructions) == (looked.console, looked.instructions)
    one.close()
    other.close()


WRITES = [
    ("dma", "during-load", "masked"),
    ("dma", "during-panic", "detected"),
    ("cpu", "during-panic", "detected"),
    ("alias", "after-load", "detected"),
    ("alias", "during-panic", "detected"),
    ("late-cpu", "during-panic", "detected"),
    ("late-cpu", "at-jump", "detected"),
    ("dma", "at-jump", "detected"),
    ("dma", "hashing-0", "detected"),
    ("late-cpu", "hashing-0", "detected"),
    ("dma", "hashing-254", "silent"),
    ("late-cpu", "hashing-254", "silent"),
    ("dma", "after-check", "silent"),
    ("late-cpu", "after-check", "silent"),
    ("dma", "capture-1000", "latent"),
    ("late-cpu", "capture-1000", "latent"),
]


@pytest.mark.parametrize(("by", "when", "outcome"), WRITES)
def test_a_scenario_can_write_whenever_a_campaign_can(by: str, when: str, outcome: str) -> None:
    fault = Fault("initrd+0x10", flip=1, by=by, when=when)  # type: ignore[arg-type]
    result = run_result(faults=[fault], cpus=2)
    (told,) = result.end.timeline.of("fault")
    assert (told.facts["by"], result.end.outcome.value) == (by, outcome)
    cpu = {"dma": None, "late-cpu": 1}.get(by, 0)
    assert told.facts["cpu"] == result.end.injections[0].cpu == cpu
    assert told.text.startswith("DMA writes" if cpu is None else f"cpu{cpu}")
    assert result.end.injections[0].fault.when_word == when
    result.kernel.board.close()


@pytest.mark.parametrize(
    ("target", "data", "call"),
    [
        # Lengths and pointers that the load follows out of RAM: EFAULT, as for a bad pointer of user space.
        ("vmcoreinfo_size", b"\xff" * 8, "kexec_file_load"),
        ("vmcoreinfo_size", b"\xff" * 8, "kexec_load"),
        ("vmcoreinfo_data+4", b"\xff" * 4, "kexec_file_load"),
    ],
)
def test_a_load_that_follows_damaged_data_of_the_kernel_is_refused(
    target: str, data: bytes, call: str
) -> None:
    fault = Fault(f"vmlinux:{target}", write=data, by=By.DMA, when=When.DURING_LOAD)
    with pytest.raises(KexecError, match="the first kernel's own data is damaged: no RAM at") as told:
        run(faults=[fault], syscall=call)
    assert (told.value.name, told.value.step) == ("EFAULT", call)


@pytest.mark.parametrize(
    ("target", "data"),
    [
        (
            "__per_cpu_offset+4",
            bytes.fromhex("6b7af1ed5e7a5ec1"),
        ),  # a core header of nowhere is one all the same
        ("vmcoreinfo_note", bytes.fromhex("1a43eeca957a51f0")),
        ("crash_notes+4", b"\x7f" * 4),
    ],
)
def test_a_pointer_that_the_load_only_hands_on_harms_what_follows_it(target: str, data: bytes) -> None:
    end = run(faults=[Fault(f"vmlinux:{target}", write=data, by=By.DMA, when=When.DURING_LOAD)])
    assert end.outcome in (Outcome.TRAPPED, Outcome.HUNG)
    assert end.dump is Dump.NONE


def test_a_negative_pid_of_a_damaged_task_is_saved_as_one() -> None:
    vmlinux = load_vmlinux()
    pid = vmlinux.sizeof("task_struct") + vmlinux.offsetof("task_struct", "pid")
    end = run(faults=[Fault(f"vmlinux:idle_tasks+{pid:#x}", write=b"\xff" * 4, by=By.DMA)], cpus=2)
    (saved,) = [one.text for one in end.timeline.of("crash_save_cpu") if one.facts["cpu"] == 1]
    assert "(pid -1, " in saved


@pytest.mark.parametrize("protection", ["pte", "readonly", "bbml2"])
def test_protection_stops_a_late_cpu_but_no_alias(protection: str) -> None:
    late = run(
        faults=[Fault("initrd", flip=1, by=By.LATE_CPU, when=When.DURING_PANIC)],
        cpus=2,
        protection=protection,
    )
    assert late.outcome is Outcome.PREVENTED and late.injections[0].exception is not None
    alias = run(faults=[Fault("initrd", flip=1, by=By.ALIAS)], cpus=2, protection=protection)
    assert alias.outcome is Outcome.DETECTED


def test_a_store_that_is_refused_in_the_panic_means_no_dump() -> None:
    end = run(faults=[Fault("initrd", flip=1, when=When.DURING_PANIC)], protection="pte")
    assert (end.outcome, end.dump.value) == (Outcome.HUNG, "none")
    assert "Unable to handle kernel" in end.console


@pytest.mark.parametrize("target", ["purgatory:purgatory_start", "purgatory:purgatory"])
def test_a_foreign_purgatory_that_a_write_has_stopped_has_refused_nothing(target: str) -> None:
    """b . over its first instruction: it stands in an endless loop, and has hashed nothing."""
    end = run(faults=[Fault(target, write=bytes.fromhex("00000014"), by=By.DMA)], syscall="kexec_load")
    assert end.outcome is Outcome.HUNG
    assert run(faults=[Fault("initrd", flip=1)], syscall="kexec_load").outcome is Outcome.DETECTED


def test_a_fault_of_a_campaign_is_the_same_as_a_scenarios() -> None:
    one = CampaignFault.parse("dma.byte.5.initrd+10.hashing-254")
    result = crash_of("a test", Setup(), [])
    area = result.kernel.place(Fault("initrd+0x10", flip=1))
    result.kernel.board.close()
    end = run(faults=[one.fault(area)])
    (told,) = end.injections
    assert end.outcome is Outcome.SILENT and told.changed
    assert (told.phys, told.after) == (area.start, find_model("byte").data(5, told.before))


def test_a_token_that_is_not_written_as_a_campaign_does_is_told_the_right_one() -> None:
    with pytest.raises(InputError, match=r"it is written dma\.bit-flip\.2\.initrd\+1a\.after-load"):
        CampaignFault.parse("dma.bit-flip.02.initrd+01a.after-load")


def test_a_second_panic_from_the_same_snapshot_is_the_same_crash() -> None:
    kernel, _ = prepare(Setup(cpus=3))
    snapshots = Snapshots(kernel.board)
    loaded = snapshots.take()
    ends = []
    for _ in range(2):
        end = kernel.panic()
        ends.append((end.outcome, end.console, end.timeline.as_jsonl(), end.instructions))
        snapshots.restore(loaded)
        kernel.board.boot_cpu.flush_code()
    assert ends[0] == ends[1] and "stopping secondary CPUs" in ends[0][1]
    snapshots.close()
    kernel.close()


def test_who_looks_at_a_moment_sees_what_is_written_at_it() -> None:
    seen: list[bytes] = []
    fault = Fault("initrd", flip=0xFF, by=By.DMA, when=When.AT_JUMP)
    look = {fault.moment: lambda kernel: seen.append(kernel.ram.read(kernel.place(fault).start, 1))}
    result = crash_of("a test", Setup(), [fault], acts=look)
    assert seen == [result.end.injections[0].after] != [result.end.injections[0].before]
    result.kernel.board.close()


def test_a_target_that_is_not_there_is_told_before_anything_crashes() -> None:
    with pytest.raises(InputError, match="no such segment"):
        run(faults=[Fault("initrdd", flip=1, by=By.DMA, when=When.AFTER_CHECK)])


@pytest.mark.parametrize(
    ("fault", "more"),
    [
        (Fault("initrd", flip=1, by=By.DMA, when=When.WHILE_HASHING, step=256), {}),
        (Fault("initrd", flip=1, by=By.DMA, when=When.WHILE_HASHING, step=3), {"purgatory": "none"}),
        (Fault("initrd", flip=1, by=By.DMA, when=When.IN_CAPTURE, step=10**9), {}),
        (Fault("initrd", flip=1, by=By.LATE_CPU, when=When.IN_CAPTURE, step=10**9), {}),
    ],
)
def test_a_moment_that_does_not_come_is_told(fault: Fault, more: dict[str, object]) -> None:
    end = run(faults=[fault], **more)
    assert (end.outcome, end.injections) == (Outcome.CAPTURED, [])
    (missed,) = end.timeline.of("missed")
    assert missed.facts == {"moment": fault.when_word}
    assert [event.kind for event in end.timeline][-2:] == ["missed", "outcome"]


def test_what_was_to_happen_after_a_check_that_stops_has_not() -> None:
    late = Fault("initrd", flip=2, by=By.DMA, when=When.AFTER_CHECK)
    end = run(faults=[Fault("initrd", flip=1), late])
    assert (end.outcome, [one.fault.when for one in end.injections]) == (Outcome.DETECTED, [When.AFTER_LOAD])
    assert [event.facts["moment"] for event in end.timeline.of("missed")] == ["after-check"]
    assert run().timeline.of("missed") == []


def test_two_stores_in_one_panic_of_which_the_first_is_refused() -> None:
    """The panic that meets an oops of its own is the end of the CPU that stores: there is no second store."""
    faults = [Fault(f"initrd+{at:#x}", flip=1, by=By.CPU, when=When.DURING_PANIC) for at in (0x10, 0x20)]
    end = run(faults=faults, era="6.1", cpus=2)
    assert end.outcome is Outcome.HUNG
    refused, none = end.timeline.of("fault")
    assert refused.facts["trapped"] is True and none.text.endswith(
        "no CPU stores any more, the kernel is dying"
    )


def test_a_moment_is_a_part_of_the_undisturbed_run_whatever_was_written_before() -> None:
    second = Fault("crashkernel-free", write=b"\x01", by=By.DMA, when=When.WHILE_HASHING, step=1)
    for symbol in ("purgatory_sha_regions", "sha256_final"):
        first = Fault(f"purgatory:{symbol}", write=bytes(4), by=By.DMA, when=When.AT_JUMP)
        alone, both = (run(faults=faults).timeline for faults in ([second], [first, second]))
        times = [[event.when for event in one.of("fault")][-1] for one in (alone, both)]
        jump = [one.of("jump")[0].when for one in (alone, both)]
        assert times[0] - jump[0] == times[1] - jump[1]


def test_the_first_step_of_the_hashing_is_the_moment_of_the_jump() -> None:
    ends = [
        run(faults=[Fault("purgatory:sha256_init", write=bytes(4), by=By.DMA, when=when)])  # type: ignore[arg-type]
        for when in ("at-jump", "hashing-0")
    ]
    told = [(end.outcome, end.reason, end.damage, end.instructions) for end in ends]
    assert told[0] == told[1] and ends[0].damage


def test_what_the_load_wrote_over_is_said_so() -> None:
    end = run(faults=[Fault("initrd", write=b"\x5a", by=By.DMA, when=When.DURING_LOAD)])
    assert end.outcome is Outcome.MASKED and "written anew" in end.reason
