"""Fast Geometric Ensembling: a cyclical learning rate walks through good networks near a minimum.

Reference: Garipov et al. 2018, sec. 5 and Algorithm 1.

What is counted are iterations, as in Algorithm 1, i = 1, 2, …: a cycle is `cycle_epochs` of them, rounded to an even
number, so that one is in its middle; an epoch is the whole minibatches, since a short last one is dropped. The code
published with the paper differs: it asks for an even number of epochs, gives iteration i the rate that ours gives to
i - 1, so that the least one comes right after a member is collected, and keeps a short last minibatch; its momentum
continues that of the training, where ours starts from zero; and its members have BatchNorm's running statistics, where
ours are evaluated with statistics recomputed on the training set.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Annotated

from annotated_types import Ge, Le

from lowloss.checking import Count, Few, Index, Positive
from lowloss.ensemble.base import Walk
from lowloss.errors import LowlossError, check_number, check_sgd


@dataclass(frozen=True)
class FGE(Walk):
    """The recipe of Algorithm 1.

    Args:
        minimum: which of a study's minima to start from.
        members: networks to collect, one in the middle of each cycle.
        cycle_epochs: length of a cycle in epochs (2 to 4 in the paper).
        lr_max, lr_min: alpha_1, at the ends of a cycle, and alpha_2, in its middle, where the member is collected.
        momentum, weight_decay: of SGD.
        batch_size: samples a minibatch.
        runs: of so many minima, from `minimum` on, each walked from; they train together.
        starts: epochs of a minimum's training to walk from, each one of `minima.collect`; null: its end.
        include_start: whether the point that a walk starts from is a member too.
        budget: epochs of a run, the minimum's training included; null: no limit.

    Raises LowlossError if the rates are not 0 < lr_min < lr_max, there is no member to collect, or SGD cannot descend.
    """

    minimum: Index = 0
    members: Few = 6
    cycle_epochs: Annotated[float, Le(1e7)] = 4
    lr_max: float = 0.05
    lr_min: float = 0.0005
    momentum: float = 0.9
    weight_decay: float = 3e-4
    batch_size: Count = 128
    runs: Few = 1
    starts: Sequence[Annotated[float, Ge(0)]] | None = None
    include_start: bool = False
    budget: Positive | None = None

    def __post_init__(self) -> None:
        if not 0 < self.lr_min < self.lr_max < inf:
            raise LowlossError(f"the rates must be 0 < lr_min < lr_max and finite, got {self.lr_min} and {self.lr_max}")
        check_number("members", self.members, int, 1)
        if not 0 < self.cycle_epochs < inf:
            raise LowlossError(f"cycle_epochs must be more than 0 and finite, got {self.cycle_epochs}")
        if self.starts is not None and not self.starts:
            raise LowlossError("starts must name an epoch to walk from, or be null, got []")
        check_sgd(self.momentum, self.weight_decay, self.batch_size)

    def cycle(self, steps_per_epoch: int) -> int:
        """Iterations c of a cycle: even, and at least two."""
        return max(2, 2 * round(self.cycle_epochs * steps_per_epoch / 2))

    def steps(self, cycle: int) -> int:
        """Iterations until the last member is collected."""
        return (self.members - 1) * cycle + cycle // 2

    def rate(self, i: int, cycle: int) -> float:
        """alpha(i) of iteration i = 1, 2, …: from lr_max down to lr_min in mid-cycle and up again."""
        t = ((i - 1) % cycle + 1) / cycle
        if t <= 0.5:
            return (1 - 2 * t) * self.lr_max + 2 * t * self.lr_min
        return (2 - 2 * t) * self.lr_min + (2 * t - 1) * self.lr_max

    def collects(self, i: int, cycle: int) -> bool:
        """Whether the weights after iteration i = 0, 1, 2, … join the ensemble: mod(i, c) = c / 2."""
        return i % cycle == cycle // 2 if i else self.include_start
