"""Figures of a study, as matplotlib PNGs; the surface also as an interactive plotly figure.

Shapes: T points along a path, R × C a plane's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lowloss.report import tables
from lowloss.report.curvature import draw_map
from lowloss.report.lines import draw_lines, draw_trajectory, falls
from lowloss.report.pictures import COLOURS, LENGTH, OTHER, Picture, panels, save
from lowloss.study import Artifact, Source, Study

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw_paths(artifacts: Sequence[Source], folder: Path) -> Picture:
    """The train loss, and the last metric of the test split, along every path."""
    told = "Exact, over the whole un-augmented splits, at every sampled point."
    return save(paths_figure(artifacts), folder, "paths", "Along the paths", told)


def paths_figure(artifacts: Sequence[Source], figure: Figure | None = None) -> Figure:
    """The figure of `draw_paths`."""
    notes = artifacts[0].notes()
    shown = [one for one in shown_metrics(notes["units"]) if f"saddle_{one[0]}" in notes]  # a surface has no test split
    needed = ["arc", *(name for name, _, _ in shown)]
    loaded = [(artifact.notes(), artifact.table("along.csv", needed)) for artifact in artifacts]
    figure, (axes,) = panels(5 * len(shown), 3.6, 1, len(shown), figure)
    labelled = set[str]()
    # Paths of a finder share a colour; the straight line lies behind all others.
    for notes, along in sorted(loaded, key=lambda item: item[0]["finder"] != "line"):
        finder = notes["finder"]
        for axis, (column, _, factor) in zip(axes, shown, strict=True):
            style, colour = "--" if finder == "line" else "-", COLOURS.get(finder, OTHER)
            label = None if finder in labelled else finder
            axis.plot(along["arc"], factor * along[column], style, color=colour, linewidth=1.6, label=label)
        labelled.add(finder)
    for axis, (column, text, _) in zip(axes, shown, strict=True):
        axis.set(xlabel=LENGTH, ylabel=text, xlim=(0, 1))
        axis.set_title(f"{column.replace('_', ' ').capitalize()} along the paths")
    if all((along["train_loss"] > 0).all() for _, along in loaded):
        axes[0].set_yscale("log")
    axes[0].legend()
    return figure


def shown_metrics(units: Mapping[str, str]) -> list[tuple[str, str, float]]:
    """The two columns that figures show, each with its label and the factor to it: the train loss, and the test
    split's last metric."""
    last, unit = list(units.items())[-1]
    train = "train_loss", tables.label("train", "loss", units["loss"]), 1.0
    return [train, (f"test_{last}", tables.label("test", last, unit), tables.scale(unit))]


def draw_scan(study: Study, artifact: Artifact, folder: Path) -> Iterator[Picture]:
    """Lines as curves; a plane as contours, with the path that it goes through, and as a surface."""
    grid, notes = arrays(artifact)
    if notes.get("lines"):
        yield draw_lines(artifact.name, grid, notes, folder)
        return
    yield save(plane_figure(grid, notes), folder, artifact.name, f"Plane {artifact.name}", _caption(grid, notes))
    if "trajectory_projected" in grid:
        yield draw_trajectory(artifact.name, grid, notes, folder)
    if "path_projected" in grid:
        yield _slice(study, artifact.name, grid, notes, folder)
    if "hessian_ratio" in grid:
        yield draw_map(artifact.name, grid, notes, folder)
    yield _surface(artifact.name, grid, folder)


def arrays(artifact: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of an artifact as arrays, and its notes."""
    tensors, notes = artifact.load()
    return {name: tensor.numpy() for name, tensor in tensors.items()}, notes


def plane_figure(grid: dict[str, Any], notes: dict[str, Any], figure: Figure | None = None) -> Figure:
    """The train loss and the last metric of the test split on a plane, with what lies on it."""
    shown = [one for one in shown_metrics(notes["units"]) if one[0] in grid]
    figure, (axes,) = panels(5.5 * len(shown), 4.4, 1, len(shown), figure)
    for axis, (column, label, factor) in zip(axes, shown, strict=True):
        contours(figure, axis, grid, factor * grid[column], label, logarithmic=column == "train_loss")
        _mark(axis, grid, notes)
        width, height = (np.ptp(grid[f"axis-{d}"]) for d in range(2))
        axis.set_aspect("equal" if 1 / 3 < height / width < 3 else "auto")
        axis.set_title(column.replace("_", " ").capitalize())
    return figure


def _slice(study: Study, name: str, grid: dict[str, Any], notes: dict[str, Any], folder: Path) -> Picture:
    """Fig. 1 of Draxler et al. 2018: the slice on the left, the loss along the two ways on the right."""
    settings = notes["settings"]
    start, end = sorted((settings["start"], settings["end"]))  # as paths lead
    figure, ((left, right),) = panels(10, 4, 1, 2)
    label = shown_metrics(notes["units"])[0][1]
    contours(figure, left, grid, grid["train_loss"], label, logarithmic=True)
    _mark(left, grid, notes)
    left.set(xticks=[], yticks=[], title="Slice through the train loss")
    for finder, style in ((settings["path"], "-"), ("line", "--")):
        path = study.artifact("paths", f"{start:04d}-{end:04d}-{finder}")
        if path.complete:
            table = path.table("along.csv", ["arc", "train_loss"])
            colour = COLOURS["line"] if finder == "line" else "#d1495b"
            right.plot(table["arc"], table["train_loss"], style, color=colour, label=finder)
    right.set(xlabel="fraction of the length", ylabel=label, xlim=(0, 1), ylim=(0, None), title="Loss along")
    right.legend()
    caption = (
        "As fig. 1 of Draxler et al. 2018: the plane through the two minima and the mean of the path's inner bends; "
        "the path leaves the plane, so its own loss is the one on the right."
    )
    return save(figure, folder, f"slice-{name}", f"Slice {name}", caption)


def _caption(grid: dict[str, Any], notes: dict[str, Any]) -> str:
    settings = notes["settings"]
    statistics = f" BatchNorm's statistics: {settings['statistics']}."
    if "centre" in notes:
        shown, hessian = (" and ".join(f"{c:.3g}" for c in notes["centre"][of]) for of in ("shown", "hessian"))
        statistics += (
            f" At the centre its train loss has the curvatures {shown} along the axes, by second differences of the "
            f"grid's spacing; the Hessian's are {hessian}."
        )
    if "initial_train_loss" in notes:
        statistics += (
            f" The train loss rises to {grid['train_loss'].max():.3g} on it; the minimum's initial point had "
            f"{notes['initial_train_loss']:.3g}."
        )
    if "bends_distance" in grid:
        farthest = grid["bends_distance"].max()
        return (
            f"The plane through {', '.join(notes['anchor_names'])}. Axes are distances in weight space. The path is "
            f"projected onto the plane; its bends lie up to {farthest:.2g} off it.{statistics}"
        )
    if "trajectory_projected" in grid:
        shares = ", ".join(f"{share:.3g}" for share in notes["variance"][:2])
        return (
            f"The trajectory of {notes['anchor_names'][0]}, projected onto the plane (directions: "
            f"{settings['directions']}); the first two of its principal components have the shares {shares} of its "
            f"variance. It lies up to {grid['trajectory_distance'].max():.2g} off the plane. Diamonds: the learning "
            f"rate fell by half or more.{statistics}"
        )
    if "normalization" not in settings:
        return f"The plane through {', '.join(notes['anchor_names'])}. Axes are distances in weight space.{statistics}"
    return (
        f"Random directions around {notes['anchor_names'][0]}, normalization: {settings['normalization']} "
        f"(Li et al. 2018; biases and BatchNorm parameters stay fixed unless it is none).{statistics}"
    )


def contours(figure: Figure, axis: Axes, grid: dict[str, Any], values_RC: Any, label: str, logarithmic: bool) -> None:
    """Filled contours of values on a plane, with their colour bar; values that are not finite are left white."""
    shown = np.ma.masked_invalid(values_RC)
    logarithmic = logarithmic and bool((shown > 0).any())
    if logarithmic:
        shown = np.ma.masked_less_equal(shown, 0)
    if not shown.count():
        axis.text(0.5, 0.5, "no finite value", transform=axis.transAxes, ha="center")
        return
    low, high = float(shown.min()), float(shown.max())
    if not high > low:
        high = low + max(abs(low), 1.0) * 1e-6
    spaced: Any = np.geomspace if logarithmic else np.linspace
    options = {"levels": spaced(low, high, 25), "norm": LogNorm(low, high) if logarithmic else None}
    drawn = axis.contourf(grid["axis-0"], grid["axis-1"], shown.T, cmap="viridis", **options)
    axis.contour(grid["axis-0"], grid["axis-1"], shown.T, colors="white", linewidths=0.35, alpha=0.6, **options)
    bar = figure.colorbar(drawn, ax=axis, label=label)
    ticks = spaced(low, high, 5)
    bar.set_ticks(list(ticks), labels=[f"{tick:.2g}" for tick in ticks], minor=False)
    bar.ax.minorticks_off()
    axis.grid(False)


def _mark(axis: Axes, grid: dict[str, Any], notes: dict[str, Any]) -> None:
    if "path_projected" in grid:
        axis.plot(*grid["path_projected"].T, color="white", linewidth=3)
        axis.plot(*grid["path_projected"].T, color="#d1495b", linewidth=1.6, label="path")
        axis.plot(*grid["bends_projected"][1:-1].T, ".", color="#d1495b", markersize=5)
        axis.plot(*grid["anchors"][:2].T, "--", color="white", linewidth=1, label="straight line")
    if "trajectory_projected" in grid:
        axis.plot(*grid["trajectory_projected"].T, ".-", color="white", markeredgecolor="#d1495b", linewidth=1.2)
        fell = falls(grid["trajectory_lr"])
        axis.plot(
            *grid["trajectory_projected"][fell].T, "D", color="#f2c14e", markeredgecolor="black", markersize=5, zorder=5
        )
    for name, (x, y) in zip(notes["anchor_names"], grid["anchors"], strict=True):
        if name.startswith("minimum"):
            axis.plot(x, y, "o", color="white", markeredgecolor="black", markersize=7)
            style: Any = {"textcoords": "offset points", "color": "white", "fontweight": "bold"}
            axis.annotate(name.removeprefix("minimum "), (x, y), (6, 6), **style)


def _surface(name: str, grid: dict[str, Any], folder: Path) -> Picture:
    figure = Figure(figsize=(7, 5))
    axis: Any = figure.add_subplot(projection="3d")
    x_RC, y_RC = np.meshgrid(grid["axis-0"], grid["axis-1"], indexing="ij")
    height_RC = log_height(grid["train_loss"])
    axis.plot_surface(x_RC, y_RC, height_RC, cmap="viridis", rcount=60, ccount=60, linewidth=0)
    axis.set(zlabel="log10 train loss", title=name)
    return save(figure, folder, f"surface-{name}", f"Surface {name}", "Train loss on a logarithmic axis.")


def log_height(loss_RC: Any) -> Any:
    """log10 of a loss; NaN where it has none."""
    return np.log10(loss_RC, out=np.full_like(loss_RC, np.nan), where=np.isfinite(loss_RC) & (loss_RC > 0))


def interactive_surface(study: Study) -> Any:
    """The scanned planes as one plotly figure with a menu, or None without one."""
    artifacts = [artifact for artifact in study.complete("scans") if not artifact.notes().get("lines")]
    return surface_figure(artifacts) if artifacts else None


def surface_figure(artifacts: Sequence[Source]) -> Any:
    """Planes as one plotly figure, of several with a menu."""
    import plotly.graph_objects as go

    figure, buttons = go.Figure(), []
    for i, artifact in enumerate(artifacts):
        grid, notes = arrays(artifact)
        shown = [one for one in shown_metrics(notes["units"]) if one[0] in grid]
        told = [f"{text} %{{customdata[{i}]:.4g}}" for i, (_, text, _) in enumerate(shown)]
        figure.add_surface(
            x=grid["axis-0"], y=grid["axis-1"], z=log_height(grid["train_loss"]).T, visible=i == 0,
            customdata=np.dstack([factor * grid[column].T for column, _, factor in shown]),
            hovertemplate="<br>".join(told) + "<extra></extra>",
            colorscale="Viridis", colorbar={"title": "log10<br>train loss"},
            contours={"z": {"show": True, "usecolormap": True, "width": 1}},
        )  # fmt: skip
        visible = [i == j for j in range(len(artifacts))]
        buttons.append({"label": artifact.name, "method": "update", "args": [{"visible": visible}]})
    figure.update_layout(
        updatemenus=[{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.08}] if len(buttons) > 1 else [],
        scene={"zaxis": {"title": "log10 train loss"}, "aspectratio": {"x": 1, "y": 1, "z": 0.7}},
        margin={"l": 0, "r": 0, "t": 40, "b": 0}, height=560,
    )  # fmt: skip
    return figure


def draw_ensembles(artifacts: Sequence[Source], folder: Path) -> Picture:
    """The metrics of each ensemble's first members together, and of each alone."""
    caption = "The first 1, 2, … members together, and each member alone, on the test split."
    return save(ensembles_figure(artifacts), folder, "ensembles", "Ensembles", caption)


def ensembles_figure(artifacts: Sequence[Source], figure: Figure | None = None) -> Figure:
    """The figure of `draw_ensembles`."""
    units = artifacts[0].notes()["units"]
    figure, (axes,) = panels(5 * len(units), 3.6, 1, len(units), figure)
    shown = list(zip(axes, reversed(units.items()), strict=True))
    colours = iter(("#1f5fbf", "#2a9d6f", "#d9822b", "#7a4fbf"))
    rows = []
    for artifact in artifacts:
        tensors, notes = artifact.load()
        colour = next(colours, OTHER)
        rows += [row for row in notes["rows"] if row[0] == "single"]
        for axis, (metric, unit) in shown:
            factor = tables.scale(unit)
            curve, alone = (factor * tensors[name].numpy() for name in (metric, f"{metric}_alone"))
            members = np.arange(1, len(curve) + 1)
            axis.plot(members, curve, "o-", color=colour, label=f"{notes['method']}, together")
            axis.plot(members, alone, "x", color=colour, alpha=0.5, label=f"{notes['method']}, each alone")
    for axis, (metric, unit) in shown:
        for row in rows[:1]:
            level = tables.scale(unit) * row[2 + list(units).index(metric)]
            axis.axhline(level, color="#8a8f98", linestyle="--", label="single network")
        axis.set(xlabel="members", ylabel=tables.label("test", metric, unit))
        axis.xaxis.get_major_locator().set_params(integer=True)
    axes[0].legend(fontsize=8)
    axes[0].set_title("Ensembles")
    return figure
