"""Who runs on the boot CPU, as the scheduler's structures in guest memory have it (kernel/sched)."""

from kexecemu.kernel.base.vmlinux import GuestKernel

__all__ = ["switch_to"]

_TASK_RUNNING, _TASK_INTERRUPTIBLE = 0, 1
_NICE_0_LOAD = 1 << 20


def _set_running(guest: GuestKernel, task_virt: int, running: bool) -> None:
    """A task's own part: is it on a CPU and on a run queue, and its state; it sleeps while it does not run."""
    layout, phys = guest.vmlinux, guest.space.virt_to_phys(task_virt)
    guest.ram.write_u32(phys + layout.offsetof("task_struct", "on_cpu"), running)
    if guest.ram.read_u32(phys + layout.offsetof("task_struct", "pid")) == 0:
        return  # an idle task is ready all the time, and on no run queue
    entity = layout.offsetof("task_struct", "se")
    guest.ram.write_u32(phys + layout.offsetof("task_struct", "on_rq"), running)
    guest.ram.write_u32(phys + entity + layout.offsetof("sched_entity", "on_rq"), running)
    state = _TASK_RUNNING if running else _TASK_INTERRUPTIBLE
    guest.ram.write_u32(phys + layout.offsetof("task_struct", "__state"), state)


def switch_to(guest: GuestKernel, task_virt: int) -> None:
    """context_switch() on the boot CPU: the task at a virtual address runs, and the one before it sleeps or is idle."""
    layout, space, ram = guest.vmlinux, guest.space, guest.ram
    rq_virt = (layout.virt("runqueues") + guest.read("__per_cpu_offset")) % (1 << 64)
    rq = space.virt_to_phys(rq_virt)
    curr = rq + layout.offsetof("rq", "curr")
    if before_virt := ram.read_u64(curr):
        _set_running(guest, before_virt, False)
    ram.write_u64(curr, task_virt)
    _set_running(guest, task_virt, True)
    ready = int(task_virt != ram.read_u64(rq + layout.offsetof("rq", "idle")))
    ram.write_u32(rq + layout.offsetof("rq", "nr_running"), ready)
    switches = rq + layout.offsetof("rq", "nr_switches")
    ram.write_u64(switches, ram.read_u64(switches) + 1)
    cfs_virt = rq_virt + layout.offsetof("rq", "cfs")
    cfs, members = space.virt_to_phys(cfs_virt), layout.members("cfs_rq")
    for name in ("nr_running", "h_nr_running", "nr_queued", "h_nr_queued"):
        if name in members:
            ram.write_u32(cfs + members[name], ready)
    entity_virt = task_virt + layout.offsetof("task_struct", "se")
    ram.write_u64(cfs + members["curr"], entity_virt if ready else 0)
    ram.write_u64(cfs + members["load"], _NICE_0_LOAD * ready)
    if ready:
        entity = space.virt_to_phys(entity_virt)
        ram.write_u64(entity + layout.offsetof("sched_entity", "load"), _NICE_0_LOAD)
        ram.write_u64(entity + layout.offsetof("sched_entity", "cfs_rq"), cfs_virt)
