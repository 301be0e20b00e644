"""The table of methods and their controls, on answers that are made up."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
from click.testing import CliRunner

from calibration.cost_table import CostTable, ModelCosts, save_table
from calibration.pool import Card, save_card
from calibration.records import Record, RecordMeta, record_path, save_record
from runtime.bundle import file_sha256
from runtime.schema import Preprocessing
from savers import methods, origins

pytestmark = pytest.mark.slow

# Share of wrong answers, MACs, seconds of a batch of 32, seconds of training.
MODELS = {
    "large": (0.05, 1000, 0.032, None),
    "twig": (0.12, 20, 0.001, None),
    "made": (0.10, 200, 0.004, 120.0),
    "dense": (0.09, 400, 0.008, None),
    "alone": (0.13, 200, 0.004, 121.0),
    "slow": (0.07, 900, 0.033, 60.0),
    "slow-alone": (0.07, 900, 0.033, 61.0),
}
MADE = (
    origins.Made("folding", "made", ("alone",), source="dense"),
    origins.Made("stretching", "slow", ("slow-alone",)),
)
PREPROCESSING = Preprocessing(size=(8, 8), colour="grey", mean=(0.5,), std=(0.25,))


def save_model(folder, name: str) -> Card:
    _, macs, _, seconds = MODELS[name]
    (folder / f"{name}.onnx").write_bytes(name.encode() * 100)
    card = Card(
        name=name,
        file=f"{name}.onnx",
        sha256=file_sha256(folder / f"{name}.onnx"),
        macs=macs,
        parameters=36,
        preprocessing=PREPROCESSING,
        seed=0,
        provenance="training.npz",
        accuracy_before=0.5 if name == "made" else None,
        training_seconds=seconds,
    )
    save_card(folder, card)
    return card


def save_answers(path, card: Card, split: str, *, seed: int) -> None:
    """Write logits that are sure where they are right and unsure where they are wrong."""
    labels = np.random.default_rng(seed).integers(0, 3, 2000).astype(np.int32)
    rng = np.random.default_rng([seed, list(MODELS).index(card.name)])
    wrong = rng.random(len(labels)) < MODELS[card.name][0]
    answers = (labels + wrong) % 3
    sure = np.where(wrong, 0.5, 4.0) + rng.random(len(labels))
    logits = (np.eye(3)[answers] * sure[:, None]).astype(np.float32)
    meta = RecordMeta(
        model=card.name,
        model_sha256=card.sha256,
        data=split,
        data_sha256=f"{seed:064x}",
        engine="made up",
        engine_version="1",
        form="fp32",
        preprocessing_sha256=PREPROCESSING.sha256,
    )
    path.mkdir(parents=True, exist_ok=True)
    save_record(record_path(path, card.name), Record(logits, labels, meta))


@pytest.fixture
def run(tmp_path, monkeypatch):
    pool = tmp_path / "models"
    pool.mkdir()
    cards = {name: save_model(pool, name) for name in MODELS}
    for seed, split in enumerate(("selection", "test")):
        for card in cards.values():
            save_answers(tmp_path / "records" / split, card, split, seed=seed)
    costs = {
        name: ModelCosts(sha256=card.sha256, by_size={1: MODELS[name][2] / 32, 32: MODELS[name][2]})
        for name, card in cards.items()
    }
    table = CostTable(unit="time", device="made up", batch=32, models=costs)
    save_table(tmp_path / "costs.json", table)
    monkeypatch.setattr(methods, "METHODS", MADE)
    monkeypatch.setattr(origins, "METHODS", MADE)

    def invoke(*arguments: str):
        places = ("--pool", pool, "--records", tmp_path / "records", "--costs")
        whole = [*map(str, (*places, tmp_path / "costs.json")), *arguments]
        return CliRunner().invoke(methods.main, [*whole, "--epsilon", "0.02"])

    return invoke


def test_a_model_stands_beside_what_it_was_made_from_and_its_controls(run):
    result = run("--json")
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["rows"]
    assert [(row["model"], row["role"]) for row in rows] == [
        ("made", "folding"),
        ("dense", "made from"),
        ("alone", "control"),
        ("slow", "stretching"),
        ("slow-alone", "control"),
    ]
    made, dense, alone = rows[:3]
    assert made["ahead"] is None and made["before"] == 0.5 and made["minutes"] == 2.0
    assert made["milliseconds"] == pytest.approx(0.125) and made["size"] == 400
    # Nine tenths right against 87 %, on 2,000 images: some 3 points, and surely more than none.
    ahead = alone["ahead"]
    assert ahead["value"] == pytest.approx(100 * (made["accuracy"] - alone["accuracy"]))
    assert 0 < ahead["low"] < ahead["value"] < ahead["high"] < 6
    assert dense["ahead"]["low"] < 0 and dense["minutes"] is None


def test_a_saver_costs_what_the_search_forecasts_and_none_where_it_does_not_pay(run):
    found = json.loads(run("--json").stdout)
    made, slow = found["rows"][0], found["rows"][3]
    # Its own eighth of the large model's time, and what it may not answer of its wrong tenth.
    assert 0.125 < made["as_saver"]["value"] < 0.125 + 0.1
    assert slow["as_saver"] is None
    assert found["best"] == {"independent": ["twig", "large"], "folding": ["made", "large"]}


def test_the_table_says_which_saver_is_the_cheapest_of_each_origin(run):
    result = run()
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert len({line.count("|") for line in lines if line.startswith("|")}) == 1
    assert lines[-3].startswith("- independent: twig at 0.") and lines[-3].endswith("the cheapest")
    assert re.match(
        r"- folding: made at 0\.\d+ of large alone, 1\.\d\d times the cheapest \(1\.\d\d to",
        lines[-2],
    )
    assert lines[-1] == "- stretching: no saver that pays"


def test_a_method_without_a_control_is_not_compared(run, tmp_path):
    (tmp_path / "models" / "alone.json").unlink()
    result = run()
    assert result.exit_code == 1
    assert "no model alone. A method is compared with all of its controls" in result.output
