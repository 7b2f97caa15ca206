# SPDX-License-Identifier: GPL-2.0-or-later
"""The formats: good inputs of each, how they are changed, and what of kexecemu has to take whatever comes of that."""

from __future__ import annotations

import gzip
import struct
import sys
import tempfile
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "tests"))  # signing.py, as the tests find it

from fuzz.mutate import Once, bytes_once, der_once, text_once, words_once  # noqa: E402

DATA = ROOT / "tests" / "data"
BINARY: tuple[Once, ...] = (bytes_once, words_once, words_once)
TEXT: tuple[Once, ...] = (bytes_once, text_once, text_once, text_once)
DER: tuple[Once, ...] = (bytes_once, der_once, der_once)


@dataclass(frozen=True)
class Format:
    """seeds gives good inputs; make what takes one. heavy: one takes milliseconds, so that a million is a night."""

    seeds: Callable[[], list[bytes]]
    make: Callable[[], Callable[[bytes], object]]
    ways: Sequence[Once]
    heavy: bool = False
    most: int = 1 << 17


def _packed(*names: str) -> list[bytes]:
    return [gzip.decompress((DATA / name).read_bytes()) for name in names]


def _guest(*names: str) -> list[bytes]:
    return [(ROOT / "fixtures" / "guests" / name).read_bytes() for name in names]


def _image() -> Callable[[bytes], object]:
    from kexecemu.formats import image

    def run(data: bytes) -> None:
        image.has_magic(data)
        image.missing_bytes(data)
        header = image.parse(data)
        _ = header.big_endian, header.page_size

    return run


def _image_seeds() -> list[bytes]:
    import signing

    return [_guest("capture-Image")[0][:4096], signing.pe_image()[:4096], bytes(64)]


def _pe() -> Callable[[bytes], object]:
    from kexecemu.formats import pe
    from kexecemu.kernel.signature.keyring import Keyring
    from kexecemu.kernel.signature.signature import signature_message, verify_pefile_signature

    keyring = Keyring.of("fuzz", [])

    def run(data: bytes) -> None:
        pe.is_pe(data)
        for one in (signature_message, lambda data: verify_pefile_signature(data, keyring)):
            _refusable(one, data)
        file = pe.parse(data)
        table = file.certificate_table()
        if table is not None:
            _refusable(file.win_certificate, table)
        _refusable(lambda file: file.sections, file)
        pe.digest_ranges(file)
        pe.digest(file, "sha256")

    return run


def _pe_seeds() -> list[bytes]:
    import signing

    image = signing.pe_image()
    return [image, signing.signed(image), *(make() for make in signing.BAD_IMAGES.values())]


def _cms() -> Callable[[bytes], object]:
    import signing

    from kexecemu.formats import authenticode, cms, x509
    from kexecemu.kernel.signature.keyring import Blacklist, Keyring
    from kexecemu.kernel.signature.pkcs7 import parse_message
    from kexecemu.kernel.signature.pkcs7_trust import validate_trust
    from kexecemu.kernel.signature.public_key import CryptoModules

    crypto, blacklist = CryptoModules(), Blacklist()
    keyring = Keyring.of("fuzz", [x509.parse(signing.der_of(signing.CA))])

    def run(data: bytes) -> None:
        _refusable(authenticode.parse, data)
        parsed = cms.parse(data)
        if parsed.content is not None:
            _refusable(authenticode.parse, parsed.content.encoded)
        message = parse_message(data, crypto, blacklist)
        message.verify()
        validate_trust(message, keyring, crypto)

    return run


def _cms_seeds() -> list[bytes]:
    import signing

    from kexecemu.errors import KexecemuError
    from kexecemu.formats import cms
    from kexecemu.kernel.signature.signature import signature_message

    images = [signing.signed(signing.pe_image()), *(make() for make in signing.BAD_IMAGES.values())]
    found = []
    for image in images:
        try:
            found.append(signature_message(image))
        except KexecemuError:
            continue
    content = cms.parse(found[0]).content
    assert content is not None
    return [*found, content.encoded]


def _x509() -> Callable[[bytes], object]:
    from kexecemu.formats import x509

    def run(data: bytes) -> None:
        one = x509.parse(data)
        _ = one.id, one.description, one.subject_name, one.issuer_name

    return run


def _x509_seeds() -> list[bytes]:
    import signing

    kinds = [("ca", "ca"), ("ec", "ec"), ("signer", "ca"), ("odd", "ca"), ("signer", "ec")]
    certificates = [
        signing.certificate(f"kernel {key}", key, f"kernel {issuer}", issuer, serial=7 + at, ca=key == issuer)
        for at, (key, issuer) in enumerate(kinds)
    ]
    return [*map(signing.der_of, certificates), signing.version_1(certificates[0], "ca")]


def _device_tree() -> Callable[[bytes], object]:
    from kexecemu.formats.fdt_edit import FdtEditor
    from kexecemu.formats.fdt_read import Fdt
    from kexecemu.kernel.boot import cpus, fdt_memory, fill_memory, firmware, tree_board

    asked = (fdt_memory.memory_ranges, firmware.initrd_range, cpus.cpu_affinities)
    board = (tree_board.gic_phys, tree_board.console_of, tree_board.psci_conduit)

    def run(data: bytes) -> None:
        tree = Fdt(data)
        _refusable(tree.mem_reservations)
        for ask in (*asked, *board):
            _refusable(ask, tree)
        _refusable(firmware.set_bootargs, data, "crashkernel=256M console=ttyAMA0")
        _refusable(fill_memory.fill_memory, data, 2 << 30)
        editor = FdtEditor(data, len(data) + 512)
        chosen = tree.path_offset("/chosen") or 0
        _refusable(editor.delprop, chosen, "bootargs")
        _refusable(editor.appendprop_addrrange, 0, chosen, "linux,usable-memory-range", 0x40000000, 4096)
        _refusable(editor.add_subnode, 0, "new")
        _refusable(editor.add_mem_rsv, 0x40000000, 4096)
        _refusable(editor.pack)
        for node in tree.nodes():
            for one in tree.properties(node.offset):
                for get in (tree.get_u32, tree.get_u64, tree.get_cells, tree.get_strings):
                    _refusable(get, node.offset, one.name)
            _refusable(tree.address_cells, node.offset)

    return run


def _tree_seeds() -> list[bytes]:
    from kexecemu.formats.fdt import build, cells, reg64

    memory = {"device_type": "memory", "reg": reg64(0x40000000, 1 << 30)}
    root = {
        "#address-cells": cells(2),
        "#size-cells": cells(2),
        "memory@40000000": memory,
        "chosen": {"bootargs": "x"},
    }
    names = (
        "capture/capture-6.1.192.dtb.gz",
        "purgatory-runs/board-initrd.dtb.gz",
        "purgatory-runs/612.dtb.gz",
    )
    return [build(root, mem_reservations=[(0x40000000, 4096)]), *_packed(*names)]


def _et_rel() -> Callable[[bytes], object]:
    from kexecemu.formats import elfrel
    from kexecemu.kernel.image.purgatory import link_at, parse_purgatory

    def run(data: bytes) -> None:
        _refusable(elfrel.object_or_embedded, data)
        _refusable(elfrel.parse, data)
        link_at(parse_purgatory(data), 0x6FE00000)

    return run


def _et_rel_seeds() -> list[bytes]:
    objects = [path.read_bytes() for path in sorted((ROOT / "purgatory").glob("*.ro"))]
    return [*objects, *_guest("kexec-tools-purgatory.ro"), *_packed("kernel/purgatory-small.ro.gz")]


def _core() -> Callable[[bytes], object]:
    from kexecemu.formats import elfcore, elfimage

    def run(data: bytes) -> None:
        _refusable(elfimage.parse, data)
        elfcore.parse_core_header(data)

    return run


def _core_seeds() -> list[bytes]:
    cores = _packed("linux-6.1.192/vmcore.head.gz", "linux-6.1.192/kaslr-vmcore.head.gz")
    elf = _packed("linux-6.1.192/elf-segment.bin.gz")
    return [*(one[:16384] for one in cores), *elf, _guest("capture.elf")[0][:65536]]


def _notes() -> Callable[[bytes], object]:
    from kexecemu.formats.elfnote import iterate_notes

    return lambda data: list(iterate_notes(data))


def _notes_seeds() -> list[bytes]:
    from kexecemu.formats.elfnote import crash_note, vmcoreinfo_note

    return [
        crash_note(0, range(34)),
        crash_note(7, [1 << 63] * 34) * 3,
        vmcoreinfo_note(b"OSRELEASE=6.1\n") + bytes(64),
    ]


def _toml() -> Callable[[bytes], object]:
    from kexecemu.scenario.read import read_scenario

    folder = tempfile.TemporaryDirectory(prefix="kexecemu-fuzz-")
    path = Path(folder.name) / "one.toml"

    def run(data: bytes, _keep: object = folder) -> None:
        path.write_bytes(data)
        read_scenario(path)

    return run


def _toml_seeds() -> list[bytes]:
    return [path.read_bytes() for path in sorted((ROOT / "fixtures" / "scenarios").glob("*.toml"))]


def _crashkernel() -> Callable[[bytes], object]:
    from kexecemu.kernel.base.cmdline import memparse, parameters, parse_crashkernel_option

    def run(data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        for suffix in (None, ",high", ",low"):
            parse_crashkernel_option(text, 1 << 30, suffix)
        parameters(text, "crashkernel")
        memparse(text.partition("=")[2])

    return run


def _crashkernel_seeds() -> list[bytes]:
    texts = (
        "crashkernel=256M", "crashkernel=64M@0x50000000", "crashkernel=1G,high crashkernel=64M,low",
        "crashkernel=4G,high", "crashkernel=512M-2G:64M,2G-:128M", "crashkernel=1G-2G:64M,4G-:1G@16M console=ttyAMA0",
        "crashkernel=0x1000000",
    )  # fmt: skip
    return [text.encode() for text in texts]


def _targets() -> Callable[[bytes], object]:
    from kexecemu.machine.memory.ram import Ram
    from kexecemu.machine.ranges import PhysRange
    from kexecemu.stray.fault import Fault, parse_hex, parse_when
    from kexecemu.stray.target import resolve_by

    ram = Ram([PhysRange.of(0x40000000, 1 << 20)])
    area = PhysRange.of(0x40001000, 0x2000)

    def run(data: bytes) -> None:
        text = data.decode(errors="surrogateescape")
        _refusable(parse_when, text, "when")
        where, _, what = text.partition("=")
        resolve_by(ram, lambda base: area, Fault(where, write=parse_hex(what, "write")))

    return run


def _targets_seeds() -> list[bytes]:
    texts = ("initrd+0x1000=ff", "purgatory:purgatory_sha256_digest+4=00", "0x40000010=a5", "vmlinux:crash_notes=1234",
             "crashkernel-free+512=0xff_ff", "kernel=00", "hashing-128", "after-load")  # fmt: skip
    return [text.encode() for text in texts]


def _fault_ids() -> Callable[[bytes], object]:
    from kexecemu.campaign.fault import CampaignFault
    from kexecemu.machine.ranges import PhysRange

    area = PhysRange.of(0x40001000, 8)

    def run(data: bytes) -> None:
        fault = CampaignFault.parse(data.decode(errors="surrogateescape"))
        fault.fault(area)

    return run


def _fault_seeds() -> list[bytes]:
    texts = (
        "dma.bit-flip.3.initrd+1a2b.hashing-128", "cpu.byte.0.kernel+0.after-load", "dma.word32.0.dtb+10.capture-3",
        "alias.memset.0.crashkernel-free+1000.during-panic", "late-cpu.stuck-at-1.1.dtb+8.hashing-0",
    )  # fmt: skip
    return [text.encode() for text in texts]


def _store() -> Callable[[bytes], object]:
    from kexecemu.campaign.accounting import summarise
    from kexecemu.campaign.database import FILE
    from kexecemu.campaign.store import Store

    folder = tempfile.TemporaryDirectory(prefix="kexecemu-fuzz-")

    def run(data: bytes) -> None:
        for one in Path(folder.name).iterdir():
            one.unlink()
        (Path(folder.name) / FILE).write_bytes(data)
        with Store.read(Path(folder.name)) as store:
            list(store.rows())
            store.table_sha256()
            summarise(store)

    return run


@cache
def _store_seeds() -> list[bytes]:
    import fake_engine

    from kexecemu.campaign.database import FILE
    from kexecemu.campaign.work import plan_campaign, run_campaign

    with tempfile.TemporaryDirectory() as folder:
        planned = plan_campaign(fake_engine.scenario(), Path(), 60, 1, engine=fake_engine.make)
        run_campaign(planned, Path(folder), audit=5)
        return [(Path(folder) / FILE).read_bytes()]


def _verdict() -> Callable[[bytes], object]:
    from types import SimpleNamespace

    from kexecemu.crash.verdict import describe_damage, read_verdict
    from kexecemu.machine.memory.ram import Ram
    from kexecemu.machine.ranges import PhysRange

    ram = Ram([PhysRange.of(0x40000000, 1 << 16)])
    image: Any = SimpleNamespace(sha_regions=[PhysRange.of(0x40000000, 4096)], segment_at=lambda phys: None)

    def run(data: bytes) -> None:
        data = data[:4096]
        ram.write(0x40000000, data.ljust(4096, b"\0"))
        # The size is the file's, which nobody damages.
        for size in {88, 400, len(data)}:
            purgatory: Any = SimpleNamespace(
                symbol_size=lambda name, size=size: size, symbol_phys=lambda name: 0x40000000
            )
            found = read_verdict(ram, purgatory)
            if found is not None:
                describe_damage(found, image)
                _ = found.compared, found.objects

    return run


def _verdict_seeds() -> list[bytes]:
    first = struct.pack("<8sIIQ32s32s", b"PURGVRDT", 2, 3, 4096, bytes(32), bytes(range(32)))
    second = (
        struct.pack("<IIQQQQII", 3, 5, 1, 0, 0, 0, 1, 0)
        + struct.pack("<QQ", 0x40001000, 4096)
        + bytes(15 * 16)
    )
    old = struct.pack("<8sIIQ32s32s", b"PURGVRDT", 1, 2, 4096, bytes(32), bytes(32))
    return [first + second, old]


def _virtio() -> Callable[[bytes], object]:
    from machine.virtio_driver import Driver, Emulated

    from kexecemu.machine.devices.disk import Disk
    from kexecemu.machine.devices.virtio_block import VirtioBlock
    from kexecemu.machine.devices.virtio_mmio import VirtioBus
    from kexecemu.machine.memory.ram import Ram
    from kexecemu.machine.ranges import PhysRange

    base, size = 0x40000000, 1 << 20
    ram = Ram([PhysRange.of(base, size)])

    def run(data: bytes) -> None:
        """The input is the rings, with 64 bytes of registers' offsets and values before them."""
        ram.write(base, bytes(0x20000))
        bus = VirtioBus(ram)
        disk = Disk(1 << 16)
        bus.attach(0, VirtioBlock(disk), lambda level: None)
        driver = Driver(Emulated(bus, ram, 0), base, 8)
        driver.set_up()
        ram.write(base, data[64 : 64 + 0x20000])
        for offset, value in struct.iter_unpack("<II", data[:64].ljust(64, b"\0")):
            bus.write(offset & 0x1FC, 4, value)
            bus.read(offset & 0x1FF, 1 << (value & 3))
        bus.write(0x50, 4, 0)
        bus.write(0x50, 4, 0)
        disk.close()

    return run


def _virtio_seeds() -> list[bytes]:
    """Rings with a chain of three descriptors, and one with an indirect table."""
    base = 0x40000000
    found = []
    for kind in (0, 1, 4, 8, 11, 13):
        rings = bytearray(0x9000)
        parts = [
            (base + 0x10000, 16, 1, 1),
            (base + 0x11000, 512, 1 | (2 if kind in (0, 8) else 0), 2),
            (base + 0x12000, 1, 2, 0),
        ]
        for at, part in enumerate(parts):
            struct.pack_into("<QIHH", rings, 16 * at, *part)
            struct.pack_into("<QIHH", rings, 0x3000 + 16 * at, *part)
        struct.pack_into("<QIHH", rings, 16 * 3, base + 0x3000, 48, 4, 0)
        struct.pack_into("<HHHH", rings, 0x4000, 0, 2, 0, 3)
        rings += bytes(0x10000 - len(rings)) + struct.pack("<IIQ", kind, 0, 1) + struct.pack("<QII", 1, 8, 0)
        found.append(struct.pack("<16I", *([0x50, 0] * 8)) + bytes(rings))
    return found


def _refusable(call: Callable[..., object], *arguments: object) -> None:
    """A call of several on an input: that it is refused is an answer, and the others are asked all the same."""
    from kexecemu.errors import KexecemuError

    with suppress(KexecemuError):
        call(*arguments)


FORMATS: dict[str, Format] = {
    "image": Format(_image_seeds, _image, BINARY),
    "pe": Format(_pe_seeds, _pe, BINARY),
    "cms": Format(_cms_seeds, _cms, DER, heavy=True),
    "x509": Format(_x509_seeds, _x509, DER),
    "device-tree": Format(_tree_seeds, _device_tree, BINARY, heavy=True),
    "et-rel": Format(_et_rel_seeds, _et_rel, BINARY, heavy=True),
    "core": Format(_core_seeds, _core, BINARY),
    "notes": Format(_notes_seeds, _notes, BINARY),
    "toml": Format(_toml_seeds, _toml, TEXT, heavy=True),
    "crashkernel": Format(_crashkernel_seeds, _crashkernel, TEXT, most=8192),
    "targets": Format(_targets_seeds, _targets, TEXT, most=8192),
    "fault-ids": Format(_fault_seeds, _fault_ids, TEXT, most=8192),
    "store": Format(_store_seeds, _store, BINARY, heavy=True),
    "verdict": Format(_verdict_seeds, _verdict, BINARY, most=4096),
    "virtio": Format(_virtio_seeds, _virtio, BINARY, heavy=True),
}
