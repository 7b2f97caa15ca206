"""Where the files that ship with kexecemu are: beside the package in a checkout, inside it once installed."""

from pathlib import Path

__all__ = ["PURGATORIES", "fixture_path", "purgatory_path", "purgatory_sources", "shipped_scenarios"]

_PACKAGE = Path(__file__).resolve().parent


def _find(folder: str, name: str) -> Path:
    installed = _PACKAGE / folder / name
    return installed if installed.exists() else _PACKAGE.parent / folder / name


def fixture_path(name: str) -> Path:
    """The path of a shipped guest, board or scenario, for example fixture_path("guests/capture-Image")."""
    return _find("fixtures", name)


PURGATORIES = {"default": "purgatory.ro", "core": "core.ro"}
"""The purgatories that ship, by the names that they go by: with all its options, and with none."""


def purgatory_path(name: str = "default") -> Path:
    """The path of a purgatory object that ships: one of PURGATORIES."""
    return _find("purgatory", PURGATORIES[name])


def purgatory_sources() -> Path:
    """The folder with the purgatory's sources, purgatory/."""
    return purgatory_path().parent


def shipped_scenarios() -> list[str]:
    """Names of the scenarios that ship, sorted."""
    return sorted(path.stem for path in fixture_path("scenarios").glob("*.toml"))
