"""The sentences of a report follow its figures."""

from __future__ import annotations

import numpy as np
import pytest

from calibration import report_words as words
from calibration.front import Single
from calibration.report_figures import (
    Changed,
    Confidence,
    Flow,
    Point,
    Ranking,
    Trade,
)
from calibration.risk_coverage import Ordering
from runtime.certification import Certification
from runtime.schema import Certificate, ThresholdPath

CERTIFICATE = Certificate(
    quantity="accuracy_drop", epsilon=0.005, delta=0.0125, method="wsr", n=8000, harm=45, help=32,
    thresholds=(0.9,), scores=(), path=ThresholdPath(), passed=3, order_seed=1,
    escalation_rates=(0.25,),
)  # fmt: skip


def trade(here: Point, *singles: Single) -> Trade:
    front = [single for single in singles if single.name != "beaten"]
    return Trade("macs", list(singles), front, np.zeros((1, 2)), {}, here, [])


def ranking(used: str, **areas: float) -> Ranking:
    def curve(area: float) -> Ordering:
        return Ordering(np.array([0.5, 1.0]), np.array([0.25, 0.5]), area)

    scores = {name: curve(area) for name, area in areas.items()}
    return Ranking("tiny", 2, scores, used, curve(0))


def confidence(mean: float, accuracy: float) -> Confidence:
    right = round(100 * accuracy)
    counts = np.array([right]), np.array([100 - right])
    means = np.array([mean]), np.array([accuracy])
    return Confidence("tiny", np.array([0.0, 1.0]), *counts, *means, abs(mean - accuracy), None)


def test_the_cheapest_single_model_as_accurate_is_named() -> None:
    singles = Single("tiny", 1e6, 0.8), Single("middle", 6e6, 0.92), Single("large", 5e7, 0.95)
    text = " ".join(words.trade_words(trade(Point(2e6, 0.91), *singles), "large"))
    assert "95.00 % for 50 M MACs, 25.0 times as much" in text
    assert "as accurate is middle, at 3.0 times its cost" in text
    assert "Off the front" not in text


@pytest.mark.parametrize(
    ("here", "sentence"),
    [
        (Point(2e6, 0.97), "No single model of the pool is as accurate."),
        (Point(9e6, 0.91), "middle alone is as accurate and costs no more (6 M MACs)"),
    ],
)
def test_a_cascade_may_be_beyond_all_models_or_beaten_by_one(here: Point, sentence: str) -> None:
    singles = Single("beaten", 9e6, 0.7), Single("middle", 6e6, 0.92), Single("large", 5e7, 0.95)
    text = " ".join(words.trade_words(trade(here, *singles), "large"))
    assert sentence in text
    assert text.endswith("since a model as cheap is as accurate: beaten.")


def test_what_a_stage_keeps_is_compared_with_the_large_model() -> None:
    flows = [Flow("a", 100, 60, 58, 59), Flow("b", 40, 30, 30, 30), Flow("c", 10, 10, 8, 8)]
    text = " ".join(words.flow_words(flows))
    assert "after a sends on 40 of 100 images, 40.0 % of all" in text
    assert "the 60 that a keeps it gets 58 right, 1 fewer than c would" in text
    assert "after b sends on 10 of 40 images, 10.0 % of all" in text
    assert "gets 30 right, as many as c would" in text


@pytest.mark.parametrize(
    ("used", "sentence"),
    [
        ("margin", "own score, margin, orders these images best"),
        ("near", "The gate's score, near, is as good as any: within 1 % of margin."),
        ("far", "margin orders these images better than the gate's far: 50.0 % less area."),
    ],
)
def test_the_gates_score_is_held_against_the_best(used: str, sentence: str) -> None:
    text = " ".join(words.ranking_words(ranking(used, margin=0.1, near=0.1005, far=0.2)))
    assert sentence in text
    assert "Kept, the surest half would lose 25.00 %, all of them 50.00 %." in text


@pytest.mark.parametrize(
    ("mean", "sentence"),
    [
        (0.95, "too sure of itself"),
        (0.85, "more often right than it says"),
        (0.902, "about as sure as it is right"),
    ],
)
def test_confidence_is_held_against_accuracy(mean: float, sentence: str) -> None:
    assert sentence in words.confidence_words(confidence(mean, 0.9))


def test_harm_help_and_the_hardest_class_are_named() -> None:
    empty = np.zeros(400, np.int32)
    changed = Changed(np.array([0, 1, 2]), np.array([3]), empty, empty.astype(np.int8))
    (text,) = words.changed_words(changed, "large")
    assert "On 3 images only large is right, on 1 only the cascade: a drop of 0.50 points" in text
    truth = np.array([1, 1, 0, 0], np.int32)
    assert words.hardest_class(changed, truth, ["cat", "dog"]).endswith("class dog: 2 of 3.")


@pytest.mark.parametrize(
    ("state", "sentence"),
    [
        ("certified", "It covers exactly the cascade of this report."),
        ("transferred", "carried over, not proven"),
        ("overridden", "so it does not cover them"),
        ("not certified", "For the cascade of this report it does not hold: not certified"),
    ],
)
def test_a_certificate_says_whether_it_covers_this_cascade(state: str, sentence: str) -> None:
    certification = Certification(state, CERTIFICATE)  # type: ignore[arg-type]
    text = " ".join(words.certificate_words(certification, ["tiny", "large"]))
    assert sentence in text
    assert "confidence of 98.75 % (epsilon 0.005, delta 0.0125)" in text
    assert "at most 0.5 points below that of large alone" in text
    assert "on 45 only large was right (harm), on 32 only the cascade (help)" in text
    assert "a drop of 0.16 points there" in text
    assert "tiny sent on 25.0 % of all" in text


def test_a_certificate_without_labels_speaks_of_answers() -> None:
    certificate = CERTIFICATE.model_copy(update={"quantity": "disagreement"})
    text = " ".join(words.certificate_words(Certification("certified", certificate), ["a", "b"]))
    assert "at most 0.50 % of the cascade's answers are unlike those of b alone" in text
    assert "8,000 unlabelled images, on 45 of which the answers differ" in text


@pytest.mark.parametrize(
    ("unit", "cost", "text"),
    [
        ("macs", 4.39e6, "4.39 M MACs"),
        ("time", 139.4e-6, "139 µs"),
        ("time", 1.183e-3, "1.18 ms"),
    ],
)
def test_costs_have_readable_units(unit: str, cost: float, text: str) -> None:
    assert words.amount(unit, cost) == text


def test_every_split_has_its_warning() -> None:
    assert "hopeful" in words.split_note("selection", 10)
    assert "Reporting only" in words.split_note("test", 10)
    assert "certified on other images" in words.split_note("night", 10)
