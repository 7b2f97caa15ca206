"""The wall clock of the first kernel: a fixed date at power on, and virtual time since (kernel/time/timekeeping.c)."""

from kexecemu.kernel.base.vmlinux import GuestKernel

__all__ = ["BOOT_TIME", "ktime_get_real_seconds", "timekeeping_init", "update_wall_time"]

# What the real-time clock shows at power on, in seconds since 1970: midnight of 11 December 2022 (UTC), the day on
# which Linux 6.1 came out. Never the host's time, so that a run gives the same bytes tomorrow; not 0 either, because
# makedumpfile takes a dump whose CRASHTIME is 0 for one of a kernel that did not crash.
BOOT_TIME = 1670716800

_NS_PER_SECOND = 1_000_000_000


def _timekeeper_phys(guest: GuestKernel) -> int:
    """Physical address of tk_core.timekeeper: the structure has no name of its own, its last member has."""
    whole = guest.vmlinux.elf.symbol_table["tk_core"].size
    return guest.phys("tk_core") + whole - guest.vmlinux.sizeof("timekeeper")


def update_wall_time(guest: GuestKernel, now_ns: int) -> None:
    """timekeeping_advance(): tk_core and its shadow as the tick at now_ns (since power on) leaves them."""
    seconds = now_ns // _NS_PER_SECOND
    layout = guest.vmlinux
    for phys in (_timekeeper_phys(guest), guest.phys("shadow_timekeeper")):
        guest.ram.write_u64(phys + layout.offsetof("timekeeper", "xtime_sec"), BOOT_TIME + seconds)
        guest.ram.write_u64(phys + layout.offsetof("timekeeper", "ktime_sec"), seconds)


def timekeeping_init(guest: GuestKernel, now_ns: int) -> None:
    """timekeeping_init(): monotonic time is what has passed since power on, so its offset is minus BOOT_TIME."""
    offset = guest.vmlinux.offsetof("timekeeper", "wall_to_monotonic")
    for phys in (_timekeeper_phys(guest), guest.phys("shadow_timekeeper")):
        guest.ram.write_u64(phys + offset, -BOOT_TIME % (1 << 64))
    update_wall_time(guest, now_ns)


def ktime_get_real_seconds(guest: GuestKernel) -> int:
    """ktime_get_real_seconds(): seconds since 1970 as the last tick left them in guest memory."""
    return guest.ram.read_u64(_timekeeper_phys(guest) + guest.vmlinux.offsetof("timekeeper", "xtime_sec"))
