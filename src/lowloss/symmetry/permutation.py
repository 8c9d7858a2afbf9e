"""Paths from a minimum to itself with two neurons exchanged (Brea et al. 2019, sec. 4.1 and 4.2).

Shapes: R pairs of neurons as rows, P parameters, H vectors of L-BFGS's memory, N neurons, U points of a plateau.
"""

from collections.abc import Sequence

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

CLASSES = ("rising", "saddle before the point", "minimum at the point")


def gradients(landscape: Landscape, theta_RP: Tensor, batch: Batch | None) -> tuple[Tensor, Tensor]:
    """The losses (R,) and gradients (R, P) of points on some samples."""
    with torch.enable_grad():
        theta_RP = theta_RP.detach().requires_grad_()
        losses_R = landscape.losses(theta_RP, batch)
        (gradient_RP,) = torch.autograd.grad(losses_R.sum(), theta_RP)
    return losses_R.detach(), gradient_RP


def descend(
    landscape: Landscape, z_RP: Tensor, batch: Batch | None, iterations: int, gradient_norm: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Descend each row by itself by L-BFGS until its gradient is short, on the same samples at every step.

    Returns:
        The rows, their losses (R,) and the norms of their gradients (R,).
    """
    steps: list[tuple[Tensor, Tensor, Tensor]] = []
    losses_R, gradient_RP = gradients(landscape, z_RP, batch)
    moving_R = torch.ones_like(losses_R, dtype=torch.bool)
    for _ in range(iterations):
        moving_R &= gradient_RP.norm(dim=1) > gradient_norm
        if not moving_R.any():
            break
        direction_RP = -_two_loops(gradient_RP, steps)
        slope_R = (direction_RP * gradient_RP).sum(1)
        uphill_R = ~(slope_R < 0)
        direction_RP = torch.where(uphill_R[:, None], -gradient_RP, direction_RP)
        slope_R = torch.where(uphill_R, -gradient_RP.square().sum(1), slope_R)
        length_R = moving_R.to(z_RP)
        if not steps:
            length_R = length_R / gradient_RP.norm(dim=1).clamp_min(1)
        for _ in range(HALVINGS):
            tried_RP = z_RP + length_R[:, None] * direction_RP
            tried_R, tried_gradient_RP = gradients(landscape, tried_RP, batch)
            falls_R = (tried_R <= losses_R + 1e-4 * length_R * slope_R) & tried_R.isfinite() | (length_R == 0)
            if falls_R.all():
                break
            length_R = torch.where(falls_R, length_R, length_R / 2)
        moving_R &= falls_R
        kept_R1 = moving_R[:, None]
        step_RP = torch.where(kept_R1, tried_RP - z_RP, 0.0)
        change_RP = torch.where(kept_R1, tried_gradient_RP - gradient_RP, 0.0)
        curvature_R = (step_RP * change_RP).sum(1)
        inverse_R = torch.where(curvature_R > 0, 1 / curvature_R, 0.0)  # zero: of no use to this row
        steps = [*steps[1 - MEMORY :], (step_RP, change_RP, inverse_R)]
        z_RP, gradient_RP = z_RP + step_RP, gradient_RP + change_RP
        losses_R = torch.where(moving_R, tried_R, losses_R)
    return z_RP, losses_R, gradient_RP.norm(dim=1)


def _two_loops(gradient_RP: Tensor, steps: Sequence[tuple[Tensor, Tensor, Tensor]]) -> Tensor:
    """The inverse Hessian, as the steps have it, times the gradient (Nocedal & Wright 2006, algorithm 7.4)."""
    q_RP, alphas = gradient_RP, []
    scale_R = torch.ones_like(gradient_RP[:, 0])
    for step_RP, change_RP, inverse_R in reversed(steps):
        alpha_R = inverse_R * (step_RP * q_RP).sum(1)
        q_RP = q_RP - alpha_R[:, None] * change_RP
        alphas.append(alpha_R)
    for _, change_RP, inverse_R in steps:
        scale_R = torch.where(inverse_R > 0, 1 / (inverse_R * change_RP.square().sum(1)), scale_R)
    q_RP = scale_R[:, None] * q_RP
    for (step_RP, change_RP, inverse_R), alpha_R in zip(steps, reversed(alphas), strict=True):
        beta_R = inverse_R * (change_RP * q_RP).sum(1)
        q_RP = q_RP + (alpha_R - beta_R)[:, None] * step_RP
    return q_RP


def at_distance(
    landscape: Landscape, layout: Layout, neurons: Neurons, pairs: Sequence[Sequence[int]], delta_R: Tensor
) -> Charted:
    """The landscape of points whose pairs of neurons are at these distances, a pair a row."""
    ls, ms = ([pair[side] for pair in pairs] for side in range(2))
    return Charted(landscape, NeuronDistance(layout, neurons.layer, ls, ms, delta_R.tolist()))


def merged(landscape: Landscape, neurons: Neurons, label_RN: Tensor) -> Charted:
    """The landscape of points whose neurons i and label[i] are equal, with equal outgoing weights, a row each."""
    return Charted(landscape, Tied(neurons.sources(landscape.dim, label_RN)))


def hessian(landscape: Landscape, theta_P: Tensor) -> Tensor:
    """The Hessian (P, P) of the exact train loss at a point."""
    eye_PP = torch.eye(len(theta_P), dtype=theta_P.dtype)
    found_PP = landscape.product(theta_P.expand(len(theta_P), -1), eye_PP, "train")
    return (found_PP + found_PP.T) / 2


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


def shape(losses: Sequence[float]) -> str:
    """The class of a path by its losses up to the permutation point (Brea et al. 2019, suppl. fig. 4).

    A: it rises all the way, and the point is its maximum.  B: it falls between a saddle and the point.  C: it falls
    towards the point. Changes of 1e-3 of the range are none.
    """
    noise = 1e-3 * (max(losses) - min(losses))
    rest = [loss for loss in losses if abs(loss - losses[-1]) > noise]
    if rest and rest[-1] > losses[-1]:
        return CLASSES[2]
    highest = losses[0]
    for loss in losses:
        if loss < highest - noise:
            return CLASSES[1]
        highest = max(highest, loss)
    return CLASSES[0]
