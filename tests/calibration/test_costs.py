"""Costs: means over samples, expected over the batches that escalation leaves, and their file."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import scipy.stats

from calibration.cost_table import CostTable, ModelCosts, load_table, save_table
from calibration.costs import BatchCosts, MacCosts, batch_sizes, binomial_mass
from calibration.errors import CalibrationError
from calibration.pool import Card
from calibration.timings import measure_joules, measure_seconds
from runtime.schema import Preprocessing

MACS = {"a": 1, "b": 10, "c": 100}
SHA = {"a": "a" * 64, "c": "c" * 64}


def card(name: str, **changes: object) -> Card:
    made = Card(
        name=name,
        file=f"{name}.onnx",
        sha256=SHA[name],
        macs=1,
        parameters=1,
        preprocessing=Preprocessing(size=(4, 3), colour="grey", mean=(0.3,), std=(0.4,)),
        seed=1,
        provenance="x",
    )
    return made.model_copy(update=changes)


def table() -> CostTable:
    models = {
        name: ModelCosts(sha256=SHA[name], by_size={1: cost, 2: 1.5 * cost})
        for name, cost in (("a", 1e-6), ("c", 1e-4))
    }
    return CostTable(unit="time", device="a CPU", batch=2, models=models)


def cost(costs: BatchCosts, *rates: float) -> float:
    return float(costs.cascade(("a", "c"), np.array(rates)))


def test_macs_are_a_mean_over_samples() -> None:
    costs = MacCosts(MACS)
    rates = np.array([[0.5, 0.25], [1.0, 1.0]])
    assert costs.cascade(("a", "b", "c"), rates).tolist() == [1 + 0.5 * 10 + 0.25 * 100, 111]
    assert costs.alone("b") == 10


@pytest.mark.parametrize("rate", [0.0, 1.0, 0.03, 0.5])
def test_binomial_mass_is_the_distribution(rate: float) -> None:
    expected = scipy.stats.binom.pmf(np.arange(33), 32, rate)
    np.testing.assert_allclose(binomial_mass(32, rate), expected, rtol=1e-11, atol=1e-300)
    np.testing.assert_array_equal(binomial_mass(32, [0.2, rate])[1], binomial_mass(32, rate))


def test_time_is_expected_over_the_sizes_of_escalated_batches() -> None:
    costs = BatchCosts({"a": {1: 1.0, 2: 1.0}, "c": {1: 6.0, 2: 10.0}}, batch=2)
    # Of two samples none, one or both escalate with probability 9/16, 6/16, 1/16.
    assert cost(costs, 0.25) == pytest.approx((1 + 6 * 6 / 16 + 10 / 16) / 2)
    assert cost(costs, 0.0) == pytest.approx(0.5)
    assert cost(costs, 1.0) == pytest.approx(5.5)
    assert costs.alone("c") == 5.0
    both = costs.cascade(("a", "c"), np.array([[0.25], [1.0]]))
    assert both.tolist() == pytest.approx([cost(costs, 0.25), cost(costs, 1.0)])


def test_sizes_between_the_measured_ones_lie_on_a_line() -> None:
    costs = BatchCosts({"a": {4: 0.0}, "c": {1: 3.0, 4: 9.0}}, batch=4)
    mass = binomial_mass(4, 0.5)
    assert cost(costs, 0.5) == pytest.approx(mass @ [0, 3, 5, 7, 9] / 4)


def test_a_padding_engine_pays_for_the_next_measured_size() -> None:
    costs = BatchCosts({"a": {4: 0.0}, "c": {1: 3.0, 4: 9.0}}, batch=4, padded=True)
    mass = binomial_mass(4, 0.5)
    assert cost(costs, 0.5) == pytest.approx(mass @ [0, 3, 9, 9, 9] / 4)


@pytest.mark.parametrize(
    ("batch", "sizes"), [(1, [1]), (2, [1, 2]), (32, [1, 2, 4, 8, 16, 32]), (5, [1, 2, 4, 5])]
)
def test_batch_sizes_end_in_the_batch(batch: int, sizes: list[int]) -> None:
    assert batch_sizes(batch) == sizes


def test_models_and_sizes_take_turns() -> None:
    calls: list[tuple[str, int]] = []
    runs = {name: (lambda size, name=name: calls.append((name, size))) for name in ("x", "y")}
    found = measure_seconds(runs, [1, 4], rounds=3)
    assert calls == [("x", 1), ("x", 4), ("y", 1), ("y", 4)] * 4
    assert {name: sorted(times) for name, times in found.items()} == {"x": [1, 4], "y": [1, 4]}


def test_energy_is_that_of_one_batch() -> None:
    class Sensor:
        name = "counts batches"
        used = 0.0

        def joules(self) -> float:
            return self.used

        def close(self) -> None:
            pass

    sensor = Sensor()

    def run(size: int) -> None:
        sensor.used += 0.5 * size

    found = measure_joules({"x": run}, [1, 4], sensor, rounds=2, seconds=0.001)
    assert found == {"x": {1: 0.5, 4: 2.0}}


def test_a_cost_table_is_read_back(tmp_path: Path) -> None:
    path = tmp_path / "new" / "costs.json"
    save_table(path, table())
    cards = {name: card(name) for name in SHA}
    assert load_table(path, cards, unit="time", batch=2) == table()
    assert table().costs().alone("c") == pytest.approx(0.75e-4)


def test_a_cost_table_of_something_else_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    save_table(path, table())
    cards = {name: card(name) for name in SHA}
    with pytest.raises(CalibrationError, match="expected costs in joules at batch 2, got time"):
        load_table(path, cards, unit="joules", batch=2)
    with pytest.raises(CalibrationError, match="expected costs in time at batch 32"):
        load_table(path, cards, unit="time", batch=32)
    other = {**cards, "a": card("a", sha256="b" * 64)}
    with pytest.raises(CalibrationError, match="no measurement of a as in the pool"):
        load_table(path, other, unit="time", batch=2)


def test_a_damaged_cost_table_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "costs.json"
    for text in ("{", json.dumps({"format": "tinysaver.costs/2"})):
        path.write_text(text)
        with pytest.raises(CalibrationError, match=r"costs\.json"):
            load_table(path, {}, unit="time", batch=2)
    stored = table().model_dump(mode="json")
    stored["models"]["a"]["by_size"] = {"1": 1.0}
    path.write_text(json.dumps(stored))
    with pytest.raises(CalibrationError, match="the same batch sizes"):
        load_table(path, {}, unit="time", batch=2)
    with pytest.raises(CalibrationError, match="cannot be written"):
        save_table(path / "below", table())
