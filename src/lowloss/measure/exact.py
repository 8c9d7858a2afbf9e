"""The exact metrics of the task over whole splits, and what it tells of predictions.

Shapes: K points, A anchors, D directions.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor

from lowloss.landscape import AUGMENTED
from lowloss.landscape.base import Columns, Landscape

Statistics = Callable[[Tensor], Sequence[dict[str, Tensor]]]
"""BatchNorm's statistics of points (K, P), one dictionary of buffers each."""


class Exact:
    """The measure `<split>_<metric>`: the landscape's own evaluation of every split.

    Args:
        splits: by default all that the landscape has.
        details: of these splits, what the task summarises of every sample comes too; see `Task.summarise`.
        statistics: BatchNorm's at each point; by default they are recomputed there.
    """

    def __init__(
        self, splits: Sequence[str] | None = None, details: Sequence[str] = (), statistics: Statistics | None = None
    ) -> None:
        self.splits, self.details, self.statistics = splits, tuple(details), statistics

    def __call__(self, landscape: Landscape, theta_KP: Tensor) -> Columns:
        given = {} if self.statistics is None else {"statistics": self.statistics(theta_KP)}
        return {
            f"{split}_{name}": column.cpu()
            for split in self.splits or landscape.splits
            for name, column in landscape.evaluate(theta_KP, split, split in self.details, **given).items()
        }


def augmented(landscape: Landscape, theta_KP: Tensor) -> Columns:
    """The measure `train_loss_augmented`, over the training images of a network's data after one augmentation."""
    return {"train_loss_augmented": landscape.evaluate(theta_KP, AUGMENTED)["loss"]}


def interpolated(
    project: Callable[[Tensor], Tensor], anchors_AD: Tensor, statistics_A: Sequence[dict[str, Tensor]]
) -> Statistics:
    """Statistics between those of some anchors, as if they were parameters (Li et al. 2018, footnote 3).

    A point is taken as the combination of the anchors, with weights that sum to one, that has its coordinates; with
    one anchor its statistics hold everywhere. A variance that extrapolates below zero is zero.

    Args:
        project: gives the coordinates (K, D) of points.
        anchors_AD: those of the anchors.
        statistics_A: of each anchor.
    """
    system_EA = torch.cat([anchors_AD.double().T, torch.ones(1, len(anchors_AD), dtype=torch.float64)])
    inverse_AE = torch.linalg.pinv(system_EA)

    # By the name of a function, so that other processes can be told of it.
    return partial(_between, project, inverse_AE, statistics_A)


def _between(
    project: Callable[[Tensor], Tensor],
    inverse_AE: Tensor,
    statistics_A: Sequence[dict[str, Tensor]],
    theta_KP: Tensor,
) -> list[dict[str, Tensor]]:
    if len(statistics_A) == 1:
        return [statistics_A[0]] * len(theta_KP)
    coordinates_KD = project(theta_KP.cpu()).double()
    weights_KA = torch.cat([coordinates_KD, torch.ones(len(theta_KP), 1, dtype=torch.float64)], 1) @ inverse_AE.T
    return [{name: _mixed(name, weights_A, statistics_A) for name in statistics_A[0]} for weights_A in weights_KA]


def _mixed(name: str, weights_A: Tensor, statistics_A: Sequence[dict[str, Tensor]]) -> Tensor:
    first = statistics_A[0][name]
    if not first.is_floating_point():  # a count of minibatches
        return first
    parts = torch.stack([statistics[name].double() for statistics in statistics_A])
    mixed = torch.tensordot(weights_A.to(parts), parts, 1)
    return (mixed.clamp_min(0) if name.endswith("var") else mixed).to(first)
