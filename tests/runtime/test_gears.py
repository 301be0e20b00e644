"""Gears: their order, what is said of them, and what may change them."""

import json
import threading
from itertools import pairwise

import numpy as np
import pytest

from runtime.cascade import Cascade
from runtime.errors import BundleError, InputError
from runtime.gears import LoadGovernor, in_order
from runtime.schema import Setting
from tests.runtime.certified import KEY, certified


@pytest.fixture
def content(cascade_json):
    """A certified cascade whose gears are listed out of order."""
    return certified(cascade_json("echo", "negated", thresholds=[0.75]), gears=[[0.96875], [0.875]])


@pytest.fixture
def cascade(content, write_bundle):
    with Cascade.load(write_bundle(content), threads=1, batch=16) as loaded:
        yield loaded


def test_gears_ascend_from_the_certified_point(cascade):
    assert cascade.gears == ((0.75,), (0.875,), (0.96875,), (1.0,))
    assert cascade.gear == 0


def test_every_gear_is_in_force_at_once_and_certified(cascade, random_frames):
    frames = random_frames(200)
    escalated = []
    for gear, thresholds in enumerate(cascade.gears):
        assert cascade.shift(gear) == gear
        results = cascade.run(frames)
        assert (results.gear, results.certification.state) == (gear, "certified")
        cascade.thresholds = thresholds
        assert results.stage.tolist() == cascade.run(frames).stage.tolist()
        escalated.append(results.stage == 1)
    assert all((higher >= lower).all() for lower, higher in pairwise(escalated))
    assert 0 < escalated[0].sum() < escalated[1].sum() < escalated[3].sum() == 200


def test_other_thresholds_are_no_gear(cascade, random_frames):
    cascade.thresholds = [0.5]
    assert cascade.gear is cascade.run(random_frames(3)).gear is None
    cascade.thresholds = [0.875]
    assert cascade.gear == cascade.run(random_frames(3)).gear == 1


@pytest.mark.parametrize("gear", [-1, 4])
def test_a_gear_that_is_not_there_is_refused_and_the_former_one_stays(cascade, gear):
    cascade.shift(2)
    with pytest.raises(InputError, match=rf"gear: expected 0 to 3, got {gear}.*calibration"):
        cascade.shift(gear)
    assert cascade.gear == 2


def test_a_bundle_without_gears_has_its_thresholds_and_the_large_model(make_bundle):
    with Cascade.load(make_bundle("echo", "negated", thresholds=[0.75]), threads=1) as cascade:
        assert cascade.gears == ((0.75,), (1.0,))
        with pytest.raises(InputError, match="gear: expected 0 to 1, got 2"):
            cascade.shift(2)
        assert cascade.rule_out(0) == cascade.rule_out(1) == 1


def test_a_gear_that_is_ruled_out_is_never_taken_again(cascade):
    assert cascade.rule_out(0) == 1
    assert (cascade.gear, cascade.shift(0), cascade.gear) == (1, 1, 1)
    assert cascade.shift(3) == 3
    assert cascade.rule_out(0) == 1  # an old alarm lowers nothing
    assert cascade.gear == 3
    assert cascade.rule_out(3) == 3  # the highest stays
    assert (cascade.shift(0), cascade.gears[cascade.gear]) == (3, (1.0,))


def test_after_an_alarm_nothing_is_called_certified(cascade, random_frames):
    cascade.rule_out(1)
    for gear in (2, 3):
        cascade.shift(gear)
        said = cascade.run(random_frames(2)).certification
        assert said.state == "drift alarm"
        assert str(said).startswith(
            "drift alarm: the certificate may not hold for these images; it says: accuracy drop <="
        )
    with pytest.raises(BundleError, match="a certificate is required, but this cascade is drift"):
        cascade.require_certificate()
    cascade.thresholds = [0.5]
    assert cascade.certification.state == "overridden"


def test_an_alarm_leaves_thresholds_of_the_caller(cascade):
    cascade.thresholds = [0.5]
    cascade.rule_out(0)
    assert cascade.thresholds == (0.5,)


def test_a_batch_under_way_keeps_its_gear(cascade):
    frames = np.zeros((40, 2, 2, 1), np.uint8)
    execute, started, go_on = cascade.executor.execute, threading.Event(), threading.Event()
    seen = []

    def slow(part, thresholds, *arguments, **options):
        started.set()
        assert go_on.wait(10)
        seen.append(thresholds)
        execute(part, thresholds, *arguments, **options)

    cascade.executor.execute = slow
    answers = []
    runner = threading.Thread(target=lambda: answers.append(cascade.run(frames)))
    shifter = threading.Thread(target=cascade.shift, args=(3,))
    runner.start()
    assert started.wait(10)
    shifter.start()
    shifter.join(0.05)
    go_on.set()
    runner.join()
    shifter.join()
    assert answers[0].gear == 0 and seen == [(0.75,)] * 3
    assert cascade.gear == 3


def setting(thresholds, *gears):
    return Setting.model_validate_json(json.dumps({"thresholds": thresholds, "gears": gears}))


def test_gears_by_class_are_ordered_component_by_component():
    low, middle, high = [0.5, [0.1, 0.2]], [0.5, [0.1, 0.3]], [0.75, 0.9]
    expected = (*map(tuple, (low, middle, high)), (1.0, 1.0))
    assert in_order(setting(low, high, middle)) == expected


@pytest.mark.parametrize("highest", [[1.0, 1.0], [1.0, [1.0, 1.0]]])
def test_the_gear_that_sends_all_on_is_not_repeated(highest):
    assert in_order(setting([0.5, 0.5], highest)) == ((0.5, 0.5), tuple(highest))
    assert in_order(setting(highest)) == (tuple(highest),)


@pytest.mark.parametrize(
    "gears",
    [[[0.6, 0.9], [0.9, 0.6]], [[0.4, 0.9]], [[0.5, 0.5]], [[0.7, 0.7], [0.7, 0.7]]],
)
def test_gears_without_an_order_are_refused(gears):
    with pytest.raises(BundleError, match=r"neither is above the other.*Certify again"):
        in_order(setting([0.5, 0.5], *gears))


def test_a_bundle_with_gears_without_an_order_is_named(make_bundle):
    settings = {KEY: {"thresholds": [0.5], "gears": [[0.25]]}}
    folder = make_bundle("echo", "negated", settings=settings)
    with pytest.raises(BundleError, match=f"^{folder}: gears: of "):
        Cascade.load(folder, threads=1)


def test_slack_raises_the_gear_one_by_one_up_to_the_highest():
    governor = LoadGovernor(3, patience=4)
    gears = [governor.decide(slack=0.8) for _ in range(14)]
    assert gears == [0] * 3 + [1] * 4 + [2] * 7


@pytest.mark.parametrize("load", [{"slack": 0.05}, {"slack": -2.0}, {"slack": 1.0, "waiting": 1}])
def test_load_goes_back_to_the_certified_gear_at_once(load):
    governor = LoadGovernor(3, patience=1)
    assert [governor.decide(slack=1.0) for _ in range(2)] == [1, 2]
    assert governor.decide(**load) == 0
    assert governor.decide(slack=1.0) == 1


def test_between_load_and_slack_the_gear_stays_and_patience_begins_anew():
    governor = LoadGovernor(3, patience=2)
    slacks = [0.9, 0.3, 0.9, 0.3, 0.9, 0.9, 0.3, 0.3]
    assert [governor.decide(slack=slack) for slack in slacks] == [0, 0, 0, 0, 0, 1, 1, 1]


@pytest.mark.parametrize(
    ("gears", "options"),
    [(0, {}), (2, {"patience": 0}), (2, {"little": 0.6}), (2, {"much": 1.5})],
)
def test_a_governor_that_cannot_govern_is_refused(gears, options):
    with pytest.raises(InputError, match="LoadGovernor: expected"):
        LoadGovernor(gears, **options)
