"""Planes as plotly figures, which are dictionaries: contours, and a surface to turn, with the way that is known there.

Shapes: T points along a path, R × C a plane's grid.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from lowloss.report.looks import look


@dataclass(frozen=True)
class Way:
    """What a plane shows of a path or a trajectory: its points on the plane, each with its own train loss.

    name: of the path's artifact.  at_T: the fraction of the length, of a trajectory the epoch.  loss_T: NaN where it is
    not known.
    """

    name: str
    finder: str
    points_T2: Any
    at_T: Any
    loss_T: Any


def axis_names(grid: dict[str, Any], notes: dict[str, Any]) -> list[str]:
    """What the two axes of a plane are."""
    settings, anchors = notes.get("settings", {}), notes.get("anchor_names", [])
    if "trajectory_projected" in grid and "directions" in settings:
        what = "principal component" if settings["directions"] == "pca" else "random direction"
        return [f"{what} {d + 1}" for d in range(2)]
    if "normalization" in settings:
        return [f"random direction {d + 1}" for d in range(2)]
    if len(anchors) < 2:
        return ["distance along the first axis", "distance along the second"]
    first, second = anchors[:2]
    return [f"distance, {first} to {second.removeprefix('minimum ')}", "distance across"]


def heights(loss_RC: Any) -> tuple[Any, str]:
    """log10 of a train loss, NaN where it has none, and what that is; itself where it is positive nowhere."""
    finite_RC = np.where(np.isfinite(loss_RC), loss_RC, np.nan)
    if not (finite_RC > 0).any():
        return finite_RC, "train loss"
    return np.log10(finite_RC, out=np.full_like(finite_RC, np.nan), where=finite_RC > 0), "log10 train loss"


def contours_plot(
    grid: dict[str, Any], notes: dict[str, Any], ways: Sequence[Way], column: str, text: str, factor: float
) -> dict[str, Any]:
    """The contours of a column, of the train loss in equal steps of its logarithm, and what lies on the plane."""
    values_RC, (x_name, y_name) = factor * grid[column], axis_names(grid, notes)
    z_RC, scale = (
        heights(values_RC) if column == "train_loss" else (np.where(np.isfinite(values_RC), values_RC, np.nan), "")
    )
    bar: dict[str, Any] = {"title": {"text": text, "side": "right"}, "thickness": 14}
    if scale.startswith("log10"):
        ticks = np.linspace(np.nanmin(z_RC), np.nanmax(z_RC), 5)
        bar |= {"tickvals": [*ticks], "ticktext": [f"{10**tick:.3g}" for tick in ticks]}
    data: list[dict[str, Any]] = [{
        "type": "contour", "x": [*grid["axis-0"]], "y": [*grid["axis-1"]], "z": z_RC.T.tolist(), "ncontours": 24,
        "customdata": values_RC.T.tolist(), "colorscale": "Viridis", "colorbar": bar,
        "contours": {"coloring": "heatmap"},
        "line": {"width": 0.4, "color": "white"}, "hovertemplate": f"{text} %{{customdata:.4g}}<extra></extra>",
    }]  # fmt: skip
    for way in ways:
        x, y = way.points_T2.T.tolist()
        data.append({"type": "scatter", "mode": "lines", "x": x, "y": y, "hoverinfo": "skip", "showlegend": False,
                     "line": {"color": "white", "width": 6}})  # fmt: skip
        data.append({"type": "scatter", "x": x, "y": y, **_way(way)})
    x, y, names = _minima(grid, notes)
    data.append({
        "type": "scatter", "mode": "markers+text", "x": x, "y": y, "text": names, "textposition": "top right",
        "textfont": {"color": "white", "size": 15}, "marker": _DOT, "showlegend": False,
        "hovertemplate": "minimum %{text}<extra></extra>",
    })  # fmt: skip
    width, height = (np.ptp(grid[f"axis-{d}"]) for d in range(2))
    equal = {"scaleanchor": "x", "constrain": "domain"} if 1 / 3 < height / width < 3 else {}
    return {
        "data": data,
        "layout": {"xaxis": {"title": x_name, "constrain": "domain"}, "yaxis": {"title": y_name, **equal}},
    }


def surface(grid: dict[str, Any], notes: dict[str, Any], ways: Sequence[Way]) -> dict[str, Any]:
    """The train loss as a surface, with the ways and the minima at its height."""
    from scipy.interpolate import RegularGridInterpolator

    (z_RC, scale), (x_name, y_name) = heights(grid["train_loss"]), axis_names(grid, notes)
    axes = grid["axis-0"], grid["axis-1"]
    height = RegularGridInterpolator(axes, z_RC, bounds_error=False)
    lift = 0.01 * float(np.ptp(z_RC[np.isfinite(z_RC)])) if np.isfinite(z_RC).any() else 0.0

    data: list[dict[str, Any]] = [{
        "type": "surface", "x": [*axes[0]], "y": [*axes[1]], "z": z_RC.T.tolist(), "colorscale": "Viridis",
        "customdata": grid["train_loss"].T.tolist(), "hovertemplate": "train loss %{customdata:.4g}<extra></extra>",
        "colorbar": {"title": {"text": scale, "side": "right"}, "thickness": 14},
        "contours": {"z": {"show": True, "usecolormap": True, "width": 1}},
    }]  # fmt: skip
    for way in ways:
        x, y = way.points_T2.T.tolist()
        drawn = _way(way)
        straight = way.finder == "line"  # white, which the legend has no ground for
        drawn |= {"line": {**drawn["line"], "width": 6, **({"color": "white"} if straight else {})}}
        drawn["showlegend"] = not straight
        data.append({"type": "scatter3d", "x": x, "y": y, "z": [*height(way.points_T2) + lift], **drawn})
    x, y, names = _minima(grid, notes)
    data.append({
        "type": "scatter3d", "mode": "markers+text", "x": x, "y": y, "text": names, "showlegend": False,
        "z": [*height(np.array([x, y]).T) + lift] if x else [], "marker": {**_DOT, "size": 5},
        "textfont": {"size": 14}, "hovertemplate": "minimum %{text}<extra></extra>",
    })  # fmt: skip
    camera = {"eye": {"x": 1.5, "y": 1.7, "z": 1.1}, "center": {"z": -0.15}}
    titles = zip("xyz", (x_name, y_name, scale), strict=True)
    scene = {f"{axis}axis": {"title": title} for axis, title in titles}
    return {"data": data, "layout": {"scene": {**scene, "aspectratio": {"x": 1, "y": 1, "z": 0.7}, "camera": camera}}}


_DOT = {"color": "white", "size": 10, "line": {"color": "black", "width": 1.2}}


def _way(way: Way) -> dict[str, Any]:
    colour, dash, _ = look(way.finder).plotly
    told = "epoch %{customdata[0]:.4g}" if way.finder == "trajectory" else f"{way.finder}, at %{{customdata[0]:.3f}}"
    return {
        "mode": "lines+markers" if way.finder == "trajectory" else "lines", "name": way.finder,
        "meta": {"path": way.name},
        "line": {"color": colour, "dash": dash, "width": 3}, "marker": {"size": 4, "color": colour},
        "customdata": np.stack([way.at_T, way.loss_T], 1).tolist(),
        "hovertemplate": f"{told}<br>its own train loss %{{customdata[1]:.4g}}<extra></extra>",
    }  # fmt: skip


def _minima(grid: dict[str, Any], notes: dict[str, Any]) -> tuple[list[float], list[float], list[str]]:
    """Coordinates and numbers of the minima on a plane."""
    named = zip(notes["anchor_names"], grid["anchors"].tolist(), strict=True)
    found = [(name.removeprefix("minimum "), *place) for name, place in named if name.startswith("minimum")]
    return [x for _, x, _ in found], [y for _, _, y in found], [name for name, _, _ in found]
