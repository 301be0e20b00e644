"""A cascade beside single models: the cheapest as accurate, its share, and the paired bootstrap."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from calibration.bootstrap import resampling_blocks, resampling_weights
from calibration.costs import MacCosts
from calibration.standing import Contest, contest, standing
from runtime.simulation import Simulation
from tests.calibration.answers import pool

COSTS = MacCosts({"a": 1, "b": 10, "c": 100, "d": 40})


def made(n: int = 500, **rights: float) -> Contest:
    """Return models that are right on the first samples, as many as given, and a cascade a, c."""
    place = np.arange(n) / n
    singles = {name: place < share for name, share in rights.items() if name != "cascade"}
    stage = np.where(place < 0.9, 0, 1).astype(np.int8)
    return Contest(("a", "c"), place < rights["cascade"], stage, singles)


def test_the_cheapest_single_model_as_accurate_is_named() -> None:
    found = standing(made(cascade=0.8, a=0.5, b=0.79, d=0.8, c=0.95), COSTS, draws=50)
    assert (found.single, found.single_cost) == ("d", 40.0)
    assert found.cost == pytest.approx(1 + 0.1 * 100)
    assert found.share == pytest.approx(11 / 40)
    assert found.unit == "macs"


def test_where_no_single_model_is_as_accurate_the_cascade_wins() -> None:
    found = standing(made(cascade=0.99, a=0.5, b=0.6, c=0.9, d=0.9), COSTS, draws=50)
    assert (found.single, found.share, found.interval.high) == (None, 0.0, 0.0)
    assert found.drawn == {}
    assert found.verdict == "yes"


def test_the_verdict_needs_the_whole_interval() -> None:
    clear = standing(made(cascade=0.8, a=0.5, c=0.95), COSTS, draws=200)
    assert clear.verdict == "yes"
    # b and the cascade err on samples of their own, so that chance decides which is better.
    close = made(cascade=0.8, a=0.5, b=0.8, d=0.9, c=0.95)
    close.singles["b"][:] = np.roll(close.singles["b"], 20)
    assert standing(close, COSTS, draws=200).verdict == "no"
    close.singles["b"][np.flatnonzero(close.singles["b"])[-1]] = False
    doubtful = standing(close, COSTS, draws=200)
    assert doubtful.single == "d"
    assert doubtful.share <= 0.5 < doubtful.interval.high
    assert doubtful.verdict == "not beyond chance"
    assert set(doubtful.drawn) == {"b", "d"}
    assert sum(doubtful.drawn.values()) == pytest.approx(1)


def test_the_bootstrap_equals_one_that_draws_samples_by_index() -> None:
    answers: Any = pool()
    logits = [answers.logits[name] for name in "ac"]
    simulation = Simulation(logits, answers.labels)
    found = contest("ac", simulation, [0.8], answers.labels, answers.right)
    draws = 130
    result = standing(found, COSTS, draws=draws)
    shares = []
    for weights in resampling_weights(len(answers.labels), draws):
        rows = np.repeat(np.arange(len(weights)), weights)
        accuracy = found.right[rows].mean()
        cost = 1 + 100 * (found.stage[rows] > 0).mean()
        able = [n for n in "abc" if answers.right[n][rows].mean() >= accuracy - 1e-12]
        shares.append(cost / min(COSTS.alone(n) for n in able) if able else 0.0)
    assert result.interval == pytest.approx(np.quantile(shares, (0.025, 0.975)))
    assert result.interval.low <= result.share <= result.interval.high


def test_blocks_of_draws_are_the_draws() -> None:
    blocks = list(resampling_blocks(37, 25, size=10))
    assert [len(block) for block in blocks] == [10, 10, 5]
    assert (np.concatenate(blocks) == resampling_weights(37, 25)).all()
