"""A learned gate, thresholds by class, gears and a combination in one bundle, CPU and export."""

from __future__ import annotations

import numpy as np
import onnxruntime as ort
import pytest

from engines.export import export_onnx
from engines.score_head import distances_to
from runtime.bundle import Bundle, load_bundle
from runtime.cascade import Cascade
from runtime.simulation import Simulation
from tests.cuda import bundles

KEY = "fp32/fp32/fp32"


def learned(logits):
    """Return the score of the saver's head, worked out anew."""
    falling = -np.sort(-logits.astype(np.float64), axis=1)
    distance = (falling[:, :1] - falling[:, 1:])[:, : distances_to(bundles.CLASSES)]
    exponent = np.exp(logits.astype(np.float64) - falling[:, :1])
    probability = exponent / exponent.sum(1, keepdims=True)
    head = bundles.HEAD
    u = distance @ np.array(head.distance) + probability @ np.array(head.probability) + head.bias
    return 1 / (1 + np.exp(-u))


@pytest.fixture
def folder(tmp_path):
    return bundles.everything(tmp_path / "bundle")


@pytest.fixture
def frames():
    return bundles.random_frames(120, bundles.BGR["shape"])


@pytest.mark.parametrize("gear", [0, 1, 2])
def test_each_gear_decides_as_the_simulation_on_stored_logits(gear, folder, frames):
    with Cascade.load(folder, "cpu", batch=120, threads=1) as cascade:
        cascade.shift(gear)
        found, thresholds = cascade.run(frames), cascade.thresholds
        logits = cascade.executor.stage_logits(frames)
    score = learned(logits[0])
    expected = Simulation(
        logits,
        scores=[gate.score for gate in load_bundle(folder).spec.gates],
        combination=(1, 0.8),
        gate_scores=[score, None],
    ).answers(thresholds)
    np.testing.assert_array_equal(found.stage, expected.stage)
    np.testing.assert_array_equal(found.label, expected.label)
    kept = found.stage == 0
    np.testing.assert_allclose(found.confidence[kept], score[kept], rtol=1e-5)
    assert set(found.stage) == {0, 1, 2}


@pytest.mark.parametrize("gear", [0, 1])
def test_an_exported_graph_answers_the_same(gear, folder, frames):
    bundle = load_bundle(folder)
    with Cascade.load(bundle, "cpu", batch=120, threads=1) as cascade:
        cascade.shift(gear)
        expected, thresholds = cascade.run(frames), cascade.thresholds
    settings = {KEY: bundle.spec.settings[KEY].model_copy(update={"thresholds": thresholds})}
    spec = bundle.spec.model_copy(update={"settings": settings})
    file = export_onnx(Bundle(folder, spec), folder / "cascade.onnx").file
    graph = ort.InferenceSession(str(file), providers=["CPUExecutionProvider"])
    label, confidence, stage = graph.run(None, {"frames": frames})
    np.testing.assert_array_equal(label, expected.label)
    np.testing.assert_array_equal(stage, expected.stage)
    np.testing.assert_allclose(confidence, expected.confidence, rtol=1e-4)
