"""Which command of which tool shows what is in a dump of which era: the table of docs/dump-tools.md, by running all.

    python tests/real/dump_commands.py               print the table
    python tests/real/dump_commands.py --write       put it into docs/dump-tools.md
    ... --tell                                       what was said where it is "no"

A cell says "works" where the tool ran without a complaint and showed what is so in the dump, "no" where it did not.
Nothing is in the table that was not run; test_dump_commands.py holds the file to it.
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from kexecemu.fetch import cache

TOP = Path(__file__).resolve().parents[2]
DOCS = TOP / "docs" / "dump-tools.md"
BEGIN, END = "<!-- made by tests/real/dump_commands.py -->", "<!-- end -->"


class Kind(NamedTuple):
    """A column: a kernel, and the tools of a Debian that has such a one."""

    era: str
    bits: int
    target: str


KINDS = {
    "6.1": Kind("6.1", 48, "dumptools"),
    "6.12": Kind("6.12", 52, "dumptools-trixie"),
    "6.12, 48 bits": Kind("6.12", 48, "dumptools-trixie"),
    "6.18, 48 bits": Kind("6.18", 48, "dumptools-forky"),
    "7.3": Kind("7.3", 52, "dumptools-forky"),
    "7.3, 48 bits": Kind("7.3", 48, "dumptools-forky"),
}

MACHINE = ("--cpus", "2", "--ram", "256M", "--cmdline", "crashkernel=64M", "--write", "0x44000000=deadbeef")
COMPLAINT = re.compile(
    r"warning|(?<!PG_)error|cannot|invalid|unknown(?! Mhz)|does not exist|requires|zero-size|not available|Traceback",
    re.IGNORECASE,
)
_MARK = 7700000  # what crash prints between the answers


@dataclass(frozen=True)
class Row:
    """One command of a tool, what it is about, and a pattern that its output has where it is right."""

    tool: str
    command: str
    about: str
    shows: str

    def right(self, said: str) -> bool:
        """Has it worked?"""
        return re.search(self.shows, said, re.MULTILINE | re.DOTALL) is not None and not COMPLAINT.search(
            said
        )


TRACE = r"machine_kexec .*__crash_kexec .*panic .*sysrq_handle_crash .*__handle_sysrq .*write_sysrq_trigger "
BASH = 0xFFFF000000800870  # its task: in the first page of the first free block of the largest order
_AREA = r"\w{16} +\w{16} +ffff8000\w{8} - ffff8000\w{8} +\d+"
CRASH = (
    Row(
        "crash",
        "(opening it)",
        "nothing to complain about",
        r"\A\s*(NOTE: setting phys_offset to: 0x40000000)?\s*\Z",
    ),
    Row(
        "crash",
        "sys",
        "what crashed, and why",
        r"CPUS: 2$.*RELEASE: {era}\.0-kexecemu$.*PANIC: .Kernel panic - not",
    ),
    Row("crash", "sys (its date)", "when that was", r"DATE: Sun Dec 11 \d\d:\d\d:\d\d UTC 2022$"),
    Row("crash", "ps", "tasks; bash runs, the others sleep", r"^> +57 +1 +0 +\w+ +RU .* bash$"),
    Row("crash", "bt", "the way into the crash", TRACE),
    Row("crash", "bt -c 1", "what the other CPU did", r"do_idle"),
    Row(
        "crash",
        "log",
        "the kernel's log",
        r"Linux version {era}\.0-kexecemu .*Starting crashdump kernel.*Bye!$",
    ),
    Row("crash", "log -m", "its levels", r"<5>Linux version .*<0>Kernel panic .*<4>Call trace:.*<6>Bye!$"),
    Row(
        "crash",
        "runq",
        "run queues",
        r"^CPU 0 .*CURRENT: PID: 57 .*\"bash\".*^CPU 1 .*CURRENT: PID: 0 .*swapper/1",
    ),
    Row("crash", "task -R __state,on_cpu", "members of the task", r"__state = 0,\n +on_cpu = 1"),
    Row("crash", "timer", "timers", r"TIMER_BASES\[0\].* 500 +\w+ +\w+ +<delayed_work_timer_fn>"),
    Row("crash", "irq", "interrupts", r"^ 11 +\w{16} +\w{16} +.arch_timer.$.*^ 13 .*uart-pl011"),
    Row("crash", "irq -a", "the CPUs that they go to", r"^ 11 arch_timer +0-1$.*^ 13 uart-pl011 +0-1$"),
    Row("crash", "kmem -s", "slab caches", r"^\w+ +\d+ +4 +5 +1 +4k +task_struct$"),
    Row("crash", "kmem -S task_struct", "its slabs", r"NODE 0 PARTIAL:.* 0 +5 +4 +1$"),
    Row(
        "crash",
        f"kmem -s {BASH:x}",
        "the object of an address",
        rf" ffff000000800000 +0 +5 +4 +1$.*\[{BASH:x}\]",
    ),
    Row("crash", "kmem -g", "page flags", r"^PG_lru .*^PG_swapbacked "),
    Row("crash", "kmem -i", "memory", r"TOTAL MEM +\d+ +1[0-9.]+ MB.*FREE +\d+ +1[0-9.]+ MB .*SLAB +1 "),
    Row("crash", "kmem -f", "free blocks, as many as it counts", r"^nr_free_pages: [1-9]\d+ +\(verified\)$"),
    Row("crash", "kmem -v", "areas of the vmalloc range", rf"^{_AREA}\n{_AREA}\n{_AREA}\n{_AREA}$"),
    Row("crash", "kmem -z", "zones", r'NAME: "DMA".*NAME: "Normal"'),
    Row("crash", "kmem -n", "sections of memory", r"^ +8 +\w{16} +\w{16} +\w{16} +PMOE +262144"),
    Row("crash", "kmem -p 44000000", "the page of an address", r"^\w{16} +44000000 "),
    Row("crash", "kmem -p 40210000", "that of the kernel's image", r"^\w{16} +40210000 .* reserved$"),
    Row(
        "crash", "p -x crashk_res", "a resource", r"flags = 0x81000200,\n +desc = 0x1,\n +parent = 0xffff0000"
    ),
    Row("crash", "rd -p 44000000", "memory by its physical address", r"44000000: +00000000efbeadde"),
    Row("crash", "vtop ffff000004000000", "the page tables", r"ffff000004000000 +44000000 *$.*PGD: .*PTE: "),
    Row("crash", "sym panic", "symbols", r"^\w{16} \(T\) panic "),
    Row("crash", "dis -l panic 3", "code, with its lines", r"panic\.c: \d+.*<panic\+8>"),
    Row("crash", "mod", "modules", r"^no modules installed$"),
    Row("crash", "net", "network devices", r"NET_DEVICE +NAME"),
    Row("crash", "files", "what the task has open", r"^No open files$"),
    Row("crash", "vm", "its memory", r"PID: 57 .*MM +PGD"),
    Row("crash", "mount", "file systems", r"MOUNT +SUPERBLK"),
    Row("crash", "dev", "devices", r"CHRDEV +NAME"),
)
TOOLS = (
    Row("makedumpfile", "--dump-dmesg", "the kernel's log", r"Linux version {era}\.0-kexecemu .*Bye!$"),
    Row("makedumpfile", "-d 16", "a dump without free pages", r"Free pages +: 0x0*[1-9a-f]"),
    Row("makedumpfile", "-c -d 31", "a dump without what is not needed", r"^KDUMP$"),
    Row("vmcore-dmesg", "", "the kernel's log", r"Linux version {era}\.0-kexecemu .*Bye!$"),
)
SLABS = "for c in for_each_slab_cache(): print(c.name.string_().decode())"
DRGN = (
    Row("drgn", "for_each_task()", "tasks", r"^1 init$.*^2 kthreadd$.*^57 bash$"),
    Row("drgn", "task_state_to_char()", "bash runs, init sleeps", r"^R S$"),
    Row("drgn", "cpu_curr(), idle_task()", "who is on which CPU", r"^bash swapper/1$"),
    Row(
        "drgn",
        "crashed_thread()",
        "the way into the crash",
        r"panic.*sysrq_handle_crash.*write_sysrq_trigger",
    ),
    Row("drgn", "get_dmesg()", "the kernel's log", r"Linux version {era}\.0-kexecemu .*Bye!"),
    Row("drgn", "uptime(), ktime_get_real_seconds()", "the time", r"^0\.\d+ 1670716800$"),
    Row("drgn", "load_vmlinux_kallsyms()", "symbols without a file", r"^panic$"),
    Row("drgn", "follow_phys()", "the page tables", r"^0x44000000$"),
    Row(
        "drgn",
        "phys_to_virt(), pfn_to_virt(), page_to_virt()",
        "the linear map",
        r"^ffff000004000000 deadbeef$",
    ),
    Row("drgn", "in_direct_map()", "what is in it", r"^True False$"),
    Row("drgn", "PageReserved(), PageSlab()", "pages", r"^True False False False False True$"),
    Row("drgn", "nr_free_pages(), zone_page_state()", "free memory", r"^True True True$"),
    Row("drgn", "for_each_vmap_area(), find_vmap_area()", "areas of the vmalloc range", r"^4 True$"),
    Row("drgn", "get_printk_records()", "levels of the log", r"^0 Kernel panic - not syncing"),
    Row("drgn", "ktime_get_boottime_seconds()", "seconds since the boot", r"^0$"),
    Row("drgn", "for_each_online_cpu()", "CPUs", r"^\[0, 1\]$"),
    Row("drgn", "for_each_online_pgdat()", "nodes", r"^\[0\] 0x40000$"),
    Row("drgn", "prog['contig_page_data'].node_zones[0]", "zones", r"^DMA$"),
    Row("drgn", "for_each_slab_cache()", "slab caches", r"^task_struct$"),
    Row("drgn", "slab_cache_for_each_allocated_object()", "objects of one", r"^\[1, 2, 9, 57\] 4 5$"),
    Row("drgn", "identify_address()", "what an address is", r"^task: 57 \(bash\)$"),
    Row("drgn", "for_each_irq_desc()", "interrupts", r"^11 arch_timer$.*^13 uart-pl011$"),
    Row("drgn", "for_each_module()", "modules", r"^\[\]$"),
)
SNIPPETS: Mapping[str, str] = {
    "for_each_task()": "for t in for_each_task(): print(t.pid.value_(), t.comm.string_().decode())",
    "task_state_to_char()": "print(*(task_state_to_char(find_task(pid)) for pid in (57, 1)))",
    "cpu_curr(), idle_task()": "print(*(f.comm.string_().decode() for f in (cpu_curr(0), cpu_curr(1))))"
    "\nassert cpu_curr(1) == idle_task(1)",
    "crashed_thread()": "print(prog.crashed_thread().stack_trace())",
    "get_dmesg()": "print(get_dmesg().decode())",
    "uptime(), ktime_get_real_seconds()": "print(f'{uptime():.9f}', ktime_get_real_seconds().value_())",
    "load_vmlinux_kallsyms()": "i = load_vmlinux_kallsyms(prog)\n"
    "print(*(s.name for s in i(prog, None, prog.symbol('panic').address, False)), sep='\\n')",
    "follow_phys()": "print(hex(follow_phys(prog['init_mm'].address_of_(), 0xffff000004000000)))",
    "for_each_online_cpu()": "print(list(for_each_online_cpu(prog)))",
    "for_each_online_pgdat()": "p = list(for_each_online_pgdat()); "
    "print([n.node_id.value_() for n in p], hex(p[0].node_start_pfn))",
    "prog['contig_page_data'].node_zones[0]": "z = prog['contig_page_data'].node_zones[0]\n"
    "print(z.name.string_().decode())",
    "for_each_slab_cache()": SLABS,
    "slab_cache_for_each_allocated_object()": "c = find_slab_cache('task_struct')\n"
    "u = slab_cache_usage(c)\n"
    "print([t.pid.value_() for t in slab_cache_for_each_allocated_object(c, 'struct task_struct')],"
    " u.active_objs, u.num_objs)",
    "identify_address()": "from drgn.helpers.common import identify_address\nprint(identify_address(find_task(57)))",
    "phys_to_virt(), pfn_to_virt(), page_to_virt()": "v = phys_to_virt(0x44000000)\n"
    "assert v == pfn_to_virt(0x44000) == page_to_virt(pfn_to_page(0x44000))\n"
    "print(hex(v)[2:], prog.read(v, 4).hex())",
    "in_direct_map()": "print(in_direct_map(find_task(57)), in_direct_map(prog.symbol('panic').address))",
    "PageReserved(), PageSlab()": "image, free = phys_to_page(0x40210000), phys_to_page(0x44000000)\n"
    "print(*(f(p) for p in (image, free, virt_to_page(find_task(57))) for f in (PageReserved, PageSlab)))",
    "nr_free_pages(), zone_page_state()": "z = prog['contig_page_data'].node_zones[0]\n"
    "listed = sum(len(list(list_for_each(h.address_of_()))) << o"
    " for o, a in enumerate(z.free_area) for h in a.free_list)\n"
    "print(nr_free_pages() == zone_page_state(z, prog['NR_FREE_PAGES']) > 40000,"
    " listed == nr_free_pages() == totalram_pages() - 1, z.managed_pages.counter == totalram_pages())",
    "for_each_vmap_area(), find_vmap_area()": "areas = list(for_each_vmap_area())\n"
    "print(len(areas), find_vmap_area(prog.symbol('panic').address) == areas[0])",
    "get_printk_records()": "from drgn.helpers.linux.printk import get_printk_records\n"
    "(r,) = (r for r in get_printk_records() if b'panic' in r.text and b'syncing' in r.text)\n"
    "print(r.level, r.text.decode())",
    "ktime_get_boottime_seconds()": "print(ktime_get_boottime_seconds().value_())",
    "for_each_irq_desc()": "for n, d in for_each_irq_desc(): print(n, irq_desc_action_names(d)[0].decode())",
    "for_each_module()": "print(list(for_each_module()))",
}


@dataclass(frozen=True)
class Tools:
    """The arm64 builds of a release: those for other machines read no arm64 dump. Run by their own libraries."""

    root: Path
    prefix: Sequence[str]

    @classmethod
    def of(cls, target: str, qemu_user: Sequence[str]) -> Tools:
        """Those that `kexecemu fetch TARGET` has brought; NotFetched where it has not."""
        root = cache.fetched(target)
        (loader, *_) = sorted(root.glob("**/ld-linux-aarch64.so.1"))
        folders = sorted(str(path) for path in root.glob("**/aarch64-linux-gnu") if path.is_dir())
        return cls(root, [*qemu_user, str(loader), "--library-path", ":".join(folders)])

    def version(self, package: str) -> str:
        """The upstream version of a package."""
        found = re.search(
            rf"^{package}_(?:\d+:)?([\d.]+)", (self.root / "PACKAGES").read_text(), re.MULTILINE
        )
        return found[1] if found else ""

    def run(self, name: str, *arguments: str | Path, cwd: Path) -> str:
        """What a tool says on both outputs; what it ends with where that is not 0."""
        program = next(path for path in sorted(self.root.glob(f"**/{name}")) if path.is_file())
        done = subprocess.run(
            [*self.prefix, str(program), *map(str, arguments)],
            cwd=cwd,
            env={"TERM": "dumb", "HOME": str(cwd), "PATH": "/usr/bin:/bin"},
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=300,
        )
        ended = f"\nerror: exit status {done.returncode}" if done.returncode else ""
        return done.stdout + done.stderr + ended


@dataclass(frozen=True)
class Dump:
    """A dump in a folder of its own."""

    kind: Kind
    vmcore: Path
    vmlinux: Path

    @classmethod
    def make(cls, kind: Kind, folder: Path) -> Dump:
        """Crash a machine of two CPUs."""
        vmcore = folder / "vmcore"
        kernel = ("--era", kind.era, "--config", f"ARM64_VA_BITS={kind.bits}")
        command = ("crash", *kernel, *MACHINE, "--vmcore", str(vmcore), "--json")
        done = subprocess.run(
            [sys.executable, "-m", "kexecemu", *command], cwd=TOP, capture_output=True, text=True, check=True
        )
        return cls(kind, vmcore, Path(json.loads(done.stdout)["vmlinux"]))


def crash_options(kind: Kind) -> list[str]:
    """crash takes PHYS_OFFSET for the CPU's, and a kernel of 52-bit addresses means those that it was built for."""
    return [] if kind.bits == 48 else ["-m", "phys_offset=0x40000000"]


def ask_crash(dump: Dump, tools: Tools, *options: str) -> Iterator[tuple[Row, str]]:
    """What crash says to each command, all in one session."""
    opening, *rows = CRASH
    commands = [row.command.partition(" (")[0] for row in rows]
    script = dump.vmcore.with_name("commands")
    script.write_text("".join(f"p {_MARK + n}\n{one}\n" for n, one in enumerate(commands)) + "quit\n")
    said = tools.run("crash", "-s", *options, "-i", script, dump.vmlinux, dump.vmcore, cwd=script.parent)
    parts = re.split(rf"^\$\d+ = {_MARK // 1000}\d\d\d\n", said, flags=re.MULTILINE)
    yield opening, parts[0]
    for number, row in enumerate(rows, 1):
        yield row, parts[number] if number < len(parts) else "error: no answer"


def ask_tools(dump: Dump, tools: Tools) -> Iterator[tuple[Row, str]]:
    """makedumpfile and vmcore-dmesg."""
    folder = dump.vmcore.parent
    log, free, small, dmesg = TOOLS
    said = tools.run("makedumpfile", "--dump-dmesg", dump.vmcore, folder / "log", cwd=folder)
    words = "" if "The dmesg log is saved" in said else f"error: {said}"
    yield log, words + ((folder / "log").read_text() if (folder / "log").is_file() else "")
    report = "16"
    yield (
        free,
        tools.run("makedumpfile", "-d", "16", "--message-level", report, dump.vmcore, "free", cwd=folder),
    )
    said = tools.run("makedumpfile", "-c", "-d", "31", dump.vmcore, folder / "small", cwd=folder)
    words = "\n".join(line for line in said.splitlines() if COMPLAINT.search(line))
    begins = (folder / "small").read_bytes()[:8] if (folder / "small").is_file() else said.encode()
    yield small, words + "\n" + begins.decode().strip()
    yield dmesg, tools.run("vmcore-dmesg", dump.vmcore, cwd=folder)


def ask_drgn(dump: Dump) -> Iterator[tuple[Row, str]]:
    """Each helper in a process of its own, as drgn's command would run a script."""
    for row in DRGN:
        text = (
            "import drgn, os\nfrom drgn import *\nfrom drgn.helpers.linux import *\n"
            "from drgn.helpers.linux.kallsyms import load_vmlinux_kallsyms\n"
            f"prog = drgn.Program()\nprog.set_core_dump({str(dump.vmcore)!r})\n"
            f"prog.load_debug_info([{str(dump.vmlinux)!r}])\ndrgn.set_default_prog(prog)\n{SNIPPETS[row.command]}\n"
        )
        done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True)
        yield row, done.stdout + done.stderr


def qemu_user() -> list[str]:
    """The words before a program for arm64 Linux."""
    return [program] if (program := shutil.which("qemu-aarch64-static")) else []


def ask(kind: Kind, folder: Path, tell: bool = False) -> tuple[dict[Row, bool], dict[str, str]]:
    """Which row works for a kernel, and the versions of the tools."""
    import drgn

    dump, tools = Dump.make(kind, folder), Tools.of(kind.target, qemu_user())
    answers = [*ask_crash(dump, tools, *crash_options(kind)), *ask_tools(dump, tools), *ask_drgn(dump)]
    works = {}
    for row, said in answers:
        here = Row(row.tool, row.command, row.about, row.shows.replace("{era}", re.escape(kind.era)))
        works[row] = here.right(said)
        if not works[row] and tell:
            print(f"--- {kind.era} {kind.bits} {row.tool} {row.command}:\n{said[:1500]}", file=sys.stderr)
    versions = {
        "crash": tools.version("crash"),
        "makedumpfile": tools.version("makedumpfile"),
        "vmcore-dmesg": tools.version("kexec-tools"),
        "drgn": drgn.__version__,
    }
    return works, versions


def table(answers: Mapping[str, tuple[Mapping[Row, bool], Mapping[str, str]]]) -> str:
    """The table in Markdown."""
    lines = [
        "| tool | command | shows | " + " | ".join(answers) + " |",
        "|---|---|---|" + "---|" * len(answers),
    ]
    for tool in ("crash", "makedumpfile", "vmcore-dmesg", "drgn"):
        versions = " | ".join(versions[tool] for _, versions in answers.values())
        lines.append(f"| **{tool}** | | | {versions} |")
        for row in next(iter(answers.values()))[0]:
            if row.tool == tool:
                cells = ("works" if works[row] else "no" for works, _ in answers.values())
                command = f"`{row.command}`" if row.command else ""
                lines.append(f"| | {command} | {row.about} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main(arguments: Sequence[str]) -> int:
    """Make the table, and print it or put it into the file."""
    answers = {}
    for name, kind in KINDS.items():
        with tempfile.TemporaryDirectory(prefix="kexecemu-dump-") as folder:
            answers[name] = ask(kind, Path(folder), "--tell" in arguments)
    made = table(answers)
    if "--write" not in arguments:
        print(made, end="")
        return 0
    text = DOCS.read_text()
    before, rest = text.split(BEGIN)
    DOCS.write_text(f"{before}{BEGIN}\n\n{made}\n{END}{rest.split(END)[1]}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
