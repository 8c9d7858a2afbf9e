"""What a finder is: a recipe that turns two points into a path, told apart from whatever drives it.

`find_path` starts the path, then takes every phase's steps: the finder prepares the path, its objective is
differentiated, it nudges the gradient, and SGD moves the free bends. Between phases it may refine the path. A finder
is configuration alone; all state is in the path.

Shapes: B bends (ends included), M = B - 2 free bends, P parameters, K sampled points.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import inf

from torch import Tensor

from lowloss.data.base import Batch
from lowloss.errors import LowlossError
from lowloss.landscape.base import Landscape
from lowloss.points.path import Path
from lowloss.schedule import Constant

Profile = Callable[[Path, Tensor], Tensor]
"""The losses (K,) at t_K of a path, all on one minibatch, in one mode."""

Gradient = Callable[[Path], tuple[Tensor, Tensor]]
"""The gradient (M, P) in a path's free bends and its losses (K,), means over the same minibatches for every path."""


@dataclass(frozen=True)
class Phase:
    """A number of gradient steps at a learning rate. Raises LowlossError unless both are positive and finite.

    climb: whether the highest pivot of a band climbs along it meanwhile.
    """

    steps: int
    lr: float
    climb: bool = False

    def __post_init__(self) -> None:
        if self.steps < 1 or not 0 < self.lr < inf:
            raise LowlossError(f"a finder needs at least one step and a positive lr, got {self.steps} and {self.lr}")


class Finder(ABC):
    """Base of all finders.

    Attributes:
        phases: what to run, in order; empty for a path that needs no search.
        batch_size: samples a minibatch.
        schedule: the factor on a phase's learning rate after a fraction of its steps.
        momentum: of SGD; it belongs to a bend's index and starts from zero in each phase.
        profile_batch: samples of the minibatch on which `refine` compares losses.
    """

    phases: Sequence[Phase] = ()
    batch_size: int = 128
    schedule: Callable[[float], float] = Constant()
    momentum: float = 0.9
    profile_batch: int = 2048

    def check(self, landscape: Landscape) -> None:  # noqa: B027  # most take any
        """Raise LowlossError for a landscape that has no such paths, before its minima are trained."""

    @abstractmethod
    def start(self, a_P: Tensor, b_P: Tensor) -> Path:
        """The initial path between two points."""

    def begin(self, landscape: Landscape, a_P: Tensor, b_P: Tensor) -> Path:
        """The initial path, of a finder that asks the landscape what its coordinates are."""
        return self.start(a_P, b_P)

    def prepare(self, path: Path) -> Path:
        """Called before each step."""
        return path

    @abstractmethod
    def objective(self, path: Path, landscape: Landscape, batch: Batch | None, seed: int) -> tuple[Tensor, Tensor]:
        """A scalar to differentiate in the free bends, and the losses (K,) it is made of. `seed`: this step's."""

    def evaluations_per_step(self, path: Path) -> int:
        """Gradients of single points in one step: by default one of each free bend."""
        return len(path.bends_BP) - 2

    def nudge(self, path: Path, gradient_MP: Tensor, losses_K: Tensor) -> Tensor:
        """The gradient that SGD follows, from the objective's."""
        return gradient_MP

    def refine(self, path: Path, profile: Profile, phase: Phase) -> Path:
        """Called between two phases, before the given one."""
        return path

    def quality(self, path: Path, profile: Profile, gradient: Gradient) -> dict[str, float]:
        """Numbers that tell how well the search has converged."""
        return {}

    def status(self, quality: Mapping[str, float]) -> str:
        """How the search ended, by its quality.

        "exact" (nothing to search), "converged" (the finder's criteria hold), "steps_done" (all steps were taken and it
        has no criterion), "undersampled" (a band whose pivots leave out a rise of the loss between two of them),
        "unrelaxed" (a band that is pushed across still, see `NEB.status`).
        """
        return "steps_done"


def l2(weight_decay: float, theta_KP: Tensor) -> Tensor:
    """0.5 * weight_decay * |theta|², a point each: (K,)."""
    return 0.5 * weight_decay * theta_KP.square().sum(1)
