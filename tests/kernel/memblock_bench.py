"""A memblock that remembers what it was asked for."""

from __future__ import annotations

from kexecemu.kernel.memory.memblock import Memblock

Asked = tuple[int, int, int | None]


class Recorder(Memblock):
    """Remembers what it is asked for, whether that is had or not: bytes, alignment, node."""

    def __init__(self) -> None:
        super().__init__()
        self.asked: list[Asked] = []

    def phys_alloc_range(
        self,
        size: int,
        align: int,
        start: int = 0,
        end: int = 0,
        *,
        node: int | None = None,
        exact: bool = False,
    ) -> int:
        asked = [*self.asked, (size, align, node)]
        phys = super().phys_alloc_range(size, align, start, end, node=node, exact=exact)
        self.asked = asked  # what is fallen back to is no other question
        return phys
