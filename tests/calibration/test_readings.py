"""What gates read, the paths that are matched to it, and the screen's curves of both."""

from __future__ import annotations

import numpy as np
import pytest

from calibration.learned_gate import learn
from calibration.readings import matched, read
from calibration.scores import LEARNED, PLAIN, family
from calibration.screen import Candidate, Options
from runtime.schema import Combination, Score, ThresholdPath
from runtime.simulation import Simulation
from tests.calibration.answers import pool, screen

MARGIN, ENTROPY = Score(name="margin", temperature=1.5), Score(name="entropy")
P_NORM, WARM = Score(name="p_norm", p=3.0), Score(temperature=2.0)


@pytest.mark.parametrize("score", family(), ids=str)
def test_the_first_point_kept_is_the_first_at_which_the_simulation_keeps(score: Score) -> None:
    logits = pool(211).logits["a"].copy()
    logits[0], logits[1, 2], logits[2] = 0.0, np.nan, [50, 0, 0, -np.inf]
    thresholds = np.float32([1.0, 0.99, 0.9, 0.9, 0.7, 0.55, 0.4, 0.3, 0.0])
    simulation = Simulation([logits, logits], scores=[score])
    kept = np.array([simulation.answers([float(t)]).stage == 0 for t in thresholds])
    expected = np.where(kept.any(0), kept.argmax(0), len(thresholds))
    np.testing.assert_array_equal(read(logits, score).first_kept(thresholds), expected)
    assert expected[1] == len(thresholds)


@pytest.mark.parametrize("score", [MARGIN, ENTROPY, P_NORM, WARM], ids=str)
def test_matched_thresholds_keep_as_many_as_the_plain_score(score: Score) -> None:
    logits = pool().logits["b"]
    thresholds = ThresholdPath(offsets=(0.75,)).vectors()[:, 0]
    plain = read(logits, PLAIN).first_kept(thresholds)
    kept = np.array([(plain <= point).sum() for point in range(len(thresholds))])
    reading = read(logits, score)
    found = matched(reading.surest(), kept)
    first = reading.first_kept(found)
    assert [(first <= point).sum() for point in range(len(found))] == kept.tolist()
    assert found.dtype == np.float32 and (np.diff(found) <= 0).all()


def test_a_matched_threshold_keeps_nothing_or_all_where_it_should() -> None:
    found = matched(np.array([0.9, 0.5, 0.3]), np.array([0, 1, 2, 3]))
    np.testing.assert_allclose(found, [1.0, 0.7, 0.4, 0.15])


def test_samples_of_equal_score_are_kept_together_or_not_at_all() -> None:
    reading = read(pool().logits["a"][[0, 0, 0, 1]], MARGIN)
    found = matched(reading.surest(), np.array([0, 1, 2, 3, 4]))
    counts = [(reading.first_kept(found) <= point).sum() for point in range(5)]
    assert set(counts) <= {0, 1, 3, 4} and counts == sorted(counts)


@pytest.mark.parametrize(
    "options",
    [
        Options((MARGIN, PLAIN)),
        Options((P_NORM, WARM), combination=Combination(stage="a", weight=0.5)),
        Options((PLAIN, PLAIN), strength=0.5),
        Options((PLAIN, PLAIN), 1.0, Combination(stage="b", weight=1.0)),
    ],
    ids=["scores", "scores, combined", "by class", "by class, combined"],
)
def test_the_curve_is_what_the_simulation_says_along_the_path(options: Options) -> None:
    made = screen()
    candidate = Candidate(("a", "b", "c"), (0.0, -1.5), options, 0.0)
    added = options.combination
    simulation = Simulation(
        [made.pool.logits[name] for name in candidate.names],
        made.pool.labels,
        scores=options.scores,
        combination=added and (candidate.names.index(added.stage), added.weight),
    )
    walked, once = made._curve(candidate), np.ones((1, 997), np.int64)
    along = {float(drop) for drop in walked.drop(once)[0][0]}
    points = made.path(candidate).vectors()
    assert {round(float(simulation.drops(p).mean()), 9) for p in points} == {
        round(drop, 9) for drop in along
    }
    shares = {tuple(np.round(simulation.escalation_rates(point), 9)) for point in points}
    points_of_curve = range(len(ThresholdPath().vectors()))
    rates = [walked.rates(once, np.array([point]))[0] for point in points_of_curve]
    assert shares == {tuple(np.round(rate, 9)) for rate in rates}


def test_a_path_of_other_scores_names_each_point_once_in_few_digits() -> None:
    path = screen().path(Candidate(("a", "c"), (0.0,), Options((MARGIN,)), 0.0))
    assert path.explicit is not None and path.explicit[0] == (1.0,)
    assert len(set(path.explicit)) == len(path.explicit)
    assert all(np.float32(t) == np.float32(str(np.float32(t))) for (t,) in path.explicit)
    assert max(len(str(t)) for (t,) in path.explicit) <= 14


def test_a_last_stage_that_drops_too_much_certifies_nothing() -> None:
    """With 1000 times the weakest model's logits, the last stage answers as that."""
    made = screen()
    spoilt = Options((PLAIN,), combination=Combination(stage="a", weight=1000.0))
    assert made.at(("a", "c"), (0.0,), spoilt).cost == made.costs.alone("c")


def test_learned_scores_are_handed_on_for_their_gates_only() -> None:
    made = screen()
    harmed = made.pool.right["c"] & ~made.pool.right["a"]
    learned = learn(made.pool.logits["a"], harmed)
    assert learned is not None
    made._readings["a", LEARNED] = read(made.pool.logits["a"], PLAIN)._replace(
        score=LEARNED, value=learned.score
    )
    candidate = Candidate(("a", "b", "c"), (0.0, 0.0), Options((LEARNED, MARGIN)), 0.0)
    first, second = made.gate_scores(candidate)
    assert second is None and first is not None
    np.testing.assert_array_equal(first, learned.score.astype(np.float32))
