"""How K points run on a device. `Loop` runs one after the other, which is right everywhere.

An engine is all that knows how a module is called; NetworkLandscape is written against these three methods.

Shapes: K points, P parameters, B samples of a minibatch, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm

from lowloss.data.base import Batch
from lowloss.errors import LowlossError
from lowloss.landscape.layout import Layout

Buffers = dict[str, Tensor]


class Loop:
    """One point after the other, in the parameters' own precision."""

    def __init__(self, module: nn.Module, layout: Layout) -> None:
        self.module, self.layout = module, layout
        for part in module.modules():
            if isinstance(part, _InstanceNorm) and part.track_running_stats:
                raise LowlossError(
                    "InstanceNorm with track_running_stats=True behaves otherwise in evaluation: set it to False"
                )
        self.batch_norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        # Every place of a tensor once, by the tensor's first name: functional_call would visit a module that has two
        # names twice, and could not restore it (pytorch/pytorch#164759).
        first = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
        self.places = {
            f"{path}.{name}" if path else name: first[id(tensor)]
            for path, part in module.named_modules()
            for name, tensor in [*part._parameters.items(), *part._buffers.items()]
            if tensor is not None
        }

    def losses(self, theta_KP: Tensor, batch: Batch, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """The K mean cross-entropies in training mode, and their gradients (K, P) if asked for.

        BatchNorm uses the minibatch's statistics; its running averages are scratch and change nothing.
        """
        self.module.train()
        scratch = self.fresh_buffers()
        losses_K = theta_KP.new_empty(len(theta_KP))
        gradients_KP = torch.empty_like(theta_KP) if gradients else None
        for k, theta_P in enumerate(theta_KP.detach()):
            x, y, seed = batch.row(k)
            parameters = self._parameters(theta_P, gradients)
            with torch.set_grad_enabled(gradients), self._dropout_seed(seed):
                loss = cross_entropy(self._call(parameters, scratch, x), y)
            losses_K[k] = loss.detach()
            if gradients_KP is not None:
                found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
                torch.cat([gradient.reshape(-1) for gradient in found], out=gradients_KP[k])
        return losses_K, gradients_KP

    @torch.no_grad()
    def statistics(self, theta_P: Tensor, chunks: Iterable[Tensor]) -> Buffers:
        """The buffers of a point: BatchNorm's statistics as cumulative averages over the chunks, dropout off."""
        if not self.batch_norms:
            return self.fresh_buffers()
        self.module.eval()
        momenta = [module.momentum for module in self.batch_norms]
        for module in self.batch_norms:
            module.train()
            module.momentum = None  # cumulative average: each chunk weighs the same
            module.reset_running_stats()
        buffers = self.fresh_buffers()
        parameters = self._parameters(theta_P)
        for x in chunks:
            self._call(parameters, buffers, x)
        for module, momentum in zip(self.batch_norms, momenta, strict=True):
            module.momentum = momentum
        return buffers

    @torch.no_grad()
    def logits(self, theta_P: Tensor, buffers: Buffers, chunks: Iterable[Tensor]) -> Tensor:
        """The outputs (N, C) over all chunks, in evaluation mode."""
        self.module.eval()
        parameters = self._parameters(theta_P)
        return torch.cat([self._call(parameters, buffers, x) for x in chunks])

    def _parameters(self, theta_P: Tensor, gradients: bool = False) -> dict[str, Tensor]:
        # Copies, since a GPU's convolutions want aligned weights and a view may start at any coordinate.
        return {name: view.clone().requires_grad_(gradients) for name, view in self.layout.views(theta_P).items()}

    def _call(self, parameters: dict[str, Tensor], buffers: Buffers, x: Tensor) -> Tensor:
        given = {**parameters, **buffers}
        tensors = {place: given[name] for place, name in self.places.items() if name in given}
        outputs = functional_call(self.module, tensors, (x,), tie_weights=False)
        if not isinstance(outputs, Tensor):
            name = type(self.module).__name__
            raise LowlossError(f"{name} returns a {type(outputs).__name__}, not one tensor of logits: wrap it")
        return outputs

    def fresh_buffers(self) -> Buffers:
        """Copies of the module's buffers, for a call to change."""
        return {name: buffer.clone() for name, buffer in self.module.named_buffers()}

    @contextlib.contextmanager
    def exact(self) -> Iterator[None]:
        """While exact results are computed on a GPU: true float32 and the same kernels every time."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            yield

    @contextlib.contextmanager
    def _dropout_seed(self, seed: int) -> Iterator[None]:
        device = next(self.module.parameters()).device
        with torch.random.fork_rng([device] if device.type == "cuda" else []):
            torch.manual_seed(seed)
            yield
