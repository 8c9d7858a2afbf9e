"""The graph of minima: how they merge as the allowed loss rises."""

import plotly.graph_objects as go
import pytest

from lowloss.report.disconnectivity import interactive_graph, merge

# A square with a diagonal; 3 and 7 are joined first, then 4 to them, and 9 at last.
NAMED = [3, 4, 7, 9]
LOSSES = [0.1, 0.2, 0.3, 0.4]
SADDLES = {(0, 1): 2.0, (0, 2): 1.0, (1, 2): 1.5, (1, 3): 4.0, (2, 3): 3.0}


def clusters(level: float) -> set[frozenset[int]]:
    """The minima that are together when losses up to the level are allowed."""
    merging = merge("autoneb", NAMED, LOSSES, SADDLES)
    together: dict[int, set[int]] = {}
    for k, cluster in zip(merging.minima, merging.clusters(level), strict=True):
        together.setdefault(int(cluster), set()).add(k)
    return {frozenset(group) for group in together.values()}


@pytest.mark.parametrize(
    ("level", "expected"),
    [
        (0.9, [{3}, {4}, {7}, {9}]),
        (1.0, [{3, 7}, {4}, {9}]),
        (1.6, [{3, 4, 7}, {9}]),
        (2.9, [{3, 4, 7}, {9}]),
        (3.0, [{3, 4, 7, 9}]),
    ],
)
def test_single_linkage(level: float, expected: list[set[int]]) -> None:
    assert clusters(level) == {frozenset(group) for group in expected}


def test_minima_join_at_the_saddles_of_the_spanning_tree() -> None:
    merging = merge("autoneb", NAMED, LOSSES, SADDLES)
    assert [joint[0] for joint in merging.joints] == [1.0, 1.5, 3.0]
    assert dict(zip(merging.minima, merging.losses, strict=True)) == dict(zip(NAMED, LOSSES, strict=True))
    # Two legs of the first joint stand on minima 3 and 7.
    _, x, low, y, other = merging.joints[0]
    assert {(merging.minima[int(x)], low), (merging.minima[int(y)], other)} == {(3, 0.1), (7, 0.3)}


def test_slider_floods_to_every_saddle() -> None:
    merging = merge("autoneb", NAMED, LOSSES, SADDLES)
    figure = go.Figure(interactive_graph(merging))
    assert [line.hovertext for line in figure.data[:3]] == [
        f"path {i}–{j}<br>saddle {saddle}" for i, j, saddle in figure_edges(merging)
    ]
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0.1", "1", "1.5", "3"]
    colours = [step.args[0]["marker.color"][0] for step in slider.steps]
    assert [len(set(leaves)) for leaves in colours] == [4, 3, 2, 1]


def figure_edges(merging: object) -> list[tuple[int, int, str]]:
    """The tree's edges from the lowest on, by the minima's places in the figure."""
    order = {k: place for place, k in enumerate(merging.minima)}  # type: ignore[attr-defined]
    return [
        (*sorted((i, j), key=order.__getitem__), saddle)  # type: ignore[misc]
        for i, j, saddle in [(3, 7, "1"), (4, 7, "1.5"), (7, 9, "3")]
    ]


def test_a_minimum_that_no_path_reaches_stands_alone() -> None:
    merging = merge("autoneb", NAMED, LOSSES, {(0, 1): 1.0, (1, 2): 2.0})
    assert sorted(merging.minima) == NAMED
    assert merging.levels == [joint[0] for joint in merging.joints] == [1.0, 2.0]
    assert merging.trees == 2
    figure = go.Figure(interactive_graph(merging))
    (slider,) = figure.layout.sliders
    assert [step.label for step in slider.steps] == ["0.1", "1", "2"]
    assert len(set(slider.steps[-1].args[0]["marker.color"][0])) == 2
    assert figure.layout.yaxis.range[1] < 3
    assert merge("autoneb", NAMED, LOSSES, SADDLES).trees == 1
