"""Certificates of combined answers, of thresholds by class, and of learned scores."""

import numpy as np
import pytest

from calibration.bounds import METHODS, passes
from calibration.certificates import certify_cascade, forecast
from calibration.errors import CertificationRefused
from kernels import reference
from runtime.schema import Certificate, Combination, Score, ThresholdPath
from tests.calibration.stage_logits import logits_of, random_cascade

CLAIM = {"epsilon": 0.01, "delta": 0.1, "method": "wsr"}


def weakened(n=2000, harmed=60):
    """A large model that is right, and a saver whose added logits turn some of its answers."""
    answers = np.zeros(n, int)
    saver = logits_of(answers, np.full(n, 0.6))
    large = logits_of(answers, np.full(n, 0.9))
    labels = answers.copy()
    labels[:harmed] = 1
    large[:harmed] = [0.0, 0.2, 0.0]
    return [saver, large], labels


@pytest.mark.parametrize("method", METHODS)
def test_a_combination_that_loses_too_much_is_refused_at_the_first_point(method):
    stages, labels = weakened()
    claim = {"epsilon": 0.02, "delta": 0.05, "method": method}
    assert certify_cascade(stages, labels, ThresholdPath(points=1), **claim).passed == 1
    with pytest.raises(CertificationRefused, match=r"first point .*harm 3\.00%, help 0\.00%"):
        certify_cascade(stages, labels, ThresholdPath(points=1), **claim, combination=(0, 1.0))


def test_the_loss_of_a_combination_is_counted_against_the_large_model_alone():
    stages, labels = weakened(harmed=7)
    path = ThresholdPath(explicit=((1.0,),))
    found = certify_cascade(stages, labels, path, **CLAIM, combination=(0, 0.5))
    assert (found.harm, found.help, found.escalation_rates) == (7, 0, (1.0,))
    assert found.combination == Combination(stage="0", weight=0.5)
    assert certify_cascade(stages, labels, path, **CLAIM, combination=(0, 0.0)).combination is None


def test_thresholds_by_class_are_certified_point_by_point():
    """The walk, redone with a plain loop; class 1 may fall sooner than the others."""
    stages, labels = random_cascade(2003, stages=2, classes=3)
    path = ThresholdPath(
        start=5.0, stop=-1.0, points=25, offsets=(0.5,), class_offsets=((0.0, -2.0, 0.5),)
    )
    claim = {"epsilon": 0.02, "delta": 0.1, "method": "clopper_pearson"}
    found = certify_cascade(stages, labels, path, **claim)
    saver, large = (z.argmax(1) for z in stages)
    confidence = np.exp(stages[0] - stages[0].max(1, keepdims=True))
    confidence = 1 / confidence.sum(1)
    outcome = []
    for (thresholds,) in path.vectors():
        answer = np.where(confidence > thresholds[saver], saver, large)
        drops = (large == labels).astype(int) - (answer == labels)
        outcome.append(passes(drops, **claim))
    assert found.passed == outcome.index(False) - 1 > 0
    assert found.thresholds == (path.vectors()[found.passed, 0].tolist(),)
    assert Certificate.model_validate_json(found.model_dump_json()) == found


def test_a_class_path_of_other_classes_or_one_that_rises_is_refused():
    stages, labels = random_cascade(40, stages=2)
    wrong = ThresholdPath(class_offsets=((0.0,) * 4,))
    with pytest.raises(ValueError, match="for a gate 5 by class"):
        certify_cascade(stages, labels, wrong, **CLAIM)
    rising = ThresholdPath(start=0.0, stop=1.0, class_offsets=((0.0,) * 5,))
    with pytest.raises(ValueError, match="rises"):
        certify_cascade(stages, labels, rising, **CLAIM)


def test_a_learned_score_is_certified_and_forecast_like_any_other():
    stages, labels = random_cascade(1500, stages=2)
    entropy = reference.score(stages[0], "entropy").astype(np.float32)
    options = {"scores": [Score(name="learned", output="score")], "gate_scores": [entropy]}
    found = certify_cascade(stages, labels, ThresholdPath(), **CLAIM, **options)
    plain = certify_cascade(
        stages, labels, ThresholdPath(), **CLAIM, scores=[Score(name="entropy")]
    )
    assert found == plain.model_copy(update={"scores": found.scores})
    assert found.passed > 0
    arguments = {"n": 1500, "draws": 3, **CLAIM}
    assert forecast(stages, labels, ThresholdPath(), **arguments, **options) == forecast(
        stages, labels, ThresholdPath(), **arguments, scores=[Score(name="entropy")]
    )


def test_a_forecast_of_a_combination_is_refused_where_it_loses_at_the_first_point():
    stages, labels = weakened()
    path = ThresholdPath(points=2, class_offsets=((0.0, 0.0, 0.0),))
    arguments = {"n": 2000, "draws": 3, **CLAIM}
    found = forecast(stages, labels, path, **arguments)
    assert found.thresholds[0] == tuple(path.vectors()[found.passed[0]].tolist())
    with pytest.raises(CertificationRefused, match="first point"):
        forecast(stages, labels, path, **arguments, combination=(0, 1.0))
