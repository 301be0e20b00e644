"""The verb: what it prints and what it refuses."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import calibration.saver_search
from calibration.records import load_record, save_record
from runtime.bundle import file_sha256
from runtime.schema import Score
from runtime.simulation import Simulation
from tests.calibration.search_world import Invoke, World, replace_card, search


def shown(invoke: Invoke, world: World, *options: object) -> Any:
    return json.loads(search(invoke, world, "--json", *options).stdout)


def change_logits(world: World, name: str, change: Callable[[np.ndarray], np.ndarray]) -> None:
    path = world.records / "selection" / f"{name}.npz"
    record = load_record(path)
    logits = change(record.logits).astype(np.float32)
    save_record(path, type(record)(logits, record.labels, record.meta))


def test_the_ranking_is_labelled_as_an_estimate(invoke: Invoke, world: World) -> None:
    world.record("selection")
    assert "Selection estimates, not certified" in search(invoke, world).stdout
    found = shown(invoke, world)
    assert found["label"] == "selection estimates, not certified"
    assert (found["unit"], found["large"]) == ("macs", {"name": "large", "cost": 1000.0})
    assert found["screened"] == 4 and found["pays"]
    assert {tuple(item["stages"]) for item in found["ranking"]} == {
        ("tiny", "large"), ("middle", "large"),
        ("tiny", "middle", "large"), ("middle", "tiny", "large"),
    }  # fmt: skip
    for item in found["ranking"]:
        assert item["forecast"]["macs_saved"] == pytest.approx(1 - item["cost"] / 1000)
        assert item["interval"][0] <= item["interval"][1]
    assert found["ranking"][0]["to_best"] == [1.0, 1.0]
    costs = [item["cost"] for item in found["ranking"]]
    assert costs == sorted(costs)


def test_numbers_shown_are_those_of_the_records(invoke: Invoke, world: World) -> None:
    folder = world.record("selection")
    item = shown(invoke, world, "--stages", "3")["ranking"][0]
    records = [load_record(folder / f"{name}.npz") for name in item["stages"]]
    assert item["combination"] is None
    scores = [Score(**score) for score in item["scores"]]
    simulation = Simulation([record.logits for record in records], records[0].labels, scores=scores)
    rates = simulation.escalation_rates(item["forecast"]["thresholds"])
    assert item["forecast"]["escalation_rates"] == list(rates)


def test_single_models_and_the_paper_stand_beside_the_ranking(invoke: Invoke, world: World) -> None:
    folder = world.record("selection")
    found = shown(invoke, world)
    records = {name: load_record(folder / f"{name}.npz") for name in ("tiny", "middle", "large")}
    for single in found["singles"]:
        record = records[single["name"]]
        assert single["accuracy"] == (record.logits.argmax(1) == record.labels).mean()
    assert [step["name"] for step in found["front"]] == ["tiny", "middle", "large"]
    assert {score["saver"] for score in found["paper"]} == {"tiny", "middle"}
    for score, ratio in ((score, {"tiny": 0.01, "middle": 0.1}) for score in found["paper"]):
        assert score["delta_c"] == pytest.approx(ratio[score["saver"]] - score["exit_ratio"])
    text = search(invoke, world).stdout
    assert "As the only saver we would take" in text and "delta C = s/B - r" in text


def test_a_fourth_stage_grows_from_the_best_of_three(invoke: Invoke, world: World) -> None:
    for suffix in ("onnx", "json"):
        shutil.copy(world.pool / f"middle.{suffix}", world.pool / f"other.{suffix}")
    card = json.loads((world.pool / "other.json").read_text())
    changed = {"name": "other", "file": "other.onnx", "macs": 200}
    (world.pool / "other.json").write_text(json.dumps({**card, **changed}))
    world.record("selection")
    found = shown(invoke, world, "--stages", "2,4", "--finalists", 3)
    lengths = [len(item["stages"]) for item in found["ranking"]]
    assert set(lengths) == {2, 4}
    assert len({tuple(item["stages"]) for item in found["ranking"]}) == len(lengths)


def test_finalists_of_each_length_are_forecast_and_the_others_follow(
    invoke: Invoke, world: World
) -> None:
    world.record("selection")
    found = shown(invoke, world, "--finalists", 1)
    forecast = [item["forecast"] is not None for item in found["ranking"]]
    assert forecast == [True, True, False, False]
    assert {len(item["stages"]) for item in found["ranking"][:2]} == {2, 3}
    assert "~ " in search(invoke, world, "--finalists", 1).stdout


def test_time_is_measured_once_and_kept(invoke: Invoke, world: World, tmp_path: Path) -> None:
    world.record("selection")
    costs = tmp_path / "costs.json"
    options = ("--cost", "time", "--batch", 2, "--costs", costs)
    first = shown(invoke, world, *options)
    assert first["unit"] == "seconds" and first["large"]["cost"] > 0
    stored = costs.read_bytes()
    assert shown(invoke, world, *options) == first
    assert costs.read_bytes() == stored
    result = search(invoke, world, "--cost", "time", "--costs", costs, code=1)
    assert "expected costs in time at batch 32" in result.stderr


def test_energy_without_a_sensor_is_refused_with_the_reason(
    invoke: Invoke, world: World, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from calibration.energy import open_meter

    monkeypatch.setattr("calibration.search.open_meter", lambda: open_meter(tmp_path))
    world.record("selection")
    assert "no power sensor" in search(invoke, world, "--cost", "joules", code=1).stderr


def test_another_device_needs_a_table_of_its_costs(invoke: Invoke, world: World) -> None:
    result = search(invoke, world, "--device", "cuda", code=2)
    assert "pass --costs FILE with what was measured there" in " ".join(result.stderr.split())


def test_no_saver_pays_is_an_answer(invoke: Invoke, world: World) -> None:
    world.record("selection")
    replace_card(world, "tiny", macs=990)
    replace_card(world, "middle", macs=995)
    target = world.root / "target"
    options = ("--write", target, "--data", world.data("selection"))
    assert "No saver pays here" in search(invoke, world, *options).stdout
    assert not shown(invoke, world)["pays"]
    assert not target.exists()


def test_a_saver_as_costly_as_the_large_model_is_left_out(invoke: Invoke, world: World) -> None:
    world.record("selection")
    replace_card(world, "middle", macs=1000)
    found = shown(invoke, world)
    assert found["left_out"] == {"middle": "alone it costs 100% of large"}
    assert [item["stages"] for item in found["ranking"]] == [["tiny", "large"]]
    assert {score["saver"] for score in found["paper"]} == {"tiny"}
    assert "Left out: middle: alone it costs 100% of large." in search(invoke, world).stdout


def test_a_constant_confidence_is_left_out(invoke: Invoke, world: World) -> None:
    world.record("selection")
    change_logits(world, "tiny", lambda z: np.tile(z[:1], (len(z), 1)))
    found = shown(invoke, world)
    assert "for every sample, so no gate can tell them apart" in found["left_out"]["tiny"]
    assert [item["stages"] for item in found["ranking"]] == [["middle", "large"]]


def test_a_saturated_confidence_is_left_out(invoke: Invoke, world: World) -> None:
    world.record("selection")
    change_logits(world, "tiny", lambda z: 1000 * z)
    found = shown(invoke, world)
    assert "give it a higher temperature" in found["left_out"]["tiny"]
    assert [item["stages"] for item in found["ranking"]] == [["middle", "large"]]


def test_all_savers_left_out_means_that_none_pays(invoke: Invoke, world: World) -> None:
    world.record("selection")
    for name in ("tiny", "middle"):
        change_logits(world, name, lambda z: 1000 * z)
    text = search(invoke, world).stdout
    assert "No saver pays here" in text and text.count("Left out") == 2


@pytest.mark.parametrize("split", ["certificate", "test"])
def test_held_out_records_choose_nothing(invoke: Invoke, world: World, split: str) -> None:
    world.data("certificate").rename(world.data(split))
    folder = world.record(split)
    result = search(invoke, world, "--records", folder, code=1)
    assert f"these are records of '{split}'" in result.stderr


def test_bad_requests_are_refused_before_the_search(invoke: Invoke, world: World) -> None:
    assert "Record it first" in search(invoke, world, code=1).stderr
    folder = world.record("selection")
    assert "no model 'huge'" in search(invoke, world, "--large", "huge", code=1).stderr
    for stages in ("1", "2,x", ""):
        result = search(invoke, world, "--stages", stages, code=1)
        assert "expected numbers from 2 up" in result.stderr
    assert "needs --data" in search(invoke, world, "--write", "x", code=2).stderr
    assert "needs --write" in search(invoke, world, "--certify-top", 2, code=2).stderr
    options = ("--write", world.root / "x", "--data", world.data("certificate"))
    assert "expected the data of the records" in search(invoke, world, *options, code=1).stderr
    (folder / "tiny.npz").write_bytes(b"garbage")
    assert "tiny.npz: not an npz file" in search(invoke, world, code=1).stderr


def test_a_pool_of_one_has_no_saver(invoke: Invoke, world: World) -> None:
    for name in ("tiny", "middle"):
        (world.pool / f"{name}.json").unlink()
    assert "a cascade needs a saver before it" in search(invoke, world, code=1).stderr


def test_a_candidate_with_other_classes_is_named(invoke: Invoke, world: World) -> None:
    world.record("selection")
    change_logits(world, "tiny", lambda z: z[:, :2])
    result = search(invoke, world, code=1)
    assert "knows 3 classes, tiny 2: no cascade can be made of both" in result.stderr


def test_records_of_other_data_or_models_are_refused(invoke: Invoke, world: World) -> None:
    folder = world.record("selection")
    path = folder / "middle.npz"
    record = load_record(path)
    meta = record.meta.model_copy(update={"data_sha256": "0" * 64})
    save_record(path, type(record)(record.logits, record.labels, meta))
    assert "are of different data" in search(invoke, world, code=1).stderr
    with (world.pool / "middle.onnx").open("ab") as stream:
        stream.write(b"\n")
    replace = json.loads((world.pool / "middle.json").read_text())
    replace["sha256"] = file_sha256(world.pool / "middle.onnx")
    (world.pool / "middle.json").write_text(json.dumps(replace))
    assert "of another model, form or preprocessing" in search(invoke, world, code=1).stderr


def test_a_label_that_is_no_class_is_refused(invoke: Invoke, world: World) -> None:
    folder = world.record("selection")
    for name in ("tiny", "middle", "large"):
        record = load_record(folder / f"{name}.npz")
        assert record.labels is not None
        labels = record.labels.copy()
        labels[3] = 3
        save_record(folder / f"{name}.npz", type(record)(record.logits, labels, record.meta))
    assert "expected labels from 0 to 2" in search(invoke, world, code=1).stderr


def test_too_few_samples_for_the_claim_are_told_how_many_it_takes(
    invoke: Invoke, world: World
) -> None:
    from calibration.bounds import smallest_passing_n

    world.record("selection")
    needed = smallest_passing_n(epsilon=0.02, delta=0.0125, method="wsr")
    result = search(invoke, world, "--certificate-size", needed - 1, code=1)
    assert f"even without any loss it takes {needed}" in result.stderr
    search(invoke, world, "--certificate-size", needed)


def test_what_cannot_pay_is_not_forecast(
    invoke: Invoke, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.record("selection")
    replace_card(world, "tiny", macs=990)
    replace_card(world, "middle", macs=995)

    monkeypatch.setattr(calibration.saver_search, "rank", None)
    search(invoke, world)
