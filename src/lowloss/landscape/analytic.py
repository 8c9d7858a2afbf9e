"""Surfaces with known minima and saddles, to test every algorithm on without a network.

Shapes: K points, P parameters (D in the papers).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor

from lowloss.data.base import Batch
from lowloss.landscape.base import BatchSource, Evaluation


class _NoBatches:
    steps_per_epoch = 1

    def __getitem__(self, step: int, /) -> None:
        return None


class AnalyticSurface(ABC):
    """A landscape given by a formula; it has one split and no minibatches.

    A subclass sets `dim` and writes `energy`.
    """

    splits = ("train",)
    dim: int

    @abstractmethod
    def energy(self, theta_KP: Tensor) -> Tensor:
        """The K values of the surface, differentiable."""

    def losses(self, theta_KP: Tensor, batch: Batch | None = None) -> Tensor:
        return self.energy(theta_KP)

    @torch.no_grad()
    def evaluate(self, theta_KP: Tensor, split: str = "train", logits: bool = False) -> Evaluation:
        loss_K = self.energy(theta_KP)
        return Evaluation(loss_K.double(), torch.full_like(loss_K, torch.nan, dtype=torch.float64))

    def batches(self, size: int, seeds: Sequence[int], shared: bool) -> BatchSource:
        return _NoBatches()

    def initial(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.dim, generator=generator, dtype=torch.float64)

    def to(self, device: torch.device) -> AnalyticSurface:
        return self


class MullerBrown(AnalyticSurface):
    """The Müller–Brown potential, V(x, y) = sum_i A_i exp(a_i dx² + b_i dx dy + c_i dy²).

    Müller & Brown 1979, Theoret. Chim. Acta 53, 75. `minima` and `saddles` list (x, y, energy).
    """

    dim = 2
    minima = ((-0.558224, 1.441726, -146.699517), (0.623499, 0.028038, -108.166724),
              (-0.050011, 0.466694, -80.767818))  # fmt: skip
    saddles = ((-0.822002, 0.624313, -40.664844), (0.212487, 0.292988, -72.248940))

    _terms = (  # A, a, b, c, x0, y0
        (-200.0, -1.0, 0.0, -10.0, 1.0, 0.0),
        (-100.0, -1.0, 0.0, -10.0, 0.0, 0.5),
        (-170.0, -6.5, 11.0, -6.5, -0.5, 1.5),
        (15.0, 0.7, 0.6, 0.7, -1.0, 1.0),
    )

    def energy(self, theta_KP: Tensor) -> Tensor:
        x_K, y_K = theta_KP.unbind(1)
        total_K = torch.zeros_like(x_K)
        for A, a, b, c, x0, y0 in self._terms:
            dx, dy = x_K - x0, y_K - y0
            total_K = total_K + A * torch.exp(a * dx**2 + b * dx * dy + c * dy**2)
        return total_K


class Wedge(AnalyticSurface):
    """The n-wedge toy landscape: a union of n-dimensional axis-aligned wedges of zero loss in D dimensions.

    Fort & Jastrzebski 2019, sec. 3.2: the loss is the L2 norm of the D - n components smallest in magnitude,
    so it is zero where at most n components differ from zero.
    """

    def __init__(self, dim: int, n: int) -> None:
        if not 0 < n < dim:
            raise ValueError(f"a wedge needs 0 < n < dim, got n={n}, dim={dim}")
        self.dim, self.n = dim, n

    def energy(self, theta_KP: Tensor) -> Tensor:
        squares_KP = theta_KP.square().topk(self.dim - self.n, dim=1, largest=False).values
        total_K = squares_KP.sum(1)
        # The norm has no gradient at zero: a point on a wedge feels none.
        positive_K = total_K > 0
        return torch.where(positive_K, torch.where(positive_K, total_K, 1.0).sqrt(), 0.0)


class GaussianMixture(AnalyticSurface):
    """Random 2-D wells: V(p) = 0.5 s |p|² - sum_i h_i exp(-|p - c_i|² / (2 w_i²)), fixed by a seed.

    centres: wells in [-1, 1]².  s: weight of the bowl that keeps paths inside.
    """

    dim = 2

    def __init__(self, seed: int, centres: int = 12, bowl: float = 0.2) -> None:
        generator = torch.Generator().manual_seed(seed)

        def uniform(low: float, high: float, *shape: int) -> Tensor:
            return low + (high - low) * torch.rand(*shape, generator=generator, dtype=torch.float64)

        self.centres_M2 = uniform(-1.0, 1.0, centres, 2)
        self.height_M = uniform(0.5, 1.5, centres)
        self.width_M = uniform(0.12, 0.3, centres)
        self.bowl = bowl

    def energy(self, theta_KP: Tensor) -> Tensor:
        distance_KM = (theta_KP[:, None] - self.centres_M2.to(theta_KP)).square().sum(2)
        wells_K = (self.height_M * torch.exp(-distance_KM / (2 * self.width_M**2))).sum(1)
        return 0.5 * self.bowl * theta_KP.square().sum(1) - wells_K
