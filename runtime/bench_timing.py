"""The part of the bench that takes times: cascade, large model, savers and bare sessions in turn.

One turn takes the same images through everything. A turn is several batches, so that a ratio within
it is not decided by one context switch.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from time import perf_counter

import numpy as np
import numpy.typing as npt
from rich.progress import Progress, TaskID

from runtime.cascade import Cascade
from runtime.host import HostStage, on_host
from runtime.measurement import Subject
from runtime.preprocess import Frames

BATCHES_PER_TURN = 32
LARGE_IMAGES_PER_TURN = 256
"""The large model gets fewer images a turn, or it would take nine tenths of the run."""

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
    batch, large_batch
        Images per batch of the cascade and the savers, and the size at which the large model
        alone was fastest.
    turns
        Per turn, seconds per image: ``cascade``, ``large``; and seconds for the turn's images:
        ``wall`` of the cascade; its sessions alone on the same row groups, in the cascade's order
        batch by batch (``sessions``), and each session on all of its groups before the next one
        (``repeated``: its weights stay in the cache); ``full`` for the same rows in full batches.
    """

    cascade: Subject
    large: Subject | None
    savers: dict[str, Subject]
    batch: int
    large_batch: int = 0
    turns: dict[str, list[float]] = field(
        default_factory=lambda: {
            name: [] for name in ("cascade", "large", "wall", "sessions", "repeated", "full")
        }
    )
    interrupted: bool = False

    @classmethod
    def empty(cls, cascade: Cascade, batch: int) -> Timing:
        """Return an account with nothing measured yet."""
        *savers, large = on_host(cascade.executor).stages
        return cls(
            Subject("cascade"),
            Subject(large.spec.name) if large.reads_frames else None,
            {s.spec.name: Subject(s.spec.name) for s in savers if s.reads_frames},
            batch,
        )


def measure_timing(
    cascade: Cascade,
    frames: Frames,
    plan: TimingPlan,
    timing: Timing,
    *,
    force: npt.NDArray[np.uint8] | None = None,
    progress: Progress,
) -> None:
    """Take turns until the plan is met, adding to ``timing`` as they end."""
    turn = _Turn(cascade, frames, plan, timing, force)
    turn.warm_up()
    if timing.large is not None:
        timing.large_batch = _best_batch(turn.large, frames, plan.large_batches)
    on_host(cascade.executor).reset_timings()
    task = progress.add_task("timing", total=plan.batches)
    begin, batches = perf_counter(), 0
    while batches < plan.batches or perf_counter() - begin < plan.seconds:
        batches += turn.take(min(BATCHES_PER_TURN, max(1, plan.batches - batches)))
        _show(progress, task, batches)


class _Turn:
    """Takes the next images through everything that is compared."""

    def __init__(
        self,
        cascade: Cascade,
        frames: Frames,
        plan: TimingPlan,
        timing: Timing,
        force: npt.NDArray[np.uint8] | None,
    ) -> None:
        self.cascade = cascade
        self.stages = on_host(cascade.executor).stages
        self.large = self.stages[-1]
        self._frames, self._plan, self._timing, self._force = frames, plan, timing, force
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
            self.cascade.run(self._frames[self.next_rows(self._plan.batch)])
            if perf_counter() >= end:
                return

    def take(self, batches: int) -> int:
        """Measure ``batches`` batches; return how many."""
        rows = self.next_rows(batches * self._plan.batch).reshape(batches, -1)
        # Batches as a caller would hand them over: already in memory, one array each.
        inputs = [self._frames[batch] for batch in rows]
        groups = self._time_cascade(rows, inputs)
        self._time_large(rows.reshape(-1))
        for stage in self.stages[:-1]:
            if stage.reads_frames:
                subject = self._timing.savers[stage.spec.name]
                for batch in inputs:
                    subject.measure(_classifier(stage, batch), len(batch))
        self._time_sessions(groups)
        return batches

    def _time_cascade(self, rows: Rows, inputs: list[Frames]) -> list[list[int]]:
        """Time the cascade on each batch and, right after it, its sessions on the same rows."""
        subject, groups, alone = self._timing.cascade, [], 0.0
        for batch, frames in zip(rows, inputs, strict=True):
            force = None if self._force is None else self._force[:, batch]
            results = subject.measure(_runner(self.cascade, frames, force), len(frames))
            group = [int((results.stage >= stage).sum()) for stage in range(len(self.stages))]
            alone += sum(_seconds(s, [size]) for s, size in zip(self.stages, group, strict=True))
            groups.append(group)
        seconds = sum(subject.seconds[-len(inputs) :])
        self._timing.turns["wall"].append(seconds)
        self._timing.turns["sessions"].append(alone)
        self._timing.turns["cascade"].append(seconds / rows.size)
        return groups

    def _time_large(self, rows: Rows) -> None:
        subject, size = self._timing.large, self._timing.large_batch
        if subject is None:
            return
        calls = max(1, LARGE_IMAGES_PER_TURN // size)
        for batch in np.resize(rows, (calls, size)):
            subject.measure(_classifier(self.large, self._frames[batch]), size)
        self._timing.turns["large"].append(sum(subject.seconds[-calls:]) / (calls * size))

    def _time_sessions(self, groups: list[list[int]]) -> None:
        """Time each session back to back on its row groups, and on their rows in full batches."""
        repeated = full = 0.0
        for index, stage in enumerate(self.stages):
            sizes = [group[index] for group in groups]
            repeated += _seconds(stage, sizes)
            whole, rest = divmod(sum(sizes), self._plan.batch)
            full += _seconds(stage, [self._plan.batch] * whole + [rest])
        self._timing.turns["repeated"].append(repeated)
        self._timing.turns["full"].append(full)


def _best_batch(stage: HostStage, frames: Frames, sizes: tuple[int, ...]) -> int:
    """Return the batch size at which a stage alone has the least median time per image."""
    medians = {}
    for size in sizes:
        subject = Subject(stage.spec.name)
        batch = frames[np.arange(size) % len(frames)]
        for _ in range(max(3, min(20, 128 // size))):
            subject.measure(_classifier(stage, batch), size)
        medians[size] = float(np.median(subject.seconds)) / size
    return min(medians, key=lambda size: medians[size])


def _seconds(stage: HostStage, sizes: list[int]) -> float:
    begin = perf_counter()
    for rows in sizes:
        if rows:
            stage.run(rows)
    return perf_counter() - begin


def _classifier(stage: HostStage, frames: Frames) -> Callable[[], object]:
    return lambda: stage.classify(frames)


def _runner(
    cascade: Cascade, frames: Frames, force: npt.NDArray[np.uint8] | None
) -> Callable[[], object]:
    return lambda: cascade.run(frames, force=force)


def _show(progress: Progress, task: TaskID, batches: int) -> None:
    progress.update(task, completed=batches, total=max(batches, progress.tasks[task].total or 0))
