"""Several studies in one figure: fig. 5 of Draxler et al. 2018, minima and saddles of all architectures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure

from lowloss.errors import LowlossError
from lowloss.report import tables
from lowloss.report.style import STYLE, Picture, save
from lowloss.runs import Study

LEVELS = {"train": "#d9822b", "test": "#1f5fbf"}


def overview(studies: Sequence[Study]) -> pd.DataFrame:
    """Table B.1: a row a study and finder, by the data and the model that its minima were made with."""
    rows = []
    for study in studies:
        paths = tables.summary(study)
        if paths.empty:
            continue
        config = yaml.safe_load((study.complete("minima")[0].folder / "config.yaml").read_text(encoding="utf-8"))
        table = tables.table_b1(study, paths, tables.minima(study))
        table.insert(0, "study", study.root.name)
        table.insert(0, "model", _model(config["model"]))
        table.insert(0, "data", config["data"]["_target_"].rpartition(".")[2])
        rows.append(table)
    if not rows:
        raise LowlossError("none of these studies has a path: make them with `lowloss ... stages=[minima,path]`")
    return pd.concat(rows, ignore_index=True)


def _model(node: dict[str, Any]) -> str:
    """A model's name: its class and what its configuration sets."""
    name = node["_target_"].rpartition(".")[2]
    keys = {"CNN": ("width", "depth"), "ResNet": ("depth",), "DenseNet": ("depth", "growth")}.get(name)
    values = [node[key] for key in keys] if keys else [v for k, v in node.items() if k != "_target_"]
    bottleneck = "-BC" if node.get("bottleneck") else ""
    return "-".join([name, ("×" if name == "CNN" else "-").join(map(str, values))]) + bottleneck


def draw_architectures(table: pd.DataFrame, finder: str, folder: Path) -> Picture:
    """Minimum and saddle losses on both splits, a panel a data set.

    Args:
        table: an `overview`.
        finder: whose saddles.

    Raises:
        LowlossError: no study has paths by this finder.
    """
    chosen = table[table["finder"] == finder]
    if chosen.empty:
        raise LowlossError(f"no path by {finder}: the finders are {', '.join(sorted(set(table['finder'])))}")
    folder.mkdir(parents=True, exist_ok=True)
    panels = list(chosen.groupby("data", sort=False))
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(max(5.0, 0.7 * len(chosen) + 2), 4.2), layout="constrained")
        axes = figure.subplots(1, len(panels), squeeze=False, width_ratios=[len(rows) + 1 for _, rows in panels])[0]
        for axis, (data, rows) in zip(axes, panels, strict=True):
            x = np.arange(len(rows))
            for split, colour in LEVELS.items():
                low, high = rows[f"{split}_loss_min"], rows[f"{split}_loss_saddle"]
                axis.vlines(x, low, high, color=colour, linewidth=1)
                axis.plot(x, low, "s", color=colour, markersize=7, label=f"{split}, minima")
                axis.plot(x, high, "o", color=colour, markersize=5, markerfacecolor="white", label=f"{split}, saddles")
            axis.set_xticks(x, rows["model"], rotation=45, ha="right", rotation_mode="anchor")
            axis.set(title=str(data), ylim=(0, None), xlim=(-0.6, len(rows) - 0.4))
        axes[0].set(ylabel="loss (nats)")
        axes[-1].legend(fontsize=8)
        file = save(figure, folder, "architectures")
    caption = f"As fig. 5 of Draxler et al. 2018: means over the minima and over the spanning tree's saddles, {finder}."
    return Picture(file, "Minima and saddles of all architectures", caption)
