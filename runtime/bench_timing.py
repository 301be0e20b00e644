"""The part of the bench that takes times: cascade, large model, savers and bare engines in turn.

One turn takes the same images through everything. A turn is several batches, so that a ratio within
it is not decided by one context switch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt
from rich.progress import Progress, TaskID

from runtime.bench_stages import Force, Stages
from runtime.cascade import Cascade
from runtime.measurement import Subject
from runtime.preprocess import Frames

BATCHES_PER_TURN = 32
LARGE_IMAGES_PER_TURN = 256
"""The large model gets fewer images a turn, or it would take nine tenths of the run."""

_TURNS = ("cascade", "large", "wall", "engines", "repeated", "full")

Rows = npt.NDArray[np.int64]


@dataclass(frozen=True)
class TimingPlan:
    """How long to measure, and at which batch sizes.

    Attributes
    ----------
    batch, batches
        Images per batch, and how many batches of the cascade to measure at least.
    seconds, warmup_seconds
        Least time to measure, and to warm up before it.
    large_batches
        Sizes among which the large model alone has its best.
    """

    batch: int
    batches: int
    seconds: float
    warmup_seconds: float
    large_batches: tuple[int, ...]


@dataclass
class Timing:
    """What was measured so far.

    Attributes
    ----------
    cascade, large, savers
        Calls on frames: preprocessing, engine and gate.
    streamed
        Whole turns through the cascade with two batches under way, where the device can do that.
    batch, large_batch
        Images per batch of the cascade and the savers, and the size at which the large model
        alone was fastest.
    turns
        Per turn, seconds per image: ``cascade``, ``large``; and seconds for the turn's images:
        ``wall`` of the cascade; its engines alone on the same row groups, in the cascade's order
        batch by batch (``engines``), and each engine on all of its groups before the next one
        (``repeated``: its weights stay in the cache); ``full`` for the same rows in full batches.
    """

    cascade: Subject
    large: Subject | None
    savers: dict[str, Subject]
    batch: int
    large_batch: int = 0
    streamed: Subject = field(default_factory=lambda: Subject("streamed"))
    turns: dict[str, list[float]] = field(default_factory=lambda: {name: [] for name in _TURNS})
    interrupted: bool = False

    @classmethod
    def empty(cls, cascade: Cascade, batch: int) -> Timing:
        """Return an account with nothing measured yet."""
        *savers, large = cascade.bundle.spec.stages
        return cls(
            Subject("cascade"),
            Subject(large.name) if large.reads_frames else None,
            {saver.name: Subject(saver.name) for saver in savers if saver.reads_frames},
            batch,
        )

    def without_times(self) -> Timing:
        """Return the same without any time, for what is not a real device."""
        return replace(
            self,
            cascade=Subject(self.cascade.name),
            large=self.large and Subject(self.large.name),
            savers={name: Subject(name) for name in self.savers},
            streamed=Subject(self.streamed.name),
            turns={name: [] for name in _TURNS},
        )


@dataclass(frozen=True)
class Timed:
    """What takes the times, and on which images: ``force`` is u8 [gates, n] or None."""

    cascade: Cascade
    stages: Stages
    frames: Frames
    force: Force = None


def measure_timing(timed: Timed, plan: TimingPlan, timing: Timing, *, progress: Progress) -> None:
    """Take turns until the plan is met, adding to ``timing`` as they end."""
    turn = _Turn(timed, plan, timing)
    turn.warm_up()
    if timing.large is not None:
        timing.large_batch = turn.best_batch(turn.large, plan.large_batches)
    timed.stages.reset()
    task = progress.add_task("timing", total=plan.batches)
    begin, batches = perf_counter(), 0
    while batches < plan.batches or perf_counter() - begin < plan.seconds:
        batches += turn.take(min(BATCHES_PER_TURN, max(1, plan.batches - batches)))
        _show(progress, task, batches)


class _Turn:
    """Takes the next images through everything that is compared."""

    def __init__(self, timed: Timed, plan: TimingPlan, timing: Timing) -> None:
        self._cascade, self._stages = timed.cascade, timed.stages
        self._frames, self._force = timed.frames, timed.force
        self._specs = timed.cascade.bundle.spec.stages
        self.large = len(self._specs) - 1
        self._plan, self._timing = plan, timing
        self._place = 0

    def next_rows(self, count: int) -> Rows:
        """Return the next ``count`` row numbers, going round at the end."""
        rows = (self._place + np.arange(count)) % len(self._frames)
        self._place = int(rows[-1] + 1)
        return rows

    def warm_up(self) -> None:
        """Run the cascade for as long as the plan says, and once at least."""
        end = perf_counter() + self._plan.warmup_seconds
        while True:
            rows = self.next_rows(self._plan.batch)
            with self._stages.placed([self._frames[rows]]) as (frames,):
                self._stages.run(frames, self._forced(rows))
            if perf_counter() >= end:
                return

    def best_batch(self, number: int, wanted: Sequence[int]) -> int:
        """Return the size at which a stage alone has the least median time per image."""
        medians = {}
        for size in self._stages.batch_sizes(number, wanted):
            subject = Subject(self._specs[number].name)
            batch = self._frames[np.arange(size) % len(self._frames)]
            with self._stages.placed([batch]) as (frames,):
                for _ in range(max(3, min(20, 128 // size))):
                    subject.measure(self._classifier(number, frames), size)
            medians[size] = float(np.median(subject.seconds)) / size
        return min(medians, key=lambda size: medians[size])

    def take(self, batches: int) -> int:
        """Measure ``batches`` batches; return how many."""
        rows = self.next_rows(batches * self._plan.batch).reshape(batches, -1)
        # Batches as a caller would hand them over: already in memory, one array each.
        inputs = [self._frames[batch] for batch in rows]
        with self._stages.placed(inputs) as placed:
            groups = self._time_cascade(rows, placed)
            self._time_large(rows.reshape(-1))
            self._time_savers(placed)
        self._time_engines(groups)
        self._time_stream(inputs)
        for batch, frames, group in zip(rows, inputs, groups, strict=True):
            self._stages.trace(frames, self._forced(batch), group)
        return batches

    def _time_cascade(self, rows: Rows, inputs: Sequence[Any]) -> list[list[int]]:
        """Time the cascade on each batch and, right after it, its engines on the same rows."""
        subject, groups, alone = self._timing.cascade, [], 0.0
        for batch, frames in zip(rows, inputs, strict=True):
            subject.measure(self._runner(frames, self._forced(batch)), len(batch))
            deepest = self._stages.deepest()
            group = [int((deepest >= stage).sum()) for stage in range(len(self._specs))]
            alone += self._seconds(enumerate(group))
            groups.append(group)
        seconds = sum(subject.seconds[-len(inputs) :])
        self._timing.turns["wall"].append(seconds)
        self._timing.turns["engines"].append(alone)
        self._timing.turns["cascade"].append(seconds / rows.size)
        return groups

    def _time_large(self, rows: Rows) -> None:
        subject, size = self._timing.large, self._timing.large_batch
        if subject is None:
            return
        calls = max(1, LARGE_IMAGES_PER_TURN // size)
        batches = [self._frames[batch] for batch in np.resize(rows, (calls, size))]
        with self._stages.placed(batches) as placed:
            for frames in placed:
                subject.measure(self._classifier(self.large, frames), size)
        self._timing.turns["large"].append(sum(subject.seconds[-calls:]) / (calls * size))

    def _time_savers(self, inputs: Sequence[Any]) -> None:
        for number, spec in enumerate(self._specs):
            subject = self._timing.savers.get(spec.name)
            for frames in inputs if subject else ():
                assert subject is not None
                subject.measure(self._classifier(number, frames), len(frames))

    def _time_engines(self, groups: list[list[int]]) -> None:
        """Time each engine back to back on its row groups, and on their rows in full batches."""
        repeated = full = 0.0
        for number in range(len(self._specs)):
            sizes = [group[number] for group in groups]
            repeated += self._seconds((number, size) for size in sizes)
            whole, rest = divmod(sum(sizes), self._plan.batch)
            full += self._seconds((number, size) for size in [self._plan.batch] * whole + [rest])
        self._timing.turns["repeated"].append(repeated)
        self._timing.turns["full"].append(full)

    def _time_stream(self, inputs: list[Frames]) -> None:
        """Time the turn's batches with two of them under way, where that is another thing."""
        if self._stages.overlaps:
            images = sum(map(len, inputs))
            self._timing.streamed.measure(
                lambda: deque(self._cascade.stream(inputs), maxlen=0), images
            )

    def _forced(self, rows: Rows) -> Force:
        return None if self._force is None else self._force[:, rows]

    def _seconds(self, work: Iterable[tuple[int, int]]) -> float:
        begin = perf_counter()
        self._stages.run_engines(work)
        return perf_counter() - begin

    def _classifier(self, number: int, frames: Any) -> Callable[[], None]:
        return lambda: self._stages.classify(number, frames)

    def _runner(self, frames: Any, force: Force) -> Callable[[], None]:
        return lambda: self._stages.run(frames, force)


def _show(progress: Progress, task: TaskID, batches: int) -> None:
    progress.update(task, completed=batches, total=max(batches, progress.tasks[task].total or 0))
