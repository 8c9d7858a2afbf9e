"""Surfaces with known minima and saddles, to test every algorithm on without a network, and how the pipeline takes one.

Shapes: K points, P parameters (D in the papers), W wedges, N long directions of a wedge, B samples.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from lowloss.checking import Few, Index
from lowloss.data.base import Batch, Data
from lowloss.data.task import Task
from lowloss.errors import LowlossError, check_number
from lowloss.landscape.base import BatchSource, Columns, Final, Held, check_points
from lowloss.seeding import derive

Self = TypeVar("Self", bound="AnalyticSurface")


class _Once(Final):
    """The identity, whose derivative is refused a derivative of its own."""

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return Final.apply(*gradients)


class _NoBatches:
    steps_per_epoch = 1

    def __getitem__(self, step: int, /) -> None:
        return None


class AnalyticSurface(ABC):
    """A landscape given by a formula; it has one split, no minibatches and no outputs.

    A subclass sets `dim` and writes `energy`, and everything that takes a landscape takes it:

        class DoubleWell(AnalyticSurface):
            dim = 2
            minima = ((-1.0, 0.0, 0.0), (1.0, 0.0, 0.0))
            saddles = ((0.0, 0.0, 1.0),)

            def energy(self, theta_KP):
                x_K, y_K = theta_KP.unbind(1)
                return (x_K**2 - 1) ** 2 + y_K**2

    Attributes:
        dim: P.
        minima, saddles: what is known of them, a point's coordinates and its energy each.
    """

    splits: tuple[str, ...] = ("train",)
    task = Task()
    couples_samples = False
    dim: int
    minima: tuple[tuple[float, ...], ...] = ()
    saddles: tuple[tuple[float, ...], ...] = ()

    @abstractmethod
    def energy(self, theta_KP: Tensor) -> Tensor:
        """The K values of the surface, each of its own point alone, differentiable twice."""

    def losses(self, theta_KP: Tensor, batch: Batch | None = None) -> Tensor:
        """The K energies, differentiable once. Raises LowlossError where a second derivative is taken."""
        check_points(theta_KP, self.dim)
        return self.energy(_Once.apply(theta_KP))

    def keeping(self) -> AbstractContextManager[Callable[[], int]]:
        return nullcontext(int)  # int() is 0

    def product(
        self, theta_KP: Tensor, v_KP: Tensor, data: Batch | str | None = None, statistics: Held = "held"
    ) -> Tensor:
        """The Hessian of the energy at each point times a vector each (K, P), exact."""
        with torch.enable_grad():
            theta_KP = theta_KP.detach().requires_grad_()
            (gradient_KP,) = torch.autograd.grad(self.energy(theta_KP).sum(), theta_KP, create_graph=True)
            if not gradient_KP.requires_grad:  # a plane
                return torch.zeros_like(v_KP)
            return torch.autograd.grad(gradient_KP, theta_KP, v_KP)[0]

    @torch.no_grad()
    def evaluate(self, theta_KP: Tensor, split: str = "train", details: bool = False) -> Columns:
        check_points(theta_KP, self.dim)
        return {"loss": self.energy(theta_KP).double().cpu()}

    def outputs(self, theta_P: Tensor, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """An analytic surface has none: raises LowlossError."""
        raise LowlossError(f"{type(self).__name__} is a formula without outputs: take the landscape of a network")

    def subset(self, split: str, samples: int, seed: int) -> None:
        return None

    def batches(self, size: int | None, seeds: Sequence[int], shared: bool) -> BatchSource:
        return _NoBatches()

    def initial(self, seed: int) -> Tensor:
        generator = torch.Generator().manual_seed(seed)
        return torch.randn(self.dim, generator=generator, dtype=torch.float64)

    def to(self: Self, device: torch.device) -> Self:
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


def root(squared_K: Tensor) -> Tensor:
    """The norms of vectors from their squares; at zero, where a norm has no gradient, a point feels none."""
    positive_K = squared_K > 0
    return torch.where(positive_K, torch.where(positive_K, squared_K, 1.0).sqrt(), 0.0)


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
        total_K = theta_KP.square().topk(self.dim - self.n, dim=1, largest=False).values.sum(1)
        return root(total_K)


class Wedges(AnalyticSurface):
    """The Euclidean distance to the nearest of W wedges, n-dimensional subspaces of random orientation (Fort &
    Jastrzebski 2019, sec. 3).

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


class GaussianMixture(AnalyticSurface):
    """Random 2-D wells: V(p) = 0.5 s |p|² - sum_i h_i exp(-|p - c_i|² / (2 w_i²)), fixed by a seed.

    centres: wells in [-1, 1]².  bowl: s, which keeps paths inside.
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


class Quadratic(AnalyticSurface):
    """L(x) = 1/2 sum_i lambda_i x_i²: its Hessian is diag(lambda), the P eigenvalues, everywhere."""

    def __init__(self, eigenvalues: Sequence[float]) -> None:
        self.eigenvalues_P = torch.tensor(list(eigenvalues), dtype=torch.float64)
        self.dim = len(self.eigenvalues_P)
        if self.dim == 0:
            raise LowlossError("a quadratic needs at least one eigenvalue")
        origin = ((0.0,) * (self.dim + 1),)
        lowest, highest = float(self.eigenvalues_P.min()), float(self.eigenvalues_P.max())
        self.minima = origin if lowest > 0 else ()
        self.saddles = origin if lowest < 0 < highest else ()

    def energy(self, theta_KP: Tensor) -> Tensor:
        return 0.5 * theta_KP.square() @ self.eigenvalues_P.to(theta_KP)


class Rosenbrock(AnalyticSurface):
    """L(x) = sum_i 100 (x_{i+1} - x_i²)² + (1 - x_i)², with its global minimum at (1, …, 1).

    Rosenbrock 1960, Comput. J. 3, 175. With 2 or 3 parameters nothing else is stationary; from 4 on there is a second
    minimum, which is not listed, near (-1, 1, …, 1).
    """

    def __init__(self, dim: int = 2) -> None:
        check_number("dim", dim, int, 2)
        self.dim = dim
        self.minima = ((1.0,) * dim + (0.0,),)

    def energy(self, theta_KP: Tensor) -> Tensor:
        left, right = theta_KP[:, :-1], theta_KP[:, 1:]
        return (100 * (right - left**2) ** 2 + (1 - left) ** 2).sum(1)


class LEPS(AnalyticSurface):
    """An atom B moves between fixed atoms A and C, coupled to a harmonic oscillator: two channels and one saddle.

    Jónsson, Mills & Jacobsen 1998, in Classical and Quantum Dynamics in Condensed Phase Simulations, eq. A.1 to A.3:
    V(r_AB, x) = V_LEPS(r_AB, r_AC - r_AB) + 2 k_c (r_AB - (r_AC / 2 - x / c))². Lengths in Å, energies in eV.
    """

    dim = 2
    minima = ((0.741521, 1.303419, -4.509176), (3.001276, -1.304338, -2.620287))
    saddles = ((2.020828, -0.172901, -0.875225),)

    _pairs = ((4.746, 0.05), (4.746, 0.80), (3.445, 0.05))  # d and a, b, c of AB, BC and AC
    _r0, _alpha, _r_AC, _k_c, _c = 0.742, 1.942, 3.742, 0.2025, 1.154

    def energy(self, theta_KP: Tensor) -> Tensor:
        r_AB_K, x_K = theta_KP.unbind(1)
        distances = (r_AB_K, self._r_AC - r_AB_K, torch.full_like(r_AB_K, self._r_AC))
        coulomb_K, exchange = torch.zeros_like(x_K), []
        for r_K, (d, overlap) in zip(distances, self._pairs, strict=True):
            decay_K = torch.exp(-self._alpha * (r_K - self._r0))
            coulomb_K = coulomb_K + d / 2 * (1.5 * decay_K**2 - decay_K) / (1 + overlap)
            exchange.append(d / 4 * (decay_K**2 - 6 * decay_K) / (1 + overlap))
        j_AB, j_BC, j_AC = exchange
        mixed_K = (j_AB**2 + j_BC**2 + j_AC**2 - j_AB * j_BC - j_BC * j_AC - j_AB * j_AC).sqrt()
        return coulomb_K - mixed_K + 2 * self._k_c * (r_AB_K - (self._r_AC / 2 - x_K / self._c)) ** 2


SAMPLES = 100
"""Of the data of a surface: with minima.batch_size=1 an epoch is so many steps."""


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
