"""The size of a first kernel's pages, without a word of it."""

import image_header
import pytest

from kexecemu.linux.first_boot import first_page_size


@pytest.mark.parametrize(("said", "size"), [(0, 4096), (4096, 4096), (16384, 16384), (65536, 65536)])
def test_it_is_what_the_image_s_header_says(said: int, size: int) -> None:
    """The kernel's own word for it is in /proc/kcore, which a small one has not."""
    assert first_page_size(image_header.build(image_size=0x10000, page_size=said)) == size
