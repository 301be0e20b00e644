"""The choice of a score: by area, with a fallback; and the learned gate."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.bootstrap import resampling_weights
from calibration.learned_gate import LEAST_HARM, learn
from calibration.readings import read
from calibration.risk_coverage import ordering, resampled_area
from calibration.scores import LEARNED, PLAIN, Choice, choose_score, family, words
from runtime.schema import Score

N = 1500


def scaled_at_random() -> tuple[np.ndarray, np.ndarray]:
    """Return logits whose scale says nothing of how right they are, and where they are wrong."""
    rng = np.random.default_rng(5)
    labels = rng.integers(0, 6, N)
    logits = 3 * np.eye(6)[labels] + rng.normal(size=(N, 6)) * 1.3
    wrong = logits.argmax(1) != labels
    return (logits * rng.uniform(0.2, 5, (N, 1))).astype(np.float32), wrong


def chosen(logits: np.ndarray, harmed: np.ndarray, **options: bool) -> Choice:
    return choose_score(logits, harmed, resampling_weights(len(harmed), 60), **options)


def test_a_p_norm_mends_logits_whose_scale_says_nothing() -> None:
    choice = chosen(*scaled_at_random())
    assert choice.score.name == "p_norm" and choice.score == choice.best.score
    assert choice.best.area < 0.9 * choice.plain and choice.interval.high < 0
    assert choice.tried == len(family()) and choice.learned is None


def test_what_does_not_help_beyond_chance_leaves_max_softmax() -> None:
    logits, _ = scaled_at_random()
    choice = chosen(logits, np.random.default_rng(1).random(N) < 0.05)
    assert choice.score == PLAIN != choice.best.score
    assert choice.best.area < choice.plain and choice.interval.high >= 0


def test_the_plain_score_wins_ties() -> None:
    """With two classes every temperature orders samples alike."""
    logits = np.random.default_rng(2).normal(size=(N, 2)).astype(np.float32)
    choice = chosen(logits, np.abs(logits[:, 0] - logits[:, 1]) < 0.2)
    assert choice.best.area == pytest.approx(choice.plain)
    assert choice.score == PLAIN


def test_scores_are_those_that_devices_know() -> None:
    assert family()[0] == PLAIN and len(set(family())) == len(family())
    assert {score.name for score in family()} == {"max_softmax", "margin", "entropy", "p_norm"}


def test_scores_have_names_for_people() -> None:
    shown = [PLAIN, Score(temperature=0.5), Score(name="p_norm", p=1.5), LEARNED]
    assert [words(score) for score in shown] == [
        "max-softmax", "max-softmax T 0.5", "p-norm p 1.5", "learned gate",
    ]  # fmt: skip


def test_an_area_on_resampled_sets_is_that_of_the_samples_drawn() -> None:
    rng = np.random.default_rng(3)
    score, harmed = rng.permutation(np.linspace(0, 1, 53)), rng.random(53) < 0.3
    weights = rng.integers(0, 4, (5, 53))
    for draw, area in zip(weights, resampled_area(score, harmed, weights), strict=True):
        rows = np.repeat(np.arange(53), draw)
        # Copies of a sample are one after the other in both, here by ever so different scores.
        apart = score[rows] - 1e-9 * np.arange(len(rows))
        stepped = ordering(apart, ~harmed[rows]).risk
        last = np.cumsum(draw[np.argsort(-score)])
        order = np.argsort(-score)
        expected = (draw[order] * stepped[np.maximum(last - 1, 0)]).sum() / draw.sum()
        assert area == pytest.approx(expected)


def test_a_gate_learns_which_class_is_often_mistaken() -> None:
    rng = np.random.default_rng(6)
    logits = rng.normal(size=(N, 5)).astype(np.float32) * 2
    harmed = (logits.argmax(1) == 3) & (rng.random(N) < 0.5)
    choice = chosen(logits, harmed, learning=True)
    assert choice.score == LEARNED and choice.tried == len(family()) + 1
    assert choice.best.area < 0.5 * choice.plain


def test_samples_are_not_judged_by_a_gate_that_learned_from_them() -> None:
    """Harm by the toss of a coin cannot be learned: no better than chance on samples held out."""
    rng = np.random.default_rng(7)
    logits = rng.normal(size=(200, 30)).astype(np.float32)
    harmed = rng.random(200) < 0.3
    learned = learn(logits, harmed)
    assert learned is not None
    z = logits.astype(np.float64)
    falling = -np.sort(-z, axis=1)
    weight = np.exp(z)
    seen = learned.head.score(
        falling[:, :1] - falling[:, 1:5], weight / weight.sum(1, keepdims=True)
    )
    area_seen, area_held = (ordering(s, ~harmed).aurc for s in (seen, learned.score))
    assert area_seen < 0.75 * harmed.mean() < 0.9 * harmed.mean() < area_held


def test_too_little_harm_teaches_nothing() -> None:
    logits = np.random.default_rng(8).normal(size=(300, 4)).astype(np.float32)
    harmed = np.arange(300) < LEAST_HARM - 1
    assert learn(logits, harmed) is None and learn(logits, ~harmed) is None
    choice = chosen(logits, harmed, learning=True)
    assert choice.learned is None and choice.tried == len(family())


def test_rows_that_are_not_valid_are_kept_by_no_score() -> None:
    logits = np.random.default_rng(9).normal(size=(N, 4)).astype(np.float32)
    harmed = (logits.argmax(1) == 2) & (np.arange(N) % 3 != 0)
    logits[::3, 1] = np.nan
    choice = chosen(logits, harmed, computed=False, learning=True)
    assert choice.tried == 2 and choice.score == LEARNED
    for reading in (choice.reading, read(logits, PLAIN)):
        assert np.isnan(reading.value[::3]).all() and not np.isnan(reading.value[1::3]).any()
