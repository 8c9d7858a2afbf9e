"""What the report shows of random cuts: threshold dimensions (Fort & Jastrzebski 2019, fig. 4)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lowloss.report import tables
from lowloss.report.looks import GREY, PALETTE, look
from lowloss.report.pictures import Picture, Shown, Table, panels, save
from lowloss.study import Source, Study


def dimensions(artifacts: Sequence[Source]) -> pd.DataFrame:
    """A row a place: the threshold, which is the median over the repeats of the smallest dimension from which on all
    cuts succeeded, and its interval, from the smallest dimension that may be it in any repeat to the largest; found:
    in how many repeats there is one. Where it was asked for, eigenvalues: how many of the Hessian's at the place are
    above a share of the largest."""
    groups: dict[tuple[str, float], list[dict[str, float]]] = {}
    for artifact in artifacts:
        notes = artifact.notes()
        groups.setdefault((notes["place"], notes["which"]), []).append(notes)
    rows = []
    for (place, which), repeats in sorted(groups.items()):
        high = [one["high"] for one in repeats if "high" in one]
        whole = len(high) == len(repeats)
        row = {"place": place, "which": which, "repeats": len(repeats), "found": len(high)}
        row |= {"threshold": float(np.median(high)) if whole else nan, "low": min(one["low"] for one in repeats) + 1}
        large = [one["large"] for one in repeats if "large" in one]
        rows.append(row | {"high": max(high) if whole else nan} | ({"eigenvalues": large[0]} if large else {}))
    return pd.DataFrame(rows)


def dimensions_figure(artifacts: Sequence[Source], figure: Figure | None = None) -> tuple[Figure, str]:
    """What cuts of each dimension reach, and the thresholds by place; and the caption."""
    table, notes = dimensions(artifacts), artifacts[0].notes()
    figure, ((left, right),) = panels(10.5, 3.8, 1, 2, figure)
    names = {one: _name(*one) for one in zip(table["place"], table["which"], strict=True)}
    own_look = {name: look(place) for place, name in enumerate(names.values())}
    shown = set[str]()
    split, _, metric = notes["column"].partition("_")
    unit = notes["units"][metric]
    factor = tables.scale(unit)
    for artifact in artifacts:
        own = artifact.notes()
        name, runs = names[own["place"], own["which"]], artifact.table("runs.csv", ["dim", own["column"]])
        label = name if name not in shown else None
        left.plot(
            runs["dim"], factor * runs[own["column"]], marker=".", label=label, linewidth=0.8, **own_look[name].line
        )
        shown.add(name)
    left.axhline(factor * notes["threshold"], color=GREY, linestyle="--")
    left.set(xlabel="dimension of the cut", ylabel=tables.label(split, metric, unit), title="What random cuts reach")
    left.legend(fontsize=7)
    places = np.arange(len(table))
    below, above = table["threshold"] - table["low"], table["high"] - table["threshold"]
    right.errorbar(places, table["threshold"], [below, above], fmt="o", capsize=4, color=PALETTE[0])
    told = "This is the reading of a cut, not the count of large eigenvalues of the Hessian; "
    if "eigenvalues" in table:
        share = next(one["share"] for artifact in artifacts if "share" in (one := artifact.notes()))
        label = f"eigenvalues above {share:g} of the largest"
        right.plot(places, table["eigenvalues"], "x", color=PALETTE[1], label=label)
        right.legend(fontsize=7)
        told = f"Crosses are the other reading, how many eigenvalues of the Hessian there are {label[12:]}; "
    right.set(xticks=places, xlim=(-0.5, len(table) - 0.5), ylim=(0, None), title="Threshold dimension")
    right.set_xticklabels(list(names.values()), rotation=30, ha="right", fontsize=8)
    return figure, (
        f"Descent in random hyperplanes through a place; a cut succeeds where its {split} {metric} is at most "
        f"{tables.quantity(notes['threshold'], unit, 3)}. The threshold is the smallest dimension from which on all "
        "succeed, the median over the repeats; bars reach over all dimensions that may be it. "
        f"{told}compare fig. 4 of Fort & Jastrzebski 2019."
    )


def _name(place: str, which: float) -> str:
    return {"initial": "initial point", "path": f"path at {which:g}", "connector": f"middle (m = {which:g})"}[place]


def found(study: Study) -> Iterator[str]:
    """The threshold dimension of each place, or that none was found."""
    for row in dimensions(study.complete("dimensions")).to_dict("records"):
        place, missing = _name(row["place"], row["which"]), row["repeats"] - row["found"]
        if missing:
            yield f"In {missing} of {row['repeats']} repeats no random cut through the {place} is large enough."
        else:
            yield f"Random cuts through the {place} succeed from dimension {row['threshold']:g} on."


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    if artifacts := study.complete("dimensions"):
        figure, caption = dimensions_figure(artifacts)
        yield save(figure, folder, "dimensions", "Random cuts", caption)


def shown_tables(study: Study) -> Iterator[Table]:
    note = "Dimensions of random cuts: the median over the repeats, and the interval that holds those of all."
    yield Table("report/dimensions.csv", dimensions(study.complete("dimensions")), "Threshold dimensions", note)


SHOWN = Shown("Random cuts", found, draw, shown_tables)
