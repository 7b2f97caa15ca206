"""Where the files that ship with kexecemu are: beside the package in a checkout, inside it once installed."""

from pathlib import Path

__all__ = ["fixture_path", "purgatory_file", "purgatory_path", "shipped_scenarios"]

_PACKAGE = Path(__file__).resolve().parent


def _find(folder: str, name: str) -> Path:
    installed = _PACKAGE / folder / name
    return installed if installed.exists() else _PACKAGE.parent / folder / name


def fixture_path(name: str) -> Path:
    """The path of a shipped guest, board or scenario, for example fixture_path("guests/capture-Image")."""
    return _find("fixtures", name)


def purgatory_path() -> Path:
    """The path of the purgatory object that ships, purgatory.ro."""
    return purgatory_file("purgatory.ro")


def purgatory_file(name: str) -> Path:
    """The path of one of the purgatory's files, for example purgatory_file("entry.S")."""
    return _find("purgatory", name)


def shipped_scenarios() -> list[str]:
    """Names of the scenarios that ship, sorted."""
    return sorted(path.stem for path in fixture_path("scenarios").glob("*.toml"))
