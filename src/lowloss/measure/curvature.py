"""Curvature: extreme eigenvalues, trace and spectral density of the Hessian, from its products with vectors alone.

All take K points at once, and every point the same random vectors: what is measured of a point does not depend on
those beside it, and noise is common to all. The Hessian is that of the mean loss, not of a sum.

Shapes: K points, P parameters, J vectors of a Krylov space, C eigenvalues of an end, S vectors of a sketch, G probes,
N nodes of a density, L layers.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from math import pi, sqrt
from typing import Annotated

import torch
from annotated_types import Gt, Lt
from torch import Tensor

from lowloss.checking import Count, Index, Positive
from lowloss.errors import LowlossError
from lowloss.landscape import Batch, Landscape
from lowloss.landscape.base import Columns
from lowloss.measure.exact import Statistics
from lowloss.seeding import derive

Product = Callable[[Tensor, Tensor], Tensor]
"""The Hessians (P × P) at points (K, P) times vectors (K, P)."""

BASIS = 64
"""Vectors of a Krylov space before it is restarted from its Ritz vectors."""

NUMBERS = 1 << 29
"""Numbers of all vectors that are held at once; as many points are taken at once as fit, and at least one."""

DENSE = 500
"""Parameters up to which all eigenvalues are computed where they are counted."""

CHECK = 2
"""Products between two looks at the residuals."""

BEYOND, ODDS = 0.01, 0.01
"""A residual tells of the nearest eigenvalue, which at the lower end may be any of the many next to zero. So an end has
only converged where one beyond it by this part of the largest magnitude would have been missed with these odds."""

MODES = ("held", "batch")


@dataclass(frozen=True)
class Hessian:
    """Which Hessian is measured: of the mean loss over a split, or over some of its samples.

    split: of the data.  samples: so many of it, drawn without replacement by the seed and un-augmented; None: all.
    statistics: BatchNorm's, "held" at the point's own as in evaluation, "batch" of the samples, through which it
    differentiates too, or what gives those of points, as a scan with one centre's has them.
    block: the first parameter and the one after the last, of whose block on the diagonal alone it is; None: of all.

    Raises LowlossError: the statistics are none of these.
    """

    split: str = "train"
    samples: Count | None = None
    seed: Index = 0
    statistics: str | Statistics = "held"
    block: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        if isinstance(self.statistics, str) and self.statistics not in MODES:
            raise LowlossError(f"statistics must be one of {', '.join(MODES)}, got {self.statistics!r}")

    @property
    def about(self) -> dict[str, object]:
        """What has to be told beside every number."""
        mode = self.statistics if isinstance(self.statistics, str) else "given"
        return {"of": "mean loss", "split": self.split, "samples": self.samples, "statistics": mode}

    def rows(self, parameters: int) -> int:
        """How many rows it has, of so many parameters."""
        return parameters if self.block is None else self.block[1] - self.block[0]

    def product(self, landscape: Landscape) -> Product:
        """The product with the Hessian at points, of the chosen samples. Raises LowlossError for an unknown split."""
        if self.split not in landscape.splits:
            raise LowlossError(f"split must be one of {', '.join(landscape.splits)}, got {self.split!r}")
        data: Batch | str = self.split
        if self.samples is not None:
            data = landscape.subset(self.split, self.samples, derive(self.seed, "hessian")) or data

        def times(theta_KP: Tensor, v_KP: Tensor) -> Tensor:
            statistics = self.statistics if isinstance(self.statistics, str) else self.statistics(theta_KP)
            if self.block is None:
                return landscape.product(theta_KP, v_KP, data, statistics).to(v_KP)
            first, end = self.block
            whole_KP = torch.nn.functional.pad(v_KP, (first, theta_KP.shape[1] - end))
            return landscape.product(theta_KP, whole_KP, data, statistics)[:, first:end].to(v_KP)

        return times


class Krylov:
    """Orthonormal bases of the Krylov spaces of K points, and the projections T = Q H Q^T onto them.

    Lanczos with full reorthogonalisation: H q_J = sum_i T_iJ q_i + beta q_{J+1}. Where a space is exhausted the vectors
    that follow are zero, and their T is a Rayleigh quotient, which is no extreme value and has no weight.
    """

    def __init__(self, times: Callable[[Tensor], Tensor], start_KP: Tensor, room: int) -> None:
        self.times, self.room, self.size = times, min(room, start_KP.shape[1]), 0
        self.Q_KJP = start_KP.new_zeros(len(start_KP), self.room + 1, start_KP.shape[1])
        self.Q_KJP[:, 0] = start_KP / start_KP.norm(dim=1, keepdim=True)
        self.T_KJJ = start_KP.new_zeros(len(start_KP), self.room, self.room, dtype=torch.float64)
        self.beta_K = start_KP.new_zeros(len(start_KP), dtype=torch.float64)

    def grow(self) -> None:
        """Take one product with every point's Hessian."""
        j = self.size
        q_KP, basis_KJP = self.Q_KJP[:, j], self.Q_KJP[:, : j + 1]
        w_KP = self.times(q_KP)
        height_KJ = w_KP.new_zeros(len(w_KP), j + 1, dtype=torch.float64)
        for _ in range(2):  # twice is enough: what the first pass leaves is of rounding's size
            # Of a batched product of few rows and one column a GPU does each row's sum on one processor.
            part_KJ = torch.stack([basis_JP @ w_P for basis_JP, w_P in zip(basis_KJP, w_KP, strict=True)])
            w_KP = w_KP - (part_KJ[:, None] @ basis_KJP)[:, 0]
            height_KJ += part_KJ
        self.T_KJJ[:, : j + 1, j] = self.T_KJJ[:, j, : j + 1] = height_KJ
        null_K = ~q_KP.any(1)
        self.T_KJJ[:, j, j] = torch.where(null_K, self.T_KJJ[:, 0, 0], self.T_KJJ[:, j, j])
        beta_K = w_KP.double().norm(dim=1) * (j + 1 < w_KP.shape[1])  # no more than P are independent
        least_K = 10 * torch.finfo(w_KP.dtype).eps * self.T_KJJ.abs().amax((1, 2))
        self.beta_K = torch.where(beta_K <= least_K, 0.0, beta_K)
        inverse_K = torch.where(self.beta_K == 0, 0.0, 1 / beta_K)
        self.Q_KJP[:, j + 1] = w_KP * inverse_K.to(w_KP)[:, None]
        self.size += 1

    def ritz(self) -> tuple[Tensor, Tensor, Tensor]:
        """Ritz values (K, J), ascending, their vectors in the basis (K, J, J), a column each, and the norms of the
        residuals H y - theta y (K, J). NaN where a product was not finite."""
        T_KJJ = self.T_KJJ[:, : self.size, : self.size].cpu()
        wild_K = ~(T_KJJ.isfinite().all(2).all(1) & self.beta_K.cpu().isfinite())
        value_KJ, s_KJJ = torch.linalg.eigh(torch.where(wild_K[:, None, None], 0.0, T_KJJ))
        value_KJ[wild_K] = torch.nan
        return value_KJ, s_KJJ, self.beta_K.cpu()[:, None] * s_KJJ[:, -1].abs() + 0 * value_KJ

    def sees(self, low_K: Tensor, high_K: Tensor) -> Tensor:
        """Whether (K,) no eigenvalue is at or beyond these, but for odds of ODDS at each end, before any restart.

        The vectors are q_j = p_j(H) q_0 with orthonormal polynomials p_j, so an eigenvector u at mu has u·q_j = p_j(mu)
        u·q_0, and since it is of unit length, sum_j p_j(mu)^2 (u·q_0)^2 <= 1. Beyond the Ritz values that sum grows
        with the distance, and of a random start (u·q_0)^2 is below x^2 / P with a probability of at most sqrt(2/pi) x.
        """
        T_KJJ, beta_K = self.T_KJJ[:, : self.size, : self.size].cpu(), self.beta_K.cpu()
        beta_KJ = torch.cat([T_KJJ.diagonal(1, 1, 2), beta_K[:, None]], 1)
        enough = self.Q_KJP.shape[2] / (pi / 2 * ODDS**2)
        whole_K = torch.ones(len(low_K), dtype=torch.bool)
        for mu_K in (low_K, high_K):
            before_K, p_K, sum_K = torch.zeros_like(mu_K), torch.ones_like(mu_K), torch.ones_like(mu_K)
            seen_K = torch.zeros_like(whole_K)
            for j in range(self.size):
                # An exhausted space, of beta = 0, holds all eigenvectors that the start has a part of.
                left_K = beta_KJ[:, j - 1] * before_K if j else 0.0
                before_K, p_K = p_K, ((mu_K - T_KJJ[:, j, j]) * p_K - left_K) / beta_KJ[:, j]
                sum_K = sum_K + p_K.square()
                seen_K |= (sum_K >= enough) | (beta_KJ[:, j] == 0)
            whole_K &= seen_K
        return whole_K

    def vectors(self, s_KJC: Tensor) -> Tensor:
        """Vectors (K, C, P) from their coefficients in the basis."""
        return s_KJC.transpose(1, 2).to(self.Q_KJP) @ self.Q_KJP[:, : self.size]

    def restart(self, keep: int) -> None:
        """Begin again from the Ritz vectors of the `keep` lowest and highest values each (Wu & Simon 2000)."""
        value_KJ, s_KJJ, _ = self.ritz()
        chosen = [*range(keep), *range(self.size - keep, self.size)]
        kept_KJP = self.vectors(s_KJJ[:, :, chosen])
        self.Q_KJP[:, len(chosen)] = self.Q_KJP[:, self.size]
        self.Q_KJP[:, : len(chosen)] = kept_KJP
        self.T_KJJ.zero_()
        self.T_KJJ[:, range(len(chosen)), range(len(chosen))] = value_KJ[:, chosen].to(self.T_KJJ)
        self.size = len(chosen)

    def select(self, rows: Tensor) -> None:
        """Go on with some of the points."""
        rows = rows.to(self.Q_KJP.device)
        self.Q_KJP, self.T_KJJ, self.beta_K = self.Q_KJP[rows], self.T_KJJ[rows], self.beta_K[rows]


@dataclass(frozen=True)
class Extremes:
    """The measure of the lowest and the highest eigenvalues, both from one Krylov space, restarted where it is full.

    Columns: `hessian_min` and `hessian_max`; their residuals |H y - lambda y|, which bound the distance to the nearest
    eigenvalue; `hessian_ratio`, |min / max|; `hessian_converged`, whether all residuals of both ends are at most
    `tolerance` times the larger magnitude of the two, since the lowest may be next to zero, and no eigenvalue beyond
    either by more than BEYOND of it can have been missed, but for odds of ODDS; `hessian_products`, how many it took;
    `hessian_index`, how many of the lowest are negative by more than `tolerance` allows, `count` at most.

    hessian: of which.  tolerance, products: when it ends, at the latest after so many products a point.
    count: eigenvalues of each end; with more than one `hessian_lowest` and `hessian_highest` (K, C) come too, from the
    outermost inwards.  vectors: whether the eigenvectors of the two extremes (K, P) come too.
    """

    hessian: Hessian = Hessian()
    tolerance: Positive = 1e-3
    products: Count = 300
    count: Count = 1
    vectors: bool = False

    def __call__(self, landscape: Landscape, theta_KP: Tensor) -> Columns:
        return _in_parts(self._part, theta_KP, BASIS + BASIS // 2, self.hessian, landscape)

    def _part(self, theta_KP: Tensor, product: Product) -> Columns:
        count, left_K = min(self.count, self.hessian.rows(theta_KP.shape[1])), torch.arange(len(theta_KP))
        room = max(BASIS, 6 * count)
        (start_KP,) = _random(theta_KP, self.hessian, "lanczos", 1)
        krylov = Krylov(lambda q_KP: product(theta_KP[left_K], q_KP), start_KP, room)
        columns: Columns = {}
        for taken in range(1, self.products + 1):
            krylov.grow()
            full = krylov.size == krylov.room
            if taken % CHECK and not full and taken < self.products:
                continue
            value_KJ, s_KJJ, residual_KJ = krylov.ritz()
            places = [*range(min(count, krylov.size)), *range(max(0, krylov.size - count), krylov.size)]
            scale_K = value_KJ[:, [0, -1]].abs().amax(1)
            small_K = (residual_KJ[:, places] <= self.tolerance * scale_K[:, None]).all(1)
            converged_K = small_K & (krylov.size >= count)
            # A full basis of a random start misses more than BEYOND with about such odds, whatever the spectrum:
            # 1.65 sqrt(P) exp(-sqrt(BEYOND) (2 BASIS - 1)) at most (Kuczyński & Woźniakowski 1992).
            if taken <= krylov.room:
                converged_K &= krylov.sees(value_KJ[:, 0] - BEYOND * scale_K, value_KJ[:, -1] + BEYOND * scale_K)
            done_K = converged_K | scale_K.isnan() | (taken == self.products)
            for k in done_K.nonzero().flatten().tolist():
                lowest_C, highest_C = value_KJ[k, :count], value_KJ[k, -count:].flip(0)
                row = {
                    "min": lowest_C[0],
                    "max": highest_C[0],
                    "residual_min": residual_KJ[k, 0],
                    "residual_max": residual_KJ[k, -1],
                    "ratio": (lowest_C[0] / highest_C[0]).abs(),
                    "converged": converged_K[k],
                    "products": torch.tensor(taken),
                    "index": (lowest_C < -self.tolerance * scale_K[k]).sum(),
                }
                if count > 1:  # fewer are known where the products ended first
                    missing_C = torch.full((count - len(lowest_C),), torch.nan, dtype=torch.float64)
                    row |= {"lowest": torch.cat([lowest_C, missing_C]), "highest": torch.cat([highest_C, missing_C])}
                if self.vectors:
                    ends_2P = krylov.vectors(s_KJJ[:, :, [0, -1]])[k].cpu()
                    row |= {"vector_min": ends_2P[0], "vector_max": ends_2P[1]}
                for name, value in row.items():
                    if f"hessian_{name}" not in columns:
                        columns[f"hessian_{name}"] = value.new_zeros(len(theta_KP), *value.shape)
                    columns[f"hessian_{name}"][left_K[k]] = value
            if done_K.all():
                break
            if done_K.any():
                left_K = left_K[~done_K]
                krylov.select(~done_K)
            if full:
                krylov.restart(max(count + 2, room // 4))
        return columns


@dataclass(frozen=True)
class Trace:
    """The measure `hessian_trace`, by Hutch++ (Meyer, Musco, Musco & Woodruff 2021), and `hessian_trace_error`.

    A third of the products finds the space Q of the largest eigenvalues, a third the trace there, and the rest are
    probes g of what is left, tr(H) ≈ tr(Q H Q^T) + mean of g^T R H R g with R = 1 - Q^T Q; the error is the standard
    error of that mean, and zero where Q is all.

    hessian: of which.  products: a point, at least 6.
    """

    hessian: Hessian = Hessian()
    products: Count = 30

    def __post_init__(self) -> None:
        if self.products < 6:
            raise LowlossError(f"products must be at least 6 for a trace and its error, got {self.products}")

    def __call__(self, landscape: Landscape, theta_KP: Tensor) -> Columns:
        return _in_parts(self._part, theta_KP, self.products, self.hessian, landscape)

    def _part(self, theta_KP: Tensor, product: Product) -> Columns:
        third = self.products // 3
        sketch = _random(theta_KP, self.hessian, "sketch", third)
        sketched_KPS = torch.stack([product(theta_KP, s_KP) for s_KP in sketch], 2)
        wild_K = ~sketched_KPS.isfinite().all(2).all(1)
        Q_KSP = torch.linalg.qr(torch.where(wild_K[:, None, None], 0.0, sketched_KPS)).Q.transpose(1, 2)
        large_K = torch.zeros(len(theta_KP), dtype=torch.float64, device=theta_KP.device)
        for s in range(Q_KSP.shape[1]):
            large_K += (Q_KSP[:, s] * product(theta_KP, Q_KSP[:, s])).double().sum(1)
        probes = []
        for drawn_KP in _random(theta_KP, self.hessian, "probes", third):
            g_P = drawn_KP[0].sign()
            g_KP = g_P - (Q_KSP.transpose(1, 2) @ (Q_KSP @ g_P)[:, :, None])[:, :, 0]
            probes.append((g_KP * product(theta_KP, g_KP)).double().sum(1))
        probe_KG = torch.stack(probes, 1)
        found_K, error_K = large_K + probe_KG.mean(1), probe_KG.std(1) / sqrt(third)
        both = {"hessian_trace": found_K, "hessian_trace_error": error_K}
        return {name: torch.where(wild_K, torch.nan, column_K).cpu() for name, column_K in both.items()}


@dataclass(frozen=True)
class Density:
    """The measure of the eigenvalues' density, by stochastic Lanczos quadrature (Ubaru, Chen & Saad 2017).

    Columns `hessian_nodes` and `hessian_weights` (K, N): the spectrum as N = probes × steps points, whose weights sum
    to one.

    hessian: of which.  probes: random starts.  steps: products of each.
    """

    hessian: Hessian = Hessian()
    probes: Count = 2
    steps: Count = 40

    def __call__(self, landscape: Landscape, theta_KP: Tensor) -> Columns:
        return _in_parts(self._part, theta_KP, self.steps, self.hessian, landscape)

    def _part(self, theta_KP: Tensor, product: Product) -> Columns:
        nodes, weights = [], []
        for start_KP in _random(theta_KP, self.hessian, "density", self.probes):
            krylov = Krylov(lambda q_KP: product(theta_KP, q_KP), start_KP, self.steps)
            for _ in range(krylov.room):
                krylov.grow()
            value_KJ, s_KJJ, _ = krylov.ritz()
            nodes.append(value_KJ)
            weights.append(s_KJJ[:, 0].square() / self.probes)
        return {"hessian_nodes": torch.cat(nodes, 1), "hessian_weights": torch.cat(weights, 1)}


@dataclass(frozen=True)
class Large:
    """The measure of how many eigenvalues are above a share of the largest one: the short directions of Fort &
    Jastrzebski 2019, fig. 4, as a count, where that of random cuts is another reading.

    Columns `hessian_large`, the count, and `hessian_largest` (K,). Up to DENSE parameters it is exact. Beyond, it is P
    times the weight of the density there, whose relative error is about sqrt(2 / (probes n)) at a count n, if the steps
    resolve the threshold.

    hessian: of which.  share: in (0, 1).  probes, steps: see Density.
    """

    hessian: Hessian = Hessian()
    share: Annotated[float, Gt(0), Lt(1)] = 0.01
    probes: Count = 2
    steps: Count = 40

    def __call__(self, landscape: Landscape, theta_KP: Tensor) -> Columns:
        parameters = theta_KP.shape[1]
        if parameters <= DENSE:
            nodes_KN = self._eigenvalues(landscape, theta_KP)
            weights_KN = torch.full_like(nodes_KN, 1 / parameters)
        else:
            found = Density(self.hessian, self.probes, self.steps)(landscape, theta_KP)
            nodes_KN, weights_KN = found["hessian_nodes"], found["hessian_weights"]
        largest_K = nodes_KN.amax(1)
        above_KN = nodes_KN >= self.share * largest_K[:, None].clamp_min(torch.finfo(nodes_KN.dtype).tiny)
        count_K = parameters * (weights_KN * above_KN).sum(1)
        return {"hessian_large": count_K.double().cpu(), "hessian_largest": largest_K.double().cpu()}

    def _eigenvalues(self, landscape: Landscape, theta_KP: Tensor) -> Tensor:
        times, eye_PP = self.hessian.product(landscape), torch.eye(theta_KP.shape[1]).to(theta_KP)
        with torch.no_grad():
            whole = [times(theta_P.expand_as(eye_PP), eye_PP).double() for theta_P in theta_KP]
        return torch.stack([torch.linalg.eigvalsh((h_PP + h_PP.T) / 2) for h_PP in whole])


@dataclass(frozen=True)
class Layers:
    """The measures of `Extremes` and `Trace` of each layer's block of the Hessian (K, L), as `layers_min` and so on.

    A block has the second derivatives in the parameters of one layer, where all others stay as they are. Its extreme
    eigenvalues lie between those of the whole Hessian (Cauchy interlacing), and the blocks' traces sum to its trace.

    layers: of each the first parameter and the one after the last, as `Layout.blocks` has them.
    extremes: how its eigenvalues are found.  trace: and its trace; None: without.
    """

    layers: Mapping[str, tuple[int, int]]
    extremes: Extremes
    trace: Trace | None = None

    def __call__(self, landscape: Landscape, theta_KP: Tensor) -> Columns:
        found = []
        for block in self.layers.values():
            of = replace(self.extremes.hessian, block=block)
            columns = replace(self.extremes, hessian=of, count=1, vectors=False)(landscape, theta_KP)
            if self.trace is not None:
                columns |= replace(self.trace, hessian=of)(landscape, theta_KP)
            found.append(columns)
        return {
            name.replace("hessian", "layers", 1): torch.stack([columns[name] for columns in found], 1)
            for name in found[0]
        }


def check_twice(landscape: Landscape) -> None:
    """Raise OnceError for a network whose loss has no second derivative, by one product on two samples."""
    theta_1P = landscape.initial(0)[None]
    landscape.product(theta_1P, torch.ones_like(theta_1P), landscape.subset("train", 2, 0), "batch")


def with_statistics(hessian: Hessian, statistics: Statistics | None) -> Hessian:
    """The same Hessian at statistics that are given, as a scan's; with None as it is."""
    return hessian if statistics is None else replace(hessian, statistics=statistics)


def _random(theta_KP: Tensor, hessian: Hessian, name: str, count: int) -> Iterator[Tensor]:
    """Gaussian vectors with a Hessian's rows, the same for all points and on every device."""
    generator, rows = torch.Generator().manual_seed(derive(hessian.seed, name)), hessian.rows(theta_KP.shape[1])
    for _ in range(count):
        yield torch.randn(rows, generator=generator, dtype=torch.float64).to(theta_KP).expand(len(theta_KP), -1)


def _in_parts(
    part: Callable[[Tensor, Product], Columns], theta_KP: Tensor, vectors: int, hessian: Hessian, landscape: Landscape
) -> Columns:
    """The columns of all points, of which so many are taken at once as their vectors have room and their gradients."""
    most, product = max(1, NUMBERS // (vectors * theta_KP.shape[1])), hessian.product(landscape)
    parts, at_once, done = list[Columns](), 1, 0
    with torch.no_grad():
        while done < len(theta_KP):
            with landscape.keeping() as fitting:
                parts.append(part(theta_KP[done : done + at_once], product))
            done, at_once = done + at_once, min(most, fitting() or most)
    return {name: torch.cat([columns[name] for columns in parts]) for name in parts[0]}
