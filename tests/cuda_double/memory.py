"""Memory of the doubled device, and pinned memory of the host."""

from __future__ import annotations

import bisect
import ctypes
import zlib
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

from tests.cuda_cpu.emulation import Span

POISON = 0xA5
_ALIGNMENT = 256


@dataclass
class Block:
    """One allocation. ``kind`` is ``device``, ``pinned``, or ``mapped``, which is pinned too."""

    start: int
    nbytes: int
    kind: str
    owner: Any = field(repr=False)

    @property
    def stop(self) -> int:
        """The address past its end."""
        return self.start + self.nbytes


class Memory:
    """All allocations by address. Device memory is host memory that only the double hands out."""

    def __init__(self) -> None:
        self._starts: list[int] = []
        self._blocks: dict[int, Block] = {}
        self._freed: list[Block] = []

    @property
    def used(self) -> int:
        """Bytes of device memory that are allocated."""
        return sum(block.nbytes for block in self.blocks("device"))

    def blocks(self, *kinds: str) -> list[Block]:
        """Return what is allocated, of some kinds or all."""
        return [block for block in self._blocks.values() if not kinds or block.kind in kinds]

    def allocate(self, nbytes: int, kind: str) -> Block:
        """Return a new block, poisoned."""
        owner = ctypes.create_string_buffer(nbytes + _ALIGNMENT)
        address = ctypes.addressof(owner)
        start = address + -address % _ALIGNMENT
        ctypes.memset(start, POISON, nbytes)
        block = self._blocks[start] = Block(start, nbytes, kind, owner)
        bisect.insort(self._starts, start)
        return block

    def free(self, start: int, *kinds: str) -> bool:
        """Free a block; return whether it was one."""
        block = self._blocks.get(start)
        if block is None or block.kind not in kinds:
            return False
        del self._blocks[start]
        self._starts.remove(start)
        ctypes.memset(start, POISON, block.nbytes)
        self._freed.append(block)
        return True

    def reuse(self) -> None:
        """Let memory that was freed be used again: no work is in flight that may touch it."""
        self._freed.clear()

    def clear(self) -> None:
        """Forget all blocks."""
        self._starts.clear()
        self._blocks.clear()

    def find(self, start: int, nbytes: int, *kinds: str) -> Block | None:
        """Return the block that holds all of some bytes, if there is one."""
        index = bisect.bisect_right(self._starts, start) - 1
        if index < 0:
            return None
        block = self._blocks[self._starts[index]]
        inside = block.start <= start and start + nbytes <= block.stop
        return block if inside and (not kinds or block.kind in kinds) else None

    def touched(self, spans: Iterable[Span]) -> dict[int, Block | None]:
        """Return the blocks that bytes lie in, by their start; None for bytes outside of all."""
        found: dict[int, Block | None] = {}
        block = None
        for span in sorted(spans):
            if block is None or span.stop > block.stop or span.start < block.start:
                block = self.find(span.start, span.stop - span.start)
                found[span.start if block is None else block.start] = block
        return found


def read(start: int, nbytes: int) -> bytes:
    """Return bytes at an address."""
    return ctypes.string_at(start, nbytes)


def write(start: int, content: bytes) -> None:
    """Write bytes at an address."""
    ctypes.memmove(start, content, len(content))


def checksum(start: int, nbytes: int) -> int:
    """Return what tells whether bytes have changed."""
    return zlib.crc32((ctypes.c_char * nbytes).from_address(start))


def span(start: int, nbytes: int) -> Span:
    """Return bytes as a span."""
    return Span(start, start + nbytes)
