"""A second machine agrees: QEMU goes on from the jump, and console, verdict and memory come out the same."""

from __future__ import annotations

import shutil
import struct
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from qemu_machine import LIMIT_SECONDS, Qemu

from kexecemu.crash.handoff import Handoff, write_handoff
from kexecemu.crash.kernel import Kernel
from kexecemu.data import fixture_path
from kexecemu.formats.fdt import Fdt
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.machine.cpu.exceptions import Pstate
from kexecemu.machine.cpu.sysregs import SYSREGS
from kexecemu.machine.ranges import PhysRange, subtract
from kexecemu.scenario.runner import Result, crash
from kexecemu.scenario.setup import Setup, prepare
from kexecemu.stray.fault import By, Fault, When

pytestmark = [
    pytest.mark.real,
    pytest.mark.skipif(
        shutil.which("qemu-system-aarch64") is None, reason="qemu-system-aarch64 is not installed"
    ),
]

RAM_BASE = 0x40000000
SMALL = {"ram": "128M", "cmdline": "crashkernel=32M"}


@dataclass
class Crash:
    """One crash, followed to its end here, and handed over at the jump."""

    result: Result
    handoff: Handoff
    before: int
    """Bytes that were on the console at the jump."""

    @property
    def console(self) -> bytes:
        return bytes(self.result.kernel.board.uart.output[self.before :])


@dataclass(frozen=True)
class Case:
    """What is written where, and what is to come of it here."""

    outcome: str
    faults: Sequence[Fault] = ()
    options: Mapping[str, str] = field(default_factory=dict)
    purgatory: str = "default"
    syscall: str = "kexec_file_load"


def crash_and_hand_over(
    folder: Path, case: Case, *, setup: Mapping[str, object] = SMALL, **handoff: object
) -> Crash:
    taken: list[tuple[Handoff, int]] = []

    def at_jump(kernel: Kernel) -> None:
        assert kernel.image is not None
        written = write_handoff(folder, kernel, kernel.image, **handoff)  # type: ignore[arg-type]
        taken.append((written, len(kernel.board.uart.output)))

    chosen = Setup(**setup, config=case.options, purgatory=case.purgatory, syscall=case.syscall)  # type: ignore[arg-type]
    result = crash("a crash in two machines", chosen, list(case.faults), acts={(When.AT_JUMP, 0): at_jump})
    [(written, before)] = taken
    return Crash(result, written, before)


def differences(ours: bytes, theirs: bytes, base: int) -> list[str]:
    """The pages that differ, with the first bytes that do."""
    assert len(ours) == len(theirs)
    found = []
    for page in range(0, len(ours), 4096):
        one, other = ours[page : page + 4096], theirs[page : page + 4096]
        if one != other:
            at = next(n for n in range(len(one)) if one[n] != other[n])
            found.append(
                f"{base + page + at:#x}: {one[at : at + 16].hex()} there {other[at : at + 16].hex()}"
            )
    return found


def at(target: str, data: str = "a5", by: By = By.DMA) -> Fault:
    return Fault(target, write=bytes.fromhex(data), by=by)


def flip(target: str) -> Fault:
    return Fault(target, flip=0x10, by=By.DMA)


# Where flags are in struct purgatory_verdict, and the one that says that it ran at EL2.
FLAGS = 88
AT_EL2 = 1 << 3
REPAIR = {"KEXEC_PURGATORY_POLICY": "repair", "KEXEC_PURGATORY_COPY": "y"}
PLAIN = {"KEXEC_PURGATORY_MMU": "n", "KEXEC_PURGATORY_CRYPTO": "n"}

# What the first kernel's system registers are can be read at EL1 and EL2 alike.
SYSTEM = (
    "SCTLR_EL1",
    "CPACR_EL1",
    "TTBR0_EL1",
    "TTBR1_EL1",
    "TCR_EL1",
    "SPSR_EL1",
    "ELR_EL1",
    "SP_EL0",
    "ESR_EL1",
    "FAR_EL1",
    "PAR_EL1",
    "MAIR_EL1",
    "VBAR_EL1",
    "CONTEXTIDR_EL1",
    "TPIDR_EL1",
    "TPIDR_EL0",
    "TPIDRRO_EL0",
)
SPECIAL = {"SCTLR_EL1": 0x30500800, "CPACR_EL1": 3 << 20}

SAME = (fixture_path("guests/initrd.cpio").read_bytes()[0x1000:0x1004]).hex()

CASES = {
    "nothing": Case("captured"),
    "kernel text": Case("detected", [flip("kernel+0x1000")]),
    "initrd": Case("detected", [at("initrd+0x1000", "a5a5a5a5", By.CPU)]),
    "initrd's last byte": Case("detected", [flip("initrd+0x18fff")]),
    "device tree": Case("detected", [flip("dtb+0x100")]),
    "elfcorehdr": Case("detected", [flip("elfcorehdr+0x40")]),
    "two segments": Case("detected", [flip("kernel+0x8000"), flip("initrd")]),
    "stored digest": Case("detected", [flip("purgatory:purgatory_sha256_digest+4")]),
    "region table": Case("detected", [flip("purgatory:purgatory_sha_regions+8")]),
    "kernel's entry": Case("detected", [flip("purgatory:purgatory_kernel_entry+2")]),
    "free memory": Case("latent", [at("crashkernel-free+0x1000")]),
    "the same value": Case("masked", [at("initrd+0x1000", SAME)]),
    "start of RAM": Case("latent", [at("0x40000000", "d00dfeed"), at("0x4003fff8"), at("0x400ffffc")]),
    "no purgatory": Case("silent", [flip("initrd+0x1000")], purgatory="none"),
    "no purgatory, the kernel's code": Case("hung", [at("kernel+0x40", "ff" * 8)], purgatory="none"),
    "the record's magic": Case("latent", [at("purgatory:purgatory_verdict", "ff" * 16)]),
    "no console": Case("detected", [at("purgatory:purgatory_uart_base", "00" * 8)]),
    "the first instruction": Case("trapped", [at("purgatory", "00000000")]),
    "code on the way": Case("trapped", [at("purgatory:sha256_update", "00000000")]),
    "table of pages": Case(
        "detected", [flip("initrd+0x1000"), flip("kernel+0x3000")], {"KEXEC_PURGATORY_PAGE_DIGESTS": "y"}
    ),
    "repair": Case("detected", [flip("initrd+0x1000")], REPAIR),
    "caches off": Case("detected", [flip("initrd")], {"KEXEC_PURGATORY_MMU": "n"}),
    "without SHA-2 instructions": Case("detected", [flip("initrd")], {"KEXEC_PURGATORY_CRYPTO": "n"}),
    "checked early, too": Case("captured", [], {"KEXEC_PURGATORY_EARLY_CHECK": "y"}),
    "kexec-tools' purgatory": Case("detected", [flip("initrd")], syscall="kexec_load"),
}
SILENT = ("no console", "the first instruction")


@pytest.mark.parametrize("name", CASES)
def test_qemu_comes_to_the_same_end(name: str, tmp_path: Path) -> None:
    case = CASES[name]
    both = crash_and_hand_over(tmp_path, case)
    assert both.result.end.outcome.value == case.outcome
    assert bool(both.console) == (name not in SILENT)
    compare(both)


def compare(both: Crash, *, same_cpu: bool = True) -> None:
    """Console byte for byte, the verdict's record, and then all of RAM.

    The purgatory's own memory may differ where it has asked another CPU what that can do.
    """
    kernel = both.result.kernel
    with Qemu(both.handoff) as qemu:
        qemu.wait_for_console(both.console)
        if not kernel.board.boot_cpu.powered:
            qemu.wait_for_shutdown()
        assert qemu.console.decode() == both.console.decode()
        purgatory = both.result.image.purgatory
        if purgatory is not None and purgatory.has_symbol("purgatory_verdict"):
            record = PhysRange.of(*purgatory.symbol_table()["purgatory_verdict"])
            found = kernel.ram.read(record.start, record.size)
            assert qemu.memory_once_it_is(found, record.start) == found
        if same_cpu or purgatory is None:
            areas = list(kernel.ram.banks)
        else:
            areas = subtract(kernel.ram.banks, [purgatory.segment.area])
        for area in areas:
            ours = kernel.ram.read(area.start, area.size)
            assert differences(ours, qemu.memory_once_it_is(ours, area.start), area.start) == []


@pytest.mark.parametrize("policy", ["reset", "off", "boot"])
def test_qemu_does_the_same_after_a_mismatch(policy: str, tmp_path: Path) -> None:
    both = crash_and_hand_over(
        tmp_path, Case("", [flip("initrd+0x1000")], {"KEXEC_PURGATORY_POLICY": policy})
    )
    assert b"digests do NOT match" in both.console
    compare(both)


def test_qemu_returns_to_the_first_kernel_as_well(tmp_path: Path) -> None:
    case = Case("", [flip("initrd+0x1000")], {"KEXEC_PURGATORY_POLICY": "return"})
    both = crash_and_hand_over(tmp_path, case)
    # What that kernel says is said by the model, which QEMU has not.
    console, word, _ = both.console.partition(b"purgatory: returning\r\n")
    assert word
    with Qemu(both.handoff) as qemu:
        qemu.wait_for_console(console + word)
        assert qemu.console == console + word


@pytest.fixture
def by_smc(tmp_path: Path) -> dict[str, object]:
    """A setup whose device tree says what is true at EL2: the firmware listens to SMC."""
    tree = virt_device_tree([PhysRange.of(RAM_BASE, 128 << 20)], 1, 0x09000000).replace(b"hvc\0", b"smc\0")
    psci = Fdt(tree).path_offset("/psci")
    assert psci is not None and Fdt(tree).get_strings(psci, "method") == ["smc"]
    (tmp_path / "dtb").write_bytes(tree)
    return {"dtb": tmp_path / "dtb", "cmdline": SMALL["cmdline"]}


@pytest.mark.parametrize("fault", [None, "initrd+0x1000"])
@pytest.mark.parametrize("cpu_model", ["cortex-a57", "max,sme=off"])
@pytest.mark.parametrize("options", [{}, PLAIN], ids=["caches on", "caches off"])
def test_qemu_agrees_at_el2(
    options: Mapping[str, str], cpu_model: str, fault: str | None, by_smc: dict[str, object], tmp_path: Path
) -> None:
    case = Case("", [flip(fault)] if fault else [], options)
    both = crash_and_hand_over(tmp_path / "handoff", case, setup=by_smc, el=2, cpu_model=cpu_model)
    console = both.console.replace(b"EL1", b"EL2")
    kernel = both.result.kernel
    assert both.result.image.purgatory is not None
    record = PhysRange.of(*both.result.image.purgatory.symbol_table()["purgatory_verdict"])
    ours = bytearray(kernel.ram.read(record.start, record.size))
    ours[FLAGS] |= AT_EL2
    with Qemu(both.handoff) as qemu:
        qemu.wait_for_console(console)
        if fault is None:
            qemu.wait_for_shutdown()
        assert qemu.console.decode() == console.decode()
        assert qemu.memory_once_it_is(bytes(ours), record.start) == ours


@pytest.mark.parametrize("fault", [None, "initrd+0x1000"])
def test_qemu_agrees_as_the_newest_cpu(fault: str | None, tmp_path: Path) -> None:
    both = crash_and_hand_over(tmp_path, Case("", [flip(fault)] if fault else []), cpu_model="max,sme=off")
    compare(both, same_cpu=False)


@pytest.mark.parametrize("el", [1, 2])
def test_no_access_is_misaligned_with_the_caches_off(el: int, tmp_path: Path) -> None:
    # With SCTLR_ELx.A set QEMU refuses what silicon refuses while the MMU is off.
    both = crash_and_hand_over(
        tmp_path, Case("", [flip("kernel+0x1003")], PLAIN), el=el, alignment_checks=True
    )
    assert b"digests do NOT match" in both.console
    with Qemu(both.handoff) as qemu:
        qemu.wait_for_console(both.console)
        assert qemu.console.decode() == both.console.decode()


@pytest.mark.parametrize("policy", ["reset", "off"])
def test_the_firmware_is_called_by_smc_at_el2(policy: str, by_smc: dict[str, object], tmp_path: Path) -> None:
    case = Case("", [flip("initrd")], {"KEXEC_PURGATORY_POLICY": policy})
    both = crash_and_hand_over(tmp_path / "handoff", case, setup=by_smc, el=2)
    with Qemu(both.handoff) as qemu:
        qemu.wait_for_shutdown()
        assert b"digests do NOT match" in qemu.console


@pytest.mark.parametrize("cpus", [2, 9])
def test_the_script_runs_qemu(cpus: int, tmp_path: Path) -> None:
    both = crash_and_hand_over(tmp_path, Case("captured"), setup={**SMALL, "cpus": cpus})
    done = subprocess.run(
        [str(both.handoff.script)], stdin=subprocess.DEVNULL, capture_output=True, timeout=LIMIT_SECONDS
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, both.console, b"")


@pytest.mark.parametrize(
    "case",
    [
        Case("detected", [flip("initrd")]),
        Case("trapped", [at("purgatory", "00000000")]),
        Case("detected", [flip("initrd")], syscall="kexec_load"),
    ],
    ids=["ours", "ours, trapped before it says a word", "kexec-tools'"],
)
def test_the_script_ends_when_the_cpu_has_stopped_for_good(case: Case, tmp_path: Path) -> None:
    both = crash_and_hand_over(tmp_path, case)
    assert both.result.end.outcome == case.outcome
    done = subprocess.run(
        [str(both.handoff.script)], stdin=subprocess.DEVNULL, capture_output=True, timeout=2 * LIMIT_SECONDS
    )
    assert (done.returncode, done.stdout) == (3, both.console)
    assert done.stderr == b"run-qemu.sh: the boot CPU has stopped for good; QEMU is ended\n"


def test_the_script_waits_for_whom_has_stopped_the_machine_to_look_at_it(tmp_path: Path) -> None:
    both = crash_and_hand_over(tmp_path, Case("detected", [flip("initrd")]))
    with subprocess.Popen([str(both.handoff.script), "-S"], stdin=subprocess.DEVNULL) as script:
        with pytest.raises(subprocess.TimeoutExpired):
            script.wait(8)
        script.terminate()
        assert script.wait(LIMIT_SECONDS) == 143


@pytest.mark.parametrize(
    ("el", "cpu_model"), [(1, "cortex-a57"), (1, "max,sme=off"), (2, "cortex-a57"), (2, "max,sme=off")]
)
def test_every_register_arrives(el: int, cpu_model: str, tmp_path: Path) -> None:
    kernel, image = prepare(Setup(**SMALL))  # type: ignore[arg-type]
    kernel.crash()
    cpu = kernel.board.boot_cpu
    buffer_phys = RAM_BASE + 0x100000
    # At the entry: store all that MRS can read, beginning with x0 and x1 themselves, and stay.
    code = [0xA9000440]  # stp x0, x1, [x2]
    code += [0x91004042]  # add x2, x2, #16
    for name in SYSTEM:
        op0, op1, crn, crm, op2 = SYSREGS[name]
        code += [0xD5200000 | op0 << 19 | op1 << 16 | crn << 12 | crm << 8 | op2 << 5]  # mrs x0, name
        code += [0xF8008440]  # str x0, [x2], #8
    code += [0x14000000]  # b .
    kernel.ram.write(image.start, struct.pack(f"<{len(code)}I", *code))
    for number in range(31):
        if cpu.x(number) != image.start:
            cpu.set_x(number, 0x0123456789AB0000 + number)
    cpu.set_x(2, buffer_phys)
    for number, name in enumerate(SYSTEM, 1):
        cpu.set_sysreg(name, SPECIAL.get(name, number << 12))
    cpu.pstate = cpu.pstate & ~Pstate.NZCV | 0b0101 << 28
    expected = cpu.registers()
    with Qemu(write_handoff(tmp_path, kernel, image, el=el, cpu_model=cpu_model)) as qemu:
        qemu.wait_for_pc(image.start + 4 * (len(code) - 1))
        assert qemu.register("PSTATE") & (Pstate.NZCV | Pstate.DAIF) == 0b0101 << 28 | Pstate.DAIF
        assert qemu.register("PSTATE") >> 2 & 3 == el
        assert qemu.register("SP") == expected["sp"]
        for number in range(3, 31):
            assert qemu.register(f"X{number:02}") == expected[f"x{number}"], number
        words = struct.iter_unpack("<Q", qemu.memory(PhysRange.of(buffer_phys, 8 * (2 + len(SYSTEM)))))
        found = [word for (word,) in words]
        assert found[:2] == [expected["x0"], expected["x1"]]
        assert dict(zip(SYSTEM, found[2:], strict=True)) == {name: expected[name] for name in SYSTEM}
