"""Which cascade of a pool is cheapest at a given claim: estimates on the selection split.

Every cascade is screened first: its path is walked with a normal approximation in place of the
exact test, which takes a fraction of a millisecond. The best of them are then forecast by
resampling, with the exact test. Intervals come from a paired bootstrap: the selection samples are
drawn anew, the same ones for every cascade, and each cascade is screened on them.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.certificates import Forecast, forecast
from calibration.costs import Costs
from calibration.curves import Curve, Gate, Margin, Points, Weights, first_kept_point
from calibration.errors import CertificationRefused
from calibration.recorded import Claim
from kernels import reference
from runtime.schema import ThresholdPath
from runtime.simulation import Simulation

OFFSETS = tuple(float(offset) for offset in np.arange(-3.0, 3.25, 0.25))
"""Of a later gate against the first, in logits of the threshold."""
EXHAUSTIVE = 3
"""Stages up to which all cascades are tried; longer ones grow from the best that are shorter."""
BEAM = 10
"""How many of the best cascades of one length grow by a stage."""
BOOTSTRAP_SEED = 0
INTERVAL = (0.025, 0.975)

Float64 = npt.NDArray[np.float64]
Chain = tuple[str, ...]


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

    @cached_property
    def right(self) -> Mapping[str, npt.NDArray[np.bool_]]:
        """Where each model alone is right, bool [n]."""
        return {name: self._label(name) == self.labels for name in self.logits}

    def accuracy(self, name: str) -> float:
        """Return the accuracy of a model alone."""
        return float(self.right[name].mean())

    def _label(self, name: str) -> npt.NDArray[np.int32]:
        return reference.softmax(self.logits[name]).label


class Candidate(NamedTuple):
    """A cascade with the path that costs least by the screen, and that cost per sample."""

    names: Chain
    path: ThresholdPath
    cost: float


class Estimate(NamedTuple):
    """A candidate's forecast; ``costs`` per sample are at the forecast's quantile levels.

    ``accuracy`` is on the selection split, at the thresholds of the median.
    """

    names: Chain
    path: ThresholdPath
    forecast: Forecast
    costs: tuple[float, ...]
    accuracy: float

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


class Interval(NamedTuple):
    """A 95 % interval of the paired bootstrap."""

    low: float
    high: float


def cheaper(pool: Pool, costs: Costs) -> list[str]:
    """Return the models that alone cost less than the large one, cheapest first."""
    limit = costs.alone(pool.large)
    return sorted((name for name in pool.logits if costs.alone(name) < limit), key=costs.alone)


def chains(savers: Sequence[str], large: str, length: int) -> Iterator[Chain]:
    """Yield all cascades of ``length`` stages, in every order, that end in the large model."""
    for chosen in itertools.permutations(savers, length - 1):
        yield (*chosen, large)


def grown(shorter: Sequence[Chain], savers: Sequence[str]) -> list[Chain]:
    """Return every cascade that one of ``shorter`` becomes by one more saver, anywhere in it."""
    longer = {
        (*chain[:place], saver, *chain[place:]): None
        for chain in shorter
        for saver in savers
        if saver not in chain
        for place in range(len(chain))
    }
    return list(longer)


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

    def best(self, names: Chain) -> Candidate:
        """Return the candidate of least cost for these stages; of equal ones the least offsets.

        With one gate after the first all offsets are tried, with more one gate after the other
        until none lowers the cost.
        """
        best = self._at(names, (0.0,) * (len(names) - 1))
        while True:
            before = best.cost
            for gate in range(1, len(names) - 1):
                best = self._best_of_gate(best, gate)
            if len(names) <= EXHAUSTIVE or best.cost >= before:
                return best

    def resampled(self, candidate: Candidate, weights: Weights) -> Float64:
        """Return the candidate's cost on each resampled split, f64 [draws].

        Parameters
        ----------
        weights
            i64 [draws, n], how often each selection sample was drawn.
        """
        return self._costs(candidate.names, candidate.path, weights)

    def _best_of_gate(self, best: Candidate, gate: int) -> Candidate:
        given = best.path.offsets
        vectors = [
            (*given[:gate], offset, *given[gate + 1 :]) for offset in sorted(self.offsets, key=abs)
        ]
        return min([best, *(self._at(best.names, v) for v in vectors)], key=lambda c: c.cost)

    def _at(self, names: Chain, offsets: tuple[float, ...]) -> Candidate:
        path = ThresholdPath(offsets=offsets)
        once = np.ones((1, len(self.pool.labels)), np.int64)
        return Candidate(names, path, float(self._costs(names, path, once)[0]))

    def _costs(self, names: Chain, path: ThresholdPath, weights: Weights) -> Float64:
        walked = self._curve(names, path)
        point = walked.last_within(weights, self._margin)
        return self.costs.cascade(names, walked.rates(weights, point))

    def kept_at_once(self, name: str) -> tuple[float, bool]:
        """Return which share of its samples a saver keeps below threshold 1, and if that passes."""
        walked = self._curve((name, self.pool.large), ThresholdPath())
        once = np.ones((1, len(self.pool.labels)), np.int64)
        kept = 1 - float(walked.rates(once, np.array([1]))[0, 0])
        return kept, int(walked.last_within(once, self._margin)[0]) > 0

    def _curve(self, names: Chain, path: ThresholdPath) -> Curve:
        gates = [
            Gate(self._first_kept(name, offset), self._drops[name])
            for name, offset in zip(names[:-1], path.offsets, strict=True)
        ]
        return Curve(gates, path.points + 1)

    def _first_kept(self, name: str, offset: float) -> Points:
        key = (name, offset)
        if key not in self._kept:
            thresholds = ThresholdPath(offsets=(offset,)).vectors()[:, 0]
            self._kept[key] = first_kept_point(self._totals[name], thresholds)
        return self._kept[key]

    @cached_property
    def _margin(self) -> Margin:
        return Margin(self.claim.epsilon, self.claim.delta, self.size)

    @cached_property
    def _totals(self) -> dict[str, Float64]:
        return {name: reference.softmax(z).total for name, z in self.pool.logits.items()}

    @cached_property
    def _drops(self) -> dict[str, npt.NDArray[np.int8]]:
        right = {name: hits.astype(np.int8) for name, hits in self.pool.right.items()}
        return {name: right[self.pool.large] - hits for name, hits in right.items()}


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


def resampling_weights(n: int, draws: int) -> Weights:
    """Return how often each of n samples is drawn, i64 [draws, n], n with replacement."""
    rng = np.random.default_rng(BOOTSTRAP_SEED)
    return rng.multinomial(n, np.full(n, 1 / n), size=draws)


def intervals(values: Float64) -> list[Interval]:
    """Return the 95 % interval of each column of f64 [draws, candidates]."""
    if values.shape[1] == 0:
        return []
    low, high = np.quantile(values, INTERVAL, axis=0)
    return [Interval(float(a), float(b)) for a, b in zip(low, high, strict=True)]


def _forecast(screen: Screen, candidate: Candidate, draws: int) -> Estimate | None:
    pool, claim = screen.pool, screen.claim
    logits = [pool.logits[name] for name in candidate.names]
    try:
        found = forecast(
            logits,
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
    costs = screen.costs.cascade(candidate.names, np.array(found.escalation_rates))
    thresholds = found.thresholds[found.levels.index(0.5)]
    drop = Simulation(logits, pool.labels).drops(thresholds).mean()
    accuracy = pool.accuracy(pool.large) - float(drop)
    return Estimate(candidate.names, candidate.path, found, tuple(costs.tolist()), accuracy)
