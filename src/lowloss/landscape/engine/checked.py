"""What is checked of the graph engine: a folded module, first steps, and at which losses 16 bits are trusted.

Shapes: K points, P parameters, B samples of a minibatch, C channels.
"""

from __future__ import annotations

import contextlib
import pickle
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from functools import partial
from math import inf
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from lowloss.data.base import Batch
from lowloss.errors import LowlossError
from lowloss.landscape.engine.capture import differentiated, laid_out
from lowloss.landscape.engine.folded import FoldedBatchNorm, FoldedDropout, FoldedLinear, separate
from lowloss.landscape.engine.loop import Loop

if TYPE_CHECKING:
    from lowloss.landscape.engine.graph import Graph

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

LOSS_AGREEMENT, ERROR_AGREEMENT = 1e-3, 5e-4
"""How far evaluation in 16 bits may be from float32, in nats (relative above 1) and as a fraction of the samples."""


class Trust:
    """Of one split: from half the lowest to twice the highest loss that float32 confirmed, below the first it did not.

    Args:
        samples: of the split; one of them may fall on either side by rounding.
        units: of the task's metrics.
    """

    def __init__(self, samples: int, units: Mapping[str, str]) -> None:
        self._fractions = {name for name, unit in units.items() if unit == "fraction"}
        self._error_agreement = ERROR_AGREEMENT + 1 / samples
        self._lowest, self._highest = inf, -inf
        self.limit = inf
        """The lowest loss at which the two differed, from which on float32 is reported."""

    def holds(self, loss_K: Tensor) -> Tensor:
        """Which points are reported as 16 bits give them; none that is not a number."""
        return (loss_K <= 2 * self._highest) & (loss_K < self.limit)

    def doubtful(self, loss_K: Tensor, lowest: bool) -> int | None:
        """The highest or the lowest point below the limit, unless its loss is near one that was confirmed."""
        below_K = loss_K < self.limit
        if not below_K.any():
            return None
        k = int(loss_K.where(below_K, inf).argmin() if lowest else loss_K.where(below_K, -inf).argmax())
        # Lower than what float32 has to agree with, one is as another.
        near = self._lowest / 2 <= max(float(loss_K[k]), LOSS_AGREEMENT) and loss_K[k] <= 2 * self._highest
        return None if near else k

    def compare(self, fast: Mapping[str, float], exact: Mapping[str, float]) -> bool:
        """Learn from the metrics of a point in 16 bits and in float32, and say whether they agree."""
        loss = fast["loss"]
        rooms = {
            name: self._error_agreement if name in self._fractions else LOSS_AGREEMENT * max(1.0, abs(value))
            for name, value in exact.items()
        }
        agree = all(abs(fast[name] - exact[name]) <= room for name, room in rooms.items())
        if agree:
            self._lowest = min(self._lowest, max(loss, LOSS_AGREEMENT))
            self._highest = max(self._highest, loss)
        else:
            self.limit = loss
            if loss <= 2 * self._highest:
                # Then what was confirmed says nothing of what lies below.
                self._lowest, self._highest = inf, -inf
        return agree

    def unchecked(self) -> None:
        """Trust every loss below the limit: there is no memory to compare."""
        self._lowest, self._highest = -inf, inf


class StepError(LowlossError):
    """A folded module's steps are not what the loop's are; of its evaluation that tells nothing."""


Taken = tuple[Tensor, Tensor | None]
"""Losses (1,) and gradients (1, P) of a step."""


def reference_step(
    graph: Graph, theta_KP: Tensor, rows: tuple[Tensor, Tensor, Tensor], gradients: bool
) -> tuple[Taken, Taken, Taken] | None:
    """The plain loop's step at the last point, in float32 and in autocast, and what to compare with.

    At the last point: what a kernel mistakes lies rather far from where it begins. The loop draws other dropout;
    there the folded module, uncompiled and in float32, is what to compare with. None where the loss is not finite.

    Raises StepError where 16 bits leave nothing of the gradient, before anything is compiled for them.
    """
    theta_1P, x_1B, y_1B, seeds_1 = (part[-1:] for part in (theta_KP, *rows))
    batch = Batch(x_1B, y_1B, (int(seeds_1),), shared=False)
    exact = narrow = compared = Loop(graph.module, graph.layout, graph.loop.task).losses(theta_1P, batch, gradients)
    if graph.step_dtype != torch.float32:
        narrow = Loop(graph.module, graph.layout, graph.loop.task, graph.step_dtype).losses(theta_1P, batch, gradients)
    if graph._drops:
        inputs = laid_out(x_1B, torch.float32), y_1B, seeds_1.to(graph.device)
        compared = differentiated(graph._losses, theta_1P, *inputs, gradients=gradients)
    if not compared[0].isfinite():
        return None
    # Dropout draws other numbers in 16 bits.
    if narrow[1] is not None and exact[1] is not None and exact[1].any() and not graph._drops:
        cosine = float(torch.cosine_similarity(narrow[1][0], exact[1][0], dim=0))
        if not cosine >= GRADIENT_ROUNDING:
            raise StepError(f"its first gradient in {graph.step_dtype} has a cosine of {cosine:.2g} with float32's")
    return exact, narrow, compared


def compare_step(known: tuple[Taken, Taken, Taken], losses_K: Tensor, gradients_KP: Tensor | None) -> None:
    """Raise StepError where a step is much further from float32 than autocast is: wrong is far worse."""
    exact, narrow, (loss_1, gradient_1P) = known
    told = "its first {} is {:.2g} (relative) from float32, autocast {:.2g}"
    scale = loss_1.norm().clamp_min(1)
    far, rounded = _apart(losses_K[-1:], loss_1, scale), _apart(narrow[0], exact[0], scale)
    if not far <= min(LOSS_ROUNDING, LOSS_ROOM + AUTOCAST_ROOM * rounded):
        raise StepError(told.format("loss", far, rounded))
    if gradients_KP is not None and gradient_1P is not None and gradient_1P.any():
        scale = gradient_1P.norm()
        far, rounded = _apart(gradients_KP[-1:], gradient_1P, scale), _apart(narrow[1], exact[1], scale)
        cosine = torch.cosine_similarity(gradients_KP[-1], gradient_1P[0], dim=0)
        if not (far <= GRADIENT_ROOM + AUTOCAST_ROOM * rounded and cosine >= GRADIENT_ROUNDING):
            raise StepError(told.format("gradient", far, rounded))


def verify(graph: Graph, sample: Tensor, targets: Tensor) -> int:
    """Compare with the plain loop at two points on a few samples each, in float32, in each of its modes.

    Returns the numbers of the largest activation of a sample. Raises LowlossError where a module does not act on each
    sample alone between its layers.
    """
    own_P = graph.layout.flatten(dict(graph.module.named_parameters()))
    ramp_P = torch.linspace(-1, 1, len(own_P)).to(own_P)
    # The sum moves what starts at zero, as a last layer may, and would hide everything before it.
    wave_P = torch.arange(len(own_P), device=own_P.device).to(own_P).cos()
    own_2P = torch.stack([own_P, own_P * (1 + 0.3 * ramp_P) + 0.02 * wave_P])
    # Each point its own samples: what mixes those of several would go unseen where they are the same.
    count = min(4, len(sample))
    x_2B = torch.stack([sample[:count], sample[-count:]])
    y_2B = torch.stack([targets[:count], targets[-count:]])
    seeds_2 = torch.zeros(2, dtype=torch.int64, device=graph.device)
    buffers = graph.loop.fresh_buffers()
    given = {name: buffers[name].expand(2, *buffers[name].shape) for name in graph._running}
    once = [part for part in graph.training.modules() if isinstance(part, (FoldedDropout, FoldedBatchNorm))]
    once = [part for part in once if not isinstance(part, FoldedDropout) or part.p]
    calls: Counter[nn.Module] = Counter()
    hooks = [part.register_forward_hook(lambda part, *_: calls.update([part])) for part in once]
    activations = [x_2B[0, 0].numel()]
    given_by: dict[Tensor, str] = {}

    def note(name: str, part: nn.Module, inputs: Any, output: Any) -> None:
        if isinstance(output, Tensor):
            activations.append(output.numel() // (2 * count))
            given_by.setdefault(output, name)  # not what hands it on

    hooks += [part.register_forward_hook(partial(note, name)) for name, part in graph.inference.named_modules()]
    with torch.no_grad(), graph.loop.exact():
        parameters, inputs = separate(own_2P, graph.layout.sizes), laid_out(x_2B, sample.dtype)
        outputs = graph._outputs(graph.inference, parameters, inputs, given)
        for module in (graph.training, graph.recording, graph.inference):
            part = module.get_submodule(given_by.get(outputs, ""))
            if isinstance(part, FoldedLinear):
                part.last = True
        before = _random_states(graph.device), [buffer.clone() for buffer in graph.training.buffers()]
        graph._losses(own_2P, x_2B, y_2B, seeds_2)
        if not all(map(torch.equal, before[0], _random_states(graph.device))):
            raise LowlossError("it draws random numbers outside of nn.Dropout")
        same = partial(torch.allclose, rtol=0, atol=0, equal_nan=True)
        if not all(map(same, before[1], graph.training.buffers())):
            raise LowlossError("it changes its buffers outside of BatchNorm")
        for hook in hooks:
            hook.remove()
        for part in (part for part, times in calls.items() if times > 1):
            kind, one = ("Dropout", "mask") if isinstance(part, FoldedDropout) else ("BatchNorm", "statistic")
            raise LowlossError(f"a {kind} of it is used at several places, which would get one {one}")
        with _without_dropout(graph.module), _without_dropout(graph.training):
            loop, batch = Loop(graph.module, graph.layout, graph.loop.task), Batch(x_2B, y_2B, (0, 0), shared=False)
            plain = loop.losses(own_2P, batch, True)
            # How far rounding may move them: far, where BatchNorm has few numbers to normalise by.
            moved = loop.losses(own_2P * (1 + MOVE * wave_P), batch, True)
            folded = differentiated(graph._losses, own_2P, x_2B, y_2B, seeds_2, gradients=True)
        pairs = []
        for k in range(2):
            expected = torch.cat(list(graph.loop.outputs(own_2P[k], buffers, x_2B[k], count)))
            pairs.append((outputs.unflatten(0, (2, -1))[k], expected, AGREEMENT * expected.norm()))
            for ours, exact, near, close in zip(folded, plain, moved, (1, 10), strict=True):
                assert ours is not None
                assert exact is not None
                assert near is not None
                room = close * AGREEMENT * exact[k].norm() + MOVED * (near[k] - exact[k]).norm()
                pairs.append((ours[k], exact[k], room))
        if graph.batch_norms:
            summed = dict(zip(graph._running, graph._zeros(2), strict=True))
            graph._outputs(graph.recording, parameters, inputs, summed)
            for k in range(2):
                known, _ = graph.loop.statistics(own_2P[k], x_2B[k], None)
                for mean, var in zip(graph._running[::2], graph._running[1::2], strict=True):
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
    return max(activations)


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
    rates = {part: part.p for part in module.modules() if isinstance(part, nn.modules.dropout._DropoutNd)}
    for part in rates:
        part.p = 0.0
    try:
        yield
    finally:
        for part, rate in rates.items():
            part.p = rate
