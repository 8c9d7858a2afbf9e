"""Landscapes that wrap landscapes: with an L2 term, or in other coordinates.

Wrap in the order `Charted(Regularised(base, weight_decay), chart)`: the term acts on the parameters theta.

Shapes: K points, P parameters, Q coordinates.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from math import inf
from typing import Annotated, TypeVar

import torch
from annotated_types import Ge
from torch import Tensor

from lowloss.checking import Count, Index
from lowloss.data.base import Batch
from lowloss.errors import LowlossError, is_number
from lowloss.landscape.base import BatchSource, Columns, Held, Landscape
from lowloss.landscape.chart import Chart, Span

Self = TypeVar("Self", bound="Wrapper")


class Wrapper:
    """The traits of another landscape, its base; a subclass changes what differs."""

    def __init__(self, base: Landscape) -> None:
        self.base, self.dim, self.splits, self.task = base, base.dim, base.splits, base.task
        self.couples_samples = base.couples_samples

    def outputs(self, theta_P: Tensor, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        return self.base.outputs(theta_P, split)

    def keeping(self) -> AbstractContextManager[Callable[[], int]]:
        return self.base.keeping()

    def subset(self, split: str, samples: int, seed: int) -> Batch | None:
        return self.base.subset(split, samples, seed)

    def batches(self, size: int | None, seeds: Sequence[int], shared: bool) -> BatchSource:
        return self.base.batches(size, seeds, shared)

    def initial(self, seed: int) -> Tensor:
        return self.base.initial(seed)

    def to(self: Self, device: torch.device) -> Self:
        self.base.to(device)
        return self


class Regularised(Wrapper):
    """L(theta) + weight_decay / 2 |theta|², in what is descended and in what is reported.

    `evaluate` has the sum as `loss`, and the base's loss as `loss_without_l2`.

    Raises LowlossError: weight_decay is negative or infinite, or the base is in other coordinates.
    """

    def __init__(self, base: Landscape, weight_decay: float) -> None:
        if not is_number(weight_decay, float) or not 0 <= weight_decay < inf:
            raise LowlossError(f"weight_decay must be at least 0 and finite, got {weight_decay!r}")
        if isinstance(base, Charted):
            raise LowlossError("weight_decay would act on coordinates: wrap as Charted(Regularised(base), chart)")
        super().__init__(base)
        self.weight_decay, self.task, units = weight_decay, copy.copy(base.task), base.task.units
        vars(self.task)["units"] = dict.fromkeys(("loss", "loss_without_l2"), units["loss"]) | dict(units)

    def losses(self, theta_KP: Tensor, batch: Batch | None) -> Tensor:
        return self.base.losses(theta_KP, batch) + self._l2(theta_KP)

    def product(self, theta_KP: Tensor, v_KP: Tensor, data: Batch | str | None, statistics: Held = "held") -> Tensor:
        return self.base.product(theta_KP, v_KP, data, statistics) + self.weight_decay * v_KP

    @torch.no_grad()
    def evaluate(self, theta_KP: Tensor, split: str = "train", details: bool = False) -> Columns:
        columns = self.base.evaluate(theta_KP, split, details)
        total_K = columns["loss"] + self._l2(theta_KP.double()).cpu()
        losses = {"loss": total_K, "loss_without_l2": columns["loss"]}
        return losses | columns | losses

    def _l2(self, theta_KP: Tensor) -> Tensor:
        return 0.5 * self.weight_decay * theta_KP.square().sum(1)


class Charted(Wrapper):
    """The landscape in a chart's coordinates: L(points(z)), where L is the base's, of the parameters."""

    def __init__(self, base: Landscape, chart: Chart) -> None:
        super().__init__(base)
        self.chart, self.dim = chart, chart.dim

    def losses(self, z_KQ: Tensor, batch: Batch | None) -> Tensor:
        return self.base.losses(self.chart.points(z_KQ), batch)

    def product(self, z_KQ: Tensor, v_KQ: Tensor, data: Batch | str | None, statistics: Held = "held") -> Tensor:
        """J^T H J v (K, Q), where J is the chart's Jacobian.

        Raises LowlossError: the chart is not affine, so the Hessian has a term with its second derivative too.
        """
        if not self.chart.affine:
            name = type(self.chart).__name__
            raise LowlossError(f"{name} is not affine, so it has no product: take its base's at chart.points(z)")
        with torch.enable_grad():
            z_KQ = z_KQ.detach().requires_grad_()
            theta_KP = self.chart.points(z_KQ)
            # J v is the derivative of J^T u in u.
            u_KP = torch.zeros_like(theta_KP, requires_grad=True)
            (pulled_KQ,) = torch.autograd.grad(theta_KP, z_KQ, u_KP, create_graph=True)
            (pushed_KP,) = torch.autograd.grad(pulled_KQ, u_KP, v_KQ, retain_graph=True)
        product_KP = self.base.product(theta_KP.detach(), pushed_KP, data, statistics)
        return torch.autograd.grad(theta_KP, z_KQ, product_KP)[0]

    @torch.no_grad()
    def evaluate(self, z_KQ: Tensor, split: str = "train", details: bool = False) -> Columns:
        return self.base.evaluate(self.chart.points(z_KQ), split, details)

    @torch.no_grad()
    def outputs(self, z_Q: Tensor, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        return self.base.outputs(self.chart.points(z_Q[None])[0], split)

    def initial(self, seed: int) -> Tensor:
        """The coordinates (Q,) of a fresh random point; of a span, its origin's, which are zero."""
        theta_P = self.base.initial(seed)
        if isinstance(self.chart, Span):
            return theta_P.new_zeros(self.dim)
        return self.chart.coordinates(theta_P[None])[0]

    def to(self, device: torch.device) -> Charted:
        self.chart.to(device)
        return super().to(device)


def check_optimizer_decay(landscape: Landscape, optimizer: torch.optim.Optimizer) -> None:
    """Raise LowlossError if an optimizer's weight decay would act on a chart's coordinates."""
    if isinstance(landscape, Charted):
        for group in optimizer.param_groups:
            if group.get("weight_decay", 0) != 0:
                raise LowlossError(
                    f"weight_decay={group['weight_decay']:g} of {type(optimizer).__name__} would act on the "
                    f"coordinates of {type(landscape.chart).__name__}, not on the parameters: set "
                    "optimizer.weight_decay=0, and chart.weight_decay or Regularised(base, weight_decay)"
                )


@dataclass(frozen=True)
class RandomSpan:
    """A landscape seen on random hyperplanes of one orientation, each through a point of its own.

    dim: Q, the dimensions.  seed: what fixes the orientation.  weight_decay: of the L2 term of the points, since an
    optimizer's would act on the coordinates.
    """

    dim: Count
    seed: Index = 0
    weight_decay: Annotated[float, Ge(0)] = 0.0

    def over(self, base: Landscape, origin_KP: Tensor) -> Charted:
        """The landscape whose row k is z = 0 at origin_KP[k]."""
        regularised = Regularised(base, self.weight_decay) if self.weight_decay else base
        return Charted(regularised, Span.random(origin_KP, self.dim, self.seed))
