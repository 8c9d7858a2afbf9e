"""Training minima: K networks as K rows of one theta_KP under one optimizer.

Shapes: K minima, P parameters.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from lowloss.errors import LowlossError
from lowloss.landscape.base import BatchSource, Landscape
from lowloss.progress import bar
from lowloss.schedule import Constant
from lowloss.seeding import derive
from lowloss.training.devices import alone, gather, share
from lowloss.training.loop import StepModule, TrainerFactory, default_trainer, fit

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]
Schedule = Callable[[float], float]

default_optimizer: OptimizerFactory = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)


class MinimaModule(StepModule):
    """K independent rows: the objective is the sum of their losses, and the optimizer acts elementwise."""

    def __init__(
        self,
        landscape: Landscape,
        start_KP: Tensor,
        batches: BatchSource,
        steps: int,
        optimizer: OptimizerFactory,
        schedule: Schedule,
    ) -> None:
        super().__init__(landscape, steps, "minima", "lower optimizer.lr")
        self.theta_KP = nn.Parameter(start_KP.clone())
        self.batches, self.make_optimizer, self.schedule = batches, optimizer, schedule

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        losses_K = self.landscape.losses(self.theta_KP, self.batches[step])
        return losses_K.sum(), losses_K

    def optimizer(self) -> torch.optim.Optimizer:
        return self.make_optimizer(self.parameters())

    def rate(self, step: int) -> float:
        return self.schedule(step / self.steps)


@dataclass(frozen=True)
class Minima:
    """Trained points.

    theta_KP: one a row.  history: a row a block of steps: step, learning rate, then the K mean minibatch losses.
    """

    theta_KP: Tensor
    history: list[list[float]]


def train_minima(
    landscape: Landscape,
    count: int = 2,
    epochs: float = 100,
    batch_size: int = 128,
    optimizer: OptimizerFactory = default_optimizer,
    schedule: Schedule | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    trainer: TrainerFactory = default_trainer,
    folder: Path | None = None,
) -> Minima:
    """Train `count` minima of a landscape from independent seeds, together.

    Row k depends on (seed, k) alone: it is the same whatever rows train beside it. Several processes, one a device,
    take some of the rows each, and have no need of each other until the end.

    Args:
        epochs: passes over the training data.
        batch_size: samples a minibatch, a row each.
        optimizer: makes any elementwise torch optimizer for the matrix.
        schedule: factor on the learning rate as a function of the finished fraction; constant by default.
        indices: which k to train; by default 0 … count - 1.
        trainer: makes the Lightning trainer.
        folder: where to checkpoint each epoch, and to continue from.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
        LowlossError: no minimum is asked for.
    """
    rows = list(range(count)) if indices is None else list(indices)
    if not rows:
        raise LowlossError(f"there is no minimum to train: set count to at least 1, got {count}")
    mine = share(rows)
    if folder is not None and len(mine) < len(rows):
        folder = folder / "rows-{}".format("-".join(map(str, mine)))
    settings = epochs, batch_size, optimizer, schedule, seed, alone(trainer), folder
    part = _train(landscape, mine, *settings) if mine else None
    found = [part for part in gather(part) if part is not None]
    history = [
        [*entries[0][:2], *(loss for entry in entries for loss in entry[2:])]
        for entries in zip(*(part.history for part in found), strict=True)
    ]
    return Minima(torch.cat([part.theta_KP for part in found]), history)


def _train(
    landscape: Landscape,
    rows: Sequence[int],
    epochs: float,
    batch_size: int,
    optimizer: OptimizerFactory,
    schedule: Schedule | None,
    seed: int,
    trainer: TrainerFactory,
    folder: Path | None,
) -> Minima:
    start_KP = torch.stack([landscape.initial(derive(seed, "initial", k)) for k in rows])
    batches = landscape.batches(batch_size, [derive(seed, "batches", k) for k in rows], shared=False)
    steps = max(1, round(epochs * batches.steps_per_epoch))
    module = MinimaModule(landscape, start_KP, batches, steps, optimizer, schedule or Constant())
    with bar(f"minima {len(rows)} × {landscape.dim:,} parameters", steps) as advance:
        fit(module, batches.steps_per_epoch, advance, trainer, folder)
    return Minima(module.theta_KP.detach(), module.history)
