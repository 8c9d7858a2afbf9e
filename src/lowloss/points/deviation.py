"""How a path leaves the straight line between its ends.

Reference: Fort & Jastrzebski 2019, fig. 3.

Shapes: T sampled points, B bends, N samples of a split.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowloss.points.path import Path

STRAIGHT = 1e-5
"""A path is straight if it leaves the line by at most this fraction of the distance of its ends."""


def deviation_cosines(path: Path, t_T: Tensor) -> Tensor | None:
    """The cosines (T, T) between the deviations of points from the straight line; None for a straight path.

    The deviation is the part of theta(t) - a across b - a, where a and b are the ends: of a point of a tunnel the way
    from its place on the line. A point on the line, such as an end, has no direction, and cosines of zero.
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

    Points without a direction, and the one in the middle, do not count; NaN where no two points are left.
    """
    moved_T = (cosines_TT.diagonal() > 0) & (arc_T != 0.5)
    second_T = arc_T[moved_T] > 0.5
    cosines = cosines_TT[moved_T][:, moved_T]
    same = second_T[:, None] == second_T
    within = same & ~torch.eye(len(second_T), dtype=torch.bool)
    return float(cosines[within].mean()), float(cosines[~same].mean())


def changed_labels(labels_TN: Tensor) -> tuple[Tensor, Tensor]:
    """The share of samples (T,) whose predicted label differs from that at the first point, and at the last one."""
    first_T, last_T = ((labels_TN != labels_TN[end]).double().mean(1) for end in (0, -1))
    return first_T, last_T
