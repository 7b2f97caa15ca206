"""What a crash is expected to end in, as words of a command: --expect detected --expect segment=initrd."""

from collections.abc import Sequence
from typing import Any

import msgspec

from kexecemu.crash.outcome import Outcome
from kexecemu.errors import InputError
from kexecemu.scenario.checks import check_segment
from kexecemu.scenario.schema import Expect
from kexecemu.scenario.toml import given_keys
from kexecemu.scenario.toml_lines import possible_words
from kexecemu.suggest import did_you_mean, there_are

__all__ = ["expect_words", "parse_expect"]

_NOTHING = Expect(Outcome.CAPTURED)  # the values of keys that are not given


def expect_words(expect: Expect) -> list[str]:
    """The words that parse_expect() reads, without the option's name: the outcome, then KEY=VALUE for each value."""
    words = [expect.outcome.value]
    for key, value in given_keys(expect).items():
        if key != "outcome":
            words += [f"{key}={one}" for one in (value if isinstance(value, list) else [value])]
    return words


def parse_expect(words: Sequence[str]) -> Expect:
    """An [expect] from an outcome and its other keys as KEY=VALUE, a list's key once for each of its values.

    Raises InputError that names what there is.
    """
    data: dict[str, Any] = {}
    for word in words:
        key, equals, value = word.partition("=")
        if not equals:
            key, value = "outcome", word
        if key not in Expect.__struct_fields__:
            raise InputError(f"--expect {word!r}: no key {key!r}{there_are(key, Expect.__struct_fields__)}")
        if key == "outcome" and value not in set(Outcome):
            like = did_you_mean(value, list(Outcome))
            raise InputError(f"--expect {value!r} is no outcome{like}; they are {', '.join(Outcome)}")
        allowed = [*possible_words(Expect, [key]), *possible_words(Expect, [key, 0])]
        if allowed and value not in allowed:
            like = did_you_mean(value, allowed)
            raise InputError(f"--expect {word!r}: {key} is one of {', '.join(allowed)}{like}")
        if key in ("segment", "segments"):
            try:
                check_segment(value)
            except InputError as error:
                raise InputError(f"--expect {word!r}: {error}") from error
        if isinstance(getattr(_NOTHING, key), list):
            data.setdefault(key, []).append(value)
        elif key in data:
            raise InputError(f"--expect {word!r}: {key} is given twice")
        else:
            data[key] = value
    if "outcome" not in data:
        raise InputError(f"--expect {words[0]!r}: give the outcome too, as in --expect detected")
    return msgspec.convert(data, Expect)
