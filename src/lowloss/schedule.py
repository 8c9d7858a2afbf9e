"""Learning-rate schedules: the factor on the base rate as a function of the finished fraction of training."""

from __future__ import annotations

from collections.abc import Sequence
from math import cos, floor, pi
from typing import Annotated

from annotated_types import Ge

from lowloss.checking import Positive
from lowloss.errors import LowlossError


class Constant:
    """The base rate throughout."""

    def __call__(self, progress: float) -> float:
        return 1.0


class Cosine:
    """Half a cosine from the base rate to zero."""

    def __call__(self, progress: float) -> float:
        return 0.5 * (1 + cos(pi * progress))


class Steps:
    """Multiply the rate by `factor` at each milestone.

    Args:
        milestones: fractions of training in (0, 1), rising. He et al. 2016 divide by 10 after 32,000 and 48,000
            of 64,000 steps: [0.5, 0.75].
        factor: multiplier.
    """

    def __init__(self, milestones: Sequence[float] = (0.5, 0.75), factor: Positive = 0.1) -> None:
        if list(milestones) != sorted(milestones) or not all(0 < m < 1 for m in milestones):
            raise LowlossError(f"schedule.milestones must rise between 0 and 1, got {list(milestones)}")
        self.milestones, self.factor = tuple(milestones), factor

    def __call__(self, progress: float) -> float:
        return self.factor ** sum(progress >= milestone for milestone in self.milestones)


class EpochDecay:
    """Constant for some epochs, then a factor after each (the Penn Treebank tutorial of TensorFlow).

    Args:
        epochs: of training.
        constant: of them at the base rate.
        factor: multiplier after each further one.
    """

    def __init__(
        self, epochs: Positive = 55, constant: Annotated[float, Ge(0)] = 14, factor: Positive = 1 / 1.15
    ) -> None:
        self.epochs, self.constant, self.factor = epochs, constant, factor

    def __call__(self, progress: float) -> float:
        return self.factor ** max(floor(progress * self.epochs + 1e-9) + 1 - self.constant, 0)


class Plateau:
    """Constant, then a linear fall to `floor`, then constant (the standard schedule of Garipov et al. 2018).

    Args:
        fall_from, fall_to: fractions of training between which the rate falls.
        floor: the last factor.
    """

    def __init__(self, fall_from: float = 0.5, fall_to: float = 0.9, floor: Annotated[float, Ge(0)] = 0.01) -> None:
        if not 0 <= fall_from < fall_to <= 1:
            raise LowlossError(f"schedule needs 0 <= fall_from < fall_to <= 1, got {fall_from} and {fall_to}")
        self.fall_from, self.fall_to, self.floor = fall_from, fall_to, floor

    def __call__(self, progress: float) -> float:
        fallen = (progress - self.fall_from) / (self.fall_to - self.fall_from)
        return 1 - min(max(fallen, 0.0), 1.0) * (1 - self.floor)
