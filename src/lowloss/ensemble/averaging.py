"""The metrics of an ensemble: of the first 1, 2, … members together, and of each member alone.

Shapes: M members, P parameters, S scored items of a chunk.
"""

from __future__ import annotations

import torch
from torch import Tensor

from lowloss.data.task import Sums
from lowloss.landscape.base import Columns, Landscape


def ensemble_metrics(landscape: Landscape, theta_MP: Tensor, split: str = "test") -> tuple[Columns, Columns]:
    """The task's metrics on a split of the first 1, 2, … M members together, and of each alone, as (M,) each.

    How members come together is the task's to say: a classifier's probabilities are averaged, not its logits. All
    members go through the split side by side, a chunk at a time, so that no split of outputs is held.
    """
    together, alone = ([Sums(landscape.task) for _ in theta_MP] for _ in range(2))
    for chunks in zip(*(landscape.outputs(theta_P, split) for theta_P in theta_MP), strict=True):
        outputs_M = [outputs.double() for outputs, _ in chunks]
        for sums_M, of_M in ((alone, outputs_M), (together, landscape.task.together(outputs_M))):
            for sums, outputs in zip(sums_M, of_M, strict=True):
                sums.add(outputs, chunks[0][1])
    return _stacked(together), _stacked(alone)


def _stacked(sums_M: list[Sums]) -> Columns:
    metrics_M = [sums.metrics() for sums in sums_M]
    return {name: torch.stack([metrics[name] for metrics in metrics_M]).cpu() for name in metrics_M[0]}
