"""Logits of an earlier stage added to the last one's, in all launch modes on the doubles."""

from __future__ import annotations

import json

import numpy as np
import pytest

from kernels import reference
from runtime import Cascade, selfcheck
from runtime.bench_stages import stages_of
from runtime.devices import GpuOptions
from runtime.errors import DeviceError, PlanError
from runtime.gpu_stage import StageWork
from tests.cuda import bundles
from tests.cuda.agreement import check_equal
from tests.cuda_double.plans import write_plans

MODES = ("host", "padded", "graph")
STAGES = "abc"
BATCH = 16
BUCKETS = {"a": (16,), "b": (16,), "c": (7,), "d": (2, 5)}  # c and d run in rounds
THRESHOLDS = [(0.0,) * 3, (1.0, 0.0, 1.0), (1.0,) * 3]  # answered by the first, second, last


def load(folder, mode, *, batch=BATCH, verify=False):
    options = GpuOptions(mode=mode, verify=verify)
    return Cascade.load(folder, "cuda", batch=batch, gpu=options)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("stage", STAGES)
def test_escalated_rows_are_answered_as_by_the_cpu(stage, mode, gpu, tmp_path):
    gpu(seed=1)
    folder = bundles.combined(tmp_path / "bundle", stage, 1.7)
    write_plans(folder, BUCKETS)
    frames = bundles.random_frames(50, bundles.BGR["shape"])
    found = []
    for device in ("cpu", "cuda"):
        options = GpuOptions(mode=mode, verify=False)
        with Cascade.load(folder, device, batch=BATCH, gpu=options) as cascade:
            usual, results = cascade.thresholds, [cascade.run(frames)]
            for thresholds in THRESHOLDS:
                cascade.thresholds = thresholds
                results.append(cascade.run(frames[:9]))
            found.append(results)
    for here, expected, thresholds in zip(*found, [usual, *THRESHOLDS], strict=True):
        check_equal(here, expected, thresholds, band=1e-4)
    assert set(found[0][0].stage) == {0, 1, 2, 3}


def test_fp16_logits_are_added_in_float32(gpu, tmp_path):
    gpu()
    folder = bundles.combined(tmp_path / "bundle", "b", 0.9, dtype=np.float16)
    write_plans(folder, BUCKETS)
    frames = bundles.random_frames(BATCH, bundles.BGR["shape"])
    with load(folder, "graph") as cascade:
        cascade.thresholds = (1.0,) * 3
        logits = cascade.executor.stage_logits(frames)
        found = cascade.run(frames)
    expected = reference.softmax(logits[3].astype(np.float64) + 0.9 * logits[1])
    np.testing.assert_array_equal(found.label, expected.label)
    np.testing.assert_allclose(found.confidence, expected.confidence, rtol=1e-5)


def test_logits_of_two_types_are_refused(gpu, tmp_path):
    gpu()
    folder = bundles.combined(tmp_path / "bundle", "a", 1.0)
    other = bundles.Part("a", (7, 9), "letterbox", "grey", dtype=np.float16)
    content = json.loads((folder / "cascade.json").read_text())
    content["stages"][0] = bundles.write_stage(folder, 0, other)
    content["stages"][2]["inputs"] = content["stages"][2]["inputs"][:1]
    third = bundles.Part("c", (5, 6))
    content["stages"][2] = bundles.write_stage(folder, 2, third)
    (folder / "cascade.json").write_text(json.dumps(content))
    write_plans(folder, BUCKETS)
    with pytest.raises(PlanError, match=r"a\.fp32: its logits are added .* expected float32"):
        load(folder, "host")


def test_a_graph_reads_the_weight_anew(gpu, tmp_path):
    """It lies in the device's memory, so other weights need no other graph."""
    gpu()
    folder = bundles.combined(tmp_path / "bundle", "c", 1.0)
    write_plans(folder, BUCKETS)
    frames = bundles.random_frames(BATCH, bundles.BGR["shape"])
    with load(folder, "graph") as cascade:
        cascade.thresholds = (1.0,) * 3
        logits = cascade.executor.stage_logits(frames)
        labels = []
        for weight in (0.0, 5.0):
            for slot in cascade.executor._slots:
                slot._incoming.host["weight"][:] = weight
            labels.append(cascade.run(frames).label)
            total = logits[3] + weight * logits[2]
            np.testing.assert_array_equal(labels[-1], reference.softmax(total).label)
    assert (labels[0] != labels[1]).any()


def test_the_large_model_alone_is_without_it(gpu, tmp_path):
    """What the bench times beside the cascade, and counts drops against."""
    gpu()
    folder = bundles.combined(tmp_path / "bundle", "a", 5.0)
    write_plans(folder, BUCKETS)
    frames = bundles.random_frames(BATCH, bundles.BGR["shape"])
    with load(folder, "host") as cascade:
        logits = cascade.executor.stage_logits(frames)
        stages = stages_of(cascade, transfers=True)
        stages.classify(3, frames)
        label, _, _ = stages._alone[3]._slot.answers()
        np.testing.assert_array_equal(label, logits[3].argmax(1))
        assert (label != (logits[3] + 5.0 * logits[0]).argmax(1)).any()
        stages.close()


@pytest.fixture
def checked(gpu, tmp_path, monkeypatch):
    """A bundle with a combination, whose modes are checked at its first start."""
    gpu()
    folder = bundles.combined(tmp_path / "bundle", "b", 2.0)
    write_plans(folder, BUCKETS)
    monkeypatch.setattr(selfcheck, "user_cache", lambda: tmp_path / "cache" / "cubins")
    monkeypatch.setattr(selfcheck, "check_kernels", lambda device: iter(()))
    return folder


def test_the_self_check_expects_the_sum(checked):
    with load(checked, None, verify=True) as cascade:
        assert cascade.executor.mode == "graph"


def test_the_self_check_notices_logits_that_are_not_added(checked, monkeypatch):
    monkeypatch.setattr(StageWork, "_combination", lambda self: None)
    with pytest.raises(DeviceError, match="the self-check failed: mode host: wrong of"):
        load(checked, None, verify=True)


def test_the_self_check_notices_logits_of_other_rows(checked, monkeypatch):
    original = StageWork._combination

    def by_sample(self):
        found = original(self)
        return found and type(found)(found.other, found.weight, None)

    monkeypatch.setattr(StageWork, "_combination", by_sample)
    with pytest.raises(DeviceError, match="the self-check failed: mode host: wrong of"):
        load(checked, None, verify=True)


@pytest.mark.parametrize("mode", MODES)
def test_a_learned_gate_thresholds_by_class_and_gears_with_it(mode, gpu, tmp_path):
    gpu(seed=2)
    folder = bundles.everything(tmp_path / "bundle")
    write_plans(folder, {"saver": (16,), "middle": (4, 16), "large": (5,)})
    frames = bundles.random_frames(40, bundles.BGR["shape"])
    found = []
    for device in ("cpu", "cuda"):
        options = GpuOptions(mode=mode, verify=False)
        with Cascade.load(folder, device, batch=BATCH, gpu=options) as cascade:
            gears, results = cascade.gears, []
            for gear in range(len(gears)):
                cascade.shift(gear)
                results.append(cascade.run(frames))
            found.append(results)
    for here, expected in zip(*found, strict=True):
        same = (here.label == expected.label) & (here.stage == expected.stage)
        assert same.all() and here.gear == expected.gear
        np.testing.assert_allclose(here.confidence, expected.confidence, rtol=1e-4)
    assert set(found[0][0].stage) == {0, 1, 2} and (found[0][-1].stage == 2).all()
