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


def spoilt_stages(n):
    """Random stages with rows that are not valid in the first and in the last."""
    stages = random_stages(n, stages=2)
    stages[0][3] = np.nan
    stages[0][5, 2] = np.inf
    stages[0][7, 1] = stages[1][11, 4] = -np.inf
    stages[0][13] = 0
    stages[1][13, 0] = np.nan
    return stages


def test_thresholds_by_class_equal_the_reference_gate():
    stages = spoilt_stages(263)
    by_class = [0.3, 0.9, 0.0, 1.0, 0.55]
    gated = reference.gate(stages[0], np.array(by_class))
    _, stage = cascade_answers(stages, [by_class])
    assert np.flatnonzero(stage == 1).tolist() == gated.rows.tolist()
    assert set(reference.softmax(stages[0]).label[stage == 0]) == {0, 1, 2, 4}
    assert cascade_answers(stages, np.array([by_class])).stage.tolist() == stage.tolist()


def test_one_gate_may_have_a_number_and_the_next_one_per_class():
    stages = random_stages(97)
    both = cascade_answers(stages, [0.8, [0.6] * 5])
    assert both.stage.tolist() == cascade_answers(stages, [0.8, 0.6]).stage.tolist()


@pytest.mark.parametrize("value", ["entropy", "learned"])
def test_other_scores_have_thresholds_by_class_too(value):
    saver, large = spoilt_stages(211)
    confidence = reference.score(saver, "entropy").astype(np.float32)
    by_class = np.array([0.1, 0.5, 0.2, 0.7, 0.4])
    gated = reference.gate(saver, by_class, scores=confidence)
    score = Score(name=value, output="score" if value == "learned" else None)
    given = [confidence] if value == "learned" else None
    found = cascade_answers([saver, large], [by_class], [score], gate_scores=given)
    assert np.flatnonzero(found.stage == 1).tolist() == gated.rows.tolist()


def test_a_learned_score_is_kept_strictly_above_the_threshold_and_escalates_where_it_is_nan():
    saver, large = spoilt_stages(211)
    learned = np.random.default_rng(0).random(211).astype(np.float32)
    learned[17], learned[3], learned[5] = np.nan, 0.99, 0.99
    score = [Score(name="learned", output="score")]
    threshold = float(learned[20])
    gated = reference.gate(saver, threshold, scores=learned)
    for limit, rows in ((threshold, gated.rows), (1.0, np.arange(211)), (0.0, [3, 5, 17])):
        found = cascade_answers([saver, large], [limit], score, gate_scores=[learned])
        assert np.flatnonzero(found.stage == 1).tolist() == list(rows)
    assert 20 in gated.rows


@pytest.mark.parametrize("weight", [0.0, 0.5, 3.0])
def test_combined_answers_equal_the_reference_scatter(weight):
    stages = spoilt_stages(307)
    found = cascade_answers(stages, [0.6], combination=(0, weight))
    rows = np.flatnonzero(found.stage == 1).astype(np.int32)
    expected, confidence = reference.softmax(stages[0]).label, np.zeros(307)
    large, other = stages[1][rows], stages[0][rows]
    with np.errstate(invalid="ignore"):
        reference.scatter(large, rows, len(rows), expected, confidence, other=other, weight=weight)
    assert found.label.tolist() == expected.tolist()
    assert {3, 5, 13} <= set(rows.tolist())


def test_drops_of_a_combination_are_against_the_large_model_alone():
    saver = logits_of([0, 0, 0], [0.9, 0.9, 0.9])
    large = logits_of([1, 1, 1], [0.5, 0.5, 0.9])
    simulation = Simulation([saver, large], np.array([1, 0, 1]), combination=(0, 1.0))
    assert simulation.answers([1.0]).label.tolist() == [0, 0, 0]
    assert simulation.answers([1.0]).stage.tolist() == [1, 1, 1]
    assert simulation.drops([1.0]).tolist() == [1, -1, 1]
    assert Simulation([saver, large], combination=(0, 1.0)).drops([1.0]).tolist() == [1, 1, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"combination": (2, 1.0)}, "expected a stage from 0 to 1.*got stage 2"),
        ({"combination": (-1, 1.0)}, "got stage -1"),
        ({"combination": (0, -0.5)}, "weight >= 0, got stage 0 and weight -0.5"),
        ({"combination": (0, np.inf)}, "finite weight"),
        ({"gate_scores": [None]}, "expected 2, one per gate, got 1"),
        ({"gate_scores": [None, np.zeros(9)]}, "gate 1 has the score max_softmax, got some"),
        ({"scores": [Score(), Score(name="learned", output="s")]}, "score learned, got none"),
    ],
)
def test_options_that_do_not_fit_the_stages_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Simulation(random_stages(9), **options)


@pytest.mark.parametrize("values", [np.full(9, 1.1), np.full(9, -0.1), np.zeros(8)])
def test_learned_scores_of_another_shape_or_range_are_refused(values):
    scores = [Score(name="learned", output="score")]
    with pytest.raises(ValueError, match=r"expected \[9\] in \[0, 1\] for gate 0"):
        Simulation(random_stages(9, stages=2), scores=scores, gate_scores=[values])


@pytest.mark.parametrize("thresholds", [[[0.5] * 4], [[0.5] * 6], [[0.5, 0.5, 0.5, 0.5, 1.5]]])
def test_thresholds_by_class_must_be_one_per_class_in_the_unit_interval(thresholds):
    with pytest.raises(ValueError, match=r"expected 1 in .* or for a gate 5 by class"):
        cascade_answers(random_stages(9, stages=2), thresholds)


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


def test_class_offsets_shift_each_class_in_the_logit():
    plain = ThresholdPath(offsets=(0.0, -1.0), start=2.0, stop=0.0, points=3)
    path = plain.model_copy(update={"class_offsets": ((0.0, 0.5, -2.0), (0.0, 0.0, 0.25))})
    values = path.vectors()
    assert values.shape == (4, 2, 3) and values.dtype == np.float32
    assert (values[0] == 1).all()
    np.testing.assert_array_equal(values[:, :, 0], plain.vectors())
    np.testing.assert_allclose(values[2, 0], 1 / (1 + np.exp([-1, -1.5, 1])), rtol=1e-6)
    np.testing.assert_allclose(values[3, 1, 2], 1 / (1 + np.exp(0.75)), rtol=1e-6)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"class_offsets": ((0.0, 0.0),)}, r"each of 2 gate\(s\), got rows of \[2\]"),
        ({"class_offsets": ((0.0, 0.0), (0.0,))}, r"got rows of \[2, 1\]"),
        ({"class_offsets": ((0, 0), (0, 0)), "explicit": ((1, 1),)}, "one threshold per gate"),
    ],
)
def test_class_offsets_must_fit_the_gates(fields, message):
    with pytest.raises(ValueError, match=message):
        ThresholdPath(offsets=(0.0, 1.0), **fields)


@pytest.mark.parametrize(
    ("path", "message"),
    [
        (
            ThresholdPath(start=0.0, stop=1.0, points=4, class_offsets=((0.0, 1.0),)),
            "threshold 0 rises from point 1 to 2",
        ),
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
