"""How K points run on a device. `Loop` runs one after the other, which is right everywhere; graph.py is for a GPU.

An engine is all that knows how a module is called; NetworkLandscape is written against its `losses`, `statistics`
and `outputs`.

Shapes: K points, P parameters, B samples of a minibatch, N samples of a split.
"""

from __future__ import annotations

import contextlib
import inspect
import random
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.utils.flop_counter import FlopCounterMode

from lowloss.data.base import Batch, Inputs
from lowloss.data.task import Task
from lowloss.errors import LowlossError
from lowloss.landscape.engine.copies import Place
from lowloss.landscape.engine.parts import Parts, near_equal
from lowloss.landscape.engine.pooled import pooled, undivided
from lowloss.landscape.engine.products import Products
from lowloss.landscape.layout import Layout, places
from lowloss.landscape.state import State

Buffers = dict[str, Tensor]

KINDS, PRECISIONS = ("auto", "loop", "graph"), ("auto", "float32", "bfloat16")

CACHED, PART = 128, 1024
"""Samples of a forward pass on a processor and on a GPU at most, where they may be chosen: small parts stay in a
processor's caches."""

NO_STATE = "mask", "length", "target", "label"
"""What is in the names of arguments that are no state."""

WORTH_BFLOAT16 = 1_000_000
"""Multiply-adds a sample from which bfloat16 pays on a processor with units for it; smaller networks lose by it."""


@dataclass(frozen=True)
class Engine:
    """Which engine runs the points, and in which precision it takes gradient steps.

    Args:
        kind: "graph", K points in one compiled CUDA graph; "loop", one after the other; "auto", graph on a GPU and
            loop elsewhere.
        precision: of activations in steps. "auto" is bfloat16 on the graph engine and on a processor with units for
            it (AMX or AVX512-BF16) where a sample costs a million multiply-adds or more and no convolution is
            depthwise, float32 elsewhere.
            Evaluation on the graph engine is in float16, or in float32 if this says so; on the loop in float32.

    Raises LowlossError: an unknown kind or precision.
    """

    kind: str = "auto"
    precision: str = "auto"

    def __post_init__(self) -> None:
        for key, value, known in (("kind", self.kind, KINDS), ("precision", self.precision, PRECISIONS)):
            if value not in known:
                raise LowlossError(f"engine.{key} must be one of {', '.join(known)}, got {value!r}")

    def loop_dtype(self, loop: Loop, x: Tensor) -> torch.dtype | None:
        """To what the loop casts activations in steps, if it does.

        Raises LowlossError where bfloat16 is asked for and the parameters are not float32.
        """
        exact = loop.layout.dtype
        if exact != torch.float32 and self.precision == "bfloat16":
            raise LowlossError(f"engine.precision=bfloat16 is for float32 parameters, not {exact}: set it to auto")
        on_cpu = exact == torch.float32 and x.device.type == "cpu"
        gains = self.precision == "auto" and on_cpu and _bfloat16_pays(loop, x)
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
        return (torch.float32, torch.float32) if self.precision == "float32" else (torch.bfloat16, torch.float16)


def _bfloat16_pays(loop: Loop, x: Tensor) -> bool:
    tests = (getattr(torch.cpu, name, None) for name in ("_is_amx_tile_supported", "_is_avx512_bf16_supported"))
    if not any(test is not None and test() for test in tests) or not x.is_floating_point():
        return False
    # Depthwise convolutions lose more by it than all others gain.
    if any(1 < getattr(part, "groups", 1) == getattr(part, "in_channels", 0) for part in loop.module.modules()):
        return False
    theta_P = loop.layout.flatten(dict(loop.module.named_parameters()))
    # A module that takes gradients as it runs cannot be counted.
    with contextlib.suppress(Exception), FlopCounterMode(display=False) as counter:
        list(loop.outputs(theta_P, loop.fresh_buffers(), x, len(x)))
        return counter.get_total_flops() / 2 >= WORTH_BFLOAT16 * len(x)
    return False


def takes_state(module: nn.Module) -> bool | None:
    """Whether a module's forward has a second argument that may be a state, and not a flag or a mask as that of one
    that returns `(outputs, attention)`; None if it has no second one."""
    more = [*inspect.signature(module.forward).parameters.values()][1:]
    if not more:
        return None
    positional = more[0].kind not in (inspect.Parameter.KEYWORD_ONLY, inspect.Parameter.VAR_KEYWORD)
    plain = isinstance(more[0].default, (int, float, str)) or any(word in more[0].name for word in NO_STATE)
    return positional and not plain


class Loop:
    """One point after the other, in the parameters' own precision, or with `step_dtype` autocast in `losses`."""

    usable = True
    used = False
    """Whether it has given a result; told of an engine that is not usable any more."""
    evaluation_seed = 0
    part = PART
    """Samples of a pass for BatchNorm's statistics at most."""

    def __init__(self, module: nn.Module, layout: Layout, task: Task, step_dtype: torch.dtype | None = None) -> None:
        self.module, self.layout, self.task, self.step_dtype = module, layout, task, step_dtype
        for part in module.modules():
            if isinstance(part, _InstanceNorm) and part.track_running_stats:
                raise LowlossError(
                    "InstanceNorm with track_running_stats=True behaves otherwise in evaluation: set it to False"
                )
        # One that its module keeps in evaluation mode is frozen: its statistics are part of the module.
        module.train()
        norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
        self.batch_norms = [m for m in norms if m.training]
        self.frozen = len(norms) > len(self.batch_norms)
        self._trained = [part for part in module.modules() if part.training]
        self._held: tuple[Buffers, bool] | None = None
        self._place, self.products = Place(), Products(self)
        self._takes_state = takes_state(module)
        self.foreign: tuple[str, ...] = ()
        """Those of FOREIGN from which the module draws."""
        self.passing = set[str]()
        """Buffers that calls change, without effect on the loss."""
        self.state: State | None = None
        """What the module keeps of its calls beside parameters and buffers, which every call finds as it was."""
        parts = dict(module.named_modules())
        self._tables: list[tuple[dict[str, Any], str, str]] = []
        self._buffers: list[tuple[dict[str, Any], str, str]] = []
        for place, first in places(module).items():
            path, _, name = place.rpartition(".")
            tables: tuple[dict[str, Any], ...] = (parts[path]._parameters, parts[path]._buffers)
            self._tables.append((tables[name not in tables[0]], name, first))
            if name not in tables[0] and place == first:
                self._buffers.append(self._tables[-1])

    def losses(self, theta_KP: Tensor, batch: Batch, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """The K mean losses in training mode, and their gradients (K, P) if asked for.

        BatchNorm uses the minibatch's statistics; its running averages are scratch and change nothing.
        """
        self.train()
        losses_K = theta_KP.new_empty(len(theta_KP))
        gradients_KP = torch.empty_like(theta_KP) if gradients else None
        for k, theta_P in enumerate(theta_KP.detach()):
            x, y, seed = batch.row(k)
            gradient_P = None if gradients_KP is None else gradients_KP[k]
            parameters, scratch = self.copies(theta_P, self._place)
            with self.random_seed(seed):
                state = batch.carry.states[k] if batch.carry else None
                state = self.step(parameters, x, y, scratch, losses_K[k], gradient_P, state)
            if batch.carry:
                batch.carry.states[k] = _detached(state)
        return losses_K, gradients_KP

    def train(self) -> None:
        """Put the module into training mode, which takes long to tell to each of its parts, and is told if need be."""
        if not all(part.training for part in self._trained):
            self.module.train()

    def step(
        self,
        parameters: dict[str, Tensor],
        x: Tensor,
        y: Tensor,
        scratch: Buffers,
        loss: Tensor,
        gradient_P: Tensor | None,
        state: Any = None,
    ) -> Any:
        """Write one point's loss, and its gradient if there is a place for it; return the state that is handed on."""
        gradients = gradient_P is not None
        if self.step_dtype and x.dim() == 4:
            x = x.contiguous(memory_format=torch.channels_last)
        narrow = torch.autocast(x.device.type, self.step_dtype, enabled=self.step_dtype is not None)
        # The gradient too is taken at the point: checkpointed parts of a module run again in backward.
        with self.at(parameters, scratch), torch.set_grad_enabled(gradients):
            with narrow:
                outputs, state = self.call(x, state)
            found = self.task.mean_loss(outputs.to(self.layout.dtype), y)
            loss.copy_(found.detach())
            if gradient_P is not None:
                gradients_of = _gradients(found, list(parameters.values()))
                torch.cat([gradient.detach().reshape(-1) for gradient in gradients_of], out=gradient_P)
        return state

    @torch.no_grad()
    def statistics(self, theta_P: Tensor, x_N: Inputs, parts: Sequence[Tensor] | None) -> tuple[Buffers, Tensor | None]:
        """The buffers of a point: BatchNorm's statistics as cumulative averages over parts of x, dropout off.

        Args:
            parts: the indices of each part; None for all of x at once, where an engine may know the outputs (N, ...)
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
            with undivided(self.batch_norms), self.at(self.parameters(theta_P), buffers), self.random_seed(0):
                own = all(type(norm).forward is _BatchNorm.forward for norm in self.batch_norms)
                # Passes of parts wait for each other, so that none may find what another left.
                if parts is None and len(x_N) > self.part and own and not self.state:
                    spans = near_equal(len(x_N), self.part)
                    pooled(lambda span: self.call(x_N[span], None), spans, self.batch_norms, theta_P.device)
                    return buffers, None
                for x in (x_N[:],) if parts is None else (x_N[index.to(x_N.device)] for index in parts):
                    with self.random_seed(0):
                        self.call(x, None)
        finally:
            for module, momentum in zip(self.batch_norms, momenta, strict=True):
                module.momentum = momentum
        return buffers, None

    def outputs(
        self, theta_P: Tensor, buffers: Buffers, x_N: Inputs, at_once: int, streams: int | None = None
    ) -> Iterator[Tensor]:
        """The outputs (B, ...) in evaluation mode, chunk by chunk, at most so many samples at once.

        Args:
            streams: samples of a chunk, whose states a recurrent module hands on to the next; see `Data`.
        """
        parameters, state = self.parameters(theta_P), None

        def of(span: slice) -> Tensor:
            nonlocal state
            self.module.eval()
            # The module is put back between chunks: whoever asks for them may run it elsewhere meanwhile.
            # A module that draws random numbers in evaluation too draws the same for every point.
            with torch.no_grad(), self.at(parameters, buffers), self.random_seed(self.evaluation_seed):
                outputs, state = self.call(x_N[span], state if streams else None)
            return outputs

        if streams:
            yield from (of(slice(first, first + streams)) for first in range(0, len(x_N), streams))
        else:
            yield from Parts(min(at_once, CACHED if theta_P.device.type == "cpu" else PART))(of, len(x_N))

    def parameters(self, theta_P: Tensor, gradients: bool = False) -> dict[str, Tensor]:
        """Those of the module at a point, by name."""
        # Copies, since a GPU's convolutions want aligned weights and a view may start at any coordinate.
        return {name: view.clone().requires_grad_(gradients) for name, view in self.layout.views(theta_P).items()}

    def copies(self, theta_P: Tensor, place: Place) -> tuple[dict[str, Tensor], Buffers]:
        """Parameters and buffers for one step, in the memory of a place unless buffers are held."""
        named, buffers = self.layout.views(theta_P), {first: table[name] for table, name, first in self._buffers}
        parameters = dict(zip(named, place.parameters(list(named.values())), strict=True))
        if self.holds:
            return parameters, self.fresh_buffers()
        return parameters, dict(zip(buffers, place.buffers(list(buffers.values())), strict=True))

    @contextlib.contextmanager
    def at(self, parameters: dict[str, Tensor], buffers: Buffers) -> Iterator[None]:
        """While the module has these parameters and buffers in place of its own."""
        given = {**parameters, **buffers}
        held = [(table, name, first, table[name]) for table, name, first in self._tables if first in given]
        for table, name, first, own in held:
            table[name] = given[first]
            if kept := getattr(own, "__dict__", None):  # attributes that its forward may read
                vars(given[first]).update(kept)
        if self.state:
            self.state.restore()
        try:
            yield
        finally:
            for table, name, first, own in held:
                if first in buffers:  # which a module may also set anew
                    buffers[first] = table[name]
                table[name] = own

    def call(self, x: Tensor, state: Any) -> tuple[Tensor, Any]:
        """The module's outputs, and the state that a recurrent one hands on."""
        x = x.clone()  # some compute on it in place, and others want it as it is
        outputs = self.module(x) if state is None else self.module(x, state)
        handed = None
        if self._takes_state is not None and isinstance(outputs, tuple) and len(outputs) == 2:
            outputs, handed = outputs[0], outputs[1] if self._takes_state else None
        if not isinstance(outputs, Tensor):
            name = type(self.module).__name__
            raise LowlossError(
                f"{name} returns a {type(outputs).__name__}, not one tensor of outputs, nor (outputs, state): wrap it"
            )
        return outputs, handed

    def fresh_buffers(self) -> Buffers:
        """Copies of the module's buffers, for a call to change."""
        given, shared = self._held or (dict(self.module.named_buffers()), False)
        return given if shared else {name: buffer.clone() for name, buffer in given.items()}

    @property
    def holds(self) -> bool:
        """Whether calls begin with other buffers than the module's."""
        return self._held is not None

    @contextlib.contextmanager
    def holding(self, buffers: Buffers, shared: bool = False) -> Iterator[None]:
        """While calls begin with these buffers, and with `shared` change them, in place of the module's."""
        self._held = buffers, shared
        try:
            yield
        finally:
            self._held = None

    @contextlib.contextmanager
    def exact(self, tf32: bool = False) -> Iterator[None]:
        """While exact results are computed on a GPU: true float32, or TF32, and the same kernels every time."""
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=tf32):
            yield

    @contextlib.contextmanager
    def random_seed(self, seed: int) -> Iterator[None]:
        # Not torch.manual_seed: where a kind of device is not in use it keeps a stack trace a call, 1.5 ms each.
        device = next(self.module.parameters()).device
        used = [torch.default_generator]
        if device.type == "cuda":
            used.append(torch.cuda.default_generators[device.index])
        states = [generator.get_state() for generator in used]
        for generator in used:
            generator.manual_seed(seed)
        try:
            with foreign_seed(seed, self.foreign):
                yield
        finally:
            for generator, state in zip(used, states, strict=True):
                generator.set_state(state)


FOREIGN: dict[str, tuple[Callable[[], Any], Callable[[Any], None], Callable[[int], None]]] = {
    "random": (random.getstate, random.setstate, random.seed),
    "numpy": (np.random.get_state, np.random.set_state, lambda seed: np.random.seed(seed % 2**32)),  # noqa: NPY002
}
"""Generators beside torch's: how their states are read and set, and how they are seeded."""


@contextlib.contextmanager
def foreign_seed(seed: int, kinds: Iterable[str] = FOREIGN) -> Iterator[None]:
    """While the generators that are named follow from a seed."""
    states = {kind: FOREIGN[kind][0]() for kind in kinds}
    for kind in states:
        FOREIGN[kind][2](seed)
    try:
        yield
    finally:
        for kind, state in states.items():
            FOREIGN[kind][1](state)


def _gradients(loss: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor]:
    try:
        return torch.autograd.grad(loss, parameters, materialize_grads=True)
    except RuntimeError as error:
        if "use_reentrant" in str(error):
            raise LowlossError("the module's checkpoint(...) must have use_reentrant=False: set it there") from error
        raise


def _detached(state: Any) -> Any:
    if isinstance(state, Tensor):
        return state.detach()
    return tuple(_detached(part) for part in state) if isinstance(state, (tuple, list)) else state
