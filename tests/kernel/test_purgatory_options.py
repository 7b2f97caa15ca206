"""What a loader tells the purgatory: options, digests by region and page, the copy, and kexec-tools' symbols."""

from __future__ import annotations

import hashlib
import struct
from errno import EADDRNOTAVAIL, EINVAL
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from kernel_bench import IMAGE, INITRD, arm64_image, real, small, small_purgatory

from kexecemu.data import fixture_path, purgatory_path
from kexecemu.errors import InputError, KexecError
from kexecemu.formats.fdt import Fdt, FdtEditor
from kexecemu.kernel.base.config import KernelConfig
from kexecemu.kernel.image.digests import page_digests, page_digests_size
from kexecemu.kernel.image.kimage import Kimage, Segment
from kexecemu.kernel.image.purgatory import LoadedPurgatory, parse_purgatory
from kexecemu.kernel.load.devtree import add_verdict_record, kexec_device_tree
from kexecemu.kernel.load.purgatory_setup import psci_conduit
from kexecemu.kernel.model import KernelModel

CMDLINE = "panic=5"
ORDER = ["kernel", "elfcorehdr", "initrd", "dtb"]
FOREIGN = fixture_path("guests/kexec-tools-purgatory.ro")


def options(**given: str) -> dict[str, str]:
    return {f"KEXEC_PURGATORY_{name}": value for name, value in given.items()}


def loaded(image: bytes = IMAGE, purgatory: object = True, **given: str) -> tuple[KernelModel, Kimage]:
    kernel = small(options=options(**given), purgatory=purgatory)
    image_loaded = kernel.kexec_file_load(image, INITRD, CMDLINE)
    assert image_loaded is not None
    return kernel, image_loaded


def in_memory(kernel: KernelModel, name: str) -> bytes:
    assert kernel.image is not None and kernel.image.purgatory is not None
    purgatory = kernel.image.purgatory
    return kernel.ram.read(purgatory.symbol_phys(name), purgatory.symbol_size(name))


def number(kernel: KernelModel, name: str) -> int:
    (value,) = struct.unpack("<Q", in_memory(kernel, name))
    return int(value)


def memory_of(kernel: KernelModel, segment: Segment) -> bytes:
    return kernel.ram.read(segment.mem, segment.memsz)


# -- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({"POLICY": "y"}, "KEXEC_PURGATORY_POLICY is one of stop, reset, off, return, boot, repair, not 'y'"),
        ({"POLICY": ""}, "KEXEC_PURGATORY_POLICY is one of"),
        ({"MMU": "stop"}, "KEXEC_PURGATORY_MMU is y or n, not 'stop'"),
        ({"POLICY": "repair"}, "KEXEC_PURGATORY_POLICY=repair needs KEXEC_PURGATORY_COPY=y"),
        ({"POLICY": "repair", "COPY": "n"}, "KEXEC_PURGATORY_POLICY=repair needs KEXEC_PURGATORY_COPY=y"),
    ],
)
def test_what_no_purgatory_can_be_told_is_refused_in_one_clear_line(
    given: dict[str, str], words: str
) -> None:
    with pytest.raises(InputError) as refusal:
        KernelConfig(options=options(**given))
    assert words in str(refusal.value) and "\n" not in str(refusal.value)


@pytest.mark.parametrize(
    ("given", "chosen"),
    [
        ({}, False),
        ({"POLICY": "reset"}, False),
        ({"POLICY": "boot"}, True),
        ({"POLICY": "repair", "COPY": "y"}, True),
        ({"POLICY": "boot", "CHOSEN": "n"}, False),
        ({"CHOSEN": "y"}, True),
    ],
)
def test_policies_that_go_on_tell_the_next_kernel_unless_told_not_to(
    given: dict[str, str], chosen: bool
) -> None:
    assert KernelConfig(options=options(**given)).enabled("KEXEC_PURGATORY_CHOSEN") is chosen


@pytest.mark.parametrize(
    ("given", "symbol"),
    [
        ({"MMU": "n"}, "purgatory_no_mmu"),
        ({"CRYPTO": "n"}, "purgatory_no_crypto"),
        ({"POLICY": "off"}, "purgatory_policy"),
        ({"PAGE_DIGESTS": "y"}, "purgatory_page_digests"),
        ({"COPY": "y"}, "purgatory_copy"),
        ({"CHOSEN": "y"}, "purgatory_chosen"),
    ],
)
def test_what_this_purgatory_cannot_do_is_not_silently_left_out(
    given: dict[str, str], symbol: str, tmp_path: Path
) -> None:
    kernel = small(options=options(**given), purgatory=small_purgatory(tmp_path))
    with pytest.raises(InputError, match=f"this purgatory has no symbol {symbol}"):
        kernel.kexec_file_load(IMAGE, INITRD, CMDLINE)


def test_without_a_purgatory_its_options_mean_nothing() -> None:
    _, image = loaded(purgatory="none", PAGE_DIGESTS="y", COPY="y", CHOSEN="y")
    _, plain = loaded(purgatory="none")
    assert image.segments == plain.segments


@pytest.mark.parametrize(
    ("policy", "value"), [("stop", 0), ("reset", 1), ("off", 2), ("return", 3), ("boot", 4), ("repair", 5)]
)
def test_a_policy_is_told_by_the_number_that_the_header_gives_it(policy: str, value: int) -> None:
    header = (purgatory_path().parent / "options.h").read_text()
    word = {"boot": "BOOT_ANYWAY"}.get(policy, policy.upper())
    assert f"PURGATORY_POLICY_{word} = {value}," in header
    kernel, _ = loaded(POLICY=policy, COPY="y")
    assert number(kernel, "purgatory_policy") == value


def test_what_is_switched_off_is_told_and_nothing_else_is() -> None:
    kernel, _ = loaded()
    assert (number(kernel, "purgatory_no_mmu"), number(kernel, "purgatory_no_crypto")) == (0, 0)
    kernel, _ = loaded(MMU="n")
    assert (number(kernel, "purgatory_no_mmu"), number(kernel, "purgatory_no_crypto")) == (1, 0)
    kernel, _ = loaded(CRYPTO="n")
    assert (number(kernel, "purgatory_no_mmu"), number(kernel, "purgatory_no_crypto")) == (0, 1)


# -- places and PSCI -------------------------------------------------------------------------------------------


def test_the_device_tree_s_place_and_the_board_s_way_to_call_psci_are_told() -> None:
    kernel, image = loaded()
    assert number(kernel, "purgatory_dtb") == image.dtb_mem
    assert number(kernel, "purgatory_psci_conduit") == 1  # QEMU's virt machine has PSCI by HVC


@pytest.mark.parametrize(
    ("method", "conduit"), [(b"hvc\0", 1), (b"smc\0", 2), (b"svc\0", 0), (b"", 0), (None, 0)]
)
def test_psci_is_called_as_the_device_tree_says(method: bytes | None, conduit: int) -> None:
    dtb = real("main.dtb")
    tree = FdtEditor(dtb, len(dtb) + 256)
    node = tree.path_offset("/psci")
    assert node is not None
    if method is None:
        tree.delprop(node, "method")
    else:
        tree.setprop(node, "method", method)
    assert psci_conduit(tree.to_bytes()) == conduit


def test_no_psci_node_and_no_device_tree_at_all_mean_no_psci() -> None:
    dtb = real("main.dtb")
    assert (psci_conduit(dtb), psci_conduit(dtb.replace(b"arm,psci", b"acme,psc")), psci_conduit(b"")) == (
        1,
        0,
        0,
    )


# -- digests ---------------------------------------------------------------------------------------------------


def test_every_region_has_its_own_digest_of_what_memory_holds() -> None:
    kernel, image = loaded()
    expected = b"".join(hashlib.sha256(memory_of(kernel, one)).digest() for one in image.segments[:4])
    assert in_memory(kernel, "purgatory_region_digests") == expected.ljust(16 * 32, b"\0")


@pytest.mark.parametrize("given", [{}, {"POLICY": "boot", "PAGE_DIGESTS": "y"}])
def test_the_purgatory_s_own_digest_covers_all_that_lies_before_it_as_loaded(given: dict[str, str]) -> None:
    kernel, image = loaded(**given)
    purgatory = image.purgatory
    assert purgatory is not None
    start, end = purgatory.symbol_phys("purgatory_start"), purgatory.symbol_phys("purgatory_self_digest")
    assert image.start == start == purgatory.segment.mem
    assert (
        in_memory(kernel, "purgatory_self_digest")
        == hashlib.sha256(kernel.ram.read(start, end - start)).digest()
    )
    # All that the loader sets is in there.
    for name in ("purgatory_sha_regions", "purgatory_chosen", "purgatory_region_digests", "purgatory_policy"):
        assert start < purgatory.symbol_phys(name) < end


def test_the_table_has_a_digest_of_every_page_and_is_the_last_hashed_region() -> None:
    kernel, image = loaded(PAGE_DIGESTS="y")
    assert [one.name for one in image.segments] == [*ORDER, "page-digests", "purgatory"]
    described = b"".join(memory_of(kernel, one) for one in image.segments[:4])
    table = image.segments[4]
    expected = b"".join(
        hashlib.sha256(described[at : at + 4096]).digest() for at in range(0, len(described), 4096)
    )
    assert bytes(table.buf) == expected
    assert memory_of(kernel, table) == expected.ljust(table.memsz, b"\0")
    assert number(kernel, "purgatory_page_digests") == table.mem
    assert image.sha_regions == [one.area for one in image.segments[:5]]
    assert image.digest == hashlib.sha256(described + memory_of(kernel, table)).digest()


def test_the_copy_repeats_every_region_but_the_table_and_is_not_hashed() -> None:
    kernel, image = loaded(PAGE_DIGESTS="y", COPY="y")
    assert [one.name for one in image.segments] == [*ORDER, "copy", "page-digests", "purgatory"]
    copy = image.segments[4]
    assert memory_of(kernel, copy) == b"".join(memory_of(kernel, one) for one in image.segments[:4])
    assert number(kernel, "purgatory_copy") == copy.mem
    assert copy.area not in image.sha_regions and len(image.sha_regions) == 5
    (event,) = kernel.board.timeline.of("purgatory_tables")
    assert "second copy: 0x" in event.text and ", 100.0 % of the image" in event.text


def test_table_and_copy_are_of_the_kernel_as_it_is_after_its_text_offset_was_taken_off() -> None:
    kernel, image = loaded(
        arm64_image(0x4000, text_offset=0x80000, image_size=0x10000), PAGE_DIGESTS="y", COPY="y"
    )
    regions = [memory_of(kernel, one) for one in image.segments[:4]]
    assert len(regions[0]) == 0x10000
    assert memory_of(kernel, image.segments[4]) == b"".join(regions)
    assert len(image.segments[5].buf) == 32 * sum(len(one) // 4096 for one in regions)


def test_by_default_there_is_neither_table_nor_copy_nor_record_and_the_purgatory_is_told_so() -> None:
    kernel, image = loaded()
    assert [one.name for one in image.segments] == [*ORDER, "purgatory"]
    for name in ("purgatory_page_digests", "purgatory_copy", "purgatory_chosen", "purgatory_policy"):
        assert number(kernel, name) == 0
    assert not kernel.board.timeline.of("purgatory_tables")


def test_no_option_moves_or_changes_a_segment_that_was_there_without_it() -> None:
    _, plain = loaded(purgatory="none")
    _, image = loaded(POLICY="reset", PAGE_DIGESTS="y", COPY="y", MMU="n", CRYPTO="n")
    assert image.segments[:4] == plain.segments


def test_a_copy_that_does_not_fit_is_refused_by_name() -> None:
    kernel = small(options=options(COPY="y"))
    with pytest.raises(KexecError) as refusal:
        kernel.kexec_file_load(arm64_image(0x4000, image_size=40 << 20), INITRD, CMDLINE)
    assert refusal.value.errno == EADDRNOTAVAIL and "copy needs" in refusal.value.reason


@given(st.lists(st.tuples(st.binary(max_size=300), st.integers(0, 9000)), max_size=4))
def test_the_table_is_as_long_as_was_said_before_its_contents_were_known(
    parts: list[tuple[bytes, int]],
) -> None:
    segments = [Segment("kernel", buf, 0x1000, len(buf) + more) for buf, more in parts]
    table = page_digests(segments)
    assert len(table) == page_digests_size([one.memsz for one in segments])
    contents = [one.content() for one in segments]
    pages = [content[at : at + 4096] for content in contents for at in range(0, len(content), 4096)]
    assert table == b"".join(hashlib.sha256(page).digest() for page in pages)


# -- the verdict's place in the device tree --------------------------------------------------------------------


def test_the_record_s_place_is_the_property_s_value_in_the_loaded_device_tree() -> None:
    kernel, image = loaded(CHOSEN="y")
    dtb = image.segment("dtb")
    assert dtb is not None and image.verdict_record is not None
    kernel.ram.write(image.verdict_record.start, bytes(range(152)))
    tree = Fdt(kernel.ram.read(dtb.mem, dtb.bufsz))
    chosen = tree.path_offset("/chosen")
    assert chosen is not None
    assert tree.getprop(chosen, "linux,purgatory-verdict") == bytes(range(152))
    assert number(kernel, "purgatory_chosen") == image.verdict_record.start
    assert (image.verdict_record.size, image.verdict_record.start % 4) == (152, 0)


def test_the_record_is_zeros_at_first_and_what_is_hashed_has_the_zeros() -> None:
    kernel, image = loaded(CHOSEN="y")
    assert image.verdict_record is not None
    assert kernel.ram.read(image.verdict_record.start, 152) == bytes(152)
    assert (
        image.digest
        == hashlib.sha256(b"".join(memory_of(kernel, one) for one in image.segments[:4])).digest()
    )


def test_a_verdict_about_an_earlier_kernel_is_not_handed_on() -> None:
    base = real("main.dtb")
    told = add_verdict_record(base)
    assert b"linux,purgatory-verdict" in told

    def build(dtb: bytes) -> Fdt:
        return Fdt(
            kexec_device_tree(
                dtb, old_dtb_phys=0, initrd=None, cmdline=None, elfcorehdr=None, crashk_res=None
            )
        )

    tree = build(told)
    chosen = tree.path_offset("/chosen")
    assert chosen is not None and tree.getprop(chosen, "linux,purgatory-verdict") is None
    names = [one.name for one in tree.properties(chosen)]
    plain = build(base)
    at = plain.path_offset("/chosen")
    assert at is not None and names == [one.name for one in plain.properties(at)]


# -- other purgatories -----------------------------------------------------------------------------------------


def test_a_purgatory_with_the_kernel_s_two_symbols_alone_is_loaded_and_runs(tmp_path: Path) -> None:
    kernel, image = loaded(purgatory=small_purgatory(tmp_path))
    assert in_memory(kernel, "purgatory_sha256_digest") == image.digest
    assert number(kernel, "purgatory_kernel_entry") == image.kernel_entry


def test_a_purgatory_of_kexec_tools_is_loaded_by_kexec_file_load_with_its_own_symbols() -> None:
    kernel, image = loaded(purgatory=FOREIGN)
    regions = b"".join(struct.pack("<QQ", one.mem, one.memsz) for one in image.segments[:4])
    assert in_memory(kernel, "sha256_regions") == regions.ljust(256, b"\0")
    assert in_memory(kernel, "sha256_digest") == image.digest
    assert number(kernel, "arm64_kernel_entry") == image.kernel_entry
    assert number(kernel, "arm64_dtb_addr") == image.dtb_mem
    assert number(kernel, "arm64_sink") == kernel.console_phys != 0


def test_an_object_with_neither_interface_is_refused_as_the_kernel_does(tmp_path: Path) -> None:
    path = tmp_path / "purgatory.ro"
    path.write_bytes(FOREIGN.read_bytes().replace(b"sha256_regions\0", b"sha256_REGIONS\0"))
    with pytest.raises(KexecError) as refusal:
        small(purgatory=path).kexec_file_load(IMAGE, INITRD, CMDLINE)
    assert refusal.value.errno == EINVAL
    assert refusal.value.reason == "purgatory: symbol purgatory_sha_regions does not exist"


def test_what_a_purgatory_may_write_is_its_data_and_bss_but_not_what_the_loader_set() -> None:
    obj = parse_purgatory(purgatory_path().read_bytes())
    purgatory = LoadedPurgatory(obj, lambda buf, memsz, align: Segment("purgatory", buf, 0x50000000, memsz))
    scratch = purgatory.scratch()

    def in_scratch(name: str) -> bool:
        return any(purgatory.symbol_phys(name) in area for area in scratch)

    assert in_scratch("purgatory_verdict")
    assert not in_scratch("purgatory_sha_regions") and not in_scratch("purgatory_start")
    assert not in_scratch("purgatory_self_digest")
