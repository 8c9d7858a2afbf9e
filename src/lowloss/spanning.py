"""Exploring which minima to connect: lower and lower spanning trees of saddles.

Reference: Draxler et al. 2018, sec. 3.2 and Algorithm 3.

A graph has the minima as nodes and the known paths as edges, weighted by their saddles. The highest edge on the way
through its minimum spanning tree bounds the saddle between two minima from above (the ultrametric property).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from itertools import combinations, product
from math import inf

import numpy as np

Pair = tuple[int, int]
"""Two minima, the smaller index first."""

ROUNDING = 1e-4
"""Relative difference of two losses that are taken as equal: an engine may round a point differently beside others."""


def spanning_tree(count: int, saddles: Mapping[Pair, float]) -> list[Pair]:
    """The edges of the minimum spanning tree (Kruskal 1956), the highest saddle first; a forest where paths are
    missing. A path on which the loss is not finite connects nothing."""
    above, tree = list(range(count)), list[Pair]()

    def top(k: int) -> int:
        while above[k] != k:
            above[k] = k = above[above[k]]
        return k

    for pair in sorted((pair for pair, loss in saddles.items() if loss < inf), key=lambda pair: (saddles[pair], pair)):
        one, other = map(top, pair)
        if one != other:
            above[one] = other
            tree.append(pair)
    return sorted(tree, key=lambda edge: (-saddles[edge], edge))


def next_pair(
    count: int, saddles: Mapping[Pair, float], pending: Collection[Pair] = (), losses: Sequence[float] | None = None
) -> Pair | None:
    """The pair to search next, or None if none is left (or none before a pending one is known).

    First the star around minimum 0; then a pair between the two trees that the highest edge of the spanning tree
    holds together, so that a lower path would replace it; of the next edge where all such pairs are known. A path is
    never below its ends, so with the minima's losses a pair is left out where the higher one is at the edge's saddle,
    within rounding: neither tree nor bounds could improve.

    Args:
        count, saddles: the number of minima, and the known paths' highest losses.
        pending: pairs that others are searching at the moment; their paths are not known yet.
        losses: the minima's own, of the same split as the saddles; None leaves out no pair.
    """
    tested = {*saddles, *pending}
    for k in range(1, count):
        if (0, k) not in tested:
            return 0, k
    untested_CC = np.ones((count, count), dtype=bool)
    i_T, j_T = np.array(sorted(tested)).reshape(-1, 2).T
    untested_CC[i_T, j_T] = untested_CC[j_T, i_T] = False
    loss_C = np.full(count, -inf) if losses is None else np.array(losses)
    promise_C = _promise(count, saddles)
    # Minima that no finite path reaches come before any edge: there the bound is infinite.
    for saddle, part, rest in _gaps(count, spanning_tree(count, saddles), saddles):
        one, other = np.array(sorted(part)), np.array(sorted(rest))
        one, other = one[_is_lower(loss_C[one], saddle)], other[_is_lower(loss_C[other], saddle)]
        open_XY = untested_CC[np.ix_(one, other)]
        if open_XY.any():
            promise_XY = np.where(open_XY, promise_C[one, None] + promise_C[other], np.nan)
            x, y = np.nonzero(promise_XY == np.nanmin(promise_XY))
            return min(_pair(int(one[m]), int(other[n])) for m, n in zip(x, y, strict=True))
    return None


def _is_lower(loss_C: np.ndarray, saddle: float) -> np.ndarray:
    return (loss_C < saddle) & ~np.isclose(loss_C, saddle, rtol=ROUNDING, atol=0)


def _gaps(
    count: int, edges: Sequence[Pair], saddles: Mapping[Pair, float]
) -> Iterator[tuple[float, set[int], set[int]]]:
    """Two parts of the minima that are not connected, or only by the highest edges of the tree, in their order; and
    the saddle between them, infinite where there is none."""
    near: list[set[int]] = [set() for _ in range(count)]
    for i, j in edges:
        near[i].add(j)
        near[j].add(i)
    left = {*range(count)}
    while left and len(part := _reached(near, min(left))) < count:
        left -= part
        yield inf, part, {*range(count)} - part
    for i, j in edges:
        near[i].remove(j)
        near[j].remove(i)
        yield saddles[i, j], _reached(near, i), _reached(near, j)
        near[i].add(j)
        near[j].add(i)


def _reached(near: Sequence[set[int]], start: int) -> set[int]:
    """The nodes of a graph that its edges connect with one; near: of each node its neighbours."""
    found, left = {start}, [start]
    while left:
        new = near[left.pop()] - found
        found |= new
        left += new
    return found


def _promise(count: int, saddles: Mapping[Pair, float]) -> np.ndarray:
    """A minimum is promising where a path from it was low: its lowest saddle, 0 where none is known."""
    lowest_C = np.full(count, inf)
    for pair, loss in saddles.items():
        for k in pair:
            lowest_C[k] = min(lowest_C[k], loss)
    return np.where(lowest_C < inf, lowest_C, 0.0)


def upper_bounds(count: int, saddles: Mapping[Pair, float]) -> dict[Pair, float]:
    """An upper bound of every pair's saddle: the highest loss on the way through the spanning tree.

    L*_AC <= max(L_AB, L_BC) (sec. 3.2); infinite where no known path connects the two.
    """
    bounds = dict.fromkeys(combinations(range(count), 2), inf)
    merged = {k: {k} for k in range(count)}
    for i, j in reversed(spanning_tree(count, saddles)):
        for pair in product(merged[i], merged[j]):
            bounds[_pair(*pair)] = saddles[i, j]
        union = merged[i] | merged[j]
        merged |= dict.fromkeys(union, union)
    return bounds


def _pair(i: int, j: int) -> Pair:
    return (i, j) if i < j else (j, i)
