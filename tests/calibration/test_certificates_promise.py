"""A certificate keeps its promise on populations whose true loss is known, and wrong rules do not.

A sample has a level, which says from which point of the path on a gate keeps it, and an outcome:
the answer it then gets harms, helps or changes nothing. So the true drop at each point is a plain
sum. Many calibration sets are drawn, and a violation is a chosen point whose true drop exceeds
epsilon. The bound is the 99 % quantile of the violations of a rule that breaks its promise with
chance exactly delta.
"""

from dataclasses import dataclass
from fractions import Fraction
from typing import NamedTuple

import numpy as np
import pytest
from scipy import stats

from calibration.bounds import METHODS, passes
from calibration.certificates import certify, certify_cascade, certify_path
from runtime.schema import ThresholdPath

EPSILON = Fraction(2, 100)
DRAWS = 500
SAMPLES = 1500


class Sample(NamedTuple):
    """Level and drop of each sample, and the logits that give rise to them."""

    level: np.ndarray
    drop: np.ndarray
    saver: np.ndarray
    large: np.ndarray
    labels: np.ndarray

    def drops_at(self, point):
        return np.where(self.level < point, self.drop, 0).astype(np.int8)


@dataclass(frozen=True)
class Population:
    """Per level in thousandths: its share of all samples, and of those the harmed and the helped.

    What is left belongs to a last level, which no gate keeps.
    """

    share: tuple[int, ...]
    harm: tuple[int, ...]
    help: tuple[int, ...]

    @property
    def points(self):
        return len(self.share) + 1

    @property
    def grid(self):
        """1, then one threshold between each two levels of confidence."""
        return [1.0, *(self.confidence(level) - 0.02 for level in range(len(self.share)))]

    def confidence(self, level):
        return 0.97 - 0.05 * np.asarray(level)

    def true_drop(self, point):
        levels = zip(self.share[:point], self.harm[:point], self.help[:point], strict=True)
        return sum((Fraction(s * (a - b), 10**6) for s, a, b in levels), Fraction(0))

    def true_disagreement(self, point):
        levels = zip(self.share[:point], self.harm[:point], self.help[:point], strict=True)
        return sum((Fraction(s * (a + b), 10**6) for s, a, b in levels), Fraction(0))

    def draw(self, seed):
        rng = np.random.default_rng(seed)
        share, harm, helped = (
            np.array([*per_level, last]) / 1000
            for per_level, last in (
                (self.share, 1000 - sum(self.share)),
                (self.harm, 0),
                (self.help, 0),
            )
        )
        level = rng.choice(len(share), SAMPLES, p=share)
        place = rng.random(SAMPLES)
        drop = (place < harm[level]).astype(np.int8) - (place >= 1 - helped[level])
        return self._with_logits(level, drop.astype(np.int8))

    def _with_logits(self, level, drop):
        """The saver answers 0, the large model 1 where they differ; the truth says who is right."""
        sure = self.confidence(level)[:, None]
        saver = np.log(np.where([[True, False, False]], sure, (1 - sure) / 2)).astype(np.float32)
        large = np.zeros_like(saver)
        large[np.arange(len(level)), (drop != 0).astype(int)] = 3
        return Sample(level, drop, saver, large, (drop == 1).astype(np.int32))


# The true drop is just over epsilon at the first step and stays there.
JUST_OVER = Population(
    share=(50, 50, 50, 50, 50, 50), harm=(401, 0, 0, 0, 0, 0), help=(0, 0, 0, 0, 0, 0)
)
# The same with help, so that the order of samples and the bound of the help rate matter.
JUST_OVER_WITH_HELP = Population(share=(500,), harm=(241,), help=(200,))
# One step is safe, the next far from it.
CLIFF = Population(share=(300, 400), harm=(10, 250), help=(0, 0))
# Just over epsilon all along; each step adds harm and as much help, so each looks at new noise.
NEW_NOISE = Population(
    share=(60, 30, 60, 120, 240, 480),
    harm=(340, 500, 500, 500, 500, 500),
    help=(0, 500, 500, 500, 500, 500),
)
POPULATIONS = {
    "just_over": JUST_OVER,
    "just_over_with_help": JUST_OVER_WITH_HELP,
    "cliff": CLIFF,
    "new_noise": NEW_NOISE,
}


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
    return point_of(population, found.threshold)


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
    return point_of(population, found.thresholds[0])


def point_of(population, threshold):
    (point,) = np.flatnonzero(np.float32(population.grid) == np.float32(threshold))
    return int(point)


def naive(population, sample, delta, method):
    """The largest exit ratio whose empirical drop is within epsilon."""
    within = [
        point
        for point in range(population.points)
        if sample.drops_at(point).mean() <= float(EPSILON)
    ]
    return within[-1]


def first_failed(population, sample, delta, method):
    """Off by one: the point at which the walk stops, instead of the one before."""
    last_passed = walk(sample, population, delta, method, np.arange(SAMPLES))
    return min(last_passed + 1, population.points - 1)


def best_of_20_orders(population, sample, delta, method):
    orders = (np.random.default_rng(seed).permutation(SAMPLES) for seed in range(20))
    return max(walk(sample, population, delta, method, order) for order in orders)


def skipping_failed(population, sample, delta, method):
    """The last point that passes, whatever failed before it."""
    claim = {"epsilon": float(EPSILON), "delta": delta, "method": method}
    passed = [
        point for point in range(population.points) if passes(sample.drops_at(point), **claim)
    ]
    return passed[-1]


def walk(sample, population, delta, method, order):
    drops = (sample.drops_at(point)[order] for point in range(population.points))
    return certify_path(drops, epsilon=float(EPSILON), delta=delta, method=method)


def violations(rule, population, *, delta, method):
    """Count the draws for which the rule chooses a point whose true drop exceeds epsilon."""
    chosen = (rule(population, population.draw(seed), delta, method) for seed in range(DRAWS))
    return sum(population.true_drop(point) > EPSILON for point in chosen)


def most_violations(delta):
    return int(stats.binom.ppf(0.99, DRAWS, delta))


def test_the_bounds_are_66_and_37_of_500():
    assert (most_violations(0.1), most_violations(0.05)) == (66, 37)


@pytest.mark.parametrize("name", POPULATIONS)
def test_drawn_samples_have_the_true_drops_of_their_population(name):
    population = POPULATIONS[name]
    samples = [population.draw(seed) for seed in range(100)]
    for point in range(population.points):
        seen = np.concatenate([sample.drops_at(point) for sample in samples])
        error = seen.std() / np.sqrt(len(seen))
        assert abs(seen.mean() - float(population.true_drop(point))) <= 4 * error


@pytest.mark.parametrize("delta", [0.1, 0.05])
@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("name", POPULATIONS)
def test_certified_thresholds_keep_their_promise(name, method, delta):
    broken = violations(certified, POPULATIONS[name], delta=delta, method=method)
    assert broken <= most_violations(delta)


@pytest.mark.parametrize("name", POPULATIONS)
def test_certified_cascades_of_three_stages_keep_their_promise(name):
    broken = violations(certified_three_stages, POPULATIONS[name], delta=0.1, method="wsr")
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
