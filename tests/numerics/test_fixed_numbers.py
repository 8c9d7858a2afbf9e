"""Objectives, directions and planes against numbers that follow with pencil and paper."""

import pytest
import torch
from torch import Tensor, nn

from lowloss import BezierCurve, Data, Exact, Grid, NetworkLandscape, PolygonalChain, tabulate
from lowloss.finder import ArcLengthChain, Bezier, Polyline
from lowloss.landscape import AnalyticSurface, Layout
from lowloss.measure.exact import interpolated
from lowloss.points import random_direction


class Gutter(AnalyticSurface):
    """x² + y."""

    dim = 2

    def energy(self, theta_KP: Tensor) -> Tensor:
        return theta_KP[:, 0].square() + theta_KP[:, 1]


# Curve, weight decay, objective, and its gradient at the bend (1, 3) between (0, 0) and (2, 0).
# Of the Bezier curve x = 2t and y = 6t(1 - t): the integrals of 4t² + y, and of 2t(1 - t) times (4t, 1); the decay adds
# 0.15 times that of x² + y² = 4/3 + 36/30, and 0.3 times those of 2t(1 - t) times (x, y).
# Of the chain y = 3 - 6|t - 1/2|: those of 4t² + y, and of 1 - 2|t - 1/2| times (4t, 1). Over its length, the lengths
# being equal, there is besides (11/6 - 23/6), the difference of the segments' means, times (0.05, 0), the derivative of
# the first one's share of the length.
CURVES = {
    "bezier": (BezierCurve, Bezier, 0.0, 7 / 3, (2 / 3, 1 / 3)),
    "bezier, decay": (BezierCurve, Bezier, 0.3, 7 / 3 + 0.38, (2 / 3 + 0.1, 1 / 3 + 0.12)),
    "chain": (PolygonalChain, Polyline, 0.0, 17 / 6, (1.0, 0.5)),
    "chain, length": (ArcLengthChain, Polyline, 0.0, 17 / 6, (0.9, 0.5)),
}


@pytest.mark.parametrize("name", CURVES)
def test_objective_and_gradient_at_the_bend(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """t is no longer drawn, but the midpoints of a fine grid, so that a mean over it is an integral."""
    monkeypatch.setattr(torch, "rand", lambda count, **_: (torch.arange(count, dtype=torch.float64) + 0.5) / count)
    finder, kind, decay, value, gradient = CURVES[name]
    bends_BP = torch.tensor([[0.0, 0], [1, 3], [2, 0]], dtype=torch.float64).requires_grad_()
    found, _ = finder(samples=2000, weight_decay=decay).objective(kind(bends_BP), Gutter(), None, seed=0)
    assert found.item() == pytest.approx(value, abs=2e-6)
    (gradient_BP,) = torch.autograd.grad(found, bends_BP)
    assert gradient_BP[1].tolist() == pytest.approx(gradient, abs=2e-6)


# Filters (3, 4) and (6, 8) of norms 5 and 10; drawn are (1, 2) and (3, 4), of norms √5 and 5, so that all of the weight
# is of norm √125 and all that is drawn of norm √30.
DIRECTIONS = {
    "filter": (2.2360680, 4.4721360, 6.0, 8.0, 0.0, 0.0),
    "layer": (2.0412415, 4.0824829, 6.1237244, 8.1649658, 0.0, 0.0),
    "none": (1.0, 2.0, 3.0, 4.0, 5.0, 6.0),
}


@pytest.mark.parametrize("module", [nn.Linear(2, 2), nn.Conv2d(1, 2, (1, 2)), nn.Conv2d(2, 2, 1)], ids=str)
@pytest.mark.parametrize("normalization", DIRECTIONS)
def test_normalised_directions(normalization: str, module: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "randn", lambda count, dtype, **_: torch.arange(1, count + 1, dtype=dtype))
    theta_P = torch.tensor([3.0, 4, 6, 8, 7, 7], dtype=torch.float64)
    direction_P = random_direction(theta_P, Layout.of(module), 0, normalization)
    assert direction_P.tolist() == pytest.approx(DIRECTIONS[normalization], abs=1e-7)


# log(1 + exp(-√2 k))
LOSSES = {1: 0.2176217, 2: 0.0574249, 4: 0.0034874}


@pytest.mark.parametrize(
    ("held", "losses"), [(True, [[1, 2], [2, 4]]), (False, [[1, 2], [1, 2]])], ids=["held", "recomputed"]
)
def test_a_plane_with_the_centre_s_statistics(held: bool, losses: list[list[int]]) -> None:
    """Two samples, -1 and 1, times a weight w, of variance 2w²; then normalised, and the logits are -v and v times it.

    Along the first axis w is 1 and 2, along the second v. With the variance at w = 1 the loss is log(1 + exp(-√2 v w)),
    with each point's own w has no part in it.
    """
    module = nn.Sequential(
        nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1, eps=1e-12), nn.Linear(1, 2, bias=False)
    ).double()
    x, y = torch.tensor([[-1.0], [1.0]]).double(), torch.tensor([0, 1])
    landscape = NetworkLandscape(module, Data(x, y, x, y))
    origin_P = torch.tensor([1.0, 1, 0, -1, 1]).double()
    directions_DP = torch.tensor([[1.0, 0, 0, 0, 0], [0, 0, 0, -1, 1]]).double()
    axis = torch.tensor([0.0, 1.0]).double()
    grid = Grid(origin_P, directions_DP, (axis, axis), torch.zeros(1, 2).double(), ("centre",))
    statistics = interpolated(grid.project, grid.anchors_AD, [landscape.statistics(origin_P)]) if held else None
    table = tabulate(landscape, grid.points, 4, [Exact(statistics=statistics)])
    expected = [LOSSES[k] for row in losses for k in row]
    for split in ("train", "test"):
        assert table[f"{split}_loss"].tolist() == pytest.approx(expected, abs=1e-7)
