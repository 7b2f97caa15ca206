"""What a campaign asks of a cluster's scheduler, and what it calls its own code."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

import kexecemu
from kexecemu.campaign import version
from kexecemu.campaign.cluster import dask_workers
from kexecemu.campaign.version import own_version
from kexecemu.errors import InputError

# -- a cluster ---------------------------------------------------------------------------------------------------


class Client:
    """A scheduler's, as dask has it; what it was asked is kept."""

    asked: list[object]
    fails: Exception | None = None
    lonely = False

    def __init__(self, address: str, **options: object) -> None:
        self.asked += [address, options]
        if self.fails is not None:
            raise self.fails

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.asked.append("left")

    def wait_for_workers(self, count: int, **options: object) -> None:
        self.asked += [count, options]
        if self.lonely:
            raise TimeoutError

    def get_executor(self, **options: object) -> Any:
        return SimpleNamespace(options=options)

    def ncores(self) -> dict[str, int]:
        return {"tcp://one": 2, "tcp://other": 3}


@pytest.fixture
def client(monkeypatch: pytest.MonkeyPatch) -> type[Client]:
    monkeypatch.setattr(Client, "asked", [], raising=False)
    monkeypatch.setitem(sys.modules, "distributed", SimpleNamespace(Client=Client))
    return Client


@pytest.mark.parametrize(
    ("address", "asked"),
    [("host:8786", "tcp://host:8786"), ("tls://host:8786", "tls://host:8786"), ("ucx://host", "ucx://host")],
)
def test_a_scheduler_has_half_a_minute_to_answer_and_to_have_a_worker(
    address: str, asked: str, client: type[Client]
) -> None:
    with dask_workers(address) as (make, width):
        executors: list[Any] = [make(), make()]
        assert width == 5  # of all its workers
        assert executors[0] is not executors[1]
        # The same task given twice is done twice.
        assert [one.options for one in executors] == [{"pure": False}] * 2
        assert client.asked == [asked, {"timeout": 30, "set_as_default": False}, 1, {"timeout": 30}]
    assert client.asked[-1] == "left"


def test_a_cluster_that_cannot_be_had_is_said_by_what_is_missing(
    client: type[Client], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> str:
        with pytest.raises(InputError) as refusal, dask_workers("host:1"):
            pass
        assert refusal.value.__suppress_context__
        return str(refusal.value)

    for error in (OSError("no route"), ValueError("no route")):
        monkeypatch.setattr(Client, "fails", error)
        assert refused() == "--executor dask://host:1: no scheduler: no route"
    monkeypatch.setattr(Client, "fails", None)
    monkeypatch.setattr(Client, "lonely", True)
    assert refused() == "--executor dask://host:1: the scheduler has no workers"
    monkeypatch.setitem(sys.modules, "distributed", None)
    assert refused().startswith("--executor dask: needs the extra dask: pip install 'kexecemu[dask]' (")


# -- its own code ------------------------------------------------------------------------------------------------

ROOMS = ("machine", "formats", "kernel", "stray", "linux", "crash", "scenario", "campaign")


def test_the_version_is_the_release_and_a_hash_of_names_and_contents_of_the_rooms_that_decide(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = {
        f"{room}/{name}": f"{room} {name}".encode() for room in ROOMS for name in ("b/a.py", "b.so", "a.py")
    }
    others = ["report/a.py", "crash/a.pyc", "crash/notes.txt", "a.py", "crash/py"]
    for name, data in [*reversed(files.items()), *((name, b"") for name in others)]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(data)
    monkeypatch.setattr(kexecemu, "__file__", str(tmp_path / "__init__.py"))
    # A folder is listed in whatever order it comes.
    listed = Path.rglob
    monkeypatch.setattr(Path, "rglob", lambda self, pattern: sorted(listed(self, pattern), reverse=True))
    now = own_version.__wrapped__
    digest = hashlib.sha256()
    for room in ROOMS:
        for name in sorted(
            (one for one in files if one.startswith(f"{room}/")), key=lambda one: one.split("/")
        ):
            digest.update(name.encode() + b" " + hashlib.sha256(files[name]).digest())
    assert now() == f"{kexecemu.__version__}+{digest.hexdigest()[:8]}"
    for name in others:
        (tmp_path / name).write_bytes(b"changed")
    assert now() == f"{kexecemu.__version__}+{digest.hexdigest()[:8]}"
    seen = {now()}
    for name in ("linux/a.py", "machine/b/a.py", "kernel/b.so"):
        (tmp_path / name).write_bytes(b"changed")
        seen.add(now())
    (tmp_path / "crash/a.py").rename(tmp_path / "crash/c.py")
    assert len(seen | {now()}) == 5
    monkeypatch.undo()
    assert re.fullmatch(re.escape(kexecemu.__version__) + r"\+[0-9a-f]{8}", own_version())
    assert own_version() is own_version() and version.__all__ == ["own_version"]
