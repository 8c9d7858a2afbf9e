"""What a kind of ensemble is: a recipe that says which networks come together, told apart from what trains them."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import ClassVar


class EnsembleRecipe:
    """Base of all kinds of ensembles; a recipe is configuration alone."""


@dataclass(frozen=True)
class Independent(EnsembleRecipe):
    """All minima of a study together, networks trained independently, one a run."""


class Walk(EnsembleRecipe, ABC):
    """A kind whose members are collected on a descent at a cyclic rate.

    Attributes:
        highest: the argument that is the highest rate.
        momentum, weight_decay: of SGD.
        batch_size: samples a minibatch.
    """

    highest: ClassVar[str] = "lr_max"
    momentum: float
    weight_decay: float
    batch_size: int

    @property
    def lr(self) -> float:
        """The highest rate."""
        return float(getattr(self, self.highest))

    @abstractmethod
    def cycle(self, steps_per_epoch: int) -> int:
        """Iterations c of a cycle."""

    @abstractmethod
    def steps(self, cycle: int) -> int:
        """Iterations until the last member is collected."""

    @abstractmethod
    def rate(self, i: int, cycle: int) -> float:
        """The learning rate of iteration i = 1, 2, …"""

    @abstractmethod
    def collects(self, i: int, cycle: int) -> bool:
        """Whether the weights after iteration i = 0 (the start), 1, 2, … are collected."""


def epochs_spent(run: int, start: int, here: float, before: float, starts: int, walk: float) -> float:
    """Epochs that a member took, all that was trained before it in its ensemble included.

    A run trains a network for `before` epochs, of which checkpoints are kept, and walks for `walk` epochs from each of
    `starts` of them, one after the other; it is not trained anew for each.

    Args:
        run, start: where the member is from, counted from 0.
        here: epochs from its start to it.
    """
    return run * (before + starts * walk) + before + start * walk + here
