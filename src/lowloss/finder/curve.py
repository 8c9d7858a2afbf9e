"""The straight line, curves trained as a whole (Bezier and polygonal chain), and the trivial curve.

Reference: Garipov et al. 2018, sec. 3 and appendices A.1 and A.6.

Shapes: B bends (ends included), K sampled points, S = B - 1 segments, P parameters, L parameter tensors.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from lowloss.checking import Count, Few, described
from lowloss.data.base import Batch
from lowloss.errors import LowlossError, check_sgd
from lowloss.finder.base import Finder, Phase, l2
from lowloss.landscape.base import Landscape
from lowloss.landscape.layout import Layout
from lowloss.points.path import Bezier, Path, Polyline, ThroughOrigin
from lowloss.schedule import Plateau

AT = 0.8
"""Where on the trivial curve the scaling of the outputs is tried out."""


class Line(Finder):
    """The straight line between the two points; there is nothing to search."""

    def start(self, a_P: Tensor, b_P: Tensor) -> Polyline:
        return Polyline.straight(a_P, b_P)

    def objective(self, path: Path, landscape: Landscape, batch: Batch | None, seed: int) -> tuple[Tensor, Tensor]:
        raise NotImplementedError("a line has no phases")

    def status(self, quality: object) -> str:
        return "exact"


@described
@dataclass(eq=False)
class TrainedCurve(Finder):
    """Minimises the expected loss over t uniform in [0, 1], loss (3), with the L2 term of the point on the curve.

    The learning rate stays for half of the steps, falls linearly to a hundredth until nine tenths, and stays.

    Args:
        bends: free bends between the ends, on the straight line at first.
        steps: gradient steps.  lr: learning rate of SGD.
        momentum: of SGD.  batch_size: samples a minibatch.
        weight_decay: lambda of lambda/2 |theta(t)|²; the bends themselves are not decayed.
        samples: values of t drawn each step, sharing the minibatch (1 in the paper).

    Raises LowlossError if a setting makes no sense, say momentum outside of [0, 1).
    """

    bends: Few = 1
    steps: Count = 20000
    lr: float = 0.015
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: Count = 128
    samples: Few = 1

    family: ClassVar[type[Path]]
    schedule = Plateau()

    def __post_init__(self) -> None:
        if self.bends < 1 or self.samples < 1:
            raise LowlossError(f"a curve needs at least one bend and one sample, got {self.bends} and {self.samples}")
        check_sgd(self.momentum, self.weight_decay, self.batch_size)
        self.phases = [Phase(self.steps, self.lr)]

    def start(self, a_P: Tensor, b_P: Tensor) -> Path:
        t_B = torch.linspace(0, 1, self.bends + 2, dtype=torch.float64)
        return type(self).family(Polyline.straight(a_P, b_P).points(t_B))

    def objective(self, path: Path, landscape: Landscape, batch: Batch | None, seed: int) -> tuple[Tensor, Tensor]:
        t_K = torch.rand(self.samples, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
        theta_KP = path.points(t_K)
        losses_K = landscape.losses(theta_KP, batch)
        return self.expectation(path, t_K, losses_K + l2(self.weight_decay, theta_KP)), losses_K.detach()

    def expectation(self, path: Path, t_K: Tensor, values_K: Tensor) -> Tensor:
        """The expectation that is minimised, from values at t_K that were drawn uniformly."""
        return values_K.mean()

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


class Trivial(Line):
    """The trivial curve between two ReLU networks, which exploits the redundancy of their parameters (appendix A.6).

    W_i s and b_i s^i of layer i, from either network to the origin: the outputs of n layers scale by s^n.

    So the predicted classes stay, while the loss rises to that of an untrained network. For networks of weights and
    biases with ReLU, in the order of their layers, without BatchNorm.

    Raises LowlossError for other networks.
    """

    def check(self, landscape: Landscape) -> None:
        theta_P = landscape.initial(0)
        self.begin(landscape, theta_P, theta_P)

    def begin(self, landscape: Landscape, a_P: Tensor, b_P: Tensor) -> Path:
        layout = getattr(landscape, "layout", None)
        if not isinstance(layout, Layout):
            raise LowlossError("finder=trivial needs a network: choose another finder")
        power_P = powers(layout).to(a_P.device)
        high = int(power_P.max())
        parts = [[torch.where(power_P == j, end_P, 0) for j in range(2, high + 1)] for end_P in (a_P, b_P)]
        path = ThroughOrigin(torch.stack([a_P, *parts[0], torch.zeros_like(a_P), *reversed(parts[1]), b_P]))
        # Tanh or a shortcut would have the same parameters.
        scaled, whole = (
            next(iter(landscape.outputs(theta_P, "train")))[0].double()
            for theta_P in (path.points(torch.tensor([(1 - AT) / 2]))[0], a_P)
        )
        if not torch.allclose(scaled, whole * AT**high, rtol=1e-3, atol=1e-3 * float(whole.abs().max()) * AT**high):
            raise LowlossError(
                "finder=trivial needs ReLU networks whose layers follow one another: choose another finder"
            )
        return path


def powers(layout: Layout) -> Tensor:
    """The power of s of each parameter (P,): one for weights, i for the bias of layer i.

    Raises LowlossError if the parameters are not weights and biases of layers that follow one another.
    """
    parts, layer, units = list[Tensor](), 0, -1
    for name, shape, size in zip(layout.names, layout.shapes, layout.sizes, strict=True):
        if len(shape) > 1:
            layer, units = layer + 1, shape[0]
        elif not name.endswith("bias") or shape[0] != units:
            raise LowlossError(f"finder=trivial needs layers of weights and biases alone, and there is {name}")
        parts.append(torch.full((size,), 1 if len(shape) > 1 else layer))
    return torch.cat(parts)
