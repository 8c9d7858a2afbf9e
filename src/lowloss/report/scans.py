"""What the report shows of scans: lines as curves, planes as contours and as a surface to turn.

Shapes: T points along a path, B bends, R × C a plane's grid.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from matplotlib.colors import LogNorm
from matplotlib.figure import Figure

from lowloss.report.lines import draw_lines, draw_trajectory, falls
from lowloss.report.looks import look
from lowloss.report.paths import shown_metrics
from lowloss.report.pictures import Picture, Shown, panels, save
from lowloss.report.planes import Way, axis_names, contours_plot, heights, surface
from lowloss.report.spectra import draw_map
from lowloss.study import Artifact, Source, Study

SURFACE = (
    "The train loss on a logarithmic axis, to turn. What lies on the surface is projected onto the plane: it has the "
    "plane's height there, and tells its own loss."
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    for artifact in study.complete("scans"):
        yield from draw_scan(study, artifact, folder)


def draw_scan(study: Study, artifact: Artifact, folder: Path) -> Iterator[Picture]:
    """Lines as curves; a plane as contours, with the path that it goes through, and as a surface."""
    grid, notes = arrays(artifact)
    if notes.get("lines"):
        yield draw_lines(artifact.name, grid, notes, folder)
        return
    ways = ways_of(study, grid, notes)
    yield _plane(artifact.name, grid, notes, ways, folder)
    yield _surface(artifact.name, grid, notes, ways, folder)
    if "trajectory_projected" in grid:
        yield draw_trajectory(artifact.name, grid, notes, folder)
    if "hessian_ratio" in grid:
        yield draw_map(artifact.name, grid, notes, folder)


def arrays(artifact: Source) -> tuple[dict[str, Any], dict[str, Any]]:
    """The tensors of an artifact as arrays, and its notes."""
    tensors, notes = artifact.load()
    return {name: tensor.numpy() for name, tensor in tensors.items()}, notes


def ways_of(study: Study | None, grid: dict[str, Any], notes: dict[str, Any]) -> list[Way]:
    """The straight line and the path through which a plane goes, at the points of their tables; or its trajectory."""
    if "trajectory_projected" in grid:
        points = grid["trajectory_projected"]
        loss = grid.get("trajectory_train_loss", np.full(len(points), np.nan))
        return [Way("", "trajectory", points, grid["trajectory_epochs"], loss)]
    if "path_projected" not in grid or study is None:
        return []
    settings, ways = notes["settings"], []
    start, end = sorted((settings["start"], settings["end"]))  # as paths lead
    ends = grid["anchors"][[0, 1] if settings["start"] == start else [1, 0]]
    for finder, bends_B2 in {"line": ends, settings["path"]: grid["bends_projected"]}.items():
        name = f"{start:04d}-{end:04d}-{finder}"
        ways += [way_of(path, bends_B2) for path in study.complete("paths") if path.name == name]
    return ways


def way_of(path: Source, bends_B2: Any) -> Way:
    """What a plane shows of a path whose bends are projected there."""
    from lowloss.points.path import path_from_tensors

    tensors, notes = path.load()
    weights_TB = path_from_tensors(notes["kind"], tensors).coefficients(tensors["t"]).numpy()
    arc_T, loss_T = (tensors[name].double().numpy() for name in ("arc", "train_loss"))
    return Way(path.name, notes["finder"], weights_TB @ bends_B2, arc_T, loss_T)


def _plane(name: str, grid: dict[str, Any], notes: dict[str, Any], ways: Sequence[Way], folder: Path) -> Picture:
    shown = [metric for metric in shown_metrics(notes["units"]) if metric[0] in grid]
    plots = {metric[1]: contours_plot(grid, notes, ways, *metric) for metric in shown}
    caption, lead = _caption(grid, notes), "path_projected" in grid
    return save(plane_figure(grid, notes), folder, name, f"Plane {name}", caption, plots=plots, lead=lead)


def plane_figure(grid: dict[str, Any], notes: dict[str, Any], figure: Figure | None = None) -> Figure:
    """The train loss and the last metric of the test split on a plane, with what lies on it."""
    shown = [metric for metric in shown_metrics(notes["units"]) if metric[0] in grid]
    figure, (axes,) = panels(5.5 * len(shown), 4.4, 1, len(shown), figure)
    width, height = (np.ptp(grid[f"axis-{d}"]) for d in range(2))
    x_name, y_name = axis_names(grid, notes)
    for axis, (column, text, factor) in zip(axes, shown, strict=True):
        contours(figure, axis, grid, factor * grid[column], text, logarithmic=column == "train_loss")
        _mark(axis, grid, notes)
        axis.set_aspect("equal" if 1 / 3 < height / width < 3 else "auto")
        axis.set(title=column.replace("_", " ").capitalize(), xlabel=x_name, ylabel=y_name)
    return figure


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
        own = ", ".join(f"{share:.2g}" for share in notes["captured"])
        captured = f", those of the plane {own}" if settings["directions"] == "random" else ""
        return (
            f"The trajectory of {notes['anchor_names'][0]}, projected onto the plane (directions: "
            f"{settings['directions']}); the first two of its principal components have the shares {shares} of its "
            f"variance{captured}. It lies up to {grid['trajectory_distance'].max():.2g} off the plane. Diamonds: the "
            f"learning rate fell by half or more.{statistics}"
        )
    if "normalization" not in settings:
        return f"The plane through {', '.join(notes['anchor_names'])}. Axes are distances in weight space.{statistics}"
    return (
        f"Random directions around {notes['anchor_names'][0]}, normalization: {settings['normalization']} "
        f"(Li et al. 2018; biases and BatchNorm parameters stay fixed unless it is none).{_spread(grid)}{statistics}"
    )


def _spread(grid: dict[str, Any]) -> str:
    """Whether other directions look like those of a random plane."""
    if "spread_x" not in grid:
        return ""
    told, loss_DX = [], grid["spread_train_loss"]
    for at in sorted({*np.abs(grid["spread_x"])}):
        own_2, other_D = (part.mean(1) for part in np.split(loss_DX[:, np.abs(grid["spread_x"]) == at], [2]))
        told.append(
            f"{own_2[0]:.3g} and {own_2[1]:.3g} at ±{at:g}, and along {len(other_D)} others to {other_D.mean():.3g} ± "
            f"{other_D.std(ddof=1):.2g}"
        )
    return f" Along its axes the train loss rises to {'; to '.join(told)}."


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
    bar.set_ticks(list(ticks), labels=[f"{tick:.3g}" for tick in ticks], minor=False)
    bar.ax.minorticks_off()
    axis.grid(False)


def _mark(axis: Axes, grid: dict[str, Any], notes: dict[str, Any]) -> None:
    if "path_projected" in grid:
        colour = look(notes["settings"]["path"]).colour
        axis.plot(*grid["path_projected"].T, color="white", linewidth=3.4)
        axis.plot(*grid["path_projected"].T, color=colour, linewidth=1.8, label="path")
        axis.plot(*grid["bends_projected"][1:-1].T, ".", color=colour, markersize=5)
        axis.plot(*grid["anchors"][:2].T, "--", color="white", linewidth=1, label="straight line")
    if "trajectory_projected" in grid:
        axis.plot(*grid["trajectory_projected"].T, ".-", color="white", markeredgecolor="black", linewidth=1.2)
        fell = falls(grid["trajectory_lr"])
        axis.plot(
            *grid["trajectory_projected"][fell].T, "D", color="#f2c14e", markeredgecolor="black", markersize=5, zorder=5
        )
    for name, (x, y) in zip(notes["anchor_names"], grid["anchors"], strict=True):
        if name.startswith("minimum"):
            axis.plot(x, y, "o", color="white", markeredgecolor="black", markersize=7)
            text = name.removeprefix("minimum ")
            style: Any = {"textcoords": "offset points", "color": "white", "fontweight": "bold"}
            axis.annotate(text, (x, y), **(_beside(grid, x, y, text) | style))


def _beside(grid: dict[str, Any], x: float, y: float, text: str) -> dict[str, Any]:
    """Where the label of a point stands: to the right and above, where that does not leave the plane; white on white it
    could not be read."""
    width, height = (np.ptp(grid[f"axis-{d}"]) for d in range(2))
    narrow = max(1, height / width) if height / width < 3 else 1
    right = (grid["axis-0"].max() - x) / width < min(0.5, 0.04 * narrow * (1 + len(text)))
    top = (grid["axis-1"].max() - y) / height < 0.1 * max(1, min(3, width / height))
    return {"xytext": (-6 if right else 6, -6 if top else 6), "ha": "right" if right else "left",
            "va": "top" if top else "bottom"}  # fmt: skip


def _surface(name: str, grid: dict[str, Any], notes: dict[str, Any], ways: Sequence[Way], folder: Path) -> Picture:
    figure = Figure(figsize=(7, 5))
    axis: Any = figure.add_subplot(projection="3d")
    x_RC, y_RC = np.meshgrid(grid["axis-0"], grid["axis-1"], indexing="ij")
    (height_RC, scale), names = heights(grid["train_loss"]), axis_names(grid, notes)
    axis.plot_surface(x_RC, y_RC, height_RC, cmap="viridis", rcount=60, ccount=60, linewidth=0)
    axis.set(zlabel=scale, xlabel=names[0], ylabel=names[1], title=name)
    axis.locator_params(nbins=5)  # more would overlap
    plots = {"surface": surface(grid, notes, ways)}
    return save(figure, folder, f"surface-{name}", f"Plane {name}", SURFACE, plots=plots)


SHOWN = Shown("Scans", draw=draw)
