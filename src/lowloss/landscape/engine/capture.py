"""Functions of K points compiled and differentiated, and a step of them captured as a CUDA graph.

Shapes: K points, P parameters, B samples of a minibatch.
"""

from __future__ import annotations

import gc
import hashlib
import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

KEPT = 16
"""CUDA graphs kept at once."""

Run = Callable[..., Tensor]
Work = Callable[..., tuple[Tensor, Tensor | None]]


class Step:
    """One CUDA graph: losses and gradients of so many points at inputs of these shapes.

    Args:
        work: gives losses (K,) and gradients (K, P), or None for these, at inputs of which the points are the first.
        pool: of the graph that it shares memory with, if it does. A pool whose graphs are all gone is no pool.
    """

    def __init__(self, work: Work, inputs: tuple[Tensor, ...], gradients: bool, pool: Any) -> None:
        from torch._inductor.cudagraph_trees import clear_cublas_manager

        # An engine that is gone and its compiled code refer to each other, and keep its graphs' memory until then.
        gc.collect()
        # Copies, since calls write to them, and a minibatch is the caller's.
        self.inputs = tuple(given.clone() for given in inputs)
        theta_KP = self.inputs[0]
        self.losses_K = theta_KP.new_empty(len(theta_KP))
        self.gradients_KP = torch.empty_like(theta_KP) if gradients else None
        self.graph = torch.cuda.CUDAGraph()
        generator = torch.cuda.default_generators[theta_KP.device.index or 0]
        side, current = _side_stream(theta_KP.device), torch.cuda.current_stream(theta_KP.device)
        side.wait_stream(current)
        # Around the capture too: one that fails leaves its stream the current one.
        with torch.cuda.stream(side):
            # What first calls allocate for good (handles, compiled code) must not lie in the graph's memory.
            for _ in range(2):
                work(*self.inputs)
            try:
                # Workspaces must: torch after 2.11 frees those of a stream with any graph of it (pytorch#193402).
                with clear_cublas_manager(), torch.cuda.graph(self.graph, pool=pool, stream=side):
                    losses_K, gradients_KP = work(*self.inputs)
                    self.losses_K.copy_(losses_K)
                    if self.gradients_KP is not None and gradients_KP is not None:
                        self.gradients_KP.copy_(gradients_KP)
            except BaseException as error:
                # The device's generator would wait for the end of the capture, and refuse to draw.
                generator.graphsafe_set_state(generator.clone_state())
                # The end of a capture that failed fails too, and would hide why.
                if isinstance(error, torch.AcceleratorError) and error.__context__ is not None:
                    raise error.__context__ from None
                raise
        current.wait_stream(side)

    def __call__(self, *inputs: Tensor) -> tuple[Tensor, Tensor | None]:
        for held, given in zip(self.inputs, inputs, strict=True):
            held.copy_(given, non_blocking=True)
        self.graph.replay()
        return self.losses_K.clone(), None if self.gradients_KP is None else self.gradients_KP.clone()


class Steps(dict[tuple[Any, ...], Step]):
    """The last graphs, by their kinds. They share their memory, of which those before have no need when one runs."""

    def capture(self, kind: tuple[Any, ...], work: Work, inputs: tuple[Tensor, ...], gradients: bool) -> Step:
        """Another of them; see Step."""
        if len(self) >= KEPT:
            self.pop(next(iter(self)))
        pool = next(iter(self.values())).graph.pool() if self else None
        self[kind] = Step(work, inputs, gradients, pool)
        return self[kind]


@cache
def _side_stream(device: torch.device) -> torch.cuda.Stream:
    """One for all captures: graphs of two streams share a pool, but no memory."""
    return torch.cuda.Stream(device)


def differentiated(run: Run, theta_KP: Tensor, *inputs: Tensor, gradients: bool) -> tuple[Tensor, Tensor | None]:
    """Losses (K,) that `run` gives, and their gradients (K, P) if asked."""
    theta_KP = theta_KP.detach().requires_grad_(gradients)
    if len(theta_KP) > 1:
        for tensor in (theta_KP, *inputs):
            torch._dynamo.mark_dynamic(tensor, 0)
    with torch.set_grad_enabled(gradients):
        losses_K = run(theta_KP, *inputs)
        found = torch.autograd.grad(losses_K.sum(), theta_KP)[0] if gradients else None
    return losses_K.detach(), found


def compiled(run: Run) -> Run:
    """The same by compiled code, one for any number of points or samples that is marked as dynamic."""
    # Gives wrong gradients in some networks, silently (pytorch#190796, #193061); torch 2.9 has no such option.
    option = "triton.mix_order_reduction"
    options: dict[str, Any] = {option: False} if option in torch._inductor.list_options() else {}
    code = torch.compile(run, fullgraph=True, options=options)
    # Compiled code is kept on disk by what the compiler saw, and it does not see the gradients of our operators.
    sources = [Path(__file__).with_name(name).read_bytes() for name in ("convolution.py", "folded.py")]
    tag = f"{torch.compiler.config.cache_key_tag} lowloss {hashlib.sha256(b''.join(sources)).hexdigest()}"

    def call(*arguments: Any) -> Tensor:
        # Code is kept for each pair of shapes and mode, and there are more than the default limit. Sizes that are not
        # marked as dynamic are constants: code for any size is slower, and for a batch of any size does not compile.
        with (
            torch._dynamo.config.patch(
                recompile_limit=256, accumulated_recompile_limit=4096, automatic_dynamic_shapes=False
            ),
            torch.compiler.config.patch(cache_key_tag=tag),  # type: ignore[attr-defined]
            warnings.catch_warnings(),
        ):
            # The compiler's advice to give up float32 where it is meant, and a note to its own authors.
            for message in ("TensorFloat32 tensor cores", r"\s*Online softmax is disabled"):
                warnings.filterwarnings("ignore", message, UserWarning)
            outputs: Tensor = code(*arguments)
        return outputs

    return call


def laid_out(x_KB: Tensor, dtype: torch.dtype) -> Tensor:
    """x (K, B, ...) as floating point numbers of a dtype, images channels last."""
    if not x_KB.is_floating_point():
        return x_KB.contiguous()
    if x_KB.dim() != 5:
        return x_KB.to(dtype).contiguous()
    shape = (x_KB.shape[0] * x_KB.shape[1], *x_KB.shape[2:])
    out = torch.empty(shape, dtype=dtype, device=x_KB.device, memory_format=torch.channels_last)
    return out.unflatten(0, x_KB.shape[:2]).copy_(x_KB)
