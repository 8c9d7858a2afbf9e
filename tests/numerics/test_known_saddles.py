"""Every finder of bands against saddles that are known: from the literature, and by Dijkstra on a fine grid."""

import heapq
from collections.abc import Callable
from itertools import permutations
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from lowloss import NEB, AutoNEB, GaussianMixture, MullerBrown, find_path
from lowloss.finder import Finder, Path
from lowloss.landscape import AnalyticSurface

PLAIN = {"momentum": 0.0, "weight_decay": 0.0}


def band(spring_constant: float | None, tangent: str) -> NEB:
    return NEB(pivots=12, steps=300, lr=1e-4, spring_constant=spring_constant, tangent=tangent, **PLAIN)


def autoneb(lr: float) -> AutoNEB:
    return AutoNEB(cycles=[{"steps": 120, "lr": lr, "repeat": 4}], pivots=3, threshold=0.02, **PLAIN)


FINDERS: dict[str, Callable[[], Finder]] = {
    "autoneb": lambda: autoneb(1e-4),
    "redistributed-higher": lambda: band(None, "higher"),
    "redistributed-improved": lambda: band(None, "improved"),
    "springs-higher": lambda: band(100.0, "higher"),
    "springs-improved": lambda: band(100.0, "improved"),
}

# The saddle towards the first minimum is the higher one, so every path from or to it passes there.
HIGHEST = {pair: -40.665 if 0 in pair else -72.249 for pair in permutations(range(3), 2)}


def minimax(energy_XY: Tensor, start: tuple[int, int], goal: tuple[int, int]) -> float:
    """The least maximum over the nodes of any path between two nodes of a grid, diagonals allowed (Dijkstra)."""
    energy = energy_XY.tolist()
    columns, rows = energy_XY.shape
    reached = {start}
    queue = [(energy[start[0]][start[1]], start)]
    while queue:
        highest, (i, j) = heapq.heappop(queue)
        if (i, j) == goal:
            return highest
        neighbours = ((i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1))
        for x, y in neighbours:
            if 0 <= x < columns and 0 <= y < rows and (x, y) not in reached:
                reached.add((x, y))
                heapq.heappush(queue, (max(highest, energy[x][y]), (x, y)))
    raise AssertionError("the grid is connected")


def deepest_minima(energy_XY: Tensor) -> list[tuple[int, int]]:
    """The two deepest nodes that are no higher than their eight neighbours."""
    lowest_XY = -torch.nn.functional.max_pool2d(-energy_XY[None], 3, stride=1, padding=1)[0]
    nodes = (energy_XY == lowest_XY).nonzero()
    order = energy_XY[nodes[:, 0], nodes[:, 1]].argsort()[:2]
    return [(x, y) for x, y in nodes[order].tolist()]


def sampling_error(surface: AnalyticSurface, saddle_P: Tensor, spacing: float) -> float:
    """How far a grid's minimax may be from the true one: half the curvature times half a diagonal squared."""
    hessian = torch.autograd.functional.hessian(lambda p: surface.energy(p[None])[0], saddle_P)
    return float(0.5 * torch.linalg.eigvalsh(hessian).abs().max() * spacing**2 / 2)


class Peak(NamedTuple):
    energy: float
    slope: float
    point_P: Tensor


def peak(surface: AnalyticSurface, path: Path) -> Peak:
    """The highest of 4001 points sampled along a path, and the norm of the gradient there."""
    theta_KP = path.points(torch.linspace(0, 1, 4001, dtype=torch.float64)).requires_grad_()
    energy_K = surface.energy(theta_KP)
    (gradient_KP,) = torch.autograd.grad(energy_K.sum(), theta_KP)
    k = int(energy_K.argmax())
    return Peak(float(energy_K[k].detach()), float(gradient_KP[k].norm()), theta_KP[k].detach())


@pytest.fixture(scope="module")
def muller_brown_minimax() -> dict[tuple[int, int], float]:
    x, y = torch.arange(-150, 121, dtype=torch.float64) / 100, torch.arange(-30, 211, dtype=torch.float64) / 100
    energy_XY = MullerBrown().energy(torch.cartesian_prod(x, y)).view(len(x), len(y))
    node = [(round(100 * minimum[0]) + 150, round(100 * minimum[1]) + 30) for minimum in MullerBrown.minima]
    return {(a, b): minimax(energy_XY, node[a], node[b]) for a, b in HIGHEST}


@pytest.mark.parametrize("pair", HIGHEST)
def test_dijkstra_agrees_with_the_published_saddles(
    pair: tuple[int, int], muller_brown_minimax: dict[tuple[int, int], float]
) -> None:
    saddle = MullerBrown.saddles[0 if 0 in pair else 1]
    tolerance = sampling_error(MullerBrown(), torch.tensor(saddle[:2], dtype=torch.float64), 0.01)
    assert tolerance < 0.05
    assert muller_brown_minimax[pair] == pytest.approx(HIGHEST[pair], abs=tolerance)


@pytest.mark.parametrize("pair", HIGHEST)
@pytest.mark.parametrize("finder", FINDERS)
def test_muller_brown(finder: str, pair: tuple[int, int], muller_brown_minimax: dict[tuple[int, int], float]) -> None:
    surface = MullerBrown()
    a_P, b_P = (torch.tensor(surface.minima[k][:2], dtype=torch.float64) for k in pair)
    found = find_path(surface, a_P, b_P, FINDERS[finder](), block=1000)
    assert torch.equal(found.path.points(torch.tensor([0.0, 1.0])), torch.stack([a_P, b_P]))
    top = peak(surface, found.path)
    assert top.energy == pytest.approx(HIGHEST[pair], abs=0.5)
    # No path lies below the true minimax.
    assert top.energy >= HIGHEST[pair] - 1e-3
    assert top.energy >= muller_brown_minimax[pair] - sampling_error(surface, top.point_P, 0.01)
    if finder == "autoneb":
        assert found.status == "converged"


MIXTURES = range(8)


@pytest.fixture(scope="module")
def mixtures() -> list[tuple[Peak, float, float]]:
    """AutoNEB between the two deepest local minima of random surfaces: its peak, the grid's minimax and its error."""
    spacing, side = 0.01, 261
    axis = torch.arange(side, dtype=torch.float64) * spacing - 1.3
    results = []
    for seed in MIXTURES:
        surface = GaussianMixture(seed)
        energy_XY = surface.energy(torch.cartesian_prod(axis, axis)).view(side, side)
        a, b = deepest_minima(energy_XY)
        path = find_path(surface, axis[list(a)], axis[list(b)], autoneb(5e-3), block=1000).path
        top, reference = peak(surface, path), minimax(energy_XY, a, b)
        results.append((top, reference, sampling_error(surface, top.point_P, spacing)))
    return results


@pytest.mark.parametrize("seed", MIXTURES)
def test_no_path_lies_below_the_minimax(seed: int, mixtures: list[tuple[Peak, float, float]]) -> None:
    top, reference, tolerance = mixtures[seed]
    assert tolerance < 0.01
    assert top.energy >= reference - tolerance


def test_autoneb_finds_most_minimax_paths_of_random_surfaces(mixtures: list[tuple[Peak, float, float]]) -> None:
    """Barriers are of the order of one; a band may also settle on a local minimum energy path over another saddle."""
    excess = sorted(top.energy - reference for top, reference, _ in mixtures)
    assert excess[len(excess) * 3 // 4] < 0.01
    # Even then its highest point is a saddle: slopes elsewhere on these surfaces reach 7 to 10.
    assert all(top.slope < 0.3 for top, _, _ in mixtures)
