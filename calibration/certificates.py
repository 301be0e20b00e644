"""Thresholds with a certificate: how far down a path a cascade may go, from stored logits.

A path is a sequence of threshold vectors, fixed before the certifying data are seen, from "escalate
all" down. Each vector is one hypothesis, "the drop of the whole cascade exceeds epsilon". They are
tested in order at the full level delta until the first one that is not rejected (Learn-then-Test,
arXiv 2110.01052); the certificate keeps the last one that was.

`CertificationRefused` says that nothing can be promised. A wrong argument is a `ValueError`.
"""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt

from calibration.bounds import (
    LARGEST_FORECAST,
    Drops,
    Method,
    counts,
    n_at_rates,
    passes,
    smallest_passing_n,
)
from calibration.errors import CertificationRefused
from runtime.schema import Certificate, Combination, Score, Threshold, ThresholdPath
from runtime.simulation import Floats, Integers, Simulation, Weighted

FORECAST_LABEL = "selection estimate, not certified"


class Forecast(NamedTuple):
    """What certification may give, from resampling the selection split: not certified.

    Attributes
    ----------
    n, draws, refused
        Size of each resampled set, how many were drawn, how many of those were refused.
    levels
        Quantile levels of the fields below, over the draws that were not refused.
    passed
        Index on the path of the last point passed.
    thresholds, escalation_rates
        Of those points, one per gate; the rates are those of the whole selection split.
    label
        What these numbers are, to be printed with them.
    """

    n: int
    draws: int
    refused: int
    levels: tuple[float, ...]
    passed: tuple[int, ...]
    thresholds: tuple[tuple[Threshold, ...], ...]
    escalation_rates: tuple[tuple[float, ...], ...]
    label: str = FORECAST_LABEL

    @property
    def median(self) -> int:
        """Place of the median among the quantile levels."""
        return self.levels.index(0.5)

    @property
    def median_thresholds(self) -> tuple[Threshold, ...]:
        """Thresholds at the median."""
        return self.thresholds[self.median]

    @property
    def median_rates(self) -> tuple[float, ...]:
        """Share of all samples that each gate sends on, at the median."""
        return self.escalation_rates[self.median]


class _Walked(NamedTuple):
    """Index of the last point passed, -1 if none, and the drops of the last point tested."""

    passed: int
    last: Drops


def certify_path(drops: Iterable[Drops], *, epsilon: float, delta: float, method: Method) -> int:
    """Return the index of the last point passed before the first that fails.

    Points are taken one at a time, and none after the first that fails.

    Parameters
    ----------
    drops
        Per point of the path, i8 or i32 [n] in {-1, 0, 1} of the whole cascade against the large
        model alone, for the same samples in an order chosen without looking at them.

    Raises
    ------
    CertificationRefused
        When the first point fails.
    ValueError
        When there is no point, or points differ in n.
    """
    walked = _walk(drops, epsilon=epsilon, delta=delta, method=method)
    if walked.passed < 0:
        raise CertificationRefused(_refusal(walked.last, epsilon, delta, method))
    return walked.passed


def certify(
    saver_logits: Floats,
    large_logits: Floats,
    labels: Integers | None,
    *,
    epsilon: float,
    delta: float,
    score: Literal["max_softmax", "margin", "entropy"] = "max_softmax",
    temperature: float = 1.0,
    grid: Sequence[float] | Floats | None = None,
    method: Method = "wsr",
) -> Certificate:
    """Certify a threshold for a saver and a large model; see `certify_cascade`.

    Parameters
    ----------
    grid
        Thresholds in [0, 1], none above the one before it, fixed before these data are seen, and
        walked as they are. None is the constant grid: 1, then ``sigmoid(linspace(9, -2.2, 500))``.
    """
    path = ThresholdPath()
    if grid is not None:
        values = np.asarray(grid, np.float64)
        if values.ndim != 1:
            raise ValueError(f"grid: expected thresholds [points], got shape {list(values.shape)}")
        path = ThresholdPath(explicit=tuple((float(t),) for t in values))
    return certify_cascade(
        [saver_logits, large_logits],
        labels,
        path,
        epsilon=epsilon,
        delta=delta,
        scores=[Score(name=score, temperature=temperature)],
        method=method,
    )


def certify_cascade(
    stage_logits: Sequence[Floats],
    labels: Integers | None,
    path: ThresholdPath,
    *,
    epsilon: float,
    delta: float,
    scores: Sequence[Score] | None = None,
    method: Method = "wsr",
    combination: Weighted | None = None,
    gate_scores: Sequence[Floats | None] | None = None,
) -> Certificate:
    """Certify the lowest thresholds on a path that keep the drop within epsilon.

    Without labels the quantity is the disagreement with the large model, which the drop in accuracy
    cannot exceed. The first point is a hypothesis like any other: with a combination the cascade
    may lose even where everything escalates, and the loss is that against the large model alone.

    ``covers`` is left for the caller, who knows the files, and the stage of a combination is
    numbered until the caller, who knows its name, puts that in.

    Parameters
    ----------
    stage_logits, labels, scores, combination, gate_scores
        Of the certifying samples, as for `Simulation`. They must have decided nothing else.
    path
        Chosen on other data; no threshold rises along it.

    Raises
    ------
    CertificationRefused
        When the first point fails: too few samples, or a path that starts too low.
    ValueError
        When arguments do not fit, or a threshold rises along the path.
    """
    simulation = Simulation(
        stage_logits, labels, scores=scores, combination=combination, gate_scores=gate_scores
    )
    thresholds = path.vectors()
    seed = order_seed(stage_logits, labels)
    order = np.random.default_rng(seed).permutation(simulation.n)
    walk = (simulation.drops(point)[order] for point in thresholds)
    passed = certify_path(walk, epsilon=epsilon, delta=delta, method=method)
    seen = counts(simulation.drops(thresholds[passed]))
    return Certificate(
        quantity="disagreement" if labels is None else "accuracy_drop",
        epsilon=epsilon,
        delta=delta,
        method=method,
        **seen._asdict(),
        thresholds=tuple(thresholds[passed].tolist()),
        scores=simulation.scores,
        combination=_numbered(combination),
        path=path,
        passed=passed,
        order_seed=seed,
        escalation_rates=simulation.escalation_rates(thresholds[passed]),
    )


def forecast(
    stage_logits: Sequence[Floats],
    labels: Integers | None,
    path: ThresholdPath,
    *,
    n: int,
    epsilon: float,
    delta: float,
    scores: Sequence[Score] | None = None,
    method: Method = "wsr",
    draws: int = 100,
    seed: int = 0,
    combination: Weighted | None = None,
    gate_scores: Sequence[Floats | None] | None = None,
) -> Forecast:
    """Estimate, from the selection split, what certifying on ``n`` other samples would give.

    Each draw takes n samples of the split with replacement and walks the path. The result is a
    selection estimate, not certified: where the path was chosen on the same split it is optimistic.

    Raises
    ------
    CertificationRefused
        When every draw is refused; the message is that of the last.
    ValueError
        As for `certify_cascade`, or when the split is empty, or n or draws is not positive.
    """
    simulation = Simulation(
        stage_logits, labels, scores=scores, combination=combination, gate_scores=gate_scores
    )
    if min(simulation.n, n, draws) < 1:
        raise ValueError(
            f"forecast: {draws} draws of {n} from {simulation.n} samples; all need >= 1"
        )
    thresholds = path.vectors()
    table = np.stack([simulation.drops(point) for point in thresholds])
    walk = functools.partial(_walk, epsilon=epsilon, delta=delta, method=method)
    # Points with equal drops stand or fall together, so one of each run is walked.
    ends = np.append(np.flatnonzero((table[1:] != table[:-1]).any(1)), len(table) - 1)
    walks = _resampled(table[ends], walk, n=n, draws=draws, seed=seed)
    passed = [ends[walked.passed] for walked in walks if walked.passed >= 0]
    if not passed:
        raise CertificationRefused(_refusal(walks[-1].last, epsilon, delta, method))
    levels = (0.1, 0.5, 0.9)
    points = [int(k) for k in np.quantile(passed, levels, method="inverted_cdf")]
    return Forecast(
        n=n,
        draws=draws,
        refused=draws - len(passed),
        levels=levels,
        passed=tuple(points),
        thresholds=tuple(tuple(thresholds[k].tolist()) for k in points),
        escalation_rates=tuple(simulation.escalation_rates(thresholds[k]) for k in points),
    )


def order_seed(stage_logits: Sequence[Floats], labels: Integers | None) -> int:
    """Return the seed of the sample order: the first 8 bytes of the data's sha256, big endian.

    It is no argument of `certify`, because the best of several orders would break the promise.
    """
    digest = hashlib.sha256()
    for logits in stage_logits:
        digest.update(_hashed_form(logits, "<f4"))
    digest.update(b"unlabelled" if labels is None else _hashed_form(labels, "<i4"))
    return int.from_bytes(digest.digest()[:8], "big")


def _walk(drops: Iterable[Drops], *, epsilon: float, delta: float, method: Method) -> _Walked:
    passed = -1
    last: Drops | None = None
    for point in drops:
        if last is not None and len(point) != len(last):
            raise ValueError(f"drops: expected {len(last)} samples at each point, got {len(point)}")
        # Most steps of a path change no drop, and the same drops pass again.
        again = last is not None and np.array_equal(point, last)
        last = point
        if not again and not passes(point, epsilon=epsilon, delta=delta, method=method):
            return _Walked(passed, last)
        passed += 1
    if last is None:
        raise ValueError("drops: expected at least one point on the path, got none")
    return _Walked(passed, last)


def _resampled(
    table: npt.NDArray[np.int8],
    walk: Callable[[Iterable[Drops]], _Walked],
    *,
    n: int,
    draws: int,
    seed: int,
) -> list[_Walked]:
    """Walk ``table [points, samples]`` once per draw of n columns with replacement."""
    rng = np.random.default_rng(seed)
    walks = []
    for _ in range(draws):
        columns = rng.integers(0, table.shape[1], n)
        walks.append(walk(row[columns] for row in table))
    return walks


def _hashed_form(array: npt.NDArray[Any], dtype: str) -> bytes:
    values = np.asarray(array)
    with np.errstate(over="ignore"):
        return repr(values.shape).encode() + np.ascontiguousarray(values, dtype).tobytes()


def _refusal(drops: Drops, epsilon: float, delta: float, method: Method) -> str:
    seen = counts(drops)
    smallest = smallest_passing_n(epsilon=epsilon, delta=delta, method=method)
    text = (
        f"certification refused: the first point of the path does not pass {method} at "
        f"epsilon {epsilon:g}, delta {delta:g} with n = {seen.n}. "
        f"With no loss at all the smallest n that passes is {smallest}."
    )
    if seen.n == 0:
        return text
    enough = n_at_rates(drops, epsilon=epsilon, delta=delta, method=method)
    outlook = (
        f"no n up to {LARGEST_FORECAST} would pass"
        if enough is None
        else f"about n = {enough} would pass"
    )
    return (
        f"{text} Forecast at the rates observed there (harm {seen.harm / seen.n:.2%}, "
        f"help {seen.help / seen.n:.2%}), no certificate: {outlook}."
    )


def _numbered(combination: Weighted | None) -> Combination | None:
    # Weight 0 combines nothing, and the schema has no other way to say so.
    if combination is None or combination[1] == 0:
        return None
    return Combination(stage=str(combination[0]), weight=combination[1])
