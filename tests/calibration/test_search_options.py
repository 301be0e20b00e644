"""What a search chooses beside savers: shown, switched off, and written into the bundle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from calibration.assembly import Caption, Parts, Rule, write_bundle
from calibration.chains import Chain
from calibration.options import Improved, OptionSearch
from calibration.pool import load_pool, save_card
from calibration.recorder import bundle_source, record_all
from calibration.records import load_data, load_record
from engines.errors import UnsupportedModel
from engines.score_head import MOST_DISTANCE, ScoreHead, with_score
from runtime.bundle import file_sha256, load_bundle
from runtime.cascade import Cascade
from runtime.schema import Combination, Score, Setting
from runtime.session import HostModel
from runtime.simulation import Simulation
from tests.calibration.conftest import CLASSES, SHAPE, save_model, weights
from tests.calibration.search_world import Invoke, World, replace_card, search

HEAD = ScoreHead((0.25, -0.5), (1.0, -2.0, 0.5), 0.125)


def mislead(world: World) -> None:
    """Let the cheapest model take much of class 0 for class 1, with confidence; no other pays."""
    card = load_pool(world.pool)["tiny"]
    matrix = weights()
    matrix[:, 1] += 0.9 * matrix[:, 0]
    save_model(world.pool / "tiny.onnx", matrix)
    sha256 = file_sha256(world.pool / "tiny.onnx")
    save_card(world.pool, card.model_copy(update={"sha256": sha256}))
    replace_card(world, "middle", macs=990)


def found(invoke: Invoke, world: World, *options: object) -> Any:
    return json.loads(search(invoke, world, "--json", "--stages", "2", *options).stdout)


def test_choices_are_shown_with_what_was_tried(invoke: Invoke, world: World) -> None:
    world.record("selection")
    shown = found(invoke, world)
    assert set(shown["scores"]) == {"tiny", "middle"}
    for choice in shown["scores"].values():
        assert choice["area"] <= choice["area_max_softmax"] and choice["tried"] > 10
    kinds = {(tuple(trial["stages"]), trial["kind"]) for trial in shown["options_tried"]}
    assert {("tiny", "large"), ("middle", "large")} == {stages for stages, _ in kinds}
    assert {"classes", "combination"} <= {kind for _, kind in kinds}
    text = " ".join(search(invoke, world).stdout.split())
    assert "Its gates read:" in text and "area under the curve of harm" in text
    assert "logits added to the large model's" in text


def test_options_can_be_switched_off(invoke: Invoke, world: World) -> None:
    world.record("selection")
    shown = found(
        invoke, world, "--no-scores", "--no-class-thresholds", "--no-combination"
    )  # fmt: skip
    assert shown["scores"] == {} and shown["options_tried"] == []
    for item in shown["ranking"]:
        assert item["scores"] == [{"name": "max_softmax", "temperature": 1.0}]
        assert item["class_strength"] == 0 and item["combination"] is None
    kinds = {trial["kind"] for trial in found(invoke, world, "--no-scores")["options_tried"]}
    assert kinds == {"classes", "combination"}


@pytest.mark.parametrize("weight", [1e-9, 1000.0], ids=["a tie", "worse"])
def test_the_plain_cascade_stays_where_its_forecast_is_not_beaten(
    invoke: Invoke, world: World, monkeypatch: pytest.MonkeyPatch, weight: float
) -> None:
    def improved(search: OptionSearch, names: Chain) -> Improved:
        plain = search.screen.best(names)
        added = Combination(stage=names[0], weight=weight)
        return Improved(plain._replace(options=plain.options._replace(combination=added)), [])

    monkeypatch.setattr(OptionSearch, "improved", improved)
    world.record("selection")
    assert {item["combination"] for item in found(invoke, world)["ranking"]} == {None}


def test_a_rule_is_written_and_the_bundle_answers_by_it(world: World) -> None:
    cards, data = load_pool(world.pool), load_data(world.data("selection"))
    scores = (Score(name="margin"), Score(temperature=2.0))
    rule = Rule(scores, combination=Combination(stage="middle", weight=0.5))
    names = ("tiny", "middle", "large")
    parts = Parts(world.pool, [cards[name] for name in names], data, CLASSES, rule)
    thresholds = ([0.9, 0.95, 0.8], 0.6)
    write_bundle(world.root / "target", parts, Setting(thresholds=thresholds), Caption())
    with Cascade.load(world.root / "target", threads=1) as cascade:
        results = cascade.run(world.images("selection"))
    folder = world.record("selection")
    logits = [load_record(folder / f"{name}.npz").logits for name in names]
    expected = Simulation(logits, scores=scores, combination=(1, 0.5)).answers(thresholds)
    # Rows within rounding of a threshold may be decided otherwise in float32.
    assert (results.stage != expected.stage).mean() < 2e-3
    assert (results.label != expected.label).mean() < 2e-3
    assert set(expected.stage) == {0, 1, 2}


def test_a_learned_gate_is_written_into_the_model_and_runs(invoke: Invoke, world: World) -> None:
    mislead(world)
    folder, data = world.record("selection"), world.data("selection")
    target = world.root / "target"
    options = ("--learned", "--no-scores", "--no-class-thresholds", "--no-combination")
    shown = found(invoke, world, *options, "--write", target, "--data", data)["ranking"][0]
    bundle = load_bundle(target)
    assert shown["stages"] == ["tiny", "large"]
    (gate,) = bundle.spec.gates
    assert (gate.score.name, gate.score.output) == ("learned", "score")
    assert bundle.spec.stages[0].forms["fp32"].file == "models/tiny.gate.onnx"
    source = bundle_source(bundle, ["fp32", "fp32"], threads=1)
    record, _ = (done.record for done in record_all([source], load_data(data), world.root / "new"))
    stored = load_record(folder / "tiny.npz")
    np.testing.assert_allclose(record.logits, stored.logits, rtol=1e-5, atol=1e-5)
    with Cascade.load(target, threads=1) as cascade:
        results = cascade.run(world.images("selection"))
    (threshold,) = shown["forecast"]["thresholds"]
    np.testing.assert_array_equal(results.stage == 0, record.score > np.float32(threshold))
    # The gate of all samples and those of the folds differ by what a fold teaches.
    (rate,) = shown["forecast"]["escalation_rates"]
    assert abs((results.stage == 1).mean() - rate) < 0.03


def test_a_learned_gate_is_recorded_to_be_certified(invoke: Invoke, world: World) -> None:
    mislead(world)
    world.record("selection")
    search(
        invoke, world, "--learned", "--no-scores", "--no-class-thresholds", "--no-combination",
        "--stages", "2", "--write", world.bundle, "--data", world.data("selection"),
        "--certify-top", 1, "--certify-records", world.record("certificate"),
        "--certify-data", world.data("certificate"),
    )  # fmt: skip
    with Cascade.load(world.bundle, threads=1, require_certificate=True) as cascade:
        assert cascade.certification.state == "certified"
        certificate = cascade.certification.certificate
    assert certificate is not None and certificate.scores[0].name == "learned"


def expected(logits: np.ndarray) -> np.ndarray:
    z = logits.astype(np.float64)
    falling = -np.sort(-z, axis=1)
    weight = np.exp(z - falling[:, :1])
    return HEAD.score(falling[:, :1] - falling[:, 1:], weight / weight.sum(1, keepdims=True))


@pytest.mark.parametrize("n", [1, 7])
def test_the_score_of_the_file_is_that_of_the_head(world: World, tmp_path: Path, n: int) -> None:
    path = tmp_path / "gated.onnx"
    path.write_bytes(with_score(world.pool / "tiny.onnx", "logits", HEAD))
    images = np.random.default_rng(3).normal(size=(n, 1, *SHAPE[:2])).astype(np.float32) * 3
    outputs = HostModel(path, threads=1).run({"input": images})
    plain = HostModel(world.pool / "tiny.onnx", threads=1).run({"input": images})
    np.testing.assert_array_equal(outputs["logits"], plain["logits"])
    assert outputs["score"].shape == (n,)
    np.testing.assert_allclose(outputs["score"], expected(plain["logits"]), atol=1e-6)


def test_a_far_logit_counts_as_no_farther_than_the_most(world: World, tmp_path: Path) -> None:
    save_model(tmp_path / "far.onnx", weights() * 1e4)
    path = tmp_path / "gated.onnx"
    head = ScoreHead((0.01, 0.0), (0.0, 0.0, 0.0), 0.0)
    path.write_bytes(with_score(tmp_path / "far.onnx", "logits", head))
    images = np.random.default_rng(4).normal(size=(5, 1, *SHAPE[:2])).astype(np.float32)
    score = HostModel(path, threads=1).run({"input": images})["score"]
    np.testing.assert_allclose(score, 1 / (1 + np.exp(-0.01 * MOST_DISTANCE)), rtol=1e-5)


def test_models_that_cannot_carry_a_gate_are_refused(world: World, tmp_path: Path) -> None:
    source, old = world.pool / "tiny.onnx", tmp_path / "old.onnx"
    with pytest.raises(UnsupportedModel, match="expected an output 'answers'"):
        with_score(source, "answers", HEAD)
    gated = tmp_path / "gated.onnx"
    gated.write_bytes(with_score(source, "logits", HEAD))
    with pytest.raises(UnsupportedModel, match="none called 'score'"):
        with_score(gated, "logits", HEAD)
    graph = helper.make_graph(
        [helper.make_node("Identity", ["input"], ["logits"])],
        "old",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["n", CLASSES])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["n", CLASSES])],
    )
    opset = [helper.make_opsetid("", 12)]
    onnx.save(helper.make_model(graph, opset_imports=opset, ir_version=7), old)
    with pytest.raises(UnsupportedModel, match="got opset 12"):
        with_score(old, "logits", HEAD)
