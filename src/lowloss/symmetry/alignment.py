"""Networks aligned: the units of one permuted to match those of another.

Shapes: P parameters, N training samples, S of them.
"""

import torch
from torch import Tensor

from lowloss.errors import LowlossError
from lowloss.landscape.network import NetworkLandscape
from lowloss.symmetry.derive import symmetries_of
from lowloss.symmetry.groups import Symmetries
from lowloss.symmetry.matching import match_activations, match_weights
from lowloss.symmetry.straight_through import match_straight_through

SAMPLES = 1000
"""Training samples on which activations are compared."""


def align(landscape: NetworkLandscape, a_P: Tensor, b_P: Tensor, by: str, seed: int = 0) -> tuple[Tensor, Symmetries]:
    """The point (P,) of network b with its units permuted to match those of a, and the symmetries that were used.

    Args:
        by: "weights", "activations" or "ste", the straight-through estimator.
        seed: of the estimator's minibatches.

    Raises LowlossError: the network cannot be traced, there is no such way, or a point has numbers that are not finite.
    """
    if by not in ("weights", "activations", "ste"):
        raise LowlossError(f"by must be weights, activations or ste, got {by!r}")
    for name, point_P in (("a", a_P), ("b", b_P)):
        if not point_P.isfinite().all():
            raise LowlossError(f"{name} holds NaN or infinite values, which cannot be matched: take another network")
    symmetries = symmetries_of(landscape)
    if by == "weights":
        return symmetries.permuted(b_P, match_weights(symmetries, a_P, b_P)), symmetries
    if by == "ste":
        return symmetries.permuted(b_P, match_straight_through(landscape, symmetries, a_P, b_P, seed)), symmetries
    networks = landscape.module(a_P), landscape.module(b_P)
    found = match_activations(symmetries, *networks, samples(landscape))
    b_P = symmetries.permuted(b_P, found)
    left = [group for group in symmetries.groups if group.name not in found]
    return symmetries.permuted(b_P, match_weights(symmetries, a_P, b_P, left)), symmetries


def samples(landscape: NetworkLandscape) -> Tensor:
    """Training inputs (S, ...) from all over the set, on the CPU."""
    x_N = landscape.data.x_train
    chosen_S = torch.linspace(0, len(x_N) - 1, min(SAMPLES, len(x_N))).long()
    return x_N[chosen_S.to(x_N.device)].cpu()
