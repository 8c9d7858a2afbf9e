"""SGD whose rows are clipped, each by itself.

Shapes: R rows, Q coordinates.
"""

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from lowloss.checking import Positive


class ClippedSGD(torch.optim.SGD):
    """SGD of which the gradient of each row (Q,) of a matrix (R, Q) is no longer than a bound.

    Args:
        max_norm: the bound of the gradient's Euclidean norm.
        lr, momentum, weight_decay: as in torch.optim.SGD; the decay is added to the clipped gradient.
    """

    def __init__(
        self,
        params: Iterable[Tensor],
        lr: Positive = 1.0,
        max_norm: Positive = 0.25,
        momentum: float = 0.0,
        weight_decay: float = 0.0,
    ) -> None:
        super().__init__(params, lr=lr, momentum=momentum, weight_decay=weight_decay)
        self.max_norm = max_norm

    def step(self, closure: Any = None) -> Any:
        loss = None
        if closure is not None:  # Lightning's computes the gradients
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                for x_RQ in (one for one in group["params"] if one.grad is not None):
                    rows = x_RQ.grad if x_RQ.dim() > 1 else x_RQ.grad[None]
                    norm_R1 = torch.linalg.vector_norm(rows, dim=1, keepdim=True)
                    rows.mul_((self.max_norm / norm_R1).clamp_max(1))
        super().step()
        return loss
