"""The wall clock of the first kernel: a fixed date at power on, and virtual time since (kernel/time/timekeeping.c)."""

from kexecemu.kernel.base.vmlinux import GuestKernel

__all__ = ["BOOT_TIME", "ktime_get_real_seconds", "timekeeping_init", "update_wall_time"]

# What the real-time clock shows at power on, in seconds since 1970: midnight of 11 December 2022 (UTC), the day on
# which Linux 6.1 came out. Never the host's time, so that a run gives the same bytes tomorrow; not 0 either, because
# makedumpfile takes a dump whose CRASHTIME is 0 for one of a kernel that did not crash.
BOOT_TIME = 1670716800

_NS_PER_SECOND = 1_000_000_000


_TICKS_PER_SECOND = 100  # HZ of the guest
_INITIAL_JIFFIES = (1 << 32) - 300 * _TICKS_PER_SECOND  # five minutes before the low half wraps
_SHIFT = 24  # of tkr_mono: its nanoseconds are in units of 1 / 2^24


def _timekeepers_phys(guest: GuestKernel) -> tuple[int, int]:
    """Physical addresses of the timekeeper and of its shadow."""
    layout = guest.vmlinux
    if "timekeeper_data" in layout.elf.symbols:  # the first of an array, and both in it
        first = guest.phys("timekeeper_data")
        members = ("timekeeper", "shadow_timekeeper")
        core, shadow = (first + layout.offsetof("tk_data", name) for name in members)
        return core, shadow
    # tk_core's structure has no name of its own, its last member has.
    whole = layout.elf.symbol_table["tk_core"].size
    return guest.phys("tk_core") + whole - layout.sizeof("timekeeper"), guest.phys("shadow_timekeeper")


def update_wall_time(guest: GuestKernel, now_ns: int) -> None:
    """timekeeping_advance() and do_timer(): both timekeepers and jiffies as the tick at now_ns leaves them."""
    seconds, nanoseconds = divmod(now_ns, _NS_PER_SECOND)
    layout, base = guest.vmlinux, guest.vmlinux.offsetof("timekeeper", "tkr_mono")
    for phys in _timekeepers_phys(guest):
        guest.ram.write_u64(phys + layout.offsetof("timekeeper", "xtime_sec"), BOOT_TIME + seconds)
        guest.ram.write_u64(phys + layout.offsetof("timekeeper", "ktime_sec"), seconds)
        mono = phys + base
        guest.ram.write_u64(mono + layout.offsetof("tk_read_base", "base"), seconds * _NS_PER_SECOND)
        guest.ram.write_u64(mono + layout.offsetof("tk_read_base", "xtime_nsec"), nanoseconds << _SHIFT)
        if "coarse_nsec" in layout.members("timekeeper"):
            guest.ram.write_u32(phys + layout.offsetof("timekeeper", "coarse_nsec"), nanoseconds)
    guest.write("jiffies_64", _INITIAL_JIFFIES + now_ns * _TICKS_PER_SECOND // _NS_PER_SECOND)


def timekeeping_init(guest: GuestKernel, now_ns: int) -> None:
    """timekeeping_init(): monotonic time is what has passed since power on, so its offset is minus BOOT_TIME."""
    layout = guest.vmlinux
    for phys in _timekeepers_phys(guest):
        guest.ram.write_u64(phys + layout.offsetof("timekeeper", "wall_to_monotonic"), -BOOT_TIME % (1 << 64))
        for name in ("offs_real", "offs_tai"):
            guest.ram.write_u64(phys + layout.offsetof("timekeeper", name), BOOT_TIME * _NS_PER_SECOND)
        shift = layout.offsetof("timekeeper", "tkr_mono") + layout.offsetof("tk_read_base", "shift")
        guest.ram.write_u32(phys + shift, _SHIFT)
    update_wall_time(guest, now_ns)


def ktime_get_real_seconds(guest: GuestKernel) -> int:
    """ktime_get_real_seconds(): seconds since 1970 as the last tick left them in guest memory."""
    return guest.ram.read_u64(_timekeepers_phys(guest)[0] + guest.vmlinux.offsetof("timekeeper", "xtime_sec"))
