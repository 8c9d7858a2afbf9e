"""Several studies in one figure: fig. 5 of Draxler et al. 2018, minima and saddles of all architectures."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
import numpy as np
import pandas as pd

from lowloss.errors import LowlossError
from lowloss.report import tables
from lowloss.report.gather import Options, called, merged_config
from lowloss.report.looks import PALETTE
from lowloss.report.pictures import STYLE, Picture, panels, save
from lowloss.study import Study

LEVELS = {"train": PALETTE[0], "test": PALETTE[1]}


def overview(studies: Sequence[Study], options: Options) -> pd.DataFrame:
    """Table B.1: a row a study and finder, by the data and the model that its minima were made with.

    Args:
        options: of the groups `model` and `data`, to call these by.
    """
    rows = []
    for study in studies:
        if (paths := tables.summary(study)).empty:
            continue
        config, table = merged_config(study), tables.table_b1(study, paths, tables.minima(study))
        names = {group: called(config, group, options) for group in ("data", "model")}
        rows.append(table.assign(**names, study=study.root.name)[[*names, "study", *table.columns]])
    if not rows:
        raise LowlossError("none of these studies has a path: make them with `lowloss ... stages=[minima,path]`")
    return pd.concat(rows, ignore_index=True)


def draw_architectures(table: pd.DataFrame, finder: str, folder: Path) -> Picture:
    """Minimum and saddle losses on both splits, a panel a data set.

    Args:
        table: an `overview`.
        finder: whose saddles.

    Raises LowlossError: no study has paths by this finder.
    """
    chosen = table[table["finder"] == finder]
    if chosen.empty:
        raise LowlossError(f"no path by {finder}: the finders are {', '.join(sorted(set(table['finder'])))}")
    folder.mkdir(parents=True, exist_ok=True)
    groups = list(chosen.groupby("data", sort=False))
    with mpl.rc_context(STYLE):
        widths = [len(rows) + 1 for _, rows in groups]
        figure, (axes,) = panels(max(5.0, 0.7 * len(chosen) + 2), 4.2, 1, len(groups), width_ratios=widths)
        for axis, (data, rows) in zip(axes, groups, strict=True):
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
        caption = (
            f"As fig. 5 of Draxler et al. 2018: means over the minima and over the spanning tree's saddles, {finder}."
        )
        return save(figure, folder, "architectures", "Minima and saddles of all architectures", caption)
