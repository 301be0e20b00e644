"""Buckets, gather and scatter of the reference, on cases worked out by hand."""

import math

import numpy as np
import pytest

from kernels import reference


def rounds_by_loop(count, most, buckets):
    sizes = []
    for first in range(0, most, buckets[-1]):
        rows = min(max(count - first, 0), buckets[-1])
        sizes.append(min(size for size in buckets if size >= rows) if rows else 0)
    return sizes


@pytest.mark.parametrize(
    ("count", "most", "buckets", "expected"),
    [
        (0, 5, (1, 2, 4), [0, 0]),
        (1, 5, (1, 2, 4), [1, 0]),
        (3, 5, (1, 2, 4), [4, 0]),
        (4, 5, (1, 2, 4), [4, 0]),
        (5, 5, (1, 2, 4), [4, 1]),
        (5, 5, (8,), [8]),
        (0, 0, (8,), []),
        (9, 9, (3,), [3, 3, 3]),
        (257, 600, (1, 16, 256), [256, 1, 0]),
    ],
)
def test_bucket_rounds_by_hand(count, most, buckets, expected):
    assert reference.bucket_rounds(count, most, buckets).tolist() == expected
    assert rounds_by_loop(count, most, buckets) == expected


@pytest.mark.parametrize(
    "buckets", [(1,), (7,), (1, 2, 4, 8), (3, 5, 11), reference.DEFAULT_BUCKETS]
)
def test_bucket_rounds_hold_every_row_and_equal_the_loop(buckets):
    for most in (1, 2, 11, 12, 257):
        for count in {0, 1, most // 2, most - 1, most}:
            found = reference.bucket_rounds(count, most, buckets)
            assert found.tolist() == rounds_by_loop(count, most, buckets)
            assert found.sum() >= count


def test_gate_cuts_its_count_into_rounds_of_the_given_buckets():
    logits = np.zeros((11, 2))
    logits[3] = [9.0, 0.0]
    gated = reference.gate(logits, 0.9, buckets=(2, 4))
    assert (gated.count, gated.bucket.tolist()) == (10, [4, 4, 2])


@pytest.mark.parametrize("buckets", [(), (0, 1), (-1,), (2, 2), (4, 2)])
def test_buckets_that_do_not_ascend_are_refused(buckets):
    with pytest.raises(ValueError, match="buckets: expected ascending positive sizes, got"):
        reference.gate(np.zeros((1, 2)), 0.5, buckets=buckets)


def test_gather_takes_the_rows_in_order_and_pads_with_the_last():
    tensor = np.arange(20).reshape(5, 2, 2)
    found = reference.gather(tensor, np.array([3, 1, -1, -1, -1], np.int32), 2, 4)
    assert found.tolist() == tensor[[3, 1, 1, 1]].tolist()


def test_gather_of_a_full_bucket_has_no_padding():
    tensor = np.arange(5)
    assert reference.gather(tensor, np.array([4, 0]), 2, 2).tolist() == [4, 0]


def test_gather_of_no_rows_pads_with_row_zero_whatever_idx_holds():
    tensor = np.arange(5) + 100
    assert reference.gather(tensor, np.array([-1, 9]), 0, 3).tolist() == [100, 100, 100]
    assert reference.gather(tensor, np.array([-1, 9]), 0, 0).tolist() == []


@pytest.mark.parametrize(("count", "bucket"), [(-1, 4), (3, 2), (4, 8)])
def test_gather_refuses_a_count_that_does_not_fit(count, bucket):
    with pytest.raises(ValueError, match=f"count: expected 0 to {min(bucket, 3)}, got {count}"):
        reference.gather(np.arange(5), np.array([0, 1, 2]), count, bucket)


def test_scatter_writes_the_rows_they_came_from_and_never_padding():
    label = np.full(6, -7, np.int32)
    confidence = np.full(6, -7.0)
    logits = np.array([[0.0, 1.0], [2.0, 0.0], [0.0, 9.0], [0.0, 9.0]])
    reference.scatter(logits, np.array([4, 1, 5, 0], np.int32), 2, label, confidence)
    assert label.tolist() == [-7, 0, -7, -7, 1, -7]
    assert confidence[4] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-15)
    assert confidence[1] == pytest.approx(1 / (1 + math.exp(-2)), rel=1e-15)
    assert confidence[[0, 2, 3, 5]].tolist() == [-7.0] * 4


def test_scatter_of_no_rows_writes_nothing():
    label, confidence = np.full(2, -7, np.int32), np.full(2, -7.0, np.float32)
    reference.scatter(np.zeros((4, 3)), np.full(4, -1), 0, label, confidence)
    assert label.tolist() == [-7, -7] and confidence.tolist() == [-7.0, -7.0]


def test_scatter_uses_the_temperature():
    label, confidence = np.zeros(1, np.int32), np.zeros(1)
    reference.scatter(np.array([[2.0, 0.0]]), np.array([0]), 1, label, confidence, temperature=2.0)
    assert confidence[0] == pytest.approx(1 / (1 + math.exp(-1)), rel=1e-15)


def test_dense_rows_by_hand():
    """Rounds of 4: a full one, one of 2 rows filled to 3, an empty one."""
    idx = np.array([2, 3, 5, 8, 11, 13, -1, -1])
    rows = reference.dense_rows(idx, 6, 4, np.array([4, 3, 0]))
    assert rows.tolist() == [2, 3, 5, 8, 11, 13, 13, -1, -1, -1, -1, -1]


def test_dense_rows_of_an_empty_round_that_is_filled_repeat_row_zero():
    rows = reference.dense_rows(np.array([7, -1]), 1, 1, np.array([1, 1]))
    assert rows.tolist() == [7, 0]


def test_scatter_adds_the_weighted_logits_of_an_earlier_stage():
    label, confidence = np.full(3, -1, np.int32), np.zeros(3)
    logits, other = np.array([[1.0, 0.0], [9.0, 9.0]]), np.array([[0.0, 4.0]])
    idx = np.array([2, 9])
    reference.scatter(logits, idx, 1, label, confidence, other=other, weight=0.5)
    assert label.tolist() == [-1, -1, 1]  # logits 1 and 2
    assert confidence.tolist() == [0, 0, pytest.approx(1 / (1 + math.exp(-1)))]
