"""The nudged elastic band.

References:
    Draxler et al. 2018, sec. 3.1 and Algorithm 1.
    Henkelman & Jónsson 2000, J. Chem. Phys. 113, 9978 (improved tangent).
    Henkelman, Uberuaga & Jónsson 2000, J. Chem. Phys. 113, 9901 (climbing image).

Shapes: N pivots (ends included), M = N - 2 inner pivots, S = N - 1 segments, P parameters, E evaluations between two
pivots.
"""

from collections.abc import Mapping, Sequence
from math import inf

import torch
from torch import Tensor

from lowloss.checking import Count, Few, described
from lowloss.data.base import Batch
from lowloss.errors import LowlossError, check_sgd, is_number
from lowloss.finder.base import Finder, Gradient, Phase, Profile, l2
from lowloss.landscape.base import Landscape
from lowloss.points.path import Path, Polyline

TANGENTS = ("higher", "improved")
TINY = torch.finfo(torch.float64).tiny


@described
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
        climb: in the last quarter of the steps the highest pivot goes up along the band, to the saddle itself: it feels
            -F + 2 (F across) instead of (F across), and neither redistribution nor springs (Henkelman et al., eq. 5).

    Whether a band has converged tells `status`.

    Raises LowlossError if a setting makes no sense, say momentum outside of [0, 1) or a spring that pushes.
    """

    evaluations: int = 9
    threshold: float = 0.2
    relaxed: float = 0.05

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
        climb: bool = False,
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
        if climb and steps < 4:
            raise LowlossError(f"climb takes the last quarter of the steps: take at least 4 steps, got {steps}")
        last = [Phase(steps // 4, lr, climb=True)] if climb else []
        self.pivots, self.phases = pivots, [Phase(steps - sum(phase.steps for phase in last), lr), *last]

    def start(self, a_P: Tensor, b_P: Tensor) -> Polyline:
        knots_N = torch.linspace(0, 1, self.pivots + 2, dtype=torch.float64)
        if self.spacing is not None:
            arc_N = torch.tensor([0.0, *self.spacing], dtype=torch.float64).cumsum(0)
            knots_N = arc_N / arc_N[-1]
        return Polyline.straight(a_P, b_P, knots_N)

    def prepare(self, path: Path) -> Path:
        assert isinstance(path, Polyline)
        moves = self.spring_constant is None
        return path.with_bends(redistribute(path.bends_BP, path.knots_B, path.climber)) if moves else path

    def objective(self, path: Path, landscape: Landscape, batch: Batch | None, seed: int) -> tuple[Tensor, Tensor]:
        inner_MP, ends_2P = path.bends_BP[1:-1], path.bends_BP[[0, -1]].detach()
        losses_M = landscape.losses(inner_MP, batch)
        with torch.no_grad():
            first, last = landscape.losses(ends_2P, batch)
        losses_N = torch.cat([first[None], losses_M.detach(), last[None]])
        return (losses_M + l2(self.weight_decay, inner_MP)).sum(), losses_N

    def nudge(self, path: Path, gradient_MP: Tensor, losses_K: Tensor) -> Tensor:
        assert isinstance(path, Polyline)
        tangent_MP = tangents(path.bends_BP, losses_K, self.tangent)
        # Eq. (2): the force is minus the gradient, and SGD steps along minus what is returned here.
        nudged_MP = _across(path, gradient_MP, tangent_MP)
        if self.spring_constant is None:
            return nudged_MP
        stretch_M = stretch(path)
        if path.climber is not None:
            stretch_M[path.climber - 1] = 0
        return nudged_MP - self.spring_constant * stretch_M[:, None] * tangent_MP

    def refine(self, path: Path, profile: Profile, phase: Phase) -> Path:
        assert isinstance(path, Polyline)
        return self._climbing(path, path, profile) if phase.climb else path

    def _climbing(self, path: Polyline, sampled: Polyline, profile: Profile) -> Polyline:
        """The path whose highest pivot, at one of the sampled places, climbs; none does where an end is as high."""
        t_T = sampled.grid(points=0, between=self.evaluations)
        nearest_N = (path.knots_B[:, None] - t_T).abs().argmin(1)
        top = int(profile(sampled, t_T)[nearest_N].argmax())
        return Polyline(path.bends_BP, path.knots_B, top if 0 < top < len(nearest_N) - 1 else None)

    def status(self, quality: Mapping[str, float]) -> str:
        """Whether the band is sampled well enough, and feels no force.

        "undersampled": a rise between two pivots is above `threshold` (NEB: a fifth) of the range of their losses, see
        `rises`. Else "unrelaxed": the force left is above a twentieth (`relaxed`), as of a band that hardly moved, or
        one that cuts across a slope between the pivots beside the saddle. Else "converged", which says nothing of
        other bands: one may be lower.
        """
        if quality["residuum"] > self.threshold:
            return "undersampled"
        return "unrelaxed" if quality["force_left"] > self.relaxed else "converged"

    def quality(self, path: Path, profile: Profile, gradient: Gradient) -> dict[str, float]:
        """How well the band has converged.

        residuum: the largest rise between two pivots over the range of the pivots' losses, see `rises`.
        force, force_at_top: the norm of the gradient (with weight decay) across the band, the mean over the inner
        pivots (of one that climbs, of its whole gradient), and at the highest sample between the ends.
        force_left: the larger of the two, over the largest norm of the gradient on the band that the search began with.
        spacing_spread: the standard deviation of the segments' lengths, relative to their targets.
        """
        assert isinstance(path, Polyline)
        gradient_MP, losses_N = gradient(path)
        tangent_MP = tangents(path.bends_BP, losses_N, self.tangent)
        force_M = _across(path, gradient_MP, tangent_MP).double().norm(dim=1)
        length_S = path.bends_BP.diff(dim=0).double().norm(dim=1).cpu() / path.knots_B.diff()
        t_T = path.grid(points=0, between=self.evaluations)
        top = 1 + int(profile(path, t_T)[1:-1].argmax())
        before_P, top_P, after_P = path.points(t_T[top - 1 : top + 2])
        a_P, b_P = path.bends_BP[0], path.bends_BP[-1]
        seen_BP = torch.cat([a_P[None], top_P[None], self.start(a_P, b_P).bends_BP[1:]])
        top_1P, began_IP = gradient(Polyline(seen_BP))[0].double().split([1, len(seen_BP) - 3])
        chord_P = (after_P - before_P).double()
        chord_P = chord_P / chord_P.norm().clamp_min(TINY)
        force, at_top = float(force_M.mean()), float((top_1P[0] - (top_1P[0] @ chord_P) * chord_P).norm())
        highest_S, _, scale = rises(*self._profile(path, profile))
        return {
            "residuum": float(highest_S.max().clamp_min(0)) / max(float(scale), TINY),
            "force": force,
            "force_at_top": at_top,
            "force_left": max(force, at_top) / max(float(began_IP.norm(dim=1).max()), TINY),
            "spacing_spread": float(length_S.std(correction=0) / length_S.mean()),
        }

    def _profile(self, path: Path, profile: Profile) -> tuple[Tensor, Tensor]:
        """The losses at the pivots (N,), and between them (S, E)."""
        losses_T = profile(path, path.grid(points=0, between=self.evaluations)).double().cpu()
        losses_SE = losses_T[:-1].view(-1, self.evaluations + 1)
        return torch.cat([losses_SE[:, 0], losses_T[-1:]]), losses_SE[:, 1:]


def _across(path: Polyline, gradient_MP: Tensor, tangent_MP: Tensor) -> Tensor:
    """The gradient across the band; at the pivot that climbs the whole one, its part along the band reversed."""
    along_MP = (gradient_MP * tangent_MP).sum(1, keepdim=True) * tangent_MP
    if path.climber is not None:
        along_MP[path.climber - 1] *= 2
    return gradient_MP - along_MP


def rises(pivot_losses_N: Tensor, between_SE: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """How far the loss rises between two pivots above their linear interpolation (S,), at which alpha (S,), and the
    range of the pivots' losses, by which Draxler et al. 2018 normalise the rises (eq. 4).

    Args:
        between_SE: losses at alpha = 1/(E+1), …, E/(E+1) of each segment.
    """
    samples = between_SE.shape[1]
    alpha_E = torch.arange(1, samples + 1, dtype=pivot_losses_N.dtype) / (samples + 1)
    guess_SE = torch.lerp(pivot_losses_N[:-1, None], pivot_losses_N[1:, None], alpha_E)
    highest_S, where_S = (between_SE - guess_SE).max(dim=1)
    return highest_S, alpha_E[where_S], pivot_losses_N.max() - pivot_losses_N.min()


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


def redistribute(pivots_NP: Tensor, knots_N: Tensor, fixed: int | None = None) -> Tensor:
    """Move the inner pivots along the band so that pivot i lies at the fraction knots_N[i] of its length.

    The ends and the order stay; the new pivots lie on the old segments. Where one is fixed, each side of it is a band
    of its own.
    """
    if fixed is not None:
        before = redistribute(pivots_NP[: fixed + 1], knots_N[: fixed + 1])
        return torch.cat([before, redistribute(pivots_NP[fixed:], knots_N[fixed:])[1:]])
    knots_N = (knots_N - knots_N[0]) / (knots_N[-1] - knots_N[0])
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
