"""parse_early_param() of init/main.c: what the command line sets before memory is looked at, and what is said of it.

Parameters are taken in the order of the line, each by its handler, and one that its handler refuses is malformed.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial

from kexecemu.kernel.base.cmdline import kstrtoint, memparse, words
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.boot.cpus import NR_CPUS
from kexecemu.kernel.memory.kho import KhoEarly, kho_parameter
from kexecemu.kernel.memory.linear_map import rodata_message
from kexecemu.shown import shown

__all__ = ["CmaAsked", "EarlyParameters", "parse_early_param"]

_MIB = 1 << 20
_PHYS_ADDR_MAX = (1 << 64) - 1

Print = Callable[[str], None]


@shown()
@dataclass(frozen=True)
class CmaAsked:
    """cma=SIZE[@START[-END]] as early_cma() keeps it: bytes, physical; end 0 for anywhere."""

    size: int
    start: int = 0
    end: int = 0


@shown()
@dataclass(frozen=True)
class EarlyParameters:
    """What they have set. memory_limit is in bytes, panic_force_cpu a CPU's number; None where nobody asks."""

    memory_limit: int | None = None
    cma: CmaAsked | None = None
    panic_force_cpu: int | None = None
    kho: KhoEarly = field(default_factory=KhoEarly)


@dataclass
class _Parser:
    """One reading of a command line. Each handler gives what is set from now on, None for what it refuses."""

    config: KernelConfig
    log: Print

    def mem(self, found: EarlyParameters, value: str | None) -> EarlyParameters | None:
        """early_mem()"""
        if value is None:
            return None
        limit = memparse(value)[0] // self.config.page_size * self.config.page_size
        self.log(f"Memory limited to {limit // _MIB}MB")
        return replace(found, memory_limit=None if limit == _PHYS_ADDR_MAX else limit)

    def cma(self, found: EarlyParameters, value: str | None) -> EarlyParameters | None:
        """early_cma(): one with a size alone keeps where an earlier one wants it."""
        if value is None:
            self.log("cma: Config string not provided")
            return None
        before = found.cma or CmaAsked(0)
        size, rest = memparse(value)
        if rest[:1] != "@":
            return replace(found, cma=replace(before, size=size))
        start, rest = memparse(rest[1:])
        end = memparse(rest[1:])[0] if rest[:1] == "-" else start + size
        return replace(found, cma=CmaAsked(size, start, end))

    def rodata(self, found: EarlyParameters, value: str | None) -> EarlyParameters:
        """set_debug_rodata(): what it sets is the linear map's affair."""
        said = rodata_message(self.config, value)
        if said is not None:
            self.log(said)
        return found

    def panic_force_cpu(self, found: EarlyParameters, value: str | None) -> EarlyParameters | None:
        """panic_force_cpu_setup()"""
        number = kstrtoint(value or "")
        if number is not None and 0 <= number < NR_CPUS:
            return replace(found, panic_force_cpu=number)
        if value is not None:
            self.log(f"panic_force_cpu: invalid value '{value}'")
        return None

    def kho(self, name: str, found: EarlyParameters, value: str | None) -> EarlyParameters | None:
        """kho_parse_enable() and kho_parse_scratch_size()"""
        taken = kho_parameter(name, value or "", found.kho, self.log)
        return None if taken is None else replace(found, kho=taken)


def parse_early_param(config: KernelConfig, cmdline: str, log: Print = lambda text: None) -> EarlyParameters:
    """All of a command line; log gets the kernel's words."""
    found = EarlyParameters()
    parser = _Parser(config, log)
    handlers = {"mem": parser.mem, "rodata": parser.rodata}
    if config.enabled("CMA"):
        handlers["cma"] = parser.cma
    if config.release.rules.panic_force_cpu:
        handlers["panic_force_cpu"] = parser.panic_force_cpu
    if config.enabled("KEXEC_HANDOVER"):
        found = replace(found, kho=KhoEarly(config.enabled("KEXEC_HANDOVER_ENABLE_DEFAULT")))
        handlers |= {name: partial(parser.kho, name) for name in ("kho", "kho_scratch")}
    for name, value in words(cmdline):
        if name in handlers:
            taken = handlers[name](found, value)
            if taken is None:
                log(f"Malformed early option '{name}'")
            found = taken or found
    return found
