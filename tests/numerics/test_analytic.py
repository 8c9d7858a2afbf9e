"""The analytic surfaces against their published values."""

from itertools import combinations
from math import exp

import pytest
import torch
from torch import Tensor

from lowloss import GaussianMixture, MullerBrown, Wedge
from lowloss.landscape import AnalyticSurface

Point = tuple[float, float, float]
# Müller & Brown 1979, to three digits: x, y, energy.
MINIMA = ((-0.558, 1.442, -146.700), (0.623, 0.028, -108.167), (-0.050, 0.467, -80.768))
SADDLES = ((-0.822, 0.624, -40.665), (0.212, 0.293, -72.249))
STATIONARY = [
    *[(tabled, published, 0) for tabled, published in zip(MullerBrown.minima, MINIMA, strict=True)],
    *[(tabled, published, 1) for tabled, published in zip(MullerBrown.saddles, SADDLES, strict=True)],
]


def gradient(surface: AnalyticSurface, theta_KP: Tensor) -> Tensor:
    theta_KP = theta_KP.clone().requires_grad_()
    return torch.autograd.grad(surface.losses(theta_KP).sum(), theta_KP)[0]


@pytest.mark.parametrize(("tabled", "published", "negative_curvatures"), STATIONARY)
def test_muller_brown_stationary_points(tabled: Point, published: Point, negative_curvatures: int) -> None:
    surface = MullerBrown()
    assert tabled == pytest.approx(published, abs=6e-4)
    theta_1P = torch.tensor([tabled[:2]], dtype=torch.float64)
    assert surface.losses(theta_1P).item() == pytest.approx(tabled[2], abs=1e-6)
    # Curvatures are of the order of 1000 and the coordinates are rounded to six digits.
    assert gradient(surface, theta_1P).norm() < 5e-3
    hessian = torch.autograd.functional.hessian(lambda p: surface.energy(p[None])[0], theta_1P[0])
    assert (torch.linalg.eigvalsh(hessian) < 0).sum() == negative_curvatures


def test_analytic_evaluation_has_no_error() -> None:
    result = MullerBrown().evaluate(torch.tensor([[0.0, 0.5], [1.0, 0.0]]))
    # By hand, to the digits of float32: at (0, 0.5) and (1, 0) one term each is at its centre.
    first = -200 * exp(-1 - 2.5) - 100 - 170 * exp(-6.5 * 0.25 - 11 * 0.5 - 6.5) + 15 * exp(0.7 - 0.3 + 0.7 * 0.25)
    second = -200 - 100 * exp(-1 - 2.5) - 170 * exp(-6.5 * 2.25 - 11 * 2.25 - 6.5 * 2.25) + 15 * exp(2.8 - 1.2 + 0.7)
    torch.testing.assert_close(result.loss_K, torch.tensor([first, second], dtype=torch.float64), rtol=1e-5, atol=0)
    assert result.error_K.isnan().all()


def test_gaussian_mixture_is_its_formula_and_its_seed() -> None:
    surface = GaussianMixture(3, centres=2, bowl=0.4)
    x, y = 0.3, -0.6
    expected = 0.5 * 0.4 * (x**2 + y**2)
    wells = zip(surface.centres_M2.tolist(), surface.height_M.tolist(), surface.width_M.tolist(), strict=True)
    for (cx, cy), height, width in wells:
        assert max(abs(cx), abs(cy)) <= 1
        expected -= height * exp(-((x - cx) ** 2 + (y - cy) ** 2) / (2 * width**2))
    theta_1P = torch.tensor([[x, y]], dtype=torch.float64)
    assert surface.losses(theta_1P).item() == pytest.approx(expected, abs=1e-12)
    assert torch.equal(GaussianMixture(3, 2, 0.4).losses(theta_1P), surface.losses(theta_1P))
    assert not torch.equal(GaussianMixture(4, 2, 0.4).losses(theta_1P), surface.losses(theta_1P))


def test_wedge_by_hand() -> None:
    theta_KP = torch.tensor(
        [[0.0, 7, 0, 0, -9], [3, -4, 0, 7, 100], [3, -4, 12, 70, -90], [0, 0, 0, 0, 0]], dtype=torch.float64
    )
    # Two components are free; the norm is that of the three smallest.
    assert Wedge(5, 2).losses(theta_KP).tolist() == [0, 5, 13, 0]
    expected = torch.zeros(4, 5, dtype=torch.float64)
    expected[1, :2] = torch.tensor([3, -4]) / 5
    expected[2, :3] = torch.tensor([3, -4, 12]) / 13
    torch.testing.assert_close(gradient(Wedge(5, 2), theta_KP), expected)


@pytest.mark.parametrize("n", [0, 5, 6])
def test_wedge_rejects_n_outside(n: int) -> None:
    with pytest.raises(ValueError, match="0 < n < dim"):
        Wedge(5, n)


@pytest.mark.parametrize(("cut", "reaches_zero"), [(2, False), (4, True)])
def test_random_cut_reaches_zero_where_it_has_more_dimensions_than_constraints(cut: int, reaches_zero: bool) -> None:
    dim, n = 8, 5
    surface = Wedge(dim, n)
    origin_P = torch.randn(dim, dtype=torch.float64)
    directions_DP = torch.linalg.qr(torch.randn(dim, cut, dtype=torch.float64)).Q.T
    # On a cut, the loss is the distance to the nearest wedge: one linear least-squares problem for each wedge.
    floor = min(
        torch.linalg.vector_norm(origin_P[rows] + directions_DP[:, rows].T @ solution)
        for rows in map(list, combinations(range(dim), dim - n))
        for solution in [torch.linalg.lstsq(directions_DP[:, rows].T, -origin_P[rows]).solution]
    )
    z_KD = 2 * torch.randn(256, cut, dtype=torch.float64)
    for _ in range(1000):
        z_KD.requires_grad_()
        (step_KD,) = torch.autograd.grad(surface.losses(origin_P + z_KD @ directions_DP).square().sum(), z_KD)
        z_KD = (z_KD - 0.4 * step_KD).detach()
    found = surface.losses(origin_P + z_KD @ directions_DP).min()
    assert found >= floor - 1e-9
    if reaches_zero:
        assert found < 1e-6
    else:
        assert found > 0.01
        assert found == pytest.approx(float(floor), rel=1e-6)
