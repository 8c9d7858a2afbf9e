"""How K points run on a device. `Loop` runs one after the other, which is right everywhere; graph.py is for a GPU.

An engine is all that knows how a module is called; NetworkLandscape is written against its `losses`, `statistics`
and `logits`.

Shapes: K points, P parameters, B samples of a minibatch, C classes.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.flop_counter import FlopCounterMode

from lowloss.data.base import Batch
from lowloss.errors import LowlossError
from lowloss.landscape.layout import Layout

Buffers = dict[str, Tensor]

KINDS = ("auto", "loop", "graph")
PRECISIONS = ("auto", "float32", "bfloat16")

CACHED = 128
"""Samples of a forward pass on a processor, where they may be chosen."""

WORTH_BFLOAT16 = 1_000_000
"""Multiply-adds a sample from which bfloat16 pays on a processor with units for it; smaller networks lose by it."""


@dataclass(frozen=True)
class Engine:
    """Which engine runs the points, and in which precision it takes gradient steps.

    Args:
        kind: "graph", K points in one compiled CUDA graph; "loop", one after the other; "auto", graph on a GPU and
            loop elsewhere.
        precision: of activations in steps. "auto" is bfloat16 on the graph engine and on a processor with units for
            it (AMX or AVX512-BF16) where a sample costs a million multiply-adds or more, float32 elsewhere.
            Evaluation on the graph engine is in float16, or in float32 if this says so; on the loop in float32.

    Raises:
        LowlossError: an unknown kind or precision.
    """

    kind: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for key, value, known in (("kind", self.kind, KINDS), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise LowlossError(f"engine.{key} must be one of {', '.join(known)}, got {value!r}")

    def loop_dtype(self, module: nn.Module, x: Tensor) -> torch.dtype | None:
        """To what the loop casts activations in steps, if it does.

        Raises LowlossError where bfloat16 is asked for and the parameters are not float32.
        """
        exact = next(module.parameters()).dtype
        if exact != torch.float32:
            if self.precision == "bfloat16":
                raise LowlossError(f"engine.precision=bfloat16 is for float32 parameters, not {exact}: set it to auto")
            return None
        gains = self.precision == "auto" and x.device.type == "cpu" and _bfloat16_pays(module, x)
        return torch.bfloat16 if gains or self.precision == "bfloat16" else None

    def graph_dtypes(self, device: torch.device) -> tuple[torch.dtype, torch.dtype] | None:
        """The graph engine's precision in steps and in evaluation; None where the loop runs.

        Raises LowlossError where a graph is asked for and there is no GPU.
        """
        if self.kind == "loop" or (self.kind == "auto" and device.type != "cuda"):
            return None
        if device.type != "cuda":
            raise LowlossError(
                "engine=graph needs a GPU, and the landscape is on the CPU: set engine=auto, which takes a GPU where "
                "there is one (of the API: landscape.to('cuda'))"
            )
        if self.precision == "float32":
            return torch.float32, torch.float32
        return torch.bfloat16, torch.float16


def _bfloat16_pays(module: nn.Module, x: Tensor) -> bool:
    tests = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    if not any(test is not None and test() for test in tests) or not x.is_floating_point():
        return False
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(x)
    return counter.get_total_flops() / 2 >= WORTH_BFLOAT16 * len(x)


def places(module: nn.Module) -> dict[str, str]:
    """Every place of a tensor in a module once, with the tensor's first name.

    functional_call would visit a module that has two names twice, and could not restore it (pytorch/pytorch#164759).
    """
    first = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    return {
        f"{path}.{name}" if path else name: first[id(tensor)]
        for path, part in module.named_modules()
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]
        if tensor is not None
    }


def chosen(x_N: Tensor, parts: Sequence[Tensor] | None) -> Iterator[Tensor]:
    """The parts of x of these indices, made one at a time; None: all of x."""
    if parts is None:
        yield x_N
        return
    for index in parts:
        yield x_N[index.to(x_N.device)]


def alike(x_N: Tensor, size: int) -> tuple[Tensor, ...]:
    """Parts of at most so many samples, near-equal, and of two where there are two.

    A last part of one sample would have no variance, and would weigh like a full one.
    """
    return x_N.tensor_split(max(1, min(-(-len(x_N) // size), len(x_N) // 2)))


class Loop:
    """One point after the other, in the parameters' own precision, or with `step_dtype` autocast in `losses`."""

    usable = True
    used = False
    """Whether it has given a result; told of an engine that is not usable any more."""

    def __init__(self, module: nn.Module, layout: Layout, step_dtype: torch.dtype | None = None) -> None:
        self.module, self.layout, self.step_dtype = module, layout, step_dtype
        for part in module.modules():
            if isinstance(part, _InstanceNorm) and part.track_running_stats:
                raise LowlossError(
                    "InstanceNorm with track_running_stats=True behaves otherwise in evaluation: set it to False"
                )
        self.batch_norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.places = places(module)

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
            if self.step_dtype and x.dim() == 4:
                x = x.contiguous(memory_format=torch.channels_last)
            narrow = torch.autocast(x.device.type, self.step_dtype, enabled=self.step_dtype is not None)
            with torch.set_grad_enabled(gradients), self._dropout_seed(seed), narrow:
                outputs = self._call(parameters, scratch, x)
            with torch.set_grad_enabled(gradients):
                loss = cross_entropy(outputs.to(theta_KP.dtype), y)
            losses_K[k] = loss.detach()
            if gradients_KP is not None:
                found = torch.autograd.grad(loss, list(parameters.values()), materialize_grads=True)
                torch.cat([gradient.detach().reshape(-1) for gradient in found], out=gradients_KP[k])
        return losses_K, gradients_KP

    @torch.no_grad()
    def statistics(self, theta_P: Tensor, x_N: Tensor, parts: Sequence[Tensor] | None) -> tuple[Buffers, Tensor | None]:
        """The buffers of a point: BatchNorm's statistics as cumulative averages over parts of x, dropout off.

        Args:
            parts: the indices of each part; None for all of x at once, where an engine may know the outputs (N, C)
                that the buffers give.
        """
        if not self.batch_norms:
            return self.fresh_buffers(), None
        self.module.eval()
        momenta = [module.momentum for module in self.batch_norms]
        try:
            for module in self.batch_norms:
                module.train()
                module.momentum = None  # cumulative average: each chunk weighs the same
                module.reset_running_stats()
            buffers = self.fresh_buffers()
            parameters = self._parameters(theta_P)
            for x in chosen(x_N, parts):
                self._call(parameters, buffers, x)
        finally:
            for module, momentum in zip(self.batch_norms, momenta, strict=True):
                module.momentum = momentum
        return buffers, None

    @torch.no_grad()
    def logits(self, theta_P: Tensor, buffers: Buffers, x_N: Tensor, at_once: int) -> Tensor:
        """The outputs (N, C) in evaluation mode, at most so many samples at once."""
        self.module.eval()
        parameters = self._parameters(theta_P)
        # On a processor, small parts stay in its caches.
        size = min(at_once, CACHED) if theta_P.device.type == "cpu" else at_once
        return torch.cat([self._call(parameters, buffers, x) for x in alike(x_N, size)])

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
        # Not torch.manual_seed: where a kind of device is not in use it keeps a stack trace a call, 1.5 ms each.
        device = next(self.module.parameters()).device
        used = [
            torch.default_generator,
            *([torch.cuda.default_generators[device.index]] if device.type == "cuda" else []),
        ]
        states = [generator.get_state() for generator in used]
        for generator in used:
            generator.manual_seed(seed)
        try:
            yield
        finally:
            for generator, state in zip(used, states, strict=True):
                generator.set_state(state)
