"""The straight-through estimator: a permuted copy is found, and midpoints are no higher than those of weights."""

from functools import partial

import pytest
import torch

import lowloss
from lowloss.data import digits
from lowloss.landscape import NetworkLandscape
from lowloss.model import MLP
from lowloss.symmetry import align, match_straight_through, match_weights


@pytest.fixture(scope="module")
def landscape():
    return NetworkLandscape(partial(MLP, hidden=[24, 16]), digits())


@pytest.fixture(scope="module")
def trained(landscape):
    return lowloss.train_minima(landscape, count=2, epochs=8, batch_size=100).theta_KP


def test_a_permuted_copy_is_found(landscape, trained, monkeypatch):
    monkeypatch.setattr("lowloss.symmetry.straight_through.STEPS", 20)
    a_P = trained[0]
    _, symmetries = align(landscape, *trained, "weights")
    sigma = symmetries.random(5)
    found = match_straight_through(landscape, symmetries, a_P, symmetries.permuted(a_P, sigma))
    # sigma moves unit sigma[i] to i, and what is found moves it back.
    assert all(torch.equal(sigma[name][one], torch.arange(len(one))) for name, one in found.items())
    assert found.keys() == sigma.keys()


def test_a_permuted_copy_is_found_where_the_loss_falls_between_other_permutations(landscape):
    a_P = landscape.initial(3)
    _, symmetries = align(landscape, a_P, a_P, "weights")
    assert torch.equal(align(landscape, a_P, symmetries.permuted(a_P, symmetries.random(1)), "ste")[0], a_P)


def test_the_midpoint_is_lower_than_by_weights(landscape, trained):
    a_P, b_P = trained

    def loss(point_P):
        """By plain torch, at the midpoint."""
        module = MLP((1, 8, 8), 10, hidden=[24, 16])
        module.load_state_dict(landscape.layout.views((a_P + point_P) / 2))
        data = landscape.data
        return torch.nn.functional.cross_entropy(module(data.x_train), data.y_train).item()

    by_weights, by_loss = (loss(align(landscape, a_P, b_P, by)[0]) for by in ("weights", "ste"))
    assert by_loss < by_weights < loss(b_P)


def test_the_permutation_by_weights_is_the_first_of_all(landscape, trained, monkeypatch):
    monkeypatch.setattr("lowloss.symmetry.straight_through.STEPS", 0)
    _, symmetries = align(landscape, *trained, "weights")
    found = match_straight_through(landscape, symmetries, *trained)
    wanted = match_weights(symmetries, *trained)
    assert found.keys() == wanted.keys()
    assert all(torch.equal(found[name], wanted[name]) for name in found)


def test_it_follows_from_its_seed(landscape, trained, monkeypatch):
    monkeypatch.setattr("lowloss.symmetry.straight_through.STEPS", 40)
    one, again = (align(landscape, *trained, "ste", seed=3)[0] for _ in range(2))
    assert torch.equal(one, again)
