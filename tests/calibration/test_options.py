"""Options of a cascade: each is found where it pays, and left out where it does not."""

from __future__ import annotations

import numpy as np

from calibration.bootstrap import resampling_weights
from calibration.chains import Pool
from calibration.class_offsets import LARGEST, class_offsets
from calibration.costs import MacCosts
from calibration.options import COMBINATION_WEIGHTS, OptionSearch
from calibration.recorded import Claim
from calibration.scores import choose_score
from calibration.screen import Screen
from tests.calibration.answers import MACS, screen

N = 3000
CLAIM = Claim(0.01, 0.0125, "wsr")


def options(made: Screen, **which: bool) -> OptionSearch:
    return OptionSearch(made, resampling_weights(len(made.pool.labels), 60), **which)


def screen_of(logits: dict[str, np.ndarray], labels: np.ndarray) -> Screen:
    pool = Pool({k: z.astype(np.float32) for k, z in logits.items()}, labels.astype(np.int32), "c")
    return Screen(pool, MacCosts(MACS), CLAIM, 8000)


def random(classes: int, noises: dict[str, float]) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    rng = np.random.default_rng(12)
    labels = rng.integers(0, classes, N)
    truth = 4 * np.eye(classes)[labels]
    return labels, {k: truth + rng.normal(size=truth.shape) * s for k, s in noises.items()}


def test_models_that_err_apart_answer_better_together() -> None:
    labels, logits = random(4, {"a": 2.5, "c": 1.8})
    improved = options(screen_of(logits, labels)).improved(("a", "c"))
    (trial,) = [trial for trial in improved.trials if trial.kind == "combination"]
    assert trial.promising and trial.interval.high < 1 and trial.tried == len(COMBINATION_WEIGHTS)
    found = improved.candidate.options.combination
    assert found is not None and found.stage == "a" and found.weight == 0.5


def test_what_costs_less_by_chance_only_is_left_out() -> None:
    labels, logits = random(4, {"a": 2.2, "c": 1.1})
    (trial,) = options(screen_of(logits, labels), classes=False).improved(("a", "c")).trials
    assert trial.ratio < 1 <= trial.interval.high and not trial.promising


def test_a_combination_that_brings_nothing_is_left_out() -> None:
    labels, logits = random(4, {"a": 3.0, "c": 0.7})
    improved = options(screen_of(logits, labels)).improved(("a", "c"))
    assert improved.candidate.options.combination is None


def test_thresholds_by_class_pay_where_a_class_is_mistaken_with_confidence() -> None:
    labels, logits = random(8, {"a": 0.8, "c": 0.3})
    rng = np.random.default_rng(4)
    # Half of class 0 looks like class 1 to the saver, whatever its confidence.
    swapped = (labels == 0) & (rng.random(N) < 0.5)
    logits["a"][swapped] = logits["a"][swapped][:, [1, 0, *range(2, 8)]]
    made = screen_of(logits, labels)
    improved = options(made, combinations=False).improved(("a", "c"))
    assert improved.candidate.options.strength > 0
    offsets = made.path(improved.candidate).class_offsets
    assert offsets is not None and np.argmax(offsets[0]) == 1


def test_thresholds_are_alike_where_classes_are() -> None:
    labels, logits = random(5, {"a": 2.0, "c": 1.0})
    improved = options(screen_of(logits, labels), combinations=False).improved(("a", "c"))
    assert improved.candidate.options.strength == 0


def test_a_better_score_is_taken_for_its_own_gate() -> None:
    labels, logits = random(6, {"a": 1.5, "b": 1.2, "c": 0.8})
    logits["a"] *= np.random.default_rng(1).uniform(0.2, 5, (N, 1))
    made = screen_of(logits, labels)
    weights = resampling_weights(N, 60)
    harmed = {name: made.pool.right["c"] & ~made.pool.right[name] for name in "ab"}
    made.choices = {
        name: choose_score(made.pool.logits[name], flags, weights) for name, flags in harmed.items()
    }
    improved = options(made, classes=False, combinations=False).improved(("a", "b", "c"))
    assert improved.candidate.options.scores[0].name == "p_norm"
    assert improved.candidate.cost < made.best(("a", "b", "c")).cost


def test_without_options_the_plain_cascade_stays() -> None:
    made = screen()
    improved = options(made, scores=False, classes=False, combinations=False).improved(("a", "c"))
    assert improved.candidate == made.best(("a", "c")) and improved.trials == []


def test_class_offsets_are_of_harm_against_doubt() -> None:
    label = np.repeat([0, 1, 2], 1000)
    confidence = np.full(3000, 0.9)
    harmed = np.zeros(3000, bool)
    harmed[:50], harmed[1000:1200], harmed[2000:2050] = True, True, True
    found = class_offsets(confidence, label, harmed, 4)
    np.testing.assert_allclose(found, np.log([60 / 110, 210 / 110, 60 / 110, 1.0]), atol=1e-4)


def test_few_harmed_samples_move_a_class_little_and_none_far() -> None:
    label, confidence = np.repeat([0, 1], [2990, 10]), np.full(3000, 0.99)
    harmed = np.arange(3000) >= 2998
    assert 0 < class_offsets(confidence, label, harmed, 2)[1] < 0.2
    many = np.arange(3000) % 2 == 1
    label = many.astype(np.int64)
    assert class_offsets(confidence, label, many, 2).tolist() == [
        -LARGEST,
        np.log(151 / 76).round(4),
    ]
    assert class_offsets(confidence, label, np.zeros(3000, bool), 2).tolist() == [0, 0]
