"""Ensembles of the points of a curve, whose logits may be rescaled.

Reference: Garipov et al. 2018, sec. 4.3; Guo et al. 2017, On calibration of modern neural networks.

Shapes: K points, S scored items of a chunk, C classes.
"""

from dataclasses import dataclass
from math import inf
from typing import Annotated

from annotated_types import Ge, Le
from torch import Tensor

from lowloss.checking import Index
from lowloss.data.base import HELD_OUT
from lowloss.ensemble.base import EnsembleRecipe
from lowloss.errors import LowlossError
from lowloss.landscape.base import Landscape


@dataclass(frozen=True)
class Curve(EnsembleRecipe):
    """Points placed at equal steps of t on the path between two minima.

    Args:
        start, end: indices of the minima.
        path: the finder of the path, or `random` for the segment from the first minimum in a random direction, as long
            as that between the two.
        points: networks, the two minima among them.
        weight_decay: of the L2 term of the loss by which logits are rescaled.

    Raises LowlossError if there are fewer than two points, or the weight decay is negative.
    """

    start: Index = 0
    end: Index = 1
    path: str = "polychain"
    points: Annotated[int, Ge(2), Le(10_000)] = 50
    weight_decay: float = 5e-4

    def __post_init__(self) -> None:
        if self.points < 2 or not 0 <= self.weight_decay < inf:
            raise LowlossError(f"a curve's ensemble needs two points and weight_decay >= 0, got {self}")


def factors_by_loss(losses_K: Tensor) -> Tensor:
    """Factors (K,) on the logits, inversely proportional to the loss (Garipov et al. 2018, sec. 4.3).

    The paper leaves the constant open; here the mean loss of the two ends has the factor 1.
    """
    return losses_K[[0, -1]].mean() / losses_K


def fitted_factor(landscape: Landscape, theta_P: Tensor, split: str = HELD_OUT, iterations: int = 30) -> float:
    """The factor on a network's logits that minimises its cross-entropy on a split, by Newton's method.

    The cross-entropy is convex in the factor b: its derivatives are the means of E_p[z] - z_y and of Var_p[z], for
    logits z and p = softmax(b z). Steps are cut to a factor of two either way.

    Raises LowlossError where outputs are no logits of classes.
    """
    factor = 1.0
    for _ in range(iterations):
        slope = curvature = 0.0
        for outputs, y in landscape.outputs(theta_P, split):
            scored = landscape.task.logits(outputs.double(), y)
            if scored is None:
                raise LowlossError("a temperature needs outputs that are logits of classes")
            logits_SC, y_S = scored
            p_SC = (factor * logits_SC).softmax(1)
            mean_S = (p_SC * logits_SC).sum(1)
            slope += float((mean_S - logits_SC.gather(1, y_S[:, None])[:, 0]).sum())
            curvature += float((p_SC * (logits_SC - mean_S[:, None]).square()).sum())
        if not curvature > 0:
            return factor
        before, factor = factor, min(max(factor - slope / curvature, factor / 2), 2 * factor)
        if abs(factor - before) < 1e-6 * factor or not 1e-4 < factor < 1e4:
            break
    return factor
