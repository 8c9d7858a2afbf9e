"""Charts: other coordinates of the parameters, or of a part of their space.

References:
    Fort & Jastrzebski 2019, sec. 3.3 and 4 (random hyperplanes, tunnels).
    Brea et al. 2019, sec. 4.1 (two neurons at a fixed distance).

Shapes: K points, P parameters, Q coordinates, M normals, S parameters of a neuron.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lowloss.errors import LowlossError, check_number, is_number
from lowloss.landscape.layout import Layout
from lowloss.seeding import derive

DEPENDENT = 1e-6
"""Rows of a basis are dependent if the part of one across those before it is at most this fraction of its norm."""

COLUMNS = 1 << 16
"""Parameters of a basis that are in float64 at once."""

Self = TypeVar("Self", bound="Chart")
Held = TypeVar("Held", bound="_Held")


class Chart(Protocol):
    """A differentiable map from K coordinates z to K points theta, in the dtype and on the device of z.

    Its settings may differ by row: it then takes exactly as many points as it has rows.
    """

    @property
    def dim(self) -> int:
        """The number of coordinates Q."""

    @property
    def affine(self) -> bool:
        """Whether the map is linear but for a constant."""

    def points(self, z_KQ: Tensor) -> Tensor:
        """The points (K, P), differentiable."""

    def coordinates(self, theta_KP: Tensor) -> Tensor:
        """Coordinates (K, Q) of points on the chart, of others those of the nearest point on it."""

    def to(self: Self, device: torch.device) -> Self:
        """Move what the chart holds to the device, in place."""


class _Held:
    """A chart that holds tensors."""

    def to(self: Held, device: torch.device) -> Held:
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                setattr(self, name, value.to(device))
        return self


class Span(_Held):
    """The affine space origin + z @ basis: a random hyperplane, a plane of principal components, the grid of a scan.

    Args:
        origin_P: where z is zero; or one a row (K, P).
        basis_QP: Q independent directions, which need not be orthonormal; they are held in the origin's dtype.
        dims: row k has the first dims[k] coordinates alone; the rest are padding, which moves nothing and feels no
            gradient. None: every row has all.

    Raises LowlossError: the directions are dependent, or dims are not in 1 … Q.
    """

    affine = True

    def __init__(self, origin_P: Tensor, basis_QP: Tensor, dims: Sequence[int] | None = None) -> None:
        self.origin_P, self.basis_QP = origin_P, basis_QP.to(origin_P)
        self.dim, self.dims = len(basis_QP), None if dims is None else list(dims)
        if self.dims is not None and not all(is_number(d, int) and 1 <= d <= self.dim for d in self.dims):
            raise LowlossError(f"dims must be whole numbers in 1 … {self.dim}, the directions, got {self.dims}")
        gram_QQ = _dots(self.basis_QP, self.basis_QP)
        # Its leading blocks are the factors for fewer directions.
        self._factor_QQ, failed = torch.linalg.cholesky_ex(gram_QQ)
        across_Q = self._factor_QQ.diagonal()
        if failed:
            across_Q[failed - 1 :] = 0
        _check_independent(across_Q, gram_QQ.diagonal().sqrt(), "directions")

    @classmethod
    def random(cls, origin_P: Tensor, dim: int, seed: int) -> Span:
        """A hyperplane of random orientation through a point, with orthonormal directions, drawn in float64."""
        check_number("dim", dim, int, 1)
        parameters = origin_P.shape[-1]
        if dim > parameters:
            raise LowlossError(
                f"a hyperplane of {parameters} parameters has at most so many dimensions, not {dim}: lower chart.dim"
            )
        generator = torch.Generator().manual_seed(derive(seed, "span"))
        drawn_PQ = torch.randn(parameters, dim, generator=generator, dtype=torch.float64)
        return cls(origin_P, torch.linalg.qr(drawn_PQ).Q.T.contiguous())

    def points(self, z_KQ: Tensor) -> Tensor:
        if self.dims is not None:
            _check_rows(len(self.dims), len(z_KQ))
            dims_K = torch.tensor(self.dims, device=z_KQ.device)
            z_KQ = z_KQ.where(torch.arange(self.dim, device=z_KQ.device) < dims_K[:, None], 0.0)
        return _origin(self.origin_P, z_KQ) + z_KQ @ self.basis_QP.to(z_KQ)

    def coordinates(self, theta_KP: Tensor) -> Tensor:
        dots_KQ = _dots(theta_KP - _origin(self.origin_P, theta_KP), self.basis_QP.to(theta_KP.device))
        factor_QQ = self._factor_QQ.to(dots_KQ)
        if self.dims is None:
            return torch.cholesky_solve(dots_KQ.T, factor_QQ).T.to(theta_KP)
        _check_rows(len(self.dims), len(theta_KP))
        z_KQ = torch.zeros_like(dots_KQ)
        for z_Q, dots_Q, d in zip(z_KQ, dots_KQ, self.dims, strict=True):
            z_Q[:d] = torch.cholesky_solve(dots_Q[:d, None], factor_QQ[:d, :d])[:, 0]
        return z_KQ.to(theta_KP)


class Normal(_Held):
    """The space through a point normal to a segment, or to the span of a simplex.

    theta = origin + (z - N^T (N N^T)^-1 N z): Q = P redundant coordinates, so no basis of P - M directions is needed.

    Args:
        origin: one point (P,) for all rows, or one a row (K, P), as points of a tunnel have it.
        normals_MP: M independent directions, say the segment or the simplex's edges at one corner.

    Raises LowlossError: the normals are dependent, as where two corners are the same point.
    """

    affine = True

    def __init__(self, origin: Tensor, normals_MP: Tensor) -> None:
        self.origin, self.dim = origin, normals_MP.shape[1]
        units_PM, factor_MM = torch.linalg.qr(normals_MP.double().T)
        _check_independent(factor_MM.diagonal().abs(), normals_MP.double().norm(dim=1), "normals")
        self._units_MP = units_PM.T.to(origin)

    def points(self, z_KP: Tensor) -> Tensor:
        return _origin(self.origin, z_KP) + self._across(z_KP)

    def coordinates(self, theta_KP: Tensor) -> Tensor:
        return self._across(theta_KP - _origin(self.origin, theta_KP))

    def _across(self, z_KP: Tensor) -> Tensor:
        units_MP = self._units_MP.to(z_KP)
        return z_KP - (z_KP @ units_MP.T) @ units_MP


class NeuronDistance(_Held):
    """Two neurons l and m of a layer at a fixed Euclidean distance delta of their parameter vectors (Brea et al. 2019).

    A neuron's vector is its incoming weights (a filter of a convolution) and its bias, where the layer has one. The
    coordinates are Q = P redundant ones: z itself, but for the two vectors, of which the mean and the direction of the
    difference are taken, and where outgoing weights are named, for half their difference, which is divided by delta
    over the length of the difference of the two vectors in `coordinates`, `scale`. Where delta becomes small the two
    neurons' outputs differ by delta times a derivative, and a network of low loss may weigh that by 1 / delta: in z
    these weights and the direction have numbers and gradients of any other's size, and the same z at a smaller delta
    is nearly the same function. With `spread` the length of that half difference is fixed too, and its direction free.

    Args:
        layout: of the network.
        layer: the name of a module with a weight, say "layers.0".
        l, m: the neurons, or a sequence of them, one a row.
        delta: the distance, positive, or a sequence of them, one a row.
        outgoing_NO: where in a point the outgoing weights of every neuron lie; None: they are coordinates as they are.
        scale: the distance at which z is the point, likewise; None: delta.
        spread: the length in z of half the difference of the outgoing weights, likewise, at least 0; None: free.

    Raises LowlossError: the network has no such layer or neuron, or the settings do not fit together.
    """

    affine = False

    def __init__(
        self,
        layout: Layout,
        layer: str,
        l: int | Sequence[int],  # noqa: E741
        m: int | Sequence[int],
        delta: float | Sequence[float],
        outgoing_NO: Tensor | None = None,
        scale: float | Sequence[float] | None = None,
        spread: float | Sequence[float] | None = None,
    ) -> None:
        self.dim, scale = layout.dim, delta if scale is None else scale
        layers = layout.filters(torch.arange(layout.dim))
        names = [name.removesuffix(".weight") for name in layers if name.endswith(".weight")]
        if layer not in names:
            raise LowlossError(f"layer {layer!r} has no neurons: take one of {', '.join(names)}")
        index_FS = layers[f"{layer}.weight"]
        if f"{layer}.bias" in layout.names:
            index_FS = torch.cat([index_FS, layout.views(torch.arange(layout.dim))[f"{layer}.bias"][:, None]], dim=1)
        given = l, m, delta, scale, inf if spread is None else spread
        lengths = {len(value) for value in given if isinstance(value, Sequence)}
        if len(lengths) > 1:
            raise LowlossError("l, m, delta, scale and spread must be single numbers or sequences of one length")
        self.rows = lengths.pop() if lengths else None
        l_K, m_K, delta_K, scale_K, spread_K = (v if isinstance(v, Sequence) else [v] * (self.rows or 1) for v in given)
        for a, b in zip(l_K, m_K, strict=True):
            if a == b or not {a, b} <= set(range(len(index_FS))):
                raise LowlossError(f"{layer} has neurons 0 … {len(index_FS) - 1}: take two of them, not {a} and {b}")
        if not all(is_number(d, float) and 0 < d < inf for d in (*delta_K, *scale_K)):
            raise LowlossError(f"delta and scale must be positive and finite, got {delta} and {scale}")
        pair_2K = torch.tensor([l_K, m_K])
        self._pair_2KS, self._out_2KO = index_FS[pair_2K], None if outgoing_NO is None else outgoing_NO[pair_2K]
        self._delta_K1 = torch.tensor(delta_K, dtype=torch.float64)[:, None]
        self._scale_K1 = torch.tensor(scale_K, dtype=torch.float64)[:, None]
        self._spread_K1 = None if spread is None else torch.tensor(spread_K, dtype=torch.float64)[:, None]

    def points(self, z_KP: Tensor) -> Tensor:
        """The points (K, P). Raises LowlossError where the two neurons are equal, so that no direction is known."""
        return self._moved(z_KP, self._delta_K1, self._scale_K1 / self._delta_K1, self._spread_K1)

    def coordinates(self, theta_KP: Tensor) -> Tensor:
        """Those of the point itself where it is on the chart, to rounding; of others, with no scale, the nearest's."""
        return self._moved(theta_KP, self._scale_K1, self._delta_K1 / self._scale_K1, None)

    def _moved(self, from_KP: Tensor, length_K1: Tensor, factor_K1: Tensor, spread_K1: Tensor | None) -> Tensor:
        """With the two vectors so far apart, and so many times the difference of their outgoing weights, or of its
        direction."""
        _check_rows(self.rows, len(from_KP))
        result_KP, norm_K1 = from_KP, _halves(from_KP, self._pair_2KS)[1].norm(dim=1, keepdim=True)
        if (norm_K1 == 0).any():
            raise LowlossError("the two neurons are equal, so no direction leads from one to the other: move one")
        changes = [(self._pair_2KS, length_K1.to(from_KP) / 2 / norm_K1)]
        if self._out_2KO is not None:
            times_K1 = factor_K1.to(from_KP)
            if spread_K1 is not None:
                own_K1 = _halves(from_KP, self._out_2KO)[1].norm(dim=1, keepdim=True)
                times_K1 = times_K1 * spread_K1.to(from_KP) / own_K1.clamp_min(torch.finfo(own_K1.dtype).tiny)
            changes.append((self._out_2KO, times_K1))
        for index_2KS, times_K1 in changes:
            mean_KS, half_KS = _halves(from_KP, index_2KS)
            for index_KS, side in zip(index_2KS.to(from_KP.device), (1, -1), strict=True):
                moved_KS = mean_KS + side * times_K1 * half_KS
                result_KP = result_KP.scatter(1, index_KS.expand(len(from_KP), -1), moved_KS)
        return result_KP

    def spreads(self, z_KP: Tensor) -> Tensor:
        """The length (K,) in z of half the difference of the outgoing weights."""
        assert self._out_2KO is not None
        return _halves(z_KP, self._out_2KO)[1].norm(dim=1)


def _halves(theta_KP: Tensor, index_2KS: Tensor) -> tuple[Tensor, Tensor]:
    """The mean of two parts of each point, and half their difference (K, S)."""
    one_KS, other_KS = (theta_KP.gather(1, i_KS.expand(len(theta_KP), -1)) for i_KS in index_2KS.to(theta_KP.device))
    return (one_KS + other_KS) / 2, (one_KS - other_KS) / 2


class Tied(_Held):
    """Parameters that are equal: a permutation point, as the smaller network that it is (Brea et al. 2019, sec. 4.3).

    The coordinates are Q = P redundant ones, of which every parameter takes that of its source.

    Args:
        source_RP: the index of each parameter's source, a row each; a source is its own.
    """

    affine = True

    def __init__(self, source_RP: Tensor) -> None:
        self.dim, self._source_RP = source_RP.shape[1], source_RP

    def points(self, z_KP: Tensor) -> Tensor:
        _check_rows(len(self._source_RP), len(z_KP))
        return z_KP.gather(1, self._source_RP.to(z_KP.device))

    def coordinates(self, theta_KP: Tensor) -> Tensor:
        """The means of what is equal."""
        _check_rows(len(self._source_RP), len(theta_KP))
        source_KP, zero_KP = self._source_RP.to(theta_KP.device), torch.zeros_like(theta_KP)
        sum_KP = zero_KP.scatter_add(1, source_KP, theta_KP)
        return self.points(sum_KP / zero_KP.scatter_add(1, source_KP, torch.ones_like(theta_KP)).clamp_min(1))


def _dots(a_KP: Tensor, b_QP: Tensor) -> Tensor:
    """The scalar products (K, Q) in float64, without a copy of either in it."""
    dots_KQ = torch.zeros(len(a_KP), len(b_QP), dtype=torch.float64, device=a_KP.device)
    for a, b in zip(a_KP.split(COLUMNS, dim=1), b_QP.split(COLUMNS, dim=1), strict=True):
        dots_KQ += a.double() @ b.double().T
    return dots_KQ


def _check_independent(across_Q: Tensor, norm_Q: Tensor, what: str) -> None:
    """Raise LowlossError if a row lies in the span of those before it; `across` is the norm of its part across it."""
    dependent_Q = ~(across_Q > DEPENDENT * norm_Q)
    if dependent_Q.any():
        first = int(dependent_Q.nonzero()[0])
        raise LowlossError(f"the {what} must be independent: leave out number {first}, a sum of those before it")


def _origin(origin: Tensor, of_K: Tensor) -> Tensor:
    """The origin in the dtype and on the device of rows, of which there must be as many where it has several."""
    _check_rows(len(origin) if origin.dim() == 2 else None, len(of_K))
    return origin.to(of_K)


def _check_rows(rows: int | None, points: int) -> None:
    if rows is not None and rows != points:
        raise LowlossError(f"this chart's settings are of {rows} rows, so it takes {rows} points at once, not {points}")
