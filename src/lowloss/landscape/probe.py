"""A look at a module before work starts: whether its loss is a function of the parameters alone.

Whatever else a module changes when it runs would have a point's loss depend on what ran before it. BatchNorm's
statistics are recomputed at every point; anything else that changes and matters is refused by its name.
"""

import copy
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from lowloss.data.base import Batch
from lowloss.errors import LowlossError
from lowloss.landscape.engine.loop import FOREIGN, Buffers, Loop

LATER = (1, 7, 1000, 10**6)
"""Calls by which a counter is moved on, to see whether the loss ever depends on it."""

STATISTICS = "running_mean", "running_var", "num_batches_tracked"
"""The buffers of a BatchNorm that are recomputed."""

log = logging.getLogger("lowloss")


def probe(loop: Loop, theta_P: Tensor, other_P: Tensor, batch: Batch, untouched: nn.Module | None = None) -> bool:
    """Whether the loss of a sample in training depends on those beside it. Find out from which generators a module
    draws, and refuse state of its own that its loss depends on.

    Evaluates A, takes a step at B, and evaluates A again; and once more with what the step left. Then what never ran
    evaluates B and A. Each sample is evaluated beside itself, too.

    theta_P, other_P: A and B.  batch: a few samples.  untouched: the module as it was before its first call, if it can
    be had.

    Raises LowlossError: a buffer or an attribute that the module changes matters.
    """
    name, before = type(loop.module).__name__, _foreign_states()
    attributes, fresh = _attributes(loop.module), loop.fresh_buffers()
    first = _looked_at(loop, theta_P, fresh, batch)
    loop.foreign = tuple(kind for kind, state in _foreign_states().items() if state != before[kind])
    if loop.foreign:  # now seeded
        first = _looked_at(loop, theta_P, fresh, batch)
    _check_norms(loop, theta_P, batch)
    left = loop.fresh_buffers()
    with loop.holding(left, shared=True):
        for _ in range(3):
            loop.losses(other_P[None], batch, gradients=True)
    counts = _attributes(loop.module)
    again = _looked_at(loop, theta_P, fresh, batch)
    loop.counters = _counters(loop.module, counts)
    if not _same(first, again) or any(not _same(first, moved) for moved in _moved(loop, theta_P, fresh, batch)):
        changed = _changed(loop.module, attributes)
        what = f"changes {', '.join(changed[:2])}" if changed else "has state outside of parameters and buffers"
        raise LowlossError(
            f"{name} {what} when it runs, and its loss depends on that, not on its parameters alone: keep "
            "statistics in nn.BatchNorm, or compute them anew in each forward pass"
        )
    if loop.counters:
        told = ", ".join(key for _, key, _ in loop.counters[:2])
        log.warning("%s changes %s when it runs: every call finds that as it was", name, told)
    known = {id(getattr(part, kind)) for part in loop.batch_norms for kind in STATISTICS}
    own = {key for key, buffer in loop.module.named_buffers() if id(buffer) not in known}
    changed = sorted(key for key in own if not torch.equal(left[key], fresh[key]))
    held = [{key: _later(left[key], by) for key in own} for by in (0, *LATER)] if changed else []
    if any(not _same(first, _looked_at(loop, theta_P, {**fresh, **one}, batch)) for one in held):
        raise LowlossError(
            f"{name} changes its buffer {changed[0]} in training, and its loss depends on it, not on its parameters "
            "alone: only nn.BatchNorm's statistics are recomputed at every point (spectral norm and statistics of "
            "one's own are not): take them out"
        )
    if untouched is not None:
        _check_first_call(copy.deepcopy(untouched), loop, theta_P, other_P, batch, first)
        _check_modes(untouched, loop, other_P, batch)
    loop.evaluation_seed = 1
    if not _same(first[:1], _looked_at(loop, theta_P, fresh, batch)[:1]):
        log.warning("%s draws random numbers in evaluation: every point draws the same ones", name)
    loop.evaluation_seed = 0
    return _couples(loop, theta_P, fresh, batch, first)


def _couples(loop: Loop, theta_P: Tensor, buffers: Buffers, batch: Batch, first: list[Tensor]) -> bool:
    """Whether the mean loss of two samples in training is not the mean of theirs, each beside itself; tells where
    outputs in evaluation depend on the samples beside them."""
    if len(batch.y) != 2:
        return False
    pairs = [batch._replace(x=batch.x[[k, k]], y=batch.y[[k, k]]) for k in (0, 1)]
    outputs, losses = zip(*(_looked_at(loop, theta_P, buffers, pair) for pair in pairs), strict=True)
    if not _same([first[0]], [torch.stack([outputs[0][0], outputs[1][1]])], 100):
        log.warning(
            "%s gives a sample other outputs beside other samples, in evaluation too: exact losses depend on "
            "evaluation_batch and the device", type(loop.module).__name__,
        )  # fmt: skip
    return not _same([first[1]], [(losses[0] + losses[1]) / 2], 100)


def _check_norms(loop: Loop, theta_P: Tensor, batch: Batch) -> None:
    """Raise LowlossError if a BatchNorm's statistics, recomputed, are not the means and variances of its inputs."""
    inputs: dict[nn.Module, list[Tensor]] = {part: [] for part in loop.batch_norms}
    asleep = set[nn.Module]()

    def look(part: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[part].append(given[0].detach())
        asleep.update([] if part.training else [part])

    own = [(buffer, buffer.clone()) for part in inputs for buffer in part.buffers()]
    hooks = [part.register_forward_pre_hook(look) for part in inputs]
    try:
        buffers, _ = loop.statistics(theta_P, batch.x, None)
    finally:
        for hook in hooks:
            hook.remove()
        for buffer, before in own:  # which were reset
            buffer.copy_(before)
    evaluated = _outputs(loop, theta_P, buffers, batch)
    for path, part in loop.module.named_modules():
        mean, var, _ = (f"{path}.{kind}" if path else kind for kind in STATISTICS)
        if part not in inputs or mean not in buffers:
            continue
        if uses := inputs[part]:
            wanted = [torch.stack(moments).mean(0) for moments in zip(*map(_moments, uses), strict=True)]
            right = part not in asleep and _same([buffers[mean], buffers[var]], wanted, 100)
        else:  # whatever reads them without a call finds none
            moved = {**buffers, mean: buffers[mean] + 1}
            right = _same([evaluated], [_outputs(loop, theta_P, moved, batch)])
        if not right:
            why = "is put into evaluation mode as it is called" if part in asleep else "has other statistics than those"
            raise LowlossError(
                f"{path or type(part).__name__} {why}, and nn.BatchNorm's are recomputed at every point as means and "
                "variances of its inputs: freeze it in the module's train(), or leave its statistics to nn.BatchNorm"
            )


def _moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and unbiased variance of each channel."""
    var, mean = torch.var_mean(x, [axis for axis in range(x.dim()) if axis != 1])
    return mean, var


def _check_modes(module: nn.Module, loop: Loop, theta_P: Tensor, batch: Batch) -> None:
    """Raise LowlossError if a module that has a point's parameters as its own, and goes into evaluation and back, gives
    something else than at that point: it computes with what it has as its mode changes, as merged weights do."""
    module.train()
    with torch.no_grad():
        for name, view in loop.layout.views(theta_P).items():
            module.get_parameter(name).copy_(view)
    own, (x, y, seed) = Loop(module, loop.layout, loop.task), batch.row(0)
    own.foreign, found = loop.foreign, _looked_at(loop, theta_P, own.fresh_buffers(), batch)
    with torch.no_grad():
        for training, drawn in ((False, loop.evaluation_seed), (True, seed)):
            module.train(training)
            with own.random_seed(drawn):
                outputs, _ = own._call(x, None)
            wanted = loop.task.mean_loss(outputs, y)[None] if training else outputs
            if not _same([found[training]], [wanted], 100):
                raise LowlossError(
                    f"{type(module).__name__} computes with its weights when train() or eval() is called, so that a "
                    "point's loss is not of its parameters alone: have it compute that in each forward pass"
                )


def _check_first_call(
    module: nn.Module, loop: Loop, theta_P: Tensor, other_P: Tensor, batch: Batch, first: list[Tensor]
) -> None:
    """Raise LowlossError if an attribute that a module sets in its first call, here at B, matters at A.

    first: what another one, of which `loop` is, gave at A.
    """
    attributes = _attributes(module)
    other = Loop(module, loop.layout, loop.task)
    other.foreign = loop.foreign
    for at_P in (other_P, theta_P):
        found = _looked_at(other, at_P, loop.fresh_buffers(), batch)
    if not _same(first, found):
        changed = ", ".join(_changed(module, attributes)[:2]) or "something"
        raise LowlossError(
            f"{type(module).__name__} keeps {changed} of its first call, and its loss depends on that, not on its "
            "parameters alone: compute it anew in each forward pass"
        )


def _looked_at(loop: Loop, theta_P: Tensor, buffers: Buffers, batch: Batch) -> list[Tensor]:
    """The outputs in evaluation mode, and the loss of a step."""
    outputs = _outputs(loop, theta_P, buffers, batch)
    with loop.holding(buffers):
        losses_1, _ = loop.losses(theta_P[None], batch, gradients=False)
    return [outputs, losses_1]


def _outputs(loop: Loop, theta_P: Tensor, buffers: Buffers, batch: Batch) -> Tensor:
    """The outputs in evaluation mode, which leave the buffers as they are."""
    copied = {key: buffer.clone() for key, buffer in buffers.items()}
    return torch.cat(list(loop.outputs(theta_P, copied, batch.x, len(batch.x))))


def _attributes(module: nn.Module) -> dict[str, Any]:
    """Plain attributes of all parts that may hold numbers, by name, as they are now."""
    found: dict[str, Any] = {}
    for path, part in module.named_modules():
        for key, value in vars(part).items():
            if not key.startswith("_") and key != "training" and isinstance(value, (Tensor, np.ndarray, int, float)):
                held = value.detach().clone() if isinstance(value, Tensor) else np.copy(value)
                found[f"{path}.{key}" if path else key] = held
    return found


def _counters(module: nn.Module, before: dict[str, Any]) -> list[tuple[nn.Module, str, Any]]:
    """The plain numbers that a module has changed, by their part and name, as they are now."""
    names = [k.rpartition(".") for k in _changed(module, before) if not isinstance(before.get(k), Tensor)]
    parts = [(module.get_submodule(path), key) for path, _, key in names]
    return [(part, key, copy.copy(getattr(part, key))) for part, key in parts]


def _moved(loop: Loop, theta_P: Tensor, buffers: Buffers, batch: Batch) -> Iterator[list[Tensor]]:
    """What a module gives after so many more calls."""
    counters = loop.counters
    for by in LATER if counters else ():
        loop.counters = [(part, key, value + by) for part, key, value in counters]
        yield _looked_at(loop, theta_P, buffers, batch)
    loop.counters = counters


def _later(buffer: Tensor, by: int) -> Tensor:
    """A buffer after so many calls more, if it may be a counter."""
    return buffer + by if buffer.numel() == 1 and buffer.dtype != torch.bool else buffer


def _changed(module: nn.Module, before: dict[str, Any]) -> list[str]:
    """The attributes that are others than before, by name."""
    now = _attributes(module).items()
    return [k for k, v in now if k not in before or not np.array_equal(before[k], v, equal_nan=True)]


def _same(one: list[Tensor], other: list[Tensor], times: float = 1) -> bool:
    """Within 1e-6, or so many times that, as sums in another order may be."""
    within = 1e-6 * times, 1e-8 * times
    return all(torch.allclose(a, b, *within, equal_nan=True) for a, b in zip(one, other, strict=True))


def _foreign_states() -> dict[str, str]:
    return {kind: str(state()) for kind, (state, _, _) in FOREIGN.items()}
