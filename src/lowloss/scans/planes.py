"""Which planes to scan: recipes that turn minima and paths into grids."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lowloss.errors import LowlossError, is_number
from lowloss.finder.path import Path
from lowloss.landscape.layout import Layout
from lowloss.scans.directions import NORMALIZATIONS, random_direction
from lowloss.scans.grid import Grid, plane
from lowloss.seeding import derive


class Plane(ABC):
    """A recipe for a grid; `minima` are the indices of the minima that it needs."""

    minima: tuple[int, ...]
    path: str | None = None
    """The finder of the path between the two minima that it needs, if any."""

    @abstractmethod
    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        """The grid for these minima (in the order of `minima`) and the path."""


def _two_axes(resolution: Sequence[int]) -> tuple[int, int]:
    if len(resolution) != 2 or not all(is_number(points, int) and points >= 2 for points in resolution):
        raise LowlossError(f"resolution must be two numbers of grid points, each at least 2, got {list(resolution)}")
    return int(resolution[0]), int(resolution[1])


class PathPlane(Plane):
    """The plane through two minima and the mean of the inner pivots of a path (Draxler et al. 2018, fig. 1).

    Args:
        start, end: indices of the minima.
        path: finder of the path.
        resolution: grid points along each of the two axes.
        margin: how far the grid reaches beyond the minima and the projected path, as a fraction of their extent.
    """

    def __init__(
        self,
        start: int = 0,
        end: int = 1,
        path: str = "autoneb",
        resolution: Sequence[int] = (25, 25),
        margin: float = 0.25,
    ) -> None:
        self.minima, self.path = (start, end), path
        self.resolution, self.margin = _two_axes(resolution), margin

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        assert path is not None
        mean_P = path.bends_BP[1:-1].mean(0)
        names = (f"minimum {self.minima[0]}", f"minimum {self.minima[1]}", "mean of pivots")
        corners_3P = torch.stack([*minima_KP, mean_P])
        return plane(corners_3P, names, self.resolution, self.margin, cover_KP=path.bends_BP)


class RandomPlane(Plane):
    """A plane of two random directions around a minimum, filter-normalised (Li et al. 2018, sec. 4).

    Args:
        minimum: index of the minimum.
        extent: coordinates reach from -extent to extent, in units of the scaled directions.
        resolution: grid points along each of the two axes.
        normalization: "filter", "layer" or "none"; see random_direction.
    """

    def __init__(
        self,
        minimum: int = 0,
        extent: float = 1.0,
        resolution: Sequence[int] = (25, 25),
        normalization: str = "filter",
    ) -> None:
        if normalization not in NORMALIZATIONS:
            raise LowlossError(f"normalization must be one of {', '.join(NORMALIZATIONS)}, got {normalization!r}")
        self.minima = (minimum,)
        self.extent, self.resolution, self.normalization = extent, _two_axes(resolution), normalization

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        (theta_P,) = minima_KP
        directions_2P = torch.stack(
            [random_direction(theta_P, layout, derive(seed, d), self.normalization) for d in range(2)]
        )
        axes = tuple(torch.linspace(-self.extent, self.extent, count, dtype=torch.float64) for count in self.resolution)
        anchors_12 = torch.zeros(1, 2, dtype=torch.float64)
        return Grid(theta_P, directions_2P, axes, anchors_12, (f"minimum {self.minima[0]}",))
