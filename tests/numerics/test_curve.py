"""Curve training: the chain rule by hand, on a landscape whose loss tells which t was drawn."""

import numpy as np
import pytest
import torch
from scipy.stats import kstest
from torch import Tensor

from lowloss import BezierCurve, Line, LowlossError, MullerBrown, PolygonalChain, find_path
from lowloss.finder import Bezier, Polyline
from lowloss.landscape import AnalyticSurface


class Slope(AnalyticSurface):
    """The loss is the first coordinate."""

    dim = 2

    def energy(self, theta_KP: Tensor) -> Tensor:
        return theta_KP[:, 0]


A, B = torch.tensor([0.0, 2.0], dtype=torch.float64), torch.tensor([1.0, -1.0], dtype=torch.float64)


def test_gradient_of_a_bezier_bend() -> None:
    # The first coordinate of this curve is t itself.
    theta_P = torch.tensor([0.5, 3.0], dtype=torch.float64)
    bends_BP = torch.stack([A, theta_P, B]).requires_grad_()
    objective, losses_K = BezierCurve(weight_decay=0.3).objective(Bezier(bends_BP), Slope(), None, seed=7)
    (t,) = losses_K.tolist()
    assert 0 < t < 1
    point_P = (1 - t) ** 2 * A + 2 * t * (1 - t) * theta_P + t**2 * B
    assert point_P[0] == pytest.approx(t)
    assert objective.item() == pytest.approx(float(t + 0.5 * 0.3 * point_P @ point_P))
    (gradient_BP,) = torch.autograd.grad(objective, bends_BP)
    # The decay is that of the point on the curve, not of the bend.
    at_point_P = torch.tensor([1.0, 0.0], dtype=torch.float64) + 0.3 * point_P
    torch.testing.assert_close(gradient_BP[1], 2 * t * (1 - t) * at_point_P)


def test_gradient_of_the_bends_of_a_chain_is_averaged_over_samples() -> None:
    x_B = torch.tensor([0, 1 / 3, 2 / 3, 1], dtype=torch.float64)
    bends_BP = torch.stack([x_B, torch.randn(4, dtype=torch.float64)], dim=1).requires_grad_()
    finder = PolygonalChain(bends=2, samples=5, weight_decay=0.3)
    objective, losses_K = finder.objective(Polyline(bends_BP), Slope(), None, seed=7)
    assert len(set(losses_K.tolist())) == 5
    (gradient_BP,) = torch.autograd.grad(objective, bends_BP)
    expected_BP = torch.zeros(4, 2, dtype=torch.float64)
    for t in losses_K.tolist():
        weights_B = (1 - 3 * (t - x_B).abs()).clamp_min(0)
        at_point_P = torch.tensor([1.0, 0.0], dtype=torch.float64) + 0.3 * weights_B @ bends_BP.detach()
        expected_BP += weights_B[:, None] * at_point_P / 5
    torch.testing.assert_close(gradient_BP, expected_BP)


def test_t_is_uniform() -> None:
    finder, path = BezierCurve(samples=4), Bezier(torch.stack([A, (A + B) / 2, B]))
    t = torch.cat([finder.objective(path, Slope(), None, seed)[1] for seed in range(500)])
    assert kstest(t.numpy(), "uniform").pvalue > 0.01


def test_search_equals_sgd_by_hand() -> None:
    finder = BezierCurve(bends=1, steps=10, lr=0.02, momentum=0.9, weight_decay=0.3)
    found = find_path(Slope(), A, B, finder, block=1)
    # The rate stays for half of the steps, then falls linearly to a hundredth at nine tenths.
    factors = [1, 1, 1, 1, 1, 1, 1 - 0.99 / 4, 1 - 0.99 / 2, 1 - 0.99 * 3 / 4, 0.01]
    theta_P, velocity_P = (A + B) / 2, torch.zeros(2, dtype=torch.float64)
    for factor, (_, _, rate, loss, _) in zip(factors, found.history, strict=True):
        assert rate == pytest.approx(0.02 * factor)
        x = theta_P[0].item()
        # The first coordinate is a rising parabola of t.
        roots = np.roots([1 - 2 * x, 2 * x, -loss]) if x != 0.5 else np.array([loss])
        (t,) = (float(root.real) for root in roots if abs(root.imag) < 1e-12 and 0 <= root.real <= 1)
        point_P = (1 - t) ** 2 * A + 2 * t * (1 - t) * theta_P + t**2 * B
        gradient_P = 2 * t * (1 - t) * (torch.tensor([1.0, 0.0], dtype=torch.float64) + 0.3 * point_P)
        velocity_P = 0.9 * velocity_P + gradient_P
        theta_P = theta_P - 0.02 * factor * velocity_P
    torch.testing.assert_close(found.path.bends_BP, torch.stack([A, theta_P, B]), rtol=1e-9, atol=1e-9)
    assert found.gradient_evaluations == 10
    assert found.status == "steps_done"


@pytest.mark.parametrize("finder", [BezierCurve(bends=3), PolygonalChain(bends=3)])
def test_curves_start_straight(finder: BezierCurve | PolygonalChain) -> None:
    t_B = torch.linspace(0, 1, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(finder.start(A, B).bends_BP, (1 - t_B) * A + t_B * B)


def test_a_line_needs_no_search() -> None:
    found = find_path(MullerBrown(), A, B, Line())
    assert (found.status, found.gradient_evaluations) == ("exact", 0)
    torch.testing.assert_close(found.path.points(torch.tensor([0.25])), (0.75 * A + 0.25 * B)[None])


@pytest.mark.parametrize("finder", [Line(), BezierCurve()])
def test_equal_ends_are_refused(finder: Line | BezierCurve) -> None:
    with pytest.raises(LowlossError, match="same point"):
        find_path(MullerBrown(), A, A.clone(), finder)


@pytest.mark.parametrize("wrong", [{"bends": 0}, {"samples": 0}])
def test_a_curve_needs_bends_and_samples(wrong: dict[str, int]) -> None:
    with pytest.raises(LowlossError, match="at least one"):
        BezierCurve(**wrong)
