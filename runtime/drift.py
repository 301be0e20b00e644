"""Drift guard: a random share of the samples that earlier stages answer is put to the last one too.

Watched is the share of all samples that an earlier stage answers otherwise than the last one would
have. It needs no labels. It is no bound on what is lost - where the two differ the saver may be
right - and is several times that, so it is compared with itself: with the upper bound of the same
share on the certifying samples, plus a tolerance.

An alarm says that images have come for which the certificate may not hold. It raises the gate to
the next gear, which lessens the harm and proves nothing. At the highest gear, where the last stage
answers everything, there is nothing left to watch.
"""

from __future__ import annotations

import itertools
import logging
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from runtime.cascade import Cascade, Pending, Results, streamed
from runtime.device_frames import is_on_device
from runtime.errors import InputError
from runtime.evidence import Evidence
from runtime.preprocess import Frames
from runtime.schema import Stage

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Watch:
    """How a drift guard watches.

    Attributes
    ----------
    share
        Of all samples, drawn at random whatever they show. Those of them that an earlier stage
        answered are put to the last stage.
    alpha
        Chance that a stream without drift ever raises an alarm, given that the reference holds.
    tolerance
        Added to the reference: a rise that is not worth an alarm.
    batch
        Samples that are put to the last stage together: fewer are seen sooner, and cost more.
    seed
        Of the draws.

    Raises
    ------
    InputError
        When a number is out of its range.
    """

    share: float = 0.01
    alpha: float = 0.05
    tolerance: float = 0.002
    batch: int = 16
    seed: int = 0

    def __post_init__(self) -> None:
        """Refuse what is no watch."""
        if not 0 < self.share <= 1:
            raise InputError(
                f"drift guard: share: expected above 0, at most 1, got {self.share}. "
                "0.01 puts one in a hundred of the accepted images to the large model as well."
            )
        if not 0 < self.alpha < 1:
            raise InputError(f"drift guard: alpha: expected between 0 and 1, got {self.alpha}.")
        if not 0 <= self.tolerance < 1:
            raise InputError(
                f"drift guard: tolerance: expected from 0 to below 1, got {self.tolerance}."
            )
        if self.batch < 1:
            raise InputError(f"drift guard: batch: expected at least 1, got {self.batch}.")


@dataclass(frozen=True)
class Alarm:
    """Images have come for which the certificate may not hold.

    Attributes
    ----------
    number
        1 for the first of a guard.
    gear, lowest
        The gear at which it was raised, and the lowest that is left.
    samples, unlike
        Drawn since the guard or the gear before began, and those of them that an earlier stage
        answered otherwise than the last one.
    reference
        That the share was bet against at the last of them, tolerance included.
    alpha
        Of this sequence.
    """

    number: int
    gear: int
    lowest: int
    samples: int
    unlike: int
    reference: float
    alpha: float

    def __str__(self) -> str:
        """Return it in one or two sentences."""
        return (
            f"Drift alarm {self.number} at gear {self.gear}: of {self.samples:,} drawn images, "
            f"{self.unlike:,} were answered by an earlier stage and otherwise than by the last "
            f"({self.unlike / self.samples:.2%}, reference {self.reference:.2%}). The certificate "
            f"may not hold for these images. Gear {self.lowest} is the lowest from now on."
        )


@dataclass
class Account:
    """What a guard has seen: images, those drawn, those put to the last stage, those unlike it.

    The last three count when the last stage has answered.
    """

    images: int = 0
    drawn: int = 0
    shadowed: int = 0
    unlike: int = 0

    def __str__(self) -> str:
        """Return it in one line."""
        return (
            f"drift guard: {self.drawn:,} of {self.images:,} images drawn, {self.shadowed:,} put "
            f"to the last stage too, {self.unlike:,} answered otherwise"
        )


@dataclass(frozen=True)
class _Drawn:
    """Samples of a batch that were drawn: all of them [n], and those an earlier stage answered."""

    gear: int
    accepted: npt.NDArray[np.bool_]
    frames: Frames
    label: npt.NDArray[np.int32]


class DriftGuard:
    """Runs a cascade and watches a random share of its answers. Borrows the cascade.

    The answers are those of the cascade alone, also for samples that were put to the last stage:
    a guard changes nothing but, after an alarm, the gear. When ``batch`` samples have come
    together, the call that brings the last of them waits for the last stage.

    Any thread may call; draws and alarms are taken in the order in which results are asked for.

    Parameters
    ----------
    references
        Per gear but the highest, the cheapest first: upper bound of the watched share on samples
        like those that certified. By default what the bundle has.

    Raises
    ------
    InputError
        When there are no references, or they do not fit the gears.

    Attributes
    ----------
    alarms
        Raised so far. The j-th begins a new sequence at ``alpha / 2**j``.
    account
        Counts since the guard began.

    Examples
    --------
    ::

        guard = DriftGuard(cascade, Watch(share=0.01))
        for results in guard.stream(camera):
            ...
            if guard.alarms:
                notify(str(guard.alarms[-1]))
    """

    def __init__(
        self,
        cascade: Cascade,
        watch: Watch | None = None,
        *,
        references: Sequence[float] | None = None,
    ) -> None:
        self.cascade = cascade
        self.watch = watch or Watch()
        self.alarms: list[Alarm] = []
        self.account = Account()
        given = references_of(cascade) if references is None else references
        self._references = _with_tolerance(given, len(cascade.gears), self.watch.tolerance)
        self._rng = np.random.default_rng(self.watch.seed)
        self._lock = threading.Lock()
        self._evidence = Evidence(self.watch.alpha)
        self._waiting: list[_Drawn] = []
        self._lowest = 0

    def run(self, frames: Frames) -> Results:
        """Classify frames and wait for the answers; see `Cascade.run`."""
        return self.submit(frames).result()

    def submit(self, frames: Frames) -> Pending:
        """Begin to classify frames; see `Cascade.submit`.

        Frames of a GPU must stay as they are until ``result`` has returned.
        """
        pending = self.cascade.submit(frames)
        if is_on_device(frames):
            return _Watched(pending, lambda results: self._see(results, frames))
        # The caller may change them when this returns, so they are drawn before their answers.
        rows = self._draw(len(frames))
        copies = self.cascade.copy_rows(frames, rows)
        return _Watched(pending, lambda results: self._observe(results, rows, copies))

    def stream(self, batches: Iterable[Frames]) -> Iterator[Results]:
        """Classify batches in order, with up to two under way."""
        return streamed(self.submit, batches)

    def flush(self) -> None:
        """Put to the last stage what waits for a full batch, as at the end of a stream."""
        with self._lock:
            self._compare()

    def _draw(self, n: int) -> npt.NDArray[np.int64]:
        """Return which of n samples are drawn; nothing but n and the seed decides."""
        with self._lock:
            return np.flatnonzero(self._rng.random(n) < self.watch.share)

    def _see(self, results: Results, frames: Any) -> None:
        rows = self._draw(len(results))
        self._observe(results, rows, self.cascade.copy_rows(frames, rows))

    def _observe(self, results: Results, rows: npt.NDArray[np.int64], copies: Frames) -> None:
        accepted = results.stage[rows] < len(self.cascade.stage_names) - 1
        label = results.label[rows][accepted]
        with self._lock:
            self.account.images += len(results)
            gear = results.gear
            if gear is None or gear < self._lowest or not len(rows):
                # Nothing is known of thresholds that are no gear; a gear below the lowest is that
                # of a batch that was under way when an alarm ruled it out.
                return
            self._waiting.append(_Drawn(gear, accepted, copies[accepted], label))
            shadows = sum(len(drawn.label) for drawn in self._waiting)
            if shadows == 0 or shadows >= self.watch.batch:
                self._compare()

    def _compare(self) -> None:
        """Put what waits to the last stage, and bet on all that was drawn, in its order."""
        waiting, self._waiting = self._waiting, []
        if not waiting:
            return
        accepted = np.concatenate([drawn.accepted for drawn in waiting])
        label = np.concatenate([drawn.label for drawn in waiting])
        unlike = np.zeros(len(accepted), bool)
        unlike[accepted] = label != self._last_labels([drawn.frames for drawn in waiting])
        gears = np.repeat([drawn.gear for drawn in waiting], [len(d.accepted) for d in waiting])
        self.account.drawn += len(accepted)
        self.account.shadowed += len(label)
        self.account.unlike += int(unlike.sum())
        place = self._evidence.observe(unlike, self._references[gears])
        if place is not None:
            self._alarm(int(gears[place]))

    def _last_labels(self, parts: Sequence[Frames]) -> npt.NDArray[np.int32]:
        """Return the last stage's labels i32 of all frames; only those of one size run together."""
        labels = [np.empty(0, np.int32)]
        some = filter(len, parts)
        for _, group in itertools.groupby(some, key=lambda part: part.shape[1:]):
            frames = np.concatenate(list(group))
            force = np.ones(len(frames), np.uint8)
            labels.append(self.cascade.run(frames, force=force).label)
        return np.concatenate(labels)

    def _alarm(self, gear: int) -> None:
        evidence, number = self._evidence, len(self.alarms) + 1
        self._lowest = self.cascade.rule_out(gear)
        alarm = Alarm(
            number=number,
            gear=gear,
            lowest=self._lowest,
            samples=evidence.samples,
            unlike=evidence.hits,
            reference=float(self._references[gear]),
            alpha=evidence.alpha,
        )
        self.alarms.append(alarm)
        self._evidence = Evidence(self.watch.alpha / 2**number)
        log.warning("%s", alarm)


class _Watched(Pending):
    """Results on their way that the guard sees before the caller, once."""

    def __init__(self, pending: Pending, observe: Callable[[Results], None]) -> None:
        self._pending = pending
        self._observe: Callable[[Results], None] | None = observe

    def done(self) -> bool:
        """See `Pending`."""
        return self._pending.done()

    def result(self) -> Results:
        """See `Pending`."""
        results = self._pending.result()
        observe, self._observe = self._observe, None
        if observe is not None:
            observe(results)
        return results


def references_of(cascade: Cascade) -> tuple[float, ...]:
    """Return the references of a cascade's bundle, one per gear but the highest.

    Raises
    ------
    InputError
        When it has none.
    """
    measured = cascade.bundle.spec.settings["/".join(cascade.forms)].disagreements
    bounds = {str(item.thresholds): item.upper_bound for item in measured}
    try:
        return tuple(bounds[str(gear)] for gear in cascade.gears[:-1])
    except KeyError:
        raise InputError(
            f"{cascade.bundle.folder}: drift guard: cascade.json has no reference for each of "
            f"{len(cascade.gears) - 1} gear(s): how often an earlier stage answers otherwise than "
            "the last one. Measure it: python -m calibration.threshold "
            f"{cascade.bundle.folder} --gears --selection records/selection"
        ) from None


def shadow_macs(share: float, accepted: float, stages: Sequence[Stage]) -> float:
    """Return the MACs per image that a guard adds.

    Samples that are put to the last stage run through all stages again, forced on at each gate.

    Parameters
    ----------
    share
        See `Watch`.
    accepted
        Share of all images that an earlier stage answers.
    """
    return share * accepted * sum(stage.macs for stage in stages)


def _with_tolerance(
    references: Sequence[float], gears: int, tolerance: float
) -> npt.NDArray[np.float64]:
    values = np.asarray(references, np.float64)
    if values.shape != (gears - 1,):
        raise InputError(
            f"drift guard: references: expected {gears - 1}, one per gear but the highest, "
            f"got {values.size}."
        )
    if not ((values >= 0) & (values + tolerance < 1)).all():
        raise InputError(
            "drift guard: references: expected shares that stay below 1 with the tolerance of "
            f"{tolerance}, got {values.tolist()}."
        )
    return np.append(values, 0.0) + tolerance  # at the highest, no stage but the last one answers
