"""Which planes and lines to scan: recipes that turn minima and paths into grids.

Shapes: K minima, P parameters, E epochs, D directions.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from lowloss.checking import Index
from lowloss.errors import LowlossError, is_number
from lowloss.landscape.layout import Layout
from lowloss.points.directions import check_normalization, principal_components, random_directions
from lowloss.points.grid import Grid, axes_around, axes_over, line, plane, rays
from lowloss.points.path import Path
from lowloss.seeding import derive

POLICIES = ("recomputed", "held", "interpolated")
MEASURES = ("exact", "curvature")
DIRECTIONS = ("pca", "random")

Margin = Annotated[float, Ge(0), Le(1000)]
Extent = Annotated[float, Gt(0), Le(1e6)]
Resolution = Annotated[int, Ge(2), Le(1_000_000)]


class Plane(ABC):
    """A recipe for a grid, whose settings are the fields of a dataclass.

    Attributes:
        statistics: BatchNorm's at a point of it: "recomputed" there, "held" as they are at its origin (as in Li et al.
            2018), or "interpolated" between those of its anchors as if they were parameters (their footnote 3).
        measures: what is tabulated on it: "exact" metrics, which are always, and "curvature".
        resolution: grid points along a line, or along each of the two axes of a plane.
        ends: which settings are the indices of the minima that it needs.
        path: the finder of the path between the two minima that it needs, if any.
        begins: what else it needs of its one minimum, before it in the matrix of points: "initial" point, or the whole
            "trajectory".
        epoch: at which it needs its minima; None: at the end.
    """

    statistics: str = "recomputed"
    measures: Sequence[str] = ("exact",)
    resolution: int | Sequence[int] = ()
    ends: tuple[str, ...] = ("minimum",)
    path: str | None = None
    begins: str | None = None
    epoch: float | None = None

    def __post_init__(self) -> None:
        if self.statistics not in POLICIES:
            raise LowlossError(f"statistics must be one of {', '.join(POLICIES)}, got {self.statistics!r}")
        if "exact" not in self.measures or not {*self.measures} <= {*MEASURES}:
            raise LowlossError(f"measures must be exact and may be {', '.join(MEASURES)}, got {list(self.measures)}")
        check_normalization(getattr(self, "normalization", "none"))
        if not isinstance(self.resolution, Sequence):
            return
        self.resolution = axes = tuple(self.resolution)
        if len(axes) != 2 or not all(is_number(points, int) and points >= 2 for points in axes):
            raise LowlossError(f"resolution must be two numbers of grid points, each at least 2, got {[*axes]}")
        if prod(axes) >= 2**31:
            raise LowlossError(f"resolution must be fewer than 2^31 grid points in all, got {[*axes]}")

    @property
    def minima(self) -> tuple[int, ...]:
        """The indices of the minima that it needs."""
        return tuple(getattr(self, end) for end in self.ends)

    @property
    def names(self) -> list[str]:
        """Of these minima."""
        return [f"minimum {k}" for k in self.minima]

    @property
    def shape(self) -> tuple[int, ...]:
        """Grid points along each axis."""
        return tuple(self.resolution) if isinstance(self.resolution, Sequence) else (self.resolution,)

    @abstractmethod
    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        """The grid for these minima (in the order of `minima`) and the path."""


@dataclass
class PathPlane(Plane):
    """The plane through two minima and the mean of the inner pivots of a path (Draxler et al. 2018, fig. 1).

    Args:
        start, end: indices of the minima.
        path: finder of the path.
        margin: how far the grid reaches beyond the minima and the projected path, as a fraction of their extent.
        resolution, statistics, measures: see Plane.
    """

    ends = ("start", "end")

    start: Index = 0
    end: Index = 1
    path: str = "autoneb"
    resolution: Sequence[int] = (25, 25)
    margin: Margin = 0.25
    statistics: str = "recomputed"
    measures: Sequence[str] = ("exact",)

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        assert path is not None
        corners_3P = torch.stack([*minima_KP, path.bends_BP[1:-1].mean(0)])
        return plane(corners_3P, [*self.names, "mean of pivots"], self.shape, self.margin, cover_KP=path.bends_BP)


@dataclass
class MinimaPlane(Plane):
    """The plane through three minima (Garipov et al. 2018, fig. 1, left), or where they were or point to (Fort &
    Jastrzebski 2019, figs 1 and 2).

    Args:
        start, end, third: indices of the minima; the first axis leads from start to end.
        margin: how far the grid reaches beyond the minima, as a fraction of their extent.
        epoch: of their training, at which they were kept; None: its end.
        radius: the distance from the origin of the parameters to which each is moved, in units of its own.
        resolution, statistics: see Plane.
    """

    ends = ("start", "end", "third")

    start: Index = 0
    end: Index = 1
    third: Index = 2
    resolution: Sequence[int] = (25, 25)
    margin: Margin = 0.25
    statistics: str = "recomputed"
    epoch: Annotated[float, Ge(0)] | None = None
    radius: Annotated[float, Gt(0), Le(1000)] = 1.0

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        at = "" if self.epoch is None else f", epoch {self.epoch:g}"
        at += "" if self.radius == 1 else f" × {self.radius:g}"
        return plane(self.radius * minima_KP, [f"{name}{at}" for name in self.names], self.shape, self.margin)


@dataclass
class RandomPlane(Plane):
    """A plane of two random directions around a minimum, filter-normalised (Li et al. 2018, sec. 4).

    Args:
        minimum: its index.
        extent: coordinates reach from -extent to extent, in units of the scaled directions.
        normalization: "filter", "layer" or "none"; see random_direction.
        resolution, statistics, measures: see Plane.
    """

    minimum: Index = 0
    extent: Extent = 1.0
    resolution: Sequence[int] = (25, 25)
    normalization: str = "filter"
    statistics: str = "recomputed"
    measures: Sequence[str] = ("exact",)

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        directions_2P = random_directions(minima_KP[0], layout, seed, 2, self.normalization)
        axes = axes_around(self.extent, self.shape)
        return Grid(minima_KP[0], directions_2P, axes, torch.zeros(1, 2, dtype=torch.float64), tuple(self.names))


@dataclass
class TrajectoryPlane(Plane):
    """The plane of the two leading principal components of a minimum's trajectory, along which it varies most, from the
    rows theta_i - theta_n (Li et al. 2018, appendix B).

    Args:
        minimum: its index; `minima.collect` has to keep its trajectory.
        directions: "pca", or "random", two random orthonormal ones, in which hardly anything of it is seen.
        centred: whether the rows' mean is taken off before, as PCA programs do; the paper's matrix has none taken off.
        margin: how far the grid reaches beyond the projected trajectory, as a fraction of its extent.
        resolution, statistics, measures: see Plane.
    """

    begins = "trajectory"

    minimum: Index = 0
    directions: str = "pca"
    centred: bool = False
    resolution: Sequence[int] = (25, 25)
    margin: Margin = 0.25
    statistics: str = "recomputed"
    measures: Sequence[str] = ("exact",)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.directions not in DIRECTIONS:
            raise LowlossError(f"directions must be one of {', '.join(DIRECTIONS)}, got {self.directions!r}")

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        """The grid; the last of the points is the minimum, those before it are its trajectory."""
        theta_P, rows_EP = minima_KP[-1], minima_KP[:-1] - minima_KP[-1]
        directions_2P, _ = principal_components(rows_EP, 2, self.centred)
        if self.directions == "random":
            generator = torch.Generator().manual_seed(derive(seed, "directions"))
            drawn_P2 = torch.randn(len(theta_P), 2, generator=generator, dtype=torch.float64)
            directions_2P = torch.linalg.qr(drawn_P2).Q.T.to(theta_P)
        covered_E2 = torch.cat([rows_EP.double() @ directions_2P.double().T, torch.zeros(1, 2, dtype=torch.float64)])
        axes = axes_over(covered_E2, self.shape, self.margin)
        return Grid(theta_P, directions_2P, axes, torch.zeros(1, 2, dtype=torch.float64), tuple(self.names))


@dataclass
class MinimaLine(Plane):
    """The straight line through two minima, at 0 and 1 (Li et al. 2018, fig. 2).

    Args:
        start, end: indices of the minima.
        margin: how far it reaches beyond both, in units of their distance.
        resolution, statistics, measures: see Plane.
    """

    ends = ("start", "end")

    start: Index = 0
    end: Index = 1
    resolution: Resolution = 41
    margin: Margin = 0.5
    statistics: str = "recomputed"
    measures: Sequence[str] = ("exact",)

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        return line(minima_KP[0], minima_KP[1], self.resolution, self.margin, tuple(self.names))


@dataclass
class InitialLine(Plane):
    """The straight line from the initial point of a minimum, at 0, to the minimum, at 1 (Li et al. 2018, sec. 3).

    Args:
        minimum: its index.
        margin: how far it reaches beyond both, in units of their distance.
        resolution, statistics, measures: see Plane.
    """

    begins = "initial"

    minimum: Index = 0
    resolution: Resolution = 41
    margin: Margin = 0.25
    statistics: str = "recomputed"
    measures: Sequence[str] = ("exact",)

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        return line(minima_KP[0], minima_KP[1], self.resolution, self.margin, ("initial point", *self.names))


@dataclass
class RandomLine(Plane):
    """Lines in several independent random directions through a minimum (Li et al. 2018, fig. 3).

    Args:
        minimum: its index.
        directions: how many.
        extent: coordinates reach from -extent to extent, in units of the scaled directions.
        normalization: "filter", "layer" or "none"; see random_direction.
        resolution, statistics, measures: see Plane.
    """

    minimum: Index = 0
    directions: Annotated[int, Ge(1), Le(1000)] = 5
    extent: Extent = 1.0
    resolution: Resolution = 41
    normalization: str = "filter"
    statistics: str = "recomputed"
    measures: Sequence[str] = ("exact",)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.directions, self.resolution

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        directions_DP = random_directions(minima_KP[0], layout, seed, self.directions, self.normalization)
        (axis,) = axes_around(self.extent, (self.resolution,))
        return rays(minima_KP[0], directions_DP, axis, tuple(self.names))
