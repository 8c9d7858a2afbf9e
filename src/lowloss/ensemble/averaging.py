"""The metrics of an ensemble: of the first 1, 2, … members together, and of each member alone.

Shapes: M members, P parameters, S scored items of a chunk, C classes, N bins.
"""

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.functional import one_hot

from lowloss.data.task import Sums, Task
from lowloss.landscape.base import Columns, Landscape

BINS = 15
"""Of the confidence, for the expected calibration error (Guo et al. 2017)."""


def ensemble_metrics(landscape: Landscape, theta_MP: Tensor, split: str = "test") -> tuple[Columns, Columns]:
    """The task's metrics on a split of the first 1, 2, … M members together, and of each alone, as (M,) each.

    How members come together is the task's to say: a classifier's probabilities are averaged, not its logits. All
    members go through the split side by side, a chunk at a time, so that no split of outputs is held.
    """
    found, names = ensemble_columns(landscape, theta_MP, split), landscape.task.units
    return {name: found[name] for name in names}, {name: found[f"{name}_alone"] for name in names}


def ensemble_columns(
    landscape: Landscape, theta_MP: Sequence[Tensor] | Tensor, split: str = "test", factors_M: Tensor | None = None
) -> Columns:
    """Columns (M,) of the first 1, 2, … M members: the task's metrics, and <metric>_alone of each member.

    Of a task with classes also brier (the mean squared distance of the probabilities from the one-hot label, summed
    over classes), ece (the expected calibration error, over equal bins of the confidence) and disagreement (the
    fraction of items which two members classify differently, averaged over the pairs; 0 for a single member).

    Args:
        factors_M: on the outputs of each member.
    """
    together, alone = ([Sums(landscape.task) for _ in theta_MP] for _ in range(2))
    calibration = _Calibration(len(theta_MP))
    for chunks in zip(*(landscape.outputs(theta_P, split) for theta_P in theta_MP), strict=True):
        outputs_M = [outputs.double() for outputs, _ in chunks]
        if factors_M is not None:
            outputs_M = [factor * outputs for factor, outputs in zip(factors_M.tolist(), outputs_M, strict=True)]
        y = chunks[0][1]
        for sums, outputs in zip(alone, outputs_M, strict=True):
            sums.add(outputs, y)
        for m, outputs in enumerate(landscape.task.together(outputs_M)):
            together[m].add(outputs, y)
            calibration.add(landscape.task, m, outputs, y)
        calibration.compare(landscape.task, outputs_M, y)
    columns = _stacked(together) | {f"{name}_alone": column for name, column in _stacked(alone).items()}
    return columns | calibration.columns()


class _Calibration:
    """The sums of what is told of probabilities."""

    def __init__(self, members: int) -> None:
        self.items, self.brier_M = 0, torch.zeros(members, dtype=torch.float64)
        self.confidence_MN, self.right_MN = torch.zeros(2, members, BINS, dtype=torch.float64).unbind()
        self.differing_MM = torch.zeros(members, members, dtype=torch.float64)

    def add(self, task: Task, m: int, outputs: Tensor, y: Tensor) -> None:
        scored = task.logits(outputs, y)
        if scored is None:
            return
        logits_SC, y_S = scored
        p_SC = logits_SC.softmax(1)
        self.brier_M[m] += float((p_SC - one_hot(y_S, p_SC.shape[1])).square().sum())
        confidence_S, predicted_S = p_SC.max(1)
        bin_S = ((confidence_S * BINS).ceil().long() - 1).clamp(0, BINS - 1)
        for sums_N, values_S in ((self.confidence_MN[m], confidence_S), (self.right_MN[m], predicted_S == y_S)):
            sums_N += torch.bincount(bin_S, values_S.double(), BINS).cpu()

    def compare(self, task: Task, outputs_M: Sequence[Tensor], y: Tensor) -> None:
        scored = [task.logits(outputs, y) for outputs in outputs_M]
        predicted = [one[0].argmax(1) for one in scored if one is not None]
        self.items += len(predicted[0]) if predicted else 0
        for m, of_S in enumerate(predicted):
            for n, other_S in enumerate(predicted[:m]):
                self.differing_MM[m, n] += int((of_S != other_S).sum())

    def columns(self) -> Columns:
        if not self.items:
            return {}
        members = torch.arange(1, len(self.brier_M) + 1)
        pairs_M = (members * (members - 1) / 2).clamp_min(1).double()
        return {
            "brier": self.brier_M / self.items,
            "ece": (self.confidence_MN - self.right_MN).abs().sum(1) / self.items,
            "disagreement": self.differing_MM.sum(1).cumsum(0) / pairs_M / self.items,
        }


def _stacked(sums_M: list[Sums]) -> Columns:
    metrics_M = [sums.metrics() for sums in sums_M]
    return {name: torch.stack([metrics[name] for metrics in metrics_M]).cpu() for name in metrics_M[0]}
