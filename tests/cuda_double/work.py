"""Work in flight: streams as queues that run late and in random order, and what is ordered.

An operation runs when the host waits for it, or at any moment before, as the seed has it. Every
stream and the host have a *clock*: how much of each stream is certain to have run. Two operations
that touch the same bytes, one of them writing, and of which neither is in the other's clock, are an
error, whatever order they happened to run in.

What reaches the host is treated likewise: a copy to the host shows its content when the host knows
that it has ended, and not a moment earlier.
"""

from __future__ import annotations

import random
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

from tests.cuda_cpu.emulation import Span

Clock = dict[int, int]
"""By stream: so many of its operations are certain to have run."""


class Touched(NamedTuple):
    """The bytes that an operation read and wrote."""

    reads: Sequence[Span] = ()
    writes: Sequence[Span] = ()


NOTHING = Touched()


class Log(Protocol):
    """Is told what happens, in order."""

    def __call__(self, what: str, operation: Operation) -> None:
        """``what`` is ``enqueued`` or ``ran``."""


@dataclass(eq=False)
class Operation:
    """Something enqueued.

    Attributes
    ----------
    run
        Does it, and returns what it touched.
    learnt
        Is called when the host knows that it has run.
    place
        Its number in its stream, from 1 on.
    clock
        What is certain to have run when it has; itself included.
    needs
        Operations of other streams that it waits for.
    """

    name: str
    stream: int
    run: Callable[[], Touched]
    learnt: Callable[[], None] | None = None
    place: int = 0
    clock: Clock = field(default_factory=dict)
    needs: Sequence[Operation] = ()
    done: bool = False
    touched: Touched = NOTHING

    def is_in(self, clock: Clock) -> bool:
        """Return whether it is certain to have run."""
        return clock.get(self.stream, 0) >= self.place


def merge(clock: Clock, *others: Clock) -> None:
    """Let a clock know what others know."""
    for other in others:
        for stream, place in other.items():
            if clock.get(stream, 0) < place:
                clock[stream] = place


class Races:
    """Who touched which bytes, as far as later operations may still collide with it.

    Parameters
    ----------
    allocations
        Returns what identifies the allocations that bytes lie in.
    """

    def __init__(self, allocations: Callable[[Iterable[Span]], Iterable[int]]) -> None:
        self._allocations = allocations
        self._accesses: dict[int, list[Operation]] = {}
        self.found: list[str] = []

    def add(self, operation: Operation) -> None:
        """Hold what an operation has touched against what others did."""
        touched = operation.touched
        for place in self._allocations((*touched.reads, *touched.writes)):
            others = self._accesses.setdefault(place, [])
            for other in others:
                if not (other.is_in(operation.clock) or operation.is_in(other.clock)):
                    self.found += collisions(operation, other)
            others.append(operation)

    def forget(self, clock: Clock, pending: Iterable[Operation]) -> None:
        """Drop what is known to have run, and what all that is pending comes after."""
        clocks = [clock, *(operation.clock for operation in pending)]
        for place, operations in list(self._accesses.items()):
            kept = [item for item in operations if not all(map(item.is_in, clocks))]
            if kept:
                self._accesses[place] = kept
            else:
                del self._accesses[place]


def collisions(one: Operation, other: Operation) -> list[str]:
    """Describe where two operations touch the same bytes and one of them writes."""
    found = []
    for verbs, spans in (
        (("writes", "writes"), (one.touched.writes, other.touched.writes)),
        (("writes", "reads"), (one.touched.writes, other.touched.reads)),
        (("reads", "writes"), (one.touched.reads, other.touched.writes)),
    ):
        shared = overlap(*spans)
        if shared:
            found.append(
                f"unordered: {one.name} {verbs[0]} and {other.name} {verbs[1]} "
                f"{shared.stop - shared.start} bytes at {shared.start:#x}"
            )
    return found


def overlap(one: Sequence[Span], other: Sequence[Span]) -> Span | None:
    """Return the first bytes that are in both, if there are any."""
    first, second = deque(sorted(one)), deque(sorted(other))
    while first and second:
        start, stop = max(first[0].start, second[0].start), min(first[0].stop, second[0].stop)
        if start < stop:
            return Span(start, stop)
        (first if first[0].stop <= second[0].stop else second).popleft()
    return None


def _done() -> Touched:
    raise AssertionError("an operation runs once")


class Queues:
    """All streams, and the host that waits for them.

    Parameters
    ----------
    seed
        Of the order in which heads of streams run, and of how much runs before anyone waits; None
        runs nothing before, and then only what is waited for.
    idle
        Is called when nothing is in flight.
    """

    def __init__(self, seed: int | None, races: Races, log: Log, idle: Callable[[], None]) -> None:
        self.chooser = random.Random(seed or 0)
        self._lazy = seed is None
        self._streams: dict[int, deque[Operation]] = {}
        self._open: set[int] = set()
        self._last: dict[int, Operation] = {}
        self._ended: list[Operation] = []
        self._log = log
        self._idle = idle
        self.host: Clock = {}
        self.races = races

    def __contains__(self, stream: int) -> bool:
        """Return whether a stream is open."""
        return stream in self._open

    def open(self, stream: int) -> None:
        """Add a stream."""
        self._streams[stream] = deque()
        self._open.add(stream)

    def close(self, stream: int) -> None:
        """Remove a stream; what it holds still runs, some time."""
        self._open.discard(stream)

    def enqueue(
        self,
        stream: int,
        name: str,
        run: Callable[[], Touched],
        *,
        needs: Sequence[Operation] = (),
        learnt: Callable[[], None] | None = None,
    ) -> Operation:
        """Add an operation to a stream; now and then, something runs at once."""
        last = self._last.get(stream)
        operation = Operation(name, stream, run, learnt, needs=needs)
        operation.place = last.place + 1 if last else 1
        merge(operation.clock, self.host, *(other.clock for other in needs))
        if last is not None:
            merge(operation.clock, last.clock)
        operation.clock[stream] = operation.place
        self._streams[stream].append(operation)
        self._last[stream] = operation
        self._log("enqueued", operation)
        self.progress((0, 0, 0, 1, 3))
        return operation

    def last(self, stream: int) -> Operation:
        """Return what was enqueued last on a stream."""
        return self._last[stream]

    def wait(self, operation: Operation) -> None:
        """Let the host wait for an operation."""
        self._finish(operation)
        self.learn(operation.clock)

    def wait_for_stream(self, stream: int) -> None:
        """Let the host wait for all that a stream holds."""
        if stream in self._last:
            self.wait(self._last[stream])

    def wait_for_all(self) -> None:
        """Let the host wait for everything."""
        for stream in list(self._streams):
            self.wait_for_stream(stream)

    def progress(self, choices: Sequence[int] = (0, 1, 2, 3)) -> None:
        """Let some time pass, in which so many operations may run."""
        if not self._lazy:
            for _ in range(self.chooser.choice(choices)):
                self._step()

    def learn(self, clock: Clock) -> None:
        """Let the host know what has run."""
        merge(self.host, clock)
        known = [operation for operation in self._ended if operation.is_in(self.host)]
        self._ended = [operation for operation in self._ended if not operation.is_in(self.host)]
        for operation in known:
            if operation.learnt is not None:
                operation.learnt()
        pending = [operation for queue in self._streams.values() for operation in queue]
        self.races.forget(self.host, pending)
        if not pending and not self._ended:
            self._shorten()
            self._idle()

    def _shorten(self) -> None:
        """Forget streams that are closed, when the host knows of all there is."""
        for stream in self._streams.keys() - self._open:
            del self._streams[stream]
            self._last.pop(stream, None)
        self.host = {stream: last.place for stream, last in self._last.items()}
        for last in self._last.values():
            last.clock = {}

    def _finish(self, operation: Operation) -> None:
        while not operation.done:
            self._run(self._needed(operation)) if self._lazy else self._step()

    def _needed(self, operation: Operation) -> Operation:
        """Return what must run next so that an operation can."""
        while True:
            head = self._streams[operation.stream][0]
            blocked = next((other for other in head.needs if not other.done), None)
            if blocked is None:
                return head
            operation = blocked

    def _step(self) -> None:
        ready = [
            queue[0]
            for queue in self._streams.values()
            if queue and all(other.done for other in queue[0].needs)
        ]
        if ready:
            self._run(self.chooser.choice(ready))
        elif any(self._streams.values()):
            raise AssertionError("what is enqueued waits for something that never runs")

    def _run(self, operation: Operation) -> None:
        self._streams[operation.stream].popleft()
        operation.touched = operation.run()
        operation.done = True
        operation.run, operation.needs = _done, ()  # which may keep much alive
        self._ended.append(operation)
        self._log("ran", operation)
        self.races.add(operation)
