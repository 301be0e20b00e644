"""Oracle thresholds: equal to an independent transcription of the paper's sweep, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.oracle import Operating, cheapest_within, pareto_points

DROPS = (0.0, 0.0001, 0.005, 0.01, 0.3)


def transcription(
    confidence: np.ndarray, saver_hits: np.ndarray, large_hits: np.ndarray, drop: float
) -> tuple[float, float]:
    """Return share kept and accuracy of the cheapest threshold within a drop, all tried by mask."""
    base = large_hits.sum()
    best = (0.0, base / len(confidence))
    for step in range(1001):
        out = confidence.astype(np.float64) > step / 1000
        right = saver_hits[out].sum() + large_hits[~out].sum()
        point = (out.mean(), right / len(confidence))
        if base - right <= round(drop * len(confidence), 6) and point > best:
            best = point
    return best


def random_hits(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 500))
    confidence = rng.beta(5, 1, n).astype(np.float32)
    if seed % 3 == 0:
        confidence = confidence.round(2)  # ties, and exact hits of the thresholds
    return confidence, rng.random(n) < confidence, rng.random(n) < 0.9


@pytest.mark.parametrize("seed", range(40))
def test_the_sweep_equals_an_independent_transcription(seed: int) -> None:
    records = random_hits(seed)
    points = pareto_points(*records)
    base = records[2].mean()
    for drop in DROPS:
        found = cheapest_within(points, drop)
        kept, accuracy = transcription(*records, drop)
        assert found.kept == pytest.approx(kept, abs=1e-12)
        assert base - found.drop == pytest.approx(accuracy, abs=1e-12)


@pytest.mark.parametrize("seed", range(6))
def test_no_point_beats_another(seed: int) -> None:
    points = pareto_points(*random_hits(seed))
    kept, drop = (np.array(values) for values in list(zip(*points, strict=True))[1:])
    assert (np.diff(kept) < 0).all()
    assert (np.diff(drop) < 0).all()
    assert drop[-1] <= 0


def test_one_sample_in_ten_thousand_is_a_hundredth_of_a_point() -> None:
    confidence = np.full(10_000, 0.5)
    confidence[:3] = 0.9, 0.8, 0.7
    large = np.ones(10_000, bool)
    saver = np.ones(10_000, bool)
    saver[[1, 2]] = False
    points = pareto_points(confidence, saver, large)
    assert cheapest_within(points, 0.0001).drop == 0.0002 - 0.0001
    assert cheapest_within(points, 0.0) == Operating(0.899, 0.0001, 0.0)


def test_a_saver_that_is_better_keeps_everything() -> None:
    confidence = np.array([0.4, 0.3, 0.2])
    saver, large = np.array([True, True, False]), np.array([True, False, False])
    assert pareto_points(confidence, saver, large) == [Operating(0.199, 1.0, pytest.approx(-1 / 3))]


def test_a_useless_saver_keeps_nothing() -> None:
    confidence, right = np.array([0.9, 0.5]), np.array([True, True])
    points = pareto_points(confidence, ~right, right)
    assert cheapest_within(points, 0.0) == Operating(1.0, 0.0, 0.0)
