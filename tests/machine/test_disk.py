"""Disks in memory, in files, and in files that stay as they are."""

from __future__ import annotations

import gc
import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kexecemu.errors import InputError, MachineError
from kexecemu.machine.devices.disk import Disk

SIZE = 64 << 10


@pytest.fixture(params=["memory", "file", "private"])
def disk(request, tmp_path):
    """A writable disk of zeros, each way that there is."""
    if request.param == "memory":
        with Disk(SIZE) as disk:
            yield disk
        return
    path = tmp_path / "disk"
    path.write_bytes(bytes(SIZE))
    with Disk.open(path, private=request.param == "private") as disk:
        yield disk


def test_a_new_disk_is_zeros_and_takes_no_memory():
    with Disk(1 << 40) as disk:
        assert disk.size == 1 << 40 and not disk.read_only
        assert disk.read((1 << 40) - 512, 512) == bytes(512)
        disk.write(1 << 39, b"x")
        assert disk.read((1 << 39) - 1, 3) == b"\0x\0"
        assert os.fstat(disk._store._fd).st_blocks * 512 <= 2 << 20


def test_a_disk_that_nobody_closes_gives_its_memory_back():
    """Ten real boots left 14 GiB behind."""
    disk = Disk(SIZE)
    fd = disk._store._fd
    os.fstat(fd)
    del disk
    gc.collect()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(fd)


def test_zeros_that_are_written_take_no_memory_and_are_zeros():
    with Disk(1 << 20) as disk:
        disk.write(0, bytes([7]) * (1 << 20))
        full = os.fstat(disk._store._fd).st_blocks
        disk.write_parts(4096, [b"a" * 4096, bytes(8192), memoryview(b"b" * 512), bytes(512), bytes(1 << 19)])
        expected = b"a" * 4096 + bytes(8192) + b"b" * 512 + bytes(512) + bytes(1 << 19)
        assert disk.read(4096, len(expected)) == expected
        assert disk.read(4096 + len(expected), 512) == bytes([7]) * 512 == disk.read(0, 512)
        assert os.fstat(disk._store._fd).st_blocks <= full - 1000  # of 512 bytes


def test_what_was_written_is_read_back(disk):
    disk.write(1000, b"crash")
    disk.write(4094, memoryview(b"over a page's end"))
    disk.write_parts(8190, [b"some", bytearray(b"where"), memoryview(b" else")])
    assert disk.read(999, 7) == b"\0crash\0"
    assert disk.read(4094, 17) == b"over a page's end"
    assert disk.read(8190, 14) == b"somewhere else"
    disk.zero(1002, 2)
    assert disk.read(1000, 5) == b"cr\0\0h"


def test_parts_without_number_are_stored_one_behind_the_other(disk):
    parts = [bytes([n % 251]) * (n % 13) for n in range(3000)]
    disk.write_parts(77, parts)
    assert disk.read(77, sum(map(len, parts))) == b"".join(parts)


@pytest.mark.parametrize("most", [1, 7, 64])
def test_what_the_host_stores_only_in_part_is_stored_whole(monkeypatch, most):
    whole = os.pwritev

    def partly(fd, parts, offset):
        return whole(fd, [b"".join(parts)[:most]], offset)

    monkeypatch.setattr(os, "pwritev", partly)
    with Disk(SIZE) as disk:
        disk.write_parts(3, [b"a purgatory", b"", b"checks", memoryview(b" what it jumps to")])
        assert disk.read(0, 40) == b"\0\0\0a purgatorychecks what it jumps to".ljust(40, b"\0")


@settings(max_examples=50, deadline=None)
@given(
    st.lists(
        st.one_of(
            st.tuples(st.integers(0, SIZE - 1), st.binary(min_size=1, max_size=9000)),
            st.tuples(st.integers(0, SIZE - 1), st.integers(1, 20000)),  # zeros
        ),
        max_size=12,
    )
)
def test_every_kind_of_disk_holds_what_a_bytearray_would(tmp_path_factory, steps):
    path = tmp_path_factory.mktemp("disk") / "image"
    original = bytes(n * 31 & 0xFF for n in range(256)) * (SIZE // 256)
    path.write_bytes(original)
    copy = path.with_name("copy")
    with Disk(SIZE) as memory, Disk.open(path, private=True) as private, Disk.open(path) as file:
        memory.write(0, original)
        # The file last: a private mapping may show what others write to a page that it has no copy of.
        for disk in (memory, private, file):
            model = bytearray(original)
            for offset, what in steps:
                if isinstance(what, int):
                    length = min(what, SIZE - offset)
                    disk.zero(offset, length)
                    model[offset : offset + length] = bytes(length)
                else:
                    data = what[: SIZE - offset]
                    disk.write(offset, data)
                    model[offset : offset + len(data)] = data
            assert disk.read(0, SIZE) == model
            disk.copy_to(copy)
            assert copy.read_bytes() == model
            if disk is private:
                assert path.read_bytes() == original
        assert path.read_bytes() == model


@pytest.mark.parametrize(
    ("offset", "length"), [(SIZE, 1), (SIZE - 1, 2), (-1, 1), (1 << 70, 1), (0, SIZE + 1)]
)
def test_beyond_the_end_is_refused_and_changes_nothing(disk, offset, length):
    with pytest.raises(MachineError, match="on a disk of 0x10000"):
        disk.read(offset, length)
    with pytest.raises(MachineError):
        disk.write(offset, b"x" * length)
    with pytest.raises(MachineError):
        disk.zero(offset, length)
    with pytest.raises(MachineError):
        disk.copy_to("never-made", SIZE + 1)
    assert disk.read(0, SIZE) == bytes(SIZE)


@pytest.mark.parametrize("private", [False, True])
def test_a_read_only_disk_refuses_to_be_written(tmp_path, private):
    path = tmp_path / "disk"
    path.write_bytes(b"k" * 1024)
    path.chmod(0o444)
    with Disk.open(path, read_only=True, private=private) as disk:
        assert disk.read_only
        for change in (lambda: disk.write(0, b"x"), lambda: disk.write_parts(0, []), lambda: disk.zero(0, 1)):
            with pytest.raises(MachineError, match="read-only"):
                change()
        assert disk.read(0, 1024) == b"k" * 1024


def test_a_private_disk_needs_no_right_to_write_its_file(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"k" * 1024)
    path.chmod(0o444)
    with Disk.open(path, private=True) as disk:
        disk.write(512, b"changed")
        assert disk.read(511, 9) == b"kchangedk"
    assert path.read_bytes() == b"k" * 1024


def test_a_file_is_opened_once_and_keeps_its_size(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(1024))
    with Disk.open(path) as disk:
        path.rename(tmp_path / "moved")
        disk.write(1023, b"x")
    assert (tmp_path / "moved").read_bytes() == bytes(1023) + b"x"


def test_a_file_that_became_shorter_is_an_error_of_the_host(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(bytes(8192))
    with Disk.open(path) as disk:
        os.truncate(path, 512)
        with pytest.raises(OSError, match="shorter"):
            disk.read(0, 8192)


@pytest.mark.parametrize("size", [0, -512, 511, 513])
def test_a_disk_is_made_of_whole_sectors(tmp_path, size):
    with pytest.raises(InputError, match="whole sectors"):
        Disk(size)
    if size >= 0:
        path = tmp_path / "disk"
        path.write_bytes(bytes(size))
        with pytest.raises(InputError, match="whole sectors"):
            Disk.open(path)


def test_what_is_no_disk_is_refused_by_name(tmp_path):
    with pytest.raises(InputError, match="missing: No such file"):
        Disk.open(tmp_path / "missing")
    with pytest.raises(InputError, match="neither a file nor a block device"):
        Disk.open(tmp_path, read_only=True)
    with pytest.raises(InputError, match="neither a file nor a block device"):
        Disk.open("/dev/zero")


def test_a_closed_disk_says_so(disk):
    disk.close()
    disk.close()
    with pytest.raises(MachineError, match="closed"):
        disk.read(0, 1)


def test_a_copy_is_as_long_as_asked_for_and_sparse(disk, tmp_path):
    disk.write(40000, b"dump")
    copy = tmp_path / "vmcore"
    copy.write_bytes(b"an older one")
    for length in (SIZE, 40002, 40000, 100, 0):
        disk.copy_to(copy, length)
        assert copy.read_bytes() == disk.read(0, length)
    assert [path.name for path in tmp_path.iterdir() if path.name not in ("vmcore", "disk")] == []


def test_a_large_copy_skips_the_holes(tmp_path):
    with Disk(1 << 40) as disk:
        disk.write(5 << 20, b"dump")
        disk.copy_to(tmp_path / "copy")
    assert (tmp_path / "copy").stat().st_size == 1 << 40
    assert (tmp_path / "copy").stat().st_blocks * 512 <= 2 << 20
    with open(tmp_path / "copy", "rb") as copy:
        copy.seek(5 << 20)
        assert copy.read(5) == b"dump\0"


def test_a_copy_that_fails_leaves_the_old_file(tmp_path):
    path = tmp_path / "disk"
    path.write_bytes(b"k" * 8192)
    copy = tmp_path / "vmcore"
    copy.write_bytes(b"an older one")
    with Disk.open(path) as disk:
        os.truncate(path, 512)
        with pytest.raises(OSError, match="shorter"):
            disk.copy_to(copy, 8192)
    assert copy.read_bytes() == b"an older one"


def test_zeros_give_the_memory_back():
    with Disk(8 << 20) as disk:
        disk.write(0, b"x" * (8 << 20))
        full = os.fstat(disk._store._fd).st_blocks
        disk.zero(0, 8 << 20)
        assert os.fstat(disk._store._fd).st_blocks < full // 2
        assert disk.read(0, 8 << 20) == bytes(8 << 20)
