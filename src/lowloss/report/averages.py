"""Weights averaged against predictions averaged, by the highest rate of the cycle (Fort & Jastrzebski 2019, fig. 6)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from lowloss.report import tables
from lowloss.report.looks import GREY, PALETTE
from lowloss.report.pictures import Picture, panels, save
from lowloss.study import Artifact, Study

PREDICTIONS, WEIGHTS = PALETTE[:2]


def averages(study: Study) -> pd.DataFrame:
    """A row a stochastic weight average, the lowest rates first: on the test split the mean of what was collected, each
    alone, their averaged weights, their averaged predictions, and by how much these are better, in the metric's unit.
    """
    rows = []
    for artifact in _averaged(study):
        tensors, notes = artifact.load()
        row = {"method": notes["method"], "lr_max": notes["lr_max"], "members": len(tensors["distance"]) + 1}
        for metric, unit in notes["units"].items():
            factor, weights, predictions = tables.scale(unit), tensors[metric][-1], tensors[f"predictions_{metric}"][-1]
            row[f"alone_{metric}"] = factor * float(tensors[f"{metric}_alone"].mean())
            row |= {f"weights_{metric}": factor * float(weights), f"predictions_{metric}": factor * float(predictions)}
            row[f"advantage_{metric}"] = factor * float(weights - predictions)
        rows.append(row)
    return pd.DataFrame(rows)


def _averaged(study: Study) -> list[Artifact]:
    found = [artifact for artifact in study.complete("ensembles") if "lr_max" in artifact.notes()]
    return sorted(found, key=lambda artifact: artifact.notes()["lr_max"])


def draw_averages(study: Study, folder: Path) -> Iterator[Picture]:
    """Four panels: by members at the highest, a middle and the lowest rate, and the advantage by the rate."""
    found = _averaged(study)
    if len(found) < 2:
        return
    metric, unit = list(tables.units(study).items())[-1]
    factor, label = tables.scale(unit), tables.label("test", metric, unit)
    figure, (axes,) = panels(15, 3.6, 1, 4)
    shown = [found[-1], found[len(found) // 2], found[0]] if len(found) > 2 else [found[-1], found[0]]
    for axis, artifact in zip(axes, shown, strict=False):
        tensors, notes = artifact.load()
        members = range(1, len(tensors[metric]) + 1)
        axis.plot(members, factor * tensors[f"{metric}_alone"], "x", color=GREY, label="each alone")
        axis.plot(members, factor * tensors[metric], "o-", color=WEIGHTS, label="weights averaged")
        axis.plot(members, factor * tensors[f"predictions_{metric}"], "o-", color=PREDICTIONS, label="predictions")
        axis.set(xlabel="members", ylabel=label, title=f"highest rate {notes['lr_max']:g}")
    axes[0].legend(fontsize=8)
    table = averages(study)
    axes[3].plot(table["lr_max"], table[f"advantage_{metric}"], "o-", color=PREDICTIONS)
    axes[3].axhline(0, color=GREY, linewidth=0.8)
    axes[3].set(xscale="log", xlabel="highest rate", ylabel=f"advantage in {label}", title="Predictions over weights")
    caption = (
        "Networks collected at the ends of cycles of the learning rate: each alone, the network of their mean weights, "
        "and their mean predictions. Right: by how much the latter are better, by the highest rate of a cycle. As "
        "fig. 6 of Fort & Jastrzebski 2019."
    )
    yield save(figure, folder, "averages", "Weights and predictions averaged", caption)
