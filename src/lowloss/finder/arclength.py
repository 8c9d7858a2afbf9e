"""A polygonal chain whose loss is averaged over its length.

Reference: Garipov et al. 2018, sec. 3.1, loss (1).

Shapes: K sampled points, B bends (ends included), S = B - 1 segments.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowloss.finder.curve import PolygonalChain
from lowloss.points.path import Path


class ArcLengthChain(PolygonalChain):
    """Minimises the expected loss over a point uniform on the chain, loss (1), in place of t uniform in [0, 1].

    Each sample is weighted by the density q(t) = S l_s / sum l of its segment s, of length l_s. q is differentiated
    too, so that the gradient is that of loss (1): a segment on which the loss is high is shortened as well. Arguments
    as in TrainedCurve.
    """

    def expectation(self, path: Path, t_K: Tensor, values_K: Tensor) -> Tensor:
        length_S = torch.linalg.vector_norm(path.bends_BP.diff(dim=0), dim=1)
        segment_K = (t_K * len(length_S)).long().clamp_max(len(length_S) - 1).to(length_S.device)
        return (values_K * length_S[segment_K]).mean() * len(length_S) / length_S.sum()
