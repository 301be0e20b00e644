"""The lower bound on a saving: its numbers, and that it holds wherever on the path one looks."""

import numpy as np
import pytest
from scipy import stats

from calibration.bounds import clopper_pearson_upper, nested_upper
from calibration.saving import bounded_saving, saved_share
from runtime.schema import Certificate, Saving, Score, ThresholdPath

DRAWS = 500
MACS = (10, 100, 1000)


def certificate(rates, n=2000):
    return Certificate(
        quantity="accuracy_drop", epsilon=0.01, delta=0.05, method="wsr", n=n, harm=1, help=0,
        thresholds=(0.5,) * len(rates), scores=(Score(),) * len(rates), path=ThresholdPath(),
        passed=7, order_seed=1, escalation_rates=rates,
    )  # fmt: skip


def most_violations(delta):
    return int(stats.binom.ppf(0.99, DRAWS, delta))


def last_points(rng, n, points=200):
    """Return per sample the last point of a path at which it still goes on; most stop early."""
    return np.minimum((rng.exponential(points / 6, n)).astype(int), points)


def true_rates(points=200):
    return np.exp(-6 * (np.arange(points) + 1) / points)


def test_a_part_of_the_large_model_saves_against_the_whole_of_it():
    """Its last stage costs 300, since stages before it have computed the rest of 1,000."""
    macs, rates = (10, 700, 300), (0.3, 0.05)
    assert saved_share(macs, rates, large=1000) == pytest.approx(1 - (10 + 210 + 15) / 1000)
    found = bounded_saving(certificate(rates), macs, large=1000)
    assert 0 < found.lower_bound < saved_share(macs, rates, large=1000)


def test_the_saved_share_is_that_of_the_large_model():
    assert saved_share(MACS, (0.5, 0.1)) == pytest.approx(1 - (10 + 50 + 100) / 1000)
    assert saved_share(MACS, (1.0, 1.0)) == pytest.approx(-0.11)


def test_the_bound_is_made_of_each_gates_bound_at_its_part_of_delta():
    found = bounded_saving(certificate((0.3, 0.05)), MACS, delta=0.05)
    upper = [nested_upper(count, 2000, 0.025) for count in (600, 100)]
    assert found == Saving(lower_bound=saved_share(MACS, upper), delta=0.05)
    assert found.lower_bound < saved_share(MACS, (0.3, 0.05))


def test_cascades_that_shared_the_samples_share_the_delta_and_say_it_whole():
    alone = bounded_saving(certificate((0.3, 0.05)), MACS, delta=0.01)
    shared = bounded_saving(certificate((0.3, 0.05)), MACS, delta=0.05, share=5)
    assert shared.lower_bound == pytest.approx(alone.lower_bound, abs=1e-12)
    assert shared.delta == 0.05


def test_a_cascade_that_may_save_nothing_has_a_negative_bound():
    assert bounded_saving(certificate((1.0,), n=5), (10, 1000)).lower_bound == pytest.approx(-0.01)


def test_macs_must_be_one_per_stage():
    with pytest.raises(ValueError, match="expected 3, one per stage, got 2"):
        bounded_saving(certificate((0.3, 0.05)), (10, 1000))


@pytest.mark.parametrize(("k", "n"), [(0, 10), (3, 10), (50, 8000), (444, 8000), (7999, 8000)])
def test_the_nested_bound_is_above_that_of_a_single_rate_and_not_far(k, n):
    single, nested = clopper_pearson_upper(k, n, 0.05), nested_upper(k, n, 0.05)
    assert single < nested < clopper_pearson_upper(k, n, 0.05 / 500) + 1e-3


def test_the_nested_bound_rises_with_the_count_and_ends_at_one():
    bounds = [nested_upper(k, 37, 0.1) for k in range(38)]
    assert bounds == sorted(bounds) and bounds[-1] == 1.0
    assert all(bound > k / 37 for k, bound in enumerate(bounds[:-1]))


@pytest.mark.parametrize(("k", "n", "alpha"), [(-1, 5, 0.1), (6, 5, 0.1), (1, 5, 0.0), (1, 5, 1.0)])
def test_the_nested_bound_refuses_what_is_no_count_or_level(k, n, alpha):
    with pytest.raises(ValueError, match=r"counts|alpha"):
        nested_upper(k, n, alpha)


@pytest.mark.parametrize("n", [300, 1500])
@pytest.mark.parametrize("alpha", [0.05, 0.1])
def test_bounds_of_all_points_hold_at_once(n, alpha):
    """The point at which the bound is worst is as bad a choice as any rule could make."""
    bounds = np.array([nested_upper(k, n, alpha) for k in range(n + 1)])
    broken = 0
    for seed in range(DRAWS):
        last = last_points(np.random.default_rng(seed), n)
        counts = (last[:, None] > np.arange(200)).sum(0)
        broken += (bounds[counts] < true_rates()).any()
    assert broken <= most_violations(alpha)


def test_the_bound_of_a_single_rate_would_break_that_promise():
    bounds = np.array([clopper_pearson_upper(k, 300, 0.05) for k in range(301)])
    broken = 0
    for seed in range(DRAWS):
        last = last_points(np.random.default_rng(seed), 300)
        counts = (last[:, None] > np.arange(200)).sum(0)
        broken += (bounds[counts] < true_rates()).any()
    assert broken > 3 * most_violations(0.05)


@pytest.mark.parametrize("choose", ["uniform", "luckiest"])
def test_the_saving_of_a_point_that_the_samples_chose_is_at_least_its_bound(choose):
    """Two gates; the point is drawn evenly, or is where the samples flatter the cascade most."""
    n, broken = 500, 0
    rates = np.stack([true_rates(), true_rates() ** 1.7], 1)
    truth = np.array([saved_share(MACS, pair) for pair in rates])
    for seed in range(DRAWS):
        rng = np.random.default_rng(seed)
        first = last_points(rng, n)
        counts = np.stack(
            [
                (item[:, None] > np.arange(200)).sum(0)
                for item in (first, (first / 1.7).astype(int))
            ],
            1,
        )
        seen = np.array([saved_share(MACS, pair) for pair in counts / n])
        point = rng.integers(200) if choose == "uniform" else int((seen - truth).argmax())
        found = bounded_saving(certificate(tuple(counts[point] / n), n), MACS)
        broken += found.lower_bound > truth[point]
    assert broken <= most_violations(0.05)
