"""The saddle that is reported: narrowed down on the path, climbed to by a band, and judged."""

from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from lowloss import NEB, AnalyticSurface, AutoNEB, GaussianMixture, Line, LowlossError, MullerBrown, find_path
from lowloss.finder import Polyline
from lowloss.finder.base import Phase
from lowloss.finder.neb import redistribute
from lowloss.landscape.analytic import LEPS
from lowloss.points.path import Path, around_top
from lowloss.training.along import along, levels

PLAIN = {"momentum": 0.0, "weight_decay": 0.0}


def ends(surface: AnalyticSurface) -> list[Tensor]:
    return [torch.tensor(minimum[: surface.dim], dtype=torch.float64) for minimum in surface.minima[:2]]  # type: ignore[attr-defined]


def highest(surface: AnalyticSurface, path: Path) -> float:
    return float(surface.energy(path.points(torch.linspace(0, 1, 100_001, dtype=torch.float64))).max())


def reported(surface: AnalyticSurface, path: Path, points: int = 61) -> dict[str, float]:
    return levels(along(surface, path, points, between=9), ["train"], ["loss"])


@dataclass
class Ridge(AnalyticSurface):
    """A ridge of height one at x = 0.4037, as wide as told; and one as high as told at 0.8."""

    width: float = 0.05
    other: float = 0.0
    dim = 1

    def energy(self, theta_KP: Tensor) -> Tensor:
        x_K = theta_KP[:, 0]
        own_K = torch.exp(-(((x_K - 0.4037) / self.width) ** 2))
        return own_K + self.other * torch.exp(-(((x_K - 0.8) / self.width) ** 2))


def test_a_ridge_between_two_samples_is_found_to_the_bracket() -> None:
    line = Polyline(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    sampled = float(Ridge().energy(line.points(line.grid(11, 9))).max())
    found = reported(Ridge(), line, points=11)
    assert sampled < 0.996
    assert found["saddle_bracket"] <= 1e-3
    assert abs(found["saddle_arc"] - 0.4037) <= 1e-3
    # Off by less than the bracket, where the curvature is 2 / width².
    assert 0 <= 1 - found["saddle_train_loss"] <= (1e-3 / 0.05) ** 2


def test_of_two_ridges_the_higher_is_found_though_the_samples_say_the_other() -> None:
    surface, line = Ridge(0.03, other=0.99), Polyline(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    coarse_T = surface.energy(line.points(line.grid(11, 9)))
    assert float(line.grid(11, 9)[coarse_T.argmax()]) == pytest.approx(0.8)
    assert reported(surface, line, points=11)["saddle_arc"] == pytest.approx(0.4037, abs=1e-3)


def test_few_points_are_added_and_none_where_nothing_rises() -> None:
    line = Polyline(torch.tensor([[0.0], [1.0]], dtype=torch.float64))
    table = along(Ridge(), line, 201, between=9)
    assert (table["t"].diff() > 0).all()
    assert len(table["t"]) == 201 + 2 * 6  # an interval of 2 / 200 cut into four twice, on both sides
    t_T = torch.linspace(0, 1, 11, dtype=torch.float64)
    assert len(around_top(t_T, t_T, torch.zeros(11), 1e-3)) == 0
    assert len(around_top(t_T, t_T, torch.full((11,), torch.nan), 1e-3)) == 0


@pytest.mark.parametrize("seed", range(4))
def test_random_landscapes_saddles_are_those_of_their_paths(seed: int) -> None:
    surface = GaussianMixture(seed)
    a_P, b_P = torch.tensor([-0.9, -0.7], dtype=torch.float64), torch.tensor([0.8, 0.9], dtype=torch.float64)
    finder = AutoNEB([{"steps": 30, "lr": 5e-3, "repeat": 2}], threshold=0.02, **PLAIN)
    for path in (find_path(surface, a_P, b_P, finder, block=1000).path, find_path(surface, a_P, b_P, Line()).path):
        assert reported(surface, path)["saddle_train_loss"] == pytest.approx(highest(surface, path), abs=2e-4)


def test_leps() -> None:
    # The saddle of LEPS with a harmonic oscillator, from the literature; no path lies below it.
    surface, known = LEPS(), -0.875225
    finder = NEB(pivots=9, steps=300, lr=4e-3, tangent="improved", climb=True, **PLAIN)
    found = find_path(surface, *ends(surface), finder, block=1000)
    assert known - 1e-5 <= reported(surface, found.path)["saddle_train_loss"] <= known + 5e-4


def climbing(name: str) -> NEB:
    if name == "neb":
        return NEB(pivots=8, steps=300, lr=2e-4, climb=True, **PLAIN)
    if name == "springs":
        return NEB(pivots=8, steps=400, lr=2e-4, climb=True, spring_constant=100.0, **PLAIN)
    cycles = [{"steps": 60, "lr": 2e-4, "repeat": 3}, {"steps": 100, "lr": 2e-4, "climb": True}]
    return AutoNEB(cycles, threshold=0.02, **PLAIN)


@pytest.mark.parametrize("name", ["neb", "springs", "autoneb"])
def test_the_climbing_pivot_is_muller_browns_saddle(name: str) -> None:
    surface = MullerBrown()
    found = find_path(surface, *ends(surface), climbing(name), block=1000)
    assert isinstance(found.path, Polyline)
    top_P = found.path.bends_BP[found.path.climber]
    x, y, energy = surface.saddles[0]
    torch.testing.assert_close(top_P, torch.tensor([x, y], dtype=torch.float64), rtol=0, atol=1e-3)
    assert reported(surface, found.path)["saddle_train_loss"] == pytest.approx(energy, abs=1e-3)
    assert found.quality["force_at_top"] < 0.1


def test_a_band_whose_ends_are_highest_has_nothing_to_climb() -> None:
    class Bowl(AnalyticSurface):
        dim = 2

        def energy(self, theta_KP: Tensor) -> Tensor:
            return theta_KP.square().sum(1)

    a_P, b_P = torch.tensor([-1.0, 0.1], dtype=torch.float64), torch.tensor([1.0, 0.1], dtype=torch.float64)
    path = find_path(Bowl(), a_P, b_P, NEB(pivots=3, steps=8, lr=0.01, climb=True, **PLAIN)).path
    assert isinstance(path, Polyline)
    assert path.climber is None


def test_quality_by_hand() -> None:
    # Energy x² + 10 y²; the band along x at y = 0.1 feels 2 across it everywhere, and 0 once it lies on the axis.
    class Valley(AnalyticSurface):
        dim = 2

        def energy(self, theta_KP: Tensor) -> Tensor:
            return theta_KP[:, 0].square() + 10 * theta_KP[:, 1].square()

    a_P, b_P = torch.tensor([-1.0, 0.1], dtype=torch.float64), torch.tensor([1.0, 0.1], dtype=torch.float64)
    finder = NEB(pivots=3, steps=1, lr=1e-12, **PLAIN)
    found = find_path(Valley(), a_P, b_P, finder)
    assert found.quality["force"] == pytest.approx(2, rel=1e-6)
    assert found.quality["force_at_top"] == pytest.approx(2, rel=1e-6)
    assert found.quality["spacing_spread"] == pytest.approx(0, abs=1e-6)
    # x² is convex: nothing rises above the pivots' interpolation.
    assert found.quality["residuum"] == 0
    uneven = NEB(pivots=1, steps=1, lr=1e-12, spring_constant=1.0, spacing=[1, 3], **PLAIN)
    bent = Polyline(
        torch.tensor([[-1.0, 0.1], [0.0, 0.1], [1.0, 0.1]], dtype=torch.float64), torch.tensor([0, 0.25, 1.0])
    )
    losses_N = torch.tensor([1.1, 0.1, 1.1])
    # Of its one pivot; then of the highest sample and of the pivot that it began with.
    gradient = lambda path: (torch.tensor([[0.0, 2.0], [3.0, 4.0]])[: len(path.bends_BP) - 2], losses_N)  # noqa: E731
    # Lengths 1 and 1 over targets 1/4 and 3/4 are 4 and 4/3: mean 8/3, standard deviation 4/3.
    quality = uneven.quality(bent, lambda path, t_T: torch.ones(len(t_T)), gradient)
    assert quality["spacing_spread"] == pytest.approx(0.5)
    assert (quality["force"], quality["force_at_top"], quality["force_left"]) == (2, 2, pytest.approx(2 / 5))


def test_a_band_is_unrelaxed_where_it_hardly_moved_or_cuts_a_slope_at_its_top() -> None:
    surface = MullerBrown()
    for cycles, told in (
        ([{"steps": 3, "lr": 1e-5}], "unrelaxed"),  # as good as straight
        ([{"steps": 300, "lr": 2e-4, "repeat": 4}], "unrelaxed"),  # −37.2, of −40.665
        ([{"steps": 300, "lr": 2e-4, "repeat": 4}, {"steps": 100, "lr": 2e-4, "climb": True}], "converged"),
    ):
        found = find_path(surface, *ends(surface), AutoNEB(cycles, **PLAIN), block=1000)
        assert (found.status, found.quality["residuum"] < 0.2) == (told, True)
    # Between the other minima even the straight line's top is right: its pivots are not.
    a_P, b_P = (torch.tensor(minimum[:2], dtype=torch.float64) for minimum in surface.minima[1:])
    still = find_path(surface, a_P, b_P, AutoNEB([{"steps": 3, "lr": 1e-5}], **PLAIN))
    assert still.status == "unrelaxed"
    assert still.quality["force_at_top"] < 0.1 * still.quality["force"]


def test_redistribution_keeps_a_fixed_pivot_and_spaces_each_side() -> None:
    pivots_NP = torch.tensor([[0.0], [0.1], [0.2], [0.6], [0.9], [1.0]], dtype=torch.float64)
    moved_NP = redistribute(pivots_NP, torch.linspace(0, 1, 6, dtype=torch.float64), fixed=3)
    torch.testing.assert_close(moved_NP[:, 0].tolist(), [0.0, 0.2, 0.4, 0.6, 0.8, 1.0])


def test_a_climbing_band_is_read_back() -> None:
    from lowloss.points.path import path_from_tensors

    band = Polyline(torch.eye(3), climber=1)
    read = path_from_tensors("polyline", band.tensors())
    assert isinstance(read, Polyline)
    assert read.climber == 1


def test_levels_by_hand() -> None:
    table = {"arc": torch.tensor([0, 0.25, 0.5, 1.0], dtype=torch.float64)}
    table |= {"train_loss": torch.tensor([1.0, 4.0, 3.0, 2.0]), "train_error": torch.tensor([0.1, 0.2, 0.3, 0.1])}
    table |= {"test_loss": torch.tensor([2.0, 5.0, 6.0, 1.0]), "test_error": torch.tensor([0.2, 0.3, 0.1, 0.4])}
    found = levels(table, ["train", "test"], ["loss", "error"])
    assert found == pytest.approx({
        "saddle_arc": 0.25, "saddle_bracket": 0.5,
        "min_train_loss": 1.5, "saddle_train_loss": 4, "train_loss_at_saddle": 4,
        "barrier_train_loss": 4 - 1.25, "barrier_above_ends_train_loss": 2,
        "min_train_error": 0.1, "saddle_train_error": 0.3, "train_error_at_saddle": 0.2,
        "min_test_loss": 1.5, "saddle_test_loss": 6, "test_loss_at_saddle": 5,
        "barrier_test_loss": 4.5, "barrier_above_ends_test_loss": 4,
        "min_test_error": 0.3, "saddle_test_error": 0.4, "test_error_at_saddle": 0.3,
    })  # fmt: skip


def test_climbing_from_the_first_step_is_refused() -> None:
    with pytest.raises(LowlossError, match="let only later ones climb"):
        AutoNEB([Phase(10, 0.1, climb=True)])
    with pytest.raises(LowlossError, match="at least 4 steps"):
        NEB(steps=3, climb=True)
