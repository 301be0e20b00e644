"""A cascade along a path of thresholds, from bookkeeping alone: drop and escalation at each point.

A row that a gate keeps at one point it keeps at every later one, so a gate is known by the first
point at which it keeps each sample. Weights of the samples give resampled splits without copying.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from kernels import reference

Points = npt.NDArray[np.int64]
Floats = npt.NDArray[np.float64]
Weights = npt.NDArray[np.integer[Any]]


class Gate(NamedTuple):
    """One gate along a path.

    Attributes
    ----------
    first_kept
        i64 [n], the first point at which it keeps each sample, or the number of points.
    drop
        i8 [n], D of each sample if the stage before the gate answers it.
    """

    first_kept: Points
    drop: npt.NDArray[np.int8]


@dataclass(frozen=True)
class Margin:
    """How much of epsilon chance takes away when ``size`` samples certify at level delta."""

    epsilon: float
    delta: float
    size: int

    def of(self, drop: Floats, changed: Floats) -> Floats:
        """Return the normal approximation's margin for a mean of D and of its magnitude."""
        variance = np.maximum(changed - drop**2, 0.0)
        margin: Floats = NormalDist().inv_cdf(1 - self.delta) * np.sqrt(variance / self.size)
        return margin


class Curve:
    """A cascade along a path of ``points`` points.

    Parameters
    ----------
    gates
        In the order of the cascade.
    last
        i8 [n], D of each sample if the last stage answers it; None where that answers as the large
        model alone does.
    """

    def __init__(
        self, gates: Sequence[Gate], points: int, *, last: npt.NDArray[np.int8] | None = None
    ) -> None:
        self._points = points
        answered = np.full(len(gates[0].first_kept), points)
        self._answered: list[Points] = []
        places, samples, changes, magnitudes = [], [], [], []
        # The last stage answers from the first point on whatever no gate keeps.
        always = np.zeros(len(answered), np.int64)
        for first_kept, drop in (*gates, *([] if last is None else [Gate(always, last)])):
            # A stage answers from its gate's first point on, until a stage before it takes over.
            taken = np.flatnonzero((first_kept < answered) & (drop != 0))
            places += [first_kept[taken], answered[taken]]
            samples += [taken, taken]
            changes += [drop[taken], -drop[taken]]
            magnitudes += [np.abs(drop[taken]), -np.abs(drop[taken])]
            answered = np.minimum(answered, first_kept)
            self._answered.append(answered)
        del self._answered[len(gates) :]
        self._places, self._samples = np.concatenate(places), np.concatenate(samples)
        self._changes = np.concatenate(changes).astype(np.float64)
        self._magnitudes = np.concatenate(magnitudes).astype(np.float64)

    def drop(self, weights: Weights) -> tuple[Floats, Floats]:
        """Return mean D and mean magnitude of D, f64 [draws, points], for i64 [draws, n]."""
        total = weights.sum(1, keepdims=True)
        return (
            self._along(weights, self._changes) / total,
            self._along(weights, self._magnitudes) / total,
        )

    def last_within(self, weights: Weights, margin: Margin) -> Points:
        """Return i64 [draws], the last point before the first whose drop may be too much.

        It is -1 where even point 0 may drop too much, as the last stage's answers can.
        """
        drop, changed = self.drop(weights)
        exceeds = drop + margin.of(drop, changed) > margin.epsilon
        last: Points = np.where(exceeds.any(1), exceeds.argmax(1), self._points) - 1
        return last

    def rates(self, weights: Weights, point: Points) -> Floats:
        """Return f64 [draws, gates], the share of samples each gate sends on at a draw's point."""
        total = weights.sum(1)
        sent = [(weights * (answered > point[:, None])).sum(1) for answered in self._answered]
        rates: Floats = np.stack(sent, axis=1) / total[:, None]
        return rates

    def _along(self, weights: Weights, changes: Floats) -> Floats:
        draws, width = len(weights), self._points + 1
        index = np.arange(draws)[:, None] * width + self._places
        values = weights[:, self._samples] * changes
        sums = np.bincount(index.ravel(), values.ravel(), draws * width)
        along: Floats = np.cumsum(sums.reshape(draws, width)[:, : self._points], axis=1)
        return along


def first_kept_point(total: Floats, thresholds: npt.NDArray[np.float32]) -> Points:
    """Return the first point of a falling path at which each row is kept, or their number.

    Parameters
    ----------
    total
        f64 [n], of `kernels.reference.softmax`.
    thresholds
        f32 [points], none above the one before it: a row that is kept stays kept.
    """
    low = np.zeros(len(total), np.int64)
    high = np.full(len(total), len(thresholds))
    while (low < high).any():
        middle = (low + high) // 2
        # Where low meets high, middle may be past the end; the result is then not used.
        limit = thresholds[np.minimum(middle, len(thresholds) - 1)].astype(np.float64)
        kept = reference.accept(total, limit)
        searching = low < high
        high = np.where(searching & kept, middle, high)
        low = np.where(searching & ~kept, middle + 1, low)
    return low
