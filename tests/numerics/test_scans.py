"""Directions, planes and tables of the loss."""

from math import prod
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lowloss import Data, Exact, Grid, LowlossError, MullerBrown, NetworkLandscape, tabulate
from lowloss.finder import Polyline
from lowloss.landscape import AnalyticSurface, Landscape, Layout
from lowloss.points import MinimaPlane, PathPlane, RandomPlane, line, plane, random_direction


def network(dtype: torch.dtype = torch.float32) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 5), nn.Linear(5, 3)
    ).to(dtype)


WEIGHTS, OTHERS = (0, 4, 5), ("0.bias", "1.weight", "1.bias", "4.bias", "5.bias")


@pytest.fixture(params=[torch.float32, torch.float64])
def module(request: pytest.FixtureRequest) -> nn.Module:
    return network(request.param)


def point(module: nn.Module) -> tuple[Tensor, Layout]:
    layout = Layout.of(module)
    return layout.flatten(dict(module.named_parameters())), layout


def test_filter_normalisation_gives_each_filter_the_points_norm(module: nn.Module) -> None:
    theta_P, layout = point(module)
    direction_P = random_direction(theta_P, layout, seed=3)
    assert direction_P.dtype == theta_P.dtype
    views = layout.views(direction_P)
    for part in WEIGHTS:
        for filter_, own in zip(views[f"{part}.weight"], module[part].weight, strict=True):
            torch.testing.assert_close(filter_.norm(), own.norm().detach())
    assert not any(views[name].any() for name in OTHERS)


def test_layer_normalisation_gives_each_tensor_the_points_norm(module: nn.Module) -> None:
    theta_P, layout = point(module)
    views = layout.views(random_direction(theta_P, layout, seed=3, normalization="layer"))
    for part in WEIGHTS:
        drawn, own = views[f"{part}.weight"], module[part].weight.detach()
        torch.testing.assert_close(drawn.norm(), own.norm())
        ratios = drawn.flatten(1).norm(dim=1) / own.flatten(1).norm(dim=1)
        assert ratios.max() > 1.01 * ratios.min()
    assert not any(views[name].any() for name in OTHERS)


def test_a_direction_without_normalisation_is_gaussian_everywhere() -> None:
    layout = Layout.of(nn.Linear(100, 100))
    direction_P = random_direction(torch.zeros(layout.dim), layout, seed=3, normalization="none")
    assert direction_P.mean().item() == pytest.approx(0, abs=0.05)
    assert direction_P.std().item() == pytest.approx(1, abs=0.05)
    assert layout.views(direction_P)["bias"].all()


def test_normalised_directions_keep_the_gaussian_within_a_filter(module: nn.Module) -> None:
    theta_P, layout = point(module)
    plain = layout.filters(random_direction(theta_P, layout, 3, "none"))
    for name, filters_FW in layout.filters(random_direction(theta_P, layout, 3)).items():
        assert (torch.cosine_similarity(filters_FW, plain[name]) > 0.9999).all()


def test_directions_follow_the_seed_and_survive_empty_filters(module: nn.Module) -> None:
    with torch.no_grad():
        module[4].weight[2] = 0
    theta_P, layout = point(module)
    direction_P = random_direction(theta_P, layout, seed=3)
    assert torch.equal(random_direction(theta_P, layout, seed=3), direction_P)
    assert not torch.equal(random_direction(theta_P, layout, seed=4), direction_P)
    assert direction_P.isfinite().all()
    assert not layout.views(direction_P)["4.weight"][2].any()
    with pytest.raises(LowlossError, match="filter, layer, none"):
        random_direction(theta_P, layout, 3, "weight")


@pytest.mark.parametrize(("third", "x", "y"), [((1, 2), (-1, 5), (-0.5, 2.5)), ((-2, -2), (-3.5, 5.5), (-0.5, 2.5))])
def test_plane_by_hand(third: tuple[int, int], x: tuple[float, float], y: tuple[float, float]) -> None:
    origin_P = torch.tensor([10.0, 20.0, 30.0])
    corners_3P = origin_P + torch.tensor([[0.0, 0, 0], [0, 4, 0], [0, *third]])
    grid = plane(corners_3P, ("a", "b", "c"), (4, 7), margin=0.25)
    sign = 1 if third[1] > 0 else -1
    assert grid.directions_DP.tolist() == [[0, 1, 0], [0, 0, sign]]
    assert torch.equal(grid.origin_P, corners_3P[0])
    assert grid.anchors_AD.tolist() == [[0, 0], [4, 0], [third[0], abs(third[1])]]
    assert grid.anchor_names == ("a", "b", "c")
    assert grid.shape == (4, 7)
    torch.testing.assert_close(grid.axes[0], torch.linspace(*x, 4, dtype=torch.float64))
    torch.testing.assert_close(grid.axes[1], torch.linspace(*y, 7, dtype=torch.float64))


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-5), (torch.float64, 1e-12)])
@pytest.mark.parametrize("across", [1.0, 0.01])
def test_planes_are_orthonormal_and_go_through_their_corners(
    dtype: torch.dtype, tolerance: float, across: float
) -> None:
    a_P, b_P, away_P = torch.randn(3, 5000, dtype=dtype)
    corners_3P = torch.stack([a_P, b_P, 0.3 * a_P + 0.7 * b_P + across * away_P])
    grid = plane(corners_3P, ("a", "b", "c"), (3, 3), margin=0.1)
    gram = grid.directions_DP @ grid.directions_DP.T
    torch.testing.assert_close(gram, torch.eye(2, dtype=dtype), rtol=0, atol=tolerance)
    reproduced_3P = grid.origin_P + grid.anchors_AD.to(dtype) @ grid.directions_DP
    torch.testing.assert_close(reproduced_3P, corners_3P, rtol=0, atol=10 * tolerance)
    torch.testing.assert_close(grid.project(corners_3P), grid.anchors_AD, rtol=0, atol=200 * tolerance)


ALONG = torch.arange(1.0, 5.0)


@pytest.mark.parametrize(
    "corners", [(0, 1, 2), (0, 1, 0), (0, 1, 1), (0, 0, 1), (0, 0, 0)], ids=["line", "aba", "abb", "aab", "aaa"]
)
def test_three_points_on_a_line_span_no_plane(corners: tuple[int, int, int]) -> None:
    corners_3P = torch.tensor(corners)[:, None] * ALONG
    with pytest.raises(ValueError, match="no plane"):
        plane(corners_3P, ("a", "b", "c"), (3, 3), 0.1)


def test_the_plane_of_a_path_goes_through_the_mean_of_its_inner_pivots_and_covers_it() -> None:
    bends_BP = torch.tensor([[0.0, 0, 0], [0, 1, 0], [1, 3, 0], [2, 0, 0]])
    recipe = PathPlane(start=4, end=2, resolution=[5, 3], margin=0.0)
    assert (recipe.minima, recipe.path) == ((4, 2), "autoneb")
    grid = recipe.grid(bends_BP[[0, -1]], Polyline(bends_BP), Layout.of(nn.Linear(2, 1)), seed=0)
    assert grid.anchors_AD.tolist() == [[0, 0], [2, 0], [0.5, 2]]
    assert grid.anchor_names == ("minimum 4", "minimum 2", "mean of pivots")
    assert [axis.tolist() for axis in grid.axes] == [[0, 0.5, 1, 1.5, 2], [0, 1.5, 3]]


def test_a_straight_path_spans_no_plane() -> None:
    ends_2P = torch.stack([ALONG, -ALONG])
    with pytest.raises(ValueError, match="plane"):
        PathPlane().grid(ends_2P, Polyline(ends_2P), Layout.of(nn.Linear(3, 1)), seed=0)


def test_a_random_plane_is_centred_on_its_minimum(module: nn.Module) -> None:
    theta_P, layout = point(module)
    recipe = RandomPlane(minimum=3, extent=0.5, resolution=(5, 3))
    grid = recipe.grid(theta_P[None], None, layout, seed=1)
    assert (recipe.minima, recipe.path, grid.anchor_names) == ((3,), None, ("minimum 3",))
    assert [axis.tolist() for axis in grid.axes] == [[-0.5, -0.25, 0, 0.25, 0.5], [-0.5, 0, 0.5]]
    assert torch.equal(grid.points(torch.tensor([7])), theta_P[None])
    first, second = (layout.filters(direction_P) for direction_P in grid.directions_DP)
    for name, own_FW in layout.filters(theta_P).items():
        torch.testing.assert_close(first[name].norm(dim=1), own_FW.norm(dim=1))
        torch.testing.assert_close(second[name].norm(dim=1), own_FW.norm(dim=1))
        assert torch.cosine_similarity(first[name], second[name]).abs().max() < 0.999


def scan(landscape: Landscape, grid: Grid, **settings: Any) -> dict[str, Tensor]:
    """The exact metrics on a grid, in its shape."""
    table = tabulate(landscape, grid.points, prod(grid.shape), **settings)
    return {name: column.view(grid.shape) for name, column in table.items()}


def skewed() -> Grid:
    """Directions that are neither orthogonal nor of length one, axes of different lengths that start at 0."""
    return Grid(
        origin_P=torch.tensor([1.0, 1.0, 1.0], dtype=torch.float64),
        directions_DP=torch.tensor([[2.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64),
        axes=(torch.tensor([0.0, 0.5, 1.0], dtype=torch.float64), torch.linspace(0, 3, 7, dtype=torch.float64)),
        anchors_AD=torch.zeros(1, 2, dtype=torch.float64),
        anchor_names=("a",),
    )


def test_grid_points_by_hand() -> None:
    grid = skewed()
    assert grid.shape == (3, 7)
    # Index 7 i + j: (0, 0), (0, 1/2), (1/2, 0), (1, 3).
    assert grid.points(torch.tensor([0, 1, 7, 20])).tolist() == [[1, 1, 1], [1.5, 1.5, 1], [2, 1, 1], [6, 4, 1]]


def test_projection_onto_directions_that_are_not_orthonormal() -> None:
    grid = skewed()
    beside_P = torch.tensor([0.0, 0.0, 5.0])
    coordinates_KD = torch.tensor([[2.0, 3.0], [-1.0, 0.5]], dtype=torch.float64)
    theta_KP = grid.origin_P + coordinates_KD @ grid.directions_DP + beside_P
    torch.testing.assert_close(grid.project(theta_KP), coordinates_KD)


def test_a_line_reaches_beyond_its_ends() -> None:
    grid = line(ALONG, 3 * ALONG, resolution=5, margin=0.5)
    assert grid.axes[0].tolist() == [-0.5, 0, 0.5, 1, 1.5]
    assert torch.equal(grid.points(torch.arange(5)), torch.tensor([0.0, 1, 2, 3, 4])[:, None] * ALONG)
    assert grid.anchors_AD.tolist() == [[0], [1]]


def test_the_first_axis_of_a_table_is_the_first_direction() -> None:
    surface, grid = MullerBrown(), skewed()
    flat = Grid(grid.origin_P[:2] - 1, grid.directions_DP[:, :2] / 4, grid.axes, grid.anchors_AD, ("a",))
    table = scan(surface, flat)
    assert set(table) == {"train_loss"}
    assert table["train_loss"].shape == (3, 7)
    for i, u in enumerate((0, 0.5, 1)):
        for j, v in enumerate((0, 0.5, 1, 1.5, 2, 2.5, 3)):
            at = torch.tensor([[0.5 * u + 0.25 * v, 0.25 * v]], dtype=torch.float64)
            torch.testing.assert_close(table["train_loss"][i, j], surface.energy(at)[0])


def test_a_table_of_a_network_is_its_evaluation() -> None:
    x, y = torch.randn(30, 2, 4, 4), torch.arange(30) % 3
    landscape = NetworkLandscape(network, Data(x, y, x[:7], y[:7]))
    corners_3P = torch.stack([landscape.initial(seed) for seed in range(3)])
    grid = plane(corners_3P, ("a", "b", "c"), (4, 5), margin=0.2)
    table = scan(landscape, grid)
    assert set(table) == {"train_loss", "train_error", "test_loss", "test_error"}
    for split in ("train", "test"):
        result = landscape.evaluate(grid.points(torch.arange(20)), split)
        assert torch.equal(table[f"{split}_loss"], result["loss"].view(4, 5))
        assert torch.equal(table[f"{split}_error"], result["error"].view(4, 5))
    assert set(scan(landscape, grid, measures=[Exact(["test"])])) == {"test_loss", "test_error"}


class Logarithm(AnalyticSurface):
    dim = 1

    def energy(self, theta_KP: Tensor) -> Tensor:
        return theta_KP[:, 0].log()


def test_values_that_are_not_finite_or_negative_are_kept() -> None:
    axis = torch.tensor([-1, 0, 0.5, 1, torch.inf], dtype=torch.float64)
    grid = Grid(torch.zeros(1).double(), torch.ones(1, 1).double(), (axis,), torch.zeros(1, 1), ("a",))
    loss = scan(Logarithm(), grid)["train_loss"]
    torch.testing.assert_close(loss, axis.log(), equal_nan=True)
    assert loss.isnan().tolist() == [True, False, False, False, False]
    assert loss.isinf().tolist() == [False, True, False, False, True]


def test_points_are_made_a_chunk_at_a_time() -> None:
    asked = []

    def points(indices_T: Tensor) -> Tensor:
        asked.append(indices_T.tolist())
        return indices_T[:, None].double()

    table = tabulate(Logarithm(), points, count=7, chunk=3)
    assert asked == [[0, 1, 2], [3, 4, 5], [6]]
    torch.testing.assert_close(table["train_loss"], torch.arange(7).double().log())


def test_the_plane_of_three_minima_goes_through_all_of_them() -> None:
    corners_3P = torch.randn(3, 7, dtype=torch.float64)
    recipe = MinimaPlane(start=3, end=1, third=4, resolution=[4, 3], margin=0.0)
    assert recipe.minima == (3, 1, 4)
    grid = recipe.grid(corners_3P, None, Layout.of(nn.Linear(6, 1)), seed=0)
    assert grid.shape == (4, 3)
    assert grid.anchor_names == ("minimum 3", "minimum 1", "minimum 4")
    torch.testing.assert_close(grid.origin_P + grid.anchors_AD @ grid.directions_DP, corners_3P)
    torch.testing.assert_close(grid.directions_DP @ grid.directions_DP.T, torch.eye(2, dtype=torch.float64))
    moved = MinimaPlane(radius=0.5, epoch=2).grid(corners_3P, None, Layout.of(nn.Linear(6, 1)), seed=0)
    torch.testing.assert_close(moved.origin_P + moved.anchors_AD @ moved.directions_DP, 0.5 * corners_3P)
    assert moved.anchor_names[0] == "minimum 0, epoch 2 × 0.5"
