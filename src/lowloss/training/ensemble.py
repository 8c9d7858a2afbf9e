"""Training a fast geometric ensemble.

Shapes: M members, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lowloss.ensemble.fge import FGE
from lowloss.landscape.base import BatchSource, Landscape
from lowloss.progress import bar
from lowloss.seeding import derive
from lowloss.training.devices import shared
from lowloss.training.loop import StepModule, TrainerFactory, default_trainer, fit


class EnsembleModule(StepModule):
    """SGD from a minimum with the cyclical rate; members are collected in mid-cycle."""

    def __init__(self, landscape: Landscape, start_P: Tensor, batches: BatchSource, recipe: FGE) -> None:
        self.cycle = recipe.cycle(batches.steps_per_epoch)
        super().__init__(landscape, recipe.steps(self.cycle), "ensemble", "lower ensemble.lr_max")
        self.recipe, self.batches = recipe, batches
        self.theta_1P = nn.Parameter(start_P[None].clone())
        self.members: list[Tensor] = []

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        losses_1 = self.landscape.losses(self.theta_1P, self.batches[step])
        return losses_1.sum(), losses_1

    def after_step(self) -> None:
        if self.recipe.collects(self.global_step, self.cycle):
            self.members.append(self.theta_1P.detach()[0].cpu().clone())

    def optimizer(self) -> torch.optim.Optimizer:
        recipe = self.recipe
        return torch.optim.SGD(
            [self.theta_1P], lr=recipe.lr_max, momentum=recipe.momentum, weight_decay=recipe.weight_decay
        )

    def rate(self, step: int) -> float:
        # torch counts steps from 0 and asks before a step, the paper counts iterations from 1.
        return self.recipe.rate(step + 1, self.cycle) / self.recipe.lr_max

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        checkpoint["members"] = list(self.members)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        self.members = list(checkpoint["members"])


@dataclass(frozen=True)
class Ensemble:
    """Collected members.

    theta_MP: one a row, in the order of collection.  history: a row a block: step, learning rate, mean loss.
    """

    theta_MP: Tensor
    history: list[list[float]]


def fast_ensemble(
    landscape: Landscape,
    start_P: Tensor,
    recipe: FGE,
    seed: int = 0,
    trainer: TrainerFactory = default_trainer,
    folder: Path | None = None,
) -> Ensemble:
    """Collect a fast geometric ensemble from a minimum (Garipov et al. 2018, Algorithm 1).

    Args:
        start_P: the trained point (P,) to start from; it is no member itself.
        recipe: cycles and rates.
        seed: of the minibatches.
        trainer: makes the Lightning trainer; with several devices each process takes a part of every minibatch.
        folder: where to checkpoint each epoch, and to continue from.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
    """
    landscape = shared(landscape)
    batches = landscape.batches(recipe.batch_size, [derive(seed, "batches")], shared=True)
    module = EnsembleModule(landscape, start_P, batches, recipe)
    with bar(f"fge {recipe.members} members", module.steps) as advance:
        fit(module, batches.steps_per_epoch, advance, trainer, folder)
    return Ensemble(torch.stack(module.members), module.history)
