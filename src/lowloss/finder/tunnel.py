"""Tunnels: points of the straight line between two minima, each optimised across the line.

Reference: Fort & Jastrzebski 2019, sec. 4.2.

Shapes: B bends (ends included), M = B - 2 inner points, P parameters.
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from lowloss.checking import Count, Few, described
from lowloss.data.base import Batch
from lowloss.errors import check_sgd
from lowloss.finder.base import Finder, Phase, l2
from lowloss.landscape.base import Landscape
from lowloss.points.path import Path, Polyline
from lowloss.schedule import Plateau


@described
@dataclass(eq=False)
class Tunnel(Finder):
    """A low-loss connector: each point descends in the hyperplane normal to the line, from its place on the line.

    The points are independent but for the minibatch, which they share; straight segments connect them. The paper names
    neither their number nor the steps. The learning rate stays for half of the steps, falls linearly to a hundredth
    until nine tenths, and stays.

    Args:
        pivots: inner points, equally spaced on the line.
        steps: gradient steps.  lr: learning rate of SGD.
        momentum: of SGD.  batch_size: samples a minibatch.
        weight_decay: lambda of lambda/2 |theta|², acting on the points.

    Raises LowlossError if a setting makes no sense, say momentum outside of [0, 1).
    """

    pivots: Few = 15
    steps: Count = 2000
    lr: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 0.0
    batch_size: Count = 512

    schedule = Plateau()

    def __post_init__(self) -> None:
        check_sgd(self.momentum, self.weight_decay, self.batch_size)
        self.phases = [Phase(self.steps, self.lr)]

    def start(self, a_P: Tensor, b_P: Tensor) -> Polyline:
        knots_B = torch.linspace(0, 1, self.pivots + 2, dtype=torch.float64)
        return Polyline.straight(a_P, b_P, knots_B)

    def prepare(self, path: Path) -> Path:
        """Put what rounding has moved along the line back into the hyperplanes."""
        line = self.start(*path.bends_BP[[0, -1]])
        inner_MP = line.bends_BP[1:-1] + across(path.bends_BP[1:-1] - line.bends_BP[1:-1], path)
        return path.with_bends(torch.cat([path.bends_BP[:1], inner_MP, path.bends_BP[-1:]]))

    def objective(self, path: Path, landscape: Landscape, batch: Batch | None, seed: int) -> tuple[Tensor, Tensor]:
        inner_MP = path.bends_BP[1:-1]
        losses_M = landscape.losses(inner_MP, batch)
        return (losses_M + l2(self.weight_decay, inner_MP)).sum(), losses_M.detach()

    def nudge(self, path: Path, gradient_MP: Tensor, losses_K: Tensor) -> Tensor:
        return across(gradient_MP, path)


def across(v_KP: Tensor, path: Path) -> Tensor:
    """The part of vectors (K, P) normal to the straight line between the ends of a path."""
    line_P = path.bends_BP[-1] - path.bends_BP[0]
    unit_P = (line_P / line_P.norm()).detach()
    return v_KP - (v_KP @ unit_P)[:, None] * unit_P
