"""A last stage that answers from its own logits and weighted ones of an earlier stage."""

from __future__ import annotations

import json

import numpy as np
import pytest
from click.testing import CliRunner

from kernels import reference
from runtime import bench
from runtime.bundle import load_bundle
from runtime.cascade import Cascade
from runtime.errors import BundleError
from runtime.host import HostExecutor
from runtime.simulation import Simulation
from tests.cuda import bundles

STAGES = "abc"
WEIGHTS = [0.3, 2.5]


def combine(folder, combination):
    """Put a combination into a bundle's cascade.json, or take it out."""
    path = folder / "cascade.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "combination": combination}))
    return folder


def judged(logits, added, weight):
    """Return label and confidence of the last stage's rows by the reference."""
    label, confidence = np.zeros(len(added), np.int32), np.zeros(len(added))
    rows = np.arange(len(added))
    reference.scatter(logits, rows, len(rows), label, confidence, other=added, weight=weight)
    return label, confidence


@pytest.mark.parametrize("weight", WEIGHTS)
@pytest.mark.parametrize("stage", STAGES)
def test_escalated_rows_are_answered_from_both_logits(stage, weight, tmp_path):
    """Rows are counted otherwise in each stage, so an offset of one would show."""
    folder = bundles.combined(tmp_path / "bundle", stage, weight)
    frames = bundles.random_frames(150, bundles.BGR["shape"])
    with Cascade.load(folder, "cpu", batch=64, threads=1) as cascade:
        found = cascade.run(frames)
        parts = [cascade.executor.stage_logits(frames[k : k + 50]) for k in (0, 50, 100)]
    logits = [np.concatenate(part) for part in zip(*parts, strict=True)]
    added = STAGES.index(stage)
    expected = Simulation(logits, combination=(added, weight)).answers(cascade.thresholds)
    np.testing.assert_array_equal(found.stage, expected.stage)
    np.testing.assert_array_equal(found.label, expected.label)
    last = found.stage == 3
    label, confidence = judged(logits[3], logits[added], weight)
    np.testing.assert_array_equal(found.label[last], label[last])
    np.testing.assert_allclose(found.confidence[last], confidence[last], rtol=1e-5)
    assert set(found.stage) == {0, 1, 2, 3}
    assert (label != logits[3].argmax(1))[last].any()


@pytest.mark.parametrize("rows", [0, 1, 7])
@pytest.mark.parametrize("thresholds", [(0.0,) * 3, (1.0,) * 3, (1.0, 0.0, 1.0)])
def test_none_some_or_all_rows_reach_the_last_stage(rows, thresholds, tmp_path):
    folder = bundles.combined(tmp_path / "bundle", "b", 1.5)
    frames = bundles.random_frames(rows, bundles.BGR["shape"])
    with Cascade.load(folder, "cpu", threads=1) as cascade:
        cascade.thresholds = thresholds
        found = cascade.run(frames)
        if rows == 0:
            assert len(found) == 0
            return
        logits = cascade.executor.stage_logits(frames)
    expected = Simulation(logits, combination=(1, 1.5)).answers(thresholds)
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_array_equal(found.stage, expected.stage)


def test_the_logits_of_each_stage_are_its_own(tmp_path):
    folder = bundles.combined(tmp_path / "bundle", "a", 4.0)
    frames = bundles.random_frames(40, bundles.BGR["shape"])
    found = []
    for content in ({"stage": "a", "weight": 4.0}, None):
        with Cascade.load(combine(folder, content), "cpu", threads=1) as cascade:
            found.append(cascade.executor.stage_logits(frames))
    np.testing.assert_array_equal(*found)


def test_a_sum_that_is_no_number_is_no_answer(make_bundle):
    """`nan` is NaN where the first pixel is 255, and so is the sum: no class is the largest."""
    folder = make_bundle("nan", "negated", combination={"stage": "nan", "weight": 0.5})
    frames = np.array([[255, 3, 1, 2], [9, 3, 1, 2], [1, 9, 9, 0]], np.uint8).reshape(3, 2, 2, 1)
    with Cascade.load(folder, "cpu", threads=1) as cascade:
        cascade.thresholds = (1.0,)
        found = cascade.run(frames)
        logits = cascade.executor.stage_logits(frames)
    label, confidence = judged(logits[1], logits[0], 0.5)
    np.testing.assert_array_equal(found.label, label)
    np.testing.assert_allclose(found.confidence, confidence, rtol=1e-6)
    assert (found.label[0], found.confidence[0]) == (0, 0.0)


def test_stages_of_other_numbers_of_classes_are_refused(make_bundle):
    folder = make_bundle("five", "echo", combination={"stage": "five", "weight": 1.0})
    with pytest.raises(BundleError, match=r"expected tensor\(float\) \[n, 4\].*got.*\[n, 5\]"):
        Cascade.load(folder, "cpu", threads=1)


@pytest.mark.parametrize("name", ["echo", "negated", "nobody"])
def test_only_an_earlier_stage_can_be_added(make_bundle, name):
    folder = make_bundle("echo", "negated", combination={"stage": name, "weight": 1.0})
    if name == "echo":
        assert load_bundle(folder).spec.weighted == (0, 1.0)
        return
    with pytest.raises(BundleError, match="is not one of the earlier stages"):
        load_bundle(folder)


def test_the_large_model_alone_is_without_it_and_the_drop_is_against_that(tmp_path):
    """All rows escalate, so what the bench finds is the difference that the combination makes."""
    folder = bundles.combined(tmp_path / "bundle", "a", 3.0)
    frames = bundles.random_frames(60, bundles.BGR["shape"])
    bundle = load_bundle(folder)
    executor = HostExecutor(bundle, ["fp32"] * 4, batch=60, threads=1)
    logits = executor.stage_logits(frames)
    truth = logits[3].argmax(1)
    np.savez(tmp_path / "data.npz", images=frames, labels=truth)
    arguments = ["--bundle", folder, "--data", tmp_path / "data.npz", "--iterations", 1]
    arguments += ["--batch", 16, "--warmup", 0, "--threads", 1, "--threshold", 1]
    out = tmp_path / "report.json"
    result = CliRunner().invoke(bench.main, [*map(str, arguments), "--json", str(out)])
    assert result.exit_code == 0, result.output
    report = json.loads(out.read_text())
    wrong = float((judged(logits[3], logits[0], 3.0)[0] != truth).mean())
    assert wrong > 0.1
    assert report["accuracy_drop"]["value"] == pytest.approx(wrong)
    assert report["cascade"]["accuracy"] == pytest.approx(1 - wrong)
