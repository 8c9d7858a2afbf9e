"""Exploration against brute force on random tables of saddles."""

from itertools import combinations
from math import inf
from random import Random
from statistics import median
from time import process_time

import networkx as nx
import pytest

from lowloss.spanning import Pair, next_pair, spanning_tree, upper_bounds

SEEDS = range(200)


def table(seed: int, similar: bool = False) -> tuple[int, dict[Pair, float]]:
    """The number of minima, and a saddle for every pair; all within a tenth of each other if they are similar."""
    random = Random(seed)
    count = random.randint(2, 9)
    return count, {
        pair: 1 + 0.1 * random.random() if similar else random.random() for pair in combinations(range(count), 2)
    }


def explored(count: int, saddles: dict[Pair, float], runs: int | None = None) -> dict[Pair, float]:
    """What is known after a number of runs, by default all."""
    known: dict[Pair, float] = {}
    while len(known) != runs and (pair := next_pair(count, known)) is not None:
        assert pair not in known
        known[pair] = saddles[pair]
    return known


def weight(count: int, saddles: dict[Pair, float]) -> float:
    return sum(saddles[edge] for edge in spanning_tree(count, saddles))


def minimax(count: int, saddles: dict[Pair, float]) -> dict[Pair, float]:
    """The least highest saddle of any way between two minima, by Floyd and Warshall."""
    best = {(i, j): saddles.get((min(i, j), max(i, j)), inf) for i in range(count) for j in range(count)}
    for k in range(count):
        for i in range(count):
            for j in range(count):
                best[i, j] = min(best[i, j], max(best[i, k], best[k, j]))
    return {pair: best[pair] for pair in combinations(range(count), 2)}


@pytest.mark.parametrize("seed", SEEDS)
def test_run_to_the_end_it_is_brute_force(seed: int) -> None:
    count, saddles = table(seed)
    assert explored(count, saddles) == saddles
    brute = nx.Graph()
    brute.add_weighted_edges_from((i, j, loss) for (i, j), loss in saddles.items())
    tree = nx.minimum_spanning_tree(brute, algorithm="prim")
    assert {tuple(sorted(edge)) for edge in tree.edges} == set(spanning_tree(count, saddles))


@pytest.mark.parametrize("seed", SEEDS)
def test_every_run_keeps_or_lightens_the_tree_and_bounds_hold_throughout(seed: int) -> None:
    count, saddles = table(seed)
    true = minimax(count, saddles)
    before = dict.fromkeys(true, inf)
    known: dict[Pair, float] = {}
    while (pair := next_pair(count, known)) is not None:
        star = len(known) < count - 1
        assert not star or pair == (0, len(known) + 1)
        if not star:
            # The new path could replace an edge of the tree, and no higher edge has a pair left to try.
            around = [edge for edge in spanning_tree(count, known) if crosses(count, known, edge, pair)]
            higher = [edge for edge in spanning_tree(count, known) if known[edge] > known[around[0]]]
            assert not [p for p in saddles if p not in known and any(crosses(count, known, e, p) for e in higher)]
        known[pair] = saddles[pair]
        bounds = upper_bounds(count, known)
        assert bounds == minimax(count, known)
        assert all(true[p] <= bounds[p] <= before[p] for p in true)
        before = bounds
    assert before == true


def crosses(count: int, known: dict[Pair, float], edge: Pair, pair: Pair) -> bool:
    """Whether a path between the pair would hold together what the tree's edge does."""
    tree = nx.Graph(spanning_tree(count, known))
    tree.remove_edge(*edge)
    return (pair[0] in nx.node_connected_component(tree, edge[0])) != (
        pair[1] in nx.node_connected_component(tree, edge[0])
    )


def test_stopped_at_two_thirds_it_is_nearly_as_light() -> None:
    excess = []
    for seed in SEEDS:
        count, saddles = table(seed, similar=True)
        known = explored(count, saddles, max(count - 1, 2 * len(saddles) // 3))
        excess.append(weight(count, known) / weight(count, saddles) - 1)
    assert max(excess) < 0.05
    assert sorted(excess)[len(excess) // 2] < 0.01


@pytest.mark.parametrize("seed", range(50))
def test_several_workers_search_each_pair_once(seed: int) -> None:
    count, saddles = table(seed)
    random, known, pending = Random(seed), {}, set()
    while len(known) < len(saddles):
        pair = next_pair(count, known, pending)
        if pair is not None and len(pending) < 3:
            assert pair not in known
            assert pair not in pending
            pending.add(pair)
        else:
            # A worker finds nothing to do only while others are at work.
            done = random.choice(sorted(pending))
            pending.remove(done)
            known[done] = saddles[done]
    assert next_pair(count, known) is None


@pytest.mark.parametrize("seed", SEEDS)
def test_pairs_that_cannot_be_lower_are_left_out_and_change_nothing(seed: int) -> None:
    random = Random(1000 + seed)
    count, saddles = table(seed)
    losses = [random.random() for _ in range(count)]
    # A path is as high as its higher end at least; many are exactly that high, but for rounding.
    saddles = {(i, j): max(losses[i], losses[j]) * (1 + 1e-7) + max(0, s - 0.6) for (i, j), s in saddles.items()}
    known: dict[Pair, float] = {}
    while (pair := next_pair(count, known, losses=losses)) is not None:
        if len(known) >= count - 1:
            around = [edge for edge in spanning_tree(count, known) if crosses(count, known, edge, pair)]
            assert max(losses[k] for k in pair) < max(known[edge] for edge in around)
        known[pair] = saddles[pair]
    assert weight(count, known) == pytest.approx(weight(count, saddles), rel=1e-6)
    assert upper_bounds(count, known) == pytest.approx(minimax(count, saddles), rel=1e-6)


def test_half_of_the_pairs_are_left_out_where_most_paths_are_as_low_as_their_ends() -> None:
    searched = total = 0
    for seed in SEEDS:
        count, saddles = table(seed)
        losses = [Random(seed + k).random() for k in range(count)]
        saddles = {(i, j): max(losses[i], losses[j]) + max(0, s - 0.9) for (i, j), s in saddles.items()}
        known: dict[Pair, float] = {}
        while (pair := next_pair(count, known, losses=losses)) is not None:
            known[pair] = saddles[pair]
        searched, total = searched + len(known), total + len(saddles)
    assert searched < total / 2


def test_only_pairs_below_the_edge_are_left_in() -> None:
    known = {(0, 1): 1.0, (0, 2): 2.0, (0, 3): 9.0}
    # Minimum 3 is as high as its path, minimum 2 is not.
    assert next_pair(4, known, losses=[0.1, 0.1, 0.1, 9.0]) == (1, 2)
    assert next_pair(4, known, losses=[0.1, 0.1, 2.0, 9.0]) is None
    # A part that nothing connects is searched, however high.
    assert next_pair(3, {(0, 1): 1.0, (0, 2): inf}, losses=[0.1, 0.1, 99.0]) == (1, 2)


def test_a_path_without_a_finite_loss_connects_nothing() -> None:
    known = {(0, 1): 1.0, (0, 2): inf}
    assert spanning_tree(3, known) == [(0, 1)]
    assert upper_bounds(3, known) == {(0, 1): 1.0, (0, 2): inf, (1, 2): inf}
    assert next_pair(3, known) == (1, 2)
    assert next_pair(3, {**known, (1, 2): inf}) is None


def test_pairs_of_minima_with_low_paths_come_first() -> None:
    known = {(0, 1): 1.0, (0, 2): 2.0, (0, 3): 9.0}
    # Around the highest edge, to 3, the lower neighbour is tried before the higher.
    assert next_pair(4, known) == (1, 3)
    assert next_pair(4, {**known, (1, 3): 8.0}) == (2, 3)
    # Nothing is left to try around 3, so the next edge is.
    assert next_pair(4, {**known, (1, 3): 8.0, (2, 3): 9.5}) == (1, 2)


def test_of_a_thousand_minima_a_pair_is_chosen_in_fifty_milliseconds() -> None:
    random, seconds = Random(0), []
    known = {(0, k): random.random() for k in range(1, 1000)}
    for _ in range(20):
        began = process_time()
        pair = next_pair(1000, known, losses=[0.0] * 1000)
        seconds.append(process_time() - began)
        assert pair is not None
        known[pair] = random.random()
    assert median(seconds) < 0.05
