"""Figures of ensembles along curves and walks: figures 2, 4 and 5 of Garipov et al. 2018.

Shapes: T points of a path.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure

from lowloss.report import tables
from lowloss.report.looks import PALETTE, look
from lowloss.report.pictures import Picture, panels, save
from lowloss.study import Artifact, Source, Study

STYLES = {"": "-", "-by-loss": ":", "-fitted": "-."}
"""Of the ways in which a curve's logits are taken: as they are, rescaled by the loss, and by fitted factors."""

Loaded = tuple[dict[str, Any], dict[str, Any]]
"""The arrays of an artifact by their names, and its notes."""


def draw_curves(study: Study, artifacts: list[Artifact], folder: Path) -> Iterator[Picture]:
    """The figures of each pair of minima between which there are ensembles of curves' points."""
    pairs: dict[tuple[int, int], list[Loaded]] = {}
    for loaded in map(loaded_arrays, artifacts):
        start, end = sorted((loaded[1]["start"], loaded[1]["end"]))
        pairs.setdefault((start, end), []).append(loaded)
    for pair, found in pairs.items():
        paths = [
            loaded_arrays(one) for one in study.complete("paths") if one.name.startswith("{:04d}-{:04d}-".format(*pair))
        ]
        yield _along(pair, [path for path in paths if path[1]["finder"] != "line"], found, folder)
        figure, caption = pairs_figure(found)
        name, title = "pairs-{:04d}-{:04d}".format(*pair), f"Two networks along the curves {pair[0]}–{pair[1]}"
        yield save(figure, folder, name, title, caption)


def _along(pair: tuple[int, int], paths: list[Loaded], ensembles: list[Loaded], folder: Path) -> Picture:
    """Fig. 2: error and loss by t, levels of ensembles, and the loss with rescaled logits."""
    units = ensembles[0][1]["units"]
    metric, unit = list(units.items())[-1]
    figure, (top, bottom) = panels(10, 7, 2, 2)
    for tensors, notes in paths:
        own: dict[str, Any] = {**look(notes["finder"]).line, "label": notes["finder"]}
        top[0].plot(tensors["t"], tables.scale(unit) * tensors[f"train_{metric}"], **own)
        top[1].plot(tensors["t"], tensors["train_loss"] + tensors["l2"], **own)
        bottom[0].plot(tensors["t"], tables.scale(unit) * tensors[f"test_{metric}"], **own)
    for tensors, notes in ensembles:
        if notes["path"] in ("line", "random"):  # far above all that is shown
            continue
        colour = look(notes["path"]).colour
        for way, style in _ways(notes):
            level = tables.scale(unit) * float(tensors[f"{way}.{metric}"][-1])
            bottom[0].axhline(level, color=colour, linestyle=style, linewidth=1, label=f"{way}, all together")
            bottom[1].plot(tensors["t"], tensors[f"{way}.loss_alone"], style, color=colour, label=way)
    labels = [tables.label(split, metric, unit) for split in ("train", "test")]
    losses = [tables.label(split, "loss", units["loss"]) for split in ("train", "test")]
    for axis, label in zip(
        (top[0], top[1], bottom[0], bottom[1]), (labels[0], losses[0], labels[1], losses[1]), strict=True
    ):
        axis.set(xlabel="t", ylabel=label, xlim=(0, 1))
        if axis.lines:  # there may be no path but the line
            axis.legend(fontsize=7)
    top[1].set_title("with the L2 term")
    caption = (
        "As fig. 2 of Garipov et al. 2018. Horizontal lines: all points of a curve's ensemble together. Bottom right: "
        "each point alone, with logits as they are and rescaled."
    )
    return save(figure, folder, "curve-{:04d}-{:04d}".format(*pair), f"Along the curves {pair[0]}–{pair[1]}", caption)


def pairs_figure(ensembles: Sequence[Loaded], figure: Figure | None = None) -> tuple[Figure, str]:
    """Fig. 4: the first end and a point together, by t; and the caption. The ensembles are between the same minima."""
    metric, unit = list(ensembles[0][1]["units"].items())[-1]
    figure, ((axis,),) = panels(6, 3.8, figure=figure)
    for tensors, notes in ensembles:
        style = "--" if notes["path"] == "random" else "-"
        values_T = tables.scale(unit) * tensors[f"{notes['method']}.pair_{metric}"]
        told = {"line": "segment", "random": "random segment"}.get(notes["path"], notes["path"])
        axis.plot(tensors["t"], values_T, style, color=look(notes["path"]).colour, label=told)
    axis.set(
        xlabel="t", ylabel=tables.label("test", metric, unit), xlim=(0, 1), title="The end and the point at t together"
    )
    axis.legend()
    return figure, (
        "As fig. 4 of Garipov et al. 2018: two networks, the first end and a point of the curve, the segment, or a "
        "random segment of its length."
    )


def loaded_arrays(artifact: Source) -> Loaded:
    tensors, notes = artifact.load()
    return {name: tensor.numpy() for name, tensor in tensors.items() if name not in ("theta", "bends")}, notes


def _ways(notes: Mapping[str, Any]) -> list[tuple[str, str]]:
    """The ways of an ensemble, each with its style."""
    return [(way, STYLES[way.removeprefix(notes["method"])]) for way in notes["ways"]]


def draw_walks(artifacts: list[Artifact], folder: Path) -> Iterator[Picture]:
    """Fig. 5: rate, the members' errors and their distances from the start, by iteration of the first walk."""
    for artifact in artifacts:
        tensors, notes = loaded_arrays(artifact)
        if "from_start" not in tensors:
            continue
        metric, unit = list(notes["units"].items())[-1]
        ends = np.flatnonzero(np.diff(tensors["iteration"]) <= 0)
        members = slice(0, ends[0] + 1 if len(ends) else None)
        at, error = tensors["iteration"][members], tables.scale(unit) * tensors[f"{metric}_alone"][members]
        figure, axes = panels(6, 6, 3, 1, sharex=True)
        axes[0][0].plot(range(1, len(tensors["lr"]) + 1), tensors["lr"], color=PALETTE[0])
        axes[1][0].plot(at, error, "o", color=PALETTE[0])
        axes[2][0].plot([0, *at], [0.0, *tensors["from_start"][members]], "o-", color=PALETTE[0])
        axes[0][0].set(ylabel="learning rate", title=f"The walk of {artifact.name}")
        axes[1][0].set(ylabel=tables.label("test", metric, unit))
        axes[2][0].set(ylabel="distance from the start", xlabel="iteration")
        caption = (
            "As fig. 5 of Garipov et al. 2018: circles are the members of the first walk, where they are collected."
        )
        yield save(figure, folder, f"walk-{artifact.name}", f"Walk {artifact.name}", caption)
