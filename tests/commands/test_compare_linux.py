"""compare-linux: what counts as a difference, and what is printed; the real one is in tests/real."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from kexecemu import InputError
from kexecemu.cli import main
from kexecemu.formats.fdt import build, cells
from kexecemu.kernel.base.config import Era
from kexecemu.linux.first_records import split_records
from kexecemu.linux.rows import FactRow, Same, compare_messages, compare_trees, compare_vmcoreinfo
from kexecemu.report.linux_rows import print_rows, rows_object
from kexecemu.scenario.linux_compare import config_options

DATA = Path(__file__).parents[1] / "data/first-linux"


def vmcoreinfo(version: str) -> str:
    console = gzip.decompress((DATA / f"console-{version}.txt.gz").read_bytes()).decode()
    return split_records(console)["vmcoreinfo.txt"]


@pytest.mark.parametrize(
    ("release", "era"),
    [
        ("6.1.0-56-cloud-arm64", Era.V6_1),
        ("6.3.13", Era.V6_3),
        ("5.10.0", Era.V6_1),
        ("6.4-rc1", Era.V6_4),
        ("6.6.99", Era.V6_6),
        ("6.8.0-31-generic", Era.V6_8),
        ("6.11.0", Era.V6_11),
        ("6.12.118+deb13-cloud-arm64", Era.V6_12),
        ("6.15.11", Era.V6_15),
        ("6.16-rc1", Era.V6_16),
        ("6.17.0-5-generic", Era.V6_17),
        ("6.19", Era.V6_19),
        ("7.1.9", Era.V7_1),
        ("7.2.13", Era.V7_2),
        ("7.3.4+deb13-cloud-arm64", Era.V7_3),
    ],
)
def test_the_era_is_the_releases(release: str, era: Era) -> None:
    assert Era.of_release(release) is era


def test_what_is_no_release_has_no_era() -> None:
    with pytest.raises(InputError, match="no release of Linux"):
        Era.of_release("")


def test_a_configuration_gives_the_options_that_the_model_knows() -> None:
    text = (
        "CONFIG_ARM64_4K_PAGES=y\n# CONFIG_ARM64_16K_PAGES is not set\nCONFIG_CMA_SIZE_MBYTES=64\n"
        'CONFIG_LOCALVERSION="-x"\nCONFIG_ZONE_DMA=y\n#\n# Kernel Features\n'
    )
    assert config_options(text) == {
        "ARM64_4K_PAGES": "y",
        "ARM64_16K_PAGES": "n",
        "CMA_SIZE_MBYTES": "64",
        "HUGETLB_PAGE": "n",  # which no file says that it is not set
        "ZONE_DMA": "y",
    }
    assert config_options("CONFIG_HUGETLB_PAGE=y\n") == {"HUGETLB_PAGE": "y"}
    assert config_options("") == {}


def test_a_line_is_equal_different_or_does_not_count() -> None:
    assert FactRow("g", "n", "1", "1").same is Same.EQUAL
    assert FactRow("g", "n", "1", "1", "random").same is Same.EQUAL
    assert FactRow("g", "n", "1", "2").same is Same.DIFFERENT
    assert FactRow("g", "n", "1", "2", "random").same is Same.SHOWN


def tree(**chosen: bytes | str) -> bytes:
    return build(
        {"model": "x", "chosen": dict(chosen), "memory@40000000": {"reg": cells(0, 0x40000000, 0, 1)}}
    )


def different(rows: list[FactRow]) -> list[str]:
    return [row.name for row in rows if row.same is Same.DIFFERENT]


def test_trees_differ_by_value_by_what_is_missing_and_by_order() -> None:
    whole = tree(bootargs="a", one=cells(1), two=cells(2))
    assert different(list(compare_trees(whole, whole))) == []
    assert different(list(compare_trees(whole, tree(bootargs="b", one=cells(1), two=cells(2))))) == [
        "/chosen/bootargs"
    ]
    assert different(list(compare_trees(whole, tree(bootargs="a", two=cells(2))))) == ["/chosen/one"]
    assert different(list(compare_trees(tree(bootargs="a", two=cells(2)), whole))) == ["/chosen/one"]
    assert different(list(compare_trees(whole, tree(bootargs="a", two=cells(2), one=cells(1))))) == ["order"]
    assert different(list(compare_trees(whole, b"nonsense"))) == ["blob"]


def test_a_seed_may_differ_but_not_be_missing() -> None:
    seed, other = (tree(**{"kaslr-seed": cells(0, number)}) for number in (1, 2))
    assert different(list(compare_trees(seed, other))) == []
    assert different(list(compare_trees(seed, tree()))) == ["/chosen/kaslr-seed"]


def test_of_vmcoreinfo_numbers_and_keys_count_and_addresses_do_not() -> None:
    real = vmcoreinfo("6.1.192")
    assert different(list(compare_vmcoreinfo(real, real, kaslr=True))) == []

    def changed(old: str, new: str) -> list[str]:
        assert old in real
        return different(list(compare_vmcoreinfo(real, real.replace(old, new), kaslr=True)))

    assert changed("PAGESIZE=4096", "PAGESIZE=16384") == ["PAGESIZE"]
    assert changed("NUMBER(PG_lru)=4", "NUMBER(PG_lru)=5") == ["NUMBER(PG_lru)"]
    assert changed("NUMBER(PG_lru)=4\n", "") == ["NUMBER(PG_lru)"]
    assert changed("SIZE(zone)=1728", "SIZE(zone)=1016") == []
    assert changed("SYMBOL(_stext)=", "SYMBOL(_stext)=f") == []
    assert changed("KERNELOFFSET=", "KERNELOFFSET=f") == []
    assert changed("SYMBOL(_stext)=", "SYMBOL(_etext)=") == ["SYMBOL(_stext)", "SYMBOL(_etext)"]


def test_without_kaslr_what_it_draws_counts_and_what_lies_in_the_image_does_not() -> None:
    real = vmcoreinfo("6.12.118")
    keys = ("KERNELOFFSET", "NUMBER(PHYS_OFFSET)", "NUMBER(kimage_voffset)", "SYMBOL(vmemmap)", "SYMBOL(prb)")
    other = real
    for key in (*keys, "SYMBOL(mem_section)"):
        assert f"{key}=" in real
        other = other.replace(f"{key}=", f"{key}=0x1")
    rows = list(compare_vmcoreinfo(real, other, kaslr=False))
    assert set(different(rows)) == set(keys[:4])
    why = {row.name: row.why for row in rows if row.same is Same.SHOWN}
    assert why["SYMBOL(prb)"].startswith("the model is a kernel image")
    assert why["SYMBOL(mem_section)"].startswith("from the kernel's allocator")
    assert different(list(compare_vmcoreinfo(real, other, kaslr=True))) == []


def test_two_releases_differ_in_what_they_write_down() -> None:
    # compound_dtor went away, VMEMMAP's symbol came.
    old, new = vmcoreinfo("6.1.192"), vmcoreinfo("6.12.118")
    rows = list(compare_vmcoreinfo(new, old, kaslr=True))
    assert {"OFFSET(page.compound_dtor)", "SYMBOL(vmemmap)", "NUMBER(PG_lru)"} <= set(different(rows))


def test_what_was_printed_of_memory_counts_line_by_line() -> None:
    real = """[    0.000000] Linux version 6.12
[    0.000000] Zone ranges:
[    0.000000]   DMA      [mem 0x0000000040000000-0x00000000bfffffff]
[    0.000000]   Device   empty
[    0.000000] crashkernel reserved: 0x1 - 0x2 (64 MB)
[    0.000000] Kernel command line: crashkernel=64M
"""
    assert different(list(compare_messages(real, real.replace("0.000000", "1.234567")))) == []
    missing = real.replace("[    0.000000]   Device   empty\n", "")
    assert different(list(compare_messages(real, missing))) == ["zones"]
    assert different(list(compare_messages(real, real.replace("(64 MB)", "(65 MB)")))) == ["crash memory"]


@pytest.mark.parametrize(
    ("group", "line"),
    [
        ("memory left out", "Memory limited to 700MB"),
        ("memory left out", "OF: fdt: Ignoring memory block 0x76000400 - 0x76000df0"),
        ("CMA", "cma: Region at 0x0000000060100000 must be aligned to 0x0000000000200000 bytes"),
        ("CMA", "cma: Failed to reserve 64 MiB"),
        ("CMA", "cma: Size (0x1) of region at 0x2 exceeds limit (0x3)"),
        ("zones", "  Node 0: 0x0000000070000000"),
        ("reserved memory", 'Skipping dt linux,cma-default node in favor for "cma=" kernel param.'),
        ("reserved memory", "a (0x000000007b000000--0x000000007b002000) overlaps with b (0x01--0x02)"),
        ("CPUs", "Number of cores (4) exceeds configured maximum of 2 - clipping"),
        ("CPUs", "missing boot CPU MPIDR, not enabling secondaries"),
        ("early parameters", "Malformed early option 'cma'"),
    ],
)
def test_a_line_that_one_kernel_alone_printed_counts(group: str, line: str) -> None:
    log = "[    0.000000] Zone ranges:\n[    0.000000] Initmem setup node 0 [mem 0x1-0x2]\n"
    more = log + f"[    0.000000] {line}\n"
    assert different(list(compare_messages(more, more))) == []
    assert (
        different(list(compare_messages(more, log)))
        == different(list(compare_messages(log, more)))
        == [group]
    )


ROWS = [
    FactRow("places", "kernel", "0x1", "0x1"),
    FactRow("places", "initrd", "0x2", "0x3"),
    FactRow("numbers", "seed", "7", "8", "a random number"),
]


def test_the_table_has_what_differs_with_both_values_and_the_rest_by_its_number() -> None:
    text = print_rows(ROWS, every=False)
    lines = text.splitlines()
    assert "places: 1 equal, 1 different" in lines
    assert "numbers: 1 not counted" in lines
    assert [line.split() for line in lines if line.startswith("  !")] == [["!", "initrd", "real", "0x2"]]
    assert any(line.split() == ["model", "0x3"] for line in lines)
    assert "kernel" not in text and "seed" not in text
    assert lines[-1] == "1 equal, 1 different, 1 not counted"
    whole = print_rows(ROWS, every=True).splitlines()
    assert "  = kernel  0x1" in whole
    assert any(line.endswith("model 8  (a random number)") for line in whole)


def test_json_has_every_line_and_the_counts() -> None:
    value = rows_object("6.1", ROWS, ["x= is not modelled"])
    assert value["counts"] == {"equal": 1, "different": 1, "not counted": 1}
    assert [row["result"] for row in value["rows"]] == ["equal", "different", "not counted"]
    assert value["rows"][2]["why"] == "a random number"
    assert value["rows"][0]["why"] is None
    assert value["warnings"] == ["x= is not modelled"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--kernel", "fetched:nosuch"], "no such kernel to fetch"),
        (["--kernel", "nosuch"], "kernel nosuch: No such file"),
        (["--kernel", __file__], "no arm64 Image"),
    ],
)
def test_bad_input_is_one_line_and_status_2(
    arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["compare-linux", *arguments]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert words in line
