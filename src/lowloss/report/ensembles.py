"""What ensembles give for what they cost: a table, and the figure of the error by the epochs spent."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd

from lowloss.report import tables
from lowloss.report.pictures import COLOURS, OTHER, Picture, panels, save
from lowloss.study import Artifact, Study

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
    colours = iter([colour for name, colour in COLOURS.items() if name != "line"])
    for artifact in artifacts:
        (tensors, notes), colour = artifact.load(), next(colours, OTHER)
        epochs = artifact.table("members.csv", ["epochs"])["epochs"]
        together, alone = (tables.scale(unit) * tensors[name].numpy() for name in (metric, f"{metric}_alone"))
        axis.plot(epochs, together, "D-", color=colour, markersize=4, label=notes["method"])
        axis.plot(epochs, alone, "x", color=colour, alpha=0.5)
    axis.set(xlabel="epochs spent", ylabel=tables.label("test", metric, unit), title="Ensembles by training time")
    axis.legend(fontsize=8)
    caption = "As fig. 6 of Garipov et al. 2018: crosses are members alone, diamonds all that there are by then."
    return save(figure, folder, "ensemble-costs", "Ensembles by training time", caption)
