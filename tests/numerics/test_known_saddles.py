"""Every finder of bands against saddles that are known: from the literature, and by Dijkstra on a fine grid."""

from collections.abc import Callable
from importlib.util import module_from_spec, spec_from_file_location
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch

from lowloss import NEB, AutoNEB, MullerBrown, find_path
from lowloss.finder import Finder

SCRIPT = Path(__file__).parents[2] / "scripts" / "saddle_excess.py"

_spec = spec_from_file_location("saddle_excess", SCRIPT)
assert _spec is not None
assert _spec.loader is not None
excess = module_from_spec(_spec)
_spec.loader.exec_module(excess)

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


@pytest.fixture(scope="module")
def muller_brown_minimax() -> dict[tuple[int, int], float]:
    x, y = torch.arange(-150, 121, dtype=torch.float64) / 100, torch.arange(-30, 211, dtype=torch.float64) / 100
    energy_XY = MullerBrown().energy(torch.cartesian_prod(x, y)).view(len(x), len(y))
    node = [(round(100 * minimum[0]) + 150, round(100 * minimum[1]) + 30) for minimum in MullerBrown.minima]
    return {(a, b): excess.minimax(energy_XY, node[a], node[b]) for a, b in HIGHEST}


@pytest.mark.parametrize("pair", HIGHEST)
def test_dijkstra_agrees_with_the_published_saddles(
    pair: tuple[int, int], muller_brown_minimax: dict[tuple[int, int], float]
) -> None:
    saddle = MullerBrown.saddles[0 if 0 in pair else 1]
    tolerance = excess.sampling_error(MullerBrown(), torch.tensor(saddle[:2], dtype=torch.float64), 0.01)
    assert tolerance < 0.05
    assert muller_brown_minimax[pair] == pytest.approx(HIGHEST[pair], abs=tolerance)


@pytest.mark.parametrize("pair", HIGHEST)
@pytest.mark.parametrize("finder", FINDERS)
def test_muller_brown(finder: str, pair: tuple[int, int], muller_brown_minimax: dict[tuple[int, int], float]) -> None:
    surface = MullerBrown()
    a_P, b_P = (torch.tensor(surface.minima[k][:2], dtype=torch.float64) for k in pair)
    found = find_path(surface, a_P, b_P, FINDERS[finder](), block=1000)
    assert torch.equal(found.path.points(torch.tensor([0.0, 1.0])), torch.stack([a_P, b_P]))
    top = excess.peak(surface, found.path)
    assert top.energy == pytest.approx(HIGHEST[pair], abs=0.5)
    # No path lies below the true minimax.
    assert top.energy >= HIGHEST[pair] - 1e-3
    assert top.energy >= muller_brown_minimax[pair] - excess.sampling_error(surface, top.point_P, 0.01)
    if finder == "autoneb":
        assert found.status == "converged"


@pytest.mark.parametrize("landscapes", ["0", "-3", "1.5", "many", ""])
def test_the_script_refuses_no_number_of_landscapes(landscapes: str) -> None:
    with pytest.raises(SystemExit) as refused:
        excess.main(landscapes)
    told = f"saddle_excess: LANDSCAPES must be a whole number of at least 1, got {landscapes!r}"
    assert refused.value.code == told


@pytest.mark.parametrize(
    ("arguments", "file"), [((), "outputs/saddle_excess.csv"), (("else/where.csv",), "else/where.csv")]
)
def test_the_script_writes_below_outputs_or_where_it_is_told(
    arguments: tuple[str, ...], file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    excess.main("1", *arguments)
    assert [path for path in tmp_path.rglob("*") if path.is_file()] == [tmp_path / file]


MIXTURES = range(8)


@pytest.fixture(scope="module")
def mixtures() -> list[Any]:
    """AutoNEB between the two deepest local minima of random surfaces, against the grid."""
    return list(excess.compare(MIXTURES))


@pytest.mark.parametrize("seed", MIXTURES)
def test_no_path_lies_below_the_minimax(seed: int, mixtures: list[Any]) -> None:
    assert mixtures[seed].error < 0.01
    assert mixtures[seed].excess >= -mixtures[seed].error


def test_autoneb_finds_most_minimax_paths_of_random_surfaces(mixtures: list[Any]) -> None:
    """Barriers are of the order of one; a band may also settle on a local minimum energy path over another saddle."""
    assert sorted(c.excess for c in mixtures)[len(mixtures) * 3 // 4] < 0.01
    # Even then its highest point is a saddle: slopes elsewhere on these surfaces reach 7 to 10.
    assert all(c.peak.slope < 0.3 for c in mixtures)


def test_cost_of_fixed_problems(mixtures: list[Any]) -> None:
    # 120 steps with 3 pivots, then with those that the cycles inserted: 21,600; another processor may round otherwise.
    costs = [c.gradient_evaluations for c in mixtures]
    assert all(cost >= 4 * 120 * 3 and cost % 120 == 0 for cost in costs)
    assert sum(costs) <= 22_000
