"""What a load leaves on the timeline: its segments, its digest, what protects it, and a tree too large to boot with."""

from __future__ import annotations

import pytest
from kernel_bench import IMAGE, INITRD, MIB, arm64_image, boot, small

from kexecemu import InputError
from kexecemu.formats.fdt import FdtEditor
from kexecemu.kernel.boot.virt_board import virt_device_tree
from kexecemu.kernel.image.kimage import Kimage
from kexecemu.kernel.model import KernelModel
from kexecemu.machine.ranges import PhysRange


def told(kernel: KernelModel) -> list[tuple[str, str]]:
    """Kind and words of what has been said since the boot."""
    kinds = ("segment", "loaded", "dtb", "protect", "kexec-tools")
    return [(one.kind, one.text) for one in kernel.board.timeline if one.kind in kinds]


def segments_of(image: Kimage) -> list[tuple[str, str]]:
    return [
        ("segment", f"{one.name}: {one.bufsz:#x} bytes at {one.area} ({one.memsz:#x} in memory)")
        for one in image.segments
    ]


@pytest.mark.parametrize("era", ["6.1", "6.4"])
def test_segments_digest_and_protection_are_told_of_in_this_order(era: str) -> None:
    with small(era) as kernel:
        image = kernel.kexec_file_load(IMAGE, INITRD, "quiet")
        assert image is not None
        loaded = f"kexec_file_load: crash image loaded, entry {image.start:#x}, digest {(image.digest or b'').hex()}"
        areas = ", ".join(str(one) for one in kernel.protected)
        protect = ("protect", f"protection pte: {areas} cannot be written through the linear map")
        assert told(kernel) == [*segments_of(image), ("loaded", loaded), *[protect] * (era == "6.1")]
        for event, one in zip(kernel.board.timeline.of("segment"), image.segments, strict=True):
            facts = {"segment": one.name, "mem_phys": one.mem, "memsz": one.memsz, "bufsz": one.bufsz}
            assert facts.items() <= event.facts.items()
        (event,) = kernel.board.timeline.of("loaded")
        facts = {"call": "kexec_file_load", "entry_phys": image.start, "digest": (image.digest or b"").hex()}
        assert facts.items() <= event.facts.items()


def test_an_ordinary_image_and_one_without_a_purgatory_are_called_so() -> None:
    with small(purgatory=False) as kernel:
        for flags, what in ((2, "crash image"), (0, "image")):
            image = kernel.kexec_file_load(IMAGE, INITRD, "quiet", flags)
            assert image is not None
            words = f"kexec_file_load: {what} loaded, entry {image.start:#x}, no purgatory and so no digest"
            assert told(kernel)[-1] == ("loaded", words)
            assert kernel.board.timeline.of("loaded")[-1].facts["digest"] is None


def test_what_kexec_tools_say_comes_before_what_is_loaded() -> None:
    with small() as kernel:
        image = kernel.kexec_tools_load(arm64_image(MIB, image_size=0), None, "quiet")
        said = "kexec-tools: the Image says no size: 16 MiB are taken for it, 0x80000 into 2 MiB"
        loaded = (
            f"kexec_load: crash image loaded, entry {image.start:#x}, digest {(image.digest or b'').hex()}"
        )
        assert told(kernel)[0] == ("kexec-tools", said) and told(kernel)[-1] == ("loaded", loaded)


def test_without_a_region_kexec_tools_have_nowhere_to_go() -> None:
    words = r"^kexec-tools: memory for crashkernel is not reserved$"
    with boot(cmdline="quiet", ram="256M") as kernel, pytest.raises(InputError, match=words):
        kernel.kexec_tools_load(IMAGE, None, "")


def test_a_device_tree_of_more_than_2_mib_is_loaded_and_told_of() -> None:
    """The kernel has no limit on a command line, and none boots with such a tree (MAX_FDT_SIZE)."""
    # With a name of four letters more the next tree is whole cells long.
    editor = FdtEditor(virt_device_tree([PhysRange.of(1 << 30, 256 * MIB)], 1, 0x9000000), 8192)
    editor.setprop(0, "pads", b"")
    editor.pack()
    with small(dtb=editor.to_bytes()) as kernel:

        def size(length: int) -> int:
            image = kernel.kexec_file_load(IMAGE, INITRD, "x" * length)
            assert image is not None
            tree = image.segment("dtb")
            assert tree is not None
            return tree.bufsz

        most = 2 * MIB - (size(4000) - 4000)
        sizes = set[int]()
        for length in range(most - 4, most + 8):
            before, found = len(kernel.board.timeline.of("dtb")), size(length)
            sizes.add(found)
            words = [one.text for one in kernel.board.timeline.of("dtb")[before:]]
            end = f"device tree has {found:#x} bytes, more than 0x200000: no kernel boots with it"
            assert words == ([f"the crash kernel's {end}"] if found > 2 * MIB else [])
        assert {2 * MIB - 4, 2 * MIB, 2 * MIB + 4} <= sizes, [one - 2 * MIB for one in sizes]
