"""The search: what it finds is never worse, and what it says of it is true; no torch."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from savers.kronecker_fit import (
    assigned,
    decompose,
    decompose_plain,
    decompose_shuffled,
    kronecker_sum,
    nearest_factors,
    random_factors,
    rearranged,
)
from savers.kronecker_shapes import Factoring, Shape

CASES = [
    Factoring(Shape(8, 4, 2, 3), 1),
    Factoring(Shape(8, 4, 2, 3), 3),
    Factoring(Shape(2, 3, 8, 4), 5),
    Factoring(Shape(4, 12, 4, 1), 2),
    Factoring(Shape(1, 12, 16, 1), 4),
]


def matrix(seed: int, rows: int = 16, columns: int = 12) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=(rows, columns))


def error(found, whole: np.ndarray) -> float:
    return float(np.linalg.norm(whole - found.dense()) / np.linalg.norm(whole))


def test_a_product_rearranges_to_an_outer_product():
    left, right = matrix(1, 3, 5), matrix(2, 4, 2)
    found = rearranged(np.kron(left, right), Shape(3, 5, 4, 2))
    np.testing.assert_allclose(found, np.outer(left.ravel(), right.ravel()), rtol=1e-12)
    np.testing.assert_array_equal(kronecker_sum(left[None], right[None]), np.kron(left, right))


@pytest.mark.parametrize("factoring", CASES)
def test_plain_factors_leave_the_smaller_singular_values(factoring):
    whole = matrix(3)
    values = np.linalg.svd(rearranged(whole, factoring.shape), compute_uv=False)
    expected = np.sqrt((values[factoring.terms :] ** 2).sum()) / np.linalg.norm(whole)
    found = decompose_plain(whole, factoring)
    assert found.error == pytest.approx(expected, abs=1e-7)
    assert error(found, whole) == pytest.approx(found.error, abs=1e-12)


def test_all_terms_rebuild_the_matrix():
    whole = matrix(4)
    left, right = nearest_factors(whole, Factoring(Shape(8, 4, 2, 3), 6))
    np.testing.assert_allclose(kronecker_sum(left, right), whole, atol=1e-7)


@pytest.mark.parametrize("factoring", CASES)
@pytest.mark.parametrize("seed", range(4))
def test_a_search_is_no_worse_than_plain_and_its_error_never_rises(factoring, seed):
    whole = matrix(seed)
    found = decompose(whole, factoring, restarts=2, seed=seed)
    assert found.error <= decompose_plain(whole, factoring).error
    assert all(b <= a + 1e-9 for a, b in zip(found.history, found.history[1:], strict=False))
    assert found.history[-1] == found.error
    assert error(found, whole) == pytest.approx(found.error, abs=1e-12)
    for order in (found.rows, found.columns):
        np.testing.assert_array_equal(np.sort(order), np.arange(len(order)))


@pytest.mark.parametrize("seed", range(4))
def test_no_other_order_fits_the_factors_found_better(seed):
    whole = matrix(seed)
    found = decompose(whole, CASES[0], restarts=1, seed=seed)
    product = kronecker_sum(found.left, found.right)
    rows = assigned(whole[:, found.columns] @ product.T)
    columns = assigned(whole[found.rows].T @ product)
    for order in ((rows, found.columns), (found.rows, columns)):
        other = np.linalg.norm(whole[np.ix_(*order)] - product) / np.linalg.norm(whole)
        # A search ends when a round, refitting included, gains less than this.
        assert other >= found.error * (1 - 1e-4)


@pytest.mark.parametrize("seed", range(8))
def test_a_sum_of_products_that_needs_no_order_is_left_as_it_is(seed):
    whole = random_factors(matrix(11), CASES[2], seed=seed).dense()
    assert decompose(whole, CASES[2]).error < 1e-6


def test_more_restarts_are_no_worse():
    whole, factoring = matrix(7), CASES[1]
    errors = [decompose(whole, factoring, restarts=count).error for count in (0, 2, 6)]
    assert errors == sorted(errors, reverse=True)


def test_a_search_does_not_change_from_call_to_call():
    first, second = (decompose(matrix(8), CASES[1], restarts=3, seed=5) for _ in range(2))
    np.testing.assert_array_equal(first.left, second.left)
    np.testing.assert_array_equal(first.rows, second.rows)


def test_an_assignment_is_the_best_of_all_orders():
    gain = matrix(9, 5, 5)
    found = assigned(gain)
    best = max(
        itertools.permutations(range(5)),
        key=lambda order: sum(gain[row, place] for place, row in enumerate(order)),
    )
    assert tuple(found) == best


def test_a_zero_matrix_has_zero_factors():
    found = decompose(np.zeros((16, 12)), CASES[0])
    assert found.error == 0.0
    np.testing.assert_allclose(found.dense(), 0.0, atol=1e-100)


def test_controls_say_their_own_error():
    whole = matrix(10)
    for found in (decompose_shuffled(whole, CASES[1]), random_factors(whole, CASES[1])):
        assert error(found, whole) == pytest.approx(found.error, abs=1e-12)
    product = random_factors(whole, CASES[1]).dense()
    assert np.linalg.norm(product) == pytest.approx(np.linalg.norm(whole))
