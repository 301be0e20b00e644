"""Ranking: all cascades, the offsets that cost least, forecasts, and paired intervals."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest

from calibration.bootstrap import intervals, resampling_weights
from calibration.certificates import Forecast
from calibration.chains import chains, cheaper, grown
from calibration.costs import MacCosts
from calibration.ranking import rank
from calibration.recorded import Claim
from calibration.scores import PLAIN
from calibration.screen import STEPS, Candidate, Options, Screen
from runtime.schema import ThresholdPath
from runtime.simulation import Simulation
from tests.calibration.answers import CLAIM, MACS, pool, screen


def test_the_best_offset_is_the_cheapest_of_all() -> None:
    made = screen()
    costs = {o: screen(offsets=(o,)).best(("a", "b", "c")).cost for o in made.offsets if o}
    best = made.best(("a", "b", "c"))
    assert best.cost == min(costs.values()) == costs[best.offsets[1]]
    assert best.offsets[0] == 0.0
    assert len(set(costs.values())) > 5


def test_of_equal_costs_the_smallest_offset_wins() -> None:
    made = Screen(pool(), MacCosts({"a": 0, "b": 0, "c": 0}), CLAIM, 4000)
    assert made.best(("a", "b", "c")).offsets == (0.0, 0.0)


def test_refined_offsets_cost_less_on_resampled_splits_and_no_step_from_them_does() -> None:
    made, weights = screen(), resampling_weights(997, 8)
    start = made.at(("a", "b", "c"), (0.0, 2.0), Options((PLAIN, PLAIN)))
    found = made.refined(start, weights)
    costs = [made.resampled(item, weights).mean() for item in (start, found)]
    assert costs[1] < costs[0] and found == made.at(*found[:3])
    for step in STEPS:
        near = found._replace(offsets=(0.0, found.offsets[1] + step))
        assert made.resampled(near, weights).mean() >= costs[1]
    pair = made.best(("a", "c"))
    assert made.refined(pair, weights) == pair


def test_offsets_of_four_stages_are_improved_gate_by_gate() -> None:
    made = screen()
    logits = {**made.pool.logits, "d": made.pool.logits["a"] + made.pool.logits["b"]}
    more = type(made.pool)(logits, made.pool.labels, "c")
    costs = MacCosts({**MACS, "d": 30})
    whole = Screen(more, costs, CLAIM, 4000, offsets=(-1.0, 0.0, 1.0))
    best = whole.best(("a", "b", "d", "c"))
    plain = whole.at(("a", "b", "d", "c"), (0.0, 0.0, 0.0), best.options)
    assert best.cost < plain.cost
    for gate in (1, 2):
        assert whole._best_of_gate(best, gate).cost == best.cost


def test_the_screen_predicts_the_forecast() -> None:
    made = screen()
    candidate = made.best(("a", "c"))
    (estimate,) = rank(made, [candidate], draws=20)
    # The screen's margin is that of a normal approximation: close, not equal.
    assert estimate.cost == pytest.approx(candidate.cost, rel=0.15)


def test_an_estimate_tells_the_accuracy_at_its_thresholds() -> None:
    made = screen()
    (estimate,) = rank(made, [made.best(("a", "b", "c"))], draws=4)
    logits = [made.pool.logits[name] for name in estimate.names]
    answers = Simulation(logits).answers(estimate.thresholds).label
    assert estimate.accuracy == pytest.approx((answers == made.pool.labels).mean())


def test_chains_come_in_every_order_and_end_in_the_large_model() -> None:
    assert set(chains(["a", "b"], "c", 2)) == {("a", "c"), ("b", "c")}
    assert set(chains(["a", "b"], "c", 3)) == {("a", "b", "c"), ("b", "a", "c")}
    assert list(chains(["a"], "c", 3)) == []


def test_longer_chains_grow_by_one_saver_anywhere() -> None:
    found = grown([("a", "c"), ("b", "c")], ["a", "b"])
    assert sorted(found) == [("a", "b", "c"), ("b", "a", "c")]
    assert len(grown([("a", "b", "c")], ["a", "b", "x", "y"])) == 6


def test_savers_cost_less_than_the_large_model() -> None:
    assert cheaper(pool(), MacCosts(MACS)) == ["a", "b"]
    assert cheaper(pool(), MacCosts({"a": 100, "b": 99, "c": 100})) == ["b"]


def test_the_ranking_is_by_the_cost_of_the_forecast(monkeypatch: pytest.MonkeyPatch) -> None:
    rates = {-1.0: 0.9, 0.0: 0.1, 1.0: 0.5}

    def fake(_: Sequence[Any], __: Any, path: ThresholdPath, **___: Any) -> Forecast:
        rate = (rates[path.offsets[0]],)
        return Forecast(1, 1, 0, (0.1, 0.5, 0.9), (0, 0, 0), ((0.5,),) * 3, (rate,) * 3)

    monkeypatch.setattr("calibration.ranking.forecast", fake)
    candidates = [Candidate(("a", "c"), (o,), Options((PLAIN,)), 0.0) for o in rates]
    ranking = rank(screen(), candidates, draws=1)
    assert [item.cost for item in ranking] == [11.0, 51.0, 91.0]


def test_a_cascade_that_no_draw_certifies_is_left_out() -> None:
    made = Screen(pool(), MacCosts(MACS), Claim(0.001, 0.01, "harm_only"), 100)
    assert rank(made, [made.best(("a", "c"))], draws=2) == []


def test_a_resampled_cost_is_that_of_the_resampled_split() -> None:
    made = screen()
    candidate = made.best(("a", "b", "c"))
    (weights,) = resampling_weights(997, 3)[1:2]
    rows = np.repeat(np.arange(997), weights)
    drawn = type(made.pool)(
        {name: z[rows] for name, z in made.pool.logits.items()}, made.pool.labels[rows], "c"
    )
    expected = Screen(drawn, made.costs, CLAIM, 4000).at(*candidate[:3])
    assert made.resampled(candidate, weights[None])[0] == pytest.approx(expected.cost)


def test_every_cascade_is_resampled_alike() -> None:
    first, second = (resampling_weights(50, 7) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    assert (first.sum(1) == 50).all() and first.std() > 0.5


def test_pairing_makes_the_interval_of_a_ratio_narrow() -> None:
    made = screen()
    weights = resampling_weights(997, 200)
    names = ("b", "c"), ("b", "a", "c")
    pair, triple = (made.resampled(made.best(chain), weights) for chain in names)
    ratios = np.stack([triple / pair, triple / np.roll(pair, 1)], axis=1)
    paired, unpaired = intervals(ratios)
    assert paired.high - paired.low < 0.8 * (unpaired.high - unpaired.low)


def test_an_interval_holds_95_of_100_draws() -> None:
    values = np.random.default_rng(0).permutation(np.arange(1.0, 1001))[:, None]
    ((low, high),) = intervals(values)
    assert (low, high) == (pytest.approx(25.975), pytest.approx(975.025))
    assert intervals(np.empty((5, 0))) == []


def test_a_saver_that_breaks_the_claim_at_its_first_step_is_saturated() -> None:
    made = screen()
    assert made.kept_at_once("b")[1]
    sure = type(made.pool)(
        {**made.pool.logits, "a": 1000 * made.pool.logits["a"]}, made.pool.labels, "c"
    )
    kept, passes = Screen(sure, made.costs, CLAIM, 4000).kept_at_once("a")
    assert kept > 0.9 and not passes
