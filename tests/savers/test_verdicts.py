"""Bars, intervals and verdicts; the arithmetic needs no torch."""

from __future__ import annotations

import numpy as np
import pytest

from savers.verdicts import Bar, Estimate, Verdict, judge, paired_bootstrap


def points(a: float, b: float) -> float:
    return 100 * (a - b)


@pytest.mark.parametrize(
    ("low", "high", "at_most", "outcome"),
    [
        (3.0, 9.0, False, "MET"),
        (2.9, 9.0, False, "UNRESOLVED"),
        (1.0, 2.9, False, "NOT MET"),
        (1.0, 3.0, True, "MET"),
        (1.0, 3.1, True, "UNRESOLVED"),
        (3.1, 9.0, True, "NOT MET"),
    ],
)
def test_a_verdict_needs_the_whole_interval(low, high, at_most, outcome):
    bar = Bar("claim", "control", 3.0, at_most=at_most)
    assert Verdict(bar, Estimate(3.0, low, high)).outcome == outcome


def test_pairs_stay_together():
    rng = np.random.default_rng(1)
    noise = rng.normal(size=(3, 101))
    # Paired, the difference is the same for all samples, whatever is drawn.
    estimate = paired_bootstrap(points, noise + 0.25, noise)
    np.testing.assert_allclose(estimate, 25.0)


def test_the_interval_is_that_of_a_mean():
    rng = np.random.default_rng(2)
    values = rng.normal(size=(1, 4_000))
    value, low, high = paired_bootstrap(float, values)
    assert value == pytest.approx(values.mean())
    # A normal mean: 1.96 standard errors each side; 2,000 resamplings give the ends to a few %.
    np.testing.assert_allclose([value - low, high - value], 1.96 / 4_000**0.5, rtol=0.1)


def test_seeds_are_drawn_too():
    values = np.repeat([[0.0], [1.0]], 50, axis=1)
    assert paired_bootstrap(float, values) == (0.5, 0.0, 1.0)


def test_a_ratio_is_one_of_means_and_not_a_mean_of_ratios():
    plain, permuted = np.array([[1.0, 3.0]]), np.array([[1.0, 1.0]])
    verdict = judge(Bar("c", "k", 3.0, unit="%"), lambda p, q: 100 * (1 - q / p), plain, permuted)
    assert verdict.estimate.value == pytest.approx(50.0)
    assert verdict.described()["bar"] == ">= 3 %"


def test_samples_need_seeds_and_units():
    with pytest.raises(ValueError, match=r"expected \[seeds, units\], got \[3\]"):
        paired_bootstrap(float, [1.0, 2.0, 3.0])
