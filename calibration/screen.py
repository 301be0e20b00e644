"""A quick estimate of what a cascade costs at its certified point, from the selection split.

Its path is walked as certification walks it, with a normal approximation in place of the exact
test, which takes a fraction of a millisecond: so that all cascades of a pool, the offsets between
their gates, and their options can be compared.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.chains import EXHAUSTIVE, Chain, Pool
from calibration.class_offsets import class_offsets
from calibration.costs import Costs
from calibration.curves import Curve, Gate, Margin, Points, Weights
from calibration.readings import Float32, Reading, matched, read
from calibration.recorded import Claim
from calibration.scores import LEARNED, PLAIN, Choice
from kernels import reference
from runtime.schema import Combination, Score, ThresholdPath

OFFSETS = tuple(float(offset) for offset in np.arange(-3.0, 3.25, 0.25))
"""Of a later gate against the first, in logits of the threshold."""

STEPS = (-1.0, -0.5, -0.25, 0.25, 0.5, 1.0)
"""Of an offset that is refined."""

Float64 = npt.NDArray[np.float64]


class Options(NamedTuple):
    """What a cascade does beside the plain rule.

    Attributes
    ----------
    scores
        One per gate.
    strength
        Part of the class offsets that is added to the thresholds; only with plain scores.
    combination
        What the last stage adds to its logits.
    """

    scores: tuple[Score, ...]
    strength: float = 0.0
    combination: Combination | None = None

    @property
    def plain_scores(self) -> bool:
        """Whether every gate reads max-softmax at temperature 1."""
        return all(score == PLAIN for score in self.scores)


class Candidate(NamedTuple):
    """A cascade with the offsets between gates that cost least by the screen, and that cost."""

    names: Chain
    offsets: tuple[float, ...]
    options: Options
    cost: float


@dataclass
class Screen:
    """Finds the offsets at which a cascade costs least, quickly.

    Parameters
    ----------
    size
        Samples that will certify; the margin against chance is for so many.
    choices
        The scores that were chosen for savers; the plain one for those that are not there.
    """

    pool: Pool
    costs: Costs
    claim: Claim
    size: int
    offsets: Sequence[float] = OFFSETS
    choices: Mapping[str, Choice] = field(default_factory=dict)
    _readings: dict[tuple[str, Score], Reading] = field(default_factory=dict)
    _surest: dict[tuple[str, Score], Float64] = field(default_factory=dict)
    _kept: dict[tuple[str, Score, float, float], Points] = field(default_factory=dict)
    _last: dict[tuple[str, float], npt.NDArray[np.int8]] = field(default_factory=dict)

    def best(self, names: Chain, options: Options | None = None) -> Candidate:
        """Return the candidate of least cost for these stages; of equal ones the least offsets.

        With one gate after the first all offsets are tried, with more one gate after the other
        until none lowers the cost.

        Parameters
        ----------
        options
            None is the plain rule.
        """
        gates = len(names) - 1
        best = self.at(names, (0.0,) * gates, options or Options((PLAIN,) * gates))
        while True:
            before = best.cost
            for gate in range(1, gates):
                best = self._best_of_gate(best, gate)
            if len(names) <= EXHAUSTIVE or best.cost >= before:
                return best

    def at(self, names: Chain, offsets: tuple[float, ...], options: Options) -> Candidate:
        """Return the candidate with these offsets."""
        once = np.ones((1, len(self.pool.labels)), np.int64)
        candidate = Candidate(names, offsets, options, np.nan)
        return candidate._replace(cost=float(self.resampled(candidate, once)[0]))

    def refined(self, candidate: Candidate, weights: Weights) -> Candidate:
        """Return the candidate with offsets near its own that cost least on resampled splits.

        Where one walk ends is chance in part, and so is the offset at which it ends latest.

        Parameters
        ----------
        weights
            i64 [draws, n], as for `resampled`; what is least is the mean over draws.
        """
        best, least = candidate, float(self.resampled(candidate, weights).mean())
        improved = True
        while improved:
            improved = False
            for gate, step in itertools.product(range(1, len(candidate.offsets)), STEPS):
                given = best.offsets
                offsets = (*given[:gate], given[gate] + step, *given[gate + 1 :])
                other = best._replace(offsets=offsets)
                cost = float(self.resampled(other, weights).mean())
                if cost < least:
                    best, least, improved = other, cost, True
        return self.at(*best[:3])

    def resampled(self, candidate: Candidate, weights: Weights) -> Float64:
        """Return the candidate's cost on each resampled split, f64 [draws].

        Parameters
        ----------
        weights
            i64 [draws, n], how often each selection sample was drawn.
        """
        walked = self._curve(candidate)
        point = walked.last_within(weights, self._margin)
        costs = self.costs.cascade(candidate.names, walked.rates(weights, np.maximum(point, 0)))
        # Where nothing can be certified, the large model runs alone.
        return np.where(point < 0, self.costs.alone(self.pool.large), costs)

    def path(self, candidate: Candidate) -> ThresholdPath:
        """Return the path that certification is to walk.

        With other scores than the plain one it is written out, with the thresholds that keep as
        many selection samples as max-softmax does; ``offsets`` then only say how it came about.
        """
        names, offsets, options, _ = candidate
        if not options.plain_scores:
            gates = zip(names[:-1], options.scores, offsets, strict=True)
            columns = [self._thresholds(name, score, offset) for name, score, offset in gates]
            # As few digits as name the float32, and equal points once.
            rows = [tuple(float(str(t)) for t in row) for row in np.stack(columns, axis=1)]
            return ThresholdPath(offsets=offsets, explicit=tuple(dict.fromkeys(rows)))
        if not options.strength:
            return ThresholdPath(offsets=offsets)
        by_class = [tuple(self._of_class(name, options.strength).tolist()) for name in names[:-1]]
        return ThresholdPath(offsets=offsets, class_offsets=tuple(by_class))

    def gate_scores(self, candidate: Candidate) -> list[Float32 | None]:
        """Return what learned gates say of each sample, f32 [n], None for each other gate."""
        return [
            self.reading(name, score).value.astype(np.float32) if score == LEARNED else None
            for name, score in zip(candidate.names, candidate.options.scores, strict=False)
        ]

    def kept_at_once(self, name: str) -> tuple[float, bool]:
        """Return which share of its samples a saver keeps below threshold 1, and if that passes."""
        walked = self._curve(Candidate((name, self.pool.large), (0.0,), Options((PLAIN,)), 0.0))
        once = np.ones((1, len(self.pool.labels)), np.int64)
        kept = 1 - float(walked.rates(once, np.array([1]))[0, 0])
        return kept, int(walked.last_within(once, self._margin)[0]) > 0

    def reading(self, name: str, score: Score) -> Reading:
        """Return what a gate behind a model reads by a score."""
        key = (name, score)
        if key not in self._readings:
            choice = self.choices.get(name)
            chosen = choice is not None and choice.score == score
            self._readings[key] = (
                choice.reading if choice and chosen else read(self.pool.logits[name], score)
            )
        return self._readings[key]

    def _best_of_gate(self, best: Candidate, gate: int) -> Candidate:
        given = best.offsets
        vectors = [
            (*given[:gate], offset, *given[gate + 1 :]) for offset in sorted(self.offsets, key=abs)
        ]
        others = (self.at(best.names, vector, best.options) for vector in vectors)
        return min([best, *others], key=lambda candidate: candidate.cost)

    def _curve(self, candidate: Candidate) -> Curve:
        names, offsets, options, _ = candidate
        gates = [
            Gate(self._first_kept(name, score, offset, options.strength), self._drops[name])
            for name, score, offset in zip(names[:-1], options.scores, offsets, strict=True)
        ]
        last = self._last_drop(options.combination) if options.combination else None
        return Curve(gates, ThresholdPath().points + 1, last=last)

    def _first_kept(self, name: str, score: Score, offset: float, strength: float) -> Points:
        key = (name, score, offset, strength)
        if key not in self._kept:
            if strength:
                self._kept[key] = self._first_kept_by_class(name, offset, strength)
            else:
                thresholds = self._thresholds(name, score, offset)
                self._kept[key] = self.reading(name, score).first_kept(thresholds)
        return self._kept[key]

    def _first_kept_by_class(self, name: str, offset: float, strength: float) -> Points:
        by_class = tuple(self._of_class(name, strength).tolist())
        thresholds = ThresholdPath(offsets=(offset,), class_offsets=(by_class,)).vectors()[:, 0]
        reading, label = self.reading(name, PLAIN), self.pool.answers[name]
        first = np.empty(len(label), np.int64)
        for answer in np.unique(label):
            rows = label == answer
            some = reading._replace(value=reading.value[rows])
            first[rows] = some.first_kept(thresholds[:, answer])
        return first

    def _thresholds(self, name: str, score: Score, offset: float) -> Float32:
        """Return thresholds f32 [points] that keep as many samples as the plain score does."""
        if score == PLAIN:
            return ThresholdPath(offsets=(offset,)).vectors()[:, 0]
        key = (name, score)
        if key not in self._surest:
            self._surest[key] = self.reading(name, score).surest()
        plain = self._first_kept(name, PLAIN, offset, 0.0)
        points = ThresholdPath().points + 1
        kept = np.cumsum(np.bincount(plain, minlength=points + 1))[:points]
        return matched(self._surest[key], kept)

    def _of_class(self, name: str, strength: float) -> Float64:
        facts = reference.softmax(self.pool.logits[name])
        harmed, classes = self._drops[name] > 0, self.pool.logits[name].shape[1]
        return strength * class_offsets(facts.confidence, facts.label, harmed, classes)

    def _last_drop(self, combination: Combination) -> npt.NDArray[np.int8]:
        """Return D i8 [n] of answers from the large model's logits and an earlier stage's."""
        key = (combination.stage, combination.weight)
        if key not in self._last:
            pool = self.pool
            other = combination.weight * pool.logits[combination.stage].astype(np.float64)
            right = reference.softmax(pool.logits[pool.large] + other).label == pool.labels
            self._last[key] = pool.right[pool.large].astype(np.int8) - right
        return self._last[key]

    @cached_property
    def _margin(self) -> Margin:
        return Margin(self.claim.epsilon, self.claim.delta, self.size)

    @cached_property
    def _drops(self) -> dict[str, npt.NDArray[np.int8]]:
        right = {name: hits.astype(np.int8) for name, hits in self.pool.right.items()}
        return {name: right[self.pool.large] - hits for name, hits in right.items()}
