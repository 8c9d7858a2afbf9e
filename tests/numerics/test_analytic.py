"""The analytic surfaces against their published values."""

from math import exp

import pytest
import torch
from torch import Tensor

from lowloss.errors import LowlossError
from lowloss.landscape.analytic import LEPS, AnalyticSurface, GaussianMixture, MullerBrown, Quadratic, Rosenbrock, Wedge

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


def test_evaluation_is_the_loss_in_float64() -> None:
    result = MullerBrown().evaluate(torch.tensor([[0.0, 0.5], [1.0, 0.0]]))
    # By hand, to the digits of float32: at (0, 0.5) and (1, 0) one term each is at its centre.
    first = -200 * exp(-1 - 2.5) - 100 - 170 * exp(-6.5 * 0.25 - 11 * 0.5 - 6.5) + 15 * exp(0.7 - 0.3 + 0.7 * 0.25)
    second = -200 - 100 * exp(-1 - 2.5) - 170 * exp(-6.5 * 2.25 - 11 * 2.25 - 6.5 * 2.25) + 15 * exp(2.8 - 1.2 + 0.7)
    assert list(result) == list(MullerBrown.task.units) == ["loss"]
    expected_K = torch.tensor([first, second], dtype=torch.float64)
    torch.testing.assert_close(result["loss"], expected_K, rtol=1e-5, atol=0)


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


LISTED = [
    *[(LEPS(), point, 0) for point in LEPS.minima],
    *[(LEPS(), point, 1) for point in LEPS.saddles],
    (Rosenbrock(5), (1, 1, 1, 1, 1, 0), 0),
    (Quadratic([3, 0.5]), (0, 0, 0), 0),
    (Quadratic([3, -2, -1]), (0, 0, 0, 0), 2),
]


@pytest.mark.parametrize(("surface", "listed", "negative_curvatures"), LISTED)
def test_listed_points_are_stationary(surface: AnalyticSurface, listed: Point, negative_curvatures: int) -> None:
    assert listed in (surface.saddles if negative_curvatures else surface.minima)
    theta_1P = torch.tensor([listed[:-1]], dtype=torch.float64)
    assert surface.losses(theta_1P).item() == pytest.approx(listed[-1], abs=1e-6)
    # Curvatures are at most 40 and the coordinates are rounded to six digits.
    assert gradient(surface, theta_1P).norm() < 4e-5
    hessian_PP = surface.product(theta_1P.expand(surface.dim, -1), torch.eye(surface.dim, dtype=torch.float64))
    assert (torch.linalg.eigvalsh(hessian_PP) < 0).sum() == negative_curvatures


def test_leps_saddle_is_the_published_one() -> None:
    # Jónsson, Mills & Jacobsen 1998, standard parameters.
    assert LEPS.saddles[0][-1] == -0.875225


def test_rosenbrock_and_quadratic_by_hand() -> None:
    theta_KP = torch.tensor([[2.0, 3, 5], [0, 0, 0]], dtype=torch.float64)
    assert Rosenbrock(3).losses(theta_KP).tolist() == [100 * 1 + 1 + 100 * 16 + 4, 2]
    assert Quadratic([1, -2, 4]).losses(theta_KP).tolist() == [2 - 9 + 50, 0]
    assert Quadratic([1, 0]).minima == Quadratic([1, 0]).saddles == ()


def muller_brown(x: float, y: float) -> Tensor:
    hessian_22 = torch.zeros(2, 2, dtype=torch.float64)
    for A, a, b, c, x0, y0 in MullerBrown._terms:
        dx, dy = x - x0, y - y0
        slope_2 = torch.tensor([2 * a * dx + b * dy, b * dx + 2 * c * dy], dtype=torch.float64)
        bend_22 = torch.tensor([[2 * a, b], [b, 2 * c]], dtype=torch.float64)
        hessian_22 += A * exp(a * dx**2 + b * dx * dy + c * dy**2) * (slope_2.outer(slope_2) + bend_22)
    return hessian_22


def gaussian_mixture(x: float, y: float) -> Tensor:
    surface, identity_22 = GaussianMixture(1), torch.eye(2, dtype=torch.float64)
    hessian_22 = surface.bowl * identity_22
    for centre_2, h, w in zip(surface.centres_M2, surface.height_M.tolist(), surface.width_M.tolist(), strict=True):
        d_2 = torch.tensor([x, y], dtype=torch.float64) - centre_2
        hessian_22 = hessian_22 + h * exp(-float(d_2 @ d_2) / (2 * w**2)) / w**2 * (identity_22 - d_2.outer(d_2) / w**2)
    return hessian_22


def wedge(x: float, y: float, z: float) -> Tensor:
    # The free component is z; the Hessian of a norm is the projection across, over the norm.
    norm = (x * x + y * y) ** 0.5
    return torch.tensor([[y * y, -x * y, 0], [-x * y, x * x, 0], [0, 0, 0]], dtype=torch.float64) / norm**3


def rosenbrock(x: float, y: float) -> Tensor:
    return torch.tensor([[1200 * x * x - 400 * y + 2, -400 * x], [-400 * x, 200]], dtype=torch.float64)


def diagonal(*_: float) -> Tensor:
    return torch.diag(torch.tensor([3, -2, 0.5], dtype=torch.float64))


HESSIANS = [
    (MullerBrown(), muller_brown),
    (GaussianMixture(1), gaussian_mixture),
    (Wedge(3, 1), wedge),
    (Rosenbrock(), rosenbrock),
    (Quadratic([3, -2, 0.5]), diagonal),
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("surface", "closed_form"), HESSIANS)
def test_product_is_the_closed_form(surface, closed_form, dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    theta_KP = torch.tensor([[0.3, -0.4, 0.9], [-0.5, 0.25, -1.5]], dtype=dtype)[:, : surface.dim]
    v_KP = torch.randn(theta_KP.shape, generator=generator, dtype=torch.float64).to(dtype)
    expected_KP = torch.stack([closed_form(*p) @ v for p, v in zip(theta_KP.tolist(), v_KP.double(), strict=True)])
    with torch.no_grad():
        found_KP = surface.product(theta_KP, v_KP)
    assert found_KP.dtype == dtype
    rtol = 1e-5 if dtype == torch.float32 else 1e-12
    torch.testing.assert_close(found_KP, expected_KP.to(dtype), rtol=rtol, atol=rtol * float(expected_KP.abs().max()))


class Plane(AnalyticSurface):
    dim = 2

    def energy(self, theta_KP: Tensor) -> Tensor:
        return theta_KP @ torch.tensor([1.0, 2.0], dtype=theta_KP.dtype)


def test_product_on_a_plane_is_zero() -> None:
    assert Plane().product(torch.ones(3, 2), torch.ones(3, 2)).tolist() == [[0, 0]] * 3


def test_losses_are_differentiable_once() -> None:
    surface = MullerBrown()
    theta_KP = torch.tensor([[0.1, 0.2]], dtype=torch.float64, requires_grad=True)
    (first_KP,) = torch.autograd.grad(surface.losses(theta_KP).sum(), theta_KP, create_graph=True)
    (expected_KP,) = torch.autograd.grad(surface.energy(theta_KP).sum(), theta_KP)
    assert torch.equal(first_KP, expected_KP)
    with pytest.raises(LowlossError, match=r"differentiable once.*landscape\.product"):
        torch.autograd.grad(first_KP.sum(), theta_KP)


def test_a_formula_has_no_outputs() -> None:
    with pytest.raises(LowlossError, match="MullerBrown is a formula without outputs"):
        MullerBrown().outputs(torch.zeros(2), "train")


@pytest.mark.parametrize("surface", [lambda: Quadratic([]), lambda: Rosenbrock(1)])
def test_surfaces_without_enough_parameters_are_refused(surface) -> None:
    with pytest.raises(LowlossError, match="at least"):
        surface()
