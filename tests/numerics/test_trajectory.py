"""Principal components of trajectories, and the planes of the two leading ones."""

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import nn

from lowloss.landscape import Layout
from lowloss.points import RandomLine, TrajectoryPlane
from lowloss.points.directions import principal_components

LAYOUT = Layout.of(nn.Linear(4, 1))


def rows(epochs: int = 7, parameters: int = 40) -> torch.Tensor:
    generator = torch.Generator().manual_seed(3)
    return torch.randn(epochs, parameters, generator=generator, dtype=torch.float64).cumsum(0)


def test_centred_components_are_scikit_learns() -> None:
    directions_DP, share_E = principal_components(rows(), 3, centred=True)
    pca = PCA().fit(rows().numpy())
    np.testing.assert_allclose(share_E[:6], pca.explained_variance_ratio_[:6], atol=1e-12)
    np.testing.assert_allclose(np.abs(directions_DP.numpy() @ pca.components_[:3].T), np.eye(3), atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_components_of_the_rows_as_they_are_are_those_of_an_svd(dtype: torch.dtype) -> None:
    row_EP = (rows(5, 70_000) - rows(5, 70_000)[-1]).to(dtype)  # more columns than are taken at once
    directions_DP, share_E = principal_components(row_EP, 2)
    _, value, right = np.linalg.svd(row_EP.double().numpy(), full_matrices=False)
    assert directions_DP.dtype == dtype
    np.testing.assert_allclose(share_E, value**2 / (value**2).sum(), atol=1e-12)
    np.testing.assert_allclose(np.abs(directions_DP.double().numpy() @ right[:2].T), np.eye(2), atol=1e-5)


def test_a_trajectory_that_lies_in_a_plane_is_on_its_grid() -> None:
    # The rows are 4 e0, -3 e1 and 0: the components are these axes, with shares 16/25 and 9/25.
    final_P = torch.arange(5.0)
    first_P, second_P = final_P.clone(), final_P.clone()
    first_P[0] += 4
    second_P[1] -= 3
    points_EP = torch.stack([first_P, second_P, final_P, final_P])
    _, share_E = principal_components(points_EP - final_P, 2)
    assert share_E.tolist() == pytest.approx([16 / 25, 9 / 25, 0, 0])
    grid = TrajectoryPlane(resolution=[3, 2], margin=0.5).grid(points_EP, None, LAYOUT, 0)
    assert torch.equal(grid.origin_P, final_P)
    expected = torch.tensor([[4.0, 0.0], [0.0, 3.0], [0.0, 0.0]], dtype=torch.float64)
    torch.testing.assert_close(grid.project(points_EP[:3]).abs(), expected)
    assert grid.axes[0].tolist() == pytest.approx([-2, 2, 6])  # 0 … 4 and half of it beyond
    assert sorted(map(abs, grid.axes[1].tolist())) == pytest.approx([1.5, 4.5])


def test_random_directions_are_orthonormal_and_follow_the_seed() -> None:
    points_EP = rows(4, 5)
    plane = TrajectoryPlane(directions="random", resolution=[2, 2])
    first, again, other = (plane.grid(points_EP, None, LAYOUT, seed).directions_DP for seed in (1, 1, 2))
    torch.testing.assert_close(first @ first.T, torch.eye(2, dtype=torch.float64))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


@pytest.mark.parametrize("still", [1, 2])
def test_a_trajectory_without_a_plane_is_refused(still: int) -> None:
    points_EP = torch.zeros(4, 5)
    points_EP[0, :still] = 1.0  # one direction
    with pytest.raises(ValueError, match=r"spans no 2 directions: collect more epochs of it \(minima.collect\)"):
        TrajectoryPlane().grid(points_EP, None, LAYOUT, 0)


def test_random_lines_are_single_directions_in_turn() -> None:
    theta_P = rows(1, 5)[0]
    grid = RandomLine(directions=2, resolution=3, extent=0.5, normalization="none").grid(theta_P[None], None, LAYOUT, 0)
    assert grid.shape == (2, 3)
    expected = [theta_P + s * direction_P for direction_P in grid.directions_DP for s in (-0.5, 0.0, 0.5)]
    torch.testing.assert_close(grid.points(torch.arange(6)), torch.stack(expected))
    with pytest.raises(ValueError, match="normalization=filter gives directions of zero norm"):
        RandomLine().grid(torch.zeros(1, 5), None, LAYOUT, 0)
