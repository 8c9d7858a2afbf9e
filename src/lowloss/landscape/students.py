"""Networks of one module on the same samples, a row each, whose targets differ: all their losses in one computation.

Shapes: R rows, P parameters, N samples.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.func import functional_call, vmap
from torch.nn.functional import linear
from torch.overrides import TorchFunctionMode

from lowloss.data.base import Batch
from lowloss.data.task import Regression
from lowloss.errors import reason
from lowloss.landscape.base import Columns, Held, Losses
from lowloss.landscape.network import SAMPLE, NetworkLandscape
from lowloss.landscape.wrappers import Wrapper

AT_ONCE = 16
"""Rows of one computation, whose activations are in memory together."""

AGREEMENT = 1e-6
"""Relative difference from the plain loop's losses and gradients up to which one computation is trusted."""

log = logging.getLogger("lowloss")


class Students(Wrapper):
    """Row r is a network of the r-th landscape. They have one module and the same inputs, but targets of their own.

    A module whose samples meet, or that `torch.func.vmap` does not run, or not at so many points as the memory holds,
    runs one row after the other.
    """

    def __init__(self, rows: Sequence[NetworkLandscape]) -> None:
        super().__init__(rows[0])
        self.rows, self.first = list(rows), rows[0]
        self._one_by_one = self.couples_samples or not self._agrees()

    def whole(self) -> Batch:
        """The train split: the inputs (R, N, ...), which all rows share, and each row's targets (R, N, ...)."""
        x, y_RN = self.first.data.x_train[:], torch.stack([row.data.y_train for row in self.rows])
        return Batch(x.expand(len(self.rows), *x.shape), y_RN, (0,), shared=False)

    def losses(self, theta_RP: Tensor, batch: Batch | None) -> Tensor:
        """The losses (R,) on samples of `whole`."""
        assert batch is not None
        scales = [row.task.scale if isinstance(row.task, Regression) else 1.0 for row in self.rows]
        scale_R = torch.tensor(scales, dtype=torch.float64)
        losses_R: Tensor = Losses.apply(theta_RP.to(batch.y.device), self._gradients, batch)
        return losses_R * (scale_R[0] / scale_R).to(losses_R)

    def product(self, theta_RP: Tensor, v_RP: Tensor, data: Batch | str | None, statistics: Held = "held") -> Tensor:
        rows = zip(self.rows, theta_RP[:, None], v_RP[:, None], strict=True)
        return torch.cat([row.product(theta_1P, v_1P, data, statistics) for row, theta_1P, v_1P in rows])

    def evaluate(self, theta_RP: Tensor, split: str = "train", details: bool = False) -> Columns:
        rows = zip(self.rows, theta_RP[:, None], strict=True)
        found = [row.evaluate(theta_1P, split, details) for row, theta_1P in rows]
        return {name: torch.cat([columns[name] for columns in found]) for name in found[0]}

    def to(self, device: torch.device) -> Students:
        for row in self.rows:
            row.to(device)
        return self

    def _gradients(self, theta_RP: Tensor, batch: Batch, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """The losses, by the first row's scale, and their gradients if asked for."""
        try:
            if not self._one_by_one:
                rows = zip(theta_RP.split(AT_ONCE), batch.y.split(AT_ONCE), strict=True)
                losses, slopes = zip(*(self._at_once(some, batch.x[0], y, gradients) for some, y in rows), strict=True)
                return torch.cat(losses), torch.cat(slopes) if gradients else None
        except torch.OutOfMemoryError:
            self._one_by_one = True
            log.warning("the %d students run one after the other, since the memory does not hold all", len(theta_RP))
            torch.cuda.empty_cache()
        return self.first.loop.losses(theta_RP, batch, gradients)

    def _at_once(self, theta_RP: Tensor, x: Tensor, y_RN: Tensor, gradients: bool) -> tuple[Tensor, Tensor]:
        def loss(theta_P: Tensor, y_N: Tensor) -> Tensor:
            outputs = functional_call(self.first.loop.module, self.first.layout.views(theta_P), (x,))
            return self.task.mean_loss(outputs, y_N)

        with torch.set_grad_enabled(gradients), _WeightsFirst():
            theta_RP = theta_RP.detach().requires_grad_(gradients)
            losses_R = vmap(loss)(theta_RP, y_RN)
            slopes_RP = torch.autograd.grad(losses_R.sum(), theta_RP)[0] if gradients else theta_RP
        return losses_R.detach(), slopes_RP

    def _agrees(self) -> bool:
        """Whether the module runs at several points at once, and gives what the plain loop does."""
        loop, whole = self.first.loop, self.whole()
        theta_P = self.first.point(loop.module)
        theta_2P = torch.stack([theta_P, theta_P + 0.1 * torch.linspace(-1, 1, self.dim).to(theta_P)])
        x, y = whole.x[0, :SAMPLE], whole.y[0, :SAMPLE]
        try:
            loop.train()
            found = self._at_once(theta_2P, x, y.expand(2, *y.shape), True)
            for ours, exact in zip(found, loop.losses(theta_2P, Batch(x, y, (0,)), True), strict=True):
                assert exact is not None
                if not (ours - exact).norm() <= AGREEMENT * exact.norm():
                    raise ValueError("it gives other gradients there")
        except Exception as error:  # whatever a module does to points that it was not written for
            name = type(loop.module).__name__
            log.warning("%s runs one student after the other, not all at once: %s", name, reason(error))
            return False
        return True


class _WeightsFirst(TorchFunctionMode):
    """While linear layers are W @ x^T: of one x and the weights of many rows, side by side, that is one product."""

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        if func is not linear or args[0].dim() != 2:
            return func(*args, **(kwargs or {}))
        x, weight, bias = (*args, *(kwargs or {}).values(), None)[:3]
        # A view of the points would be multiplied a row at a time.
        out = (weight.clone() @ x.mT).mT
        return out if bias is None else out + bias
