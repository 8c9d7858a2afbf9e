"""Descent on random cuts: the threshold dimension of wedges is D - n, and how it is narrowed down."""

from functools import partial
from math import inf, nan

import pytest
import torch

from lowloss import LowlossError
from lowloss.landscape import Quadratic, Span, Wedge, Wedges
from lowloss.schedule import Plateau
from lowloss.training.charts import bracket, descend_cuts, refined

sgd = partial(torch.optim.SGD, lr=0.05, momentum=0.9)


@pytest.mark.parametrize("surface", [Wedge(30, 20), Wedge(40, 20), Wedge(60, 45)], ids=["30-20", "40-20", "60-45"])
def test_the_threshold_dimension_of_wedges(surface: Wedge) -> None:
    """Fort & Jastrzebski 2019, sec. 3.3: d_lim = D - n."""
    expected, lows, highs = surface.dim - surface.n, [], []
    for seed in range(2):
        dims = [expected + step for step in (-6, -3, -2, -1, 0, 1, 2, 5)]
        origin_P = surface.initial(100 + seed)
        theta_RP = descend_cuts(surface, origin_P, dims, sgd, 300, None, Plateau(), seed=seed, block=300)
        values = dict(zip(dims, surface.evaluate(theta_RP)["loss"].tolist(), strict=True))
        low, high = bracket(values, 0.005)
        lows.append(low + 1)
        highs.append(high)
        # Far below nothing succeeds, far above everything does.
        assert values[expected - 6] > 0.005 >= values[expected + 5]
    assert min(lows) <= expected <= max(highs)
    assert max(highs) <= expected + 2
    assert min(lows) >= expected - 2


def test_cuts_of_a_single_wedge_are_bounded_by_algebra() -> None:
    """The distance from a cut to the wedge is zero from d = D - n on, where the problem is square and ill-conditioned.

    Descent ends no lower than that, and a few dimensions further at zero.
    """
    surface, dims = Wedges(30, 20, count=1, seed=5), [4, 7, 9, 10, 11, 16]
    origin_P, short_PS = surface.initial(100), surface.short_WPS[0]
    reached_R = surface.evaluate(descend_cuts(surface, origin_P, dims, sgd, 300, None, Plateau(), block=300))["loss"]
    basis_QP = Span.random(origin_P, 16, 0).basis_QP
    for d, reached in zip(dims, reached_R.tolist(), strict=True):
        system_Sd, own_S = (basis_QP[:d] @ short_PS).T, short_PS.T @ origin_P
        z_d = torch.linalg.lstsq(system_Sd, -own_S[:, None], driver="gelsd").solution[:, 0]
        distance = float((own_S + system_Sd @ z_d).norm())
        assert (distance < 1e-9) == (d >= 10)
        assert reached > distance - 1e-9
        if d in (4, 16):
            assert reached == pytest.approx(distance, abs=0.005)


def test_cuts_reach_the_lowest_point_of_their_hyperplane() -> None:
    """On a bowl that is the point nearest to the minimum, by least squares; the hyperplanes are nested."""
    surface, dims = Quadratic([1.0] * 12), [1, 4, 9, 12]
    origin_P = torch.randn(12, dtype=torch.float64)
    theta_RP = descend_cuts(surface, origin_P, dims, partial(torch.optim.SGD, lr=0.5), 200, None, seed=3, block=200)
    moved_RP = theta_RP - origin_P
    distances = theta_RP.norm(dim=1)
    assert (distances.diff() < 0).all()
    assert distances[-1] < 1e-9
    for r in range(3):  # orthogonal to where it was moved, and to whatever smaller cuts moved along
        assert (moved_RP[: r + 1] @ theta_RP[r]).abs().max() < 1e-9
    alone_1P = descend_cuts(surface, origin_P, [9], partial(torch.optim.SGD, lr=0.5), 200, None, seed=4, block=200)
    assert not torch.allclose(alone_1P[0], theta_RP[2])


def test_a_cut_has_no_more_dimensions_than_the_network() -> None:
    told = "a hyperplane of 12 parameters has at most so many dimensions, not 13: lower chart"
    with pytest.raises(LowlossError, match=told):
        descend_cuts(Quadratic([1.0] * 12), torch.ones(12).double(), [3, 13], sgd, 1, None)


def test_the_bracket_and_its_refinement_by_hand() -> None:
    values = {2: 0.9, 4: 0.1, 8: 0.6, 16: 0.2, 32: 0.0}
    assert bracket(values, 0.2) == (8, 16)  # 4 succeeded by luck
    assert bracket(values, 0.1) == (16, 32)
    assert bracket(values, 1.0) == (0, 2)
    assert bracket(values, -1.0) == (32, inf)
    assert bracket({3: nan, 5: 0.0}, 0.5) == (3, 5)
    assert refined(8, 16, 3) == [10, 12, 14]
    assert refined(8, 10, 5) == [9]
    assert refined(8, 9, 5) == refined(32, inf, 5) == []
