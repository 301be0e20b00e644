"""``python -m calibration.threshold`` on bundles with gears, class thresholds, learned gates and
combinations.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import calibration.recorded
from calibration.budget import Entry
from calibration.certificates import certify_cascade, forecast
from calibration.gears import gears
from calibration.records import load_record, save_record
from calibration.saving import bounded_saving
from calibration.threshold import main
from kernels import reference
from runtime.bundle import load_bundle, save_spec
from runtime.certification import certification
from runtime.schema import Combination, Gate, Score, Setting, ThresholdPath
from runtime.simulation import Simulation

Invoke = Callable[..., Result]
World = Any
EPSILON = 0.02
CLAIM: dict[str, Any] = {"epsilon": EPSILON, "delta": 0.0125}
KEY = "fp32/fp32"
BY_CLASS = ThresholdPath(class_offsets=((0.0, -0.5, 0.25),))


@pytest.fixture
def ready(world: World) -> World:
    world.make_bundle("tiny", "large")
    world.record("certificate")
    return world


def certify(invoke: Invoke, world: World, *options: object, code: int = 0) -> Result:
    return invoke(
        main, world.bundle, "--records", world.records / "certificate",
        "--data", world.data("certificate"), "--epsilon", EPSILON, *options, code=code,
    )  # fmt: skip


def setting(world: World) -> Setting:
    return load_bundle(world.bundle).spec.settings[KEY]


def change(world: World, *, path: ThresholdPath | None = None, **changes: object) -> None:
    spec = load_bundle(world.bundle).spec
    settings = {KEY: spec.settings[KEY].model_copy(update={"path": path} if path else {})}
    save_spec(world.bundle, spec.model_copy(update={"settings": settings, **changes}))


def learned(world: World, *splits: str) -> None:
    """Give the saver a learned gate, whose score the records hold: its entropy."""
    score = Score(name="learned", output="score")
    change(world, gates=(Gate(score=score),))
    for split in splits:
        path = world.records / split / "tiny.npz"
        record = load_record(path)
        entropy = reference.score(record.logits, "entropy").astype(np.float32)
        save_record(path, dataclasses.replace(record, score=entropy))


def logits(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    records = [load_record(folder / f"{name}.npz") for name in ("tiny", "large")]
    assert records[0].labels is not None
    return [record.logits for record in records], records[0].labels


def state(world: World) -> str:
    spec = load_bundle(world.bundle).spec
    found = spec.settings[KEY].thresholds
    return certification(spec, ("fp32",) * 2, engine="onnxruntime", thresholds=found).state


def test_gears_and_a_saving_come_with_a_certificate(invoke: Invoke, ready: World) -> None:
    shown = json.loads(certify(invoke, ready, "--json").stdout)
    written = setting(ready)
    assert written.certificate is not None
    assert written.gears == gears(written.certificate) and len(written.gears) == 4
    assert shown["gears"] == json.loads(json.dumps(written.gears))
    assert written.certificate.saving == bounded_saving(written.certificate, [10, 1000])
    assert shown["certificate"]["saving"]["delta"] == 0.05
    text = certify(invoke, ready).stdout
    assert "MACs saved at least" in text and "95% confidence" in text and "gears above" in text


def test_each_gear_is_certified_as_it_is(invoke: Invoke, ready: World) -> None:
    certify(invoke, ready)
    spec = load_bundle(ready.bundle).spec
    for gear in spec.settings[KEY].gears:
        found = certification(spec, ("fp32",) * 2, engine="onnxruntime", thresholds=gear)
        assert found.state == "certified"


def test_gears_are_spaced_by_what_selection_records_send_on(invoke: Invoke, ready: World) -> None:
    folder = ready.record("selection")
    certify(invoke, ready, "--selection", folder)
    written = setting(ready)
    assert written.certificate is not None
    stage_logits, labels = logits(folder)
    assert written.gears == gears(written.certificate, Simulation(stage_logits, labels))
    assert written.gears != gears(written.certificate)


def test_certificate_records_may_not_space_gears(invoke: Invoke, ready: World) -> None:
    before = (ready.bundle / "cascade.json").read_bytes()
    result = certify(invoke, ready, "--selection", ready.records / "certificate", code=1)
    assert "must not choose anything" in result.stderr
    assert (ready.bundle / "cascade.json").read_bytes() == before


def test_a_certificate_of_before_gets_its_gears_without_a_look(
    invoke: Invoke, ready: World
) -> None:
    """No record is there any more, and nothing else in the bundle changes."""
    certify(invoke, ready)
    whole = load_bundle(ready.bundle).spec
    certificate = setting(ready).certificate
    assert certificate is not None
    bare = certificate.model_copy(update={"saving": None})
    former = setting(ready).model_copy(update={"certificate": bare, "gears": ()})
    save_spec(ready.bundle, whole.model_copy(update={"settings": {KEY: former}}))
    for path in ready.records.rglob("*.npz"):
        path.unlink()
    assert "certified points" in invoke(main, ready.bundle, "--gears").stdout
    assert load_bundle(ready.bundle).spec == whole
    shown = json.loads(invoke(main, ready.bundle, "--gears", "--json").stdout)
    assert shown[KEY]["gears"] == json.loads(json.dumps(whole.settings[KEY].gears))


def test_gears_need_a_certificate_and_take_no_records(invoke: Invoke, ready: World) -> None:
    assert "no certificate for fp32/fp32" in invoke(main, ready.bundle, "--gears", code=1).stderr
    options = ("--gears", "--records", ready.records / "certificate")
    assert "--selection DIR" in invoke(main, ready.bundle, *options, code=2).stderr
    assert "Pass --records DIR" in invoke(main, ready.bundle, "--forecast", code=2).stderr


def test_a_stored_certificate_of_before_is_free_and_gets_both(
    invoke: Invoke, ready: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = ready.root / "budget.jsonl"
    certify(invoke, ready, "--budget", budget)
    first = setting(ready)
    intent, settled = (json.loads(line) for line in budget.read_text().splitlines())
    del settled["result"]["certificate"]["saving"], settled["result"]["certificate"]["combination"]
    budget.write_text("".join(json.dumps(entry) + "\n" for entry in (intent, settled)))
    monkeypatch.setattr(calibration.recorded, "certify_cascade", None)
    change(ready)
    certify(invoke, ready, "--budget", budget)
    assert setting(ready) == first and first.gears
    assert len(budget.read_text().splitlines()) == 2


def test_thresholds_by_class_are_certified_and_forecast(invoke: Invoke, ready: World) -> None:
    change(ready, path=BY_CLASS)
    certify(invoke, ready)
    written = setting(ready)
    stage_logits, labels = logits(ready.records / "certificate")
    expected = certify_cascade(stage_logits, labels, BY_CLASS, **CLAIM)
    assert written.thresholds == expected.thresholds and len(expected.thresholds[0]) == 3
    assert state(ready) == "certified" and len(written.gears) == 4
    folder = ready.record("selection")
    options = ("--records", folder, "--forecast", "--draws", 3, "--size", 2500)
    shown = json.loads(invoke(main, ready.bundle, *options, "--epsilon", EPSILON, "--json").stdout)
    stage_logits, labels = logits(folder)
    found = forecast(stage_logits, labels, BY_CLASS, n=2500, draws=3, **CLAIM)
    assert shown["thresholds"] == json.loads(json.dumps(found.thresholds))
    assert "by class" in invoke(main, ready.bundle, *options, "--epsilon", EPSILON).stdout


def test_a_class_path_of_other_classes_is_refused(invoke: Invoke, ready: World) -> None:
    change(ready, path=ThresholdPath(class_offsets=((0.0,) * 4,)))
    assert "class_offsets of 4 classes, needs 3" in certify(invoke, ready, code=1).stderr


def test_a_recheck_counts_decisions_by_class(invoke: Invoke, ready: World) -> None:
    change(ready, path=BY_CLASS)
    certify(invoke, ready)
    (thresholds,) = setting(ready).thresholds
    folder, other = ready.records / "certificate", ready.root / "other"
    record = load_record(folder / "tiny.npz")
    noise = np.random.default_rng(0).normal(size=record.logits.shape).astype(np.float32)
    save_record(other / "tiny.npz", dataclasses.replace(record, logits=record.logits + noise))
    (other / "large.npz").write_bytes((folder / "large.npz").read_bytes())
    options = ("--records", folder, "--recheck", other, "--json")
    shown = json.loads(invoke(main, ready.bundle, *options).stdout)
    kept = []
    for z in (record.logits, record.logits + noise):
        escalated = np.zeros(len(z), bool)
        escalated[reference.gate(z, np.array(thresholds)).rows] = True
        kept.append(escalated)
    assert shown["gates"] == [shown["stage"]] == [(kept[0] != kept[1]).mean()]
    assert shown["stage"] > 0.05


def test_a_combination_is_certified_under_its_stages_name(invoke: Invoke, ready: World) -> None:
    change(ready, combination=Combination(stage="tiny", weight=0.05))
    budget = ready.root / "budget.jsonl"
    certify(invoke, ready, "--budget", budget)
    certificate = setting(ready).certificate
    assert certificate is not None
    assert certificate.combination == Combination(stage="tiny", weight=0.05)
    stage_logits, labels = logits(ready.records / "certificate")
    expected = certify_cascade(
        stage_logits, labels, ThresholdPath(), **CLAIM, combination=(0, 0.05)
    )
    assert (certificate.passed, certificate.harm) == (expected.passed, expected.harm)
    assert state(ready) == "certified"
    entries = [Entry.model_validate_json(line) for line in budget.read_text().splitlines()]
    assert entries[1].result is not None and entries[1].result.certificate == certificate
    change(ready, combination=None)
    assert state(ready) == "not certified"
    certify(invoke, ready, "--budget", budget)
    assert len(budget.read_text().splitlines()) == 4


def test_a_combination_that_loses_at_the_first_point_is_refused(
    invoke: Invoke, ready: World
) -> None:
    change(ready, combination=Combination(stage="tiny", weight=50.0))
    result = certify(invoke, ready, code=1)
    assert "the first point of the path does not pass wsr" in result.stderr
    assert setting(ready).certificate is None


@pytest.mark.parametrize("stage", ["large", "huge"])
def test_a_combination_with_the_last_or_an_unknown_stage_is_refused(
    invoke: Invoke, ready: World, stage: str
) -> None:
    change(ready, combination=Combination(stage=stage, weight=1.0))
    message = certify(invoke, ready, code=1).stderr
    assert f"stage '{stage}' is not one of the earlier stages ['tiny']" in message


def test_a_learned_gate_is_certified_from_the_scores_of_the_records(
    invoke: Invoke, ready: World
) -> None:
    folder = ready.record("selection")
    learned(ready, "certificate", "selection")
    certify(invoke, ready, "--selection", folder)
    certificate = setting(ready).certificate
    assert certificate is not None and certificate.scores[0].name == "learned"
    stage_logits, labels = logits(ready.records / "certificate")
    entropy = [Score(name="entropy")]
    expected = certify_cascade(stage_logits, labels, ThresholdPath(), **CLAIM, scores=entropy)
    assert certificate.passed == expected.passed > 0
    options = ("--records", folder, "--epsilon", EPSILON, "--draws", 2, "--size", 2500)
    assert "not certified" in invoke(main, ready.bundle, *options, "--forecast").stdout
    certified = ready.records / "certificate"
    recheck = invoke(main, ready.bundle, "--records", certified, "--recheck", certified, "--json")
    assert json.loads(recheck.stdout)["gates"] == [0.0]


def test_records_without_the_score_of_a_learned_gate_are_refused(
    invoke: Invoke, ready: World
) -> None:
    learned(ready)
    message = certify(invoke, ready, code=1).stderr
    assert "record of tiny lacks the score" in message and "calibration.record" in message


def test_a_score_outside_the_unit_interval_is_refused_before_it_is_paid_for(
    invoke: Invoke, ready: World
) -> None:
    learned(ready, "certificate")
    path = ready.records / "certificate" / "tiny.npz"
    record = load_record(path)
    save_record(path, dataclasses.replace(record, score=np.full(2500, 1.5, np.float32)))
    budget = ready.root / "budget.jsonl"
    message = certify(invoke, ready, "--budget", budget, code=1).stderr
    assert "in [0, 1] for gate 0" in message and not budget.exists()


def test_labels_outside_the_classes_are_refused_before_they_are_paid_for(
    invoke: Invoke, ready: World
) -> None:
    for name in ("tiny", "large"):
        path = ready.records / "certificate" / f"{name}.npz"
        record = load_record(path)
        assert record.labels is not None
        save_record(path, dataclasses.replace(record, labels=record.labels + 1))
    budget = ready.root / "budget.jsonl"
    message = certify(invoke, ready, "--budget", budget, code=1).stderr
    assert "expected labels from 0 to 2" in message and "got 3" in message and not budget.exists()
