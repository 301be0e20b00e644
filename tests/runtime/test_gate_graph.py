"""The softmax added to a model's own graph: same answers and decisions as the gate's own."""

import math

import numpy as np
import onnx
import pytest

from kernels import reference
from runtime.bundle import load_bundle
from runtime.errors import BundleError
from runtime.gate import HostGate, Top
from runtime.gate_graph import CONFIDENCE, LABEL, with_confidence
from runtime.host import HostStage
from runtime.schema import Score
from runtime.session import HostModel

INF, NAN = math.inf, math.nan
HOSTILE = np.array(
    [
        [NAN, 1, 2, 2],
        [1, INF, NAN, INF],
        [NAN, NAN, NAN, NAN],
        [INF, 1, 2, INF],
        [-INF, -INF, -INF, -INF],
        [-INF, 2, -INF, 2],
        [0, 0, 0, 0],
        [3e38, -3e38, 0, 0],
        [1, 1 + 2**-23, 1, 1],
        [1, 2, 3, 4],
    ],
    np.float32,
)


def run(models, logits, temperature=1.0):
    """Logits pass through the model ``echo``, whose logits are its pixels."""
    content = with_confidence((models / "echo.onnx").read_bytes(), "logits", temperature)
    model = HostModel(models / "echo.onnx", threads=1, content=content)
    found = model.run({"input": logits.reshape(-1, 1, 2, 2)})
    np.testing.assert_array_equal(found["logits"], logits)
    return Top(found[LABEL][:, 0].copy(), found[CONFIDENCE][:, 0].copy())


def random_logits(rows, seed):
    return np.random.default_rng(seed).normal(0, 3, (rows, 4)).astype(np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
def test_the_added_nodes_are_valid_onnx(models, temperature):
    content = with_confidence((models / "echo.onnx").read_bytes(), "logits", temperature)
    onnx.checker.check_model(onnx.load_from_string(content), full_check=True)


@pytest.mark.parametrize("temperature", [1.0, 0.3, 7.0])
@pytest.mark.parametrize("rows", [1, 31, 257])
def test_answers_are_those_of_the_reference(models, rows, temperature):
    logits = random_logits(rows, seed=rows)
    expected = reference.softmax(logits, temperature)
    label, confidence = HostGate(Score(temperature=temperature), rows=rows, classes=4).answer(
        logits, top=run(models, logits, temperature)
    )
    np.testing.assert_array_equal(label, expected.label)
    # A sum of four terms and a division, each rounded to float32.
    np.testing.assert_allclose(confidence, expected.confidence, rtol=8 * 2**-24)


def test_hostile_rows_are_answered_as_by_the_reference(models):
    expected = reference.softmax(HOSTILE)
    gate = HostGate(Score(), rows=len(HOSTILE), classes=4)
    label, confidence = gate.answer(HOSTILE, top=run(models, HOSTILE))
    np.testing.assert_array_equal(label, expected.label)
    np.testing.assert_allclose(confidence, expected.confidence, rtol=8 * 2**-24)


@pytest.mark.parametrize("threshold", [0.0, 0.25, 0.5, 0.9, 1.0])
def test_rows_escalate_as_by_the_reference(models, threshold):
    logits = np.concatenate([HOSTILE, random_logits(5000, seed=5)])
    facts = reference.softmax(logits)
    kept = reference.accept(facts.total, float(np.float32(threshold)))
    near = np.abs(facts.total * threshold - 1) <= 1e-5
    gate = HostGate(Score(), rows=len(logits), classes=4)
    decision = gate.decide(logits, threshold, top=run(models, logits))
    found = np.ones(len(logits), bool)
    found[decision.escalated] = False
    differ = found != kept
    assert not (differ & ~near).any()
    assert differ.mean() <= 0.001


def test_a_stage_uses_its_graph_and_its_buffers_hold_only_the_last_rows(make_bundle):
    stage = HostStage(load_bundle(make_bundle("echo", "negated")), 0, "fp32", batch=4, threads=1)
    logits = random_logits(4, seed=1)
    stage.inputs["input"][:] = logits.reshape(4, 1, 2, 2)
    for rows in (4, 2):
        stage.run(rows)
        top = stage.top(rows)
        assert top is not None
        np.testing.assert_array_equal(top.label, logits[:rows].argmax(1))


def test_other_scores_are_left_to_the_gate(make_bundle):
    folder = make_bundle("echo", "negated", scores=[{"name": "margin"}])
    stage = HostStage(load_bundle(folder), 0, "fp32", batch=4, threads=1)
    stage.run(2)
    assert stage.top(2) is None


def test_a_model_that_cannot_take_the_nodes_is_loaded_plain(models):
    content = with_confidence((models / "echo.onnx").read_bytes(), "absent", 1.0)
    with pytest.raises(BundleError, match="cannot load it"):
        HostModel(models / "echo.onnx", threads=1, content=content)
