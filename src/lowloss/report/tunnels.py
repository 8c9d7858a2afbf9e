"""How paths leave the straight line, and where the predicted labels change (Fort & Jastrzebski 2019, fig. 3).

Shapes: T points along a path.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from lowloss.report.looks import look
from lowloss.report.pictures import LENGTH, Picture, panels, save
from lowloss.study import Artifact, Study

CHANGED = ("changed_from_start", "changed_from_end")


def deviations(study: Study) -> pd.DataFrame:
    """A row a path that is not straight: the mean cosines between its deviations from the line, within a half of its
    length and between the halves, and the share of labels that have changed in the middle, from each end, and at the
    other end."""
    rows = []
    for artifact in study.complete("paths"):
        notes = artifact.notes()
        if "cosine_within" not in notes:
            continue
        row = {name: notes[name] for name in ("finder", "start", "end", "cosine_within", "cosine_between")}
        tensors, _ = artifact.load()
        if CHANGED[0] in tensors:
            middle = int((tensors["arc"] - 0.5).abs().argmin())
            row |= {f"{name}_middle": float(tensors[name][middle]) for name in CHANGED}
            row["changed_in_all"] = float(tensors[CHANGED[0]][-1])
        rows.append(row)
    return pd.DataFrame(rows)


def draw_tunnels(paths: list[Artifact], folder: Path) -> Iterator[Picture]:
    """The cosines of the first path of each finder, and the labels that change along them."""
    first: dict[str, tuple[dict[str, Any], str]] = {}
    for artifact in paths:
        notes = artifact.notes()
        if notes["finder"] not in first:
            first[notes["finder"]] = artifact.load()[0], f"{notes['finder']} {notes['start']}–{notes['end']}"
    bent = {finder: shown for finder, shown in first.items() if "cosines" in shown[0]}
    if bent:
        yield _cosines(bent, folder)
    labelled = {finder: shown for finder, shown in first.items() if CHANGED[0] in shown[0]}
    if labelled:
        yield _labels(labelled, folder)


def _cosines(shown: dict[str, tuple[dict[str, Any], str]], folder: Path) -> Picture:
    figure, (axes,) = panels(3.6 * len(shown) + 1, 3.4, 1, len(shown))
    for axis, (tensors, title) in zip(axes, shown.values(), strict=True):
        arc_T, cosines_TT = tensors["arc"].numpy(), tensors["cosines"].numpy()
        mesh = axis.pcolormesh(arc_T, arc_T, cosines_TT, cmap="RdBu_r", vmin=-1, vmax=1, shading="nearest",
                               rasterized=True)  # fmt: skip
        axis.set(title=title, xlabel=LENGTH, aspect="equal")
        axis.grid(False)
    figure.colorbar(mesh, ax=axes, label="cosine")
    caption = (
        "Cosines between the deviations of two points of a path from the straight line, as fig. 3 (middle) of Fort & "
        "Jastrzebski 2019; zero where a point lies on the line."
    )
    return save(figure, folder, "cosines", "Deviations from the line", caption)


def _labels(shown: dict[str, tuple[dict[str, Any], str]], folder: Path) -> Picture:
    figure, ((axis,),) = panels(6, 3.6)
    for finder, (tensors, title) in shown.items():
        for name, style in zip(CHANGED, ("-", "--"), strict=True):
            label = f"{title}, {name.replace('_', ' ')}"
            axis.plot(tensors["arc"], 100 * tensors[name], style, color=look(finder).colour, label=label)
    axis.set(xlabel=LENGTH, ylabel="changed labels (%)", xlim=(0, 1), ylim=(0, None), title="Predicted labels")
    axis.legend(fontsize=7)
    caption = (
        "The share of test samples whose predicted label differs from that at either end, as fig. 3 (right) of Fort & "
        "Jastrzebski 2019."
    )
    return save(figure, folder, "labels", "Labels that change along the paths", caption)
