"""The engine for a GPU: K points in one compiled call, replayed as one CUDA graph.

A step of a small network is a thousand short kernels. Folding the points into the batch axis (folded.py) makes K
steps as many kernels as one, compilation fuses what lies between the convolutions, and a CUDA graph starts them
without the host. Steps compute in bfloat16, evaluation in float16 (it has three more bits, and nothing to overflow
at a point worth reporting); parameters, statistics, a linear layer at the end, losses and gradients are float32.

Shapes: K points, P parameters, B samples of a minibatch, C classes.
"""

from __future__ import annotations

import contextlib
import logging
import pickle
import random
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import groupby
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.functional import cross_entropy

from lowloss.data.base import Batch
from lowloss.errors import LowlossError
from lowloss.landscape.capture import Step, compiled, differentiated
from lowloss.landscape.engine import Buffers, Loop, alike, places
from lowloss.landscape.folded import FoldedBatchNorm, FoldedDropout, FoldedLinear, fold, record, separate, widen
from lowloss.seeding import derive

AGREEMENT = 1e-3
"""Relative difference of outputs from the plain loop's, both in float32, up to which a folded module is trusted."""

ROUNDING = 1e-5
"""And absolute, where there is next to nothing to compare with."""

MOVE, MOVED = 1e-6, 3.0
"""A relative change of parameters that stands for rounding, and by how often what it does to a step is allowed for."""

LOSS_ROUNDING, GRADIENT_ROUNDING = 0.05, 0.5
"""How far a step in 16 bits may be from float32: in its loss (relative above 1), and its gradient's cosine."""

LOSS_ROOM, GRADIENT_ROOM, AUTOCAST_ROOM = 0.01, 0.1, 4.0
"""And relative to it, besides so often as far as autocast is."""

EVALUATION_SHARE, LIVE = 8, 4
"""What part of a GPU's memory the samples evaluated at once may take, which leaves room for other processes, and how
many activations as large as the largest live at once."""

KEPT = 16
"""CUDA graphs kept at once."""

T = TypeVar("T")

log = logging.getLogger("lowloss")


class Graph:
    """K points at once; a module that cannot be folded, compiled or captured runs on the plain loop instead.

    Args:
        loop: the plain engine of the same module.
        sample: a few inputs of the data, to compare the two.
        step_dtype: of activations in `losses`.
        evaluation_dtype: of activations in `statistics` and `logits`.
        strict: raise LowlossError instead of running on the plain loop.
    """

    def __init__(
        self,
        loop: Loop,
        sample: Tensor,
        step_dtype: torch.dtype,
        evaluation_dtype: torch.dtype,
        strict: bool = False,
    ) -> None:
        self.loop, self.module, self.layout, self.batch_norms = loop, loop.module, loop.layout, loop.batch_norms
        self.step_dtype, self.evaluation_dtype = step_dtype, evaluation_dtype
        self.usable, self.used, self._strict, self._points_at_once = True, False, strict, 1 << 30
        self._samples_at_once, self._copies_at_once = 0, 1 << 30
        self._whole: tuple[Tensor, Tensor] | None = None
        self._steps: dict[tuple[Any, ...], Step] = {}
        self._compared: set[tuple[Any, ...]] = set()
        try:
            self._fold()
            self._verify(sample)
        except Exception as reason:  # whatever a module does to points that it was not written for
            self._give_up(reason)
        on_gpu = self.device.type == "cuda"
        self._losses_of = compiled(self._losses) if on_gpu else self._losses
        self._evaluated = compiled(self._outputs) if on_gpu else self._outputs

    def _fold(self) -> None:
        if self.layout.dtype != torch.float32:
            raise LowlossError(f"its parameters are {self.layout.dtype}, not float32")
        self.training, self.recording, self.inference = (fold(self.module) for _ in range(3))
        self.training.train()
        self.recording.eval()
        self.inference.eval()
        self._norms = record(self.recording)
        norms = [name for name, part in self.recording.named_modules() if isinstance(part, FoldedBatchNorm)]
        self._running = [f"{name}.{kind}" for name in norms for kind in ("running_mean", "running_var")]
        buffers = dict(self.module.named_buffers())
        self._sizes = [buffers[name].numel() for name in self._running]
        self._widths = [-(-size // 4) * 4 for size in self._sizes]
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
                parts.append(self._step(part_KP, rows, gradients))
                self._check_first(part_KP, rows, *parts[-1])
            self.used = True
            if len(parts) == 1:
                return parts[0]
            losses_K = torch.cat([losses for losses, _ in parts])
            return losses_K, torch.cat([found for _, found in parts if found is not None]) if gradients else None

        def loop() -> tuple[Tensor, Tensor | None]:
            return self.loop.losses(theta_KP, batch, gradients)

        if not points:
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
    def statistics(self, theta_P: Tensor, x_N: Tensor, parts: Sequence[Tensor] | None) -> tuple[Buffers, Tensor | None]:
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
                outputs, means = None, torch.zeros(1, sum(self._widths), device=self.device)
                for group in self._groups(parts):
                    x = x_N[torch.cat(group).to(x_N.device)].unflatten(0, (len(group), -1))
                    means += self._recorded(parameters, self._narrowed(x))[0] / len(parts)
            return buffers | {name: mean[0] for name, mean in self._given(means).items()}, outputs

        least = len(x_N) if parts is None else len(parts[0])
        return self._fitting(run, lambda: self.loop.statistics(theta_P, x_N, parts), len(x_N), least)

    @torch.no_grad()
    def logits(self, theta_P: Tensor, buffers: Buffers, x_N: Tensor, at_once: int) -> Tensor:
        """As Loop.logits, but more samples at once, where they fit."""

        def run() -> Tensor:
            given = {name: buffers[name][None] for name in self._running}
            parameters = separate(theta_P[None], self.layout.sizes)
            chunks = (self._narrowed(x[None]) for x in alike(x_N, max(at_once, self._samples_at_once)))
            return torch.cat([self._evaluated(self.inference, parameters, x_1B, given) for x_1B in chunks])

        return self._fitting(run, lambda: self.loop.logits(theta_P, buffers, x_N, at_once), len(x_N), at_once)

    def _recorded(self, parameters: list[Tensor], x_KB: Tensor) -> tuple[Tensor, Tensor]:
        """BatchNorm's statistics at one point, added up over K parts and side by side (1, ...), and the outputs."""
        points = len(x_KB)
        # One allocation for all, each starting where compiled code expects tensors to start.
        zeros = torch.zeros(points, sum(self._widths), device=self.device)
        given = self._given(zeros)
        if points > 1:
            parameters = [part.expand(points, -1).contiguous() for part in parameters]
            for tensor in (*parameters, *given.values()):
                torch._dynamo.mark_dynamic(tensor, 0)
        outputs = self._evaluated(self.recording, parameters, x_KB, given)
        return zeros.sum(0, keepdim=True), outputs

    def _given(self, side_by_side_KC: Tensor) -> Buffers:
        parts_KC = side_by_side_KC.split(self._widths, 1)
        return {
            name: part_KC[:, :size] for name, part_KC, size in zip(self._running, parts_KC, self._sizes, strict=True)
        }

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
            inputs = _laid_out(x_KB, self.step_dtype), y_KB, seeds_K
            return differentiated(self._losses, theta_KP, *inputs, gradients=gradients)
        key = (tuple(x_KB.shape), gradients)
        if key not in self._steps:
            if len(self._steps) >= KEPT:
                self._steps.pop(next(iter(self._steps)))
            inputs = _laid_out(x_KB, self.step_dtype), y_KB, seeds_K.to(self.device)
            # Graphs share their memory, of which those before have no need when one runs.
            pool = next(iter(self._steps.values())).graph.pool() if self._steps else None
            self._steps[key] = Step(self._losses_of, theta_KP, inputs, gradients, pool)
        return self._steps[key](theta_KP, *rows)

    def _check_first(
        self, theta_KP: Tensor, rows: tuple[Tensor, Tensor, Tensor], losses_K: Tensor, gradients_KP: Tensor | None
    ) -> None:
        """Compare the first step of each kind with the plain loop's, if that fits the memory.

        Raises LowlossError where it is much further from float32 than autocast is.
        """
        kind = len(theta_KP) > 1, tuple(rows[0].shape[1:]), gradients_KP is not None
        if kind in self._compared:
            return
        try:
            if self._compare(theta_KP, rows, losses_K, gradients_KP):
                self._compared.add(kind)
        except torch.OutOfMemoryError:
            # It takes one point: fewer at once would not help.
            log.warning("engine: a step could not be checked against float32, which does not fit the memory")
            self._compared.add(kind)

    def _compare(
        self, theta_KP: Tensor, rows: tuple[Tensor, Tensor, Tensor], losses_K: Tensor, gradients_KP: Tensor | None
    ) -> bool:
        """Whether a step could be compared with the plain loop's, in float32 and in autocast: wrong is far worse.

        At the last point: what a kernel mistakes lies rather far from where it begins. The loop draws other dropout;
        there the folded module, uncompiled and in float32, is what to compare with.
        """
        gradients = gradients_KP is not None
        theta_1P, x_1B, y_1B, seeds_1 = (part[-1:] for part in (theta_KP, *rows))
        batch = Batch(x_1B, y_1B, (int(seeds_1),))
        exact = narrow = Loop(self.module, self.layout).losses(theta_1P, batch, gradients)
        if self.step_dtype != torch.float32:
            narrow = Loop(self.module, self.layout, self.step_dtype).losses(theta_1P, batch, gradients)
        loss_1, gradient_1P = exact
        if self._drops:
            inputs = _laid_out(x_1B, torch.float32), y_1B, seeds_1.to(self.device)
            loss_1, gradient_1P = differentiated(self._losses, theta_1P, *inputs, gradients=gradients)
        if not loss_1.isfinite():
            return False
        told = "its first {} is {:.2g} (relative) from float32, autocast {:.2g}"
        scale = loss_1.norm().clamp_min(1)
        far, rounded = _apart(losses_K[-1:], loss_1, scale), _apart(narrow[0], exact[0], scale)
        if not far <= min(LOSS_ROUNDING, LOSS_ROOM + AUTOCAST_ROOM * rounded):
            raise LowlossError(told.format("loss", far, rounded))
        if gradients_KP is not None and gradient_1P is not None and gradient_1P.any():
            scale = gradient_1P.norm()
            far, rounded = _apart(gradients_KP[-1:], gradient_1P, scale), _apart(narrow[1], exact[1], scale)
            cosine = torch.cosine_similarity(gradients_KP[-1], gradient_1P[0], dim=0)
            if not (far <= GRADIENT_ROOM + AUTOCAST_ROOM * rounded and cosine >= GRADIENT_ROUNDING):
                raise LowlossError(told.format("gradient", far, rounded))
        return True

    def _losses(self, theta_KP: Tensor, x_KB: Tensor, y_KB: Tensor, seeds_K: Tensor) -> Tensor:
        # Tells the compiler that these are one size, without which it divides one by the other in every kernel.
        for tensor in (y_KB, seeds_K):
            torch._check(tensor.shape[0] == theta_KP.shape[0])
        parameters = separate(theta_KP, self.layout.sizes)
        outputs = widen(self._raw_outputs(self.training, parameters, x_KB, self._dropout_seeds(seeds_K)))
        return cross_entropy(outputs, y_KB.flatten(), reduction="none").view(y_KB.shape).mean(1)

    def _outputs(self, folded: nn.Module, parameters: list[Tensor], x_KB: Tensor, given: Buffers) -> Tensor:
        """(K·B, C), in float32."""
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

    def _narrowed_whole(self, x_N: Tensor) -> Tensor:
        """The same for a whole split, kept for the next point."""
        if self._whole is None or self._whole[0] is not x_N:
            self._whole = x_N, self._narrowed(x_N[None])
        return self._whole[1]

    def _narrowed(self, x_KB: Tensor) -> Tensor:
        x_KB = _laid_out(x_KB, self.evaluation_dtype)
        axis = 0 if len(x_KB) > 1 else 1
        if x_KB.shape[axis] > 1:
            torch._dynamo.mark_dynamic(x_KB, axis)
        return x_KB

    def _verify(self, sample: Tensor) -> None:
        """Compare with the plain loop at two points on a few samples each, in float32, in each of its modes.

        Raises LowlossError where a module does not act on each sample alone between its layers.
        """
        own_P = self.layout.flatten(dict(self.module.named_parameters()))
        ramp_P = torch.linspace(-1, 1, len(own_P)).to(own_P)
        # The sum moves what starts at zero, as a last layer may, and would hide everything before it.
        wave_P = torch.arange(len(own_P), device=own_P.device).to(own_P).cos()
        own_2P = torch.stack([own_P, own_P * (1 + 0.3 * ramp_P) + 0.02 * wave_P])
        # Each point its own samples: what mixes those of several would go unseen where they are the same.
        count = min(4, len(sample))
        x_2B = torch.stack([sample[:count], sample[-count:]])
        y_2B = torch.zeros(2, count, dtype=torch.int64, device=self.device)
        seeds_2 = torch.zeros(2, dtype=torch.int64, device=self.device)
        buffers = self.loop.fresh_buffers()
        given = {name: buffers[name].expand(2, *buffers[name].shape) for name in self._running}
        sums_2C = torch.zeros(2, sum(self._widths), device=self.device)
        once = [part for part in self.training.modules() if isinstance(part, (FoldedDropout, FoldedBatchNorm))]
        once = [part for part in once if not isinstance(part, FoldedDropout) or part.p]
        calls: Counter[nn.Module] = Counter()
        hooks = [part.register_forward_hook(lambda part, *_: calls.update([part])) for part in once]
        activations = [x_2B[0, 0].numel()]
        given_by: dict[Tensor, str] = {}

        def note(name: str, part: nn.Module, inputs: Any, output: Any) -> None:
            if isinstance(output, Tensor):
                activations.append(output.numel() // (2 * count))
                given_by.setdefault(output, name)  # not what hands it on

        hooks += [part.register_forward_hook(partial(note, name)) for name, part in self.inference.named_modules()]
        with torch.no_grad(), self.loop.exact():
            parameters, laid_out = separate(own_2P, self.layout.sizes), _laid_out(x_2B, sample.dtype)
            outputs = self._outputs(self.inference, parameters, laid_out, given)
            for module in (self.training, self.recording, self.inference):
                part = module.get_submodule(given_by.get(outputs, ""))
                if isinstance(part, FoldedLinear):
                    part.last = True
            before = _random_states(self.device), [buffer.clone() for buffer in self.training.buffers()]
            self._losses(own_2P, x_2B, y_2B, seeds_2)
            if not all(map(torch.equal, before[0], _random_states(self.device))):
                raise LowlossError("it draws random numbers outside of nn.Dropout")
            same = partial(torch.allclose, rtol=0, atol=0, equal_nan=True)
            if not all(map(same, before[1], self.training.buffers())):
                raise LowlossError("it changes its buffers outside of BatchNorm")
            for hook in hooks:
                hook.remove()
            for part in (part for part, times in calls.items() if times > 1):
                kind, one = ("Dropout", "mask") if isinstance(part, FoldedDropout) else ("BatchNorm", "statistic")
                raise LowlossError(f"a {kind} of it is used at several places, which would get one {one}")
            if sample.is_cuda:
                memory = torch.cuda.get_device_properties(sample.device).total_memory
                width = torch.finfo(self.evaluation_dtype).bits // 8
                self._samples_at_once = memory // (EVALUATION_SHARE * LIVE * max(activations) * width)
                self._copies_at_once = memory // (EVALUATION_SHARE * len(own_P) * (4 + width))
            with _without_dropout(self.module), _without_dropout(self.training):
                loop, batch = Loop(self.module, self.layout), Batch(x_2B, y_2B, (0, 0))
                plain = loop.losses(own_2P, batch, True)
                # How far rounding may move them: far, where BatchNorm has few numbers to normalise by.
                moved = loop.losses(own_2P * (1 + MOVE * wave_P), batch, True)
                folded = differentiated(self._losses, own_2P, x_2B, y_2B, seeds_2, gradients=True)
            pairs = []
            for k in range(2):
                expected = self.loop.logits(own_2P[k], buffers, x_2B[k], count)
                pairs.append((outputs.unflatten(0, (2, -1))[k], expected, AGREEMENT * expected.norm()))
                for ours, exact, near, close in zip(folded, plain, moved, (1, 10), strict=True):
                    assert ours is not None
                    assert exact is not None
                    assert near is not None
                    room = close * AGREEMENT * exact[k].norm() + MOVED * (near[k] - exact[k]).norm()
                    pairs.append((ours[k], exact[k], room))
            if self.batch_norms:
                self._outputs(self.recording, parameters, laid_out, self._given(sums_2C))
                summed = self._given(sums_2C)
                for k in range(2):
                    known, _ = self.loop.statistics(own_2P[k], x_2B[k], None)
                    for mean, var in zip(self._running[::2], self._running[1::2], strict=True):
                        if not known[mean.removesuffix("running_mean") + "num_batches_tracked"]:
                            continue  # not in use
                        # Together, as a mean near zero is only as exact as its channel varies.
                        ours, exact = _spread(summed[mean][k], summed[var][k]), _spread(known[mean], known[var])
                        pairs.append((ours, exact, 10 * AGREEMENT * exact.norm()))
        for ours, exact, room in pairs:
            # Past the numbers there is nothing to compare.
            if exact.isfinite().all() and not (ours - exact).norm() <= room + ROUNDING:
                raise LowlossError(
                    "several points at once give other outputs than each by itself: its samples or parameters meet "
                    "outside of the known layers, or its control flow depends on the data"
                )

    def _give_up(self, reason: Exception) -> None:
        self.usable = False
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
        log.warning("engine: %s runs on the plain loop: %s", name, line)


def _rows(batch: Batch, first: int, end: int) -> tuple[Tensor, Tensor, Tensor]:
    """x (k, B, ...), y (k, B) and seeds (k,) of the points from first to end."""
    count = end - first
    if batch.shared:
        x_KB, y_KB = batch.x.expand(count, *batch.x.shape), batch.y.expand(count, -1)
        # Points that share a minibatch share its dropout too, as on the loop.
        seeds_K = torch.tensor(batch.seeds[:1] * count)
    else:
        x_KB, y_KB, seeds_K = batch.x[first:end], batch.y[first:end], torch.tensor(batch.seeds[first:end])
    return x_KB, y_KB, seeds_K.pin_memory() if batch.x.is_cuda else seeds_K


def _laid_out(x_KB: Tensor, dtype: torch.dtype) -> Tensor:
    """x (K, B, ...) as floating point numbers of a dtype, images channels last."""
    if not x_KB.is_floating_point():
        return x_KB.contiguous()
    if x_KB.dim() != 5:
        return x_KB.to(dtype).contiguous()
    shape = (x_KB.shape[0] * x_KB.shape[1], *x_KB.shape[2:])
    out = torch.empty(shape, dtype=dtype, device=x_KB.device, memory_format=torch.channels_last)
    return out.unflatten(0, x_KB.shape[:2]).copy_(x_KB)


def _apart(ours: Tensor | None, theirs: Tensor | None, scale: Tensor) -> float:
    assert ours is not None
    assert theirs is not None
    return float((ours - theirs).norm() / scale)


def _spread(mean_C: Tensor, var_C: Tensor) -> Tensor:
    return torch.cat([mean_C, var_C.sqrt()])


def _random_states(device: torch.device) -> list[Tensor]:
    """Of every generator that a module may draw from."""
    of_numpy = pickle.dumps(np.random.get_state())  # noqa: NPY002
    states = [torch.get_rng_state(), torch.tensor(hash(random.getstate())), torch.tensor(hash(of_numpy))]
    return [*states, torch.cuda.get_rng_state(device)] if device.type == "cuda" else states


@contextlib.contextmanager
def _without_dropout(module: nn.Module) -> Iterator[None]:
    parts = [part for part in module.modules() if isinstance(part, nn.modules.dropout._DropoutNd)]
    rates = [part.p for part in parts]
    for part in parts:
        part.p = 0.0
    try:
        yield
    finally:
        for part, rate in zip(parts, rates, strict=True):
            part.p = rate
