"""The trivial curve between two ReLU networks, which exploits the redundancy of their parameters.

Reference: Garipov et al. 2018, appendix A.6.

Shapes: P parameters, L parameter tensors.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowloss.errors import LowlossError
from lowloss.finder.curve import Line
from lowloss.landscape.base import Landscape
from lowloss.landscape.layout import Layout
from lowloss.points.path import Path, ThroughOrigin

AT = 0.8
"""Where the scaling of the outputs is tried out."""


class Trivial(Line):
    """W_i s and b_i s^i of layer i, from either network to the origin: the outputs of n layers scale by s^n.

    So the predicted classes stay, while the loss rises to that of an untrained network. For networks of weights and
    biases with ReLU, in the order of their layers, without BatchNorm.

    Raises LowlossError for other networks.
    """

    def begin(self, landscape: Landscape, a_P: Tensor, b_P: Tensor) -> Path:
        power_P = powers(_layout(landscape)).to(a_P.device)
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


def _layout(landscape: Landscape) -> Layout:
    layout = getattr(landscape, "layout", None)
    if not isinstance(layout, Layout):
        raise LowlossError("finder=trivial needs a network: choose another finder")
    return layout
