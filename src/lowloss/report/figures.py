"""Figures of a study, as matplotlib PNGs; the surface also as an interactive plotly figure.

Shapes: T points along a path, R × C a plane's grid.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import matplotlib as mpl
import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lowloss.report.graph import draw_graphs
from lowloss.report.search import draw_searches
from lowloss.report.style import COLOURS, STYLE, Picture, save
from lowloss.runs import Artifact, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_figures(study: Study, folder: Path) -> list[Picture]:
    """Draw every figure that the study's complete artifacts allow, into the folder."""
    folder.mkdir(parents=True, exist_ok=True)
    pictures = []
    with mpl.rc_context(STYLE):
        paths = study.complete("paths")
        if paths:
            pictures.append(_paths(paths, folder))
            pictures += draw_graphs(study, folder)
            pictures += draw_searches(study, folder)
        for artifact in study.complete("scans"):
            pictures.append(_plane(artifact, folder))
            if "path_projected" in artifact.load()[0]:
                pictures.append(_slice(study, artifact, folder))
            pictures.append(_surface(artifact, folder))
        ensembles = study.complete("ensembles")
        if ensembles:
            pictures.append(_ensemble(ensembles, folder))
    return pictures


def _paths(artifacts: list[Artifact], folder: Path) -> Picture:
    columns = [("train_loss", "train loss (nats)", 1.0), ("test_error", "test error (%)", 100.0)]
    needed = ["arc", *(name for name, _, _ in columns)]
    loaded = [(artifact.load()[1], artifact.table("along.csv", needed)) for artifact in artifacts]
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    labelled = set()
    # Paths of a finder share a colour; the straight line lies behind all others.
    for notes, along in sorted(loaded, key=lambda item: item[0]["finder"] != "line"):
        finder = notes["finder"]
        for axis, (column, _, scale) in zip(axes, columns, strict=True):
            axis.plot(
                along["arc"],
                scale * along[column],
                color=COLOURS.get(finder, "#b03a5b"),
                linestyle="--" if finder == "line" else "-",
                linewidth=1.6,
                label=None if finder in labelled else finder,
            )
        labelled.add(finder)
    for axis, (_, label, _) in zip(axes, columns, strict=True):
        axis.set(xlabel="fraction of the path's length", ylabel=label, xlim=(0, 1))
    if all((along["train_loss"] > 0).all() for _, along in loaded):
        axes[0].set_yscale("log")
    axes[0].legend()
    axes[0].set_title("Loss along the paths")
    axes[1].set_title("Test error along the paths")
    caption = "Exact loss over the whole training split and error over the test split, at every sampled point."
    return Picture(save(figure, folder, "paths"), "Along the paths", caption)


def _grid(artifact: Artifact) -> tuple[dict[str, Any], dict[str, Any]]:
    tensors, notes = artifact.load()
    return {name: tensor.numpy() for name, tensor in tensors.items()}, notes


def _plane(artifact: Artifact, folder: Path) -> Picture:
    grid, notes = _grid(artifact)
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _contours(figure, left, grid, grid["train_loss"], "train loss (nats)", logarithmic=True)
    _contours(figure, right, grid, 100 * grid["test_error"], "test error (%)", logarithmic=False)
    for axis in (left, right):
        _mark(axis, grid, notes)
        width, height = (np.ptp(grid[f"axis-{d}"]) for d in range(2))
        axis.set_aspect("equal" if 1 / 3 < height / width < 3 else "auto")
    left.set_title("Train loss")
    right.set_title("Test error")
    return Picture(save(figure, folder, artifact.name), f"Plane {artifact.name}", _caption(grid, notes))


def _slice(study: Study, artifact: Artifact, folder: Path) -> Picture:
    """Fig. 1 of Draxler et al. 2018: the slice on the left, the loss along the two ways on the right."""
    grid, notes = _grid(artifact)
    settings = notes["settings"]
    start, end = sorted((settings["start"], settings["end"]))  # as paths lead
    figure = Figure(figsize=(10, 4), layout="constrained")
    left, right = figure.subplots(1, 2)
    _contours(figure, left, grid, grid["train_loss"], "train loss (nats)", logarithmic=True)
    _mark(left, grid, notes)
    left.set(xticks=[], yticks=[], title="Slice through the train loss")
    for finder, style in ((settings["path"], "-"), ("line", "--")):
        path = study.artifact("paths", f"{start:04d}-{end:04d}-{finder}")
        if path.complete:
            table = path.table("along.csv", ["arc", "train_loss"])
            colour = COLOURS["line"] if finder == "line" else "#d1495b"
            right.plot(table["arc"], table["train_loss"], style, color=colour, label=finder)
    right.set(xlabel="fraction of the length", ylabel="train loss (nats)", xlim=(0, 1), title="Loss along")
    right.set_ylim(bottom=0)
    right.legend()
    caption = (
        "As fig. 1 of Draxler et al. 2018: the plane through the two minima and the mean of the path's inner bends; "
        "the path leaves the plane, so its own loss is the one on the right."
    )
    return Picture(save(figure, folder, f"slice-{artifact.name}"), f"Slice {artifact.name}", caption)


def _caption(grid: dict[str, Any], notes: dict[str, Any]) -> str:
    settings = notes["settings"]
    if "bends_distance" in grid:
        farthest = grid["bends_distance"].max()
        return (
            f"The plane through {', '.join(notes['anchor_names'])}. Axes are distances in weight space. The path is "
            f"projected onto the plane; its bends lie up to {farthest:.2g} off it."
        )
    return (
        f"Random directions around {notes['anchor_names'][0]}, normalization: {settings['normalization']} "
        "(Li et al. 2018; biases and BatchNorm parameters stay fixed unless it is none)."
    )


def _contours(figure: Figure, axis: Axes, grid: dict[str, Any], values_RC: Any, label: str, logarithmic: bool) -> None:
    shown = np.ma.masked_invalid(values_RC)
    if logarithmic:
        shown = np.ma.masked_less_equal(shown, 0)
    low, high = float(shown.min()), float(shown.max())
    if not high > low:
        high = low + max(abs(low), 1.0) * 1e-6
    options: dict[str, Any] = {"levels": np.linspace(low, high, 25)}
    if logarithmic:
        options = {"levels": np.geomspace(low, high, 25), "norm": LogNorm(low, high)}
    drawn = axis.contourf(grid["axis-0"], grid["axis-1"], shown.T, cmap="viridis", **options)
    axis.contour(grid["axis-0"], grid["axis-1"], shown.T, colors="white", linewidths=0.35, alpha=0.6, **options)
    bar = figure.colorbar(drawn, ax=axis, label=label)
    ticks = np.geomspace(low, high, 5) if logarithmic else np.linspace(low, high, 5)
    bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks], minor=False)
    bar.ax.minorticks_off()
    axis.grid(False)


def _mark(axis: Axes, grid: dict[str, Any], notes: dict[str, Any]) -> None:
    if "path_projected" in grid:
        axis.plot(*grid["path_projected"].T, color="white", linewidth=3)
        axis.plot(*grid["path_projected"].T, color="#d1495b", linewidth=1.6, label="path")
        axis.plot(*grid["bends_projected"][1:-1].T, ".", color="#d1495b", markersize=5)
        axis.plot(*grid["anchors"][:2].T, "--", color="white", linewidth=1, label="straight line")
    for name, (x, y) in zip(notes["anchor_names"], grid["anchors"], strict=True):
        if name.startswith("minimum"):
            axis.plot(x, y, "o", color="white", markeredgecolor="black", markersize=7)
            axis.annotate(
                name.removeprefix("minimum "), (x, y), (6, 6), textcoords="offset points", color="white",
                fontweight="bold",
            )  # fmt: skip


def _surface(artifact: Artifact, folder: Path) -> Picture:
    grid, _ = _grid(artifact)
    figure = Figure(figsize=(7, 5))
    axis: Any = figure.add_subplot(projection="3d")
    x_RC, y_RC = np.meshgrid(grid["axis-0"], grid["axis-1"], indexing="ij")
    height_RC = log_height(grid["train_loss"])
    axis.plot_surface(x_RC, y_RC, height_RC, cmap="viridis", rcount=60, ccount=60, linewidth=0)
    axis.set(zlabel="log10 train loss")
    axis.set_title(artifact.name)
    title = f"Surface {artifact.name}"
    return Picture(save(figure, folder, f"surface-{artifact.name}"), title, "Train loss on a logarithmic axis.")


def log_height(loss_RC: Any) -> Any:
    """log10 of a loss; NaN where it has none."""
    return np.log10(loss_RC, out=np.full_like(loss_RC, np.nan), where=np.isfinite(loss_RC) & (loss_RC > 0))


def interactive_surface(study: Study) -> Any:
    """The scanned planes as one plotly figure with a menu, or None without a scan."""
    artifacts = study.complete("scans")
    if not artifacts:
        return None
    import plotly.graph_objects as go

    figure = go.Figure()
    for i, artifact in enumerate(artifacts):
        grid, _ = _grid(artifact)
        figure.add_surface(
            x=grid["axis-0"],
            y=grid["axis-1"],
            z=log_height(grid["train_loss"]).T,
            customdata=np.dstack([grid["train_loss"].T, 100 * grid["test_error"].T]),
            hovertemplate="train loss %{customdata[0]:.4g}<br>test error %{customdata[1]:.2f} %<extra></extra>",
            colorscale="Viridis",
            colorbar={"title": "log10<br>train loss"},
            visible=i == 0,
            contours={"z": {"show": True, "usecolormap": True, "width": 1}},
        )
    buttons = [
        {"label": a.name, "method": "update", "args": [{"visible": [i == j for j in range(len(artifacts))]}]}
        for i, a in enumerate(artifacts)
    ]
    figure.update_layout(
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.08}],
        scene={"zaxis": {"title": "log10 train loss"}, "aspectratio": {"x": 1, "y": 1, "z": 0.7}},
        margin={"l": 0, "r": 0, "t": 40, "b": 0},
        height=560,
    )
    return figure


def _ensemble(artifacts: list[Artifact], folder: Path) -> Picture:
    figure = Figure(figsize=(10, 3.6), layout="constrained")
    axes = figure.subplots(1, 2)
    colours = iter(("#1f5fbf", "#2a9d6f", "#d9822b", "#7a4fbf"))
    for artifact in artifacts:
        tensors, notes = artifact.load()
        colour = next(colours, "#b03a5b")
        for axis, metric, scale in ((axes[0], "error", 100.0), (axes[1], "nll", 1.0)):
            curve, alone = (scale * tensors[name].numpy() for name in (metric, f"{metric}_alone"))
            members = np.arange(1, len(curve) + 1)
            axis.plot(members, curve, "o-", color=colour, label=f"{notes['method']}, together")
            axis.plot(members, alone, "x", color=colour, alpha=0.5, label=f"{notes['method']}, each alone")
    rows = [row for artifact in artifacts for row in artifact.load()[1]["rows"] if row[0] == "single"]
    for _, _, error, nll in rows[:1]:
        axes[0].axhline(100 * error, color="#8a8f98", linestyle="--", label="single network")
        axes[1].axhline(nll, color="#8a8f98", linestyle="--", label="single network")
    for axis, label in zip(axes, ("test error (%)", "test negative log-likelihood (nats)"), strict=True):
        axis.set(xlabel="members", ylabel=label)
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize=8)
    axes[0].set_title("Ensembles")
    caption = "The mean of the members' probabilities, for the first 1, 2, … members, and each member alone."
    return Picture(save(figure, folder, "ensembles"), "Ensembles", caption)
