"""Networks that part from minimum 0: one until their epoch, and minimum 0 is what it is without them."""

import pytest
import torch

from lowloss import train_minima
from lowloss.data import tiny
from lowloss.errors import LowlossError
from lowloss.landscape import NetworkLandscape
from lowloss.model import MLP
from lowloss.training.branching import Following, Parting


def test_minima_are_one_until_they_part():
    data = tiny()
    landscape = NetworkLandscape(MLP(data.input_shape, 10, hidden=[6], batch_norm=True), data)
    settings = {"epochs": 4, "batch_size": 16, "collect": "every", "seed": 3}
    alone = train_minima(landscape, 2, **settings)
    found = train_minima(landscape, 4, branch=[0, 2.5], **settings)
    of = [trajectory.theta_EP for trajectory in found.trajectories]
    # Minimum 0, and what is beyond the list, do not know of it.
    assert torch.equal(of[0], alone.trajectories[0].theta_EP)
    assert torch.equal(of[3], train_minima(landscape, indices=[3], **settings).trajectories[0].theta_EP)
    assert [int((of[0] == of[k]).all(1).sum()) for k in (1, 2)] == [1, 3]  # epochs 0, and 0, 1, 2
    assert not torch.equal(of[1], alone.trajectories[1].theta_EP)
    # In a process of its own it is the same.
    assert torch.equal(train_minima(landscape, indices=[2], branch=[0, 2.5], **settings).theta_KP[0], found.theta_KP[2])


def test_rows_take_the_gradient_of_their_leader_until_they_part():
    data = tiny()
    landscape = NetworkLandscape(MLP(data.input_shape, 10, hidden=[2]), data)
    batches = landscape.batches(16, [0, 1, 2], shared=False)
    objective, x_RQ = Following(landscape, batches, 0, {1: 2, 2: 1}), torch.randn(3, landscape.dim)
    gradient_RQ = torch.arange(3.0)[:, None].expand(3, landscape.dim)
    followed = []
    for step in range(3):
        _, losses_K = objective.losses(x_RQ, step)
        followed.append(objective.nudge(x_RQ, gradient_RQ, losses_K)[:, 0].tolist())
    assert followed == [[0, 0, 0], [0, 0, 2], [0, 1, 2]]


class InOrder:
    steps_per_epoch = 1

    def state_dict(self):
        return {}


def test_what_goes_through_a_text_in_its_order_does_not_part():
    with pytest.raises(LowlossError, match="have one order, so nothing parts: set branch to null"):
        Parting(lambda _: InOrder(), [0, 0], [0, 1], {1: 1})
