"""A certificate keeps its promise on populations whose true loss is known, and wrong rules do not.

Many calibration sets are drawn, and a violation is a chosen point whose true drop exceeds epsilon.
The bound is the 99 % quantile of the violations of a rule that breaks its promise with chance
exactly delta.
"""

import numpy as np
import pytest
from scipy import stats

from calibration.bounds import METHODS, passes
from calibration.certificates import certify, certify_cascade, certify_path
from calibration.errors import CertificationRefused
from runtime.schema import ThresholdPath
from runtime.simulation import Simulation
from tests.calibration.populations import (
    BY_CLASS,
    COMBINED,
    EPSILON,
    POPULATIONS,
    SAMPLES,
    WEIGHT,
    Population,
)

DRAWS = 500
REFUSED = -1
JUST_OVER, JUST_OVER_WITH_HELP = POPULATIONS["just_over"], POPULATIONS["just_over_with_help"]
CLIFF, NEW_NOISE = POPULATIONS["cliff"], POPULATIONS["new_noise"]


def certified(population, sample, delta, method):
    """The rule of this project, on logits as a user has them."""
    found = certify(
        sample.saver,
        sample.large,
        sample.labels,
        epsilon=float(EPSILON),
        delta=delta,
        grid=population.grid,
        method=method,
    )
    return found.passed


def certified_three_stages(population, sample, delta, method):
    """The same levels, but every second one is kept by a gate of its own."""
    unsure = np.zeros_like(sample.saver)
    second = (sample.level % 2 == 1)[:, None]
    stages = [
        np.where(second, unsure, sample.saver),
        np.where(second, sample.saver, unsure),
        sample.large,
    ]
    path = ThresholdPath(explicit=tuple((t, t) for t in population.grid))
    claim = {"epsilon": float(EPSILON), "delta": delta, "method": method}
    found = certify_cascade(stages, sample.labels, path, **claim)
    assert found.thresholds[0] == found.thresholds[1]
    return found.passed


def certified_combination(population, sample, delta, method):
    """The large model's answers with the saver's logits added, against those without."""
    return certified_on_its_path(population, sample, delta, method, combination=(0, WEIGHT))


def certified_on_its_path(population, sample, delta, method, **options):
    claim = {"epsilon": float(EPSILON), "delta": delta, "method": method}
    stages = [sample.saver, sample.large]
    try:
        return certify_cascade(stages, sample.labels, population.path, **claim, **options).passed
    except CertificationRefused:
        return REFUSED


def naive(population, sample, delta, method):
    """The largest exit ratio whose empirical drop is within epsilon."""
    means = [sample.drops_at(point).mean() for point in points(population)]
    return int(np.flatnonzero(np.array(means) <= float(EPSILON))[-1])


def first_failed(population, sample, delta, method):
    """Off by one: the point at which the walk stops, instead of the one before."""
    last_passed = walk(sample, population, delta, method, np.arange(SAMPLES))
    return min(last_passed + 1, points(population)[-1])


def best_of_20_orders(population, sample, delta, method):
    orders = (np.random.default_rng(seed).permutation(SAMPLES) for seed in range(20))
    return max(walk(sample, population, delta, method, order) for order in orders)


def skipping_failed(population, sample, delta, method):
    """The last point that passes, whatever failed before it."""
    claim = {"epsilon": float(EPSILON), "delta": delta, "method": method}
    return [point for point in points(population) if passes(sample.drops_at(point), **claim)][-1]


def walk(sample, population, delta, method, order):
    drops = (sample.drops_at(point)[order] for point in points(population))
    return certify_path(drops, epsilon=float(EPSILON), delta=delta, method=method)


def points(population):
    return range(len(population.grid))


def violations(rule, population, *, delta, method):
    """Count the draws for which the rule chooses a point whose true drop exceeds epsilon."""
    chosen = (rule(population, population.draw(seed), delta, method) for seed in range(DRAWS))
    return sum(point != REFUSED and population.true_drop(point) > EPSILON for point in chosen)


def most_violations(delta):
    return int(stats.binom.ppf(0.99, DRAWS, delta))


def test_the_bounds_are_66_and_37_of_500():
    assert (most_violations(0.1), most_violations(0.05)) == (66, 37)


@pytest.mark.parametrize("name", [*POPULATIONS, *COMBINED, "by_class"])
def test_drawn_samples_have_the_true_drops_of_their_population(name):
    population = {**POPULATIONS, **COMBINED, "by_class": BY_CLASS}[name]
    vectors = population.path.vectors()
    drops = np.stack([simulated(population.draw(seed), vectors, name) for seed in range(100)], 1)
    for point, seen in enumerate(drops.reshape(len(vectors), -1)):
        error = seen.std() / np.sqrt(len(seen))
        assert abs(seen.mean() - float(population.true_drop(point))) <= 4 * error


def simulated(sample, vectors, name):
    combination = (0, WEIGHT) if name in COMBINED else None
    simulation = Simulation([sample.saver, sample.large], sample.labels, combination=combination)
    return np.stack([simulation.drops(point) for point in vectors])


@pytest.mark.parametrize("name", {**POPULATIONS, **COMBINED})
def test_logits_give_rise_to_the_drops_that_were_drawn(name):
    population = {**POPULATIONS, **COMBINED}[name]
    sample = population.draw(7)
    drops = simulated(sample, population.path.vectors(), name)
    for point, found in enumerate(drops):
        assert found.tolist() == sample.drops_at(population.levels_kept(point)).tolist()


@pytest.mark.parametrize(
    ("delta", "method"), [*((0.1, method) for method in METHODS), (0.05, "wsr")]
)
@pytest.mark.parametrize("name", POPULATIONS)
def test_certified_thresholds_keep_their_promise(name, method, delta):
    broken = violations(certified, POPULATIONS[name], delta=delta, method=method)
    assert broken <= most_violations(delta)


@pytest.fixture
def terse_refusals(monkeypatch):
    """Without the forecast of how many samples would pass, which takes longer than the walk."""
    monkeypatch.setattr("calibration.certificates.n_at_rates", lambda *_, **__: None)


@pytest.mark.usefixtures("terse_refusals")
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", COMBINED)
def test_certified_combinations_keep_their_promise(name, method):
    broken = violations(certified_combination, COMBINED[name], delta=0.1, method=method)
    assert broken <= most_violations(0.1)


@pytest.mark.usefixtures("terse_refusals")
def test_a_combination_would_break_it_if_its_first_point_were_assumed():
    """As without one, where escalating everything loses nothing."""

    def assuming(*arguments):
        return max(0, certified_combination(*arguments))

    population = COMBINED["at_the_first_point"]
    broken = violations(assuming, population, delta=0.1, method="wsr")
    assert broken > most_violations(0.1)


@pytest.mark.parametrize("method", METHODS)
def test_certified_thresholds_by_class_keep_their_promise(method):
    over = [BY_CLASS.true_drop(point) > EPSILON for point in range(9)]
    assert over == [False, False, True, True, False, True, True, True, True]
    broken = violations(certified_on_its_path, BY_CLASS, delta=0.1, method=method)
    assert broken <= most_violations(0.1)


@pytest.mark.parametrize(
    ("name", "method"),
    [*((name, "wsr") for name in POPULATIONS if name != "ties"),
     ("just_over_with_help", "clopper_pearson"), ("just_over", "harm_only")],
)  # fmt: skip
def test_certified_cascades_of_three_stages_keep_their_promise(name, method):
    broken = violations(certified_three_stages, POPULATIONS[name], delta=0.1, method=method)
    assert broken <= most_violations(0.1)


@pytest.mark.parametrize("method", METHODS)
def test_agreement_without_labels_keeps_its_promise(method):
    population = Population(share=(100, 300), harm=(150, 100), help=(51, 100))
    assert population.true_drop(1) < EPSILON < population.true_disagreement(1)
    broken = 0
    for seed in range(DRAWS):
        sample = population.draw(seed)._replace(labels=None)
        point = certified(population, sample, 0.1, method)
        broken += population.true_disagreement(point) > EPSILON
    assert broken <= most_violations(0.1)


@pytest.mark.parametrize("method", METHODS)
def test_certification_takes_the_safe_step_and_is_not_just_timid(method):
    chosen = [certified(CLIFF, CLIFF.draw(seed), 0.1, method) for seed in range(50)]
    assert chosen == [1] * 50


@pytest.mark.parametrize(
    ("rule", "population", "method"),
    [
        (naive, JUST_OVER, "wsr"),
        (first_failed, CLIFF, "wsr"),
        (first_failed, CLIFF, "clopper_pearson"),
        (first_failed, CLIFF, "harm_only"),
        (best_of_20_orders, JUST_OVER_WITH_HELP, "wsr"),
        (skipping_failed, NEW_NOISE, "wsr"),
    ],
)
def test_wrong_rules_break_the_promise(rule, population, method):
    assert violations(rule, population, delta=0.1, method=method) > most_violations(0.1)
