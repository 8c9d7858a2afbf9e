"""The plane of a trajectory's two leading principal components (Li et al. 2018, appendix B).

Shapes: E epochs, P parameters, D directions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor

from lowloss.checking import Index
from lowloss.errors import LowlossError
from lowloss.landscape.layout import Layout
from lowloss.points.grid import Grid, axes_over
from lowloss.points.path import Path
from lowloss.points.planes import Plane, two_axes
from lowloss.seeding import derive

DIRECTIONS = ("pca", "random")

COLUMNS = 1 << 16
"""Parameters that are in float64 at once."""


def principal_components(rows_EP: Tensor, count: int, centred: bool = False) -> tuple[Tensor, Tensor]:
    """The orthonormal leading directions (D, P) of rows, and the share of variance of every component (E,), descending.

    By the rows' Gram matrix, so that nothing is of P × P. Without `centred` the variance is about zero, the point from
    which the rows are counted. A direction points to where the first row lies.

    Raises ValueError if the rows do not span so many directions, as where training stood still.
    """
    rows_EP = rows_EP - rows_EP.mean(0) if centred else rows_EP
    gram_EE = torch.zeros(len(rows_EP), len(rows_EP), dtype=torch.float64)
    for part in rows_EP.split(COLUMNS, dim=1):
        gram_EE += part.double() @ part.double().T
    value_E, vector_EE = torch.linalg.eigh(gram_EE)
    value_E, vector_EE = value_E.flip(0).clamp_min(0), vector_EE.flip(1)
    if len(value_E) < count or not value_E[count - 1] > 1e-12 * value_E[0]:
        raise ValueError(f"the trajectory spans no {count} directions: collect more epochs of it (minima.collect)")
    weights_DE = (vector_EE[:, :count] / value_E[:count].sqrt()).T
    weights_DE = weights_DE * torch.where(vector_EE[0, :count] < 0, -1.0, 1.0)[:, None]
    parts = [weights_DE @ part.double() for part in rows_EP.split(COLUMNS, dim=1)]
    return torch.cat(parts, 1).to(rows_EP), value_E / value_E.sum()


class TrajectoryPlane(Plane):
    """The plane through a minimum along which its trajectory varies most, from the rows theta_i - theta_n.

    Args:
        minimum: its index; `minima.collect` has to keep its trajectory.
        directions: "pca", or "random", two random orthonormal ones, in which hardly anything of it is seen.
        centred: whether the rows' mean is taken off before, as PCA programs do; the paper's matrix has none taken off.
        resolution: grid points along each of the two axes.
        margin: how far the grid reaches beyond the projected trajectory, as a fraction of its extent.
        statistics, measures: see Plane.
    """

    begins = "trajectory"

    def __init__(
        self,
        minimum: Index = 0,
        directions: str = "pca",
        centred: bool = False,
        resolution: Sequence[int] = (25, 25),
        margin: Annotated[float, Ge(0), Le(1000)] = 0.25,
        statistics: str = "recomputed",
        measures: Sequence[str] = ("exact",),
    ) -> None:
        super().__init__(statistics, measures)
        if directions not in DIRECTIONS:
            raise LowlossError(f"directions must be one of {', '.join(DIRECTIONS)}, got {directions!r}")
        self.minima, self.directions, self.centred = (minimum,), directions, centred
        self.resolution, self.margin = two_axes(resolution), margin

    def grid(self, minima_KP: Tensor, path: Path | None, layout: Layout, seed: int) -> Grid:
        """The grid; the last of the points is the minimum, those before it are its trajectory."""
        theta_P, rows_EP = minima_KP[-1], minima_KP[:-1] - minima_KP[-1]
        directions_2P, _ = principal_components(rows_EP, 2, self.centred)
        if self.directions == "random":
            generator = torch.Generator().manual_seed(derive(seed, "directions"))
            drawn_P2 = torch.randn(len(theta_P), 2, generator=generator, dtype=torch.float64)
            directions_2P = torch.linalg.qr(drawn_P2).Q.T.to(theta_P)
        covered_E2 = torch.cat([rows_EP.double() @ directions_2P.double().T, torch.zeros(1, 2, dtype=torch.float64)])
        axes = axes_over(covered_E2, self.resolution, self.margin)
        anchors_12 = torch.zeros(1, 2, dtype=torch.float64)
        return Grid(theta_P, directions_2P, axes, anchors_12, (f"minimum {self.minima[0]}",))
