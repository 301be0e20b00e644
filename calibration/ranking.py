"""Which cascade of a pool is cheapest at a given claim: estimates on the selection split.

Every cascade is screened first: its path is walked with a normal approximation in place of the
exact test, which takes a millisecond. The best of them are then forecast by resampling.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import NormalDist
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.certificates import Forecast, forecast
from calibration.costs import Costs
from calibration.errors import CertificationRefused
from calibration.recorded import Claim
from kernels import reference
from runtime.schema import ThresholdPath

OFFSETS = tuple(float(offset) for offset in np.arange(-3.0, 3.25, 0.25))
"""Of a second gate against the first, in logits of the threshold."""

Points = npt.NDArray[np.int64]


@dataclass(frozen=True)
class Pool:
    """What the models of a pool answer on the selection split.

    Attributes
    ----------
    logits
        f32 [n, K] by model.
    labels
        i32 [n].
    large
        The model that every cascade ends in and is compared with.
    """

    logits: Mapping[str, npt.NDArray[np.float32]]
    labels: npt.NDArray[np.int32]
    large: str


class Candidate(NamedTuple):
    """A cascade with the path that costs least by the screen, and that cost per sample."""

    names: tuple[str, ...]
    path: ThresholdPath
    cost: float


class Estimate(NamedTuple):
    """A candidate's forecast; ``costs`` per sample are at the forecast's quantile levels."""

    names: tuple[str, ...]
    path: ThresholdPath
    forecast: Forecast
    costs: tuple[float, ...]

    @property
    def median(self) -> int:
        """Place of the median among the quantile levels."""
        return self.forecast.levels.index(0.5)

    @property
    def cost(self) -> float:
        """Cost per sample at the median."""
        return self.costs[self.median]

    @property
    def thresholds(self) -> tuple[float, ...]:
        """Thresholds at the median."""
        return self.forecast.thresholds[self.median]

    @property
    def escalation_rates(self) -> tuple[float, ...]:
        """Share of all samples that each gate sends on, at the median."""
        return self.forecast.escalation_rates[self.median]


class Curve(NamedTuple):
    """A cascade along a path.

    Attributes
    ----------
    drop, changed
        f64 [points], mean of D and of its magnitude.
    rates
        f64 [points, gates], share of all samples that each gate sends on.
    """

    drop: npt.NDArray[np.float64]
    changed: npt.NDArray[np.float64]
    rates: npt.NDArray[np.float64]


def chains(pool: Pool, costs: Costs, lengths: Sequence[int]) -> Iterator[tuple[str, ...]]:
    """Yield every sequence of models of rising cost that ends in the large one."""
    limit = costs.alone(pool.large)
    savers = sorted((name for name in pool.logits if costs.alone(name) < limit), key=costs.alone)
    for length in lengths:
        for chosen in itertools.combinations(savers, length - 1):
            yield (*chosen, pool.large)


@dataclass
class Screen:
    """Finds the offsets at which a cascade costs least, quickly.

    Parameters
    ----------
    size
        Samples that will certify; the margin against chance is for so many.
    """

    pool: Pool
    costs: Costs
    claim: Claim
    size: int
    offsets: Sequence[float] = OFFSETS
    _kept: dict[tuple[str, float], Points] = field(default_factory=dict)
    _drops: dict[str, npt.NDArray[np.float64]] = field(default_factory=dict)

    def best(self, names: tuple[str, ...]) -> Candidate:
        """Return the candidate of least cost for these stages; of equal ones the least offsets."""
        gates = len(names) - 1
        vectors = itertools.product((0.0,), *[sorted(self.offsets, key=abs)] * (gates - 1))
        candidates = (self._at(names, offsets) for offsets in vectors)
        return min(candidates, key=lambda candidate: candidate.cost)

    def _at(self, names: tuple[str, ...], offsets: tuple[float, ...]) -> Candidate:
        path = ThresholdPath(offsets=offsets)
        savers = names[:-1]
        first_kept = [self._first_kept(*gate) for gate in zip(savers, offsets, strict=True)]
        walked = curve(first_kept, [self._drop(name) for name in savers], path.points + 1)
        point = last_within(walked, self.claim, self.size)
        return Candidate(names, path, self.costs.cascade(names, walked.rates[point].tolist()))

    def _first_kept(self, name: str, offset: float) -> Points:
        key = (name, offset)
        if key not in self._kept:
            thresholds = ThresholdPath(offsets=(offset,)).vectors()[:, 0]
            total = reference.softmax(self.pool.logits[name]).total
            self._kept[key] = first_kept_point(total, thresholds)
        return self._kept[key]

    def _drop(self, name: str) -> npt.NDArray[np.float64]:
        if name not in self._drops:
            self._drops[name] = self._right(self.pool.large) - self._right(name)
        return self._drops[name]

    def _right(self, name: str) -> npt.NDArray[np.float64]:
        right: npt.NDArray[np.bool_] = (
            reference.softmax(self.pool.logits[name]).label == self.pool.labels
        )
        return right.astype(np.float64)


def first_kept_point(total: npt.NDArray[np.float64], thresholds: npt.NDArray[np.float32]) -> Points:
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


def curve(
    first_kept: Sequence[Points], drops: Sequence[npt.NDArray[np.float64]], points: int
) -> Curve:
    """Return a cascade's drop and escalation along a path.

    Parameters
    ----------
    first_kept
        i64 [n] per gate, the first point at which it keeps each sample.
    drops
        f64 [n] per gate, D of each sample if the stage before the gate answers it.
    """
    n = len(first_kept[0])
    answered = np.full(n, points)
    change, changed = np.zeros(points + 1), np.zeros(points + 1)
    kept = []
    for first, drop in zip(first_kept, drops, strict=True):
        # A stage answers from its gate's first point on, until a stage before it takes over.
        answers = first < answered
        for place, sign in ((first[answers], 1), (answered[answers], -1)):
            change += sign * np.bincount(place, drop[answers], points + 1)
            changed += sign * np.bincount(place, np.abs(drop[answers]), points + 1)
        answered = np.minimum(answered, first)
        kept.append(np.cumsum(np.bincount(answered, minlength=points + 1))[:points])
    rates: npt.NDArray[np.float64] = 1 - np.stack(kept, axis=1) / n
    return Curve(np.cumsum(change)[:points] / n, np.cumsum(changed)[:points] / n, rates)


def last_within(walked: Curve, claim: Claim, size: int) -> int:
    """Return the last point before the first whose drop, plus a margin, exceeds epsilon.

    The margin is that of a normal approximation at level delta for ``size`` samples.
    """
    variance = np.maximum(walked.changed - walked.drop**2, 0.0)
    margin = NormalDist().inv_cdf(1 - claim.delta) * np.sqrt(variance / size)
    exceeds = np.flatnonzero(walked.drop + margin > claim.epsilon)
    # Point 0 escalates every sample, so its drop is 0.
    return int(exceeds[0]) - 1 if len(exceeds) else len(walked.drop) - 1


def rank(
    screen: Screen,
    candidates: Sequence[Candidate],
    *,
    draws: int,
    advance: Callable[[], object] = lambda: None,
) -> list[Estimate]:
    """Forecast candidates and return those that may be certified, cheapest first.

    Parameters
    ----------
    draws
        Resamplings of each forecast.
    advance
        Told the end of each forecast.
    """
    estimates = []
    for candidate in candidates:
        estimate = _forecast(screen, candidate, draws)
        advance()
        if estimate:
            estimates.append(estimate)
    return sorted(estimates, key=lambda estimate: estimate.cost)


def _forecast(screen: Screen, candidate: Candidate, draws: int) -> Estimate | None:
    pool, claim = screen.pool, screen.claim
    try:
        found = forecast(
            [pool.logits[name] for name in candidate.names],
            pool.labels,
            candidate.path,
            n=screen.size,
            epsilon=claim.epsilon,
            delta=claim.delta,
            method=claim.method,
            draws=draws,
        )
    except CertificationRefused:
        return None
    costs = tuple(screen.costs.cascade(candidate.names, rates) for rates in found.escalation_rates)
    return Estimate(candidate.names, candidate.path, found, costs)
