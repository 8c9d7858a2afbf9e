"""The nudged elastic band.

References:
    Draxler et al. 2018, sec. 3.1 and Algorithm 1.
    Henkelman & Jónsson 2000, J. Chem. Phys. 113, 9978 (improved tangent).

Shapes: N pivots (ends included), M = N - 2 inner pivots, S = N - 1 segments, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf

import torch
from torch import Tensor

from lowloss.checking import Count, Few
from lowloss.data.base import Batch
from lowloss.errors import LowlossError, check_sgd, is_number
from lowloss.finder.base import Finder, Phase, l2
from lowloss.landscape.base import Landscape
from lowloss.points.path import Path, Polyline

TANGENTS = ("higher", "improved")


class NEB(Finder):
    """Nudged elastic band: pivots feel the loss force across the path only (Algorithm 1).

    The loss is compared between neighbouring pivots on one shared minibatch, in training mode; weight decay adds
    to the force before its projection and not to the compared losses. Redistribution moves pivots by a small
    fraction of a segment each step; their momentum stays with their index.

    Args:
        pivots: inner pivots of the initial straight band.
        steps: gradient steps.  lr: learning rate of SGD.
        momentum: of SGD.  batch_size: samples a minibatch.
        weight_decay: lambda of lambda/2 |theta|², acting on the pivots.
        spring_constant: stiffness k of eq. (3); None redistributes the pivots before each step instead, without
            a spring force (the string method, the paper's choice).
        spacing: relative target distances of neighbouring pivots, pivots + 1 numbers from the first end on; None
            spaces them equally. Redistribution and springs keep to it.
        tangent: "higher" points to the neighbour of higher loss (sec. 3.1), "improved" weights both segments at
            an extremum (Henkelman & Jónsson, eq. 8 to 11).

    Raises LowlossError if a setting makes no sense, say momentum outside of [0, 1) or a spring that pushes.
    """

    def __init__(
        self,
        pivots: Few = 8,
        steps: Count = 1000,
        lr: float = 0.1,
        momentum: float = 0.9,
        weight_decay: float = 1e-4,
        batch_size: Count = 512,
        spring_constant: float | None = None,
        tangent: str = "higher",
        spacing: Sequence[float] | None = None,
    ) -> None:
        if tangent not in TANGENTS:
            raise LowlossError(f"tangent must be one of {', '.join(TANGENTS)}, got {tangent!r}")
        if pivots < 1:
            raise LowlossError(f"a band needs at least one inner pivot, got pivots={pivots}")
        if spring_constant is not None and not 0 < spring_constant < inf:
            raise LowlossError(f"spring_constant must be null or positive, got {spring_constant}")
        listed = isinstance(spacing, (list, tuple)) and all(is_number(one, float) and 0 < one < inf for one in spacing)
        if spacing is not None and not (listed and len(spacing) == pivots + 1):
            raise LowlossError(
                f"spacing must be null or a list of {pivots + 1} positive numbers, pivots + 1, got {spacing!r}"
            )
        check_sgd(momentum, weight_decay, batch_size)
        self.momentum, self.weight_decay, self.batch_size = momentum, weight_decay, batch_size
        self.spring_constant, self.tangent, self.spacing = spring_constant, tangent, spacing
        self.pivots, self.phases = pivots, [Phase(steps, lr)]

    def start(self, a_P: Tensor, b_P: Tensor) -> Polyline:
        knots_N = torch.linspace(0, 1, self.pivots + 2, dtype=torch.float64)
        if self.spacing is not None:
            arc_N = torch.tensor([0.0, *self.spacing], dtype=torch.float64).cumsum(0)
            knots_N = arc_N / arc_N[-1]
        return Polyline(Polyline(torch.stack([a_P, b_P])).points(knots_N), knots_N)

    def prepare(self, path: Path) -> Path:
        assert isinstance(path, Polyline)
        moves = self.spring_constant is None
        return path.with_bends(redistribute(path.bends_BP, path.knots_B)) if moves else path

    def objective(self, path: Path, landscape: Landscape, batch: Batch | None, seed: int) -> tuple[Tensor, Tensor]:
        inner_MP, ends_2P = path.bends_BP[1:-1], path.bends_BP[[0, -1]].detach()
        losses_M = landscape.losses(inner_MP, batch)
        with torch.no_grad():
            first, last = landscape.losses(ends_2P, batch)
        losses_N = torch.cat([first[None], losses_M.detach(), last[None]])
        return (losses_M + l2(self.weight_decay, inner_MP)).sum(), losses_N

    def evaluations_per_step(self, path: Path) -> int:
        return len(path.bends_BP) - 2

    def nudge(self, path: Path, gradient_MP: Tensor, losses_K: Tensor) -> Tensor:
        assert isinstance(path, Polyline)
        tangent_MP = tangents(path.bends_BP, losses_K, self.tangent)
        # Eq. (2): the force is minus the gradient, and SGD steps along minus what is returned here.
        across_MP = gradient_MP - (gradient_MP * tangent_MP).sum(1, keepdim=True) * tangent_MP
        if self.spring_constant is None:
            return across_MP
        return across_MP - self.spring_constant * stretch(path)[:, None] * tangent_MP


def tangents(pivots_NP: Tensor, losses_N: Tensor, rule: str) -> Tensor:
    """Unit tangents (M, P) at the inner pivots, pointing along the band from its first to its last end.

    "higher": p[i+1] - p[i] where L[i+1] > L[i-1], else p[i] - p[i-1] (Draxler et al. 2018, sec. 3.1).
    "improved": the same on slopes; at an extremum both segments, the one to the higher neighbour weighted by the
    larger loss difference (Henkelman & Jónsson 2000, eq. 10 and 11).
    """
    forward_MP = pivots_NP[2:] - pivots_NP[1:-1]
    backward_MP = pivots_NP[1:-1] - pivots_NP[:-2]
    previous_M, own_M, next_M = losses_N[:-2], losses_N[1:-1], losses_N[2:]
    rises_M = next_M > previous_M
    tangent_MP = torch.where(rises_M[:, None], forward_MP, backward_MP)
    if rule == "improved":
        to_next_M, to_previous_M = (next_M - own_M).abs(), (previous_M - own_M).abs()
        larger_M, smaller_M = torch.maximum(to_next_M, to_previous_M), torch.minimum(to_next_M, to_previous_M)
        forward_weight_M = torch.where(rises_M, larger_M, smaller_M)
        backward_weight_M = torch.where(rises_M, smaller_M, larger_M)
        mixed_MP = forward_weight_M[:, None] * forward_MP + backward_weight_M[:, None] * backward_MP
        extremum_M = (next_M - own_M) * (previous_M - own_M) > 0
        tangent_MP = torch.where(extremum_M[:, None], mixed_MP, tangent_MP)
    return tangent_MP / tangent_MP.norm(dim=1, keepdim=True).clamp_min(torch.finfo(tangent_MP.dtype).tiny)


def redistribute(pivots_NP: Tensor, knots_N: Tensor) -> Tensor:
    """Move the inner pivots along the band so that pivot i lies at the fraction knots_N[i] of its length.

    The ends and the order stay; the new pivots lie on the old segments.
    """
    lengths_S = pivots_NP.diff(dim=0).norm(dim=1).double()
    arc_N = torch.cat([lengths_S.new_zeros(1), lengths_S.cumsum(0)])
    targets_M = knots_N.to(arc_N, non_blocking=True)[1:-1] * arc_N[-1]
    segment_M = torch.searchsorted(arc_N, targets_M, right=True).sub(1).clamp(0, len(lengths_S) - 1)
    width_M = lengths_S[segment_M].clamp_min(torch.finfo(torch.float64).tiny)
    alpha_M1 = ((targets_M - arc_N[segment_M]) / width_M).clamp(0, 1).to(pivots_NP)[:, None]
    inner_MP = torch.lerp(pivots_NP[segment_M], pivots_NP[segment_M + 1], alpha_M1)
    return torch.cat([pivots_NP[:1], inner_MP, pivots_NP[-1:]])


def stretch(path: Polyline) -> Tensor:
    """How much further than its target each inner pivot is from the next one than from the previous one (M,).

    Eq. (3) of Draxler et al. 2018 with target distances: (|p[i+1] - p[i]| - l[i+1]) - (|p[i] - p[i-1]| - l[i]),
    where l are the knots' distances times the band's length.
    """
    lengths_S = path.bends_BP.diff(dim=0).norm(dim=1)
    excess_S = lengths_S - path.knots_B.diff().to(lengths_S) * lengths_S.sum()
    return excess_S[1:] - excess_S[:-1]
