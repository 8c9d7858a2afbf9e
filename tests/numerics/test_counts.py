"""Numbers of permutation points against an enumeration of all of them."""

from fractions import Fraction
from itertools import permutations, product

import pytest

from lowloss.errors import LowlossError
from lowloss.symmetry.counts import bound, growth, ratio, ratio_of_paper, stirling


def enumerated(order, n):
    """Assignments of n neurons to n - K parameter vectors that use each of them, over those of n vectors."""
    vectors = n - order
    points = sum(set(assigned) == set(range(vectors)) for assigned in product(range(vectors), repeat=n))
    return Fraction(points, sum(1 for _ in permutations(range(n))))


@pytest.mark.parametrize("n", range(1, 8))
def test_ratio_is_that_of_an_enumeration(n):
    for order in range(n):
        assert ratio(order, n) == enumerated(order, n)
        assert bound(order, n) <= ratio(order, n)


def test_ratio_is_the_papers():
    for order in (1, 2, 3):
        for n in range(2 * order, 30):
            assert ratio(order, n) == ratio_of_paper(order, n)


def test_stirling_numbers_of_a_table():
    # Graham, Knuth & Patashnik, table 258.
    assert [stirling(7, k) for k in range(8)] == [0, 1, 63, 301, 350, 140, 21, 1]


@pytest.mark.parametrize("order", [1, 2, 3, 4])
def test_bound_grows_as_lemma_1_says(order):
    n = 10**6
    assert float(bound(order, n) / Fraction(n) ** order / growth(order)) == pytest.approx(1, abs=order**2 * 2 / n)


def test_an_order_that_there_is_not_is_told():
    with pytest.raises(LowlossError, match="5 neurons has permutation points of the orders 0 … 4, not 5"):
        ratio(5, 5)
