"""Paths: curves in weight space from one point to another, linear in their bends, and how they leave the straight line.

Shapes: K points, B bends (the two ends included), P parameters, S = B - 1 segments, T sampled points, N samples of a
split.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from math import ceil, comb

import torch
from torch import Tensor


class Path(ABC):
    """A curve theta(t), t in [0, 1], with points `coefficients(t_K) @ bends_BP`.

    bends_BP: the control points; the first and the last are the ends of the path.
    """

    kind: str

    def __init__(self, bends_BP: Tensor) -> None:
        if bends_BP.dim() != 2 or len(bends_BP) < 2:
            raise ValueError(f"a path needs a B × P matrix of at least two bends, got {tuple(bends_BP.shape)}")
        self.bends_BP = bends_BP

    @abstractmethod
    def coefficients(self, t_K: Tensor) -> Tensor:
        """The weights (K, B) of the bends at t; each row sums to one, and rows at 0 and 1 pick the ends exactly."""

    def with_bends(self, bends_BP: Tensor) -> Path:
        """The same curve family and parametrisation through other bends."""
        return type(self)(bends_BP)

    @abstractmethod
    def grid(self, points: int, between: int) -> Tensor:
        """Values of t to sample: at least `points`, both ends and every knot, and `between` between two knots."""

    def tensors(self) -> dict[str, Tensor]:
        """What to save; `path_from_tensors` reads it back."""
        return {"bends": self.bends_BP}

    def points(self, t_K: Tensor | Sequence[float] | float) -> Tensor:
        """The points (K, P) at t, a tensor (K,), a list of numbers, or one number."""
        if not isinstance(t_K, Tensor):
            t_K = torch.tensor(t_K, dtype=torch.float64)
        return self.coefficients(t_K.reshape(-1)).to(self.bends_BP, non_blocking=True) @ self.bends_BP

    def lengths(self, t_K: Tensor) -> Tensor:
        """The lengths (K - 1,) of the chords between consecutive t, by the bends' Gram matrix: no K × P points."""
        difference_BP = (self.bends_BP - self.bends_BP[0]).double()
        gram_BB = difference_BP @ difference_BP.T
        step_KB = self.coefficients(t_K.double()).to(gram_BB).diff(dim=0)
        return torch.einsum("kb,bc,kc->k", step_KB, gram_BB, step_KB).clamp_min(0).sqrt()

    def squared_norms(self, t_K: Tensor) -> Tensor:
        """|theta(t)|² (K,), by the bends' Gram matrix."""
        bends_BP = self.bends_BP.double()
        gram_BB = bends_BP @ bends_BP.T
        weights_KB = self.coefficients(t_K.double()).to(gram_BB)
        return torch.einsum("kb,bc,kc->k", weights_KB, gram_BB, weights_KB).clamp_min(0)

    def length_ratio(self) -> float:
        """The curve's length over the distance of its ends."""
        direct = (self.bends_BP[-1] - self.bends_BP[0]).double().norm()
        return float(self.lengths(self.grid(points=1001, between=0)).sum() / direct)


class Polyline(Path):
    """Straight segments through the bends, reached at t = knots_B (0 = knots_B[0] < … < knots_B[-1] = 1).

    climber: the bend that climbs, in a band whose search has come to that.
    """

    kind = "polyline"

    def __init__(self, bends_BP: Tensor, knots_B: Tensor | None = None, climber: int | None = None) -> None:
        super().__init__(bends_BP)
        self.climber = climber
        if knots_B is None:
            knots_B = torch.linspace(0, 1, len(bends_BP), dtype=torch.float64)
        self.knots_B = knots_B.cpu().double()
        ends_exact = self.knots_B[0] == 0 and self.knots_B[-1] == 1
        if len(self.knots_B) != len(bends_BP) or not ends_exact or not (self.knots_B.diff() > 0).all():
            raise ValueError("knots must rise from 0 to 1, one for each bend")

    @classmethod
    def straight(cls, a_P: Tensor, b_P: Tensor, knots_B: Tensor | None = None) -> Polyline:
        """The straight line from a to b, with bends at the knots, of which there are by default the ends alone."""
        line = cls(torch.stack([a_P, b_P]))
        return line if knots_B is None else cls(line.points(knots_B), knots_B)

    def coefficients(self, t_K: Tensor) -> Tensor:
        # Garipov et al. 2018, appendix A.1, with knots in place of i / (n + 1).
        t_K = t_K.cpu().double()
        segment_K = torch.searchsorted(self.knots_B, t_K, right=True).sub(1).clamp(0, len(self.knots_B) - 2)
        left_K, right_K = self.knots_B[segment_K], self.knots_B[segment_K + 1]
        alpha_K = (t_K - left_K) / (right_K - left_K)
        weights_KB = torch.zeros(len(t_K), len(self.knots_B), dtype=torch.float64)
        weights_KB.scatter_(1, segment_K[:, None], 1 - alpha_K[:, None])
        return weights_KB.scatter_(1, segment_K[:, None] + 1, alpha_K[:, None])

    def with_bends(self, bends_BP: Tensor) -> Polyline:
        return Polyline(bends_BP, self.knots_B, self.climber)

    def grid(self, points: int, between: int) -> Tensor:
        intervals = max(between + 1, ceil((points - 1) / (len(self.knots_B) - 1)))
        fraction_I = torch.arange(intervals, dtype=torch.float64) / intervals
        start_S, width_S = self.knots_B[:-1], self.knots_B.diff()
        inner = (start_S[:, None] + width_S[:, None] * fraction_I).flatten()
        return torch.cat([inner, torch.ones(1, dtype=torch.float64)])

    def tensors(self) -> dict[str, Tensor]:
        climbs = {} if self.climber is None else {"climber": torch.tensor(self.climber)}
        return {"bends": self.bends_BP, "knots": self.knots_B, **climbs}


class Bezier(Path):
    """The Bezier curve with the given control points."""

    kind = "bezier"

    def coefficients(self, t_K: Tensor) -> Tensor:
        # Garipov et al. 2018, appendix A.1: sum_i C(n+1, i) t^i (1-t)^(n+1-i) w_i.
        degree = len(self.bends_BP) - 1
        t_K1 = t_K.cpu().double()[:, None]
        i_B = torch.arange(degree + 1)
        binomial_B = torch.tensor([comb(degree, i) for i in range(degree + 1)], dtype=torch.float64)
        return binomial_B * t_K1**i_B * (1 - t_K1) ** (degree - i_B)

    def grid(self, points: int, between: int) -> Tensor:
        return torch.linspace(0, 1, max(points, between + 2), dtype=torch.float64)


def widths(arc_T: Tensor) -> Tensor:
    """The widths (T,) of the intervals between the two neighbours of each sample; an end has one."""
    return torch.cat([arc_T[1:], arc_T[-1:]]) - torch.cat([arc_T[:1], arc_T[:-1]])


def around_top(t_T: Tensor, arc_T: Tensor, loss_T: Tensor, widest: float) -> Tensor:
    """The t at which to sample next, around the path's highest points; none where its maximum is bracketed.

    A maximum lies between the neighbours of a sample that is no lower than they are, and may rise above that sample by
    as much as the sample rises above its lower neighbour. Where that would reach the highest sample, and the neighbours
    are further apart than `widest`, the intervals on both sides are cut into four, for the three highest such samples.

    Args:
        t_T, arc_T, loss_T: the samples, in the order of t: their arc lengths, and their losses.
    """
    if not loss_T.isfinite().all():
        return t_T[:0]
    step_S = loss_T.double().diff()
    zero = step_S.new_zeros(1)
    left_T, right_T = torch.cat([zero, step_S]), torch.cat([-step_S, zero])
    rise_T = torch.maximum(left_T, right_T)
    tops_T = (left_T >= 0) & (right_T >= 0) & (rise_T > 0) & (loss_T + rise_T >= loss_T.max())
    tops = (tops_T & (widths(arc_T) > widest)).nonzero()[:, 0].tolist()
    tops = sorted(tops, key=lambda i: -float(loss_T[i]))[:3]
    cut = {segment for i in tops for segment in (i - 1, i) if 0 <= segment < len(t_T) - 1}
    quarters_3 = torch.tensor([0.25, 0.5, 0.75], dtype=t_T.dtype)
    return torch.cat([t_T[:0], *(torch.lerp(t_T[s], t_T[s + 1], quarters_3) for s in sorted(cut))])


class ThroughOrigin(Path):
    """From a to the origin and on to b, each coordinate with a power of its own of the fraction s that is left.

    Bends are a, its parts of the powers 2 … n (a itself where that is the power, else zero), the origin, b's parts of
    the powers n … 2, and b: theta = s a + sum_j (s^j - s) a_j, with s = 1 - 2t, and likewise for b.
    """

    kind = "through-origin"

    def coefficients(self, t_K: Tensor) -> Tensor:
        half = len(self.bends_BP) // 2
        s_K1 = (1 - 2 * t_K.cpu().double())[:, None]
        j_H = torch.arange(1, half + 1)
        weights_KB = torch.zeros(len(t_K), 2 * half + 1, dtype=torch.float64)
        for s, columns in ((s_K1.clamp_min(0), slice(0, half)), ((-s_K1).clamp_min(0), slice(half + 1, None))):
            powers_KH = s**j_H
            powers_KH[:, 1:] -= powers_KH[:, :1]
            weights_KB[:, columns] = powers_KH if columns.start == 0 else powers_KH.flip(1)
        weights_KB[:, half] = 1 - weights_KB.sum(1)
        return weights_KB

    def grid(self, points: int, between: int) -> Tensor:
        count = max(points, between + 2)
        return torch.linspace(0, 1, count + count % 2, dtype=torch.float64)  # without the origin itself


def path_from_tensors(kind: str, tensors: dict[str, Tensor]) -> Path:
    """The path that `tensors()` of a path of this kind described."""
    if kind == Polyline.kind:
        return Polyline(tensors["bends"], tensors["knots"], int(tensors["climber"]) if "climber" in tensors else None)
    for family in (Bezier, ThroughOrigin):
        if kind == family.kind:
            return family(tensors["bends"])
    raise ValueError(f"unknown kind of path {kind!r}: polyline, bezier or through-origin")


def random_segment(a_P: Tensor, b_P: Tensor, seed: int) -> Polyline:
    """The segment from a in a random direction, drawn from a normal distribution, as long as that from a to b (Garipov
    et al. 2018, fig. 4)."""
    drawn_P = torch.randn(len(a_P), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    length = torch.linalg.vector_norm((b_P - a_P).double().cpu())
    step_P = drawn_P * (length / torch.linalg.vector_norm(drawn_P))
    return Polyline.straight(a_P, a_P + step_P.to(a_P))


STRAIGHT = 1e-5
"""A path is straight if it leaves the line by at most this fraction of the distance of its ends."""


def deviation_cosines(path: Path, t_T: Tensor) -> Tensor | None:
    """The cosines (T, T) between the deviations of points from the straight line; None for a straight path.

    The deviation is the part of theta(t) - a across b - a, where a and b are the ends: of a point of a tunnel the way
    from its place on the line (Fort & Jastrzebski 2019, fig. 3). A point on the line, such as an end, has no direction,
    and cosines of zero.
    """
    offset_BP = (path.bends_BP - path.bends_BP[0]).double()
    line_P = offset_BP[-1] / offset_BP[-1].norm()
    across_BP = offset_BP - (offset_BP @ line_P)[:, None] * line_P
    coefficients_TB = path.coefficients(t_T).to(across_BP)
    gram_TT = coefficients_TB @ (across_BP @ across_BP.T) @ coefficients_TB.T
    norm_T = gram_TT.diagonal().clamp_min(0).sqrt()
    moved_T = norm_T > STRAIGHT * float(offset_BP[-1].norm())
    if not moved_T.any():
        return None
    unit_T = torch.where(moved_T, 1 / norm_T.where(moved_T, 1.0), 0.0)
    return (unit_T[:, None] * gram_TT * unit_T).clamp(-1, 1)


def halves(cosines_TT: Tensor, arc_T: Tensor) -> tuple[float, float]:
    """The mean cosine between two points in one half of a path's length, and between points in different halves.

    The mean is over the length, since samples lie closer in some places. Points without a direction, and the one in the
    middle, do not count; NaN where no two points are left.
    """
    moved_T = (cosines_TT.diagonal() > 0) & (arc_T != 0.5)
    second_T, width_T = arc_T[moved_T] > 0.5, widths(arc_T)[moved_T]
    same = second_T[:, None] == second_T
    within = same & ~torch.eye(len(second_T), dtype=torch.bool)
    cosines, weights = cosines_TT[moved_T][:, moved_T], width_T[:, None] * width_T
    own, other = ((cosines * weights)[pairs].sum() / weights[pairs].sum() for pairs in (within, ~same))
    return float(own), float(other)


def changed_labels(labels_TN: Tensor) -> tuple[Tensor, Tensor]:
    """The share of samples (T,) whose predicted label differs from that at the first point, and at the last one."""
    first_T, last_T = ((labels_TN != labels_TN[end]).double().mean(1) for end in (0, -1))
    return first_T, last_T
