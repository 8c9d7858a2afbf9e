"""The landscape: one function of the parameters, looked at in K points at once.

Shapes: K points, P parameters, C outputs, B samples of a chunk.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from typing import Any, Protocol, TypeVar

import torch
from torch import Tensor

from lowloss.data.base import Batch
from lowloss.data.task import Task
from lowloss.errors import LowlossError

Self = TypeVar("Self", bound="Landscape")

Held = str | Sequence[dict[str, Tensor]]
"""Which statistics of BatchNorm a Hessian is taken at."""

Columns = dict[str, Tensor]
"""What is tabulated of K points: tensors with K first."""


class Final(torch.autograd.Function):
    """The identity for a gradient, which refuses to be differentiated: the result would be silently wrong."""

    @staticmethod
    def forward(ctx: Any, gradient_KP: Tensor, *of: Tensor) -> Tensor:
        return gradient_KP.view_as(gradient_KP)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        raise LowlossError("a landscape's losses are differentiable once: take second derivatives by landscape.product")


class Losses(torch.autograd.Function):
    """Computes the gradients while it computes the losses, however an engine's `losses` does that best."""

    @staticmethod
    def forward(
        ctx: Any, theta_KP: Tensor, losses: Callable[..., tuple[Tensor, Tensor | None]], batch: Batch
    ) -> Tensor:
        losses_K, gradients_KP = losses(theta_KP, batch, gradients=ctx.needs_input_grad[0])
        ctx.gradients_KP = gradients_KP
        ctx.save_for_backward(theta_KP)
        return losses_K

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor, None, None]:
        (upstream_K,) = upstream
        return Final.apply(upstream_K[:, None] * ctx.gradients_KP, *ctx.saved_tensors), None, None


def check_points(theta_KP: Tensor, dim: int, dtype: torch.dtype | None = None) -> None:
    """Raise ValueError unless these are rows of real numbers, of a landscape's size and, if it has one, precision."""
    if not isinstance(theta_KP, Tensor) or theta_KP.dim() != 2 or theta_KP.shape[1] != dim:
        told = tuple(theta_KP.shape) if isinstance(theta_KP, Tensor) else type(theta_KP).__name__
        raise ValueError(f"points are rows of a K × {dim} matrix, got {told}")
    if not theta_KP.is_floating_point() or dtype not in (None, theta_KP.dtype):
        wanted = dtype or torch.float64
        raise ValueError(f"points are of {wanted}, got {theta_KP.dtype}: take them .to({wanted})")


class BatchSource(Protocol):
    """The minibatch of every step: `source[step]` depends on the step and the seeds alone."""

    steps_per_epoch: int

    def __getitem__(self, step: int, /) -> Batch | None: ...


class Landscape(Protocol):
    """The loss L(theta) of a network on a data set, an analytic surface, or another landscape seen otherwise."""

    @property
    def dim(self) -> int:
        """The number of parameters P."""

    @property
    def splits(self) -> tuple[str, ...]:
        """What `evaluate` accepts; the first is the split that is trained on."""

    @property
    def task(self) -> Task:
        """What the loss and the other metrics are."""

    @property
    def couples_samples(self) -> bool:
        """Whether a minibatch's loss is not the mean of its parts': BatchNorm and dropout want it whole."""

    def losses(self, theta_KP: Tensor, batch: Batch | None) -> Tensor:
        """The K losses on one minibatch, differentiable once in theta_KP; a second derivative is refused."""

    def product(self, theta_KP: Tensor, v_KP: Tensor, data: Batch | str | None, statistics: Held = "held") -> Tensor:
        """The Hessian of the mean loss at each point times a vector each (K, P).

        Args:
            data: a minibatch, or a split for its exact loss.
            statistics: which Hessian it is where there is BatchNorm: "held" at the point's own statistics, as in
                evaluation, or "batch", those of the minibatch, through which it differentiates too, as in training; or
                held at those that are given, one dictionary of buffers a point.
        """

    def keeping(self) -> AbstractContextManager[Callable[[], int]]:
        """While what `product` makes of a point may be kept for products with other vectors, of the same samples.

        It gives a function that tells, after a product, of how many points it fits the memory; 0 where it does not
        matter.
        """

    def subset(self, split: str, samples: int, seed: int) -> Batch | None:
        """So many samples of a split, drawn without replacement, as evaluation has them; None where there are none."""

    def evaluate(self, theta_KP: Tensor, split: str = "train", details: bool = False) -> Columns:
        """The task's metrics, exact over a whole split, by their names: float64 columns (K,) on the CPU.

        With `details`, what the task keeps of each sample comes too; see `Task.summarise`.
        """

    def outputs(self, theta_P: Tensor, split: str) -> Iterator[tuple[Tensor, Tensor]]:
        """The network's outputs (B, ...) at a point, and their targets, chunk by chunk in the split's order."""

    def batches(self, size: int | None, seeds: Sequence[int], shared: bool) -> BatchSource:
        """Training minibatches, or with None the whole set: one a seed, or with `shared` one for all points."""

    def initial(self, seed: int) -> Tensor:
        """A fresh random point (P,)."""

    def to(self: Self, device: torch.device) -> Self:
        """Move what the landscape holds to the device, in place."""
