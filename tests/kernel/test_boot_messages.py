"""What the boot log says of memory, line by line as real kernels said it."""

from __future__ import annotations

import pytest

from kexecemu import Board, Era, Kernel, KernelConfig
from kexecemu.data import fixture_path

# (RAM, crashkernel=, options, lines of a real kernel's log from the first to the last about memory)
REAL = {
    # Debian's 6.1.176: DMA zones, a CMA area, a late reservation.
    "debian 6.1.176, 1 GiB": (
        "1G",
        "256M",
        {"CMA_SIZE_MBYTES": "64"},
        [
            "Zone ranges:",
            "  DMA      [mem 0x0000000040000000-0x000000007fffffff]",
            "  DMA32    empty",
            "  Normal   empty",
            "Movable zone start for each node",
            "Early memory node ranges",
            "  node   0: [mem 0x0000000040000000-0x000000007fffffff]",
            "Initmem setup node 0 [mem 0x0000000040000000-0x000000007fffffff]",
            "cma: Reserved 64 MiB at 0x000000007ac00000",
            "crashkernel reserved: 0x000000006ac00000 - 0x000000007ac00000 (256 MB)",
        ],
    ),
    # A 6.1.192 without DMA zones: the reservation comes first.
    "6.1.192 without zones, 768 MiB": (
        "768M",
        "96M",
        {"ZONE_DMA": "n"},
        [
            "crashkernel reserved: 0x000000006a000000 - 0x0000000070000000 (96 MB)",
            "Zone ranges:",
            "  Normal   [mem 0x0000000040000000-0x000000006fffffff]",
            "Movable zone start for each node",
            "Early memory node ranges",
            "  node   0: [mem 0x0000000040000000-0x000000006fffffff]",
            "Initmem setup node 0 [mem 0x0000000040000000-0x000000006fffffff]",
        ],
    ),
}


@pytest.mark.parametrize("name", REAL)
def test_the_boot_log_is_the_real_kernels_in_words_and_order(name: str) -> None:
    ram, size, options, lines = REAL[name]
    kernel = Kernel.boot(Board(ram), KernelConfig("6.1", options=options), cmdline=f"crashkernel={size}")
    said = [line.split("] ", 1)[1] for line in kernel.board.uart.text.splitlines()]
    start = said.index(lines[0])
    assert said[start : start + len(lines)] == lines


def test_ram_on_both_sides_of_4_gib_is_in_two_zones() -> None:
    kernel = Kernel.boot(Board("6G"), KernelConfig("6.4"), cmdline="rodata=on")
    text = kernel.board.uart.text
    assert "  DMA      [mem 0x0000000040000000-0x00000000ffffffff]\n" in text
    assert "  DMA32    empty\n" in text
    assert "  Normal   [mem 0x0000000100000000-0x00000001bfffffff]\n" in text


@pytest.mark.parametrize("era", [era.value for era in Era])
def test_the_banner_is_the_eras_and_there_once(era: str) -> None:
    with Kernel.boot(Board("256M"), KernelConfig(era), cmdline="crashkernel=32M") as kernel:
        kernel.kexec_file_load(fixture_path("guests/capture-Image"))
        end = kernel.panic()
        banners = [line for line in end.console.splitlines() if "Linux version" in line]
        (banner,) = banners  # and the capture stub has none: it is no Linux
        assert f"Linux version {era}.0-kexecemu (model@kexecemu) #1 SMP PREEMPT " in banner
        memory = kernel.ram.read_cstring(kernel.guest.phys("linux_banner"), 200).decode()
        assert banner == f"[    0.000000] {memory.rstrip()}"
