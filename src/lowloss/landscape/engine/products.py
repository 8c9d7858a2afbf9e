"""The Hessian of a point's loss times vectors, by differentiating twice.

Shapes: P parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Hashable, Iterator
from contextlib import nullcontext
from math import isnan, nan
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError

from lowloss.errors import OnceError
from lowloss.landscape.engine.twice import Plainly, Twice

if TYPE_CHECKING:
    from lowloss.landscape.engine.loop import Buffers, Loop

KEPT = 1 << 30
"""Bytes that kept gradients may need on a processor; on a GPU it is three quarters of what is free there."""

SPARE = 3
"""Times what is kept of a part of the samples that a product with it needs besides."""


ONCE = (
    "the loss of {} has no second derivative ({}): leave curvature out of stages and of scans' measures, or write it "
    "of functions that have one"
)


class Samples(NamedTuple):
    """A part of the data, and how the loss there is taken.

    buffers: BatchNorm's statistics, in evaluation mode; None takes the samples' own, in training mode.
    whole: they are a part of a split: the loss is the sum over its scored items, without dropout.
    which: what tells them from others while gradients are kept.
    """

    x: Tensor
    y: Tensor
    seed: int
    buffers: Buffers | None
    whole: bool
    which: Hashable


class _Gradient(NamedTuple):
    """The gradient of a point's loss, to be differentiated again: a tensor a parameter, and how it was taken."""

    theta_P: Tensor
    parameters: dict[str, Tensor]
    buffers: Buffers
    parts: tuple[Tensor, ...]


class Products:
    """Products with the Hessians of a loop's module, in the parameters' precision.

    Most of a product is spent in the second of two derivatives. While `keeping`, the first is taken once a point and
    part of the samples, where there is memory for what the second needs of it.
    """

    def __init__(self, loop: Loop) -> None:
        self._loop, self._faster, self._room, self._left = loop, True, nan, nan
        self._seen = False
        self._kept: dict[Hashable, list[_Gradient]] | None = None
        self._needed: dict[Hashable, int] = {}

    @contextlib.contextmanager
    def keeping(self) -> Iterator[Callable[[], int]]:
        """While gradients are kept for products with other vectors; gives what tells of how many points they fit."""
        self._kept, self._room, self._needed = {}, nan, {}
        try:
            yield self._fitting
        finally:
            self._kept = None

    def __call__(self, theta_P: Tensor, v_P: Tensor, samples: Samples) -> Tensor:
        """The Hessian of a loss at a point times v (P,)."""
        try:
            return self._product(theta_P, v_P, samples)
        except (CheckpointError, Plainly):
            # Where checkpointed parts of a module run again, no mode reaches them; others use gradients as they run.
            self._faster = False
            self._drop()
            return self._product(theta_P, v_P, samples)
        except torch.OutOfMemoryError:
            self._drop()
            raise

    def _fitting(self) -> int:
        """Of how many points gradients may be kept, as far as is known from those before."""
        if not self._needed:
            return 0
        spare = SPARE * max(self._needed.values())
        return max(0, int((self._room - spare) // max(1, sum(self._needed.values()))))

    def _fits(self, needed: int, device: torch.device) -> bool:
        """Whether so many bytes more may be kept."""
        if isnan(self._room):
            self._room = KEPT
            if device.type == "cuda":
                unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
                self._room = 0.75 * (torch.cuda.mem_get_info(device)[0] + unused)
            self._left = self._room
        return (1 + SPARE) * needed <= self._left

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept, self._room, self._left = {}, 0.0, 0.0

    def _alike(self, theta_P: Tensor, samples: Samples) -> list[_Gradient] | None:
        """Kept gradients on these samples that may be this point's; None if its is not to be kept."""
        if self._kept is None or isnan(total := float(theta_P.double().sum())):
            return None
        return self._kept.setdefault((samples.which, samples.buffers is None, total), [])

    def _product(self, theta_P: Tensor, v_P: Tensor, samples: Samples) -> Tensor:
        loop, cudnn, v = self._loop, torch.backends.cudnn, self._loop.layout.views(v_P)
        loop.module.train(samples.buffers is None and not samples.whole)
        for part in loop.batch_norms:
            part.train(samples.buffers is None)
        alike = self._alike(theta_P, samples)
        known = next((one for one in alike or () if torch.equal(one.theta_P, theta_P)), None)
        parameters = known.parameters if known else loop.parameters(theta_P, True)
        buffers = known.buffers if known else samples.buffers or loop.fresh_buffers()
        # The fused kernels of recurrent layers and of attention have no second derivative.
        fused = any(isinstance(m, nn.RNNBase) for m in loop.module.modules())
        with (
            loop.at(parameters, buffers),
            torch.enable_grad(),
            cudnn.flags(enabled=not fused, deterministic=cudnn.deterministic, allow_tf32=cudnn.allow_tf32),
            sdpa_kernel(SDPBackend.MATH),
        ):
            parts, needed = (known.parts, 0) if known else self._first(parameters, samples, alike is not None)
            keep = alike is not None and self._fits(needed, theta_P.device)
            # Of a loss that is linear in some parameters their gradients are constants.
            pairs = zip(parts, parameters, strict=True)
            curved = [(part, v[name]) for part, name in pairs if part.requires_grad]
            if not curved:
                return torch.zeros_like(theta_P)
            along, outputs_along = zip(*curved, strict=True)
            given = list(parameters.values())
            try:
                found = torch.autograd.grad(along, given, outputs_along, retain_graph=keep, materialize_grads=True)
            except RuntimeError as error:
                if "is not implemented" not in str(error):
                    raise
                raise OnceError(ONCE.format(type(loop.module).__name__, error)) from error
        if alike is not None and not known:
            self._needed[samples.which] = needed
            if keep:
                self._left -= needed
                alike.append(_Gradient(theta_P.clone(), parameters, buffers, parts))
        return torch.cat([part.detach().reshape(-1) for part in found])

    def _first(self, parameters: dict[str, Tensor], samples: Samples, counted: bool) -> tuple[tuple[Tensor, ...], int]:
        """The gradient, and if it is counted, how many bytes are held for differentiating it again."""
        loop, x, needed = self._loop, samples.x, dict[int, int]()

        def saved(tensor: Tensor) -> Tensor:
            # Several functions may save one tensor. With its own function one would be held for ever by what it holds.
            needed[tensor.data_ptr()] = tensor.nbytes
            return tensor.detach()

        # In float32 a GPU's kernels for channels last are far slower.
        if x.dim() == 4 and x.is_cuda and torch.backends.cudnn.allow_tf32:
            x = x.contiguous(memory_format=torch.channels_last)
        with saved_tensors_hooks(saved, lambda tensor: tensor) if counted else nullcontext():
            with loop.random_seed(samples.seed), Twice() if self._faster else nullcontext():
                outputs, _ = loop.call(x, None)
            task, y = loop.task, samples.y
            loss = task.columns(outputs, y)["loss"].sum() if samples.whole else task.mean_loss(outputs, y)
            given = list(parameters.values())
            parts = torch.autograd.grad(loss, given, create_graph=True, materialize_grads=True)
        if not self._seen and _cut(parts):
            raise OnceError(ONCE.format(type(loop.module).__name__, "it has a function that is once_differentiable"))
        self._seen = True
        return parts, sum(needed.values())


def _cut(gradients: tuple[Tensor, ...]) -> bool:
    """Whether a function by which these were taken can be differentiated once alone: torch would take what leads
    through it as zero."""
    left = [gradient.grad_fn for gradient in gradients]
    seen = set()
    while left:
        node = left.pop()
        if node is not None and node not in seen:
            seen.add(node)
            left += [before for before, _ in node.next_functions]
            if node.name() == "torch::autograd::Error":
                return True
    return False
