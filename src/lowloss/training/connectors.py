"""Connectors: the points of a simplex of minima, each descending across it.

Reference: Fort & Jastrzebski 2019, sec. 4.3.

Shapes: C = m + 1 corners, V vertices of the surface (corners first), F = V - C free ones, P parameters.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path as Folder

import torch
from torch import Tensor

from lowloss.landscape.base import Landscape
from lowloss.landscape.chart import Normal
from lowloss.landscape.wrappers import Charted, Regularised
from lowloss.points.simplex import Simplex, edges
from lowloss.progress import bar
from lowloss.schedule import Plateau
from lowloss.seeding import derive
from lowloss.training.descent import Descent, Objective, OptimizerFactory, Recipe, default_trainer, fit
from lowloss.training.devices import TrainerFactory, shared


@dataclass(frozen=True)
class Connector:
    """The vertices (V, P) of a surface of low loss, and a row a block: step, learning rate, mean loss of each (F,)."""

    vertices_VP: Tensor
    history: list[list[float]]


def find_connector(
    landscape: Landscape,
    corners_CP: Tensor,
    simplex: Simplex,
    optimizer: OptimizerFactory,
    steps: int,
    batch_size: int | None = 512,
    weight_decay: float = 0.0,
    seed: int = 0,
    trainer: TrainerFactory = default_trainer,
    folder: Folder | None = None,
    block: int = 50,
) -> Connector:
    """Optimise every point of a simplex's lattice in the (P - m)-dimensional space normal to the simplex.

    Args:
        corners_CP: the m + 1 minima (C, P), kept as they are.
        optimizer: makes any elementwise torch optimizer, for coordinates of which those along the simplex do nothing.
            Its rate stays for half of the steps, falls linearly to a hundredth until nine tenths, and stays.
        batch_size: samples of the minibatch that the points share.
        weight_decay: lambda of lambda/2 |theta|² of the points.
        folder: where to checkpoint each `block` of steps, and to continue from.

    Raises:
        LowlossError: the minima span no simplex of m dimensions, or the optimizer has a weight decay of its own.
        NonFiniteLossError: a loss became NaN or infinite.
    """
    normals_MP = edges(corners_CP)
    flat_FP = simplex.weights_VC[len(corners_CP) :].to(corners_CP) @ corners_CP
    base = shared(landscape)
    chart = Normal(flat_FP, normals_MP)
    charted = Charted(Regularised(base, weight_decay) if weight_decay else base, chart)
    batches = landscape.batches(batch_size, [derive(seed, "batches")], shared=True)
    schedule = Plateau()
    recipe = Recipe(steps, optimizer, lambda step: schedule(step / steps))
    title = f"connector m={simplex.m}"
    start_FP = torch.zeros_like(flat_FP)
    module = Descent(Objective(charted, batches), start_FP, recipe, title, "lower connector.optimizer.lr")
    with bar(f"{title}, {len(flat_FP)} points", steps) as advance:
        fit(module, block, advance, trainer, folder)
    free_FP = chart.to(torch.device("cpu")).points(module.x_RQ.detach())
    return Connector(torch.cat([corners_CP, free_FP]), module.history)
