"""What a sum of Kronecker products costs, and which shapes a matrix can be factored into.

A matrix ``[rows, columns]`` becomes ``sum_s A_s (x) B_s`` with ``A_s [m1, n1]``, ``B_s [m2, n2]``,
``rows = m1 * m2`` and ``columns = n1 * n2``.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal, NamedTuple

from runtime.errors import InputError

Order = Literal["left", "right"]


class Shape(NamedTuple):
    """Shapes ``[m1, n1]`` of the left factor and ``[m2, n2]`` of the right one."""

    m1: int
    n1: int
    m2: int
    n2: int

    @property
    def rows(self) -> int:
        """Rows of the product."""
        return self.m1 * self.m2

    @property
    def columns(self) -> int:
        """Columns of the product."""
        return self.n1 * self.n2

    @property
    def full_rank(self) -> int:
        """Terms that represent every matrix exactly."""
        return min(self.m1 * self.n1, self.m2 * self.n2)

    def text(self) -> str:
        """Return the shape as ``64x16 (x) 2x2``."""
        return f"{self.m1}x{self.n1} (x) {self.m2}x{self.n2}"


@dataclass(frozen=True)
class Factoring:
    """A shape and how many terms are summed."""

    shape: Shape
    terms: int

    @property
    def parameters(self) -> int:
        """Numbers in all factors; a bias and permutations come on top."""
        m1, n1, m2, n2 = self.shape
        return self.terms * (m1 * n1 + m2 * n2)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one vector by the cheaper order; a permutation has none."""
        return min(self.macs_by("left"), self.macs_by("right"))

    @property
    def order(self) -> Order:
        """The factor that is cheaper to multiply by first."""
        return "left" if self.macs_by("left") <= self.macs_by("right") else "right"

    def macs_by(self, first: Order) -> int:
        """Return the multiply-accumulates of one vector, multiplied by one factor first."""
        m1, n1, m2, n2 = self.shape
        each = n2 * m1 * (n1 + m2) if first == "left" else n1 * m2 * (n2 + m1)
        return self.terms * each

    @property
    def pays(self) -> bool:
        """Whether there are fewer parameters than in the dense matrix."""
        return self.parameters < self.shape.rows * self.shape.columns

    @property
    def expected_share(self) -> float:
        """Energy that the terms keep of a matrix without structure, to first order.

        The largest singular value of an a x b matrix of independent numbers is about
        ``sqrt(a) + sqrt(b)``, and all squares sum to ``a * b``. For the same number of parameters
        the balanced shape, a = b, keeps most.
        """
        a, b = self.shape.m1 * self.shape.n1, self.shape.m2 * self.shape.n2
        return min(1.0, self.terms * (math.sqrt(a) + math.sqrt(b)) ** 2 / (a * b))


@dataclass(frozen=True)
class Limit:
    """The most that a factored matrix may have; None is no limit."""

    parameters: float | None = None
    macs: float | None = None

    def terms(self, shape: Shape) -> int:
        """Return how many terms of a shape fit."""
        one = Factoring(shape, 1)
        most = [shape.full_rank, (shape.rows * shape.columns - 1) // one.parameters]
        most += [] if self.parameters is None else [math.floor(self.parameters / one.parameters)]
        most += [] if self.macs is None else [math.floor(self.macs / one.macs)]
        return min(most)


def shapes(rows: int, columns: int) -> list[Shape]:
    """Return the shapes in which both factors are matrices.

    A row times a column would be a factoring of low rank, which no reordering makes better.
    """
    return [
        Shape(m1, n1, rows // m1, columns // n1)
        for m1 in divisors(rows)[1:-1]
        for n1 in divisors(columns)[1:-1]
    ]


def propose(rows: int, columns: int, limit: Limit) -> Factoring:
    """Return the factoring within a limit that keeps most of a matrix without structure.

    Raises
    ------
    InputError
        When the matrix does not factor, or nothing that fits is smaller than it.
    """
    found = [Factoring(shape, terms) for shape, terms in _fitting(rows, columns, limit)]
    if found:
        return max(found, key=lambda item: (item.expected_share, -item.macs))
    if not shapes(rows, columns):
        raise InputError(
            f"matrix {rows} x {columns}: does not factor into matrices, expected that neither size "
            "is prime. Leave it dense, or give a shape with a side of 1."
        )
    raise InputError(
        f"matrix {rows} x {columns}: no Kronecker product has at most {_limit_text(limit)} and is "
        f"smaller than the {rows * columns} of the matrix. Raise the limit, or leave it dense."
    )


def check(factoring: Factoring, rows: int, columns: int) -> None:
    """Check a factoring against the matrix it is for.

    Raises
    ------
    InputError
        When the shape is of another matrix, or there are too many terms to pay or to be of use.
    """
    shape = factoring.shape
    if (shape.rows, shape.columns) != (rows, columns):
        known = shapes(rows, columns)
        some = ", ".join(item.text() for item in sorted(known, key=_imbalance)[:4])
        raise InputError(
            f"factors {shape.text()}: expected those of a {rows} x {columns} matrix, got "
            f"{shape.rows} x {shape.columns}. "
            + (f"The most balanced that do: {some}." if some else "A side of it is prime.")
        )
    most = Limit().terms(shape)
    if not 1 <= factoring.terms <= most:
        raise InputError(
            f"{factoring.terms} terms of {shape.text()}: expected 1 to {most}; with more there are "
            f"as many parameters as in the {rows} x {columns} matrix."
        )


def divisors(number: int) -> list[int]:
    """Return all divisors, rising."""
    small = [item for item in range(1, math.isqrt(number) + 1) if number % item == 0]
    return sorted({*small, *(number // item for item in small)})


def _fitting(rows: int, columns: int, limit: Limit) -> Iterator[tuple[Shape, int]]:
    for shape in shapes(rows, columns):
        terms = limit.terms(shape)
        if terms >= 1:
            yield shape, terms


def _imbalance(shape: Shape) -> float:
    return abs(math.log(shape.m1 * shape.n1 / (shape.m2 * shape.n2)))


def _limit_text(limit: Limit) -> str:
    parts = []
    if limit.parameters is not None:
        parts.append(f"{int(limit.parameters)} parameters")
    if limit.macs is not None:
        parts.append(f"{int(limit.macs)} multiply-accumulates")
    return " and ".join(parts) or "any number of parameters"
