"""At which level the kernel prints what: include/linux/kern_levels.h, and who says pr_err() where.

The guest's own messages have their level in the text, as in the kernel. What the model says in the kernel's place goes
through a callback that takes lines, so of these the level is found by how they begin; an oops's are given with it.
"""

from enum import IntEnum

__all__ = ["LogLevel", "level_of", "split_level"]

_KERN_SOH = "\x01"


class LogLevel(IntEnum):
    """KERN_EMERG and so on. What is printed without one has WARNING (CONFIG_MESSAGE_LOGLEVEL_DEFAULT)."""

    EMERG = 0
    ALERT = 1
    CRIT = 2
    ERR = 3
    WARNING = 4
    NOTICE = 5
    INFO = 6
    DEBUG = 7


# Lines that are not pr_info(), by their beginnings; the longest that fits counts.
_LEVELS = {
    "Kernel command line: ": LogLevel.NOTICE,
    "Invalid option string for rodata": LogLevel.WARNING,
    "cannot allocate crashkernel low memory": LogLevel.ERR,
    "cannot allocate crashkernel ": LogLevel.WARNING,
    "crashkernel reservation failed": LogLevel.WARNING,
    "crashkernel CMA reservation failed": LogLevel.WARNING,
    "crashkernel CMA reservation not supported": LogLevel.WARNING,
    "crashkernel: ": LogLevel.WARNING,
    "cma: Failed to reserve": LogLevel.ERR,
    "OF: fdt: Reserved memory: ": LogLevel.ERR,
    "OF: reserved mem: Reserved memory: ": LogLevel.ERR,
    "OF: reserved mem: Reserved memory: No reserved-memory node": LogLevel.INFO,
    "OF: reserved mem: invalid ": LogLevel.ERR,
    "OF: reserved mem: failed to allocate": LogLevel.ERR,
    "panic: Redirect": LogLevel.EMERG,
    "panic: target CPU ": LogLevel.WARNING,
    "Some CPUs may be stale": LogLevel.WARNING,
    "SMP: stopping secondary CPUs": LogLevel.CRIT,
    "SMP: failed to stop secondary CPUs": LogLevel.WARNING,
    "RNG is not initialised": LogLevel.NOTICE,
    "ima: Error passing over": LogLevel.ERR,
    "ima: impossible to appraise": LogLevel.ERR,
    "Lockdown: ": LogLevel.NOTICE,
    "kexec_file: Enforced kernel signature verification failed": LogLevel.NOTICE,
    "kexec_file: kernel signature verification failed": LogLevel.DEBUG,
}


def level_of(line: str) -> LogLevel:
    """The level of a line that the model prints."""
    fits = (beginning for beginning in _LEVELS if line.startswith(beginning))
    return _LEVELS.get(max(fits, key=len, default=""), LogLevel.INFO)


def split_level(text: str) -> tuple[LogLevel, str]:
    """printk_parse_prefix(): a level before a text, and the text."""
    if text.startswith(_KERN_SOH) and "0" <= text[1:2] <= "7":
        return LogLevel(int(text[1])), text[2:]
    return LogLevel.WARNING, text
