"""Connectors: the surface through the optimised points of a simplex, by geometry and on surfaces that are known."""

from functools import partial
from itertools import combinations

import pytest
import torch
from torch import Tensor

from lowloss import LowlossError, Tunnel, find_path
from lowloss.landscape import AnalyticSurface
from lowloss.landscape.analytic import Wedges
from lowloss.points.simplex import Simplex, edges
from lowloss.training.charts import find_connector

adam = partial(torch.optim.Adam, lr=0.01)


@pytest.mark.parametrize(("m", "vertices"), [(1, 5), (2, 15), (3, 35), (4, 5 + 10 + 1), (10, 11 + 55 + 1)])
def test_the_surface_through_points_that_stayed_is_the_simplex(m: int, vertices: int) -> None:
    simplex = Simplex(m, 4)
    assert simplex.weights_VC.shape == (vertices, m + 1)
    assert torch.equal(simplex.weights_VC[: m + 1], torch.eye(m + 1).double())
    w_KC = torch.cat([simplex.draw(200, seed=1), simplex.weights_VC, (simplex.weights_VC + 1 / (m + 1)) / 2])
    coefficients_KV = simplex.coefficients(w_KC)
    assert coefficients_KV.min() >= 0
    torch.testing.assert_close(coefficients_KV.sum(1), torch.ones(len(w_KC)).double())
    torch.testing.assert_close(coefficients_KV @ simplex.weights_VC, w_KC)
    # A vertex is itself, and no other.
    torch.testing.assert_close(simplex.coefficients(simplex.weights_VC), torch.eye(vertices).double())


def cells_around(simplex: Simplex, w_KC: Tensor) -> Tensor:
    """The vertices with a weight, as a mask (K, V)."""
    return simplex.coefficients(w_KC) > 1e-12


def test_cells_are_those_of_a_triangulation() -> None:
    """In a triangle of resolution 2 there are four cells, each of which has a quarter of the points."""
    simplex = Simplex(2, 2)
    cells, counts = cells_around(simplex, simplex.draw(4000, seed=2)).unique(dim=0, return_counts=True)
    assert cells.sum(1).tolist() == [3] * 4
    # A corner and the two middles beside it, and the three middles.
    kept = {tuple(sorted(map(tuple, simplex.weights_VC[cell].tolist()))) for cell in cells}
    middles = [(0.0, 0.5, 0.5), (0.5, 0.0, 0.5), (0.5, 0.5, 0.0)]
    expected = {tuple(sorted(middles))}
    for corner in range(3):
        beside = [middle for middle in middles if middle[corner]]
        expected.add(tuple(sorted([tuple(torch.eye(3)[corner].tolist()), *beside])))
    assert kept == expected
    assert (counts - 1000).abs().max() < 5 * 27.4  # of binomial deviations


def test_the_surface_is_continuous() -> None:
    generator = torch.Generator().manual_seed(0)
    for m in (2, 3, 5):
        simplex = Simplex(m, 3)
        vertices_VP = torch.randn(len(simplex.weights_VC), 4, generator=generator, dtype=torch.float64)
        w_KC = simplex.draw(300, seed=3)
        step_KC = 1e-7 * (simplex.draw(300, seed=4) - w_KC)
        moved_KP = (simplex.coefficients(w_KC + step_KC) - simplex.coefficients(w_KC)) @ vertices_VP
        assert moved_KP.norm(dim=1).max() < 1e-4


def test_beyond_three_dimensions_it_is_the_cone_over_the_centroid() -> None:
    simplex = Simplex(4, 4)
    vertices_VP = torch.randn(len(simplex.weights_VC), 6, dtype=torch.float64)
    on_face_1C = torch.tensor([[0.5, 0.3, 0.2, 0.0, 0.0]], dtype=torch.float64)
    for s in (0.0, 0.3, 1.0):
        inside_1C = (1 - s) * on_face_1C + s / 5
        expected_1P = (1 - s) * simplex.coefficients(on_face_1C) @ vertices_VP + s * vertices_VP[-1]
        torch.testing.assert_close(simplex.coefficients(inside_1C) @ vertices_VP, expected_1P)
    # On the face it is the piecewise linear surface of its edges' middles: in the cell of corner 0, or between middles.
    names = {tuple(w): k for k, w in enumerate(simplex.weights_VC.tolist())}
    expected_V = torch.zeros(len(vertices_VP), dtype=torch.float64)
    for pair, weight in (((0, 1), 0.6), ((0, 2), 0.4)):
        expected_V[names[tuple(0.5 if k in pair else 0.0 for k in range(5))]] = weight
    torch.testing.assert_close(simplex.coefficients(on_face_1C)[0], expected_V)


def test_the_lattice_of_samples_has_the_vertices() -> None:
    for m in (1, 2):
        simplex = Simplex(m, 3)
        w_SC = simplex.grid(60)
        assert len(w_SC) <= 60
        torch.testing.assert_close(w_SC.sum(1), torch.ones(len(w_SC)).double())
        distances_VS = (simplex.weights_VC[:, None] - w_SC).abs().sum(2)
        assert distances_VS.min(1).values.max() < 1e-12


class Valley(AnalyticSurface):
    """In six dimensions, zero on the graph of x -> (u(x), v(x)) over the plane of the first two coordinates."""

    dim = 6

    def graph(self, x_K2: Tensor) -> Tensor:
        x_K, y_K = x_K2.unbind(1)
        inner_K = x_K * y_K * (1 - x_K - y_K)
        return torch.stack([x_K, y_K, 8 * inner_K, x_K * y_K, 0 * x_K, -x_K * (1 - x_K - y_K)], 1)

    def energy(self, theta_KP: Tensor) -> Tensor:
        return (theta_KP - self.graph(theta_KP[:, :2]))[:, 2:].square().sum(1)


CORNERS = torch.tensor([[1, 0, 0, 0, 0, 0], [0, 1, 0, 0, 0, 0], [0] * 6], dtype=torch.float64)


def test_points_reach_the_valley_across_the_simplex() -> None:
    simplex = Simplex(2, 4)
    found = find_connector(Valley(), CORNERS, simplex, adam, steps=400)
    expected_VP = Valley().graph(simplex.weights_VC @ CORNERS[:, :2])
    torch.testing.assert_close(found.vertices_VP, expected_VP, atol=1e-5, rtol=0)
    assert len(found.history[0]) == 2 + 12


@pytest.mark.parametrize("optimizer", [adam, partial(torch.optim.SGD, lr=0.01, momentum=0.9)])
def test_points_stay_across_the_simplex_to_rounding(optimizer: partial) -> None:
    surface, corners_CP = Wedges(40, 25, seed=1), torch.randn(4, 40)
    simplex = Simplex(3, 2)
    found = find_connector(surface, corners_CP, simplex, optimizer, steps=1000, block=500)
    moved_VP = found.vertices_VP.double() - simplex.weights_VC @ corners_CP.double()
    assert moved_VP[4:].norm(dim=1).min() > 0.1
    assert torch.equal(found.vertices_VP[:4], corners_CP)
    along_VM = moved_VP @ (corners_CP[1:] - corners_CP[0]).double().T
    assert along_VM.abs().max() < 2e-5


def test_one_dimension_is_a_tunnel() -> None:
    """The same points as those of the finder, which projects gradients instead of taking a chart."""
    surface, ends_2P = Wedges(20, 12, seed=4), torch.randn(2, 20, dtype=torch.float64)
    tunnel = Tunnel(pivots=3, steps=60, lr=0.02)
    path = find_path(surface, *ends_2P, tunnel).path
    sgd = partial(torch.optim.SGD, lr=0.02, momentum=0.9)
    found = find_connector(surface, ends_2P, Simplex(1, 4), sgd, steps=60)
    order = found.vertices_VP[2:] @ (ends_2P[1] - ends_2P[0])
    torch.testing.assert_close(found.vertices_VP[2:][order.argsort()], path.bends_BP[1:-1])


def test_the_weight_decay_is_of_the_points() -> None:
    sgd = partial(torch.optim.SGD, lr=0.1)
    corners_CP = torch.tensor([[0.0, 2.0, 0.0], [4.0, 2.0, 0.0]], dtype=torch.float64)

    class Flat(AnalyticSurface):
        dim = 3

        def energy(self, theta_KP: Tensor) -> Tensor:
            return 0 * theta_KP[:, 0]

    found = find_connector(Flat(), corners_CP, Simplex(1, 2), sgd, steps=1, weight_decay=0.5)
    torch.testing.assert_close(found.vertices_VP[2], torch.tensor([2.0, 2 - 0.1 * 0.5 * 2, 0.0]).double())


def test_minima_that_span_no_simplex_are_refused() -> None:
    corners_CP = torch.randn(4, 9)
    assert edges(corners_CP).shape == (3, 9)
    for dependent_P, number in ((corners_CP[1], 4), (0.3 * corners_CP[0] + 0.7 * corners_CP[2], 4)):
        with pytest.raises(LowlossError, match=f"span no simplex of 4 dimensions.*corner {number} lies"):
            edges(torch.cat([corners_CP, dependent_P[None]]))
    with pytest.raises(LowlossError, match="span no simplex of 3 dimensions among 2 parameters: corner 3"):
        edges(torch.randn(4, 2))
    with pytest.raises(LowlossError, match="too many points"):
        Simplex(3, 1000)


def test_the_count_of_cells_in_a_tetrahedron() -> None:
    simplex = Simplex(3, 2)
    cells = cells_around(simplex, simplex.draw(3000, seed=5)).unique(dim=0)
    assert len(cells) == 8
    # Cells of a triangulation meet in faces: their volumes add up to the whole.
    volumes = [float(torch.linalg.det(simplex.weights_VC[cell]).abs()) for cell in cells]
    assert sum(volumes) == pytest.approx(1)
    assert all(len(set(one) & set(other)) <= 3 for one, other in combinations(map(_members, cells), 2))


def _members(cell_V: Tensor) -> list[int]:
    return cell_V.nonzero().flatten().tolist()
