"""The reference against hand-made cases and against the definitions written as plain loops."""

import math
import re
from fractions import Fraction

import numpy as np
import pytest

from kernels import reference

INF, NAN = math.inf, math.nan


LARGEST = float(np.finfo(np.float32).max)


HOSTILE = [
    [NAN, 1.0, 2.0],
    [3.0, NAN, 3.0],
    [NAN, NAN, NAN],
    [INF, 1.0, 2.0],
    [1.0, INF, INF],
    [-INF, -INF, -INF],
    [-INF, NAN, -INF],
    [NAN, -INF, -INF],
    [NAN, INF, -INF],
    [-INF, 2.0, -INF],
    [-INF, 2.0, 2.0],
    [0.0, 0.0, 0.0],
    [-0.0, 0.0, -0.0],
    [LARGEST, -LARGEST, 0.0],
    [-LARGEST, -LARGEST, -LARGEST],
    [1e-45, 0.0, -1e-45],
    [88.8, -88.8, 88.8],
    [1e4, 1e4 - 1, -1e4],
]


def row_by_loop(row, temperature=1.0):
    """Total (None where the row is not valid) and label of one row, by their definitions."""
    label = 0
    for k, z in enumerate(row):
        if not math.isnan(z) and (math.isnan(row[label]) or z > row[label]):
            label = k
    if any(math.isnan(z) or z == INF for z in row) or all(z == -INF for z in row):
        return None, label
    return math.fsum(math.exp((z - row[label]) / temperature) for z in row), label


def kept_by_loop(total, threshold):
    return total is not None and Fraction(total) * Fraction(float(np.float32(threshold))) < 1


def random_logits(rows, classes, seed):
    """Half of the rows on a coarse grid, so that ties abound."""
    generator = np.random.default_rng(seed)
    logits = generator.normal(0, 4, (rows, classes))
    logits[::2] = np.round(logits[::2])
    return logits.astype(np.float32)


def is_near(total, threshold):
    """NumPy and math may differ in the last bits of exp; an exact hit of ties is exact in both."""
    return total is not None and 0 < abs(total * float(np.float32(threshold)) - 1) <= 1e-12


@pytest.mark.parametrize("temperature", [1.0, 0.25, 7.5, 1e-300, 1e30])
def test_softmax_of_hostile_rows_equals_the_loop(temperature):
    facts = reference.softmax(np.array(HOSTILE), temperature)
    for i, row in enumerate(HOSTILE):
        total, label = row_by_loop(row, temperature)
        assert facts.label[i] == label
        if total is None:
            assert math.isnan(facts.total[i]) and facts.confidence[i] == 0
        else:
            assert facts.total[i] == pytest.approx(total, rel=1e-14)
            assert facts.confidence[i] == pytest.approx(1 / total, rel=1e-14)


@pytest.mark.parametrize(
    ("row", "total", "label"),
    [
        ([0.0, 0.0], 2.0, 0),
        ([5.0], 1.0, 0),
        ([-INF, 7.0], 1.0, 1),
        ([-INF, 7.0, 7.0, 7.0], 3.0, 1),
        ([math.log(3), 0.0], 4 / 3, 0),
        ([0.0, math.log(3), 0.0], 5 / 3, 1),
    ],
)
def test_softmax_of_rows_worked_out_by_hand(row, total, label):
    facts = reference.softmax(np.array([row]))
    assert facts.total[0] == pytest.approx(total, rel=1e-15)
    assert facts.confidence[0] == pytest.approx(1 / total, rel=1e-15)
    assert facts.label[0] == label


@pytest.mark.parametrize(
    ("row", "label"),
    [
        ([NAN, 1.0, 2.0, 2.0], 2),
        ([NAN, -INF, -INF, NAN], 1),
        ([NAN, NAN, NAN, NAN], 0),
        ([1.0, INF, NAN, INF], 1),
        ([-INF, -INF, -INF, -INF], 0),
    ],
)
def test_a_row_that_is_not_valid_escalates_with_the_best_label_it_has(row, label):
    gated = reference.gate(np.array([row]), 0.0)
    assert gated.label[0] == label
    assert gated.confidence[0] == 0
    assert gated.count == 1


def test_softmax_types_and_shapes():
    facts = reference.softmax(np.zeros((3, 5), np.float32))
    assert [part.dtype for part in facts] == [np.float64, np.float64, np.int32]
    assert [part.shape for part in facts] == [(3,)] * 3


@pytest.mark.parametrize("shape", [(4,), (2, 0), (1, 2, 3), ()])
def test_logits_of_another_rank_are_refused_with_their_shape(shape):
    message = f"logits: expected [n, K] with K >= 1, got {list(shape)}"
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.softmax(np.zeros(shape))


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN, INF])
def test_a_temperature_that_is_not_finite_and_positive_is_refused(temperature):
    message = f"temperature: expected a finite number > 0, got {temperature}"
    with pytest.raises(ValueError, match=re.escape(message)):
        reference.gate(np.zeros((1, 2)), 0.5, temperature)


@pytest.mark.parametrize("classes", [1, 2, 3, 4, 7, 8, 1000])
def test_an_exact_hit_escalates(classes):
    """K equal logits give a total of exactly K; K * float32(1/K) is exactly 1 for powers of two."""
    logits = np.zeros((1, classes))
    threshold = np.float32(1 / classes)
    product = Fraction(float(threshold)) * classes
    assert reference.gate(logits, threshold).count == (product >= 1)
    just_below = np.nextafter(threshold, np.float32(0)) if product >= 1 else threshold
    assert reference.gate(logits, just_below).count == 0


def test_two_equal_logits_at_one_half_escalate_and_a_little_below_stay():
    logits = np.array([[0.0, 0.0]])
    assert reference.gate(logits, 0.5).idx.tolist() == [0]
    assert reference.gate(logits, np.nextafter(np.float32(0.5), np.float32(0))).count == 0


def test_threshold_one_escalates_even_certainty_and_threshold_zero_keeps_every_valid_row():
    logits = np.array([[100.0, -INF], [0.0, 0.0], [NAN, 0.0], [INF, 0.0], [-INF, -INF]])
    assert reference.gate(logits, 1.0).idx.tolist() == [0, 1, 2, 3, 4]
    assert reference.gate(logits, 0.0).idx.tolist() == [2, 3, 4, -1, -1]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_accept_is_strict_and_never_accepts_nan(dtype):
    total = np.array([1.0, 2.0, 4.0, NAN], dtype)
    assert reference.accept(total, 0.5).tolist() == [True, False, False, False]
    assert reference.accept(total, 0.0).tolist() == [True, True, True, False]
    assert reference.accept(total, 1.0).tolist() == [False, False, False, False]
    per_row = np.array([1.0, 0.25, 0.25, 0.0], dtype)
    assert reference.accept(total, per_row).tolist() == [False, True, False, False]


@pytest.mark.parametrize("threshold", [0.0, 0.1, 1 / 3, 0.5, 0.9, 0.999, 1.0])
@pytest.mark.parametrize(("rows", "classes"), [(1, 1), (257, 2), (257, 10), (31, 1000)])
@pytest.mark.parametrize("temperature", [1.0, 2.5])
def test_gate_equals_the_loop(rows, classes, threshold, temperature):
    logits = random_logits(rows, classes, seed=classes)
    gated = reference.gate(logits, threshold, temperature)
    expected, near = [], 0
    for i, row in enumerate(logits.tolist()):
        total, label = row_by_loop(row, temperature)
        assert gated.label[i] == label
        assert gated.confidence[i] == pytest.approx(1 / total, rel=1e-13)
        kept = kept_by_loop(total, threshold)
        if is_near(total, threshold):
            near, kept = near + 1, i not in gated.idx[: gated.count]
        expected += [] if kept else [i]
    assert near <= rows // 100
    assert gated.count == len(expected)
    assert gated.idx.tolist() == expected + [-1] * (rows - len(expected))


def test_gate_equals_the_loop_on_hostile_rows_at_random_places():
    generator = np.random.default_rng(7)
    rows = [HOSTILE[i] for i in generator.integers(0, len(HOSTILE), 211)]
    for threshold in (0.0, 0.3, 0.5, 0.7, 1.0):
        gated = reference.gate(np.array(rows), threshold)
        facts = [row_by_loop(row) for row in rows]
        expected = [i for i, (total, _) in enumerate(facts) if not kept_by_loop(total, threshold)]
        assert gated.idx[: gated.count].tolist() == expected
        assert gated.label.tolist() == [label for _, label in facts]


def test_a_threshold_means_its_float32_value():
    """A confidence between float32(0.7) and the larger 0.7 is accepted."""
    single = float(np.float32(0.7))
    assert single < 0.7
    logits = np.array([[0.0, math.log(2 / (single + 0.7) - 1)]])
    assert single + 5e-9 < reference.softmax(logits).confidence[0] < 0.7 - 5e-9
    assert reference.gate(logits, 0.7).count == 0


def test_temperature_divides_the_distances():
    logits = np.array([[2.0, 0.0]])
    warm = reference.gate(logits, 0.5, 2.0)
    assert warm.confidence[0] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-15)
    assert reference.gate(logits, 0.75, 2.0).count == 1
    assert reference.gate(logits, 0.75, 1.0).count == 0


def test_a_threshold_per_class_is_chosen_by_the_predicted_class():
    logits = np.array([[math.log(3), 0.0], [0.0, math.log(3)], [0.0, 0.0]])
    assert reference.gate(logits, np.array([0.5, 0.9])).idx.tolist() == [1, 2, -1]
    assert reference.gate(logits, np.array([0.9, 0.5])).idx.tolist() == [0, 2, -1]
    assert reference.gate(logits, np.array([0.4, 1.0])).idx.tolist() == [1, -1, -1]


def test_one_class_may_have_a_list_of_one_threshold():
    assert reference.gate(np.zeros((2, 1)), np.array([0.5])).count == 0


@pytest.mark.parametrize(
    "threshold", [-1e-6, 1.0001, NAN, INF, -INF, [0.5, 1.5, 0.1], [0.1, NAN, 0.1]]
)
def test_a_threshold_outside_the_unit_interval_is_refused(threshold):
    with pytest.raises(ValueError, match=r"threshold: expected numbers in \[0, 1\], got"):
        reference.gate(np.zeros((1, 3)), threshold)


@pytest.mark.parametrize("threshold", [[0.5, 0.5], [[0.5, 0.5, 0.5]], []])
def test_a_threshold_of_another_shape_is_refused(threshold):
    with pytest.raises(ValueError, match="threshold: expected one number or 3, got shape"):
        reference.gate(np.zeros((1, 3)), np.array(threshold))


def test_force_escalates_whatever_the_score_and_zero_does_not():
    logits = np.array([[9.0, 0.0]] * 4 + [[NAN, 0.0]])
    force = np.array([0, 1, 0, 255, 0], np.uint8)
    assert reference.gate(logits, 0.5, force=force).idx.tolist() == [1, 3, 4, -1, -1]


def test_a_row_map_turns_stage_rows_into_source_rows_in_their_order():
    logits = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 0.0]])
    gated = reference.gate(logits, 0.9, row_map=np.array([4, 7, 19], np.int32))
    assert gated.idx.tolist() == [4, 19, -1]
    assert gated.idx.dtype == np.int32


def test_row_maps_compose_over_gates():
    """A row that passes two gates ends with the number it had among all samples."""
    first = reference.gate(np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), 0.9)
    assert first.idx[: first.count].tolist() == [0, 2, 3]
    second = reference.gate(
        np.array([[9.0, 0.0], [0.0, 0.0], [0.0, 0.0]]), 0.9, row_map=first.idx[: first.count]
    )
    assert second.idx[: second.count].tolist() == [2, 3]


def test_no_rows_give_empty_arrays_of_the_same_types():
    gated = reference.gate(np.empty((0, 10), np.float32), 0.5)
    assert (len(gated.confidence), len(gated.idx), len(gated.bucket), gated.count) == (0, 0, 0, 0)
    assert (gated.label.dtype, gated.idx.dtype, gated.bucket.dtype) == (np.int32,) * 3


@pytest.mark.parametrize("seed", range(5))
def test_gate_gather_scatter_answer_every_row_once(seed):
    """Through all rounds of a batch: escalated rows carry the second answer, others the first."""
    generator = np.random.default_rng(seed)
    first, second = random_logits(113, 6, seed), random_logits(113, 6, seed + 100)
    buckets = (1, 4, 16)
    gated = reference.gate(first, float(generator.uniform(0.3, 0.9)), buckets=buckets)
    label, confidence = gated.label.copy(), gated.confidence.copy()
    for number, bucket in enumerate(gated.bucket.tolist()):
        start = number * buckets[-1]
        count = min(max(gated.count - start, 0), buckets[-1])
        idx = gated.idx[start:]
        dense = reference.gather(second, idx, count, bucket)
        assert len(dense) == bucket >= count
        reference.scatter(dense, idx, count, label, confidence)
    escalated = set(gated.idx[: gated.count].tolist())
    assert 0 < len(escalated) < 113
    for i in range(113):
        expected = row_by_loop((second if i in escalated else first)[i].tolist())
        assert label[i] == expected[1]
        assert confidence[i] == pytest.approx(1 / expected[0], rel=1e-13)


def score_by_loop(row, name, temperature=1.0, p=2.0):
    total, label = row_by_loop(row, temperature)
    if total is None:
        return 0.0
    if name == "p_norm":
        return p_norm_by_loop(row, p)
    probability = sorted(math.exp((z - row[label]) / temperature) / total for z in row)
    if name == "max_softmax":
        return probability[-1]
    if name == "margin":
        return probability[-1] - (probability[-2] if len(row) > 1 else 0.0)
    entropy = -sum(x * math.log(x) for x in probability if x > 0)
    return 1 - entropy / math.log(len(row)) if len(row) > 1 else 1.0


def p_norm_by_loop(row, p):
    """A logit of -inf contributes nothing, neither to the mean nor to the norm."""
    finite = [z for z in row if z != -INF]
    mean = math.fsum(finite) / len(finite)
    centred = [z - mean for z in finite]
    largest = max(abs(c) for c in centred)
    if largest == 0:
        return 0.0
    return max(centred) / largest / math.fsum(abs(c / largest) ** p for c in centred) ** (1 / p)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("max_softmax", {}),
        ("max_softmax", {"temperature": 3.0}),
        ("margin", {}),
        ("margin", {"temperature": 0.5}),
        ("entropy", {}),
        ("entropy", {"temperature": 2.0}),
        ("p_norm", {"p": 1.0}),
        ("p_norm", {"p": 2.0}),
        ("p_norm", {"p": 5.5}),
    ],
)
@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_every_score_equals_the_loop_and_lies_in_the_unit_interval(name, options, classes):
    logits = random_logits(23, classes, seed=classes)
    found = reference.score(logits, name, **options)
    assert ((found >= 0) & (found <= 1)).all()
    expected = [score_by_loop(row, name, **options) for row in logits.tolist()]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["max_softmax", "margin", "entropy", "p_norm"])
def test_every_score_of_hostile_rows_equals_the_loop(name):
    found = reference.score(np.array(HOSTILE), name)
    expected = [score_by_loop(row, name) for row in HOSTILE]
    assert found == pytest.approx(expected, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize("name", ["max_softmax", "margin", "entropy"])
def test_probability_scores_rise_with_certainty(name):
    logits = np.array([[0.0, 0.0, 0.0], [1.0, 0.0, 0.0], [4.0, 0.0, 0.0], [40.0, 0.0, 0.0]])
    found = reference.score(logits, name)
    assert (np.diff(found) > 0).all() and found[-1] == pytest.approx(1)


def test_no_rows_give_no_scores():
    for name in ("max_softmax", "margin", "entropy", "p_norm"):
        assert reference.score(np.empty((0, 4)), name).shape == (0,)


def test_an_unknown_score_and_a_p_below_one_are_refused():
    expected = "score 'learned': expected max_softmax, margin, entropy or p_norm"
    with pytest.raises(ValueError, match=expected):
        reference.score(np.zeros((1, 2)), "learned")
    with pytest.raises(ValueError, match=r"p: expected a number >= 1, got 0\.5"):
        reference.score(np.zeros((1, 2)), "p_norm", p=0.5)


def test_force_is_by_sample_where_rows_are_mapped():
    logits = np.array([[9.0, 0.0]] * 3)
    force = np.array([0, 0, 0, 1, 0, 0], np.uint8)
    gated = reference.gate(logits, 0.5, force=force, row_map=np.array([1, 3, 5]))
    assert (gated.rows.tolist(), gated.idx.tolist()) == ([1], [3, -1, -1])


def test_rows_are_of_the_stage_and_idx_of_the_batch():
    logits = np.array([[0.0, 0.0], [9.0, 0.0], [0.0, 0.0]])
    gated = reference.gate(logits, 0.9, row_map=np.array([4, 7, 19]))
    assert gated.rows.tolist() == [0, 2]
    assert gated.idx[: gated.count].tolist() == [4, 19]


def test_bucket_index_counts_buckets_and_names_no_body_for_an_empty_round():
    logits = np.zeros((7, 2))  # none is sure
    logits[5:, 0] = 9.0
    gated = reference.gate(logits, 0.9, buckets=(1, 2, 4))
    assert (gated.bucket.tolist(), gated.bucket_index.tolist()) == ([4, 1], [2, 0])
    sure = reference.gate(np.array([[9.0, 0.0]] * 5), 0.9, buckets=(1, 2, 4))
    assert (sure.bucket.tolist(), sure.bucket_index.tolist()) == ([0, 0], [3, 3])


def test_scores_that_are_given_are_compared_strictly():
    logits = np.array([[0.0, 1.0]] * 6 + [[NAN, 1.0]])
    scores = np.array([0.5, 0.25, 0.75, NAN, INF, -INF, 0.75])
    gated = reference.gate(logits, 0.5, scores=scores)
    assert gated.rows.tolist() == [0, 1, 3, 4, 5, 6]
    assert gated.confidence[2] == 0.75
