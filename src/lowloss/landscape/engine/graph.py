"""The engine for a GPU: K points in one compiled call, replayed as one CUDA graph.

A step of a small network is a thousand short kernels. Folding the points into the batch axis (folded.py) makes K
steps as many kernels as one, compilation fuses what lies between the convolutions, and a CUDA graph starts them
without the host. Steps compute in bfloat16, evaluation in float16 (it has three more bits, and nothing to overflow
at a point worth reporting); parameters, statistics, a linear layer at the end, losses and gradients are float32.

Shapes: K points, P parameters, B samples of a minibatch, C outputs.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.autograd.graph import save_on_cpu
from torch.func import functional_call

from lowloss.data.base import Batch, Inputs
from lowloss.errors import LowlossError
from lowloss.landscape.engine.capture import Steps, compiled, differentiated, laid_out
from lowloss.landscape.engine.captured import Captured
from lowloss.landscape.engine.checked import StepError, Taken, compare_step, reference_step, verify
from lowloss.landscape.engine.folded import FoldedBatchNorm, FoldedDropout, fold, record, separate, widen
from lowloss.landscape.engine.loop import Buffers, Loop
from lowloss.landscape.engine.parts import Parts
from lowloss.landscape.layout import places
from lowloss.seeding import derive

EVALUATION_SHARE, LIVE = 8, 4
"""What part of a GPU's memory the samples evaluated at once may take, which leaves room for other processes, and how
many activations as large as the largest live at once."""

T = TypeVar("T")

log = logging.getLogger("lowloss")


class Graph:
    """K points at once; a module that cannot be folded, compiled or captured runs on the plain loop instead.

    Args:
        loop: the plain engine of the same module.
        sample: a few inputs of the data and their targets, to compare the two.
        step_dtype: of activations in `losses`.
        evaluation_dtype: of activations in `statistics` and `outputs`.
        strict: raise LowlossError instead of running on the plain loop.
    """

    def __init__(
        self,
        loop: Loop,
        sample: tuple[Tensor, Tensor],
        step_dtype: torch.dtype,
        evaluation_dtype: torch.dtype,
        strict: bool = False,
    ) -> None:
        self.loop, self.module, self.layout, self.batch_norms = loop, loop.module, loop.layout, loop.batch_norms
        self.step_dtype, self.evaluation_dtype = step_dtype, evaluation_dtype
        self.usable, self.used, self._strict, self._points_at_once = True, False, strict, 1 << 30
        self.takes_steps, self.took_steps = True, False
        self._samples_at_once, self._copies_at_once = 0, 1 << 30
        self.captured = Captured(loop)
        self._whole: tuple[Inputs, Tensor] | None = None
        self._steps = Steps()
        self._compared: set[tuple[Any, ...]] = set()
        try:
            self._fold()
            largest = verify(self, *sample)
            if self.device.type == "cuda":
                share = torch.cuda.get_per_process_memory_fraction(self.device)
                memory = int(share * torch.cuda.get_device_properties(self.device).total_memory)
                width = torch.finfo(evaluation_dtype).bits // 8
                self._samples_at_once = memory // (EVALUATION_SHARE * LIVE * largest * width)
                self._copies_at_once = memory // (EVALUATION_SHARE * self.layout.dim * (4 + width))
        except Exception as reason:  # whatever a module does to points that it was not written for
            self._give_up(reason)
        on_gpu = self.device.type == "cuda"
        self._losses_of = compiled(self._losses) if on_gpu else self._losses
        self._evaluated = compiled(self._outputs) if on_gpu else self._outputs

    def _fold(self) -> None:
        if self.layout.dtype != torch.float32:
            raise LowlossError(f"its parameters are {self.layout.dtype}, not float32")
        if self.loop.frozen:
            raise LowlossError("it keeps a BatchNorm in evaluation mode")
        if self.loop.state:
            raise LowlossError(f"it keeps {self.loop.state.names[0]} of its calls")
        self.training, self.recording, self.inference = (fold(self.module) for _ in range(3))
        self.training.train()
        self.recording.eval()
        self.inference.eval()
        self._norms = record(self.recording)
        norms = [name for name, part in self.recording.named_modules() if isinstance(part, FoldedBatchNorm)]
        self._running = [f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")]
        buffers = dict(self.module.named_buffers())
        self._sizes = [buffers[name].numel() for name in self._running]
        dropouts = [name for name, part in self.training.named_modules() if isinstance(part, FoldedDropout)]
        self._dropouts = {f"{name}.seed": derive(0, "dropout", name) for name in dropouts}
        self._drops = any(part.p for part in self.training.modules() if isinstance(part, FoldedDropout))
        self._frozen = {name: p for name, p in self.module.named_parameters() if name not in self.layout.names}
        self._places = places(self.training)

    @property
    def device(self) -> torch.device:
        return next(self.module.parameters()).device

    def losses(self, theta_KP: Tensor, batch: Batch, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """As Loop.losses, in one replay, or in several where the points do not fit the memory together."""
        theta_KP = theta_KP.detach()
        points = len(theta_KP)
        at_once = min(points, self._points_at_once)

        def run() -> tuple[Tensor, Tensor | None]:
            parts = []
            for first in range(0, points, at_once):
                part_KP = theta_KP[first : first + at_once]
                rows = _rows(batch, first, first + len(part_KP))
                parts.append(self._checked(part_KP, rows, gradients))
            self.used = self.took_steps = True
            if len(parts) == 1:
                return parts[0]
            losses_K = torch.cat([losses for losses, _ in parts])
            return losses_K, torch.cat([found for _, found in parts if found is not None]) if gradients else None

        def loop() -> tuple[Tensor, Tensor | None]:
            return self.captured.losses(theta_KP, batch, gradients)

        if not points or not self.takes_steps:
            return loop()
        try:
            return self._or_loop(run, loop)
        except torch.OutOfMemoryError:
            if not self.usable or at_once == 1:
                raise
        # Not within the except: what has failed would keep its tensors until the end of that.
        self._steps.clear()
        torch.cuda.empty_cache()
        self._points_at_once = -(-at_once // 2)
        return self.losses(theta_KP, batch, gradients)

    @torch.no_grad()
    def statistics(self, theta_P: Tensor, x_N: Inputs, parts: Sequence[Tensor] | None) -> tuple[Buffers, Tensor | None]:
        """As Loop.statistics; all of x at once gives the outputs of evaluation in the same sweep."""
        buffers = dict(self.module.named_buffers())
        if not self.batch_norms:
            return buffers, None

        def run() -> tuple[Buffers, Tensor | None]:
            for norm in self._norms:
                norm.whole = parts is None
            parameters = separate(theta_P[None], self.layout.sizes)
            if parts is None:
                means, outputs = self._recorded(parameters, self._narrowed_whole(x_N))
            else:
                # A part has statistics of its own, as a point has: several go through as so many points.
                outputs, means = None, self._zeros(1)
                for group in self._groups(parts):
                    x = x_N[torch.cat(group).to(x_N.device)].unflatten(0, (len(group), -1))
                    torch._foreach_add_(means, self._recorded(parameters, self._narrowed(x))[0], alpha=1 / len(parts))
            return buffers | {name: mean_1C[0] for name, mean_1C in zip(self._running, means, strict=True)}, outputs

        least = len(x_N) if parts is None else len(parts[0])
        return self._fitting(run, lambda: self.loop.statistics(theta_P, x_N, parts), len(x_N), least)

    def outputs(
        self, theta_P: Tensor, buffers: Buffers, x_N: Inputs, at_once: int, streams: int | None = None
    ) -> Iterator[Tensor]:
        """As Loop.outputs, but more samples at once, where they fit."""
        if not self.usable or streams is not None:
            yield from self.loop.outputs(theta_P, buffers, x_N, at_once, streams)
            return
        given = {name: buffers[name][None] for name in self._running}
        with torch.no_grad():
            parameters = separate(theta_P[None], self.layout.sizes)

        @torch.no_grad()
        def of(span: slice) -> Tensor:
            x_B = x_N[span]
            return self._or_loop(
                lambda: self._evaluated(self.inference, parameters, self._narrowed(x_B[None]), given),
                lambda: torch.cat(list(self.loop.outputs(theta_P, buffers, x_B, at_once))),
            )

        parts = Parts(max(at_once, self._samples_at_once), at_once)
        for outputs in parts(of, len(x_N)):
            self._samples_at_once = min(self._samples_at_once, parts.size)
            yield outputs

    def _recorded(self, parameters: list[Tensor], x_KB: Tensor) -> tuple[list[Tensor], Tensor]:
        """BatchNorm's statistics at one point, each added up over K parts (1, C), and the outputs."""
        points, sums = len(x_KB), self._zeros(len(x_KB))
        if points > 1:
            parameters = [part.expand(points, -1).contiguous() for part in parameters]
            for tensor in (*parameters, *sums):
                torch._dynamo.mark_dynamic(tensor, 0)
        outputs = self._evaluated(self.recording, parameters, x_KB, dict(zip(self._running, sums, strict=True)))
        return sums if points == 1 else [sum_KC.sum(0, keepdim=True) for sum_KC in sums], outputs

    def _zeros(self, points: int) -> list[Tensor]:
        """For what BatchNorms keep, each in memory of its own.

        Of tensors that are written to and share memory the compiler compares all pairs: minutes, where there are a
        hundred and their sizes are not fixed.
        """
        zeros = [torch.empty(points, size, device=self.device) for size in self._sizes]
        torch._foreach_zero_(zeros)
        return zeros

    def _groups(self, parts: Sequence[Tensor]) -> Iterator[list[Tensor]]:
        """Parts of one length that go through together."""
        for length, group in groupby(parts, len):
            found = list(group)
            at_once = max(1, min(self._samples_at_once // length, self._copies_at_once))
            calls = -(-len(found) // at_once)
            for call in range(calls):
                yield found[call * len(found) // calls : (call + 1) * len(found) // calls]

    def _fitting(self, run: Callable[[], T], loop: Callable[[], T], samples: int, least: int) -> T:
        """What `run` gives, with as many of the samples at once as fit, `least` at least; or what the loop does."""
        while True:
            try:
                return self._or_loop(run, loop)
            except torch.OutOfMemoryError:
                if not self.usable or min(self._samples_at_once, samples) <= least:
                    raise
            # Not within the except: what has failed would keep its tensors until the end of that.
            torch.cuda.empty_cache()
            self._samples_at_once = min(self._samples_at_once, samples) // 2

    def _or_loop(self, run: Callable[[], T], loop: Callable[[], T]) -> T:
        """What `run` gives, or where it cannot the plain loop; too little memory is for the caller."""
        if self.usable:
            try:
                return run()
            except torch.OutOfMemoryError:
                raise
            except Exception as reason:
                self._give_up(reason)
        return loop()

    def _step(
        self, theta_KP: Tensor, rows: tuple[Tensor, Tensor, Tensor], gradients: bool
    ) -> tuple[Tensor, Tensor | None]:
        x_KB, y_KB, seeds_K = rows
        if self.device.type != "cuda":
            inputs = laid_out(x_KB, self.step_dtype), y_KB, seeds_K
            return differentiated(self._losses, theta_KP, *inputs, gradients=gradients)
        key = (tuple(x_KB.shape), gradients)
        if key not in self._steps:
            captured = theta_KP, laid_out(x_KB, self.step_dtype), y_KB, seeds_K.to(self.device)
            work = partial(differentiated, self._losses_of, gradients=gradients)
            self._steps.capture(key, work, captured, gradients)
        return self._steps[key](theta_KP, *rows)

    def _checked(self, theta_KP: Tensor, rows: tuple[Tensor, Tensor, Tensor], gradients: bool) -> Taken:
        """A step, the first of each kind compared with the plain loop's, if that fits the memory.

        Raises StepError where it is much further from float32 than autocast is.
        """
        kind, known = (len(theta_KP) > 1, tuple(rows[0].shape[1:]), gradients), None
        if kind not in self._compared:
            # Activations in the host's memory, if need be: it takes one point, and fewer at once would not help.
            for held in (nullcontext(), save_on_cpu()):
                try:
                    with held:
                        known = reference_step(self, theta_KP, rows, gradients)
                    break
                except torch.OutOfMemoryError:
                    pass
            else:
                log.warning("engine: a step could not be checked against float32, which does not fit the memory")
                self._compared.add(kind)
        taken = self._step(theta_KP, rows, gradients)
        if known is not None:
            compare_step(known, *taken)
            self._compared.add(kind)
        return taken

    def _losses(self, theta_KP: Tensor, x_KB: Tensor, y_KB: Tensor, seeds_K: Tensor) -> Tensor:
        # Tells the compiler that these are one size, without which it divides one by the other in every kernel.
        for tensor in (y_KB, seeds_K):
            torch._check(tensor.shape[0] == theta_KP.shape[0])
        parameters = separate(theta_KP, self.layout.sizes)
        outputs = widen(self._raw_outputs(self.training, parameters, x_KB, self._dropout_seeds(seeds_K)))
        return self.loop.task.losses(outputs, y_KB.flatten(0, 1)).view(y_KB.shape[:2]).mean(1)

    def _outputs(self, folded: nn.Module, parameters: list[Tensor], x_KB: Tensor, given: Buffers) -> Tensor:
        """(K·B, ...), in float32."""
        return self._raw_outputs(folded, parameters, x_KB, given).float()

    def _raw_outputs(self, folded: nn.Module, parameters: list[Tensor], x_KB: Tensor, given: Buffers) -> Tensor:
        """The same as the module gives them."""
        points = parameters[0].shape[0]
        torch._check(x_KB.shape[0] == points)
        layout = zip(self.layout.names, parameters, self.layout.shapes, strict=True)
        named = {name: part.view(points, *shape) for name, part, shape in layout}
        named |= {name: parameter.expand(points, *parameter.shape) for name, parameter in self._frozen.items()}
        named |= given
        tensors = {place: named[name] for place, name in self._places.items() if name in named}
        outputs: Tensor = functional_call(folded, tensors, (x_KB.flatten(0, 1),), tie_weights=False)
        return outputs

    def _dropout_seeds(self, seeds_K: Tensor) -> Buffers:
        return {name: seeds_K + site for name, site in self._dropouts.items()}

    def _narrowed_whole(self, x_N: Inputs) -> Tensor:
        """The same for a whole split, kept for the next point."""
        if self._whole is None or self._whole[0] is not x_N:
            self._whole = x_N, self._narrowed(x_N[:][None])
        return self._whole[1]

    def _narrowed(self, x_KB: Tensor) -> Tensor:
        x_KB = laid_out(x_KB, self.evaluation_dtype)
        axis = 0 if len(x_KB) > 1 else 1
        if x_KB.shape[axis] > 1:
            torch._dynamo.mark_dynamic(x_KB, axis)
        return x_KB

    def _give_up(self, reason: Exception) -> None:
        """Let the loop do everything, or where only steps were found to differ, those."""
        alone = isinstance(reason, StepError)
        self.usable, self.takes_steps = self.usable and alone, False
        self._steps.clear()
        name = type(self.module).__name__
        lines = [line.strip() for line in str(reason).splitlines() if line.strip()] or [type(reason).__name__]
        if any(line.startswith("Traceback") for line in lines):
            # So the compiler's processes tell their errors: the error is the last line but for advice.
            lines = [line for line in lines if not line.startswith("Set TORCH")][-1:]
        line = lines[0]
        if self._strict:
            raise LowlossError(
                f"{name} cannot run with engine=graph: {line} (engine=auto would take the plain loop)"
            ) from reason
        what = "takes its steps" if alone else "runs"
        log.warning("engine: %s %s on the plain loop: %s", name, what, line)


def _rows(batch: Batch, first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (k, B, ...), y (k, B) and seeds (k,) of the points from first to end."""
    count = end - first
    if batch.shared:
        x_KB, y_KB = batch.x.expand(count, *batch.x.shape), batch.y.expand(count, *batch.y.shape)
    else:
        x_KB, y_KB = batch.x[first:end], batch.y[first:end]
    # Points that share one seed share its dropout too, as on the loop.
    seeds_K = torch.tensor(batch.seeds[first:end] if len(batch.seeds) > 1 else batch.seeds * count)
    return x_KB, y_KB, seeds_K.pin_memory() if batch.x.is_cuda else seeds_K
