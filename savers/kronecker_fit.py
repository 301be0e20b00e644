"""The nearest sum of Kronecker products to a matrix whose rows and columns may be reordered.

``min || W[p][:, q] - sum_s A_s (x) B_s ||`` over factors and permutations (the problem that
TQCompressor states: Abronin et al., arXiv 2401.16367, CC BY 4.0). The search is our own:

- Given permutations, the factors follow from a truncated singular value decomposition of the
  rearranged matrix (Van Loan and Pitsianis, "Approximation with Kronecker products", 1993).
- Given factors, the best row order is a linear assignment, and so is the best column order; both
  are solved exactly.

Each step is a minimum over its own variables, so the error never rises; the minimum that is
reached is a local one. With several terms the products fit the order that there is so well that no
assignment changes it, so a search first orders for one term, then for two, four and so on. It
starts from the order that there is and from random ones.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.linalg import eigh
from scipy.optimize import linear_sum_assignment

from savers.kronecker_shapes import Factoring, Shape, check

Matrix = npt.NDArray[np.float64]
Index = npt.NDArray[np.int64]

ROUNDS = 30
TOLERANCE = 1e-4
"""Relative fall of the error in a round below which a search ends."""


@dataclass(frozen=True)
class Decomposition:
    """Factors of a reordered matrix.

    Attributes
    ----------
    left, right
        ``f64 [r, m1, n1]`` and ``f64 [r, m2, n2]``.
    rows, columns
        Orders ``p i64 [m]`` and ``q i64 [n]``: the products sum to about ``W[p][:, q]``.
    error
        Frobenius norm of the difference, relative to that of the matrix.
    history
        The error after each step from this start, never rising.
    """

    left: Matrix
    right: Matrix
    rows: Index
    columns: Index
    error: float
    history: tuple[float, ...]

    def dense(self) -> Matrix:
        """Return the matrix ``f64 [m, n]`` that the factors stand for, in its own order."""
        product = kronecker_sum(self.left, self.right)
        return product[np.ix_(np.argsort(self.rows), np.argsort(self.columns))]


def kronecker_sum(left: Matrix, right: Matrix) -> Matrix:
    """Return ``sum_s left[s] (x) right[s]`` of ``[r, m1, n1]`` and ``[r, m2, n2]``."""
    _, m1, n1 = left.shape
    _, m2, n2 = right.shape
    product: Matrix = np.einsum("rij,rkl->ikjl", left, right).reshape(m1 * m2, n1 * n2)
    return product


def rearranged(matrix: Matrix, shape: Shape) -> Matrix:
    """Return ``[m1 * n1, m2 * n2]``, in which a Kronecker product is an outer product."""
    m1, n1, m2, n2 = shape
    blocks: Matrix = matrix.reshape(m1, m2, n1, n2).transpose(0, 2, 1, 3)
    return blocks.reshape(m1 * n1, m2 * n2)


def nearest_factors(matrix: Matrix, factoring: Factoring) -> tuple[Matrix, Matrix]:
    """Return the best factors ``[r, m1, n1]`` and ``[r, m2, n2]`` of a matrix in its order."""
    (m1, n1, m2, n2), terms = factoring.shape, factoring.terms
    long = rearranged(matrix, factoring.shape)
    turned = long.shape[0] < long.shape[1]
    long = long.T if turned else long
    side = long.shape[1]
    # The few leading vectors of the smaller Gram matrix: far cheaper than all of them.
    squares, vectors = eigh(long.T @ long, subset_by_index=(side - terms, side - 1))
    scale = np.sqrt(np.sqrt(np.maximum(squares, np.finfo(float).tiny)))
    short_factor, long_factor = vectors * scale, long @ vectors / scale
    left, right = (short_factor, long_factor) if turned else (long_factor, short_factor)
    return left.T.reshape(terms, m1, n1), right.T.reshape(terms, m2, n2)


def decompose_plain(matrix: Matrix, factoring: Factoring) -> Decomposition:
    """Return the best factors without reordering.

    Raises
    ------
    InputError
        When the factors are of another matrix, or too many.
    """
    check(factoring, *matrix.shape)
    rows, columns = (np.arange(size) for size in matrix.shape)
    return _fitted(matrix, factoring, rows, columns)


def decompose_shuffled(matrix: Matrix, factoring: Factoring, *, seed: int = 0) -> Decomposition:
    """Return the best factors in an order drawn at random, to compare a search with.

    Raises
    ------
    InputError
        When the factors are of another matrix, or too many.
    """
    check(factoring, *matrix.shape)
    rng = np.random.default_rng(seed)
    rows, columns = (rng.permutation(size) for size in matrix.shape)
    return _fitted(matrix, factoring, rows, columns)


def random_factors(matrix: Matrix, factoring: Factoring, *, seed: int = 0) -> Decomposition:
    """Return random factors whose sum has the norm of a matrix, to compare a fit with.

    Raises
    ------
    InputError
        When the factors are of another matrix, or too many.
    """
    check(factoring, *matrix.shape)
    (m1, n1, m2, n2), terms = factoring.shape, factoring.terms
    rng = np.random.default_rng(seed)
    left = rng.standard_normal((terms, m1, n1))
    right = rng.standard_normal((terms, m2, n2))
    scale = np.sqrt(np.linalg.norm(matrix) / np.linalg.norm(kronecker_sum(left, right)))
    rows, columns = (np.arange(size) for size in matrix.shape)
    return _measured(matrix, scale * left, scale * right, rows, columns)


def decompose(
    matrix: Matrix, factoring: Factoring, *, restarts: int = 0, seed: int = 0
) -> Decomposition:
    """Return the best of several searches; no worse than `decompose_plain`.

    Parameters
    ----------
    restarts
        Searches from random orders, besides the one from the order that there is.

    Raises
    ------
    InputError
        When the factors are of another matrix, or too many.
    """
    check(factoring, *matrix.shape)
    plain = decompose_plain(matrix, factoring)
    starts = _starts(matrix.shape, restarts, np.random.default_rng(seed))
    grown = [_grow(matrix, factoring, rows, columns) for rows, columns in starts]
    searches = [_search(matrix, factoring, plain.rows, plain.columns), *grown]
    return min(searches, key=lambda item: item.error)


def _starts(
    size: tuple[int, ...], restarts: int, rng: np.random.Generator
) -> Iterator[tuple[Index, Index]]:
    rows, columns = size
    yield np.arange(rows), np.arange(columns)
    for _ in range(restarts):
        yield rng.permutation(rows), rng.permutation(columns)


def _grow(matrix: Matrix, factoring: Factoring, rows: Index, columns: Index) -> Decomposition:
    """Search with one term, then twice as many from the orders found, up to all."""
    terms = 1
    history: tuple[float, ...] = ()
    while True:
        found = _search(matrix, Factoring(factoring.shape, terms), rows, columns)
        history += found.history
        if terms == factoring.terms:
            return replace(found, history=history)
        terms, rows, columns = min(2 * terms, factoring.terms), found.rows, found.columns


def _search(matrix: Matrix, factoring: Factoring, rows: Index, columns: Index) -> Decomposition:
    """Alternate factors, row order and column order until a round gains next to nothing."""
    best = _fitted(matrix, factoring, rows, columns)
    history = best.history
    for _ in range(ROUNDS):
        product = kronecker_sum(best.left, best.right)
        rows = assigned(matrix[:, best.columns] @ product.T)
        columns = assigned(matrix[rows].T @ product)
        found = _fitted(matrix, factoring, rows, columns)
        if not found.error < best.error * (1 - TOLERANCE):
            break
        history += found.history
        best = found
    return replace(best, history=history)


def assigned(gain: Matrix) -> Index:
    """Return the order ``p`` that maximises ``sum_i gain[p[i], i]``, of a square matrix."""
    places, chosen = linear_sum_assignment(gain, maximize=True)
    order: Index = np.empty(len(gain), np.int64)
    order[chosen] = places
    return order


def _fitted(matrix: Matrix, factoring: Factoring, rows: Index, columns: Index) -> Decomposition:
    left, right = nearest_factors(matrix[np.ix_(rows, columns)], factoring)
    return _measured(matrix, left, right, rows, columns)


def _measured(
    matrix: Matrix, left: Matrix, right: Matrix, rows: Index, columns: Index
) -> Decomposition:
    distance = np.linalg.norm(matrix[np.ix_(rows, columns)] - kronecker_sum(left, right))
    error = float(distance / max(np.linalg.norm(matrix), np.finfo(float).tiny))
    return Decomposition(left, right, rows, columns, error, (error,))
