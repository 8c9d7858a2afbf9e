"""The landscape: one function, evaluated at K points at once.

Shapes: K points, P parameters, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

import torch
from torch import Tensor

from lowloss.data.base import Batch

Self = TypeVar("Self", bound="Landscape")


class BatchSource(Protocol):
    """The minibatch of every step: `source[step]` depends on the step and the seeds alone."""

    steps_per_epoch: int

    def __getitem__(self, step: int, /) -> Batch | None: ...


@dataclass(frozen=True)
class Evaluation:
    """Exact results over a whole split, one entry a point.

    loss_K: mean loss in nats.  error_K: fraction misclassified (NaN where there are no classes).
    logits_KNC: network outputs in the split's order, only where they were asked for.
    """

    loss_K: Tensor
    error_K: Tensor
    logits_KNC: Tensor | None = None


class Landscape(Protocol):
    """The loss L(theta) of a network on a data set, or an analytic surface."""

    @property
    def dim(self) -> int:
        """The number of parameters P."""
        ...

    @property
    def splits(self) -> tuple[str, ...]:
        """What `evaluate` accepts; the first is the split that is trained on."""
        ...

    def losses(self, theta_KP: Tensor, batch: Batch | None) -> Tensor:
        """The K losses on one minibatch, differentiable (once) in theta_KP."""
        ...

    def evaluate(self, theta_KP: Tensor, split: str = "train", logits: bool = False) -> Evaluation:
        """The exact mean loss and error of K points over a whole split."""
        ...

    def batches(self, size: int, seeds: Sequence[int], shared: bool) -> BatchSource:
        """Training minibatches: one for each seed, or with `shared` one (of the first seed) for all points."""
        ...

    def initial(self, seed: int) -> Tensor:
        """A fresh random point (P,)."""
        ...

    def to(self: Self, device: torch.device) -> Self:
        """Move what the landscape holds to the device, in place."""
        ...
