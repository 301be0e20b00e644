"""Cascades along a path by bookkeeping: what the simulation says, for any weights."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.curves import Curve, Gate, Margin, first_kept_point
from calibration.scores import PLAIN
from calibration.screen import Candidate, Options
from kernels import reference
from runtime.schema import ThresholdPath
from runtime.simulation import Simulation
from tests.calibration.answers import pool, screen

NO_MARGIN = Margin(0.02, 0.5, 10_000)


def steps(*drops: int) -> Curve:
    """Return a curve whose sample i is kept from point i + 1 on, with the given drop."""
    first = np.arange(1, len(drops) + 1)
    return Curve([Gate(first, np.array(drops, np.int8))], len(drops) + 1)


def test_first_kept_point_is_the_first_that_accepts() -> None:
    thresholds = ThresholdPath(points=37).vectors()[:, 0]
    logits = pool().logits["a"].copy()
    logits[0], logits[1, 2], logits[2] = 0.0, np.nan, [50, 0, 0, 0]
    total = reference.softmax(logits).total
    kept = reference.accept(total[:, None], thresholds.astype(np.float64))
    expected = np.where(kept.any(1), kept.argmax(1), len(thresholds))
    found = first_kept_point(total, thresholds)
    np.testing.assert_array_equal(found, expected)
    assert found[1] == len(thresholds) and found[2] == 1


@pytest.mark.parametrize("names", [("a", "c"), ("b", "c"), ("a", "b", "c"), ("b", "a", "c")])
def test_a_curve_is_what_the_simulation_says_at_each_point(names: tuple[str, ...]) -> None:
    made = screen()
    path = ThresholdPath(offsets=(0.0, -1.5)[: len(names) - 1])
    weights = np.random.default_rng(4).integers(0, 3, (2, 997))
    options = Options((PLAIN,) * (len(names) - 1))
    walked = made._curve(Candidate(names, path.offsets, options, 0.0))
    drop, changed = walked.drop(weights)
    simulation = Simulation([made.pool.logits[name] for name in names], made.pool.labels)
    for point, thresholds in enumerate(path.vectors()):
        drops, stage = simulation.drops(thresholds), simulation.answers(thresholds).stage
        rates = walked.rates(weights, np.array([point, point]))
        for draw, weight in enumerate(weights):
            total = weight.sum()
            assert drop[draw, point] == pytest.approx(weight @ drops / total, abs=1e-12)
            assert changed[draw, point] == pytest.approx(weight @ np.abs(drops) / total, abs=1e-12)
            expected = [weight @ (stage > gate) / total for gate in range(len(names) - 1)]
            np.testing.assert_allclose(rates[draw], expected, atol=1e-12)


def test_each_draw_has_its_own_point() -> None:
    walked = steps(0, 1, 0, 1)
    weights = np.array([[97, 0, 1, 2], [97, 1, 2, 0], [50, 50, 0, 0]])
    point = walked.last_within(weights, NO_MARGIN)
    assert point.tolist() == [4, 4, 1]
    np.testing.assert_allclose(walked.rates(weights, point)[:, 0], [0.0, 0.0, 0.5])


def test_the_walk_stops_before_the_first_point_outside_though_later_ones_are_within() -> None:
    walked = steps(0, 1, -1)
    assert walked.last_within(np.array([[10, 5, 5]]), NO_MARGIN)[0] == 1


def test_the_walk_leaves_a_margin_for_chance() -> None:
    # Two of 400 are harmed and none or 78 helped and harmed: the same drop, another variance.
    for help_, passed in ((0, 2), (78, 0)):
        first = np.array([1, 1, 2, 2])
        walked = Curve([Gate(first, np.array([1, -1, 0, 0], np.int8))], 3)
        weights = np.array([[2 + help_, help_, 100, 298 - 2 * help_ if help_ < 149 else 0]])
        assert walked.last_within(weights, Margin(0.02, 0.0125, 400))[0] == passed


def test_a_margin_is_that_of_the_normal_approximation() -> None:
    found = Margin(0.02, 0.025, 100).of(np.array([0.1]), np.array([0.26]))
    assert found[0] == pytest.approx(1.959964 * np.sqrt(0.25 / 100), rel=1e-6)
