"""Exploring six minima of a small network on digits: the same as brute force, alone, killed, stopped and in company."""

import csv
import re
import shutil
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations
from random import Random

import networkx as nx
import pytest

SMALL = """
    model=mlp model.hidden=[12] minima.count=6 minima.epochs=20 finder=[autoneb]
    finder.autoneb.cycles=[{steps:20,lr:0.1},{steps:15,lr:0.02}]
    finder.autoneb.batch_size=128 finder.autoneb.evaluations=2 path.points=5 path.between=4 stages=[minima,path]
"""
PAIRS = list(combinations(range(6), 2))


@pytest.fixture(scope="module")
def brute(lowloss, tmp_path_factory):
    """The study with all pairs."""
    outputs = tmp_path_factory.mktemp("brute")
    made = lowloss(outputs, *SMALL.split(), "path.pairs=all")
    assert made.status == 0, made.err
    return outputs / "t"


@pytest.fixture
def outputs(brute, tmp_path):
    """A folder with the same study's minima."""
    shutil.copytree(brute / "minima", tmp_path / "t" / "minima")
    return tmp_path


def explore(runner, outputs, *arguments, **options):
    return runner(outputs, *SMALL.split(), "path.pairs=explore", *arguments, **options)


def bounds(root):
    with (root / "bounds-autoneb.csv").open(newline="") as lines:
        return {(int(row["start"]), int(row["end"])): row for row in csv.DictReader(lines)}


def saddles(root):
    return {pair: float(row["saddle"]) for pair, row in bounds(root).items() if row["saddle"]}


def weight(saddles):
    graph = nx.Graph()
    graph.add_weighted_edges_from((*pair, loss) for pair, loss in saddles.items())
    assert nx.is_connected(graph)
    return nx.minimum_spanning_tree(graph).size(weight="weight")


def paths(lowloss, root):
    return {name: content for name, content in lowloss.results(root).items() if name.startswith("paths/0")}


def made(finished):
    return [target.name for source, target in finished.renames if ".new-" in source.name]


@pytest.fixture(scope="module")
def undisturbed(lowloss, brute, tmp_path_factory):
    """The whole exploration, and the pairs in the order in which they were made."""
    outputs = tmp_path_factory.mktemp("undisturbed")
    shutil.copytree(brute / "minima", outputs / "t" / "minima")
    finished = explore(lowloss, outputs)
    assert finished.status == 0, finished.err
    assert "path: autoneb explored 15 of 15 pairs" in finished.err
    return outputs / "t", made(finished)


def test_run_to_the_end_it_is_brute_force(lowloss, brute, undisturbed):
    root, order = undisturbed
    assert order[:5] == [f"0000-000{k}-autoneb" for k in range(1, 6)]
    assert len(order) == len(set(order)) == 15
    assert paths(lowloss, root) == paths(lowloss, brute)
    # Every bound is the highest saddle on the way through the spanning tree.
    found = saddles(root)
    tree = nx.Graph()
    tree.add_weighted_edges_from((*pair, loss) for pair, loss in found.items())
    tree = nx.minimum_spanning_tree(tree, algorithm="prim")
    for pair, row in bounds(root).items():
        way = nx.utils.pairwise(nx.shortest_path(tree, *pair))
        assert float(row["bound"]) == max(tree.edges[edge]["weight"] for edge in way) <= float(row["saddle"])
    again = explore(lowloss, root.parent)
    assert again.status == 0, again.err
    assert again.renames == []


def test_stopped_at_two_thirds_the_tree_is_nearly_as_light(lowloss, outputs, undisturbed):
    stopped = explore(lowloss, outputs, "path.budget.pairs=10")
    assert stopped.status == 0, stopped.err
    assert re.search(r"explored 10 of 15 pairs, .*path\.budget\.pairs is spent", stopped.err)
    whole, order = undisturbed
    assert made(stopped) == order[:10]
    assert 1 <= weight(saddles(outputs / "t")) / weight(saddles(whole)) < 1.05
    # A larger budget goes on from there; gradient steps are counted over the study.
    more = explore(lowloss, outputs, "path.budget.steps=425")
    assert made(more) == order[10:12]


def test_bounds_leave_out_paths_that_were_made_otherwise(lowloss, outputs):
    chosen = [*(part for part in SMALL.split() if "finder" not in part), "finder=[line]"]
    assert lowloss(outputs, *chosen, "path.pairs=[[0,1],[1,2]]").status == 0
    again = lowloss(outputs, *chosen, "path.pairs=[[0,2]]", "path.points=7")
    assert again.status == 0, again.err
    with (outputs / "t" / "bounds-line.csv").open(newline="") as lines:
        known = [(row["start"], row["end"]) for row in csv.DictReader(lines) if row["saddle"]]
    assert known == [("0", "2")]
    # Of fewer minima there are fewer.
    assert lowloss(outputs, *chosen, "minima.count=3", "path.pairs=[[0,2]]", "path.points=7").status == 0
    assert len((outputs / "t" / "bounds-line.csv").read_text().splitlines()) == 1 + 3


def test_a_search_that_diverges_does_not_keep_the_others_from_theirs(lowloss, outputs):
    diverging = ("minima.count=3", "finder.autoneb.cycles=[{steps:60,lr:1e30}]")
    done = explore(lowloss, outputs, *diverging)
    assert done.status == 1
    assert "Traceback" not in done.err
    assert "path: autoneb diverged on 0–1, 0–2, 1–2: " in done.message
    assert "lower" in done.message
    assert "path: autoneb explored 0 of 3 pairs" in done.err
    assert set(saddles(outputs / "t").values()) == {float("inf")}


def test_no_path_begins_after_the_hours_are_over(lowloss, outputs):
    stopped = explore(lowloss, outputs, "path.budget.hours=1e-9")
    assert stopped.status == 0, stopped.err
    assert re.search(r"explored 0 of 15 pairs, path\.budget\.hours is spent", stopped.err)


def test_an_incomplete_tree_is_told_as_such(lowloss, outputs):
    stopped = explore(lowloss, outputs, "path.budget.steps=105")
    assert stopped.status == 0, stopped.err
    told = (
        r"explored 3 of 15 pairs, highest saddle of the spanning tree \S+ \(incomplete: 2 of 6 minima are not connected"
    )
    assert re.search(told, stopped.err)
    more = explore(lowloss, outputs, "path.budget.steps=175")
    assert re.search(r"explored 5 of 15 pairs, highest saddle of the spanning tree \S+, path", more.err)


def test_killed_ten_times_it_ends_the_same(lowloss, outputs, undisturbed):
    random, kills, names = Random(0), 0, []
    while True:
        strike = ("SIGKILL", "*/paths/*", random.randint(1, 12)) if kills < 10 else None
        finished = explore(lowloss, outputs, strike=strike)
        renames = finished.renames if finished.status == 0 else finished.renames[:-1]
        names += [target.name for source, target in renames if ".new-" in source.name]
        if finished.status == 0:
            break
        assert finished.status == -9, finished.err
        kills += 1
    assert kills == 10
    whole, order = undisturbed
    assert names == order
    assert lowloss.results(outputs / "t") == lowloss.results(whole)
    assert not list((outputs / "t").rglob(".*.work"))


def test_two_workers_search_each_pair_once(lowloss, another, outputs, undisturbed):
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(explore, runner, outputs) for runner in (lowloss, another)]
        first, second = (one.result() for one in both)
    assert first.status == second.status == 0, first.err + second.err
    whole, order = undisturbed
    assert sorted(made(first) + made(second)) == sorted(order)
    assert min(len(made(first)), len(made(second))) >= 3
    assert lowloss.results(outputs / "t") == lowloss.results(whole)


def test_two_workers_keep_to_the_budget(lowloss, another, outputs):
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(explore, runner, outputs, "path.budget.pairs=7") for runner in (lowloss, another)]
        results = [one.result() for one in both]
    assert [one.status for one in results] == [0, 0]
    assert len({name for one in results for name in made(one)}) == sum(len(made(one)) for one in results) == 7


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ("path.budget.pairs=4", r"path\.budget\.pairs=4, but .* 5 pairs"),
        ("path.budget.pairs=two", r"path\.budget\.pairs must be null or a positive whole number, got 'two'"),
        ("path.budget.steps=1.5", r"path\.budget\.steps must be null or a positive whole number"),
        ("path.budget=null", r"path\.budget has the keys pairs, steps and hours"),
        ("+path.budget.days=1", r"path\.budget has the keys pairs, steps and hours"),
        ("path.budget.hours=0", r"path\.budget\.hours must be null or a positive number"),
    ],
)
def test_wrong_budgets_are_refused(lowloss, outputs, budget, message):
    assert re.search(message, explore(lowloss, outputs, budget).message)
