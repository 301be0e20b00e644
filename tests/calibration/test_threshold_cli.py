"""``python -m calibration.threshold``: what it certifies, what it pays, and what it refuses."""

from __future__ import annotations

import errno
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import Result

import calibration.recorded
import calibration.settings
from calibration.budget import Entry
from calibration.certificates import certify_cascade, forecast
from calibration.npz import write_npz
from calibration.provenance import ProvenanceMeta, save_provenance
from calibration.records import load_record
from calibration.threshold import main
from runtime.bundle import load_bundle, save_spec
from runtime.certification import certification
from runtime.schema import CascadeSpec, Setting
from runtime.simulation import Simulation

Invoke = Callable[..., Result]
World = Any
EPSILON = 0.02


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
    return load_bundle(world.bundle).spec.settings["fp32/fp32"]


def change_spec(world: World, **changes: object) -> CascadeSpec:
    spec = load_bundle(world.bundle).spec.model_copy(update=changes)
    save_spec(world.bundle, spec)
    return spec


def change_setting(world: World, **changes: object) -> None:
    change_spec(world, settings={"fp32/fp32": setting(world).model_copy(update=changes)})


def logits(folder: Path) -> tuple[list[np.ndarray], np.ndarray]:
    records = [load_record(folder / f"{name}.npz") for name in ("tiny", "large")]
    assert records[0].labels is not None
    return [record.logits for record in records], records[0].labels


def change_logits(path: Path, rows: slice, value: float) -> None:
    with np.load(path) as stored:
        arrays = {name: stored[name].copy() for name in stored.files}
    arrays["logits"][rows] = value
    write_npz(path, arrays)


def entries(path: Path) -> list[Entry]:
    return [Entry.model_validate_json(line) for line in path.read_text().splitlines()]


def test_thresholds_and_certificate_are_written(invoke: Invoke, ready: World) -> None:
    path = setting(ready).path
    assert path is not None
    result = certify(invoke, ready, "--json")
    shown = json.loads(result.stdout)["certificate"]
    written = setting(ready)
    assert written.certificate is not None
    assert written.certificate.model_dump(mode="json") == shown
    stage_logits, labels = logits(ready.records / "certificate")
    expected = certify_cascade(stage_logits, labels, path, epsilon=EPSILON, delta=0.0125)
    assert written.certificate.model_copy(update={"covers": None, "saving": None}) == expected
    assert written.thresholds == expected.thresholds != (0.9,)
    assert expected.passed > 100


def test_the_runtime_recognises_what_was_certified(invoke: Invoke, ready: World) -> None:
    result = certify(invoke, ready)
    spec = load_bundle(ready.bundle).spec
    thresholds = spec.settings["fp32/fp32"].thresholds
    state = certification(spec, ("fp32", "fp32"), engine="onnxruntime", thresholds=thresholds)
    assert state.state == "certified"
    assert "accuracy drop <= 2 points with 98.75 % confidence, from 2,500" in result.stdout


def test_the_certificate_says_what_it_covers(invoke: Invoke, ready: World) -> None:
    certify(invoke, ready)
    certificate = setting(ready).certificate
    assert certificate is not None and certificate.covers is not None
    spec = load_bundle(ready.bundle).spec
    meta = load_record(ready.records / "certificate" / "tiny.npz").meta
    assert certificate.covers.data_sha256 == meta.data_sha256
    assert certificate.covers.provenance == "checked"
    for covered, stage in zip(certificate.covers.stages, spec.stages, strict=True):
        assert covered.name == stage.name
        assert covered.model_sha256 == stage.forms["fp32"].sha256
        assert covered.preprocessing_sha256 == stage.preprocessing.sha256
        assert (covered.engine, covered.form) == ("onnxruntime", "fp32")


def test_without_labels_the_disagreement_is_certified(invoke: Invoke, ready: World) -> None:
    certify(invoke, ready, "--label-free")
    certificate = setting(ready).certificate
    assert certificate is not None
    assert (certificate.quantity, certificate.help) == ("disagreement", 0)


def test_labels_cannot_be_asked_of_records_without(invoke: Invoke, ready: World) -> None:
    for name in ("tiny", "large"):
        path = ready.records / "certificate" / f"{name}.npz"
        with np.load(path) as stored:
            write_npz(path, {key: stored[key] for key in ("logits", "meta")})
    assert "no labels" in certify(invoke, ready, "--labels", code=1).stderr


def test_a_certification_is_paid_for_once(invoke: Invoke, ready: World) -> None:
    budget = ready.bundle / "certifications.jsonl"
    budget.touch()
    shown = json.loads(certify(invoke, ready, "--json").stdout)
    assert shown["budget"] == {"spent": 0.0125, "total": 0.05}
    intent, settled = entries(budget)
    assert intent.result is None
    assert settled.result is not None and settled.result.certificate == setting(ready).certificate
    again = json.loads(certify(invoke, ready, "--json").stdout)
    assert again == shown
    assert len(entries(budget)) == 2


def test_the_stored_result_is_given_without_another_look(
    invoke: Invoke, ready: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    certify(invoke, ready, "--budget", ready.root / "budget.jsonl")
    certificate = setting(ready).certificate
    change_setting(ready, certificate=None)
    monkeypatch.setattr(calibration.recorded, "certify_cascade", None)
    certify(invoke, ready, "--budget", ready.root / "budget.jsonl")
    assert setting(ready).certificate == certificate


def test_a_crash_while_certifying_was_paid_for(
    invoke: Invoke, ready: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = ready.root / "budget.jsonl"

    def crash(*_: object, **__: object) -> None:
        assert [entry.result for entry in entries(budget)] == [None]
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(calibration.recorded, "certify_cascade", crash)
        certify(invoke, ready, "--budget", budget, code=1)
    assert len(entries(budget)) == 1
    certify(invoke, ready, "--budget", budget)
    assert len(entries(budget)) == 2


def test_a_spent_budget_refuses_and_changes_nothing(invoke: Invoke, ready: World) -> None:
    (ready.bundle / "certifications.jsonl").touch()
    for epsilon in (0.021, 0.022, 0.023, 0.024):
        certify(invoke, ready, "--epsilon", epsilon)
    before = (ready.bundle / "cascade.json").read_bytes()
    result = certify(invoke, ready, "--epsilon", 0.025, code=1)
    assert "budget of these data is spent: 0.05 of 0.05" in result.stderr
    assert (ready.bundle / "cascade.json").read_bytes() == before


def test_a_refused_certification_is_paid_for(invoke: Invoke, ready: World) -> None:
    budget, cascade = ready.root / "budget.jsonl", ready.bundle / "cascade.json"
    spec = json.loads(cascade.read_text())
    spec["settings"]["fp32/fp32"]["path"] = {"explicit": [[0.0]]}
    cascade.write_text(json.dumps(spec))
    before = cascade.read_bytes()
    for _ in range(2):
        result = certify(invoke, ready, "--epsilon", 1e-3, "--budget", budget, code=1)
        assert "refused" in result.stderr and "smallest n" in result.stderr
    assert cascade.read_bytes() == before
    assert [entry.delta for entry in entries(budget)] == [0.0125, 0.0125]


def test_too_few_samples_are_refused_without_a_look(invoke: Invoke, ready: World) -> None:
    budget = ready.root / "budget.jsonl"
    result = certify(invoke, ready, "--epsilon", 1e-4, "--budget", budget, code=1)
    assert "refused" in result.stderr and "smallest n that passes is" in result.stderr
    assert not budget.exists()


def test_an_unreadable_budget_is_refused(invoke: Invoke, ready: World) -> None:
    (ready.bundle / "certifications.jsonl").write_text("not a budget\n")
    assert "line 1 of" in certify(invoke, ready, code=1).stderr
    assert setting(ready).certificate is None


def test_a_full_disk_after_certifying_loses_nothing(
    invoke: Invoke, ready: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    budget = ready.root / "budget.jsonl"

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(calibration.settings, "save_spec", full)
        result = certify(invoke, ready, "--budget", budget, code=1)
    assert "cascade.json: cannot be written (No space left on device)" in result.stderr
    certify(invoke, ready, "--budget", budget)
    assert len(entries(budget)) == 2
    assert setting(ready).certificate is not None


@pytest.mark.parametrize("option", [(), ("--allow-unknown-provenance",)])
def test_an_overlap_is_refused_before_it_is_paid_for(
    invoke: Invoke, ready: World, option: tuple[str, ...]
) -> None:
    used = np.concatenate([ready.images("certificate")[[5, 9, 11]], ready.images("selection")])
    entry = save_provenance(ready.bundle / "more.npz", used, ProvenanceMeta(purpose="selection"))
    change_spec(ready, provenance=(*load_bundle(ready.bundle).spec.provenance, entry))
    budget = ready.root / "budget.jsonl"
    result = certify(invoke, ready, "--budget", budget, *option, code=1)
    assert "3 of 2500 for selection" in result.stderr and "more.npz" in result.stderr
    assert not budget.exists()


def test_selection_records_cannot_certify(invoke: Invoke, ready: World) -> None:
    ready.record("selection")
    result = invoke(
        main, ready.bundle, "--records", ready.records / "selection",
        "--data", ready.data("selection"), "--epsilon", EPSILON, code=1,
    )  # fmt: skip
    assert "1500 of 1500 for selection" in result.stderr


def test_missing_provenance_is_refused_or_said(invoke: Invoke, ready: World) -> None:
    change_spec(ready, provenance=())
    assert "no provenance for selection, training" in certify(invoke, ready, code=1).stderr
    certify(invoke, ready, "--allow-unknown-provenance")
    certificate = setting(ready).certificate
    assert certificate is not None and certificate.covers is not None
    assert certificate.covers.provenance == "unchecked"


def test_data_must_be_what_was_recorded(invoke: Invoke, ready: World) -> None:
    result = certify(invoke, ready, "--data", ready.data("selection"), code=1)
    assert "the records are of other data" in result.stderr
    result = invoke(main, ready.bundle, "--records", ready.records / "certificate", code=2)
    assert "pass --data" in result.stderr


@pytest.mark.parametrize("field", ["model_sha256", "preprocessing_sha256"])
def test_records_of_another_model_are_refused(invoke: Invoke, ready: World, field: str) -> None:
    path = ready.records / "certificate" / "tiny.npz"
    with np.load(path) as stored:
        arrays = {name: stored[name] for name in stored.files}
    meta = json.loads(str(arrays["meta"])) | {field: "0" * 64}
    write_npz(path, arrays | {"meta": np.array(json.dumps(meta))})
    assert "of another model, form or preprocessing" in certify(invoke, ready, code=1).stderr


def test_records_of_different_data_are_refused(invoke: Invoke, ready: World) -> None:
    folder = ready.record("selection")
    (ready.records / "certificate" / "tiny.npz").write_bytes((folder / "tiny.npz").read_bytes())
    assert "are of different data" in certify(invoke, ready, code=1).stderr


def test_a_missing_record_says_how_to_make_it(invoke: Invoke, ready: World) -> None:
    (ready.records / "certificate" / "large.npz").unlink()
    assert "python -m calibration.record" in certify(invoke, ready, code=1).stderr


def test_a_bundle_without_a_path_is_refused(invoke: Invoke, ready: World) -> None:
    change_setting(ready, path=None)
    assert "no path to walk" in certify(invoke, ready, code=1).stderr


def test_a_path_of_another_width_is_refused_before_it_is_paid_for(
    invoke: Invoke, ready: World
) -> None:
    path = setting(ready).path
    assert path is not None
    change_setting(ready, path=path.model_copy(update={"offsets": (0.0, 1.0)}))
    budget = ready.root / "budget.jsonl"
    result = certify(invoke, ready, "--budget", budget, code=1)
    assert "2 thresholds per point, expected 1" in result.stderr
    assert not budget.exists()


def test_a_forecast_reads_selection_and_costs_nothing(invoke: Invoke, ready: World) -> None:
    folder = ready.record("selection")
    budget = ready.bundle / "certifications.jsonl"
    budget.touch()
    before = (ready.bundle / "cascade.json").read_bytes()
    options = ("--epsilon", EPSILON, "--size", 2500, "--draws", 5, "--forecast", "--json")
    result = invoke(main, ready.bundle, "--records", folder, *options)
    stage_logits, labels = logits(folder)
    path = setting(ready).path
    assert path is not None
    expected = forecast(stage_logits, labels, path, n=2500, epsilon=EPSILON, delta=0.0125, draws=5)
    shown = json.loads(result.stdout)
    assert shown == json.loads(json.dumps(expected._asdict()))
    assert "not certified" in shown["label"]
    assert budget.read_bytes() == b""
    assert (ready.bundle / "cascade.json").read_bytes() == before


def test_a_forecast_refuses_the_certificate_split(invoke: Invoke, ready: World) -> None:
    result = invoke(
        main, ready.bundle, "--records", ready.records / "certificate", "--forecast", code=1
    )
    assert "these are records of 'certificate'" in result.stderr


def test_recheck_counts_changed_decisions(invoke: Invoke, ready: World) -> None:
    folder = ready.records / "certificate"
    other = ready.root / "other"
    other.mkdir()
    for name in ("tiny", "large"):
        (other / f"{name}.npz").write_bytes((folder / f"{name}.npz").read_bytes())
    options = (ready.bundle, "--records", folder, "--recheck", other, "--json")
    same = json.loads(invoke(main, *options).stdout)
    assert same == {"n": 2500, "gates": [0.0], "stage": 0.0, "label": 0.0}
    # Equal logits are never sure enough, so these rows now escalate.
    change_logits(other / "tiny.npz", slice(0, 250), 0.0)
    changed = json.loads(invoke(main, *options).stdout)
    stage_logits, _ = logits(folder)
    before = Simulation(stage_logits).answers([0.9])
    assert changed["gates"] == [changed["stage"]] == [(before.stage[:250] == 0).sum() / 2500]
    labels = Simulation(stage_logits).answers([1.0]).label
    assert changed["label"] == (before.label[:250] != labels[:250]).sum() / 2500
    assert "gate after tiny" in invoke(main, *options[:-1]).stdout


def test_recheck_needs_the_same_data(invoke: Invoke, ready: World) -> None:
    other = ready.record("selection")
    result = invoke(
        main, ready.bundle, "--records", ready.records / "certificate", "--recheck", other, code=1
    )
    assert "records of the same data" in result.stderr


def test_a_truncated_record_is_an_error(invoke: Invoke, ready: World) -> None:
    path = ready.records / "certificate" / "large.npz"
    path.write_bytes(path.read_bytes()[:200])
    assert "large.npz: not an npz file" in certify(invoke, ready, code=1).stderr


@pytest.mark.parametrize(("value", "code"), [("0", 2), ("1", 2), ("-0.1", 2), ("nan", 1)])
def test_a_claim_outside_its_range_is_refused_before_it_is_paid_for(
    invoke: Invoke, ready: World, value: str, code: int
) -> None:
    budget = ready.root / "budget.jsonl"
    for option in ("--epsilon", "--delta"):
        certify(invoke, ready, option, value, "--budget", budget, code=code)
    assert not budget.exists()
