"""Bounds and tests against scipy, and against the formulas written as plain loops."""

import math
from fractions import Fraction

import numpy as np
import pytest
from scipy import stats

from calibration.bounds import (
    METHODS,
    binomial_cdf,
    clopper_pearson_lower,
    clopper_pearson_upper,
    counts,
    n_at_rates,
    p_value,
    passes,
    smallest_passing_n,
)


def drops_of(harm, helped, n, seed=0):
    values = np.repeat(np.array([1, -1, 0], np.int8), [harm, helped, n - harm - helped])
    return np.random.default_rng(seed).permutation(values)


def wsr_by_loop(drops, epsilon, delta):
    """The betting p-value, one sample at a time."""
    n, m = len(drops), (epsilon + 1) / 2
    capital, best = 1.0, 1.0
    total, squares, variance = 0.5, 0.25, 0.25
    for i, d in enumerate(drops, start=1):
        x = (int(d) + 1) / 2
        stake = min(math.sqrt(2 * math.log(1 / delta) / (n * variance)), 0.999 / (1 - m))
        capital *= 1 - stake * (x - m)
        best = max(best, capital)
        total += x
        squares += (x - total / (i + 1)) ** 2
        variance = squares / (i + 1)
    return min(1.0, 1 / best)


@pytest.mark.parametrize("n", [1, 2, 15, 16, 17, 101, 8009, 1_000_003])
@pytest.mark.parametrize("p", [1e-12, 0.004, 0.5, 0.73, 1 - 1e-9])
def test_binomial_cdf_equals_scipy(n, p):
    middle = int(n * p)
    for k in {0, 1, n // 3, max(0, middle - 7), middle, middle + 1, n - 1, n}:
        assert binomial_cdf(k, n, p) == pytest.approx(stats.binom.cdf(k, n, p), abs=1e-10)


@pytest.mark.parametrize(("n", "p"), [(17, 0.3), (301, 0.004), (1009, 0.02), (1009, 0.73)])
def test_binomial_cdf_equals_the_sum_in_exact_fractions(n, p):
    exact, total = Fraction(p), Fraction(0)
    for k in range(min(n, 60)):
        total += math.comb(n, k) * exact**k * (1 - exact) ** (n - k)
        assert binomial_cdf(k, n, p) == pytest.approx(float(total), rel=1e-12, abs=0)


def test_binomial_cdf_keeps_its_digits_far_in_the_lower_tail():
    expected = stats.binom.logcdf(3, 8000, 0.02)
    assert math.log(binomial_cdf(3, 8000, 0.02)) == pytest.approx(expected, rel=1e-12)


def test_binomial_cdf_at_its_ends():
    assert binomial_cdf(-1, 10, 0.3) == 0
    assert binomial_cdf(10, 10, 1.0) == 1
    assert binomial_cdf(9, 10, 1.0) == 0
    assert binomial_cdf(0, 10, 0.0) == 1
    assert binomial_cdf(0, 0, 0.3) == 1
    assert binomial_cdf(1, 2, 0.5) == pytest.approx(0.75, abs=1e-15)
    with pytest.raises(ValueError, match=r"p in \[0, 1\], got n=10, p=1.5"):
        binomial_cdf(1, 10, 1.5)


@pytest.mark.parametrize("n", [1, 13, 100, 8009, 50_000])
@pytest.mark.parametrize("alpha", [1e-6, 0.00625, 0.05, 0.5, 0.97])
def test_clopper_pearson_bounds_equal_scipy(n, alpha):
    for k in {1, n // 200, n // 3, n - 1} - {0, n}:
        upper = stats.beta.ppf(1 - alpha, k + 1, n - k)
        lower = stats.beta.ppf(alpha, k, n - k + 1)
        assert clopper_pearson_upper(k, n, alpha) == pytest.approx(upper, abs=1e-10)
        assert clopper_pearson_lower(k, n, alpha) == pytest.approx(lower, abs=1e-10)


def test_clopper_pearson_bounds_at_no_and_all_hits():
    assert clopper_pearson_upper(7, 7, 0.1) == 1
    assert clopper_pearson_lower(0, 7, 0.1) == 0
    assert clopper_pearson_upper(0, 7, 0.1) == pytest.approx(1 - 0.1 ** (1 / 7), abs=1e-14)
    assert clopper_pearson_lower(7, 7, 0.1) == pytest.approx(0.1 ** (1 / 7), abs=1e-14)
    assert clopper_pearson_upper(0, 0, 0.1) == 1
    assert clopper_pearson_lower(0, 0, 0.1) == 0


@pytest.mark.parametrize(("k", "n", "alpha"), [(-1, 5, 0.1), (6, 5, 0.1), (1, 5, 0.0), (1, 5, 1.0)])
def test_clopper_pearson_refuses_impossible_arguments(k, n, alpha):
    with pytest.raises(ValueError, match="expected"):
        clopper_pearson_upper(k, n, alpha)
    with pytest.raises(ValueError, match="expected"):
        clopper_pearson_lower(k, n, alpha)


@pytest.mark.parametrize("epsilon", [0.003, 0.02, 0.3])
@pytest.mark.parametrize("delta", [0.0125, 0.1, 0.9])
@pytest.mark.parametrize(
    ("harm", "helped", "n"), [(0, 0, 1), (1, 0, 2), (5, 3, 997), (40, 90, 2003)]
)
def test_wsr_equals_the_formula_sample_by_sample(epsilon, delta, harm, helped, n):
    drops = drops_of(harm, helped, n)
    expected = wsr_by_loop(drops, epsilon, delta)
    actual = p_value(drops, epsilon=epsilon, delta=delta, method="wsr")
    assert actual == pytest.approx(expected, rel=1e-10)


def test_wsr_keeps_the_capital_it_once_had():
    gain_then_loss = np.concatenate([np.zeros(2000, np.int8), np.ones(500, np.int8)])
    claim = {"epsilon": 0.01, "delta": 0.05, "method": "wsr"}
    assert p_value(gain_then_loss, **claim) < 0.05
    assert p_value(gain_then_loss[::-1], **claim) == 1


def test_harm_only_ignores_help_and_equals_the_binomial_test():
    for helped in (0, 60):
        actual = p_value(drops_of(12, helped, 3001), epsilon=0.006, delta=0.1, method="harm_only")
        assert actual == pytest.approx(stats.binom.cdf(12, 3001, 0.006), abs=1e-12)


@pytest.mark.parametrize(("harm", "helped", "n"), [(5, 9, 1009), (40, 20, 5003), (0, 0, 900)])
def test_clopper_pearson_p_value_is_the_smallest_level_that_passes(harm, helped, n):
    drops = drops_of(harm, helped, n)
    p = p_value(drops, epsilon=0.006, delta=0.05, method="clopper_pearson")
    upper = stats.beta.ppf(1 - p / 2, harm + 1, n - harm)
    lower = stats.beta.ppf(p / 2, helped, n - helped + 1) if helped else 0.0
    assert upper - lower == pytest.approx(0.006, abs=1e-10)
    assert passes(drops, epsilon=0.006, delta=p * 1.0001, method="clopper_pearson")
    assert not passes(drops, epsilon=0.006, delta=p * 0.9999, method="clopper_pearson")


def test_clopper_pearson_p_value_of_a_hopeless_loss_is_one():
    p = p_value(drops_of(500, 0, 1000), epsilon=0.01, delta=0.05, method="clopper_pearson")
    assert p == 1


@pytest.mark.parametrize("method", METHODS)
def test_one_method_answers_and_never_the_best_of_several(method):
    """Each of these sets passes by some methods only, so a minimum over methods would show."""
    sets = {"harm_only": drops_of(9, 0, 2000), "clopper_pearson": drops_of(40, 60, 2000)}
    claim = {"epsilon": 0.0075, "delta": 0.1}
    outcome = [passes(drops, **claim, method=method) for drops in sets.values()]
    assert outcome == ([True, False] if method == "harm_only" else [False, True])


@pytest.mark.parametrize("method", METHODS)
def test_p_value_rises_with_harm_and_falls_with_epsilon(method):
    def p(harm, epsilon):
        # The same order throughout: the first `harm` of fixed places are harmed.
        places = np.random.default_rng(3).permutation(1511)[:harm]
        drops = np.zeros(1511, np.int8)
        drops[places] = 1
        return p_value(drops, epsilon=epsilon, delta=0.1, method=method)

    by_harm = [p(harm, 0.02) for harm in (0, 4, 12, 22, 40)]
    by_epsilon = [p(9, epsilon) for epsilon in (0.03, 0.02, 0.012, 0.004)]
    assert by_harm == sorted(by_harm) and by_harm[0] < 0.1 < by_harm[-1]
    assert by_epsilon == sorted(by_epsilon) and by_epsilon[0] < 0.1 < by_epsilon[-1]


@pytest.mark.parametrize("method", METHODS)
def test_help_never_raises_the_loss(method):
    claim = {"epsilon": 0.01, "delta": 0.1, "method": method}
    plain, helped = drops_of(9, 0, 1511, seed=5), drops_of(9, 0, 1511, seed=5)
    helped[np.flatnonzero(helped == 0)[::40]] = -1
    assert p_value(helped, **claim) <= p_value(plain, **claim)


@pytest.mark.parametrize(("epsilon", "expected"), [(0.005, 460), (0.002, 1151), (0.001, 2302)])
def test_smallest_n_of_the_harm_only_test_is_the_closed_form(epsilon, expected):
    actual = smallest_passing_n(epsilon=epsilon, delta=0.1, method="harm_only")
    assert actual == expected == math.ceil(math.log(0.1) / math.log1p(-epsilon))


def test_smallest_n_of_clopper_pearson_is_the_closed_form():
    actual = smallest_passing_n(epsilon=0.005, delta=0.05, method="clopper_pearson")
    assert actual == math.ceil(math.log(0.025) / math.log1p(-0.005))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize(("epsilon", "delta"), [(0.02, 0.1), (0.005, 0.0125), (0.6, 0.9)])
def test_smallest_n_passes_and_one_less_does_not_and_larger_ones_do(method, epsilon, delta):
    claim = {"epsilon": epsilon, "delta": delta, "method": method}
    n = smallest_passing_n(**claim)
    assert not passes(np.zeros(n - 1, np.int8), **claim)
    for larger in [*range(n, n + 40), 2 * n + 1, 7 * n, 30_011]:
        assert passes(np.zeros(larger, np.int8), **claim)


@pytest.mark.parametrize("method", METHODS)
def test_forecast_of_n_passes_on_repeated_samples_and_one_less_does_not(method):
    claim = {"epsilon": 0.01, "delta": 0.05, "method": method}
    drops = drops_of(9, 1, 1200, seed=2)
    n = n_at_rates(drops, **claim)
    assert n is not None and n > 1200
    assert passes(np.resize(drops, n), **claim)
    assert not passes(np.resize(drops, n - 1), **claim)


def test_forecast_of_n_is_none_where_the_observed_loss_is_not_below_epsilon():
    drops = drops_of(30, 21, 1000)
    assert n_at_rates(drops, epsilon=0.009, delta=0.1, method="wsr") is None
    assert n_at_rates(drops, epsilon=0.03, delta=0.1, method="harm_only") is None
    assert n_at_rates(drops, epsilon=0.01, delta=0.1, method="wsr") is not None


@pytest.mark.parametrize("method", METHODS)
def test_no_samples_pass_nothing(method):
    assert not passes(np.zeros(0, np.int8), epsilon=0.9, delta=0.9, method=method)
    assert p_value(np.zeros(0, np.int8), epsilon=0.9, delta=0.9, method=method) == 1


def test_counts_of_harm_help_and_all():
    assert counts(np.array([1, 0, -1, 1, 0], np.int32)) == (2, 1, 5)


@pytest.mark.parametrize(
    "drops",
    [np.array([2, 0]), np.array([0, -2]), np.zeros((2, 2), np.int8), np.array([0.0, 1.0])],
)
@pytest.mark.parametrize("method", METHODS)
def test_drops_of_another_kind_are_refused(drops, method):
    with pytest.raises(ValueError, match="drops: expected"):
        passes(drops, epsilon=0.1, delta=0.1, method=method)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("wrong", [0.0, 1.0, -0.1, math.nan])
def test_epsilon_and_delta_lie_strictly_between_0_and_1(method, wrong):
    drops = np.zeros(9, np.int8)
    with pytest.raises(ValueError, match="epsilon: expected a number in"):
        passes(drops, epsilon=wrong, delta=0.1, method=method)
    with pytest.raises(ValueError, match="delta: expected a number in"):
        passes(drops, epsilon=0.1, delta=wrong, method=method)


def test_an_unknown_method_is_refused():
    with pytest.raises(
        ValueError, match="expected one of wsr, clopper_pearson, harm_only, got 'm'"
    ):
        passes(np.zeros(9, np.int8), epsilon=0.1, delta=0.1, method="m")
