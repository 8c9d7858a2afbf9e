"""The Hessian of a point's loss times vectors, by differentiating twice.

Shapes: P parameters.
"""

from __future__ import annotations

import contextlib
from collections.abc import Hashable, Iterator
from contextlib import AbstractContextManager, nullcontext
from math import isnan, nan
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.checkpoint import CheckpointError

from lowloss.landscape.engine.twice import Plainly, Twice

if TYPE_CHECKING:
    from lowloss.landscape.engine.loop import Buffers, Loop

KEPT = 1 << 30
"""Bytes that kept gradients may need on a processor; on a GPU it is half of what is free there."""


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
        self._loop, self._faster, self._left = loop, True, nan
        self._kept: dict[Hashable, list[_Gradient]] | None = None

    @contextlib.contextmanager
    def keeping(self) -> Iterator[None]:
        """While gradients are kept for products with other vectors."""
        self._kept, self._left = {}, nan
        try:
            yield
        finally:
            self._kept = None

    def __call__(
        self,
        theta_P: Tensor,
        v_P: Tensor,
        x: Tensor,
        y: Tensor,
        seed: int,
        buffers: Buffers | None,
        whole: bool,
        which: Hashable,
    ) -> Tensor:
        """The Hessian of a loss at a point times v (P,).

        Args:
            buffers: BatchNorm's statistics, in evaluation mode; None takes the minibatch's, in training mode.
            whole: the minibatch is a part of a split: the loss is the sum over its scored items, without dropout.
            which: what tells these samples from others while gradients are kept.
        """
        given = theta_P, v_P, x, y, seed, buffers, whole, which
        try:
            return self._product(*given, Twice() if self._faster else nullcontext())
        except (CheckpointError, Plainly):
            # Where checkpointed parts of a module run again, no mode reaches them; others use gradients as they run.
            self._faster = False
            self._drop()
            return self._product(*given, nullcontext())
        except torch.OutOfMemoryError:
            self._drop()
            raise

    def _room(self, device: torch.device) -> float:
        """How many bytes more may be kept."""
        if isnan(self._left):
            self._left = KEPT
            if device.type == "cuda":
                unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
                self._left = (torch.cuda.mem_get_info(device)[0] + unused) / 2
        return self._left

    def _drop(self) -> None:
        if self._kept is not None:
            self._kept, self._left = {}, 0.0

    def _product(
        self,
        theta_P: Tensor,
        v_P: Tensor,
        x: Tensor,
        y: Tensor,
        seed: int,
        buffers: Buffers | None,
        whole: bool,
        which: Hashable,
        mode: AbstractContextManager[object],
    ) -> Tensor:
        loop, cudnn = self._loop, torch.backends.cudnn
        loop.module.train(buffers is None and not whole)
        for part in loop.batch_norms:
            part.train(buffers is None)
        total = nan if self._kept is None else float(theta_P.double().sum())
        key = None if isnan(total) else (which, buffers is None, total)
        same = [] if key is None or self._kept is None else self._kept.setdefault(key, [])
        gradient = next((one for one in same if torch.equal(one.theta_P, theta_P)), None)
        new = gradient is None
        if gradient is None:
            gradient = _Gradient(theta_P, loop.parameters(theta_P, True), buffers or loop.fresh_buffers(), ())
        v, given, needed = loop.layout.views(v_P), list(gradient.parameters.values()), 0

        def saved(tensor: Tensor) -> Tensor:
            nonlocal needed
            needed += tensor.nbytes
            return tensor

        # The fused kernels of recurrent layers and of attention have no second derivative.
        fused = any(isinstance(m, nn.RNNBase) for m in loop.module.modules())
        with (
            loop.at(gradient.parameters, gradient.buffers),
            torch.enable_grad(),
            cudnn.flags(enabled=not fused, deterministic=cudnn.deterministic, allow_tf32=cudnn.allow_tf32),
            sdpa_kernel(SDPBackend.MATH),
        ):
            if new:
                if x.dim() == 4 and x.is_cuda and cudnn.allow_tf32:  # in float32 the kernels for it are far slower
                    x = x.contiguous(memory_format=torch.channels_last)
                with nullcontext() if key is None else saved_tensors_hooks(saved, lambda tensor: tensor):
                    with loop.random_seed(seed), mode:
                        outputs, _ = loop.call(x, None)
                    loss = loop.task.columns(outputs, y)["loss"].sum() if whole else loop.task.mean_loss(outputs, y)
                    parts = torch.autograd.grad(loss, given, create_graph=True, materialize_grads=True)
                gradient = gradient._replace(parts=parts)
            keep = not new or (key is not None and needed <= self._room(theta_P.device))
            # Of a loss that is linear in some parameters their gradients are constants.
            pairs = zip(gradient.parts, gradient.parameters, strict=True)
            curved = [(part, v[name]) for part, name in pairs if part.requires_grad]
            if not curved:
                return torch.zeros_like(theta_P)
            along, outputs_along = zip(*curved, strict=True)
            found = torch.autograd.grad(along, given, outputs_along, retain_graph=keep, materialize_grads=True)
        if new and keep:
            self._left -= needed
            same.append(gradient._replace(theta_P=theta_P.clone()))
        return torch.cat([part.detach().reshape(-1) for part in found])
