"""How many permutation points there are (Brea et al. 2019, sec. 4.3 and appendices B and C)."""

from fractions import Fraction
from math import comb, factorial

from lowloss.errors import LowlossError, check_number


def stirling(n: int, k: int) -> int:
    """The Stirling number of the second kind S(n, k): the ways to put n things into k sets, none of them empty."""
    return sum((-1) ** (k - j) * comb(k, j) * j**n for j in range(k + 1)) // factorial(k)


def ratio(order: int, n: int) -> Fraction:
    """T(K, n): the permutation points of order K in a layer of n neurons, over its equivalent minima.

    A point of order K gives n neurons the n - K parameter vectors of a smaller layer, each to one at least: there are
    (n - K)! S(n, n - K) such maps, and n! minima. The paper has K = 1, 2, 3 (proposition 1).

    Raises LowlossError unless 0 <= K < n.
    """
    _check(order, n)
    return Fraction(factorial(n - order) * stirling(n, n - order), factorial(n))


def ratio_of_paper(order: int, n: int) -> Fraction:
    """T(K, n) as the paper prints it, for K = 1, 2 and 3 (proposition 1 (i)), at n >= 2 K."""
    m = n - order
    terms = {
        1: Fraction(comb(m, 1), 2),
        2: Fraction(comb(m, 1), 6) + Fraction(comb(m, 2), 4),
        3: Fraction(comb(m, 1), 24) + Fraction(comb(m, 2), 6) + Fraction(comb(m, 3), 8),
    }
    return terms[order]


def bound(order: int, n: int) -> Fraction:
    """The lower bound C(n - K, K) / 2^K of T(K, n) (proposition 1 (ii)); for K > n / 2 it is zero."""
    _check(order, n)
    return Fraction(comb(n - order, order), 2**order)


def growth(order: int) -> Fraction:
    """The c of lemma 1: bound(K, n) / n^K tends to c = 1 / (2^K K!) as n grows.

    The paper prints 1 / (2^K e^K K!). In its (8), (n/K - 1)^(n - K) / (n/K - 2)^(n - 2K) tends to (e n / K)^K, not to
    (n / K)^K, which takes the factor e^K away.
    """
    return Fraction(1, 2**order * factorial(order))


def _check(order: int, n: int) -> None:
    for name, value in (("order", order), ("n", n)):
        check_number(name, value, int, 0)
    if not order < n:
        raise LowlossError(f"a layer of {n} neurons has permutation points of the orders 0 … {n - 1}, not {order}")
