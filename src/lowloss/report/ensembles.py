"""What the report shows of ensembles: what they give, and for how many epochs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lowloss.report import tables
from lowloss.report.averages import averages, draw_averages
from lowloss.report.ensembles_along import draw_curves, draw_walks
from lowloss.report.looks import GREY, look
from lowloss.report.pictures import Picture, Shown, Table, panels, save
from lowloss.study import Artifact, Source, Study

CALIBRATION = ("brier", "ece", "disagreement")


def budgets(study: Study) -> pd.DataFrame:
    """A row a method and budget, which is the number of runs: members, epochs spent and the metrics on the test split.

    Fractions are in per cent, but for the expected calibration error and the disagreement; distance is the mean of
    those between consecutive members of a run, or where a run has one, of all.
    """
    units, rows = tables.units(study), []
    for artifact in study.complete("ensembles"):
        tensors, notes = artifact.load()
        spent = artifact.table("members.csv", ["run", "epochs"])
        apart = tensors["distance"].numpy()
        within = spent["run"].to_numpy()[1:] == spent["run"].to_numpy()[:-1]
        for way in notes.get("ways", [""]):
            method, prefix = way or notes["method"], f"{way}." if way else ""
            for budget, last in enumerate(spent.groupby("run").tail(1).index, start=1):
                row: dict[str, Any] = {"method": method, "budget": budget, "members": last + 1}
                row["epochs"] = spent["epochs"][last]
                for metric, unit in units.items():
                    row[f"test_{metric}"] = tables.scale(unit) * float(tensors[f"{prefix}{metric}"][last])
                row |= {name: float(tensors[key][last]) for name in CALIBRATION if (key := prefix + name) in tensors}
                steps = apart[:last][within[:last]] if within[:last].any() else apart[:last]
                row["distance"] = float(steps.mean()) if len(steps) else None
                rows.append(row)
    head = ["method", "budget", "members", "epochs", *(f"test_{metric}" for metric in units), *CALIBRATION, "distance"]
    return pd.DataFrame(rows, columns=head)


def draw_costs(artifacts: list[Artifact], folder: Path) -> Picture:
    """Fig. 6 of Garipov et al. 2018: the last metric of each ensemble, and of its members, by the epochs spent."""
    metric, unit = list(artifacts[0].notes()["units"].items())[-1]
    figure, ((axis,),) = panels(6, 3.6)
    for artifact in artifacts:
        tensors, notes = artifact.load()
        own = look(notes["method"])
        epochs = artifact.table("members.csv", ["epochs"])["epochs"]
        together, alone = (tables.scale(unit) * tensors[name].numpy() for name in (metric, f"{metric}_alone"))
        axis.plot(epochs, together, marker=own.marker, markersize=4, label=notes["method"], **own.line)
        axis.plot(epochs, alone, "x", color=own.colour, alpha=0.5)
    axis.set(xlabel="epochs spent", ylabel=tables.label("test", metric, unit), title="Ensembles by training time")
    axis.legend(fontsize=8)
    caption = "As fig. 6 of Garipov et al. 2018: crosses are members alone, lines all that there are by then."
    return save(figure, folder, "ensemble-costs", "Ensembles by training time", caption)


def draw_ensembles(artifacts: Sequence[Source], folder: Path) -> Picture:
    """The metrics of each ensemble's first members together, and of each alone."""
    caption = "The first 1, 2, … members together, and each member alone, on the test split."
    return save(ensembles_figure(artifacts), folder, "ensembles", "Ensembles", caption)


def ensembles_figure(artifacts: Sequence[Source], figure: Figure | None = None) -> Figure:
    """The figure of `draw_ensembles`."""
    units = artifacts[0].notes()["units"]
    figure, (axes,) = panels(5 * len(units), 3.6, 1, len(units), figure)
    shown = list(zip(axes, reversed(units.items()), strict=True))
    rows = []
    for artifact in artifacts:
        tensors, notes = artifact.load()
        own = look(notes["method"])
        rows += [row for row in notes["rows"] if row[0] == "single"]
        for axis, (metric, unit) in shown:
            factor = tables.scale(unit)
            curve, alone = (factor * tensors[name].numpy() for name in (metric, f"{metric}_alone"))
            members = np.arange(1, len(curve) + 1)
            axis.plot(members, curve, marker=own.marker, label=f"{notes['method']}, together", **own.line)
            axis.plot(members, alone, "x", color=own.colour, alpha=0.5, label=f"{notes['method']}, each alone")
    for axis, (metric, unit) in shown:
        for row in rows[:1]:
            level = tables.scale(unit) * row[2 + list(units).index(metric)]
            axis.axhline(level, color=GREY, linestyle="--", label="single network")
        axis.set(xlabel="members", ylabel=tables.label("test", metric, unit))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize=8)
    axes[0].set_title("Ensembles")
    return figure


def found(study: Study) -> Iterator[str]:
    """The ensemble with the lowest value of the last metric on the test split, beside the minima."""
    table, units = tables.ensembles(study), tables.units(study)
    metric = [*units][-1]
    column = f"test_{metric}"
    rest = table[table["method"] != "single"]
    if rest.empty:
        return
    best, minima = rest.sort_values(column).iloc[0], tables.minima(study)[column].astype(float)
    networks = f"The {best['method']} ensemble of {best['members']} networks has"
    if best["members"] == 1:  # weights are averaged
        networks = f"The network that {best['method']} averages has"
    lowest = f", the lowest of {len(rest)}" if len(rest) > 1 else ""
    mean = f", the minima {tables.quantity(minima.mean(), units[metric])}" if len(minima) else ""
    mean += " on average" if len(minima) > 1 else ""
    yield f"{networks} a test {metric} of {tables.quantity(best[column], units[metric])}{lowest}{mean}."


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    ensembles = study.complete("ensembles")
    shown = [artifact for artifact in ensembles if "ways" not in artifact.notes()]
    if shown:
        yield draw_ensembles(shown, folder)
        yield draw_costs(shown, folder)
    yield from draw_walks(shown, folder)
    yield from draw_averages(study, folder)
    yield from draw_curves(study, [artifact for artifact in ensembles if artifact not in shown], folder)


def shown_tables(study: Study) -> Iterator[Table]:
    share = tables.fractions(tables.units(study))
    yield Table("ensemble.csv", tables.ensembles(study), "Ensembles on the test split", fractions=share)
    note = "A budget is a run. ece is the expected calibration error; distance that between consecutive members."
    few = {"fractions": ("ece", "disagreement"), "percent": share}
    yield Table("report/budgets.csv", budgets(study), "Ensembles by budget", note, **few)
    note = "advantage: by how much averaged predictions are better than averaged weights."
    yield Table("report/averages.csv", averages(study), "Averages", note, percent=share)


SHOWN = Shown("Ensembles", found, draw, shown_tables)
