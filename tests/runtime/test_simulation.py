"""Simulated answers against hand-made cases and the reference gate, and the points of a path."""

import numpy as np
import pytest

from kernels import reference
from runtime.schema import Score, ThresholdPath
from runtime.simulation import Simulation, cascade_answers


def logits_of(answers, confidence):
    """Return logits [n, 3] whose softmax gives each answer its confidence, the rest evenly."""
    others = (1 - np.asarray(confidence)[:, None]) / 2
    is_answer = np.arange(3) == np.asarray(answers)[:, None]
    return np.log(np.where(is_answer, np.asarray(confidence)[:, None], others))


def random_stages(n, *, stages=3):
    return list(np.random.default_rng(n).normal(0, 2, (stages, n, 5)).astype(np.float32))


def test_answers_of_a_hand_made_cascade():
    first = logits_of([0, 0, 0, 0], [0.9, 0.6, 0.6, 0.9])
    second = logits_of([1, 1, 1, 1], [0.9, 0.9, 0.6, 0.6])
    large = logits_of([2, 2, 2, 2], [0.5, 0.5, 0.5, 0.5])
    label, stage = cascade_answers([first, second, large], (0.8, 0.7))
    assert label.tolist() == [0, 1, 2, 0] and label.dtype == np.int32
    assert stage.tolist() == [0, 1, 2, 0] and stage.dtype == np.int8


def test_drops_and_rates_of_a_hand_made_cascade():
    saver = logits_of([0, 0, 0, 0, 0], [0.9, 0.9, 0.9, 0.9, 0.6])
    large = logits_of([1, 1, 0, 1, 1], [0.8] * 5)
    simulation = Simulation([saver, large], np.array([1, 0, 0, 2, 1]))
    assert simulation.drops([0.7]).tolist() == [1, -1, 0, 0, 0]
    assert simulation.drops([0.5]).tolist() == [1, -1, 0, 0, 1]
    assert simulation.drops([1.0]).tolist() == [0, 0, 0, 0, 0]
    assert simulation.drops([0.7]).dtype == np.int8
    assert simulation.escalation_rates([0.7]) == (0.2,)


def test_without_labels_every_difference_from_the_large_model_is_a_loss():
    saver = logits_of([0, 0, 0], [0.9, 0.9, 0.6])
    large = logits_of([1, 0, 1], [0.8] * 3)
    assert Simulation([saver, large]).drops([0.7]).tolist() == [1, 0, 0]
    assert Simulation([saver, large]).drops([0.0]).tolist() == [1, 0, 1]


@pytest.mark.parametrize("temperature", [0.5, 1.0, 1.7])
@pytest.mark.parametrize("threshold", [0.0, 0.37, 0.9, 1.0])
def test_answers_equal_the_reference_gate(temperature, threshold):
    stages = random_stages(257, stages=2)
    stages[0][3] = np.nan
    stages[0][5, 2] = np.inf
    stages[0][7, 1] = -np.inf
    gated = reference.gate(stages[0], threshold, temperature)
    label, stage = cascade_answers(stages, [threshold], [Score(temperature=temperature)])
    assert np.flatnonzero(stage == 1).tolist() == gated.idx[: gated.count].tolist()
    expected = gated.label.copy()
    rows = gated.idx[: gated.count]
    expected[rows] = reference.softmax(stages[1]).label[rows]
    assert label.tolist() == expected.tolist()


@pytest.mark.parametrize(
    "score",
    [
        Score(name="margin", temperature=1.5),
        Score(name="entropy", temperature=0.8),
        Score(name="p_norm", p=3.0),
    ],
)
def test_other_scores_are_kept_strictly_above_the_threshold(score):
    saver, large = random_stages(211, stages=2)
    p = score.p or 2.0
    value = reference.score(saver, score.name, temperature=score.temperature, p=p)
    threshold = float(np.float32(np.median(value)))
    _, stage = cascade_answers([saver, large], [threshold], [score])
    assert (stage == 0).tolist() == (value > threshold).tolist()
    tied = np.zeros((4, 5), np.float32)
    assert cascade_answers([tied, tied], [0.0], [Score(name="margin")]).stage.tolist() == [1] * 4


def test_many_rows_are_the_same_as_a_few_at_a_time():
    stages = random_stages(4099)
    label, stage = cascade_answers(stages, (0.8, 0.6))
    parts = [
        cascade_answers([z[i : i + 500] for z in stages], (0.8, 0.6)) for i in range(0, 4099, 500)
    ]
    assert label.tolist() == np.concatenate([part.label for part in parts]).tolist()
    assert stage.tolist() == np.concatenate([part.stage for part in parts]).tolist()


def test_thresholds_are_rounded_to_float32_before_use():
    """Between 0.7 and float32(0.7) a score in float64 would be decided otherwise."""
    single = float(np.float32(0.7))
    assert single < 0.7
    value = (single + 0.7) / 2
    saver = np.log([[value, 1 - value]])
    (confidence,) = reference.score(saver, "max_softmax")
    assert single < confidence < 0.7
    assert cascade_answers([saver, saver], [0.7]).stage.tolist() == [0]
    margin = np.log([[(1 + value) / 2, (1 - value) / 2]])
    assert single < reference.score(margin, "margin")[0] < 0.7
    assert cascade_answers([margin, margin], [0.7], [Score(name="margin")]).stage.tolist() == [0]


def test_default_path_is_one_and_then_500_even_logits():
    values = ThresholdPath().vectors()
    u = np.linspace(9, -2.2, 500)
    assert values.dtype == np.float32 and values.shape == (501, 1)
    assert values[0, 0] == 1
    np.testing.assert_allclose(values[1:, 0], 1 / (1 + np.exp(-u)), rtol=1e-7)


def test_offsets_shift_each_gate_in_the_logit():
    values = ThresholdPath(offsets=(0.0, -1.5), start=2.0, stop=0.0, points=3).vectors()
    expected = [[1, 1], [0.880797, 0.622459], [0.731059, 0.377541], [0.5, 0.182426]]
    np.testing.assert_allclose(values, expected, atol=1e-6)


def test_extreme_offsets_become_one_and_zero():
    values = ThresholdPath(offsets=(2000.0, -2000.0), points=2).vectors()
    assert values.tolist() == [[1, 1], [1, 0], [1, 0]]


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (ThresholdPath(start=0.0, stop=1.0, points=4), "threshold 0 rises from point 1 to 2"),
        (
            ThresholdPath(explicit=((1, 1), (0.9, 0.5), (0.8, 0.6))),
            "threshold 1 rises from point 1",
        ),
        (ThresholdPath(explicit=((1, 1), (0.9,))), r"one length, got lengths \[1, 2\]"),
        (ThresholdPath(explicit=()), r"one length, got lengths \[\]"),
    ],
)
def test_path_that_is_not_nested_or_not_even_is_refused(path, message):
    with pytest.raises(ValueError, match=message):
        path.vectors()
