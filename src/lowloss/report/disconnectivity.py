"""The graph of minima and saddles: disconnectivity graph and single-linkage clusters.

References: Wales et al. 1998, Nature 394, 758; Gower & Ross 1969 (single linkage is the minimum spanning tree).

Shapes: K minima, Z = K - 1 merges.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import combinations
from math import inf
from pathlib import Path
from typing import Any

from scipy.cluster.hierarchy import fcluster, leaves_list, linkage

from lowloss.report import tables
from lowloss.report.looks import GREY, PALETTE, look
from lowloss.report.pictures import Picture, panels, save
from lowloss.spanning import Pair, spanning_tree, upper_bounds
from lowloss.study import Study


@dataclass(frozen=True)
class Merging:
    """How the minima that a finder connected merge as the allowed loss rises.

    minima: their indices, in the order of the leaves.  losses: their train losses.
    saddles: the known paths' saddles, by positions in `minima`.
    linkage_Z4: scipy's single linkage of the leaves by the bounds of their saddles.
    apart: the level from which on merges stand for no path: those of minima that no path connects, if there are any.
    """

    finder: str
    minima: list[int]
    losses: list[float]
    saddles: dict[Pair, float]
    linkage_Z4: Any
    apart: float

    @property
    def levels(self) -> list[float]:
        """Of the merges by paths, ascending."""
        return [float(level) for level in self.linkage_Z4[:, 2] if level < self.apart]

    @property
    def trees(self) -> int:
        """How many groups of minima no path connects with one another."""
        return len(self.minima) - len(self.levels)

    @property
    def joints(self) -> list[tuple[float, float, float, float, float]]:
        """Of each merge by a path: its level, and the x and top of the two that it joins."""
        place, joints = [(float(x), loss) for x, loss in enumerate(self.losses)], []
        for left, right, level, _ in self.linkage_Z4:
            (x, low), (y, other) = place[int(left)], place[int(right)]
            place.append(((x + y) / 2, float(level)))
            joints.append((float(level), x, low, y, other))
        return joints[: len(self.levels)]

    def clusters(self, level: float) -> Any:
        """The cluster of each leaf when losses up to the level are allowed."""
        return fcluster(self.linkage_Z4, level, criterion="distance")


def mergings(study: Study) -> list[Merging]:
    """Of each finder whose paths connect at least three minima."""
    losses = tables.minima(study).set_index("minimum")["train_loss"].sort_index()
    position, found = {k: i for i, k in enumerate(losses.index)}, []
    for finder, paths in tables.summary(study).groupby("finder", sort=False):
        saddles = {
            (position[min(i, j)], position[max(i, j)]): loss
            for i, j, loss in zip(paths["start"], paths["end"], paths["saddle_train_loss"], strict=True)
            if {i, j} <= {*position}
        }
        if len({*paths["start"], *paths["end"]} & {*position}) >= 3:
            found.append(merge(str(finder), list(position), losses.tolist(), saddles))
    return found


def merge(finder: str, named: list[int], losses: list[float], saddles: dict[Pair, float]) -> Merging:
    """The merging of these minima; saddles are by positions in `named`."""
    bounds = upper_bounds(len(named), saddles)
    known = [bound for bound in bounds.values() if bound < inf]
    # Linkage takes no infinite distance.
    finite = 2 * max(0.0, *known, *losses) + 1
    pairs = list(combinations(range(len(named)), 2))  # (0, 1), (0, 2), …: the condensed distances of scipy
    condensed = [min(bounds[pair], finite) for pair in pairs]
    order = leaves_list(linkage(condensed, method="single", optimal_ordering=True)).tolist()
    place = {k: x for x, k in enumerate(order)}
    turned = [min(bounds[min(order[i], order[j]), max(order[i], order[j])], finite) for i, j in pairs]
    return Merging(
        finder,
        [named[k] for k in order],
        [losses[k] for k in order],
        {(min(place[i], place[j]), max(place[i], place[j])): loss for (i, j), loss in saddles.items()},
        linkage(turned, method="single"),
        inf if len(known) == len(bounds) else finite,
    )


def draw_graphs(study: Study, folder: Path) -> list[Picture]:
    """The disconnectivity graph of each finder that connected at least three minima."""
    return [_disconnectivity(merging, folder) for merging in mergings(study)]


def _disconnectivity(merging: Merging, folder: Path) -> Picture:
    figure, ((axis,),) = panels(max(8.0, 0.5 * len(merging.minima)), 3.8)
    for level, x, low, y, other in merging.joints:
        axis.plot([x, x, y, y], [low, level, level, other], color=PALETTE[0], linewidth=1.4)
    axis.plot(range(len(merging.losses)), merging.losses, "o", color="#1b1f24", markersize=4)
    axis.set_xticks(range(len(merging.minima)), [str(k) for k in merging.minima])
    title = f"Disconnectivity graph, {merging.finder}"
    axis.set(xlabel="minimum", ylabel="train loss", title=title)
    axis.grid(False, axis="x")
    caption = (
        f"Minima (dots) join at the loss that a path between them has to pass: the saddles of the minimum spanning "
        f"tree of {len(merging.saddles)} paths by {merging.finder}, upper bounds of the true ones."
    )
    if merging.trees > 1:
        caption += f" No path connects the {merging.trees} groups of them with one another."
    plots = {merging.finder: interactive_graph(merging)}
    return save(figure, folder, f"disconnectivity-{merging.finder}", "Disconnectivity graph", caption, plots=plots)


def interactive_graph(merging: Merging) -> dict[str, Any]:
    """The disconnectivity graph in plotly; a slider floods it to a loss and colours the clusters that are left."""
    data: list[dict[str, Any]] = []
    owners = {merging.saddles[edge]: edge for edge in spanning_tree(len(merging.minima), merging.saddles)}
    for level, x, low, y, other in merging.joints:
        i, j = (merging.minima[k] for k in owners[level])
        data.append({
            "type": "scatter", "x": [x, x, y, y], "y": [low, level, level, other], "mode": "lines", "hoverinfo": "text",
            "line": {"color": GREY}, "showlegend": False, "hovertext": f"path {i}–{j}<br>saddle {level:.4g}",
        })  # fmt: skip
    floor, top = min(merging.losses), max([*merging.levels, *merging.losses])
    colours, symbols = _marks(merging, floor)
    data.append({
        "type": "scatter", "x": [*range(len(merging.minima))], "y": merging.losses, "mode": "markers+text",
        "text": [str(k) for k in merging.minima], "textposition": "bottom center", "showlegend": False,
        "marker": {"size": 11, "color": colours, "symbol": symbols},
        "hovertemplate": "minimum %{text}<br>train loss %{y:.4g}<extra></extra>",
    })  # fmt: skip
    # Just at and above every merge, from the lowest minimum on.
    steps = []
    for level in [floor, *sorted(set(merging.levels))]:
        marks = dict(zip(("marker.color", "marker.symbol"), ([one] for one in _marks(merging, level)), strict=True))
        change = [marks, {"shapes": [_water(level)]}, [len(data) - 1]]
        steps.append({"label": f"{level:.4g}", "method": "update", "args": change})
    margin = 0.08 * (top - floor or 1.0)
    slider = {"steps": steps, "active": 0, "currentvalue": {"prefix": "clusters at train loss "}, "pad": {"t": 20}}
    yaxis = {"title": "train loss", "range": [floor - 2 * margin, top + margin]}
    layout = {"sliders": [slider], "shapes": [_water(floor)], "xaxis": {"visible": False}, "yaxis": yaxis}
    return {"data": data, "layout": layout}


def _marks(merging: Merging, level: float) -> tuple[list[str], list[str]]:
    """Colours and symbols of the leaves by their clusters."""
    marks = [look(int(c) - 1).plotly for c in merging.clusters(level)]
    return [colour for colour, _, _ in marks], [symbol for _, _, symbol in marks]


def _water(level: float) -> dict[str, Any]:
    line = {"dash": "dot", "color": GREY}
    return {"type": "line", "xref": "paper", "x0": 0, "x1": 1, "y0": level, "y1": level, "line": line}
