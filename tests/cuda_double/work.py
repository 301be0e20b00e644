"""Work in flight: streams as queues that run late and in random order, and what is ordered.

An operation runs when the host waits for it, or at any moment before, as the seed has it. Each knows
which others are certain to have run before it: those earlier in its stream, those behind an event it
waits for, and those the host has waited for. Two operations that touch the same bytes, one of them
writing, without such an order are an error, whatever order they happened to run in.
"""

from __future__ import annotations

import itertools
import random
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple


class Span(NamedTuple):
    """Bytes from ``start`` to before ``stop``."""

    start: int
    stop: int


class Touched(NamedTuple):
    """The bytes that an operation read and wrote."""

    reads: Sequence[Span] = ()
    writes: Sequence[Span] = ()


@dataclass(eq=False)
class Operation:
    """Something enqueued.

    Attributes
    ----------
    run
        Does it, and returns what it touched.
    before
        Numbers of the operations that are certain to have run when it does.
    needs
        Operations of other streams that it waits for.
    """

    name: str
    run: Callable[[], Touched]
    number: int = 0
    before: set[int] = field(default_factory=set)
    needs: list[Operation] = field(default_factory=list)
    done: bool = False


class _Access(NamedTuple):
    span: Span
    operation: Operation
    writes: bool


class Races:
    """Which operation touched which bytes, as far as later ones may still collide with it."""

    def __init__(self) -> None:
        self._accesses: list[_Access] = []
        self.found: list[str] = []

    def add(self, operation: Operation, touched: Touched) -> None:
        """Hold what an operation touched against what others did."""
        new = [_Access(span, operation, False) for span in touched.reads]
        new += [_Access(span, operation, True) for span in touched.writes]
        others = [a for a in self._accesses if not _ordered(a.operation, operation)]
        for access in new:
            for other in others:
                if (access.writes or other.writes) and _overlap(access.span, other.span):
                    self._report(access, other)
        self._accesses += new

    def forget(self, known: set[int]) -> None:
        """Drop operations that everything to come is ordered after."""
        self._accesses = [a for a in self._accesses if a.operation.number not in known]

    def _report(self, access: _Access, other: _Access) -> None:
        verbs = {True: "writes", False: "reads"}
        self.found.append(
            f"{access.operation.name} {verbs[access.writes]} and {other.operation.name} "
            f"{verbs[other.writes]} {_overlap(access.span, other.span)} bytes at "
            f"{max(access.span.start, other.span.start):#x} in no order"
        )


def _ordered(first: Operation, second: Operation) -> bool:
    return first.number in second.before or first is second


def _overlap(a: Span, b: Span) -> int:
    return max(0, min(a.stop, b.stop) - max(a.start, b.start))


class Queues:
    """All streams, and the host that waits for them.

    Parameters
    ----------
    seed
        Of the order in which heads of streams run, and of how much runs before anyone waits.
    """

    def __init__(self, seed: int) -> None:
        self._random = random.Random(seed)
        self._numbers = itertools.count(1)
        self._streams: dict[int, deque[Operation]] = {}
        self._last: dict[int, Operation] = {}
        self.known: set[int] = set()
        self.races = Races()
        self.history: list[str] = []

    def open(self, stream: int) -> None:
        """Add a stream."""
        self._streams[stream] = deque()

    def close(self, stream: int) -> None:
        """Remove a stream; what it holds still runs, as on a GPU."""
        self.drain(stream)
        del self._streams[stream]
        self._last.pop(stream, None)

    def __contains__(self, stream: int) -> bool:
        """Return whether a stream is open."""
        return stream in self._streams

    def enqueue(
        self, stream: int, name: str, run: Callable[[], Touched], needs: Sequence[Operation] = ()
    ) -> Operation:
        """Add an operation to a stream; now and then, something runs at once."""
        operation = Operation(name, run, number=next(self._numbers))
        operation.needs = [other for other in needs if not other.done]
        operation.before = set(self.known)
        for other in (*needs, *([self._last[stream]] if stream in self._last else [])):
            operation.before |= other.before | {other.number}
        self._streams[stream].append(operation)
        self._last[stream] = operation
        for _ in range(self._random.choice((0, 0, 0, 1, 3))):
            self._step()
        return operation

    def wait(self, operation: Operation) -> None:
        """Let the host wait for an operation."""
        while not operation.done:
            self._step()
        self.known |= operation.before | {operation.number}
        self._tidy()

    def drain(self, stream: int) -> None:
        """Let the host wait for a stream."""
        if stream in self._last:
            self.wait(self._last[stream])

    def drain_all(self) -> None:
        """Let the host wait for everything."""
        for stream in list(self._streams):
            self.drain(stream)

    def progress(self) -> None:
        """Let some time pass."""
        for _ in range(self._random.randrange(4)):
            self._step()

    def _step(self) -> None:
        ready = [
            queue
            for queue in self._streams.values()
            if queue and all(other.done for other in queue[0].needs)
        ]
        if not ready:
            return
        operation = self._random.choice(ready).popleft()
        self.history.append(operation.name)
        touched = operation.run()
        operation.done = True
        self.races.add(operation, touched)

    def _tidy(self) -> None:
        """Forget what is known to have run, once nothing is in flight that could collide with it."""
        if any(self._streams.values()):
            return
        self.races.forget(self.known)
        for operation in self._last.values():
            operation.before -= self.known
        self.known = set()
