"""A look at a module before work starts: whether its loss is a function of the parameters alone.

Whatever else a module changes when it runs would have a point's loss depend on what ran before it. BatchNorm's
statistics are recomputed at every point; anything else that changes is given back at every call, and refused by its
name if it matters.
"""

import logging
import pickle
import sys
from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.parameter import is_lazy

from lowloss.data.base import Batch
from lowloss.errors import LowlossError
from lowloss.landscape.engine.loop import FOREIGN, PART, Buffers, Loop
from lowloss.landscape.engine.pooled import divides
from lowloss.landscape.initial import clone
from lowloss.landscape.state import State
from lowloss.landscape.written import FAILURES, check_written

LATER = (1, 7, 1000, 10**6)
"""Calls by which a counter is moved on, to see whether the loss ever depends on it."""

ROWS = 16
"""Training samples of the look before work starts, up to which; the first minibatch of each size is looked at too."""

REMEDY = "keep statistics in nn.BatchNorm, or compute them anew in each forward pass"

OUTSIDE = (
    "{} has state outside of parameters, buffers and attributes when it runs, and its loss depends on that, not on its "
    f"parameters alone: {REMEDY}"
)

STATISTICS = "running_mean", "running_var", "num_batches_tracked"
"""The buffers of a BatchNorm that are recomputed."""

log = logging.getLogger("lowloss")


def probe(loop: Loop, theta_P: Tensor, samples: Batch, before: State, untouched: nn.Module | None) -> bool:
    """Whether the loss of a sample in training depends on those beside it. Find out from which generators a module
    draws, and refuse state of its own that its loss depends on.

    Evaluates A, takes a step at B, and evaluates A again; and once more with what the step left. Each sample is
    evaluated beside itself, too.

    theta_P: A.  samples: a few, the first two of which are looked at most.  before: what the module held before its
    first call.  untouched: the module as it was then, if it can be had.

    Raises LowlossError: a buffer or an attribute that the module changes matters.
    """
    before.restore()
    other_P = _beside(theta_P)
    batch = samples._replace(x=samples.x[:2], y=samples.y[:2])
    name, states, fresh = type(loop.module).__name__, _foreign_states(), loop.fresh_buffers()
    first = _looked_at(loop, theta_P, fresh, batch)
    loop.foreign = tuple(kind for kind, state in _foreign_states().items() if state != states[kind])
    if made := dict(loop.module.named_parameters()).keys() - {first for _, _, first in loop._tables}:
        raise LowlossError(f"{name} makes {min(made)} as it first runs, so that no point has it: make it in __init__")
    for some in (batch, samples):
        watch(loop, theta_P, some, before)
    check_written(loop, theta_P, batch)
    _check_shapes(loop, theta_P, other_P, fresh, samples)
    first = _looked_at(loop, theta_P, fresh, batch)
    _check_norms(loop, theta_P, batch)
    for _ in range(3):
        _, gradients_1P = loop.losses(other_P[None], batch, gradients=True)
    if not _same(first, _looked_at(loop, theta_P, fresh, batch)):
        raise LowlossError(OUTSIDE.format(name))
    assert gradients_1P is not None
    _check_idle(loop, theta_P, other_P, gradients_1P[0], fresh, samples)
    for some in (batch, samples):
        _check_buffers(loop, theta_P, fresh, some)
    if untouched is not None:
        _check_modes(untouched, loop, other_P, batch)
    loop.evaluation_seed = 1
    if draws := not _same(first[:1], _looked_at(loop, theta_P, fresh, batch)[:1]):
        log.warning("%s draws random numbers in evaluation: every point draws the same ones", name)
    loop.evaluation_seed = 0
    if loop.batch_norms and len(samples.y) >= 4:
        _check_parts(loop, other_P, samples)
    return _couples(loop, theta_P, fresh, samples, first, draws)


def _check_idle(
    loop: Loop, theta_P: Tensor, other_P: Tensor, gradient_P: Tensor, buffers: Buffers, samples: Batch
) -> None:
    """Raise LowlossError if nothing depends on any parameter; tell of those without effect if some have one.

    gradient_P: at B, where the units of a deep network may be dead; what has none there is looked at in A as well.
    """
    still = {name: torch.full_like(view, not view.any()) for name, view in loop.layout.views(gradient_P).items()}
    if not any(view.all() for view in still.values()):
        return
    _, at_A_1P = loop.losses(theta_P[None], samples, gradients=True)
    assert at_A_1P is not None
    for name, view in loop.layout.views(at_A_1P[0]).items():
        still[name] *= not view.any()
    idle, moved_P = [name for name in still if still[name].all()], loop.layout.flatten(still)
    if not idle:
        return
    for at_P in (theta_P, other_P):
        pair = (_looked_at(loop, end_P, buffers, samples) for end_P in (at_P, at_P.lerp(_beside(at_P), moved_P)))
        if not all(map(torch.equal, *pair)):
            return
    every, name = len(idle) == len(still), type(loop.module).__name__
    told = f"the outputs of {name} do not depend on {'its parameters' if every else ', '.join(idle[:2])}"
    held = "its forward pass reaches those of another module, as in a copy whose lambda or hook holds the original"
    if every:
        raise LowlossError(f"{told}: {held}: pass a function that builds the model")
    log.warning("%s at %d samples: they are not used, or %s", told, len(samples.y), held)


def _check_buffers(loop: Loop, theta_P: Tensor, fresh: Buffers, batch: Batch) -> None:
    """Raise LowlossError if a buffer that a module changes matters; BatchNorm's are recomputed."""
    own = fixed(loop).keys() & fresh.keys()
    if not own:
        return
    first, other_P = _looked_at(loop, theta_P, fresh, batch), _beside(theta_P)
    for training in (True, False):
        left, after = ({key: one.clone() for key, one in fresh.items()} for _ in range(2))
        _run(loop, other_P, left, batch, training, 3)
        changed = sorted(key for key in own if not torch.equal(left[key], fresh[key]))
        loop.passing.update(changed)
        _run(loop, other_P, after, batch, training, 4 if changed else 0)
        held = [{key: _later(left[key], after[key], by) for key in changed} for by in (0, *LATER) if changed]
        if any(not _given(loop, theta_P, {**fresh, **one}, batch, first) for one in held):
            name, when = type(loop.module).__name__, "training" if training else "evaluation"
            raise LowlossError(
                f"{name} changes its buffer {changed[0]} in {when}, and its loss depends on it, not on its parameters "
                "alone: only nn.BatchNorm's statistics are recomputed at every point (spectral norm and statistics of "
                "one's own are not): take them out"
            )


def _run(loop: Loop, theta_P: Tensor, buffers: Buffers, batch: Batch, training: bool, times: int) -> None:
    """So many calls at a point, which change the buffers."""
    with loop.holding(buffers, shared=True):
        for _ in range(times):
            if training:
                loop.losses(theta_P[None], batch, gradients=True)
            else:
                list(loop.outputs(theta_P, buffers, batch.x, len(batch.x)))


def fixed(loop: Loop) -> dict[str, Tensor]:
    """Frozen parameters, and buffers that are no statistics of a BatchNorm in training: no point has them."""
    known = {id(getattr(part, kind)) for part in loop.batch_norms for kind in STATISTICS}
    known |= {id(part.num_batches_tracked) for part in loop.module.modules() if isinstance(part, _BatchNorm)}
    held = [*loop.module.named_parameters(), *loop.module.named_buffers()]
    return {name: tensor for name, tensor in held if name not in loop.layout.names and id(tensor) not in known}


def check_fixed(loop: Loop, other: Mapping[str, Tensor], whose: str) -> None:
    """Raise LowlossError if tensors by their names, a network's, are not what the landscape's module has of them.

    They may be of another precision, and differ by rounding. What changes without effect may be anything.
    """
    for name, own in fixed(loop).items():
        if name in loop.passing or name not in other:
            continue
        there = other[name].detach().to(own.device)
        here = own.detach().to(there.dtype)
        if here.shape != there.shape or not torch.allclose(here, there, 1e-5, 1e-8, equal_nan=True):
            raise LowlossError(
                f"{name} of {whose} is no coordinate of the landscape, since it is not trained, and differs from that "
                "of the landscape's model: have the function that builds the model load it"
            )


def watch(loop: Loop, theta_P: Tensor, batch: Batch, before: State) -> None:
    """Find what a module keeps of its calls with a minibatch, have every call find that as it was, and tell it.

    What depends neither on the point nor on the samples, as a table for each shape, is left alone.

    before: what the module held before its first call.

    Raises LowlossError: the loss depends on what it keeps.
    """
    name, rows, fresh = type(loop.module).__name__, len(batch.y), loop.fresh_buffers()
    known, loop.state = set(loop.state.names if loop.state else ()), None
    states, other_P = list[State](), _beside(theta_P)
    for at_P, row, times in ((theta_P, None, 1), (other_P, rows - 1, 2), (other_P, 0, 4)):
        before.restore()
        alike = batch if row is None else batch._replace(x=batch.x[[row] * rows], y=batch.y[[row] * rows])
        for _ in range(times):
            _looked_at(loop, at_P, fresh, alike)
        if row is None:  # an odd number of calls, which tells apart what every second one undoes
            loop.losses(at_P[None], alike, gradients=False)
        states.append(State(loop.module, before))
        if not known and not before.differing(states[0]):
            return
    kept = known.union(*(states[0].differing(state) for state in states[1:]))
    if not kept:
        return
    left, first = states[1].only(kept, states[-1]), before.only(kept, states[-1])
    spared = before.objects(kept)

    def matters(names: set[str]) -> bool:
        for by in (0, *LATER):
            first.restore()
            found = left.only(names, states[-1])
            found.restore()
            with found.altered(by, spared):
                loop.state = State(loop.module, before).only(kept, states[-1])
                try:
                    if not _given(loop, theta_P, fresh, batch, wanted):
                        return True
                finally:
                    loop.state.restore()
        first.restore()
        return False

    loop.state = first
    wanted = _looked_at(loop, theta_P, fresh, batch)
    if matters(kept):
        told = [key for key in sorted(kept) if matters({key})] or sorted(kept)
        raise LowlossError(
            f"{name} changes {', '.join(told[:2])} when it runs, and its loss depends on that, not on its parameters "
            f"alone: {REMEDY}"
        )
    loop.state = first
    if new := sorted(kept - known):
        log.warning("%s changes %s when it runs: every call finds that as it was", name, ", ".join(new[:2]))


def _beside(theta_P: Tensor) -> Tensor:
    """B."""
    return theta_P + 0.1 * torch.linspace(-1, 1, len(theta_P)).to(theta_P)


def _check_shapes(loop: Loop, theta_P: Tensor, other_P: Tensor, buffers: Buffers, samples: Batch) -> None:
    """Raise LowlossError if outputs at A, of a shape that was seen at B before, are others than of one that was not."""

    def at(point_P: Tensor, count: int) -> Tensor:
        return _outputs(loop, point_P, buffers, samples._replace(x=samples.x[:count], y=samples.y[:count]))

    count = len(samples.y) - 3
    if count < 2:
        return
    at(other_P, count)
    first, later, after = (at(theta_P, count + more) for more in (1, 2, 0))
    couples = not _near(first, later[: count + 1])
    if not couples and not _near(after, first[:count]):
        raise LowlossError(OUTSIDE.format(type(loop.module).__name__))


def _near(one: Tensor, other: Tensor, within: float = 1e-3) -> bool:
    """Within a share of the largest; products of other shapes are within a thousandth."""
    return bool((one - other).abs().max() <= within * other.abs().max())


def _couples(loop: Loop, theta_P: Tensor, buffers: Buffers, samples: Batch, first: list[Tensor], draws: bool) -> bool:
    """Whether the mean loss of two samples in training is not the mean of theirs, each beside itself, or that of many
    alike not that of two; tells where outputs in evaluation depend on the samples beside them.

    first: what was found of the first two.  draws: outputs in evaluation are random.
    """
    if len(samples.y) < 2:
        return False

    def alike(k: int, rows: int) -> list[Tensor]:
        again = samples._replace(x=samples.x[[k] * rows], y=samples.y[[k] * rows])
        return _looked_at(loop, theta_P, buffers, again)

    # Many alike go one way, where a mixture of experts has no room for so many.
    (one, loss_1), (other, loss_2), (many, loss_many) = alike(0, 2), alike(1, 2), alike(0, len(samples.y))
    if not _same([first[0]], [torch.stack([one[0], other[1]])], 100) or not (draws or _near(many, one[:1])):
        log.warning(
            "%s gives a sample other outputs beside other samples, in evaluation too: exact losses depend on "
            "evaluation_batch and the device", type(loop.module).__name__,
        )  # fmt: skip
    return not _same([first[1], loss_many], [(loss_1 + loss_2) / 2, loss_1], 100)


def _check_norms(loop: Loop, theta_P: Tensor, batch: Batch) -> None:
    """Raise LowlossError if a BatchNorm's statistics, recomputed, are not the means and variances of its inputs."""
    inputs: dict[nn.Module, list[Tensor]] = {part: [] for part in loop.batch_norms}
    asleep = set[nn.Module]()

    def look(part: nn.Module, given: tuple[Tensor, ...]) -> None:
        inputs[part].append(given[0].detach().to(next(part.buffers()).dtype))  # under autocast it is narrower
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
            right = right and (not divides(part) or _same([part.eval()(uses[0])], [_BatchNorm.forward(part, uses[0])]))
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


def _check_parts(loop: Loop, theta_P: Tensor, samples: Batch) -> None:
    """Have BatchNorm's statistics be taken in one pass where two parts give others, or fail: what a closure or a global
    keeps of one part's pass would be met by the other's."""
    wanted, _ = loop.statistics(theta_P, samples.x, None)
    loop.part = (len(samples.y) + 1) // 2
    try:
        found, _ = loop.statistics(theta_P, samples.x, None)
        one, other = (_outputs(loop, theta_P, buffers, samples) for buffers in (found, wanted))
        alike = _near(one, other, 1e-2)
    except (*FAILURES, LowlossError):
        alike = False
    loop.part = PART if alike else sys.maxsize


def bound(copied: nn.Module, model: object, loop: Loop, theta_P: Tensor, batch: Batch) -> bool:
    """Whether a copy of a module computes with weights of the module given, which a lambda or hook in it holds.

    Evaluates the copy while the module given has other parameters and buffers; it has its own again thereafter.

    copied: a copy of the loop's module.  model: the module given; if it is a function, the loop's is meant.
    """
    given = model if isinstance(model, nn.Module) else loop.module
    own = [(tensor, tensor.data) for tensor in (*given.parameters(), *given.buffers()) if not is_lazy(tensor)]

    def looked_at(by: float) -> list[Tensor]:
        for tensor, value in own:
            more = by * torch.linspace(0.1, 0.5, value.numel()).view(value.shape)
            tensor.data = value + more.to(value) if value.is_floating_point() else value.clone()
        again = Loop(clone(copied), loop.layout, loop.task)
        again.foreign = tuple(FOREIGN)
        return _looked_at(again, theta_P, again.fresh_buffers(), batch)

    try:
        first = looked_at(0)
        return not _same(first, looked_at(1)) and _same(first, looked_at(0))
    finally:
        for tensor, value in own:
            tensor.data = value


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
                outputs, _ = own.call(x, None)
            wanted = loop.task.mean_loss(outputs, y)[None] if training else outputs
            if not _same([found[training]], [wanted], 100):
                raise LowlossError(
                    f"{type(module).__name__} computes with its weights when train() or eval() is called, so that a "
                    "point's loss is not of its parameters alone: have it compute that in each forward pass"
                )


def _looked_at(loop: Loop, theta_P: Tensor, buffers: Buffers, batch: Batch) -> list[Tensor]:
    """The outputs in evaluation mode, and the loss of a step."""
    outputs = _outputs(loop, theta_P, buffers, batch)
    with loop.holding(buffers):
        losses_1, _ = loop.losses(theta_P[None], batch, gradients=False)
    return [outputs, losses_1]


def _given(loop: Loop, theta_P: Tensor, buffers: Buffers, batch: Batch, wanted: list[Tensor]) -> bool:
    """Whether the module gives what is wanted; not if it fails on what has changed, which it then has read."""
    try:
        return _same(wanted, _looked_at(loop, theta_P, buffers, batch))
    except (*FAILURES, AttributeError):
        return False


def _outputs(loop: Loop, theta_P: Tensor, buffers: Buffers, batch: Batch) -> Tensor:
    """The outputs in evaluation mode, which leave the buffers as they are."""
    copied = {key: buffer.clone() for key, buffer in buffers.items()}
    return torch.cat(list(loop.outputs(theta_P, copied, batch.x, len(batch.x))))


def _later(buffer: Tensor, after: Tensor, by: int) -> Tensor:
    """A buffer after so many calls more, if it may be a counter or has several; after: what it is one call later."""
    if buffer.dtype == torch.bool or buffer.is_complex():
        return buffer
    if buffer.numel() == 1:
        return buffer + by
    whole = buffer.shape == after.shape and all(torch.equal(one, one.round()) for one in (buffer, after))
    return buffer + by * (after - buffer) if whole else buffer


def _same(one: list[Tensor], other: list[Tensor], times: float = 1) -> bool:
    """Within 1e-6, or so many times that, as sums in another order may be."""
    within = 1e-6 * times, 1e-8 * times
    return all(torch.allclose(a, b, *within, equal_nan=True) for a, b in zip(one, other, strict=True))


def _foreign_states() -> dict[str, bytes]:
    return {kind: pickle.dumps(state()) for kind, (state, _, _) in FOREIGN.items()}
