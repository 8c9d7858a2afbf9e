"""Alignment by the loss itself, with a straight-through estimator (Ainsworth et al. 2023, Algorithm 3).

Shapes: P parameters, N units of a group.
"""

from math import inf

import torch
from torch import Tensor

from lowloss.landscape.network import NetworkLandscape
from lowloss.seeding import derive
from lowloss.symmetry.groups import Symmetries
from lowloss.symmetry.matching import match_weights

STEPS, LOOKED = 200, 10
"""Gradient steps, and after how many of them the loss at the midpoint is evaluated exactly."""

BATCH, RATE = 500, 3e-3
"""Samples of a minibatch, and Adam's learning rate."""


def match_straight_through(
    landscape: NetworkLandscape, symmetries: Symmetries, a_P: Tensor, b_P: Tensor, seed: int = 0
) -> dict[str, Tensor]:
    """Permutations of b (N,), a group each, that make the loss at the midpoint with a small.

    A free point starts at a and is projected at every step: b is permuted to match it by its weights. The gradient at
    the midpoint of a and the permuted b moves the free point, as if it were the permuted b. Of the permutations on the
    way, the first of which is that of `match_weights`, the one of lowest exact train loss at the midpoint is returned.
    If the first makes b the same network as a, it is that one: away from a minimum other midpoints are lower.

    Args:
        seed: of the minibatches.
    """
    device = landscape.data.device
    a_P, b_P = a_P.to(device), b_P.to(device)
    batches = landscape.batches(BATCH, [derive(seed, "straight-through")], shared=True)
    free_P = torch.nn.Parameter(a_P.clone())
    optimizer = torch.optim.Adam([free_P], lr=RATE)
    best, lowest = dict[str, Tensor](), inf
    for step in range(STEPS + 1):
        found = match_weights(symmetries, free_P.detach(), b_P)
        permuted_P = symmetries.permuted(b_P, found)
        if step == 0 and torch.equal(permuted_P, a_P):
            return found
        middle_1P = a_P.lerp(permuted_P, 0.5)[None].requires_grad_()
        if step % LOOKED == 0:
            loss = float(landscape.evaluate(middle_1P.detach())["loss"])
            if loss < lowest or not best:
                best, lowest = found, loss
        landscape.losses(middle_1P, batches[step]).sum().backward()
        assert middle_1P.grad is not None
        free_P.grad = middle_1P.grad[0] / 2
        optimizer.step()
    return best
