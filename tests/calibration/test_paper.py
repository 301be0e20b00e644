"""The paper's score: equal to an independent transcription of its code, and by hand."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.paper import PaperScore, matched_performance, paper_score


def transcription(
    confidence: np.ndarray, saver_hits: np.ndarray, large_hits: np.ndarray, s: int, b: int
) -> tuple[float, float, float]:
    """Return threshold, exit ratio and delta C, written down from the description of its loop.

    Every threshold in turn, subsets by mask, accuracies as quotients; an empty subset counts as
    accuracy 0 of both. Cost: exits pay the saver alone and spare the large model, the rest pay
    the saver on top.
    """
    n = len(confidence)
    for t in np.arange(1, 0, -0.001):
        out = confidence.astype(np.float64) > t
        saver = saver_hits[out].sum() / out.sum() if out.any() else 0.0
        large = large_hits[out].sum() / out.sum() if out.any() else 0.0
        if saver < large:
            break
    exits, passing = out.sum() / n, (~out).sum() / n
    return t, exits, exits * (0 + s / b - 1) + passing * s / b


def random_records(seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    n, classes = int(rng.integers(1, 400)), int(rng.integers(2, 7))
    labels = rng.integers(0, classes, n)
    truth = np.eye(classes)[labels]
    sharpness = rng.uniform(0.5, 30)
    saver = truth * sharpness + rng.normal(size=(n, classes)) * rng.uniform(0.2, 20)
    large = truth * sharpness + rng.normal(size=(n, classes)) * rng.uniform(0.2, 20)
    return saver.astype(np.float32), large.astype(np.float32), labels


@pytest.mark.parametrize("seed", range(60))
def test_the_score_equals_an_independent_transcription(seed: int) -> None:
    saver, large, labels = random_records(seed)
    s, b = 37, 1000
    found = paper_score("x", saver, large, labels, cost_ratio=s / b)
    weight = np.exp(saver.astype(np.float64) - saver.max(1, keepdims=True))
    confidence = (weight.max(1) / weight.sum(1)).astype(np.float32)
    threshold, ratio, delta_c = transcription(
        confidence, saver.argmax(1) == labels, large.argmax(1) == labels, s, b
    )
    assert (found.threshold, found.exit_ratio) == (threshold, ratio)
    assert found.delta_c == pytest.approx(delta_c, abs=1e-12)


@pytest.mark.parametrize("seed", range(20))
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_it_does_where_confidences_hit_thresholds_exactly(seed: int, dtype: type) -> None:
    rng = np.random.default_rng(seed)
    confidence = rng.choice(np.arange(1, 0, -0.001), 300).astype(dtype)
    saver, large = rng.random(300) < confidence**0.2, rng.random(300) < 0.9
    threshold, ratio, _ = transcription(confidence, saver, large, 1, 2)
    assert matched_performance(confidence, saver, large) == (threshold, ratio)


def test_random_records_stop_at_all_kinds_of_places() -> None:
    found = [paper_score("x", *random_records(seed), cost_ratio=0.5) for seed in range(60)]
    assert any(score.threshold > 0.9 for score in found)
    assert any(0.1 < score.threshold < 0.9 for score in found)
    assert any(score.threshold < 0.0011 for score in found)
    assert {score.enabled for score in found} == {True, False}


def test_one_harmful_sample_at_the_top_stops_the_scan() -> None:
    confidence = np.array([0.9995, 0.9, 0.8, 0.7])
    saver, large = np.array([False, True, True, True]), np.ones(4, bool)
    threshold, ratio = matched_performance(confidence, saver, large)
    assert (threshold, ratio) == (pytest.approx(0.999), 0.25)


def test_the_threshold_of_the_violation_itself_counts() -> None:
    confidence = np.array([0.9, 0.8005, 0.5])
    saver, large = np.array([True, False, True]), np.array([True, True, True])
    threshold, ratio = matched_performance(confidence, saver, large)
    assert (threshold, ratio) == (pytest.approx(0.8), 2 / 3)


def test_help_pays_for_later_harm() -> None:
    confidence = np.array([0.9, 0.8, 0.5])
    saver, large = np.array([True, False, True]), np.array([False, True, True])
    assert matched_performance(confidence, saver, large) == (pytest.approx(0.001), 1.0)


def test_an_exact_hit_is_not_above_the_threshold() -> None:
    confidence = np.array([1.0, 0.5])
    saver, large = np.array([False, True]), np.array([True, True])
    threshold, ratio = matched_performance(confidence, saver, large)
    assert (threshold, ratio) == (pytest.approx(0.999), 0.5)


def test_a_saver_is_used_only_if_delta_c_is_negative() -> None:
    assert PaperScore("x", 0.5, 0.3, -0.01).enabled
    assert not PaperScore("x", 0.5, 0.3, 0.0).enabled
