"""Networks that are one until an epoch, and then see minibatches in different orders.

Reference: Frankle et al. 2020, Linear mode connectivity and the lottery ticket hypothesis, sec. 2: a network is stable
at an epoch if the straight line between two that part there has no barrier.

Shapes: R rows that descend, Q coordinates of a row.
"""

from bisect import bisect_right
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from lowloss.data.base import Batch
from lowloss.errors import LowlossError
from lowloss.landscape.base import BatchSource, Landscape
from lowloss.training.descent import Objective


class Parting:
    """The minibatches of rows some of which see others' until a step.

    Args:
        batches: makes them from seeds, one a row.
        before, after: the seeds until the step at which a row parts, and from it on.
        parts: that step, of the rows that part.

    Raises LowlossError where minibatches have one order.
    """

    def __init__(
        self,
        batches: Callable[[Sequence[int]], BatchSource],
        before: Sequence[int],
        after: Sequence[int],
        parts: Mapping[int, int],
    ) -> None:
        self._starts, rows = sorted({0, *parts.values()}), range(len(after))
        self._sources = [
            batches([after[row] if parts.get(row, 0) <= start else before[row] for row in rows])
            for start in self._starts
        ]
        self.steps_per_epoch = self._sources[0].steps_per_epoch
        if hasattr(self._sources[0], "state_dict"):
            raise LowlossError("minibatches that hand on a state have one order, so nothing parts: set branch to null")

    def __getitem__(self, step: int, /) -> Batch | None:
        return self._sources[bisect_right(self._starts, step) - 1][step]


class Following(Objective):
    """Until it parts, a row takes the gradient of the one that it follows: a GPU may round those of two rows otherwise.

    Args:
        leader: the row that they follow; None, where it descends elsewhere.
        parts: the step at which each of them parts.
    """

    def __init__(
        self, landscape: Landscape, batches: BatchSource, leader: int | None, parts: Mapping[int, int]
    ) -> None:
        super().__init__(landscape, batches)
        self.leader, self.parts, self._step = leader, parts, 0

    def losses(self, x_RQ: Tensor, step: int) -> tuple[Tensor, Tensor]:
        self._step = step
        return super().losses(x_RQ, step)

    def nudge(self, x_RQ: Tensor, gradient_RQ: Tensor, losses_K: Tensor) -> Tensor:
        if self.leader is None:
            return gradient_RQ
        rows = [self.leader if self._step < self.parts.get(row, 0) else row for row in range(len(x_RQ))]
        return gradient_RQ[torch.tensor(rows, device=gradient_RQ.device)]
