"""Quantiles, intervals and ratios against published values, scipy and hand-made cases."""

import math

import numpy as np
import pytest
from scipy import stats

from runtime import measurement
from runtime.measurement import (
    P99_NEEDS,
    Z95,
    Subject,
    median_ratio,
    paired_interval,
    wilson_interval,
)


def test_z95_is_the_normal_quantile():
    assert pytest.approx(stats.norm.ppf(0.975), abs=1e-15) == Z95


@pytest.mark.parametrize(
    ("hits", "n", "low", "high"),
    [
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0000, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_interval_equals_published_values(hits, n, low, high):
    """Newcombe, Statistics in Medicine 17 (1998), table I, method 3."""
    assert wilson_interval(hits, n) == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize("n", [1, 2, 31, 1000])
def test_wilson_interval_equals_scipy(n):
    for hits in {0, 1, n // 3, n - 1, n}:
        expected = stats.binomtest(hits, n).proportion_ci(0.95, method="wilson")
        found = wilson_interval(hits, n)
        assert found == pytest.approx((expected.low, expected.high), abs=1e-12)
        assert 0 <= found[0] <= hits / n + 1e-15 and hits / n - 1e-15 <= found[1] <= 1


def test_wilson_interval_of_nothing_is_everything():
    assert wilson_interval(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("harm", "help_", "n"), [(30, 8, 8000), (0, 0, 100), (8, 30, 8000), (100, 0, 100), (5, 5, 11)]
)
def test_paired_interval_is_the_mean_and_its_standard_error(harm, help_, n):
    values = np.repeat([1.0, -1.0, 0.0], [harm, help_, n - harm - help_])
    half = 1.959963984540054 * values.std() / math.sqrt(n)
    expected = (values.mean() - half, values.mean() + half)
    assert paired_interval(harm, help_, n) == pytest.approx(expected, abs=1e-15)


@pytest.mark.parametrize(
    ("above", "below", "expected"),
    [
        ([3.0], [2.0], 1.5),
        ([1.0, 9.0, 4.0], [1.0, 3.0, 2.0], 2.0),
        ([2.0, 8.0], [1.0, 2.0], 3.0),
        # The middle ratio, not the ratio of the middles: those are 10 and 2.
        ([1.0, 10.0, 30.0], [1.0, 2.0, 10.0], 3.0),
        # One slow turn changes nothing.
        ([1.0, 1.0, 500.0, 1.0, 1.0], [1.0, 1.0, 1.0, 1.0, 1.0], 1.0),
        ([5.0, 4.0], [0.0, 2.0], 2.0),
    ],
)
def test_median_ratio_is_the_middle_ratio_of_neighbouring_turns(above, below, expected):
    assert median_ratio(above, below) == pytest.approx(expected)


def test_median_ratio_without_turns_is_nan_and_unequal_turns_are_an_error():
    assert math.isnan(median_ratio([], []))
    assert math.isnan(median_ratio([1.0], [0.0]))
    with pytest.raises(ValueError):
        median_ratio([1.0, 2.0], [1.0])


def test_latency_quantiles_are_those_of_every_sample_in_milliseconds():
    seconds = np.random.default_rng(0).permutation(np.arange(1, 102)) / 1000
    latency = Subject("x", seconds.tolist(), [1] * 101).latency_ms([50, 90, 99, 99.9])
    assert latency == pytest.approx(
        {
            "p50": 51.0,
            "p90": 91.0,
            "p99": 100.0,
            "p99.9": 100.9,
            "min": 1.0,
            "max": 101.0,
            "mean": 51.0,
            "samples": 101,
            "p99_reliable": False,
        }
    )


@pytest.mark.parametrize(("samples", "reliable"), [(1, False), (999, False), (1000, True)])
def test_p99_is_reliable_from_a_thousand_samples(samples, reliable):
    assert P99_NEEDS == 1000
    latency = Subject("x", [0.001] * samples, [1] * samples).latency_ms([99])
    assert latency["p99_reliable"] is reliable
    assert latency["samples"] == samples


def test_a_subject_without_calls_has_no_latency_and_no_throughput():
    subject = Subject("x")
    assert subject.latency_ms([50, 99]) == {"samples": 0}
    assert math.isnan(subject.throughput)


def test_throughput_is_all_images_over_all_time():
    subject = Subject("x", [0.5, 1.5, 2.0], [32, 32, 4])
    assert subject.throughput == pytest.approx(17.0)


def test_measure_keeps_every_call_and_returns_its_value(monkeypatch):
    clock = iter([10.0, 10.5, 20.0, 20.25])
    monkeypatch.setattr(measurement, "perf_counter", lambda: next(clock))
    subject = Subject("x")
    assert subject.measure(lambda: "answer", 32) == "answer"
    assert subject.measure(list, 7) == []
    assert (subject.seconds, subject.images) == ([0.5, 0.25], [32, 7])


def test_a_call_that_fails_is_not_counted():
    subject = Subject("x")
    with pytest.raises(ZeroDivisionError):
        subject.measure(lambda: 1 / 0, 32)
    assert (subject.seconds, subject.images) == ([], [])


def test_two_subjects_keep_their_own_samples():
    first, second = Subject("a"), Subject("b")
    first.measure(int, 1)
    assert (len(first.seconds), len(second.seconds)) == (1, 0)
