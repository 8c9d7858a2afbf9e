"""The parts of a nudged elastic band by hand, and whole searches against an implementation in numpy."""

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from lowloss import NEB, AutoNEB, BezierCurve, LowlossError, MullerBrown, PolygonalChain, find_path
from lowloss.finder import Polyline
from lowloss.finder.base import Phase
from lowloss.finder.neb import redistribute, stretch, tangents
from lowloss.points.planes import RandomPlane

Array = NDArray[np.float64]
START, END = (np.array(minimum[:2]) for minimum in MullerBrown.minima[:2])

# Forward segment (0, 4), backward segment (3, 0).
BEND = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0]], dtype=torch.float64)
FORWARD, BACKWARD = (0.0, 4.0), (3.0, 0.0)

# Losses of the three pivots, direction by the rule "higher", direction by the rule "improved". At an extremum the
# larger loss difference weights the segment to the higher neighbour.
TANGENTS = {
    "rising": ((1, 2, 4), FORWARD, FORWARD),
    "falling": ((4, 2, 1), BACKWARD, BACKWARD),
    "maximum, next higher": ((1, 5, 3), FORWARD, (2 * 3, 4 * 4)),
    "maximum, previous higher": ((3, 5, 1), BACKWARD, (4 * 3, 2 * 4)),
    "minimum, next higher": ((2, 1, 5), FORWARD, (1 * 3, 4 * 4)),
    "minimum, previous higher": ((5, 1, 2), BACKWARD, (4 * 3, 1 * 4)),
    "symmetric maximum": ((1, 3, 1), BACKWARD, (3, 4)),
    "rising to a plateau": ((1, 2, 2), FORWARD, FORWARD),
    "falling from a plateau": ((2, 2, 1), BACKWARD, BACKWARD),
    "flat": ((1, 1, 1), BACKWARD, BACKWARD),
}


@pytest.mark.parametrize("rule", ["higher", "improved"])
@pytest.mark.parametrize("case", TANGENTS)
def test_tangent_of_a_bend(case: str, rule: str) -> None:
    losses, *directions = TANGENTS[case]
    direction = torch.tensor([directions[rule == "improved"]], dtype=torch.float64)
    found = tangents(BEND, torch.tensor(losses, dtype=torch.float64), rule)
    torch.testing.assert_close(found, direction / direction.norm())


@pytest.mark.parametrize("rule", ["higher", "improved"])
def test_each_pivot_has_its_own_tangent(rule: str) -> None:
    pivots_NP = torch.tensor([[0.0, 0.0], [1.0, 0.0], [1.0, 1.0], [3.0, 1.0]])
    found = tangents(pivots_NP, torch.tensor([1.0, 2.0, 4.0, 9.0]), rule)
    assert found.tolist() == [[0, 1], [1, 0]]


def test_unknown_tangent_is_named() -> None:
    with pytest.raises(LowlossError, match="higher, improved"):
        NEB(tangent="central")


@pytest.mark.parametrize("constant", [0.0, -1.0, np.inf, np.nan])
def test_a_spring_that_does_not_pull_is_refused(constant: float) -> None:
    with pytest.raises(LowlossError, match="spring_constant must be null or positive"):
        NEB(spring_constant=constant)


@pytest.mark.parametrize("spacing", [(1, 2), (1, 2, 3, 4), (1, 0, 2), (1, -1, 2), (1, np.nan, 2), "foo", 3])
def test_a_spacing_that_is_none_of_this_band_is_refused(spacing: Any) -> None:
    with pytest.raises(LowlossError, match=r"spacing must be null or a list of 3 positive numbers, pivots \+ 1"):
        NEB(pivots=2, spacing=spacing)


@pytest.mark.parametrize("finder", [NEB, AutoNEB, BezierCurve, PolygonalChain])
@pytest.mark.parametrize(
    ("wrong", "told"),
    [({"momentum": -0.1}, "at least"), ({"momentum": 1.0}, "at least"), ({"momentum": np.nan}, "at least"),
     ({"weight_decay": -1e-4}, "at least"), ({"weight_decay": np.inf}, "at least"),
     ({"weight_decay": np.nan}, "at least"), ({"batch_size": 0}, "a whole number of at least 1"),
     ({"batch_size": 1.5}, "int")],
)  # fmt: skip
def test_settings_with_which_sgd_cannot_descend_are_refused(finder: Any, wrong: dict[str, Any], told: str) -> None:
    with pytest.raises(LowlossError, match=f"{next(iter(wrong))} must be {told}"):
        finder(**wrong)


@pytest.mark.parametrize("finder", [NEB, AutoNEB, BezierCurve, PolygonalChain])
def test_numbers_of_numpy_are_numbers(finder: Any) -> None:
    assert finder(batch_size=np.int64(16), momentum=np.float32(0.5)).batch_size == 16


def test_numbers_of_numpy_make_a_cycle_and_a_resolution() -> None:
    cycles = [{"steps": np.int64(3), "lr": np.float32(0.5), "repeat": np.int32(2)}]
    assert AutoNEB(cycles).phases == [Phase(3, 0.5)] * 2
    assert RandomPlane(resolution=(np.int64(4), 5)).resolution == (4, 5)


@pytest.mark.parametrize("finder", [NEB, BezierCurve, PolygonalChain])
@pytest.mark.parametrize("wrong", [{"lr": 0.0}, {"lr": -1.0}, {"lr": np.nan}, {"lr": np.inf}, {"steps": 0}])
def test_searches_without_a_step_are_refused(finder: Any, wrong: dict[str, Any]) -> None:
    with pytest.raises(LowlossError, match="at least one step and a positive lr"):
        finder(**wrong)


KNOTS = {"equal": (0, 0.25, 0.5, 0.75, 1), "unequal": (0, 0.1, 0.5, 0.9, 1)}


@pytest.fixture(params=KNOTS)
def knots_N(request: pytest.FixtureRequest) -> Tensor:
    return torch.tensor(KNOTS[request.param], dtype=torch.float64)


def test_redistribute_is_exact_on_a_straight_band(knots_N: Tensor) -> None:
    start_P, along_P = torch.randn(2, 7, dtype=torch.float64)
    before_N = torch.tensor([0, 0.6, 0.65, 0.9, 1], dtype=torch.float64)
    after_NP = redistribute(start_P + before_N[:, None] * along_P, knots_N)
    torch.testing.assert_close(after_NP, start_P + knots_N[:, None] * along_P)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_redistribute_moves_pivots_along_the_old_band(knots_N: Tensor, dtype: torch.dtype) -> None:
    before_NP = torch.randn(5, 3).to(dtype)
    after_NP = redistribute(before_NP, knots_N)
    assert after_NP.dtype == dtype
    assert torch.equal(after_NP[[0, -1]], before_NP[[0, -1]])
    # The band as a function of its length, one coordinate after the other: ascending targets keep the order.
    torch.testing.assert_close(
        after_NP, torch.tensor(redistribution(before_NP.double().numpy(), knots_N.numpy())).to(dtype)
    )


def test_repeated_redistribution_reaches_the_target_spacing(knots_N: Tensor) -> None:
    before_NP = torch.tensor([[0.0, 0], [0.3, 1], [0.5, 1.2], [0.9, 1.1], [1.0, 0]], dtype=torch.float64)
    pivots_NP = before_NP
    for _ in range(300):
        pivots_NP = redistribute(pivots_NP, knots_N)
    lengths_S = pivots_NP.diff(dim=0).norm(dim=1)
    torch.testing.assert_close(lengths_S / lengths_S.sum(), knots_N.diff(), rtol=1e-9, atol=0)
    assert torch.equal(pivots_NP[[0, -1]], before_NP[[0, -1]])


def test_redistribute_survives_coincident_pivots() -> None:
    pivots_NP = torch.tensor([[0.0], [0.0], [0.0], [1.0], [1.0]])
    assert redistribute(pivots_NP, torch.linspace(0, 1, 5)).flatten().tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert torch.equal(redistribute(torch.ones(4, 2), torch.linspace(0, 1, 4)), torch.ones(4, 2))


# Segments of length 3, 4 and 1.
CORNERS = torch.tensor([[0.0, 0.0], [3.0, 0.0], [3.0, 4.0], [3.0, 5.0]], dtype=torch.float64)


@pytest.mark.parametrize(
    ("knots", "expected"),
    [((0, 1 / 3, 2 / 3, 1), (4 - 3, 1 - 4)), ((0, 1 / 2, 3 / 4, 1), ((4 - 2) - (3 - 4), (1 - 2) - (4 - 2)))],
)
def test_stretch_by_hand(knots: tuple[float, ...], expected: tuple[float, ...]) -> None:
    path = Polyline(CORNERS, torch.tensor(knots, dtype=torch.float64))
    torch.testing.assert_close(stretch(path), torch.tensor(expected, dtype=torch.float64))


def test_nudge_removes_the_force_along_the_band() -> None:
    path, losses_N = Polyline(BEND), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    gradient_MP = torch.tensor([[5.0, 7.0]], dtype=torch.float64)
    # The tangent is (0, 1).
    assert NEB().nudge(path, gradient_MP, losses_N).tolist() == [[5, 0]]


def test_spring_pulls_towards_the_longer_segment_along_the_band_only() -> None:
    path, losses_N = Polyline(BEND), torch.tensor([1.0, 2.0, 4.0], dtype=torch.float64)
    gradient_MP = torch.tensor([[5.0, 7.0]], dtype=torch.float64)
    # The next pivot is further by 4 - 3: the force is 10 (0, 1), and SGD steps along minus what is returned.
    assert NEB(spring_constant=10.0).nudge(path, gradient_MP, losses_N).tolist() == [[5, -10]]


def test_compared_losses_are_free_of_weight_decay() -> None:
    surface, finder = MullerBrown(), NEB(weight_decay=0.3)
    path = Polyline(torch.tensor([[-1.0, 1.0], [0.0, 0.5], [0.5, 0.0]], dtype=torch.float64, requires_grad=True))
    objective, losses_N = finder.objective(path, surface, None, seed=0)
    assert torch.equal(losses_N, surface.losses(path.bends_BP).detach())
    (gradient_NP,) = torch.autograd.grad(objective, path.bends_BP)
    (plain_NP,) = torch.autograd.grad(surface.losses(path.bends_BP).sum(), path.bends_BP)
    torch.testing.assert_close(gradient_NP[1], (plain_NP + 0.3 * path.bends_BP)[1].detach())
    assert not gradient_NP[[0, 2]].any()


def redistribution(pivots_NP: Array, knots_N: Array) -> Array:
    arc_N = np.concatenate([[0], np.linalg.norm(np.diff(pivots_NP, axis=0), axis=1).cumsum()])
    return np.stack([np.interp(knots_N * arc_N[-1], arc_N, column) for column in pivots_NP.T], axis=1)


def energy_and_gradient(pivots_NP: Array) -> tuple[Array, Array]:
    theta_NP = torch.tensor(pivots_NP, requires_grad=True)
    losses_N = MullerBrown().energy(theta_NP)
    return losses_N.detach().numpy(), torch.autograd.grad(losses_N.sum(), theta_NP)[0].numpy()


SPACING = (1.0, 2.0, 0.5, 0.5, 2.0, 1.0)


def band_by_hand(
    phases: int,
    steps: int,
    lr: float,
    momentum: float,
    decay: float,
    spring: float | None,
    spacing: Sequence[float] = (1.0,) * 6,
) -> Array:
    """Algorithm 1 of Draxler et al. 2018 with momentum, decay and perhaps springs (eq. 3), for five pivots."""
    knots_N = np.cumsum([0.0, *spacing]) / sum(spacing)
    band_NP = START + knots_N[:, None] * (END - START)
    for _ in range(phases):
        velocity_NP = np.zeros_like(band_NP)
        for _ in range(steps):
            if spring is None:
                band_NP = redistribution(band_NP, knots_N)
            losses_N, gradient_NP = energy_and_gradient(band_NP)
            after_NP = band_NP.copy()
            for i in range(1, 6):
                forward_P, backward_P = band_NP[i + 1] - band_NP[i], band_NP[i] - band_NP[i - 1]
                tangent_P = forward_P if losses_N[i + 1] > losses_N[i - 1] else backward_P
                tangent_P = tangent_P / np.linalg.norm(tangent_P)
                force_P = -(gradient_NP[i] + decay * band_NP[i])
                force_P = force_P - (force_P @ tangent_P) * tangent_P
                if spring is not None:
                    target_S = np.diff(knots_N) * np.linalg.norm(np.diff(band_NP, axis=0), axis=1).sum()
                    behind = np.linalg.norm(backward_P) - target_S[i - 1]
                    force_P -= spring * (behind - (np.linalg.norm(forward_P) - target_S[i])) * tangent_P
                velocity_NP[i] = momentum * velocity_NP[i] + force_P
                after_NP[i] = band_NP[i] + lr * velocity_NP[i]
            band_NP = after_NP
    return band_NP


@pytest.mark.parametrize("spacing", [None, SPACING])
@pytest.mark.parametrize("spring", [None, 200.0])
def test_search_equals_algorithm_1(spring: float | None, spacing: Sequence[float] | None) -> None:
    settings = {"momentum": 0.5, "weight_decay": 3.0, "spring_constant": spring, "spacing": spacing}
    finder = NEB(pivots=5, steps=20, lr=1e-4, **settings)  # type: ignore[arg-type]
    found = find_path(MullerBrown(), torch.tensor(START), torch.tensor(END), finder)
    given = spacing or (1.0,) * 6
    expected = band_by_hand(phases=1, steps=20, lr=1e-4, momentum=0.5, decay=3.0, spring=spring, spacing=given)
    np.testing.assert_allclose(found.path.bends_BP.numpy(), expected, rtol=0, atol=1e-10)
    assert found.status in ("converged", "unrelaxed", "undersampled")
    assert found.gradient_evaluations == 20 * 5


def test_momentum_starts_from_zero_in_each_cycle() -> None:
    cycles = [{"steps": 8, "lr": 1e-4, "repeat": 3}]
    finder = AutoNEB(cycles, pivots=5, threshold=1e9, momentum=0.9, weight_decay=3.0)
    found = find_path(MullerBrown(), torch.tensor(START), torch.tensor(END), finder)
    expected = band_by_hand(phases=3, steps=8, lr=1e-4, momentum=0.9, decay=3.0, spring=None)
    np.testing.assert_allclose(found.path.bends_BP.numpy(), expected, rtol=0, atol=1e-10)
