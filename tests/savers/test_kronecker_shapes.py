"""What factors cost and which shapes there are; no torch."""

from __future__ import annotations

import pytest

from runtime.errors import InputError
from savers.kronecker_shapes import Factoring, Limit, Shape, check, divisors, propose, shapes


def test_divisors():
    assert divisors(1) == [1]
    assert divisors(36) == [1, 2, 3, 4, 6, 9, 12, 18, 36]
    assert divisors(97) == [1, 97]


def test_costs_by_hand():
    # X [4, 5], A [2, 4] and B [3, 5]: A X is 2*4*5, times B^T 2*5*3; X B^T is 4*5*3, A of it 2*4*3.
    found = Factoring(Shape(2, 4, 3, 5), 7)
    assert found.parameters == 7 * (2 * 4 + 3 * 5)
    assert found.macs_by("left") == 7 * (40 + 30)
    assert found.macs_by("right") == 7 * (60 + 24)
    assert (found.order, found.macs) == ("left", 490)


def test_the_papers_shapes_save_parameters_and_no_multiplications():
    found = Factoring(Shape(768, 384, 4, 2), 4)
    dense = 3072 * 768
    assert found.parameters == 1_179_680 and found.pays
    assert (found.macs_by("left"), found.macs_by("right")) == (2_383_872, 4_730_880)
    assert found.macs > dense


def test_shapes_are_all_pairs_of_matrices():
    found = shapes(6, 4)
    assert found == [Shape(2, 2, 3, 2), Shape(3, 2, 2, 2)]
    assert all(shape.rows == 6 and shape.columns == 4 for shape in found)
    assert shapes(7, 12) == []


@pytest.mark.parametrize(
    "limit",
    [Limit(parameters=2_048), Limit(macs=2_500), Limit(parameters=1_500, macs=3_000)],
)
def test_a_proposal_keeps_its_limit_and_no_other_keeps_more(limit):
    found = propose(128, 32, limit)
    assert found.pays
    for shape in shapes(128, 32):
        terms = limit.terms(shape)
        if terms >= 1:
            assert Factoring(shape, terms).expected_share <= found.expected_share
    assert limit.parameters is None or found.parameters <= limit.parameters
    assert limit.macs is None or found.macs <= limit.macs


def test_a_proposal_under_parameters_alone_is_balanced():
    shape = propose(128, 32, Limit(parameters=2_048)).shape
    assert shape.m1 * shape.n1 == shape.m2 * shape.n2 == 64


def test_a_matrix_with_a_prime_side_does_not_factor():
    with pytest.raises(InputError, match="127 x 32: does not factor"):
        propose(127, 32, Limit(parameters=1_000))


def test_a_limit_below_every_product_is_refused():
    with pytest.raises(InputError, match=r"at most 10 parameters .* leave it dense"):
        propose(128, 32, Limit(parameters=10))


def test_factors_of_another_matrix_are_refused_and_some_that_fit_named():
    with pytest.raises(
        InputError, match=r"got 12 x 12\. The most balanced that do: .*16x4 \(x\) 8x8"
    ):
        check(Factoring(Shape(3, 4, 4, 3), 1), 128, 32)
    with pytest.raises(InputError, match="A side of it is prime"):
        check(Factoring(Shape(3, 4, 4, 3), 1), 127, 31)


@pytest.mark.parametrize("terms", [0, 4, 9])
def test_as_many_terms_as_do_not_pay_are_refused(terms):
    # A term has 68 numbers and the matrix 256, so three pay; four represent everything.
    with pytest.raises(InputError, match=r"16x4 .*: expected 1 to 3"):
        check(Factoring(Shape(16, 4, 2, 2), terms), 32, 8)
