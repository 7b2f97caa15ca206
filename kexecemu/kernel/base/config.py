"""Which kernel the model is: its era, its build options and the way it protects a loaded crash image."""

import enum
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from kexecemu.arguments import instance, text
from kexecemu.errors import InputError
from kexecemu.kernel.base.era import Era, where_so
from kexecemu.kernel.base.kconfig import CHOICES, KNOWN_OPTIONS, check_option
from kexecemu.shown import shown
from kexecemu.suggest import did_you_mean

__all__ = ["Era", "KernelConfig", "Protection", "Way"]


_Kind = TypeVar("_Kind", bound=enum.Enum)


class Protection(enum.Enum):
    """How the loaded crash image is protected from stray writes through the linear map."""

    NONE = "none"
    PTE = "pte"
    READONLY = "readonly"
    BBML2 = "bbml2"


class Way(enum.Enum):
    """Who checks a loaded image before it is started, and over which map of memory; in no kernel yet."""

    PURGATORY = "purgatory"
    TRANS_PGD = "purgatory-trans-pgd"
    MACHINE_KEXEC = "machine-kexec"


# Options that are not in every era, and the rule that says where they are.
_OF_AN_ERA = {
    "IMA_KEXEC_EXTRA_MEMORY_KB": "ima_extra_memory",
    "KEXEC_BUF_GARBAGE": "garbage_in_kexec_buf",
    "KEXEC_HANDOVER": "kho",
    "KEXEC_HANDOVER_ENABLE_DEFAULT": "kho",
}

_VA_BITS = ("ARM64_VA_BITS", "ARM64_VA_BITS_48", "ARM64_VA_BITS_52")


def _check_purgatory(options: dict[str, str]) -> None:
    """What the purgatory's options mean for each other."""
    policy = options.get("KEXEC_PURGATORY_POLICY")
    if policy == "repair" and options.get("KEXEC_PURGATORY_COPY") != "y":
        raise InputError(
            "config option KEXEC_PURGATORY_POLICY=repair needs KEXEC_PURGATORY_COPY=y to repair from"
        )
    if policy in ("boot", "repair"):
        options.setdefault("KEXEC_PURGATORY_CHOSEN", "y")


def _member(kind: type[_Kind], value: str, what: str) -> _Kind:
    """The member with a value; InputError with the nearest and all that there are for one that there is not."""
    text(value, what)
    try:
        return kind(value)
    except ValueError:
        known = [one.value for one in kind]
        like = did_you_mean(value, known)
        raise InputError(f"{what} {value!r} is not known{like}; known are {', '.join(known)}") from None


def _va_bits(options: Mapping[str, str], era: Era) -> dict[str, str]:
    """CONFIG_ARM64_VA_BITS under all three of its names, where any is given; InputError where they disagree."""
    said = {options.get("ARM64_VA_BITS", "era")} - {"era"}
    chosen = [options.get(f"ARM64_VA_BITS_{bits}") for bits in (48, 52)]
    if chosen != ["n", "n"]:  # neither is what a configuration has that says nothing
        for value, (bits, other) in zip(chosen, (("48", "52"), ("52", "48")), strict=True):
            said |= {bits} if value == "y" else {other} if value == "n" else set()
    if len(said) > 1:
        names = [name for name in _VA_BITS if name in options]
        raise InputError(f"config options {' and '.join(names)} exclude each other")
    if "52" in said and era.rules.va_bits != 52 and options.get("ARM64_64K_PAGES") != "y":
        raise InputError(
            f"config option ARM64_VA_BITS_52=y needs pages of 64 KiB before 6.9, not {era.value}"
        )
    values = [(bits, "y" if bits == "48" else "n", "y" if bits == "52" else "n") for bits in said]
    return dict(zip(_VA_BITS, values[0], strict=True)) if values else {}


def _check_handover(options: dict[str, str]) -> None:
    """What KEXEC_HANDOVER selects, and its default is of use to."""
    if options.get("KEXEC_HANDOVER") == "y" and "n" in (options.get("CMA"), options.get("KEXEC_FILE")):
        raise InputError("config option KEXEC_HANDOVER=y selects CMA and KEXEC_FILE")
    if options.get("KEXEC_HANDOVER_ENABLE_DEFAULT") == "y" and options.get("KEXEC_HANDOVER") != "y":
        raise InputError("config option KEXEC_HANDOVER_ENABLE_DEFAULT=y needs KEXEC_HANDOVER=y")


def _check_ima(options: dict[str, str]) -> None:
    """What IMA_KEXEC depends on."""
    if options.get("IMA_KEXEC") == "y" and options.setdefault("IMA", "y") == "n":
        raise InputError("config option IMA_KEXEC=y needs IMA=y")


def _check_era(options: Mapping[str, str], era: Era) -> None:
    """InputError for what is asked for and the era has not."""
    for name, rule in _OF_AN_ERA.items():
        value = options.get(name, KNOWN_OPTIONS[name])
        if value != KNOWN_OPTIONS[name] and not getattr(era.rules, rule):
            raise InputError(
                f"config option {name}={value}: there is such a Linux {where_so(rule)}, not {era.value}"
            )


def _parse_options(given: Mapping[str, str], era: Era) -> dict[str, str]:
    options: dict[str, str] = {}
    for name, value in given.items():
        options[check_option(name, value)] = value
    if "ZONE_DMA" in options:
        options.setdefault("ZONE_DMA32", options["ZONE_DMA"])
    _check_purgatory(options)
    _check_era(options, era)
    _check_handover(options)
    _check_ima(options)
    page_sizes = ("ARM64_4K_PAGES", "ARM64_16K_PAGES", "ARM64_64K_PAGES")
    chosen = [name for name in page_sizes if options.get(name) == "y"]
    if len(chosen) > 1:
        raise InputError(f"config options {' and '.join(chosen)} exclude each other")
    if not chosen and options.get("ARM64_4K_PAGES") == "n":
        raise InputError(
            f"config option ARM64_4K_PAGES=n needs another page size: {' or '.join(page_sizes[1:])}"
        )
    if chosen:
        options.update({name: "y" if name == chosen[0] else "n" for name in page_sizes})
    return {**KNOWN_OPTIONS, **options, **_va_bits(options, era)}


@shown("era", "protection", "purgatory", "rng_ready", options=lambda config: config.changed)
@dataclass(frozen=True)
class KernelConfig:
    """One kernel build.

    era         an Era or its value, "6.4" for example
    protection  None: what the era does by itself (pte before 6.4, none after); else a Protection or its name
    purgatory   False/None: none, as arm64 has it today; True or "default": the one that ships;
                "core": that one without its options; else an object's path
    options     Kconfig names (with or without CONFIG_) to "y", "n", a number or a word
    rng_ready   the random number generator is initialised when a load builds its device tree
    check_way   a Way or its name: a purgatory that makes a map of its own; one that is entered with the MMU on, over
                a map that the load makes; or no purgatory, machine_kexec() hashes
    seeds       what it gives then, where that is to be as in another run: /chosen's kaslr-seed (64 bits) and rng-seed
                (128 bytes)
    """

    era: Era | str = Era.V6_4
    protection: Protection | str | None = None
    purgatory: bool | str | Path | None = True
    options: Mapping[str, str] = field(default_factory=dict)
    rng_ready: bool = False
    seeds: tuple[int, bytes] | None = None
    check_way: Way | str = Way.PURGATORY

    def __post_init__(self) -> None:
        if not isinstance(self.era, Era):
            object.__setattr__(self, "era", Era.given(self.era))
        if self.protection is not None and not isinstance(self.protection, Protection):
            way = _member(Protection, self.protection, "protection")
            object.__setattr__(self, "protection", way)
        if not isinstance(self.check_way, Way):
            object.__setattr__(self, "check_way", _member(Way, self.check_way, "way"))
        if self.purgatory is not None:
            instance(self.purgatory, (bool, str, Path), "purgatory")
        options = _parse_options(instance(self.options, Mapping, "options"), self.release)
        object.__setattr__(self, "options", options)
        none = self.purgatory in (None, False, "none")
        if self.check_way is Way.TRANS_PGD and none:
            raise InputError("way purgatory-trans-pgd needs a purgatory")
        if self.check_way is Way.MACHINE_KEXEC and not none and self.purgatory not in (True, "default"):
            raise InputError(f"way machine-kexec has no purgatory, and so no use for {self.purgatory}")

    @property
    def changed(self) -> dict[str, str]:
        """The options that are not as they are in every kernel."""
        return {name: value for name, value in self.options.items() if value != KNOWN_OPTIONS[name]}

    @property
    def release(self) -> Era:
        """The era, as an Era whatever was given."""
        assert isinstance(self.era, Era)
        return self.era

    @property
    def way(self) -> Protection:
        """The protection in force: the one asked for, else what the era does."""
        if isinstance(self.protection, Protection):
            return self.protection
        return Protection.PTE if self.release.rules.protects_by_pte else Protection.NONE

    def enabled(self, option: str) -> bool:
        """IS_ENABLED(CONFIG_option)."""
        return self.options[option] == "y"

    def number(self, option: str) -> int:
        """The value of a numeric option."""
        return int(self.options[option])

    def choice(self, option: str) -> int:
        """The position of an option's word among its choices: for KEXEC_PURGATORY_POLICY enum purgatory_policy."""
        return CHOICES[option].index(self.options[option])

    @property
    def page_size(self) -> int:
        """PAGE_SIZE in bytes."""
        if self.enabled("ARM64_64K_PAGES"):
            return 65536
        return 16384 if self.enabled("ARM64_16K_PAGES") else 4096

    @property
    def va_bits(self) -> int:
        """VA_BITS: how many bits of a kernel's virtual address it was built for, 48 or 52."""
        given = self.options["ARM64_VA_BITS"]
        return self.release.rules.va_bits if given == "era" else int(given)

    @property
    def vabits_actual(self) -> int:
        """vabits_actual: how many the CPU has, which are 48; with pages of 16 KiB the kernel falls back to 47."""
        return 47 if self.va_bits > 48 and self.page_size == 16384 else 48

    @property
    def has_dma_zones(self) -> bool:
        """CONFIG_ZONE_DMA or CONFIG_ZONE_DMA32: what defer_reserve_crashkernel() asked before 6.4."""
        return self.enabled("ZONE_DMA") or self.enabled("ZONE_DMA32")
