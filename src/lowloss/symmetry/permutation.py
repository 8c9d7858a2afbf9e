"""Paths from a minimum to itself with two neurons exchanged (Brea et al. 2019, sec. 4.1 and 4.2).

Shapes: R pairs of neurons as rows, P parameters, H vectors of L-BFGS's memory, N neurons, U points of a plateau, M
numbers of a neuron.
"""

from collections.abc import Sequence
from math import sqrt

import torch
from torch import Tensor

from lowloss.data.base import Batch
from lowloss.landscape.base import Landscape
from lowloss.landscape.chart import NeuronDistance, Tied
from lowloss.landscape.layout import Layout
from lowloss.landscape.wrappers import Charted
from lowloss.symmetry.neurons import Neurons

MEMORY = 20
"""Vectors of L-BFGS's memory."""

HALVINGS = 30
"""Of a step, before a row stays where it is."""

VANISHING = 1e-6
"""An eigenvalue vanishes if it is at most this fraction of the largest."""

CLASSES = ("rising", "saddle before the point", "minimum at the point", "flat")

ROUNDING = 1e3
"""Changes of a loss by so many roundings of it in float64 are none."""


def gradients(landscape: Landscape, theta_RP: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
    """The losses (R,) and gradients (R, P) of points on some samples."""
    with torch.enable_grad():
        theta_RP = theta_RP.detach().requires_grad_()
        losses_R = landscape.losses(theta_RP, batch)
        (gradient_RP,) = torch.autograd.grad(losses_R.sum(), theta_RP)
    return losses_R.detach(), gradient_RP


def descend(
    landscape: Landscape,
    z_RP: Tensor,
    batch: Batch | None,
    iterations: int,
    gradient_norm: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Descend each row by itself by L-BFGS until its gradient is short, on the same samples at every step.

    A row that has to halve its step does so while the others go on: one evaluation of all serves each.

    Args:
        iterations: steps of a row, at most.

    Returns:
        The rows, their losses (R,) and the norms of their gradients (R,).
    """
    losses_R, gradient_RP = gradients(landscape, z_RP, batch)
    memory = _Memory(z_RP, 1 / gradient_RP.norm(dim=1).clamp_min(1))
    moving_R, begins_R = (torch.ones_like(losses_R, dtype=torch.bool) for _ in range(2))
    steps_R, halvings_R = (torch.zeros_like(losses_R, dtype=torch.long) for _ in range(2))
    direction_RP, slope_R = torch.zeros_like(z_RP), torch.zeros_like(losses_R)
    while True:
        moving_R = moving_R & (gradient_RP.norm(dim=1) > gradient_norm) & (steps_R < iterations)
        if not moving_R.any():
            return z_RP, losses_R, gradient_RP.norm(dim=1)
        newest_RP = -memory.inverse(gradient_RP)
        newest_RP = torch.where(((newest_RP * gradient_RP).sum(1) < 0)[:, None], newest_RP, -gradient_RP)
        direction_RP = torch.where(begins_R[:, None], newest_RP, direction_RP)
        slope_R = (direction_RP * gradient_RP).sum(1)
        length_R = moving_R * 0.5 ** halvings_R.to(z_RP)
        tried_RP = z_RP + length_R[:, None] * direction_RP
        tried_R, tried_gradient_RP = gradients(landscape, tried_RP, batch)
        begins_R = (tried_R <= losses_R + 1e-4 * length_R * slope_R) & tried_R.isfinite() & moving_R
        memory.keep(begins_R, tried_RP - z_RP, tried_gradient_RP - gradient_RP)
        taken_R1 = begins_R[:, None]
        z_RP, gradient_RP = torch.where(taken_R1, tried_RP, z_RP), torch.where(taken_R1, tried_gradient_RP, gradient_RP)
        losses_R, steps_R = torch.where(begins_R, tried_R, losses_R), steps_R + begins_R
        halvings_R = torch.where(begins_R, 0, halvings_R + 1)
        moving_R = moving_R & (halvings_R < HALVINGS)


class _Memory:
    """The last steps of each row, of which L-BFGS makes its inverse Hessian (Byrd, Nocedal & Schnabel 1994, eq. 3.1).

    first_R: the length of a step along the gradient before there is any.
    """

    def __init__(self, z_RP: Tensor, first_R: Tensor) -> None:
        self._vectors_2RHP = z_RP.new_zeros(2, len(z_RP), MEMORY, z_RP.shape[1])
        self._row_R = torch.arange(len(z_RP), device=z_RP.device)
        self._scale_R, self._count_R = first_R, torch.zeros_like(self._row_R)

    def keep(self, taken_R: Tensor, step_RP: Tensor, change_RP: Tensor) -> None:
        """Keep the steps of some rows, and how the gradients changed."""
        curvature_R, place_R = (step_RP * change_RP).sum(1), self._count_R % MEMORY
        of_use_R = taken_R & (curvature_R > 0)
        given_2RP, held_2RP = torch.stack([step_RP, change_RP]), self._vectors_2RHP[:, self._row_R, place_R]
        self._vectors_2RHP[:, self._row_R, place_R] = torch.where(of_use_R[:, None], given_2RP, held_2RP)
        self._scale_R = torch.where(of_use_R, curvature_R / change_RP.square().sum(1), self._scale_R)
        self._count_R = self._count_R + of_use_R

    def inverse(self, gradient_RP: Tensor) -> Tensor:
        """The inverse Hessian times gradients (R, P)."""
        step_RHP, change_RHP = self._vectors_2RHP
        scale_R11 = self._scale_R[:, None, None]
        # The oldest first; what is not there yet is zero.
        order_RH = (self._count_R[:, None] + torch.arange(MEMORY, device=gradient_RP.device)) % MEMORY
        pairs = self._row_R[:, None, None], order_RH[:, :, None], order_RH[:, None, :]
        upper_RHH = (step_RHP @ change_RHP.mT)[pairs].triu()
        diagonal_RH = upper_RHH.diagonal(dim1=1, dim2=2)
        inner_RHH = scale_R11 * (change_RHP @ change_RHP.mT)[pairs] + diagonal_RH.diag_embed()
        upper_RHH = upper_RHH + (diagonal_RH == 0).to(upper_RHH).diag_embed()
        along_RH1 = (step_RHP @ gradient_RP[:, :, None]).gather(1, order_RH[:, :, None])
        across_RH1 = scale_R11 * (change_RHP @ gradient_RP[:, :, None]).gather(1, order_RH[:, :, None])
        u_RH1 = torch.linalg.solve_triangular(upper_RHH, along_RH1, upper=True)
        w_RH1 = torch.linalg.solve_triangular(upper_RHH.mT, inner_RHH @ u_RH1 - across_RH1, upper=False)
        u_RH1, w_RH1 = (part_RH1.gather(1, order_RH.argsort(1)[:, :, None]) for part_RH1 in (u_RH1, w_RH1))
        result_RP1 = step_RHP.mT @ w_RH1 + scale_R11 * (gradient_RP[:, :, None] - change_RHP.mT @ u_RH1)
        return result_RP1[:, :, 0]


def at_distance(
    layout: Layout,
    neurons: Neurons,
    pairs: Sequence[Sequence[int]],
    delta_R: Tensor,
    start_R: Tensor,
    spread_R: Tensor | None = None,
) -> NeuronDistance:
    """The chart of points whose pairs of neurons are at these distances, a pair a row, which they began at others.

    The coordinates at one distance are nearly the same function at another, and the difference of the outgoing weights
    may have a length there; see `NeuronDistance`.
    """
    ls, ms = ([pair[side] for pair in pairs] for side in range(2))
    spread = None if spread_R is None else spread_R.tolist()
    return NeuronDistance(
        layout, neurons.layer, ls, ms, delta_R.tolist(), neurons.outgoing_NO, start_R.tolist(), spread
    )


def between(
    layout: Layout,
    neurons: Neurons,
    pairs: Sequence[Sequence[int]],
    from_RP: Tensor,
    to_RP: Tensor,
    distance_R2: Tensor,
    fractions: Sequence[float],
) -> Tensor:
    """The points (R, K, P) at these fractions of the way from points to others, a pair of neurons a row.

    Their coordinates are on straight lines, see `at_distance`, and the logarithm of the distance is: the difference of
    the outgoing weights grows as the distance falls. Where the pairs are one in the end, parameters are on the lines.

    Args:
        distance_R2: of the pairs at both.
    """
    if not distance_R2[:, 1].all():
        return torch.stack([from_RP.lerp(to_RP, fraction) for fraction in fractions], dim=1)
    start_R, end_R = distance_R2.T

    def chart(fraction: float) -> NeuronDistance:
        delta_R = start_R ** (1 - fraction) * end_R**fraction
        return at_distance(layout, neurons, pairs, delta_R, start_R)

    ends = [chart(side).coordinates(theta_RP) for side, theta_RP in enumerate((from_RP, to_RP))]
    return torch.stack([chart(fraction).points(ends[0].lerp(ends[1], fraction)) for fraction in fractions], dim=1)


def merged(landscape: Landscape, neurons: Neurons, label_RN: Tensor) -> Charted:
    """The landscape of points whose neurons i and label[i] are equal, with equal outgoing weights, a row each."""
    return Charted(landscape, Tied(neurons.sources(landscape.dim, label_RN)))


def hessian(landscape: Landscape, theta_P: Tensor, axes_MP: Tensor | None = None) -> Tensor:
    """The Hessian (P, P) of the exact train loss at a point, or what it is between some axes (M, M)."""
    given_MP = torch.eye(len(theta_P), dtype=theta_P.dtype) if axes_MP is None else axes_MP
    found_MP = landscape.product(theta_P.expand(len(given_MP), -1), given_MP, "train").cpu()
    found_MM = found_MP if axes_MP is None else found_MP @ axes_MP.cpu().T
    return (found_MM + found_MM.T) / 2


def across(landscape: Landscape, theta_P: Tensor, neurons: Neurons, l: int, m: int) -> Tensor:  # noqa: E741
    """The eigenvalues of the Hessian, one a number of a neuron, whose vectors move two equal neurons apart.

    Where the two are equal their exchange leaves the point as it is. So the Hessian commutes with it, and its vectors
    are reversed by it, which are these, or kept, which are those of the network in which the two are one.
    """
    places_2M = torch.cat([neurons.incoming_NS[[l, m]], neurons.outgoing_NO[[l, m]]], dim=1)
    apart_MP = theta_P.new_zeros(places_2M.shape[1], len(theta_P))
    apart_MP.scatter_(1, places_2M.T, sqrt(0.5) * theta_P.new_tensor([1, -1]).expand(len(apart_MP), -1))
    return torch.linalg.eigvalsh(hessian(landscape, theta_P, apart_MP))


def signs(eigenvalues: Tensor) -> tuple[Tensor, Tensor]:
    """How many eigenvalues (..., P) are negative and how many vanish."""
    least = VANISHING * eigenvalues.abs().amax(-1, keepdim=True)
    return (eigenvalues < -least).sum(-1), (eigenvalues.abs() <= least).sum(-1)


def plateau(theta_P: Tensor, neurons: Neurons, l: int, m: int, count: int, seed: int) -> Tensor:  # noqa: E741
    """Points (2 U, P) with the outgoing weights of two equal neurons split otherwise, their sum as it is.

    The first U are split in proportion, l taking from -1/2 to 3/2 of all; the others at random, each outgoing weight
    in another proportion.
    """
    share_U = torch.linspace(-0.5, 1.5, count, dtype=theta_P.dtype)
    generator = torch.Generator().manual_seed(seed)
    total_O = theta_P[neurons.outgoing_NO[[l, m]]].sum(0)
    drawn_UO = torch.rand(count, len(total_O), generator=generator, dtype=theta_P.dtype) * 2 - 0.5
    points = theta_P.repeat(2 * count, 1)
    share = torch.cat([share_U[:, None].expand_as(drawn_UO), drawn_UO])
    points[:, neurons.outgoing_NO[l]] = share * total_O
    points[:, neurons.outgoing_NO[m]] = (1 - share) * total_O
    return points


def shifts(theta_P: Tensor, neurons: Neurons, label_N: Tensor, count: int, seed: int) -> Tensor:
    """Random changes (U, N, O) of the outgoing weights by which their sum over equal neurons stays (Brea et al. 2019,
    proposition 2)."""
    generator = torch.Generator().manual_seed(seed)
    size = (count, *neurons.outgoing_NO.shape)
    drawn_UNO = torch.randn(size, generator=generator, dtype=theta_P.dtype)
    for label in label_N.unique():
        same_N = label_N == label
        drawn_UNO[:, same_N] -= drawn_UNO[:, same_N].mean(1, keepdim=True)
    return drawn_UNO * theta_P[neurons.outgoing_NO].square().mean().sqrt()


def shape(losses: Sequence[float], accuracy: float) -> str:
    """The class of a path by its losses up to the permutation point (Brea et al. 2019, suppl. fig. 4).

    A: it rises all the way, and the point is its maximum.  B: it falls between a saddle and the point.  C: it falls
    towards the point. Changes of 1e-3 of the range are none. Flat: the range is next to none, and which of the three it
    is would be noise.

    Args:
        accuracy: of the descents, the norm of the gradient that was asked for: where they end, the loss still falls by
            as much, if parameters move by a length of one.
    """
    extent = max(losses) - min(losses)
    if extent <= max(accuracy, ROUNDING * torch.finfo(torch.float64).eps * max(map(abs, losses))):
        return CLASSES[3]
    noise = 1e-3 * extent
    rest = [loss for loss in losses if abs(loss - losses[-1]) > noise]
    if rest and rest[-1] > losses[-1]:
        return CLASSES[2]
    highest = losses[0]
    for loss in losses:
        if loss < highest - noise:
            return CLASSES[1]
        highest = max(highest, loss)
    return CLASSES[0]
