"""The size of a first kernel's pages, without a word of it."""

from pathlib import Path

import image_header
import pytest

from kexecemu import Board, InputError
from kexecemu.linux.first_boot import LinuxSetup, boot_linux, first_page_size


@pytest.mark.parametrize(("said", "size"), [(0, 4096), (4096, 4096), (16384, 16384), (65536, 65536)])
def test_it_is_what_the_image_s_header_says(said: int, size: int) -> None:
    """The kernel's own word for it is in /proc/kcore, which a small one has not."""
    assert first_page_size(image_header.build(image_size=0x10000, page_size=said)) == size


def test_one_whose_pages_the_cpu_has_not_is_refused_before_it_runs() -> None:
    image = image_header.build(image_size=0x10000, page_size=16384)
    nothing = Path("nothing")
    setup = LinuxSetup(image, image, b"", busybox=nothing, kexec=nothing, packages=nothing)
    with (
        Board("64M") as board,
        pytest.raises(InputError, match="pages of 16 KiB, which the board's Cortex-A57"),
    ):
        boot_linux(board, setup)
