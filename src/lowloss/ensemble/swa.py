"""Stochastic weight averaging: the mean of what a walk near a minimum collects is one network.

Reference: Izmailov et al. 2018, Averaging weights leads to wider optima and better generalization, Algorithm 1.
"""

from dataclasses import dataclass
from math import inf
from typing import Annotated

from annotated_types import Ge, Le

from lowloss.checking import Count, Few, Index
from lowloss.ensemble.base import Walk
from lowloss.errors import LowlossError, check_number, check_sgd


@dataclass(frozen=True)
class SWA(Walk):
    """The recipe of Algorithm 1: the rate falls linearly in each cycle, at the end of which the weights are collected.

    Args:
        minimum: which of a study's minima to start from.
        start: epoch of its training to walk from, one of `minima.collect`; null: its end.
        members: weights to collect, whose mean is the network.
        cycle_epochs: length of a cycle in epochs.
        lr_max, lr_min: at the beginning and at the end of a cycle; equal, they make the rate constant.
        momentum, weight_decay: of SGD.
        batch_size: samples a minibatch.

    Raises LowlossError if the rates are not 0 < lr_min <= lr_max, nothing is collected, or SGD cannot descend.
    """

    minimum: Index = 0
    start: Annotated[float, Ge(0)] | None = None
    members: Few = 10
    cycle_epochs: Annotated[float, Le(1e7)] = 1
    lr_max: float = 0.05
    lr_min: float = 0.05
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: Count = 128

    def __post_init__(self) -> None:
        if not 0 < self.lr_min <= self.lr_max < inf:
            raise LowlossError(f"rates must be 0 < lr_min <= lr_max and finite, got {self.lr_min} and {self.lr_max}")
        check_number("members", self.members, int, 1)
        if not 0 < self.cycle_epochs < inf:
            raise LowlossError(f"cycle_epochs must be more than 0 and finite, got {self.cycle_epochs}")
        check_sgd(self.momentum, self.weight_decay, self.batch_size)

    def cycle(self, steps_per_epoch: int) -> int:
        return max(1, round(self.cycle_epochs * steps_per_epoch))

    def steps(self, cycle: int) -> int:
        return self.members * cycle

    def rate(self, i: int, cycle: int) -> float:
        """alpha(i) = (1 - t) alpha_1 + t alpha_2 with t = (mod(i - 1, c) + 1) / c."""
        t = ((i - 1) % cycle + 1) / cycle
        return (1 - t) * self.lr_max + t * self.lr_min

    def collects(self, i: int, cycle: int) -> bool:
        return i > 0 and i % cycle == 0
