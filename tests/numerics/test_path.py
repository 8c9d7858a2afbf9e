"""Curves against the formulas of Garipov et al. 2018, appendix A.1, and against shapes of known length."""

from collections.abc import Callable
from itertools import pairwise
from math import comb, hypot

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from lowloss.finder import Bezier, Path, Polyline
from lowloss.points.path import path_from_tensors, random_segment

T = torch.linspace(0, 1, 37, dtype=torch.float64)
UNEVEN = torch.tensor([0, 0.15, 0.5, 0.55, 1], dtype=torch.float64)


def bends(count: int, dim: int = 3) -> Tensor:
    return torch.randn(count, dim, dtype=torch.float64)


def polyline_by_hand(t: float, w: Tensor) -> Tensor:
    n = len(w) - 2
    i = min(int(t * (n + 1)), n)
    return (n + 1) * ((t - i / (n + 1)) * w[i + 1] + ((i + 1) / (n + 1) - t) * w[i])


def bezier_by_hand(t: float, w: Tensor) -> Tensor:
    n = len(w) - 2
    return sum((comb(n + 1, i) * t**i * (1 - t) ** (n + 1 - i) * w[i] for i in range(n + 2)), torch.zeros_like(w[0]))


@pytest.mark.parametrize("count", [2, 3, 4, 7])
@pytest.mark.parametrize(("family", "by_hand"), [(Polyline, polyline_by_hand), (Bezier, bezier_by_hand)])
def test_points_are_the_papers_formula(
    family: type[Path], by_hand: Callable[[float, Tensor], Tensor], count: int
) -> None:
    w = bends(count)
    torch.testing.assert_close(family(w).points(T), torch.stack([by_hand(t, w) for t in T.tolist()]))


def test_polyline_with_uneven_knots_interpolates_between_them() -> None:
    w = bends(5)
    expected = np.stack([np.interp(T, UNEVEN, column) for column in w.T.numpy()], axis=1)
    np.testing.assert_allclose(Polyline(w, UNEVEN).points(T), expected, atol=1e-12)
    assert torch.equal(Polyline(w, UNEVEN).points(UNEVEN), w)


@pytest.fixture(params=["polyline", "uneven polyline", "bezier"])
def path(request: pytest.FixtureRequest) -> Path:
    w = torch.randn(5, 1000)
    return {"polyline": Polyline(w), "uneven polyline": Polyline(w, UNEVEN), "bezier": Bezier(w)}[request.param]


def test_coefficients_sum_to_one(path: Path) -> None:
    torch.testing.assert_close(path.coefficients(T).sum(1), torch.ones_like(T))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_ends_are_exact(path: Path, dtype: torch.dtype) -> None:
    w = torch.randn(5, 1000).to(dtype)
    w[1:-1] *= 1e6
    ends = path.with_bends(w).points(torch.tensor([0.0, 1.0]))
    assert ends.dtype == dtype
    assert torch.equal(ends, w[[0, -1]])


def test_saved_and_read_back(path: Path) -> None:
    again = path_from_tensors(path.kind, path.tensors())
    assert type(again) is type(path)
    assert torch.equal(again.points(T), path.points(T))


def test_unknown_kind_of_path() -> None:
    with pytest.raises(ValueError, match="spline"):
        path_from_tensors("spline", {"bends": bends(2)})


def test_other_bends_keep_the_knots() -> None:
    w = bends(5)
    assert torch.equal(Polyline(bends(5), UNEVEN).with_bends(w).points(UNEVEN), w)


@pytest.mark.parametrize(
    "knots", [(0, 0.5), (0, 0.6, 0.5, 1), (0, 0.5, 0.5, 1), (0.1, 0.2, 0.5, 1), (0, 0.1, 0.2, 0.9)]
)
def test_knots_must_rise_from_0_to_1(knots: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="knots"):
        Polyline(bends(4), torch.tensor(knots))


@pytest.mark.parametrize("points", [2, 5, 6, 100, 121])
@pytest.mark.parametrize("between", [0, 1, 9])
def test_grid_has_ends_knots_and_enough_between(path: Path, points: int, between: int) -> None:
    t_T = path.grid(points, between)
    knots = path.knots_B if isinstance(path, Polyline) else torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert (t_T[0], t_T[-1]) == (0, 1)
    assert (t_T.diff() > 0).all()
    assert len(t_T) >= points
    positions = [int((t_T == knot).nonzero()) for knot in knots]
    assert all(following - knot - 1 >= between for knot, following in pairwise(positions))


RIGHT_ANGLE = torch.tensor([[1.0, 1.0], [4.0, 1.0], [4.0, 5.0]], dtype=torch.float64)


@pytest.mark.parametrize("knots", [None, torch.tensor([0, 0.9, 1])])
def test_length_of_a_right_angle(knots: Tensor | None) -> None:
    path = Polyline(RIGHT_ANGLE, knots)
    torch.testing.assert_close(path.lengths(path.grid(2, 0)), torch.tensor([3, 4], dtype=torch.float64))
    assert path.length_ratio() == pytest.approx(7 / 5, rel=1e-9)


def test_length_of_a_parabola() -> None:
    (x0, y0), (x1, y1), (x2, y2) = RIGHT_ANGLE.tolist()

    def speed(t: float) -> float:
        return 2 * hypot((1 - t) * (x1 - x0) + t * (x2 - x1), (1 - t) * (y1 - y0) + t * (y2 - y1))

    length, _ = quad(speed, 0, 1)
    # A thousand chords fall short by about 1e-7.
    assert Bezier(RIGHT_ANGLE).length_ratio() == pytest.approx(length / 5, rel=1e-6)


def test_straight_curves_have_ratio_one() -> None:
    straight = torch.tensor([[0.0], [0.2], [0.7], [1.0]]) * torch.randn(4)
    assert Polyline(straight).length_ratio() == pytest.approx(1, abs=1e-6)
    assert Bezier(straight).length_ratio() == pytest.approx(1, abs=1e-6)


def test_lengths_are_those_of_the_chords_far_from_the_origin(path: Path) -> None:
    small_BP = 1e-4 * path.bends_BP.double()
    chords = (path.coefficients(T) @ small_BP).diff(dim=0).norm(dim=1)
    torch.testing.assert_close(path.with_bends(small_BP + 100).lengths(T), chords, rtol=1e-6, atol=0)


def test_a_random_segment_is_as_long_and_its_direction_has_no_preference() -> None:
    a, b = torch.randn(2, 4000, dtype=torch.float64)
    ends = random_segment(a, b, seed=5).bends_BP
    assert torch.equal(ends[0], a)
    step, length = ends[1] - a, float((b - a).norm())
    assert float(step.norm()) == pytest.approx(length)
    # Of normal coordinates the squares' mean is 1, and a cosine has the variance 1 / P.
    scaled = step / length * 4000**0.5
    assert float(scaled.mean()) == pytest.approx(0, abs=5 / 4000**0.5)
    assert float((scaled**4).mean()) == pytest.approx(3, abs=5 * (96 / 4000) ** 0.5)
    assert abs(float(step @ (b - a))) / length**2 < 5 / 4000**0.5
    assert torch.equal(random_segment(a, b, seed=5).bends_BP, ends)
    assert not torch.equal(random_segment(a, b, seed=6).bends_BP, ends)
