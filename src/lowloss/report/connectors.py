"""What the report shows of connectors: simplex plots and distributions (Fort & Jastrzebski 2019, sec. 4.3).

Shapes: S sampled points, C corners.
"""

from __future__ import annotations

from collections.abc import Iterator
from math import sqrt
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lowloss.report import tables
from lowloss.report.looks import look
from lowloss.report.paths import shown_metrics
from lowloss.report.pictures import Picture, Shown, Table, panels, save
from lowloss.study import Source, Study

SHAPES = {"surface": "through the optimised points", "linear": "linear"}

MAIN = ("corners_train_loss", *(f"barrier_{shape}_train_loss" for shape in SHAPES), "middle_train_loss")


def connectors(study: Study) -> pd.DataFrame:
    """A row a connector: its notes."""
    notes = [artifact.notes() for artifact in study.complete("connectors")]
    return pd.DataFrame([{key: value for key, value in row.items() if key != "units"} for row in notes])


def connector_figure(artifact: Source, figure: Figure | None = None) -> tuple[Figure, str, str]:
    """The train loss over a connector beside that over the linear simplex; its title and caption."""
    tensors, notes = artifact.load()
    m, label = notes["m"], shown_metrics(notes["units"])[0][1]
    shown = {name: tensors[f"{name}_train_loss"].numpy() for name in SHAPES}
    draw = _triangle if m == 2 else _line if m == 1 else _distribution
    figure = draw(shown, tensors["weights"].numpy(), label, figure)
    inner = notes["vertices"] - m - 1
    points = "an optimised point" if inner == 1 else f"{inner} optimised points"
    cone = " The surface is the cone of the faces', with optimised middles of edges, over the optimised centroid."
    caption = (
        f"Exact losses at {notes['samples']} points of the simplex of {m + 1} minima, and of the surface between the "
        f"minima and {points}.{cone if notes['cone'] else ''}"
    )
    return figure, f"Connector of {m + 1} minima", caption


def _triangle(shown: dict[str, Any], weights_SC: Any, label: str, figure: Figure | None) -> Figure:
    figure, (axes,) = panels(10, 4, 1, 2, figure)
    corners_C2 = np.array([[0, 0], [1, 0], [0.5, sqrt(3) / 2]])
    x_S, y_S = (weights_SC @ corners_C2).T
    every = np.concatenate(list(shown.values()))
    levels = np.linspace(every.min(), max(every.max(), every.min() + 1e-9), 25)
    for axis, (name, loss_S) in zip(axes, shown.items(), strict=True):
        drawn = axis.tricontourf(x_S, y_S, loss_S, levels=levels, cmap="viridis")
        for k, (x, y) in enumerate(corners_C2):
            axis.annotate(f"{k}", (x, y), (0, 4 if k == 2 else -12), textcoords="offset points", ha="center")
        axis.set_title(SHAPES[name].capitalize(), pad=18)
        axis.set_aspect("equal")
        axis.set_axis_off()
    figure.colorbar(drawn, ax=axes, label=label)
    return figure


def _line(shown: dict[str, Any], weights_SC: Any, label: str, figure: Figure | None) -> Figure:
    figure, ((axis,),) = panels(5.5, 3.6, figure=figure)
    order = np.argsort(weights_SC[:, 1])
    for name, loss_S in shown.items():
        axis.plot(weights_SC[order, 1], loss_S[order], label=SHAPES[name], **look(name).line)
    axis.set(xlabel="weight of minimum 1", ylabel=label, xlim=(0, 1))
    axis.legend()
    return figure


def _distribution(shown: dict[str, Any], weights_SC: Any, label: str, figure: Figure | None) -> Figure:
    figure, ((axis,),) = panels(5.5, 3.6, figure=figure)
    for name, loss_S in shown.items():
        axis.ecdf(loss_S, label=SHAPES[name], **look(name).line)
    axis.set(xlabel=label, ylabel="share of the points below", ylim=(0, 1))
    axis.legend()
    return figure


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    for artifact in study.complete("connectors"):
        figure, title, caption = connector_figure(artifact)
        yield save(figure, folder, f"connector-{artifact.name}", title, caption)


def found(study: Study) -> Iterator[str]:
    """How high connectors climb, beside the linear simplices of their minima."""
    unit = tables.units(study)["loss"]
    for row in connectors(study).to_dict("records"):
        surface, linear = (tables.quantity(row[f"barrier_{of}_train_loss"], unit) for of in SHAPES)
        yield f"The connector of {row['m'] + 1} minima climbs {surface} above their mean, the linear simplex {linear}."


def shown_tables(study: Study) -> Iterator[Table]:
    of, note = tables.units(study), "Losses at sampled points; barriers above the corners' mean."
    last, share = [*of][-1], tables.fractions(of)
    together = (f"{whose}_together_test_{last}" for whose in ("corners", "connector"))
    main = ("m", "samples", *MAIN, *(name.replace("train", "test") for name in MAIN[:3]), *together)
    yield Table("report/connectors.csv", connectors(study), "Connectors", note, main, fractions=share)


SHOWN = Shown("Connectors", found, draw, shown_tables)
