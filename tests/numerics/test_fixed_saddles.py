"""AutoNEB, as a study reports it, against the saddles of twenty random surfaces that were computed once by other means.

The numbers of SADDLES: each surface of Gaussian wells on a grid of 1401² nodes, 0.002 apart, over [-1.4, 1.4]²; the two
deepest nodes no higher than their neighbours; the least level at which a flood joins them (a bisection over all nodes'
energies, with connected components by scipy); and from the node of that level Newton's method to the saddle next to it,
from the two deepest likewise to the minima, with derivatives by hand. `flooded` is that computation in NumPy, which a
test repeats on a coarser grid; it has no part of this package but the wells' places, heights and widths.

Shapes: M wells, X × Y nodes.
"""

from dataclasses import dataclass

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scipy import ndimage

from lowloss import AutoNEB, GaussianMixture, find_path
from lowloss.training.along import along, levels

Array = NDArray[np.float64]

# seed: the two minima, the saddle between them, and its energy.
SADDLES = {
    100: ((0.257753, -0.325478), (0.209788, 0.921952), (0.047970, 0.340799), -0.175121119),
    101: ((-0.053745, 0.641624), (-0.411052, -0.376566), (-0.176383, -0.032047), -0.685847049),
    102: ((0.096614, 0.455706), (0.762533, 0.524483), (0.429329, 0.473169), -1.462607317),
    103: ((0.794994, -0.062544), (-0.427004, 0.396196), (0.295642, 0.293974), -0.599795782),
    104: ((-0.358150, 0.257346), (0.858852, 0.128585), (0.688002, -0.111317), -0.621951429),
    105: ((0.816299, 0.179561), (0.656411, -0.518636), (0.695344, -0.451102), -2.191093133),
    106: ((0.070157, -0.196936), (0.512865, -0.804157), (0.218187, -0.713366), -1.432232018),
    107: ((-0.468906, -0.877144), (0.734905, -0.341711), (0.168578, -0.349353), -0.288776470),
    108: ((0.310772, 0.235729), (0.361839, -0.354595), (0.270104, -0.182020), -1.506698508),
    109: ((-0.273791, -0.286095), (0.292641, 0.710705), (0.188623, 0.140687), -0.227304035),
    110: ((0.066976, 0.524175), (0.741111, 0.591457), (0.429360, 0.651581), -1.412875630),
    111: ((0.642387, -0.054151), (-0.896162, -0.023876), (0.283040, -0.064159), -1.000026667),
    112: ((-0.463272, -0.709557), (-0.616390, -0.238590), (-0.577014, -0.443413), -2.324570942),
    113: ((-0.431559, -0.721510), (0.675478, 0.772077), (0.739289, 0.165795), -0.529688462),
    114: ((0.628780, -0.064635), (0.335712, -0.813166), (0.496883, -0.466975), -0.961131950),
    115: ((-0.842633, 0.753301), (0.189457, -0.392538), (-0.503643, 0.001516), -1.110804166),
    116: ((-0.325322, -0.585773), (-0.682410, 0.654132), (-0.592168, -0.131261), -0.546734552),
    117: ((-0.718302, -0.282849), (-0.874070, 0.045471), (-0.805495, -0.103011), -1.996374224),
    118: ((0.531296, 0.053726), (0.190959, -0.667710), (0.327479, -0.431033), -1.766563290),
    119: ((-0.544355, 0.119506), (-0.003625, 0.357809), (-0.340585, 0.062757), -1.425705860),
}


class Wells:
    """Energy, and Newton's method for its stationary points."""

    def __init__(self, seed: int) -> None:
        surface = GaussianMixture(seed)
        self.centres_M2, self.height_M = surface.centres_M2.numpy(), surface.height_M.numpy()
        self.variance_M, self.bowl = surface.width_M.numpy() ** 2, surface.bowl

    def energy(self, x: Array, y: Array) -> Array:
        energy = 0.5 * self.bowl * (x**2 + y**2)
        for (centre_x, centre_y), height, variance in zip(self.centres_M2, self.height_M, self.variance_M, strict=True):
            energy = energy - height * np.exp(-((x - centre_x) ** 2 + (y - centre_y) ** 2) / (2 * variance))
        return energy

    def stationary(self, point_2: Array) -> tuple[Array, Array]:
        """The stationary point next to a point, and the two curvatures there."""
        for _ in range(20):
            from_M2 = point_2 - self.centres_M2
            pull_M = self.height_M * np.exp(-(from_M2**2).sum(1) / (2 * self.variance_M)) / self.variance_M
            gradient_2 = self.bowl * point_2 + pull_M @ from_M2
            hessian_22 = (self.bowl + pull_M.sum()) * np.eye(2)
            hessian_22 -= np.einsum("m,mi,mj->ij", pull_M / self.variance_M, from_M2, from_M2)
            point_2 = point_2 - np.linalg.solve(hessian_22, gradient_2)
        assert np.abs(gradient_2).max() < 1e-10
        return point_2, np.linalg.eigvalsh(hessian_22)


def flooded(seed: int, spacing: float) -> tuple[Array, Array, Array]:
    """The two deepest minima of a surface and the saddle between them."""
    wells, axis_X = Wells(seed), np.arange(round(2.8 / spacing) + 1) * spacing - 1.4
    energy_XY = wells.energy(axis_X[:, None], axis_X[None])
    nodes = np.argwhere(ndimage.minimum_filter(energy_XY, 3) == energy_XY)
    first, second = sorted(map(tuple, nodes), key=lambda node: energy_XY[node])[:2]
    levels_N = np.sort(energy_XY.ravel())
    low, high = int(np.searchsorted(levels_N, energy_XY[second])), len(levels_N) - 1
    while low < high:
        middle = (low + high) // 2
        parts_XY, _ = ndimage.label(energy_XY <= levels_N[middle], np.ones((3, 3)))
        if parts_XY[first] == parts_XY[second]:
            high = middle
        else:
            low = middle + 1
    top = np.argwhere(energy_XY == levels_N[low])[0]
    found = [wells.stationary(axis_X[list(node)]) for node in (first, second, top)]
    for (point_2, _), node in zip(found, (first, second, top), strict=True):
        assert np.abs(point_2 - axis_X[list(node)]).max() < 2 * spacing
    assert [(curvature_2 < 0).sum() for _, curvature_2 in found] == [0, 0, 1]
    return found[0][0], found[1][0], found[2][0]


@pytest.mark.parametrize("seed", SADDLES)
def test_the_numbers_follow_from_a_flood_of_a_coarser_grid(seed: int) -> None:
    *points, energy = SADDLES[seed]
    for found_2, point in zip(flooded(seed, spacing=0.01), points, strict=True):
        np.testing.assert_allclose(found_2, point, rtol=0, atol=1e-6)
    x, y = points[2]
    assert float(Wells(seed).energy(np.array(x), np.array(y))) == pytest.approx(energy, abs=1e-9)


@dataclass(frozen=True)
class Reported:
    """What a study reports of the path between the two minima, and its highest sampled point."""

    levels: dict[str, float]
    length: float
    top_2: Array


@pytest.fixture(scope="module")
def reported() -> dict[int, Reported]:
    """By seed; sampled by the defaults of conf/config.yaml."""
    found = {}
    for seed, (*ends, _, _) in SADDLES.items():
        surface, cycles = GaussianMixture(seed), [{"steps": 60, "lr": 1e-2, "repeat": 4}]
        finder = AutoNEB(cycles, pivots=3, threshold=0.02, momentum=0.0, weight_decay=0.0)
        a_P, b_P = (torch.tensor(end, dtype=torch.float64) for end in ends)
        path = find_path(surface, a_P, b_P, finder, block=1000).path
        table = along(surface, path)
        t_1 = table["t"][table["train_loss"].argmax()][None]
        length = float(path.lengths(path.grid(61, 9)).sum())
        found[seed] = Reported(levels(table, ["train"], ["loss"]), length, path.points(t_1)[0].numpy())
    return found


def excess(reported: dict[int, Reported]) -> dict[int, float]:
    return {seed: one.levels["saddle_train_loss"] - SADDLES[seed][3] for seed, one in reported.items()}


def test_no_path_is_reported_below_the_saddle(reported: dict[int, Reported]) -> None:
    """But for the samples: one lies within a bracket of the top, where the curvature along a path is below 100."""
    for seed, above in excess(reported).items():
        bracket = reported[seed].levels["saddle_bracket"] * reported[seed].length
        assert bracket < 2e-3
        assert above >= -0.5 * 100 * (bracket / 2) ** 2 >= -5e-5


def test_all_but_two_paths_are_reported_at_the_saddle(reported: dict[int, Reported]) -> None:
    """Within 5e-4, where barriers are 0.01 to 2.8; the other two lead over another saddle, which is higher."""
    apart = {seed: above for seed, above in excess(reported).items() if above > 5e-4}
    assert len(apart) <= 2
    for seed in apart:
        saddle_2, curvature_2 = Wells(seed).stationary(reported[seed].top_2)
        assert (curvature_2 < 0).sum() == 1
        assert np.abs(saddle_2 - reported[seed].top_2).max() < 0.05
        assert np.abs(saddle_2 - np.array(SADDLES[seed][2])).max() > 0.1


def test_barriers_are_those_of_the_numbers(reported: dict[int, Reported]) -> None:
    for seed, above in excess(reported).items():
        *ends, _, saddle = SADDLES[seed]
        higher = max(float(Wells(seed).energy(np.array(x), np.array(y))) for x, y in ends)
        told = reported[seed].levels["barrier_above_ends_train_loss"]
        assert told == pytest.approx(saddle - higher + above, abs=1e-12)
