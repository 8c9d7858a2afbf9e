"""The straight line, and curves trained as a whole: Bezier and polygonal chain.

Reference: Garipov et al. 2018, sec. 3 and appendix A.1.

Shapes: B bends (ends included), K sampled points, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from lowloss.data.base import Batch
from lowloss.errors import LowlossError, check_sgd
from lowloss.finder.base import Finder, Phase, l2
from lowloss.finder.path import Bezier, Path, Polyline
from lowloss.landscape.base import Landscape
from lowloss.schedule import Plateau


class Line(Finder):
    """The straight line between the two points; there is nothing to search."""

    def start(self, a_P: Tensor, b_P: Tensor) -> Polyline:
        return Polyline(torch.stack([a_P, b_P]))

    def objective(self, path: Path, landscape: Landscape, batch: Batch | None, seed: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a line has no phases")

    def evaluations_per_step(self, path: Path) -> int:
        return 0

    def status(self, path: Path, profile: object) -> str:
        return "exact"


class TrainedCurve(Finder):
    """Minimises the expected loss over t uniform in [0, 1], loss (3), with the L2 term of the point on the curve.

    The learning rate stays for half of the steps, falls linearly to a hundredth until nine tenths, and stays.

    Args:
        bends: free bends between the ends, on the straight line at first.
        steps: gradient steps.
        lr: learning rate of SGD.
        momentum: of SGD.
        weight_decay: lambda of lambda/2 |theta(t)|²; the bends themselves are not decayed.
        batch_size: samples a minibatch.
        samples: values of t drawn each step, sharing the minibatch (1 in the paper).

    Raises:
        LowlossError: a setting makes no sense, say momentum outside of [0, 1).
    """

    family: Callable[[Tensor], Path]
    schedule = Plateau()

    def __init__(
        self,
        bends: int = 1,
        steps: int = 20000,
        lr: float = 0.015,
        momentum: float = 0.9,
        weight_decay: float = 5e-4,
        batch_size: int = 128,
        samples: int = 1,
    ) -> None:
        if bends < 1 or samples < 1:
            raise LowlossError(f"a curve needs at least one bend and one sample, got {bends} and {samples}")
        check_sgd(momentum, weight_decay, batch_size)
        self.bends, self.momentum, self.weight_decay = bends, momentum, weight_decay
        self.batch_size, self.samples = batch_size, samples
        self.phases = [Phase(steps, lr)]

    def start(self, a_P: Tensor, b_P: Tensor) -> Path:
        t_B = torch.linspace(0, 1, self.bends + 2, dtype=torch.float64)
        return type(self).family(Polyline(torch.stack([a_P, b_P])).points(t_B))

    def objective(self, path: Path, landscape: Landscape, batch: Batch | None, seed: int) -> tuple[Tensor, Tensor]:
        t_K = torch.rand(self.samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        theta_KP = path.points(t_K)
        losses_K = landscape.losses(theta_KP, batch)
        return (losses_K + l2(self.weight_decay, theta_KP)).mean(), losses_K.detach()

    def evaluations_per_step(self, path: Path) -> int:
        return self.samples


class BezierCurve(TrainedCurve):
    """A Bezier curve with trained control points (sec. 3.2.2); one bend gives the quadratic curve.

    Arguments as in TrainedCurve.
    """

    family = Bezier


class PolygonalChain(TrainedCurve):
    """A polygonal chain with trained bends, each segment taking the same share of t (sec. 3.2.1).

    Arguments as in TrainedCurve.
    """

    family = Polyline
