"""Ensembles whose members are collected on a descent at a cyclic rate.

Shapes: R walks, M members, P parameters.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path as Folder

import torch
from torch import Tensor

from lowloss.ensemble.base import Walk
from lowloss.landscape.base import Landscape
from lowloss.progress import bar
from lowloss.seeding import derive
from lowloss.training.descent import Descent, Objective, Recipe, default_trainer, fit
from lowloss.training.devices import TrainerFactory, alone, gather, share, shared


@dataclass(frozen=True)
class Ensemble:
    """Members (M, P) in the order of collection, and a row a block: step, learning rate, mean loss.

    epochs: from the start of the walk to each member.
    """

    theta_MP: Tensor
    history: list[list[float]]
    epochs: list[float]


def fast_ensemble(
    landscape: Landscape,
    start_P: Tensor,
    method: Walk,
    seed: int = 0,
    trainer: TrainerFactory = default_trainer,
    folder: Folder | None = None,
) -> Ensemble:
    """Collect an ensemble from a point (P,); with FGE a fast geometric one (Garipov et al. 2018, Algorithm 1).

    The arguments are those of `walk`.
    """
    return walk(landscape, start_P[None], method, seed, trainer, folder)[0]


def walk(
    landscape: Landscape,
    start_RP: Tensor,
    method: Walk,
    seed: int = 0,
    trainer: TrainerFactory = default_trainer,
    folder: Folder | None = None,
    title: str = "",
) -> list[Ensemble]:
    """Collect the members of R walks, which descend together as rows of one matrix.

    With several devices one walk's minibatches are split among the processes, of several each process takes some.

    Args:
        start_RP: the points to start from.
        method: FGE, Snapshot or SWA.
        seed: of the minibatches; those of the first walk are the same whatever walks beside it.
        trainer: makes the Lightning trainer.
        folder: where to checkpoint each epoch, and to continue from.

    Raises NonFiniteLossError if a loss became NaN or infinite.
    """
    mine: Sequence[int] = range(len(start_RP))
    single = len(mine) == 1
    if single:
        landscape = shared(landscape)
    else:
        mine, trainer = share(mine), alone(trainer)
        folder = folder / f"walks-{mine[0]}" if folder and 0 < len(mine) < len(start_RP) else folder
    found: list[Ensemble] = []
    if mine:
        seeds = [derive(seed, "batches", r) if r else derive(seed, "batches") for r in mine]
        batches = landscape.batches(method.batch_size, seeds, shared=single)
        per_epoch = batches.steps_per_epoch
        cycle = method.cycle(per_epoch)
        sgd = partial(torch.optim.SGD, lr=method.lr, momentum=method.momentum, weight_decay=method.weight_decay)
        recipe = Recipe(
            method.steps(cycle),
            sgd,
            # torch counts steps from 0 and asks before a step, the papers count iterations from 1.
            lambda step: method.rate(step + 1, cycle) / method.lr,
            lambda i: method.collects(i, cycle),
        )
        name = title or type(method).__name__.lower()
        remedy, start_RP = f"lower ensemble.{name}.{method.highest}", start_RP[list(mine)]
        module = Descent(Objective(landscape, batches), start_RP, recipe, f"ensemble {name}", remedy, folder=folder)
        with bar(f"{name} {sum(map(recipe.collect, range(recipe.steps + 1)))} members", recipe.steps) as advance:
            fit(module, per_epoch, advance, trainer, folder)
        for row in range(len(mine)):
            history = [[*entry[:2], entry[2 + row]] for entry in module.history]
            epochs = [step / per_epoch for step in module.collected.steps]
            found.append(Ensemble(module.collected.row(row), history, epochs))
    return found if single else [one for part in gather(found) for one in part]
