"""The host gate against the reference: same answers and decisions, on random and hostile rows."""

import math

import numpy as np
import pytest

from kernels import reference
from runtime.gate import HostGate
from runtime.schema import Score

INF, NAN = math.inf, math.nan
LARGEST = float(np.finfo(np.float32).max)
BORDER = 1e-5  # |s * t - 1| up to which float32 and float64 may decide differently
ROUNDING = 2**-24  # of a score in [0, 1], which the host rounds to float32
TOLERATED = 0.001  # share of rows that may lie there

HOSTILE = [
    [NAN, 1.0, 2.0, 2.0],
    [1.0, INF, NAN, INF],
    [NAN, NAN, NAN, NAN],
    [INF, 1.0, 2.0, INF],
    [-INF, -INF, -INF, -INF],
    [NAN, -INF, -INF, NAN],
    [-INF, 2.0, -INF, 2.0],
    [-INF, 2.0, -INF, 1.0],
    [0.0, 0.0, 0.0, 0.0],
    [-0.0, 0.0, -0.0, 0.0],
    [LARGEST, -LARGEST, 0.0, 0.0],
    [-LARGEST, -LARGEST, -LARGEST, LARGEST],
    [1e-45, 0.0, -1e-45, 0.0],
    [88.8, -88.8, 88.8, 0.0],
    [1e30, 1e30, -1e30, 0.0],
]

SCORES = [
    Score(),
    Score(temperature=0.05),
    Score(temperature=1e-38),
    Score(temperature=40.0),
    Score(name="margin"),
    Score(name="margin", temperature=2.0),
    Score(name="entropy"),
    Score(name="entropy", temperature=0.3),
    Score(name="p_norm", p=1.0),
    Score(name="p_norm", p=4.0),
]


def random_logits(rows, classes, seed):
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, generator.uniform(0.1, 8, (rows, 1)), (rows, classes))
    logits[::3] = np.round(logits[::3])
    return logits.astype(np.float32)


def hostile_logits(rows, seed):
    generator = np.random.default_rng(seed)
    logits = random_logits(rows, 4, seed)
    bad = generator.random(rows) < 0.7
    logits[bad] = np.array(HOSTILE)[generator.integers(0, len(HOSTILE), bad.sum())]
    return logits


def gate_for(logits, score=None):
    rows, classes = logits.shape
    return HostGate(score or Score(), rows=rows, classes=classes)


def escalated_by_reference(logits, threshold, score):
    """Rows the reference escalates, and those so near the border that float32 may differ."""
    facts = reference.softmax(logits, score.temperature)
    limit = np.broadcast_to(
        np.asarray(threshold, np.float32).astype(np.float64), (logits.shape[1],)
    )
    limit = limit[facts.label]
    if score.name == "max_softmax":
        return ~reference.accept(facts.total, limit), np.abs(facts.total * limit - 1) <= BORDER
    options = {} if score.p is None else {"p": score.p}
    value = reference.score(logits, score.name, temperature=score.temperature, **options)
    escalated = ~(value > limit) | np.isnan(facts.total)
    return escalated, np.abs(value - limit) <= ROUNDING


def assert_same_decisions(logits, threshold, score):
    decision = gate_for(logits, score).decide(logits, threshold)
    expected, near = escalated_by_reference(logits, threshold, score)
    found = np.zeros(len(logits), bool)
    found[decision.escalated] = True
    assert (np.diff(decision.escalated) > 0).all()
    assert np.flatnonzero((found != expected) & ~near).tolist() == []
    return int(near.sum())


@pytest.mark.parametrize("rows", [1, 2, 257])
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_label_and_confidence_equal_the_reference(rows, classes):
    logits = random_logits(rows, classes, seed=rows + classes)
    label, confidence = gate_for(logits).answer(logits)
    facts = reference.softmax(logits)
    assert label.tolist() == facts.label.tolist()
    # Each of K exponentials and sums adds a rounding of float32.
    assert confidence == pytest.approx(facts.confidence, rel=(10 + math.log2(classes)) * 2**-23)
    assert (label.dtype.kind, confidence.dtype) == ("i", np.float32)


@pytest.mark.parametrize("temperature", [1.0, 0.05, 1e-38, 40.0])
def test_label_and_confidence_of_hostile_rows_equal_the_reference(temperature):
    logits = hostile_logits(509, seed=3)
    label, confidence = gate_for(logits, Score(temperature=temperature)).answer(logits)
    facts = reference.softmax(logits, temperature)
    assert label.tolist() == facts.label.tolist()
    assert confidence == pytest.approx(facts.confidence, rel=1e-4)


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_decisions_on_random_rows_equal_the_reference(score):
    near = rows = 0
    for seed, threshold in enumerate([0.05, 0.3, 0.6180339, 0.9, 0.99]):
        logits = random_logits(4001, 10, seed)
        near += assert_same_decisions(logits, threshold, score)
        rows += len(logits)
    # Whole logits give the margin 0 and 1 for many rows, but no threshold here is one of them.
    assert near <= TOLERATED * rows


@pytest.mark.parametrize("score", SCORES, ids=str)
@pytest.mark.parametrize("threshold", [0.0, 0.07, 0.6, 0.97, 1.0])
def test_decisions_on_hostile_rows_equal_the_reference(score, threshold):
    assert_same_decisions(hostile_logits(1009, seed=11), threshold, score)


def test_decisions_by_thresholds_per_class_equal_the_reference():
    logits = random_logits(4001, 10, seed=5)
    thresholds = np.linspace(0.05, 0.95, 10, dtype=np.float32)
    near = assert_same_decisions(logits, thresholds, Score())
    near += assert_same_decisions(logits, thresholds, Score(name="entropy"))
    assert near <= TOLERATED * 2 * len(logits)


@pytest.mark.parametrize(("classes", "threshold"), [(2, 0.5), (4, 0.25), (8, 0.125), (1, 1.0)])
def test_an_exact_hit_escalates(classes, threshold):
    logits = np.full((3, classes), 7, np.float32)
    assert gate_for(logits).decide(logits, threshold).escalated.tolist() == [0, 1, 2]
    below = float(np.nextafter(np.float32(threshold), np.float32(0)))
    assert gate_for(logits).decide(logits, below).escalated.tolist() == []


@pytest.mark.parametrize("score", SCORES, ids=str)
def test_threshold_one_escalates_every_row(score):
    logits = np.array([[100.0, -INF, -INF, -INF], [0.0, 0.0, 0.0, 0.0]], np.float32)
    assert gate_for(logits, score).decide(logits, 1.0).escalated.tolist() == [0, 1]


def test_rows_that_are_not_valid_escalate_at_every_threshold_and_have_confidence_zero():
    logits = np.array(HOSTILE, np.float32)
    invalid = np.flatnonzero(np.isnan(reference.softmax(logits).total)).tolist()
    assert invalid == [0, 1, 2, 3, 4, 5]
    for score in SCORES:
        decision = gate_for(logits, score).decide(logits, 0.0)
        assert set(invalid) <= set(decision.escalated.tolist())
        assert decision.confidence[invalid].tolist() == [0.0] * len(invalid)


@pytest.mark.parametrize("score", [Score(), Score(name="margin")], ids=str)
def test_force_escalates_whatever_the_score_and_zero_does_not(score):
    logits = np.array([[90.0, 0.0]] * 5, np.float32)
    force = np.array([0, 1, 0, 255, 0], np.uint8)
    decision = gate_for(logits, score).decide(logits, 0.5, force=force)
    assert decision.escalated.tolist() == [1, 3]


def test_a_learned_gate_reads_its_tensor_strictly_above_the_threshold():
    logits = np.zeros((5, 4), np.float32)
    tensor = np.array([0.5, 0.75, 0.25, 0.5000001, 1.0], np.float32)
    gate = gate_for(logits, Score(name="learned", output="score"))
    decision = gate.decide(logits, 0.5, tensor=tensor)
    assert decision.escalated.tolist() == [0, 2]
    assert decision.confidence.tolist() == tensor.tolist()


def test_a_learned_score_that_is_not_finite_or_a_bad_row_of_logits_escalates():
    logits = np.zeros((6, 4), np.float32)
    logits[4, 1], logits[5, 2] = NAN, INF
    tensor = np.array([NAN, INF, -INF, 0.9, 0.9, 0.9], np.float32)
    gate = gate_for(logits, Score(name="learned", output="score"))
    decision = gate.decide(logits, 0.0, tensor=tensor)
    assert decision.escalated.tolist() == [0, 1, 2, 4, 5]
    assert ((decision.confidence >= 0) & (decision.confidence <= 1)).all()


def test_one_gate_serves_fewer_rows_than_it_was_made_for_in_any_order():
    gate = HostGate(Score(), rows=31, classes=10)
    for rows in (31, 1, 7, 30, 2):
        logits = random_logits(rows, 10, seed=rows)
        expected, near = escalated_by_reference(logits, 0.6, Score())
        assert not near.any()
        decision = gate.decide(logits, 0.6)
        assert decision.escalated.tolist() == np.flatnonzero(expected).tolist()
        assert len(decision.label) == len(decision.confidence) == rows


def test_the_logits_are_not_changed():
    logits = hostile_logits(61, seed=1)
    before = logits.copy()
    for score in SCORES:
        gate_for(logits, score).decide(logits, 0.5)
    np.testing.assert_array_equal(logits, before)
