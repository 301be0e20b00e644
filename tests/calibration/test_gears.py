"""Which points of a certified path become gears."""

from itertools import pairwise

import numpy as np
import pytest

from calibration.gears import gears
from runtime.schema import Certificate, Score, Setting, ThresholdPath
from runtime.simulation import Simulation

PATH = ThresholdPath(offsets=(0.0, -1.0))
BY_CLASS = ThresholdPath(class_offsets=((0.0, 0.5, -0.5),))


def certificate(path, passed):
    thresholds = tuple(path.vectors()[passed].tolist())
    return Certificate(
        quantity="accuracy_drop", epsilon=0.01, delta=0.05, method="wsr", n=2000, harm=1, help=0,
        thresholds=thresholds, scores=(Score(),) * len(thresholds), path=path, passed=passed,
        order_seed=1, escalation_rates=(0.5,) * len(thresholds),
    )  # fmt: skip


def selection(n=3001, *, stages=3, classes=3):
    rng = np.random.default_rng(5)
    labels = rng.integers(0, classes, n)
    signal = 4 * np.eye(classes)[labels]
    return Simulation([signal + rng.normal(size=(n, classes)) for _ in range(stages)], labels)


def test_without_records_gears_divide_the_points_of_the_path():
    vectors = PATH.vectors()
    found = gears(certificate(PATH, 300))
    assert found == tuple(tuple(vectors[index].tolist()) for index in (60, 120, 180, 240))


@pytest.mark.parametrize("path", [PATH, BY_CLASS])
@pytest.mark.parametrize("passed", [0, 1, 2, 7, 499])
def test_gears_lie_between_escalating_all_and_the_certified_point(path, passed):
    certified = certificate(path, passed)
    found = gears(certified)
    assert len(found) == min(4, max(0, passed - 1))
    Setting(thresholds=certified.thresholds, certificate=certified, gears=found)
    order = [np.ones(np.shape(certified.thresholds)), *map(np.array, found), certified.thresholds]
    assert all((np.array(a) >= np.array(b)).all() for a, b in pairwise(order))
    assert certified.thresholds not in found and len({str(gear) for gear in found}) == len(found)


def test_with_records_gears_divide_what_is_sent_on():
    simulation = selection()
    certified = certificate(PATH, 400)
    found = gears(certified, simulation)
    sent_on = [sum(simulation.escalation_rates(gear)) for gear in found]
    last = sum(simulation.escalation_rates(certified.thresholds))
    assert sent_on == pytest.approx(np.linspace(2, last, 6)[1:-1], abs=0.02)


def test_gears_are_points_of_the_path_that_passed():
    tested = BY_CLASS.vectors()[:401].tolist()
    found = gears(certificate(BY_CLASS, 400), selection(stages=2))
    assert len(found) == 4 and all(list(gear) in tested for gear in found)


def test_an_explicit_path_that_starts_lower_has_its_first_points_as_gears():
    path = ThresholdPath(explicit=((0.9,), (0.9,), (0.8,), (0.7,), (0.7,)))
    assert set(gears(certificate(path, 4), most=9)) == {(np.float32(0.9),), (np.float32(0.8),)}


def test_records_of_other_gates_are_refused():
    with pytest.raises(ValueError, match="thresholds: expected 1 in"):
        gears(certificate(PATH, 5), selection(stages=2))
