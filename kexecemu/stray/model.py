"""What a fault model is, and how a plain function becomes one."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from kexecemu.errors import InputError
from kexecemu.shown import shown

__all__ = ["MAX_LENGTH", "MODELS", "Model", "model"]

MAX_LENGTH = 4096  # bytes; no model writes more


@shown()
@dataclass(frozen=True, slots=True)
class Model:
    """A way of writing astray.

    name is the one in a fault's token; summary one sentence; source the paper or the kernel facility followed; variants
    how many there are, numbered from 0; width how many bytes a CPU's store has.
    """

    name: str
    summary: str
    source: str
    variants: int
    width: int
    _length: Callable[[int], int]
    _write: Callable[[int, bytes], bytes]

    def length(self, variant: int) -> int:
        """How many bytes the variant writes, 1 to MAX_LENGTH. Raises InputError when there is no such variant."""
        self._check(variant)
        return self._length(variant)

    def data(self, variant: int, before: bytes) -> bytes:
        """What is written over `before`: as many bytes, which may be fewer than length(variant) at the end of RAM.

        Pure: the same variant and the same bytes give the same result. It may equal `before`: a write of the value
        that is there already. Raises InputError when there is no such variant.
        """
        self._check(variant)
        data = self._write(variant, before)
        assert len(data) in (self._length(variant), len(before))
        return data[: len(before)]

    def _check(self, variant: int) -> None:
        if not 0 <= variant < self.variants:
            raise InputError(
                f"fault model {self.name} has no variant {variant:#x}: there are {self.variants:#x}"
            )


MODELS: Final[dict[str, Model]] = {}
"""All models by name: kexecemu.stray.models has them."""

_Write = Callable[[int, bytes], bytes]


def model(
    variants: int, length: int | Callable[[int], int], *, width: int, source: str
) -> Callable[[_Write], _Write]:
    """Make a model of a function: its name and the first line of its docstring are the model's."""

    def register(write: _Write) -> _Write:
        name = write.__name__.replace("_", "-")
        summary = (write.__doc__ or "").strip().partition("\n")[0]  # none with python -OO
        length_of = length if callable(length) else _Constant(length)
        MODELS[name] = Model(name, summary, source, variants, width, length_of, write)
        return write

    return register


@dataclass(frozen=True, slots=True)
class _Constant:
    value: int

    def __call__(self, variant: int) -> int:
        return self.value
