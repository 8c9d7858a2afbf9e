"""Widths in closed form, and directions that are what they say."""

from math import atan2, inf

import pytest
import torch
from torch import Tensor

from lowloss import LowlossError, tabulate
from lowloss.landscape import AnalyticSurface, Quadratic
from lowloss.measure import Width
from lowloss.points.directions import unit_directions

CURVATURE = torch.tensor([4.0, 1, 0.25, 9, 2], dtype=torch.float64)
CENTRE = torch.tensor([3.0, -4, 0, 12, 0], dtype=torch.float64)


class Bowl(AnalyticSurface):
    """0.3 + (x - c)^T H (x - c) / 2 with a diagonal H."""

    dim = 5

    def energy(self, theta_KP: Tensor) -> Tensor:
        return 0.3 + 0.5 * (theta_KP - CENTRE.to(theta_KP)).square() @ CURVATURE.to(theta_KP)


@pytest.mark.parametrize("orthogonal", [True, False])
def test_the_width_of_a_quadratic_bowl_in_closed_form(orthogonal: bool) -> None:
    directions_KP = unit_directions(CENTRE, 1, orthogonal, torch.arange(50))
    threshold = 2.0
    measure = Width(CENTRE, threshold, longest=50.0, tolerance=1e-9)
    found = tabulate(Bowl(), directions_KP, measures=[measure], chunk=7)
    # 0.3 + a² v^T H v / 2 = threshold.
    expected_K = (2 * (threshold - 0.3) / (directions_KP.square() @ CURVATURE)).sqrt()
    torch.testing.assert_close(found["distance"], expected_K, rtol=2e-9, atol=0)
    assert found["crossed"].all()
    for v_P, distance, angle in zip(directions_KP, found["distance"], found["angle"], strict=True):
        moved_P = CENTRE + distance * v_P
        cosine = float(CENTRE @ moved_P / (CENTRE.norm() * moved_P.norm()))
        assert float(angle) == pytest.approx(atan2((1 - cosine**2) ** 0.5, cosine), abs=1e-7)
        if orthogonal:
            assert float(angle.tan()) == pytest.approx(float(distance) / 13)


def test_directions_are_uniform_units_and_follow_from_their_index() -> None:
    theta_P = torch.randn(200)
    all_KP = unit_directions(theta_P, 3, True, torch.arange(400))
    torch.testing.assert_close(all_KP.norm(dim=1), torch.ones(400))
    assert (all_KP @ (theta_P / theta_P.norm())).abs().max() < 1e-6
    assert torch.equal(unit_directions(theta_P, 3, True, torch.tensor([7, 2])), all_KP[[7, 2]])
    assert not torch.equal(unit_directions(theta_P, 4, True, torch.tensor([7])), all_KP[[7]])
    # Of 400 unit vectors in 200 dimensions, every coordinate has the mean square 1 / 200 within five deviations.
    free_KP = unit_directions(theta_P, 3, False, torch.arange(400)).double()
    assert (free_KP.square().mean(0) * 200 - 1).abs().max() < 5 * (2 / 400) ** 0.5
    along_K = free_KP @ (theta_P / theta_P.norm()).double()
    assert float(along_K.square().mean() * 200) == pytest.approx(1, abs=5 * (2 / 400) ** 0.5)


def test_where_the_threshold_is_never_passed_the_longest_distance_counts() -> None:
    surface = Quadratic([1.0, 0.0])
    measure = Width(torch.tensor([0.0, 5.0]).double(), 0.5, longest=10.0, tolerance=1e-8)
    found = measure(surface, torch.eye(2).double())
    assert found["crossed"].tolist() == [True, False]
    assert found["distance"].tolist() == pytest.approx([1.0, 10.0])


def test_a_loss_that_is_not_finite_has_passed() -> None:
    class Cliff(AnalyticSurface):
        dim = 1

        def energy(self, theta_KP: Tensor) -> Tensor:
            return torch.where(theta_KP[:, 0] < 1.5, 0.0, torch.tensor(inf).log1p() - inf)

    found = Width(torch.tensor([1.0]).double(), 1.0, longest=4.0, tolerance=1e-6)(Cliff(), torch.ones(1, 1).double())
    assert float(found["distance"]) == pytest.approx(0.5, rel=1e-5)


def test_a_crossing_before_the_valley_beyond_is_the_one_that_is_found() -> None:
    class Ridge(AnalyticSurface):
        """Above a half between 2 and 9, and low again beyond."""

        dim = 1

        def energy(self, theta_KP: Tensor) -> Tensor:
            x_K = theta_KP[:, 0]
            return ((x_K > 2) & (x_K < 9)).double()

    found = Width(torch.zeros(1).double(), 0.5, longest=20.0, tolerance=1e-6)(Ridge(), torch.ones(1, 1).double())
    assert float(found["distance"]) == pytest.approx(2.0, rel=1e-5)


@pytest.mark.parametrize("threshold", [0.3, 0.1, -inf])
def test_a_threshold_below_the_optimum_is_refused(threshold: float) -> None:
    with pytest.raises(LowlossError, match=r"is not above the point's own train loss, 0\.3: raise width\.threshold"):
        Width(CENTRE, threshold, longest=1.0)(Bowl(), torch.eye(5).double())
