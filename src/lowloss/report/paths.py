"""What the report shows of paths.

Shapes: T points along a path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from math import inf, nan
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lowloss.report import tables
from lowloss.report.curves import curves
from lowloss.report.disconnectivity import draw_graphs, mergings
from lowloss.report.instability import draw_instability, instability
from lowloss.report.looks import look
from lowloss.report.pictures import LENGTH, Picture, Shown, Table, panels, save
from lowloss.report.search import draw_searches
from lowloss.report.tunnels import deviations, draw_tunnels
from lowloss.study import Source, Study

BARRIER, ABOVE = "barrier_train_loss", "barrier_above_ends_train_loss"

MAIN = (
    *("finder", "start", "end", "status", BARRIER, "min_train_loss", "saddle_train_loss", "min_test_error"),
    *("saddle_test_error", "length_ratio", "gradient_evaluations"),
)
B1_NOTE = (
    "As table B.1 of Draxler et al. 2018: means over the minima and over the saddles of the minimum spanning tree of "
    "each finder's paths; a saddle is the point of a path with the highest train loss, the highest test error may lie "
    "elsewhere on it; factor is the ratio of the two train losses; the learning curve falls below the saddle loss "
    "at epoch for the last, and at epoch (first) for the first time (–: it ends above)."
)
BARRIER_IS = (
    "A barrier is how far the train loss on a path rises above the straight line between the losses of its ends."
)
CURVES_NOTE = (
    "As table 2 of Garipov et al. 2018: least and highest value, mean over the length (int) and over t (mean); l2: "
    "with the finder's L2 term."
)


def found(study: Study) -> Iterator[str]:
    """How high the lowest finder's paths climb, beside the straight line, and which minima stay apart."""
    paths = tables.summary(study)
    if (barriers := lowest(paths)) is not None:
        yield beside_the_line(barriers, tables.units(study)["loss"])
        yield from apart(paths)
        for merging in mergings(study):
            if merging.trees > 1 and merging.finder == barriers.columns[0]:
                yield f"No path of {merging.finder} connects the {merging.trees} groups of minima with one another."
        yield BARRIER_IS


def lowest(paths: pd.DataFrame) -> pd.DataFrame | None:
    """The barriers of the finder whose are lowest beside the straight line's of the same pairs, in the first column,
    and the line's in the second, a row a pair that both have. Where no finder shares a pair with the line, those of the
    finder of the lowest mean alone; None if no barrier is a number."""
    barriers = paths.pivot(index=["start", "end"], columns="finder", values=BARRIER).replace(inf, nan)
    barriers = barriers.dropna(axis=1, how="all")
    bent = [finder for finder in dict.fromkeys(paths["finder"]) if finder in barriers and finder != "line"]
    if "line" in barriers:
        both = [shared for finder in bent if len(shared := barriers[[finder, "line"]].dropna())]
        if both:  # a finder that was given pairs that lie far apart is not the worse for it
            return min(both, key=lambda shared: shared.mean().iloc[0] / (shared.mean().iloc[1] or 1e-300))
    alone = barriers[bent or [*barriers]]
    return alone[[alone.mean().idxmin()]].dropna() if len(alone.columns) else None


def beside_the_line(barriers: pd.DataFrame, unit: str) -> str:
    """A sentence of what `lowest` returns."""
    finder, count = barriers.columns[0], len(barriers)
    level, *straight = barriers.mean()
    over = f"means over the {count} pairs that both have" if straight else f"the mean of {count} paths"
    over = over if count > 1 else "between minima {} and {}".format(*barriers.index[0])
    if not straight:
        return f"{called(finder)} barrier is {tables.quantity(level, unit)}, {over}."
    high = tables.quantity(straight[0], unit)
    if 0 < level < straight[0]:
        times = f"{float(f'{straight[0] / level:.2g}'):,.7g}"
        against = f"{level:.2g} against {high}"
        return f"{called(finder)} barrier is {times} times lower than the straight line's: {against}, {over}."
    return f"{called(finder)} barrier is {level:.2g}, the straight line's {high}, {over}."


def apart(paths: pd.DataFrame) -> Iterator[str]:
    """Of the pairs that have a straight line with a barrier, and another path, those that no path connects."""
    above = paths.pivot(index=["start", "end"], columns="finder", values=ABOVE)
    if "line" in above:
        both = pd.DataFrame({"line": above.pop("line"), "best": above.min(axis=1)}).dropna()
        if count := int(((both["line"] > 0) & (both["best"] > both["line"] / 2)).sum()):
            those = f"{count} of {len(both)} pairs" if len(both) > 1 else "Minima {} and {}".format(*both.index[0])
            stay, their = ("stays", "its") if count == 1 < len(both) else ("stay", "their")
            yield (
                f"{those} {stay} apart: {their} lowest path keeps more than half of the straight line's barrier above "
                "the higher end."
            )


def _overview(study: Study, paths: pd.DataFrame) -> pd.DataFrame:
    """A row a finder."""
    empty = pd.DataFrame(columns=tables.table_b1_columns({}))
    return tables.table_b1(study, paths, tables.minima(study)) if len(paths) else empty


def called(finder: str) -> str:
    """A finder in the genitive."""
    names = {"autoneb": "AutoNEB", "neb": "NEB", "bezier": "The Bezier curve", "polychain": "The polygonal chain"}
    names |= {"line": "The straight line", "tunnel": "The tunnel"}
    return f"{names.get(finder, finder)}'s"


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    paths = study.complete("paths")
    if paths:
        yield draw_paths(paths, folder)
        yield from draw_graphs(study, folder)
        yield from draw_searches(study, folder)
        yield from draw_tunnels(paths, folder)
        yield from draw_instability(study, folder)


def draw_paths(artifacts: Sequence[Source], folder: Path) -> Picture:
    """The train loss, and the last metric of the test split, along every path; a marker at the highest train loss."""
    told = "Exact, over the whole un-augmented splits, at every sampled point; a marker: the highest train loss."
    figure, plots = paths_figure(artifacts), _plots(artifacts)
    return save(figure, folder, "paths", "Along the paths", told, plots=plots, lead=True)


Loaded = tuple[Source, dict[str, Any], "pd.DataFrame"]


def _loaded(artifacts: Sequence[Source]) -> tuple[list[tuple[str, str, float]], list[Loaded]]:
    """The columns that are shown, and each path with its notes and table; the straight line lies behind all others."""
    notes = artifacts[0].notes()
    shown = [one for one in shown_metrics(notes["units"]) if f"saddle_{one[0]}" in notes]  # a surface has no test split
    needed = ["arc", *(name for name, _, _ in shown)]
    loaded = [(one, one.notes(), one.table("along.csv", needed)) for one in artifacts]
    return shown, sorted(loaded, key=lambda item: item[1]["finder"] != "line")


def _scale(column: str, loaded: Sequence[Loaded]) -> str:
    losses = pd.concat([along["train_loss"] for _, _, along in loaded])
    return "log" if column == "train_loss" and 0 < 10 * losses.min() < losses.max() else "linear"  # or it has no ticks


def _top(along: pd.DataFrame) -> int:
    """Where the train loss is highest."""
    return int(np.argmax(np.nan_to_num(along["train_loss"], nan=-np.inf)))


def paths_figure(artifacts: Sequence[Source], figure: Figure | None = None) -> Figure:
    """The figure of `draw_paths`."""
    shown, loaded = _loaded(artifacts)
    figure, (axes,) = panels(5 * len(shown), 3.6, 1, len(shown), figure)
    for axis, (column, text, factor) in zip(axes, shown, strict=True):
        labelled = set[str]()
        for _, notes, along in loaded:
            finder = notes["finder"]
            own, label = look(finder), None if finder in labelled else finder
            labelled.add(finder)
            axis.plot(along["arc"], factor * along[column], marker=own.marker, markevery=[_top(along)], label=label,
                      linewidth=1.6, markersize=5, **own.line)  # fmt: skip
        axis.set(xlabel=LENGTH, ylabel=text, xlim=(0, 1), yscale=_scale(column, loaded))
        axis.set_title(f"{column.replace('_', ' ').capitalize()} along the paths")
    axes[0].legend()
    return figure


def _plots(artifacts: Sequence[Source]) -> dict[str, dict[str, Any]]:
    """The same for the page."""
    (shown, loaded), plots = _loaded(artifacts), {}
    for column, text, factor in shown:
        data, labelled = [], set[str]()
        for artifact, notes, along in loaded:
            finder, top = notes["finder"], _top(along)
            colour, dash, symbol = look(finder).plotly
            sizes = [9 if place == top else 0 for place in range(len(along))]
            data.append({
                "type": "scatter", "mode": "lines+markers", "x": [*along["arc"]], "y": [*(factor * along[column])],
                "name": finder, "legendgroup": finder, "showlegend": finder not in labelled,
                "line": {"color": colour, "dash": dash, "width": 2}, "meta": {"path": artifact.name},
                "marker": {"symbol": symbol, "size": sizes, "color": colour, "opacity": 1},
                "hovertemplate": f"{finder} {notes['start']}–{notes['end']}, at %{{x:.3f}}<br>{text} %{{y:.4g}}"
                                 "<extra></extra>",
            })  # fmt: skip
            labelled.add(finder)
        yaxis = {"title": text, "type": _scale(column, loaded)}
        plots[text] = {"data": data, "layout": {"xaxis": {"title": LENGTH}, "yaxis": yaxis}}
    return plots


def shown_metrics(units: Mapping[str, str]) -> list[tuple[str, str, float]]:
    """The two columns that figures show, each with its label and the factor to it: the train loss, and the test
    split's last metric."""
    last, unit = list(units.items())[-1]
    train = "train_loss", tables.label("train", "loss", units["loss"]), 1.0
    return [train, (f"test_{last}", tables.label("test", last, unit), tables.scale(unit))]


def shown_tables(study: Study) -> Iterator[Table]:
    paths, units = tables.summary(study), tables.units(study)
    share: dict[str, Any] = {"fractions": tables.fractions(units)}
    percentages: dict[str, Any] = {"percent": (*tables.fractions(units), "delta")}
    overview = _overview(study, paths)
    main: tuple[str, ...] = ("finder", "paths", BARRIER, *overview.columns.drop(["finder", "paths", BARRIER]))
    yield Table("report/table_b1.csv", overview, "Minima and saddles", B1_NOTE, main, **percentages)
    main = tuple(name.replace("error", [*units][-1]) for name in MAIN)
    note = ". ".join(tables.doubts(paths.to_dict("records")))
    yield Table("summary.csv", paths, "Every path", note, main, **share)
    along = curves(study)
    main = ("finder", "start", "end", "length_ratio", *(c for c in along.columns if c.endswith(("_max", "_int"))))
    yield Table("report/curves.csv", along, "Along every path", CURVES_NOTE, main[:11], **percentages)
    note = "Mean cosines between deviations from the straight line, and shares of labels that have changed."
    yield Table("report/deviations.csv", deviations(study), "Deviations", note, fractions=("changed",))
    note = "By the epoch at which networks part: the highest value on the path above the mean of its ends."
    yield Table("report/instability.csv", instability(study), "Instability", note, **percentages)
    yield Table("report/classes.csv", tables.classes(study))


SHOWN = Shown("Paths", found, draw, shown_tables)
