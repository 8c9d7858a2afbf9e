"""Which lines to scan: between two minima, from the initial point, and in random directions (Li et al. 2018).

Shapes: P parameters, D directions, G grid points of all of them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor

from lowloss.checking import Index
from lowloss.landscape.layout import Layout
from lowloss.points.directions import check_normalization, random_directions
from lowloss.points.grid import Grid, Rays, line
from lowloss.points.path import Path
from lowloss.points.planes import Plane

Resolution = Annotated[int, Ge(2), Le(1_000_000)]
Margin = Annotated[float, Ge(0), Le(1000)]


class MinimaLine(Plane):
    """The straight line through two minima, at 0 and 1 (Li et al. 2018, fig. 2).

    Args:
        start, end: indices of the minima.
        resolution: grid points.
        margin: how far it reaches beyond both, in units of their distance.
        statistics, measures: see Plane.
    """

    def __init__(
        self,
        start: Index = 0,
        end: Index = 1,
        resolution: Resolution = 41,
        margin: Margin = 0.5,
        statistics: str = "recomputed",
        measures: Sequence[str] = ("exact",),
    ) -> None:
        super().__init__(statistics, measures)
        self.minima, self.resolution, self.margin = (start, end), (resolution,), margin

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        names = tuple(f"minimum {k}" for k in self.minima)
        return line(minima_KP[0], minima_KP[1], self.resolution[0], self.margin, names)


class InitialLine(Plane):
    """The straight line from the initial point of a minimum, at 0, to the minimum, at 1 (Li et al. 2018, sec. 3).

    Args:
        minimum: its index.
        resolution: grid points.
        margin: how far it reaches beyond both, in units of their distance.
        statistics, measures: see Plane.
    """

    begins = "initial"

    def __init__(
        self,
        minimum: Index = 0,
        resolution: Resolution = 41,
        margin: Margin = 0.25,
        statistics: str = "recomputed",
        measures: Sequence[str] = ("exact",),
    ) -> None:
        super().__init__(statistics, measures)
        self.minima, self.resolution, self.margin = (minimum,), (resolution,), margin

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        names = "initial point", f"minimum {self.minima[0]}"
        return line(minima_KP[0], minima_KP[1], self.resolution[0], self.margin, names)


class RandomLine(Plane):
    """Lines in several independent random directions through a minimum (Li et al. 2018, fig. 3).

    Args:
        minimum: its index.
        directions: how many.
        extent: coordinates reach from -extent to extent, in units of the scaled directions.
        resolution: grid points along each.
        normalization: "filter", "layer" or "none"; see random_direction.
        statistics, measures: see Plane.
    """

    def __init__(
        self,
        minimum: Index = 0,
        directions: Annotated[int, Ge(1), Le(1000)] = 5,
        extent: Annotated[float, Gt(0), Le(1e6)] = 1.0,
        resolution: Resolution = 41,
        normalization: str = "filter",
        statistics: str = "recomputed",
        measures: Sequence[str] = ("exact",),
    ) -> None:
        super().__init__(statistics, measures)
        check_normalization(normalization)
        self.minima, self.extent, self.normalization = (minimum,), extent, normalization
        self.resolution = (directions, resolution)

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        (theta_P,) = minima_KP
        count, points = self.resolution
        directions_DP = random_directions(theta_P, layout, seed, count, self.normalization)
        axes = torch.arange(count), torch.linspace(-self.extent, self.extent, points, dtype=torch.float64)
        anchors_1D = torch.zeros(1, count, dtype=torch.float64)
        return Rays(theta_P, directions_DP, axes, anchors_1D, (f"minimum {self.minima[0]}",))
