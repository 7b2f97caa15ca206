""" "Did you mean": the nearest of the names that there are, for messages about one that there is not."""

from collections.abc import Iterable

__all__ = ["did_you_mean", "nearest", "there_are"]

_CUTOFF = 0.6  # difflib's own: 1 is the same word, 0 no letter in common


def nearest(word: str, known: Iterable[str]) -> str | None:
    """The known name that looks most like a word, whatever its case; None when none does."""
    from difflib import get_close_matches  # seldom needed, and not for nothing

    names: dict[str, str] = {}
    for name in known:
        names.setdefault(name.lower(), name)
    found = get_close_matches(word.lower(), names, n=1, cutoff=_CUTOFF)
    return names[found[0]] if found else None


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """ " (did you mean NAME?)" to stand right behind the wrong word's sentence; "" when nothing is like it."""
    found = nearest(word, known)
    return f" (did you mean {found}?)" if found is not None else ""


def there_are(word: str, known: Iterable[str]) -> str:
    """ " (did you mean NAME?); there are NAME, ...": the end of a sentence about a name that there is not."""
    names = list(known)
    return f"{did_you_mean(word, names)}; there are {', '.join(names)}"
