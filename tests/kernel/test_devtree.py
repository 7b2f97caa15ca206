"""The device tree of a crash image, against the bytes that a real kernel loaded."""

from __future__ import annotations

import gzip
from errno import EINVAL
from pathlib import Path

import pytest

from kexecemu.errors import KexecError
from kexecemu.formats.fdt import Fdt, FdtEditor, MemReserve, build, cells, reg64
from kexecemu.kernel.load.devtree import kexec_device_tree
from kexecemu.machine.ranges import PhysRange

DATA = Path(__file__).parents[1] / "data" / "linux-6.1.192"
CRASHK_RES = PhysRange(0x6A000000, 0x70000000)
ELFCOREHDR = (0x6FFF0000, 0x1000)
BOARD = build(
    {
        "#address-cells": 2,
        "#size-cells": 2,
        "chosen": {"bootargs": "old", "kaslr-seed": 1, "stdout-path": "/uart"},
    },
    mem_reservations=[(0x50000000, 0x1000)],
)


def _real(name: str) -> bytes:
    return gzip.decompress((DATA / f"{name}.gz").read_bytes())


def _chosen(blob: bytes) -> dict[str, bytes]:
    tree = Fdt(blob)
    node = tree.path_offset("/chosen")
    assert node is not None
    return {prop.name: prop.value for prop in tree.properties(node)}


def _crash(base: bytes, **changes: object) -> bytes:
    arguments: dict[str, object] = {
        "old_dtb_phys": 0x48000000,
        "initrd": (0x6A550000, 0x12345),
        "cmdline": "panic=5",
        "elfcorehdr": ELFCOREHDR,
        "crashk_res": CRASHK_RES,
    }
    return kexec_device_tree(base, **(arguments | changes))  # type: ignore[arg-type]


def test_the_real_kernel_s_dtb_segment_is_reproduced_byte_for_byte() -> None:
    """Linux 6.1.192 on QEMU virt, 768 MiB, crashkernel=96M; its RNG was not ready, so there are no seeds."""
    blob = kexec_device_tree(
        _real("main.dtb"),
        old_dtb_phys=0x48800000,
        initrd=(0x6A550000, 0x27D4D1),
        cmdline="console=ttyAMA0 nr_cpus=1 reset_devices irqpoll panic=5 rdinit=/init",
        elfcorehdr=ELFCOREHDR,
        crashk_res=CRASHK_RES,
    )
    assert blob == _real("dtb-segment.bin")


def test_the_dtb_that_another_real_capture_kernel_booted_with_is_reproduced_byte_for_byte() -> None:
    """The same board with another command line, initrd and boot.

    Only the source of the first kernel's tree was kept from that run, and a tree compiled from it has its
    strings in dtc's order. So the other run's tree, which QEMU made too, is given this one's values first.
    """
    base = FdtEditor(_real("main.dtb"))
    chosen = base.path_offset("/chosen")
    assert chosen is not None
    base.setprop(
        chosen,
        "bootargs",
        b'console=ttyAMA0 rdinit=/init crashkernel=96M dyndbg="file kernel/kexec* +p; file arch/arm64/kernel/'
        b"machine_kexec* +p; file arch/arm64/kernel/kexec_image.c +p; file crypto/asymmetric_keys/* +p; "
        b'file certs/* +p" loglevel=8 log_buf_len=2M\0',
    )
    base.setprop(chosen, "linux,initrd-end", (0x4B287586).to_bytes(4, "big"))
    # The byte of padding behind a string of 15 is whatever lay in QEMU's buffer; the kernel passes it on.
    path = base.get_property(chosen, "stdout-path")
    assert path is not None and len(path.value) == 15
    base.data[base.off_dt_struct + path.offset + 12 + 15] = 0x90
    blob = kexec_device_tree(
        base.to_bytes(),
        old_dtb_phys=0x4B400000,
        initrd=(0x6A550000, 0x27D988),
        cmdline="console=ttyAMA0 earlycon=pl011,0x9000000 "
        "nr_cpus=1 reset_devices irqpoll panic=5 rdinit=/init",
        elfcorehdr=ELFCOREHDR,
        crashk_res=CRASHK_RES,
    )
    assert blob == _real("kaslr-capture.dtb")


def test_an_image_loaded_by_a_kernel_that_was_kexeced_itself_keeps_nothing_of_the_first_load() -> None:
    first = _crash(
        BOARD, cmdline="a much longer command line than the next one", initrd=(0x6A550000, 0x99999)
    )
    again = _crash(first, old_dtb_phys=0x6FE00000)
    once = _crash(BOARD)
    assert _chosen(again) == _chosen(once)
    # The first load's elfcorehdr reservation stays, as in Linux: only the dtb's, initrd's and IMA's are
    # looked for.
    assert Fdt(again).mem_reservations() == [
        MemReserve(0x50000000, 0x1000),
        MemReserve(*ELFCOREHDR),
        MemReserve(0x6A550000, 0x12345),
        MemReserve(*ELFCOREHDR),
    ]


def test_low_crash_memory_comes_last_in_the_usable_ranges() -> None:
    blob = _crash(
        BOARD, crashk_res=PhysRange.of(1 << 33, 1 << 28), crashk_low_res=PhysRange.of(0x60000000, 1 << 27)
    )
    assert _chosen(blob)["linux,usable-memory-range"] == reg64(1 << 33, 1 << 28, 0x60000000, 1 << 27)


def test_the_initrd_is_64_bits_but_crash_ranges_follow_the_root_s_cells() -> None:
    chosen = _chosen(_crash(build({"#address-cells": 1, "#size-cells": 1, "chosen": {}})))
    assert chosen["linux,initrd-end"] == reg64(0x6A550000 + 0x12345)
    assert chosen["linux,elfcorehdr"] == cells(*ELFCOREHDR)
    assert chosen["linux,usable-memory-range"] == cells(CRASHK_RES.start, CRASHK_RES.size)


def test_a_crash_range_above_4_gib_does_not_fit_in_one_cell() -> None:
    base = build({"#address-cells": 1, "#size-cells": 1, "chosen": {}})
    with pytest.raises(KexecError, match="does not fit in its cells") as caught:
        _crash(base, crashk_res=PhysRange.of(1 << 32, 1 << 27))
    assert caught.value.errno == EINVAL
    assert caught.value.step == "of_kexec_alloc_and_setup_fdt"


def test_a_tree_without_a_chosen_node_gets_one() -> None:
    blob = _crash(build({"#address-cells": 2, "#size-cells": 2, "uart": {}}))
    assert [node.name for node in Fdt(blob).subnodes(0)] == ["chosen", "uart"]
    assert _chosen(blob)["bootargs"] == b"panic=5\0"


def test_no_command_line_deletes_the_old_one() -> None:
    assert "bootargs" not in _chosen(_crash(BOARD, cmdline=None))
    assert _chosen(_crash(BOARD, cmdline=""))["bootargs"] == b"\0"


def test_an_ordinary_kexec_has_no_crash_properties() -> None:
    blob = _crash(BOARD, elfcorehdr=None, crashk_res=None, initrd=None)
    assert list(_chosen(blob)) == ["linux,booted-from-kexec", "bootargs", "stdout-path"]
    assert Fdt(blob).mem_reservations() == [MemReserve(0x50000000, 0x1000)]


def test_seeds_are_new_or_absent_never_the_old_ones() -> None:
    assert "kaslr-seed" not in _chosen(_crash(BOARD))
    chosen = _chosen(_crash(BOARD, kaslr_seed=0x0123456789ABCDEF, rng_seed=bytes(range(128))))
    assert chosen["kaslr-seed"] == bytes.fromhex("0123456789abcdef")
    assert chosen["rng-seed"] == bytes(range(128))


def _with_initrd(start: bytes, end: bytes | None, reservation: tuple[int, int]) -> bytes:
    chosen = {"linux,initrd-start": start} | ({} if end is None else {"linux,initrd-end": end})
    return build({"#address-cells": 2, "#size-cells": 2, "chosen": chosen}, mem_reservations=[reservation])


@pytest.mark.parametrize("value", [cells, reg64])
@pytest.mark.parametrize(("reserved", "deleted"), [(0x1234, True), (0x2000, True), (0x3000, False)])
def test_the_old_initrd_s_reservation_goes_whether_exact_or_in_pages(
    value: object, reserved: int, deleted: bool
) -> None:
    assert callable(value)
    base = _with_initrd(value(0x48000000), value(0x48001234), (0x48000000, reserved))
    entries = Fdt(_crash(base, initrd=None)).mem_reservations()
    assert (MemReserve(0x48000000, reserved) not in entries) == deleted
    assert "linux,initrd-start" not in _chosen(_crash(base, initrd=None))


def test_the_old_tree_s_own_reservation_goes_only_if_it_is_exact() -> None:
    for size, left in ((len(BOARD) + 16, 0), (len(BOARD), 1)):
        base = FdtEditor(BOARD, len(BOARD) + 16)
        base.del_mem_rsv(0)
        base.add_mem_rsv(0x48000000, size)
        blob = _crash(base.to_bytes(), initrd=None, elfcorehdr=None, crashk_res=None)
        assert len(Fdt(blob).mem_reservations()) == left


def test_an_old_initrd_without_an_end_is_refused() -> None:
    with pytest.raises(KexecError, match="without linux,initrd-end") as caught:
        _crash(_with_initrd(cells(0x48000000), None, (0, 1)))
    assert caught.value.errno == EINVAL


def test_an_old_ima_buffer_goes_with_its_reservation() -> None:
    base = build(
        {
            "#address-cells": 2,
            "#size-cells": 2,
            "chosen": {"linux,ima-kexec-buffer": reg64(0x47000000, 0x5000)},
        },
        mem_reservations=[(0x47000000, 0x5000)],
    )
    blob = _crash(base, initrd=None, elfcorehdr=None, crashk_res=None, have_ima_kexec=True)
    assert Fdt(blob).mem_reservations() == []
    assert "linux,ima-kexec-buffer" not in _chosen(blob)
    blob = _crash(base, initrd=None, elfcorehdr=None, crashk_res=None)
    assert Fdt(blob).mem_reservations() == [(0x47000000, 0x5000)]
    assert _chosen(blob)["linux,ima-kexec-buffer"] == reg64(0x47000000, 0x5000)


def test_a_running_kernel_s_tree_that_is_no_tree_is_refused() -> None:
    with pytest.raises(KexecError, match="magic at offset 0"):
        _crash(bytes(64))
