"""dma-ranges of any tree against drivers/of/address.c of 6.12 and 7.3, written down once more function by function."""

from __future__ import annotations

from dataclasses import dataclass, field

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.formats.fdt import Fdt, NodeSpec, build, cells
from kexecemu.kernel.base.era import Era
from kexecemu.kernel.boot.of_dma import dma_max_cpu_address

BAD = U64_MAX = (1 << 64) - 1
IO, MEM, PREFETCH, MEM_64 = 0x100, 0x200, 0x2000, 0x100000  # IORESOURCE_*
FLAG_CELLS = {"pci": 1, "isa": 1, "default-flags": 1, "default": 0}
CELL = st.sampled_from([0, 0, 0, 0, 1, 0x2000000, 0x43000000, 0x10000000, 0x40000000, 0x80000000, 0xFFFFFFFF])


class ReadForEver(Exception):
    """What cells of no number end in, before somebody looks at them."""


@dataclass
class Device:
    """struct device_node, as far as it matters here."""

    name: str
    kind: str | None = None
    own: int | None = None  # #address-cells
    size: int | None = None  # #size-cells
    status: str | None = None
    ranges: list[int] | None = None
    parent: Device | None = None
    children: list[Device] = field(default_factory=list)

    def spec(self) -> NodeSpec:
        said: dict[str, NodeSpec | bytes | list[str]] = {}
        for name, number in (("#address-cells", self.own), ("#size-cells", self.size)):
            if number is not None:
                said[name] = cells(number)
        for name, text in (("device_type", self.kind), ("status", self.status)):
            if text is not None:
                said[name] = [text]
        if self.ranges is not None:
            said["dma-ranges"] = cells(*self.ranges)
        return {**said, **{f"{one.name}@{at}": one.spec() for at, one in enumerate(self.children)}}


def read_number(some: list[int]) -> int:
    number = 0
    for one in some:
        number = (number << 32 | one) & U64_MAX
    return number


def bus_n(np: Device | None, name: str) -> int:
    while np is not None:
        number = np.own if name == "address" else np.size
        if number is not None:
            return number
        np = np.parent
    return 1


def n_cells(np: Device, name: str) -> int:
    return bus_n(np.parent or np, name)


def match_bus(np: Device, newest: bool) -> str | None:
    if np.kind in ("pci", "pciex", "vci", "ht") or np.name == "pcie":
        return "pci"
    if np.name == "isa":
        return "isa"
    if np.own is not None and bus_n(np, "address") == 3:
        return "default-flags"
    return "default" if np.own is not None or not newest else None


def get_flags(bus: str, cell: int) -> int:
    if bus == "pci":
        flags = {0: 0, 1: IO, 2: MEM, 3: MEM | MEM_64}[cell >> 24 & 3]
        return flags | (PREFETCH if cell & 0x40000000 else 0)
    if bus == "isa":
        return IO if cell & 1 else MEM
    return cell if bus == "default-flags" else MEM


def count_cells(bus: str, dev: Device) -> tuple[int, int]:
    if bus in ("pci", "isa"):
        return (3, 2) if bus == "pci" else (2, 1)
    return n_cells(dev, "address"), n_cells(dev, "size")


def good(na: int, ns: int) -> bool:
    return 0 < na <= 4 and ns > 0


def bus_map(bus: str, addr: list[int], entry: list[int], na: int, ns: int, pna: int) -> int:
    if bus == "pci" and (get_flags(bus, addr[0]) ^ get_flags(bus, entry[0])) & (MEM | IO):
        return BAD
    if bus == "isa" and (addr[0] ^ entry[0]) & 1:
        return BAD
    if bus == "default-flags" and addr[0] != entry[0]:
        return BAD
    fna = FLAG_CELLS[bus]
    cp, s = read_number(entry[fna:na]), read_number(entry[na + pna : na + pna + ns])
    da = read_number(addr[fna:na])
    return BAD if da < cp or da >= (cp + s) & U64_MAX else da - cp


def bus_translate(bus: str, addr: list[int], offset: int, na: int) -> list[int]:
    flags = FLAG_CELLS[bus]
    a = (read_number(addr[flags:na]) + offset) & U64_MAX
    rest = [0] * (na - flags)
    if len(rest) > 1:
        rest[-2] = a >> 32
    if rest:
        rest[-1] = a & 0xFFFFFFFF
    return addr[:flags] + rest


def translate_dma_address(dev: Device, in_addr: list[int], newest: bool) -> int:
    parent = dev.parent
    bus = match_bus(parent, newest) if parent is not None else None
    if parent is None or bus is None:
        return BAD
    na, ns = count_cells(bus, dev)
    if not good(na, ns):
        return BAD
    addr = (in_addr + [0] * 4)[:na]
    while True:
        dev, parent = parent, parent.parent
        if parent is None:
            return read_number(addr)
        pbus = match_bus(parent, newest)
        if pbus is None:
            return BAD
        pna, pns = count_cells(pbus, dev)
        if not good(pna, pns):
            return BAD
        ranges, offset = dev.ranges or [], BAD
        if not ranges:
            offset = read_number(addr)
            kept = (addr + [0] * 4)[: FLAG_CELLS[pbus]]
            addr = kept + [0] * (pna - len(kept))
        else:
            one = na + pna + ns
            for at in range(0, len(ranges) - one + 1, one):
                offset = bus_map(bus, addr, ranges[at : at + one], na, ns, pna)
                if offset != BAD:
                    addr = ranges[at + na : at + na + pna]
                    break
            if offset == BAD:
                return BAD
        addr = bus_translate(pbus, addr, offset, pna)
        na, ns, bus = pna, pns, pbus


def widths(np: Device) -> tuple[int, int, int]:
    return bus_n(np, "address"), n_cells(np, "address"), bus_n(np, "size")


def max_cpu_address(np: Device, newest: bool) -> int:
    highest = U64_MAX
    if np.ranges:
        na, pna, ns = widths(np)
        bus = match_bus(np, newest)
        refused = bus is None or not good(na, ns) or not 0 < pna <= 4
        if not (newest and refused):
            assert bus is not None
            fna, step, end = FLAG_CELLS[bus], na + pna + ns, 0
            if na < fna or not step:
                raise ReadForEver
            found: list[tuple[int, int, int, int]] = []
            for at in range(0, len(np.ranges) - step + 1, step):
                entry = np.ranges[at : at + step]
                cpu = translate_dma_address(np, np.ranges[at + na :], newest)
                what = get_flags(bus, np.ranges[at]), read_number(entry[fna:na]), cpu
                length = read_number(entry[na + pna :])
                if found:
                    flags, bus_addr, cpu_addr, size = found[-1]
                    if what == (flags, (bus_addr + size) & U64_MAX, (cpu_addr + size) & U64_MAX):
                        found[-1] = flags, bus_addr, cpu_addr, (size + length) & U64_MAX
                        continue
                found.append((*what, length))
            for _, _, cpu_addr, size in found:
                if (cpu_addr + size) & U64_MAX > end:
                    end = (cpu_addr + size - 1) & U64_MAX
            highest = min(highest, end)
    below = [one for one in np.children if one.status in (None, "ok", "okay")]
    return min([highest, *(max_cpu_address(one, newest) for one in below)])


@st.composite
def entries(draw: st.DrawFn, na: int, pna: int, ns: int) -> list[int]:
    """Some, of which one may go on where the one before it ends, with flags alike or nearly so; and some cells more."""
    step = na + pna + ns
    found = draw(st.lists(CELL, min_size=step, max_size=step))
    for _ in range(draw(st.integers(0, 2)) if step else 0):
        last, following = found[-step:], draw(st.lists(CELL, min_size=step, max_size=step))
        if ns and draw(st.integers(0, 2)):
            following = [*last[: na + pna], *following[na + pna :]]
            for low in (na - 1, na + pna - 1):
                following[low] = last[low] + last[-1] & 0xFFFFFFFF
            following[0] ^= draw(st.sampled_from([0, 0, 0, 1, 0x100, 0x40000000, 0x1000000])) if na > 2 else 0
        found += following
    return found + draw(st.lists(CELL, max_size=2))


@st.composite
def devices(draw: st.DrawFn, depth: int = 3, parent: Device | None = None) -> Device:
    name = "" if parent is None else draw(st.sampled_from(["soc", "soc", "b", "isa", "pcie", "pci"]))
    device = Device(
        name,
        draw(st.sampled_from([None, None, None, "pci", "ht", "soc"])),
        draw(st.sampled_from([None, 1, 2, 2, 3, 3, 0, 4, 5])),
        draw(st.sampled_from([None, 1, 2, 2, 0])),
        None if parent is None else draw(st.sampled_from([None, None, "okay", "ok", "disabled"])),
        parent=parent,
    )
    if draw(st.integers(0, 3)):
        device.ranges = draw(entries(*widths(device)))
    if depth:
        device.children = [draw(devices(depth - 1, device)) for _ in range(draw(st.integers(0, 2)))]
    return device


@pytest.mark.parametrize("era", [Era.V6_12, Era.V7_3])
@settings(max_examples=120)
@given(root=devices())
def test_devices_reach_what_the_kernel_s_own_functions_find(era: Era, root: Device) -> None:
    try:
        expected = max_cpu_address(root, era is Era.V7_3)
    except ReadForEver:
        return
    assert hex(dma_max_cpu_address(Fdt(build(root.spec())), era)) == hex(expected)


@pytest.mark.parametrize(
    ("kind", "flags", "one"),
    [
        ("pci", (0x2000000, 0x2000000), True),
        ("pci", (0x2000000, 0x82000010), True),  # bits that say nothing of a range
        ("pci", (0x2000000, 0x3000000), False),  # 64 bits
        ("pci", (0x2000000, 0x1000000), False),
        ("pci", (0x2000000, 0x42000000), False),  # prefetchable
        (None, (0x2000000, 0x2000000), True),
        (None, (0x2000000, 0x2000010), False),
    ],
)
def test_entries_are_one_where_they_go_on_and_their_flags_say_the_same(
    kind: str | None, flags: tuple[int, int], one: bool
) -> None:
    """Two that end with all addresses: of one the end is 0, of two that of the first."""
    first, second = ((0, at, 0xFFFFFFFF, 0x80000000 + at, 0, 0x40000000) for at in (0, 0x40000000))
    root = Device("", None, 2, 2)
    root.children = [Device("soc", kind, 3, 2, None, [flags[0], *first, flags[1], *second], root)]
    for era in (Era.V6_12, Era.V7_3):
        assert max_cpu_address(root, era is Era.V7_3) == (0 if one else 0xFFFFFFFFBFFFFFFF)
        assert dma_max_cpu_address(Fdt(build(root.spec())), era) == (0 if one else 0xFFFFFFFFBFFFFFFF)
