"""Tunnels on surfaces whose valleys are known, and how paths leave the straight line."""

import pytest
import torch
from torch import Tensor

from lowloss import LowlossError, NetworkLandscape, Tunnel, find_path
from lowloss.finder import Bezier, Line, Polyline
from lowloss.landscape import AnalyticSurface
from lowloss.landscape.analytic import Wedges, as_network
from lowloss.points.path import changed_labels, deviation_cosines, halves
from lowloss.training.methods import train_minima


class Arch(AnalyticSurface):
    """A valley y = 1 - x², z = x, of zero loss."""

    dim = 3

    def energy(self, theta_KP: Tensor) -> Tensor:
        x_K, y_K, z_K = theta_KP.unbind(1)
        return (y_K - 1 + x_K**2) ** 2 + (z_K - x_K) ** 2


A, B = torch.tensor([-1.0, 0, -1], dtype=torch.float64), torch.tensor([1.0, 0, 1], dtype=torch.float64)


def test_points_reach_the_valley_in_their_hyperplanes() -> None:
    found = find_path(Arch(), A, B, Tunnel(pivots=7, steps=400, lr=0.1))
    x_M = torch.linspace(-1, 1, 9, dtype=torch.float64)[1:-1]
    # The line is x = z: in the plane normal to it, only (x, 1 - x², x) is at zero.
    expected_MP = torch.stack([x_M, 1 - x_M**2, x_M], 1)
    torch.testing.assert_close(found.path.bends_BP[1:-1], expected_MP, atol=1e-6, rtol=0)
    assert (found.status, found.gradient_evaluations) == ("steps_done", 7 * 400)


@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_points_keep_their_hyperplanes_to_rounding_over_a_thousand_steps(momentum: float) -> None:
    surface = Wedges(30, 20, seed=1)
    a_P, b_P = torch.randn(2, 30).unbind()
    found = find_path(surface, a_P, b_P, Tunnel(pivots=5, steps=1000, lr=0.01, momentum=momentum))
    line_P = (b_P - a_P).double()
    along_M = (found.path.bends_BP[1:-1].double() - a_P) @ line_P / (line_P @ line_P)
    torch.testing.assert_close(along_M, torch.linspace(0, 1, 7).double()[1:-1], atol=3e-7, rtol=0)
    assert (found.path.bends_BP[3].double() - (a_P + b_P).double() / 2).norm() > 0.1


def test_the_weight_decay_pulls_the_points() -> None:
    class Flat(AnalyticSurface):
        dim = 2

        def energy(self, theta_KP: Tensor) -> Tensor:
            return 0 * theta_KP[:, 0]

    a_P, b_P = torch.tensor([[0.0, 2.0], [4.0, 2.0]], dtype=torch.float64)
    found = find_path(Flat(), a_P, b_P, Tunnel(pivots=1, steps=1, lr=0.1, momentum=0, weight_decay=0.5))
    torch.testing.assert_close(found.path.bends_BP[1], torch.tensor([2.0, 2 - 0.1 * 0.5 * 2]).double())


def test_deviations_between_two_wedges_are_aligned_within_a_half() -> None:
    """Fort & Jastrzebski 2019, fig. 3: aligned until the wedge changes.

    The deviation in the first half is the part across the line of b's part across the first wedge, of squared norm q
    times that of the line, and likewise in the second half; their cosine is about q / (1 - q).
    """
    D, n = 100, 90
    surface = Wedges(D, n, seed=0)
    a_P, b_P = torch.randn(2, D, dtype=torch.float64).unbind()
    short_1_PS, short_2_PS = surface.short_WPS
    a_P, b_P = a_P - short_1_PS @ (short_1_PS.T @ a_P), b_P - short_2_PS @ (short_2_PS.T @ b_P)
    assert surface.energy(torch.stack([a_P, b_P])).max() < 1e-12
    path = find_path(surface, a_P, b_P, Tunnel(pivots=9, steps=400, lr=0.05)).path
    t_T = path.grid(points=11, between=0)
    cosines_TT = deviation_cosines(path, t_T)
    assert cosines_TT is not None
    within, between = halves(cosines_TT, t_T)
    q = float((short_1_PS.T @ b_P).square().sum() / (b_P - a_P).square().sum())
    assert 0.02 < q < 0.1
    assert within > 0.98
    assert abs(between - q / (1 - q)) < 0.15
    assert surface.energy(path.bends_BP).max() < 0.05 * float(surface.energy((a_P + b_P)[None] / 2))


def test_cosines_by_brute_force() -> None:
    path, t_T = Bezier(torch.randn(4, 6, dtype=torch.float64)), torch.linspace(0, 1, 5, dtype=torch.float64)
    theta_TP, (a_P, b_P) = path.points(t_T), path.bends_BP[[0, -1]]
    line_P = b_P - a_P
    across_TP = torch.stack([v - (v @ line_P) / (line_P @ line_P) * line_P for v in theta_TP - a_P])
    expected_TT = torch.zeros(5, 5, dtype=torch.float64)
    expected_TT[1:-1, 1:-1] = torch.cosine_similarity(across_TP[1:-1, None], across_TP[None, 1:-1], dim=2)
    found_TT = deviation_cosines(path, t_T)
    assert found_TT is not None
    torch.testing.assert_close(found_TT, expected_TT)
    within, between = halves(found_TT, torch.tensor([0, 0.2, 0.4, 0.7, 1]).double())
    assert within == pytest.approx(float(expected_TT[1, 2]))
    assert between == pytest.approx(float((0.4 * expected_TT[3, 1] + 0.5 * expected_TT[3, 2]) / 0.9))


def test_mean_cosines_are_over_the_length_wherever_samples_lie() -> None:
    path = Bezier(torch.randn(5, 9, dtype=torch.float64, generator=torch.Generator().manual_seed(0)))
    even_T = torch.linspace(0, 1, 401, dtype=torch.float64)
    crowd_T = torch.linspace(0.3, 0.32, 300, dtype=torch.float64)
    crowded_T = torch.cat([even_T, crowd_T]).unique()
    found = []
    for t_T in (even_T, crowded_T):
        cosines_TT, step_S = deviation_cosines(path, t_T), path.lengths(t_T)
        assert cosines_TT is not None
        found.append(halves(cosines_TT, torch.cat([t_T[:1], step_S.cumsum(0) / step_S.sum()])))
    assert found[1] == pytest.approx(found[0], abs=3e-3)


def test_a_straight_path_has_no_deviations() -> None:
    line = Line().start(*torch.randn(2, 50).unbind())
    t_T = line.grid(points=21, between=9)
    assert deviation_cosines(line, t_T) is None
    assert deviation_cosines(Polyline(line.points(t_T)), t_T) is None


def test_labels_that_change_are_counted_from_each_end() -> None:
    labels_TN = torch.tensor([[0, 1, 2, 3], [0, 1, 2, 0], [0, 0, 2, 0]])
    first_T, last_T = changed_labels(labels_TN)
    assert (first_T.tolist(), last_T.tolist()) == ([0, 0.25, 0.5], [0.5, 0.25, 0])


def test_wedges_are_distances_to_subspaces() -> None:
    surface, theta_KP = Wedges(7, 4, count=3, seed=2), torch.randn(5, 7, dtype=torch.float64)
    short_WPS = surface.short_WPS
    for theta_P, energy in zip(theta_KP, surface.losses(theta_KP), strict=True):
        residuals = []
        for short_PS in short_WPS:
            long_PN = torch.linalg.svd(short_PS, full_matrices=True).U[:, 3:]
            nearest_P = long_PN @ torch.linalg.lstsq(long_PN, theta_P[:, None]).solution[:, 0]
            residuals.append(float((theta_P - nearest_P).norm()))
        assert float(energy) == pytest.approx(min(residuals))
    with pytest.raises(LowlossError, match="0 < n < dim"):
        Wedges(4, 4)


def test_a_surface_is_a_network_to_the_pipeline() -> None:
    landscape = NetworkLandscape(*as_network(Wedges(12, 8, seed=3)))
    found = train_minima(landscape, 2, epochs=3, batch_size=None)
    assert found.theta_KP.shape == (2, 12)
    theta_KP = torch.randn(3, 12)
    expected_K = Wedges(12, 8, seed=3).evaluate(theta_KP)["loss"]
    for split in ("train", "test"):
        torch.testing.assert_close(landscape.evaluate(theta_KP, split)["loss"], expected_K, rtol=1e-5, atol=1e-6)
