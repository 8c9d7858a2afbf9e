"""Clipping by hand: each row by itself, momentum and decay as SGD has them."""

import pytest
import torch

from lowloss import MullerBrown, train_minima
from lowloss.seeding import derive
from lowloss.training.clipped import ClippedSGD


def test_long_rows_are_shortened_and_short_ones_stay() -> None:
    x_RQ = torch.tensor([[1.0, 2.0], [3.0, 4.0]], requires_grad=True)
    optimizer = ClippedSGD([x_RQ], lr=0.5, max_norm=1.0, momentum=0.9, weight_decay=0.1)
    expected, velocity = x_RQ.detach().clone(), torch.zeros(2, 2)
    for gradient in ([[3.0, 4.0], [0.3, 0.4]], [[0.0, 0.0], [-6.0, 8.0]]):
        x_RQ.grad = torch.tensor(gradient)
        optimizer.step()
        clipped = torch.tensor([[0.6, 0.8], [0.3, 0.4]] if gradient[0][0] else [[0.0, 0.0], [-0.6, 0.8]])
        velocity = 0.9 * velocity + clipped + 0.1 * expected
        expected = expected - 0.5 * velocity
        torch.testing.assert_close(x_RQ.detach(), expected)


def test_a_descent_is_clipped() -> None:
    surface = MullerBrown()
    found = train_minima(surface, 1, epochs=3, optimizer=lambda params: ClippedSGD(params, lr=2.0, max_norm=1e-4))
    # Far from any minimum: three steps of 2e-4 each, all in about the same direction.
    moved = found.theta_KP[0] - surface.initial(derive(0, "initial", 0))
    assert moved.norm().item() == pytest.approx(6e-4, rel=1e-2)
