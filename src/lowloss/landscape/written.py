"""A look at what a module writes to its parameters as it runs: a point's loss and gradient would be another's."""

import torch
from torch import Tensor

from lowloss.data.base import Batch
from lowloss.errors import LowlossError
from lowloss.landscape.engine.loop import Loop

FAILURES = RuntimeError, ValueError, TypeError, LookupError, ArithmeticError, AssertionError
"""What a module raises on what does not fit."""

FAR = 3, 100, -100
"""Times a point at which it is looked, since bounds act on large values alone: the first for all parameters, the others
for those that are set or written to."""


def check_written(loop: Loop, theta_P: Tensor, batch: Batch) -> None:
    """Raise LowlossError if a module changes parameters as it runs, or frozen ones, which no call restores."""
    for training in (True, False):
        touched: dict[str, bool] = dict.fromkeys(loop.layout.names, False)
        for times in FAR:
            far_P = theta_P.clone()
            for name, view in loop.layout.views(far_P).items():
                view.mul_(times if name in touched else 1)
            touched = _touched(loop, far_P, training, batch)
            if changed := [name for name in touched if touched[name]]:
                told = f"{type(loop.module).__name__} changes its parameter {changed[0]} when it runs"
                if changed[0] not in loop.layout.names:
                    raise LowlossError(f"{told}, which is not trained: make it a buffer")
                raise LowlossError(
                    f"{told}, so that losses and gradients are not those of a point: have forward() leave it, and "
                    "compute with a tensor made of it (as torch.nn.utils.parametrize does, and nn.Embedding without "
                    "max_norm)"
                )
            if not touched:
                break


def _touched(loop: Loop, theta_P: Tensor, training: bool, batch: Batch) -> dict[str, bool]:
    """The parameters that a module sets or writes to in a call at a point, and whether that changes them."""
    loop.module.train(training)
    given = {**dict(loop.module.named_parameters()), **loop.parameters(theta_P, True)}
    known = {name: (id(one), one.data_ptr(), one._version, one.detach().clone()) for name, one in given.items()}
    try:
        with torch.no_grad(), loop.at(given, loop.fresh_buffers()), loop.random_seed(0):
            loop.call(batch.x, None)
            now = [(first, table[name]) for table, name, first in loop._tables if first in known]
    except FAILURES:  # so far away
        return {}
    changed = {name for name, one in now if not torch.equal(one, known[name][3])}
    written = {name for name, one in now if (id(one), one.data_ptr(), one._version) != known[name][:3]}
    return {name: name in changed for name in sorted(changed | written)}
