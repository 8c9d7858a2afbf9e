"""Instability analysis: the barrier between networks by the epoch at which they part (Frankle et al. 2020, sec. 2)."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lowloss.report import tables
from lowloss.report.looks import GREY, look
from lowloss.report.pictures import Picture, panels, save
from lowloss.study import Study


def instability(study: Study) -> pd.DataFrame:
    """A row a path from minimum 0 to one that was it until an epoch: on each split and in every metric, the highest
    value on the path above the mean of its ends, in the metric's own unit."""
    rows, branches = [], {int(one.name): one.notes().get("branch") for one in study.complete("minima")}
    for artifact in study.complete("paths"):
        tensors, notes = artifact.load()
        units, epoch = notes["units"], branches.get(notes["end"])
        if notes["start"] != 0 or epoch is None:
            continue
        row: dict[str, Any] = {"finder": notes["finder"], "epoch": epoch, "end": notes["end"]}
        for name, column_T in tensors.items():
            split, _, metric = name.partition("_")
            if metric in units and split in ("train", "test"):
                row[name] = tables.scale(units[metric]) * float(column_T.max() - column_T[[0, -1]].mean())
        rows.append(row)
    return pd.DataFrame(rows).sort_values(["finder", "epoch"]) if rows else pd.DataFrame()


def draw_instability(study: Study, folder: Path) -> Iterator[Picture]:
    """The last metric's instability on each split by the epoch; nothing where no networks part."""
    table = instability(study)
    if table.empty:
        return
    metric, unit = list(tables.units(study).items())[-1]
    figure, ((axis,),) = panels(6, 3.6)
    for finder, own in table.groupby("finder"):
        for split, style in (("train", "o--"), ("test", "o-")):
            if (name := f"{split}_{metric}") in own:
                colour, label = look(finder).colour, f"{finder}, {split}"
                axis.plot(own["epoch"], own[name], style, color=colour, markersize=4, label=label)
    axis.axhline(0, color=GREY, linewidth=0.8)
    rise = tables.label("highest", metric, unit)
    axis.set(xlabel="epoch at which they part", ylabel=f"{rise} above the ends", title="Instability")
    axis.set_xscale("symlog", linthresh=1)
    axis.legend(fontsize=8)
    caption = (
        "Two networks are one until an epoch and then see minibatches in different orders. Shown is the highest value "
        "on the path between them above the mean of its ends. Where it is about zero on the straight line, the network "
        "is stable from that epoch on (Frankle et al. 2020)."
    )
    yield save(figure, folder, "instability", "Instability by the epoch at which networks part", caption)
