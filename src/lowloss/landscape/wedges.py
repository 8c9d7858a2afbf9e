"""Explicit wedges of random orientation, and how the pipeline takes a surface.

Reference: Fort & Jastrzebski 2019, sec. 3.

Shapes: K points, P parameters (D in the paper), W wedges, N long directions of a wedge, B samples.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from lowloss.checking import Few, Index
from lowloss.data.base import Data
from lowloss.data.task import Task
from lowloss.errors import LowlossError
from lowloss.landscape.analytic import AnalyticSurface, root
from lowloss.seeding import derive

SAMPLES = 100
"""Of the data of a surface: with minima.batch_size=1 an epoch is so many steps."""


class Wedges(AnalyticSurface):
    """The Euclidean distance to the nearest of W wedges, n-dimensional subspaces of random orientation.

    `Wedge` has all that are spanned by axes, whose number explodes; here they are few, and none is aligned with the
    axes. Two of them meet in 2 n - D dimensions.

    Args:
        dim: D.  n: long directions of each.  count: W.  seed: of the orientations.

    Raises LowlossError unless 0 < n < dim.
    """

    def __init__(self, dim: Few, n: Few, count: Few = 2, seed: Index = 0) -> None:
        if not 0 < n < dim:
            raise LowlossError(f"wedges need 0 < n < dim, got n={n}, dim={dim}")
        self.dim, self.n = dim, n
        generator = torch.Generator().manual_seed(derive(seed, "wedges"))
        drawn_WPS = torch.randn(count, dim, dim - n, generator=generator, dtype=torch.float64)
        self.short_WPS = torch.linalg.qr(drawn_WPS).Q

    def energy(self, theta_KP: Tensor) -> Tensor:
        across_WKS = theta_KP @ self.short_WPS.to(theta_KP)
        return root(across_WKS.square().sum(2).min(0).values)


class Outputs(Task):
    """The loss of a sample is the network's only output."""

    def losses(self, outputs: Tensor, y: Tensor) -> Tensor:
        return outputs[:, 0]


class SurfaceModule(nn.Module):
    """A network whose parameters are a point of a surface and whose output is the energy there, whatever the sample."""

    def __init__(self, surface: AnalyticSurface) -> None:
        super().__init__()
        self.surface = surface
        self.theta = nn.Parameter(torch.randn(surface.dim))

    def forward(self, x: Tensor) -> Tensor:
        return self.surface.energy(self.theta[None]).expand(len(x), 1)


def as_network(surface: AnalyticSurface) -> tuple[Callable[..., nn.Module], Data]:
    """A factory of networks and data whose landscape is the surface, in float32, on both splits.

    Whatever makes a study of a network makes one of a surface too. Initial points are drawn component-wise from a
    normal distribution; the samples are all alike.
    """
    x_B1, y_B = torch.zeros(SAMPLES, 1), torch.zeros(SAMPLES)
    return partial(SurfaceModule, surface), Data(x_B1, y_B, x_B1, y_B, task=Outputs())
