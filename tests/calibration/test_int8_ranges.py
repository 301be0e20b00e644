"""Ranges from histograms: each method against its definition, computed the long way."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.histograms import BINS, Histogram
from calibration.quantisation import METHODS, Method
from calibration.ranges import HOST, TRT, Quantiser, value_range

RNG = np.random.default_rng(5)
SAMPLES = {
    "normal": RNG.standard_normal(40_009),
    "relu": np.maximum(RNG.standard_normal(40_009), 0),
    "heavy tail": RNG.standard_t(3, 40_009),
    "outlier": np.append(RNG.standard_normal(400_000), 60.0),
}


def histogram(values: np.ndarray) -> Histogram:
    made = Histogram()
    made.add(np.asarray(values, np.float32))
    return made


def quantised(values: np.ndarray, low: float, high: float, quantiser: Quantiser) -> np.ndarray:
    """Return values after rounding to the integers that a range spans."""
    if quantiser.symmetric:
        step = max(-low, high) / 127
        return np.clip(np.rint(values / step), -127, 127) * step
    step = (high - low) / 255
    zero = np.rint(-low / step)
    return (np.clip(np.rint(values / step) + zero, 0, 255) - zero) * step


def squared_error(values: np.ndarray, limit: float, quantiser: Quantiser) -> float:
    low, high = max(values.min(), -limit), min(values.max(), limit)
    return float(((quantised(values, min(low, 0), max(high, 0), quantiser) - values) ** 2).mean())


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("quantiser", [HOST, TRT])
def test_mse_is_the_best_of_all_limits(name: str, quantiser: Quantiser) -> None:
    values = SAMPLES[name]
    low, high = value_range(histogram(values), "mse", quantiser)
    chosen = squared_error(values, max(-low, high), quantiser)
    largest = np.abs(values).max()
    best = min(squared_error(values, largest * share, quantiser) for share in np.linspace(0.05, 1))
    # Rounding is taken as step^2 / 12, the exact mean over many steps only.
    assert chosen <= 1.03 * best


@pytest.mark.parametrize("quantiser", [HOST, TRT])
def test_min_max_is_what_was_seen(quantiser: Quantiser) -> None:
    assert value_range(histogram(np.array([-3.0, 1.0, 7.0])), "min_max", quantiser) == (-3.0, 7.0)
    assert value_range(histogram(np.array([2.0, 7.0])), "min_max", quantiser) == (0.0, 7.0)
    assert value_range(histogram(np.array([-2.0])), "min_max", quantiser) == (-2.0, 0.0)


def test_percentile_counts_zeros_and_both_signs() -> None:
    ramp = np.linspace(-1, 1, 401)
    values = np.concatenate([np.zeros(500), ramp[ramp != 0], np.full(100, 10.0)])
    made = histogram(values)
    # 900 of 1,000 absolute values are at most 1; the bin's upper edge is at most one bin further.
    low, high = value_range(made, "percentile", TRT, percentile=90)
    assert low == -1.0 and 1.0 <= high <= 1.0 + 2 * made.limit / BINS * 2
    assert value_range(made, "percentile", TRT, percentile=100) == (-1.0, 10.0)


def test_percentile_of_mostly_zeros_does_not_clip_everything() -> None:
    values = np.concatenate([np.zeros(99_999), [8.0]])
    _, high = value_range(histogram(values), "percentile", HOST, percentile=99)
    assert high == pytest.approx(8 / 32)


def divergence(counts: np.ndarray, edge: int, levels: int) -> float:
    """Return KL(P || Q) of counts below an edge and their quantised form, by loops."""
    p, q = counts[:edge].astype(float), np.zeros(edge)
    members: dict[int, list[int]] = {}
    for k in range(edge):
        members.setdefault(k * levels // edge, []).append(k)
    for bins in members.values():
        filled = [k for k in bins if p[k] > 0]
        for k in filled:
            q[k] = p[bins].sum() / len(filled)
    p[-1] += counts[edge:].sum()
    used = [k for k in range(edge) if p[k] > 0]
    floored = {k: max(q[k] / q.sum(), 1e-6) for k in used}
    total = sum(floored.values())
    return sum(p[k] / p.sum() * np.log(p[k] / p.sum() / (floored[k] / total)) for k in used)


@pytest.mark.parametrize("name", ["normal", "heavy tail"])
def test_entropy_is_the_least_divergence_of_the_limits_it_tries(name: str) -> None:
    values = SAMPLES[name]
    made = histogram(values)
    low, high = value_range(made, "entropy", TRT)
    counts, _ = np.histogram(np.abs(values.astype(np.float32)), 2048, (0, made.limit))
    width = made.limit / 2048
    last = int(np.ceil(made.largest / width))
    tried = list(range(last, 126, -8))
    losses = [divergence(counts, edge, 127) for edge in tried]
    best = min(tried[int(np.argmin(losses))] * width, made.largest)
    assert max(-low, high) == pytest.approx(best, abs=width)


@pytest.mark.parametrize("method", ["entropy", "percentile", "mse"])
def test_an_outlier_is_clipped_by_all_but_min_max(method: Method) -> None:
    made = histogram(SAMPLES["outlier"])
    _, high = value_range(made, method, TRT)
    assert high < 20
    assert value_range(made, "min_max", TRT)[1] == 60.0


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantiser", [HOST, TRT])
def test_constant_activations_have_a_range_all_the_same(
    method: Method, quantiser: Quantiser
) -> None:
    assert value_range(histogram(np.zeros(50)), method, quantiser) == (-1.0, 1.0)
    for value in (3.0, 1e-30, 1e30):
        # To one bin.
        expected = pytest.approx((0.0, value), rel=1e-3)
        assert value_range(histogram(np.full(50, value)), method, quantiser) == expected
        expected = pytest.approx((-value, 0.0), rel=1e-3)
        assert value_range(histogram(np.full(50, -value)), method, quantiser) == expected


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("quantiser", [HOST, TRT])
@pytest.mark.parametrize("name", SAMPLES)
def test_a_range_lies_within_what_was_seen_and_holds_zero(
    name: str, method: Method, quantiser: Quantiser
) -> None:
    made = histogram(SAMPLES[name])
    low, high = value_range(made, method, quantiser)
    assert made.low <= low <= 0 <= high <= made.high
    assert max(-low, high) >= made.largest / 32
