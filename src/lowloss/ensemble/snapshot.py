"""Snapshot ensembles: a network trained in cosine cycles from scratch is kept at the end of each.

Reference: Huang et al. 2017, Snapshot ensembles: train 1, get M for free, eq. 2.
"""

from dataclasses import dataclass
from math import cos, pi
from typing import ClassVar

from lowloss.checking import Count, Few, Positive
from lowloss.ensemble.base import Walk
from lowloss.errors import LowlossError, check_number, check_sgd


@dataclass(frozen=True)
class Snapshot(Walk):
    """The recipe of Huang et al.: M cycles, each beginning at the rate alpha_0 and ending at zero.

    Args:
        epochs: B, of a run.
        cycles: M, the members of a run. Each cycle takes whole or half epochs (Garipov et al. have 4 in 150 epochs).
        lr: alpha_0.
        momentum, weight_decay: of SGD.
        batch_size: samples a minibatch.
        runs: from as many initial points, which train together.

    Raises LowlossError if M does not divide the epochs, or SGD cannot descend.
    """

    highest: ClassVar[str] = "lr"

    epochs: Positive = 200
    cycles: Few = 5
    lr: float = 0.1
    momentum: float = 0.9
    weight_decay: float = 5e-4
    batch_size: Count = 128
    runs: Few = 1

    def __post_init__(self) -> None:
        check_number("cycles", self.cycles, int, 1)
        check_number("epochs", self.epochs, float, 0.5)
        if 2 * self.epochs % self.cycles:
            raise LowlossError(
                f"cycles={self.cycles} does not divide epochs={self.epochs:g} into whole or half epochs: change one"
            )
        if not self.lr > 0:
            raise LowlossError(f"lr must be more than 0, got {self.lr}")
        check_sgd(self.momentum, self.weight_decay, self.batch_size)

    def cycle(self, steps_per_epoch: int) -> int:
        return max(1, round(self.epochs / self.cycles * steps_per_epoch))

    def steps(self, cycle: int) -> int:
        return self.cycles * cycle

    def rate(self, i: int, cycle: int) -> float:
        """alpha(i) = alpha_0 / 2 (cos(pi mod(i - 1, c) / c) + 1)."""
        return self.lr / 2 * (cos(pi * ((i - 1) % cycle) / cycle) + 1)

    def collects(self, i: int, cycle: int) -> bool:
        """At the end of each cycle."""
        return i > 0 and i % cycle == 0
