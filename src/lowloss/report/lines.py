"""Figures of scans along lines.

Shapes: D directions, T points of each.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowloss.report import tables
from lowloss.report.looks import GREY, PALETTE
from lowloss.report.pictures import Picture, panels, save

SPLITS = {"train": (PALETTE[0], "-"), "test": (PALETTE[1], "--")}


def draw_lines(name: str, grid: dict[str, Any], notes: dict[str, Any], folder: Path) -> Picture:
    """The loss and the last metric on both splits; of several directions the mean and the band that they span."""
    title = f"Lines {name}" if "directions" in notes["settings"] else f"Line {name}"
    return save(lines_figure(grid, notes), folder, name, title, _caption(notes))


def lines_figure(grid: dict[str, Any], notes: dict[str, Any], figure: Figure | None = None) -> Figure:
    """The figure of `draw_lines`."""
    settings = notes["settings"]
    random, x_T = "directions" in settings, grid["axis-1" if "directions" in settings else "axis-0"]
    shown = {"loss": notes["units"]["loss"], **dict(list(notes["units"].items())[-1:])}
    figure, (axes,) = panels(5 * len(shown), 3.8, 1, len(shown), figure)
    for axis, (metric, unit) in zip(axes, shown.items(), strict=True):
        splits = [split for split in SPLITS if f"{split}_{metric}" in grid]
        for split in splits:
            colour, style = SPLITS[split]
            values_DT = tables.scale(unit) * np.atleast_2d(grid[f"{split}_{metric}"])
            values_DT = np.ma.masked_invalid(values_DT)
            axis.plot(x_T, values_DT.mean(0), style, color=colour, label=split)
            if len(values_DT) > 1:
                axis.fill_between(x_T, values_DT.min(0), values_DT.max(0), color=colour, alpha=0.15, linewidth=0)
        label = tables.label("", metric, unit).strip()
        axis.set(xlabel="coordinate", ylabel=label, xlim=(x_T[0], x_T[-1]), title=metric.capitalize())
        marks = [0.0] if random else grid["anchors"][:, 0]
        for x, mark in zip(marks, notes["anchor_names"], strict=True):
            axis.axvline(x, color=GREY, linewidth=0.8, linestyle=":")
            axis.annotate(mark, (x, 1), (2, -2), xycoords=("data", "axes fraction"), textcoords="offset points",
                          rotation=90, va="top", fontsize=7, color=GREY)  # fmt: skip
    if all((grid[f"{split}_loss"] > 0).all() for split in SPLITS if f"{split}_loss" in grid):
        axes[0].set_yscale("log")
    axes[0].legend()
    return figure


def _caption(notes: dict[str, Any]) -> str:
    settings = notes["settings"]
    statistics = f"BatchNorm's statistics: {settings['statistics']}."
    if "directions" in settings:
        return (
            f"{settings['directions']} random directions through {notes['anchor_names'][0]}, normalization: "
            f"{settings['normalization']} (Li et al. 2018): their mean, and the band from the lowest to the highest. "
            f"{statistics}"
        )
    return f"The straight line through {' (0) and '.join(notes['anchor_names'])} (1). {statistics}"


def falls(rate_E: Any) -> list[int]:
    """The points of a trajectory at which the learning rate fell by half or more, as a schedule of steps has it."""
    return [e for e in range(1, len(rate_E)) if rate_E[e] <= rate_E[e - 1] / 2]


def draw_trajectory(name: str, grid: dict[str, Any], notes: dict[str, Any], folder: Path) -> Picture:
    """The real losses of a trajectory, and those of its projection onto the plane, by epochs."""
    caption = (
        "The plane shows the losses of the projections, not those that training had: both, exact over whole splits. "
        "Dotted: the learning rate fell by half or more. "
        "BatchNorm's statistics are recomputed on the trajectory, and on the plane as its caption says."
    )
    return save(trajectory_figure(grid, notes), folder, f"losses-{name}", f"Trajectory and plane {name}", caption)


def trajectory_figure(grid: dict[str, Any], notes: dict[str, Any], figure: Figure | None = None) -> Figure:
    """The figure of `draw_trajectory`."""
    figure, ((axis,),) = panels(6, 3.8, figure=figure)
    for split, (colour, _) in SPLITS.items():
        if f"trajectory_{split}_loss" in grid:
            for what, style in (("trajectory", "-"), ("projection", ":")):
                values = grid[f"{what}_{split}_loss"]
                axis.plot(grid["trajectory_epochs"], values, f".{style}", color=colour, label=f"{split}, {what}")
    for epoch in grid["trajectory_epochs"][falls(grid["trajectory_lr"])]:
        axis.axvline(epoch, color=GREY, linewidth=0.8, linestyle=":")
    label = tables.label("", "loss", notes["units"]["loss"]).strip()
    axis.set(xlabel="epoch", ylabel=label, title="The trajectory and its projection")
    axis.legend()
    return figure
