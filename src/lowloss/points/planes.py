"""Which planes to scan: recipes that turn minima and paths into grids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import prod
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from lowloss.checking import Index
from lowloss.errors import LowlossError, is_number
from lowloss.landscape.layout import Layout
from lowloss.points.directions import check_normalization, random_directions
from lowloss.points.grid import Grid, plane
from lowloss.points.path import Path

POLICIES = ("recomputed", "held", "interpolated")
MEASURES = ("exact", "curvature")


class Plane(ABC):
    """A recipe for a grid; `minima` are the indices of the minima that it needs.

    Args:
        statistics: BatchNorm's at a point of it: "recomputed" there, "held" as they are at its origin (as in Li et al.
            2018), or "interpolated" between those of its anchors as if they were parameters (their footnote 3).
        measures: what is tabulated on it: "exact" metrics, which are always, and "curvature".

    Attributes:
        minima: the indices of the minima that it needs.
        path: the finder of the path between the two minima that it needs, if any.
        begins: what else it needs of its one minimum, before it in the matrix of points: "initial" point, or the whole
            "trajectory".
        epoch: at which it needs its minima; None: at the end.
    """

    minima: tuple[int, ...]
    path: str | None = None
    begins: str | None = None
    epoch: float | None = None

    def __init__(self, statistics: str = "recomputed", measures: Sequence[str] = ("exact",)) -> None:
        if statistics not in POLICIES:
            raise LowlossError(f"statistics must be one of {', '.join(POLICIES)}, got {statistics!r}")
        if "exact" not in measures or not {*measures} <= {*MEASURES}:
            raise LowlossError(f"measures must be exact and may be {', '.join(MEASURES)}, got {list(measures)}")
        self.statistics, self.measures = statistics, tuple(measures)

    @abstractmethod
    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        """The grid for these minima (in the order of `minima`) and the path."""


def two_axes(resolution: Sequence[int]) -> tuple[int, int]:
    if len(resolution) != 2 or not all(is_number(points, int) and points >= 2 for points in resolution):
        raise LowlossError(f"resolution must be two numbers of grid points, each at least 2, got {list(resolution)}")
    if prod(resolution) >= 2**31:
        raise LowlossError(f"resolution must be fewer than 2^31 grid points in all, got {list(resolution)}")
    return int(resolution[0]), int(resolution[1])


class PathPlane(Plane):
    """The plane through two minima and the mean of the inner pivots of a path (Draxler et al. 2018, fig. 1).

    Args:
        start, end: indices of the minima.
        path: finder of the path.
        resolution: grid points along each of the two axes.
        margin: how far the grid reaches beyond the minima and the projected path, as a fraction of their extent.
        statistics, measures: see Plane.
    """

    def __init__(
        self,
        start: Index = 0,
        end: Index = 1,
        path: str = "autoneb",
        resolution: Sequence[int] = (25, 25),
        margin: Annotated[float, Ge(0), Le(1000)] = 0.25,
        statistics: str = "recomputed",
        measures: Sequence[str] = ("exact",),
    ) -> None:
        super().__init__(statistics, measures)
        self.minima, self.path = (start, end), path
        self.resolution, self.margin = two_axes(resolution), margin

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        assert path is not None
        names = [*(f"minimum {k}" for k in self.minima), "mean of pivots"]
        corners_3P = torch.stack([*minima_KP, path.bends_BP[1:-1].mean(0)])
        return plane(corners_3P, names, self.resolution, self.margin, cover_KP=path.bends_BP)


class MinimaPlane(Plane):
    """The plane through three minima (Garipov et al. 2018, fig. 1, left), or where they were or point to (Fort &
    Jastrzebski 2019, figs 1 and 2).

    Args:
        start, end, third: indices of the minima; the first axis leads from start to end.
        resolution: grid points along each of the two axes.
        margin: how far the grid reaches beyond the minima, as a fraction of their extent.
        statistics: see Plane.
        epoch: of their training, at which they were kept; None: its end.
        radius: the distance from the origin of the parameters to which each is moved, in units of its own.
    """

    def __init__(
        self,
        start: Index = 0,
        end: Index = 1,
        third: Index = 2,
        resolution: Sequence[int] = (25, 25),
        margin: Annotated[float, Ge(0), Le(1000)] = 0.25,
        statistics: str = "recomputed",
        epoch: Annotated[float, Ge(0)] | None = None,
        radius: Annotated[float, Gt(0), Le(1000)] = 1.0,
    ) -> None:
        super().__init__(statistics)
        self.minima, self.epoch, self.radius = (start, end, third), epoch, radius
        self.resolution, self.margin = two_axes(resolution), margin

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        at = "" if self.epoch is None else f", epoch {self.epoch:g}"
        at += "" if self.radius == 1 else f" × {self.radius:g}"
        return plane(self.radius * minima_KP, [f"minimum {k}{at}" for k in self.minima], self.resolution, self.margin)


class RandomPlane(Plane):
    """A plane of two random directions around a minimum, filter-normalised (Li et al. 2018, sec. 4).

    Args:
        minimum: index of the minimum.
        extent: coordinates reach from -extent to extent, in units of the scaled directions.
        resolution: grid points along each of the two axes.
        normalization: "filter", "layer" or "none"; see random_direction.
        statistics, measures: see Plane.
    """

    def __init__(
        self,
        minimum: Index = 0,
        extent: Annotated[float, Gt(0), Le(1e6)] = 1.0,
        resolution: Sequence[int] = (25, 25),
        normalization: str = "filter",
        statistics: str = "recomputed",
        measures: Sequence[str] = ("exact",),
    ) -> None:
        super().__init__(statistics, measures)
        check_normalization(normalization)
        self.minima = (minimum,)
        self.extent, self.resolution, self.normalization = extent, two_axes(resolution), normalization

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        (theta_P,) = minima_KP
        directions_2P = random_directions(theta_P, layout, seed, 2, self.normalization)
        axes = tuple(torch.linspace(-self.extent, self.extent, count, dtype=torch.float64) for count in self.resolution)
        anchors_12 = torch.zeros(1, 2, dtype=torch.float64)
        return Grid(theta_P, directions_2P, axes, anchors_12, (f"minimum {self.minima[0]}",))
