"""Descents in the coordinates of a chart: random cuts of several dimensions at once, with the dimension from which they
succeed, and connectors, the points of a simplex of minima, each descending across it.

References:
    Fort & Jastrzebski 2019, sec. 3.3, 4.3 and fig. 4.
    Li, Farkhoor, Liu & Yosinski 2018, Measuring the intrinsic dimension of objective landscapes.

Shapes: P parameters, R cuts, Q dimensions of the largest one; C = m + 1 corners, V vertices of a surface (corners
first), F = V - C free ones.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf
from pathlib import Path as Folder

import torch
from torch import Tensor

from lowloss.landscape.base import Landscape
from lowloss.landscape.chart import Normal, Span
from lowloss.landscape.wrappers import Charted, Regularised
from lowloss.points.simplex import Simplex, edges
from lowloss.progress import bar
from lowloss.schedule import Constant, Plateau
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


def descend_cuts(
    landscape: Landscape,
    origin_P: Tensor,
    dims: Sequence[int],
    optimizer: OptimizerFactory,
    steps: int,
    batch_size: int | None = 128,
    schedule: Callable[[float], float] | None = None,
    seed: int = 0,
    trainer: TrainerFactory = default_trainer,
    folder: Folder | None = None,
    block: int = 50,
    title: str = "cuts",
) -> Tensor:
    """The points (R, P) that descents in random hyperplanes through one point reach, one of each dimension.

    They train as rows of one matrix, on the same minibatches. The hyperplanes of one seed are nested: that of dimension
    d spans the first d directions.

    Raises:
        LowlossError: a dimension is larger than the number of parameters, or the optimizer has a weight decay.
        NonFiniteLossError: a loss became NaN or infinite.
    """
    largest = Span.random(origin_P, max(dims), seed)
    chart = Span(origin_P, largest.basis_QP, dims)
    batches = landscape.batches(batch_size, [derive(seed, "batches")], shared=True)
    factor = schedule or Constant()
    recipe = Recipe(steps, optimizer, lambda step: factor(step / steps))
    start_RQ = origin_P.new_zeros(len(dims), chart.dim)
    objective = Objective(Charted(shared(landscape), chart), batches)
    module = Descent(objective, start_RQ, recipe, title, "lower dimension.optimizer.lr")
    with bar(f"{title}, {len(dims)} dimensions", steps) as advance:
        fit(module, block, advance, trainer, folder)
    return chart.to(torch.device("cpu")).points(module.x_RQ.detach())


def bracket(values: Mapping[int, float], threshold: float) -> tuple[int, float]:
    """The dimensions between which descent begins to succeed: the largest that fails, and the next one that was tried.

    A dimension succeeds where its value is at most the threshold; all larger ones then do as well. 0 where none fails,
    infinity where the largest does.
    """
    failed = max((d for d, value in values.items() if not value <= threshold), default=0)
    return failed, min((d for d in values if d > failed), default=inf)


def refined(low: int, high: float, count: int) -> list[int]:
    """Up to so many dimensions to try next, evenly spaced between the two; none where nothing is left between."""
    if high == inf:
        return []
    inner = torch.linspace(low, high, count + 2, dtype=torch.float64)[1:-1].round().long().tolist()
    return sorted({d for d in inner if low < d < high})
