"""Where AutoNEB inserts pivots, and what it costs."""

from typing import Any

import pytest
import torch
from torch import Tensor

from lowloss import AutoNEB, LowlossError, MullerBrown, find_path
from lowloss.finder import Path, Polyline
from lowloss.finder.autoneb import insertions
from lowloss.finder.base import Phase, Profile

# Losses at alpha = 1/4, 1/2, 3/4 of two segments; their guesses are (1/4, 1/2, 3/4) and (7/8, 3/4, 5/8).
PIVOTS = torch.tensor([0.0, 1.0, 0.5])
BETWEEN = torch.tensor([[0.25, 0.875, 1.0], [0.875, 1.5, 1.5]])
RESIDUA = torch.tensor([[0.0, 0.375, 0.25], [0.0, 0.75, 0.875]])


@pytest.mark.parametrize(
    ("threshold", "expected"),
    [
        (0.2, [(1, 0.75), (0, 0.5)]),
        (0.375, [(1, 0.75)]),
        (0.374, [(1, 0.75), (0, 0.5)]),
        (0.875, []),
    ],
)
def test_one_insertion_a_segment_above_the_threshold_the_highest_first(
    threshold: float, expected: list[tuple[int, float]]
) -> None:
    assert insertions(PIVOTS, BETWEEN, threshold) == expected


def test_residuum_is_normalised_by_the_range_of_all_pivots() -> None:
    pivots_N = torch.cat([PIVOTS, torch.tensor([-3.0])])  # range 4; the third segment lies on its guess
    between_SE = torch.cat([BETWEEN, torch.tensor([[-0.375, -1.25, -2.125]])])
    assert insertions(pivots_N, between_SE, 0.875 / 4) == []
    assert insertions(pivots_N, between_SE, 0.86 / 4) == [(1, 0.75)]
    # Scaling and shifting the loss changes nothing.
    assert insertions(100 * PIVOTS - 7, 100 * BETWEEN - 7, 0.2) == [(1, 0.75), (0, 0.5)]


def test_a_dip_is_no_reason_to_insert() -> None:
    assert insertions(PIVOTS, BETWEEN - 2 * RESIDUA, 0.0) == []


def test_flat_band_gets_a_pivot_on_a_bump_only() -> None:
    flat_N, between_SE = torch.full((3,), 0.1), torch.full((2, 9), 0.1)
    assert insertions(flat_N, between_SE, 0.2) == []
    between_SE[1, 3] += 0.001
    [(segment, alpha)] = insertions(flat_N, between_SE, 0.2)
    assert (segment, alpha) == (1, pytest.approx(0.4))


def band() -> Polyline:
    return Polyline(torch.randn(4, 3), torch.tensor([0, 0.2, 0.7, 1], dtype=torch.float64))


def profile(bumps: dict[float, float]) -> Profile:
    """Losses that rise like t, with bumps on top."""

    def losses(path: Path, t_T: Tensor) -> Tensor:
        losses_T = t_T.clone()
        for t, height in bumps.items():
            (nearest,) = torch.isclose(t_T, torch.tensor(t, dtype=t_T.dtype)).nonzero()
            losses_T[nearest] += height
        return losses_T

    return losses


def test_refine_inserts_at_the_bumps_and_keeps_the_other_pivots() -> None:
    path = band()
    # With four evaluations a segment: alpha = 3/5 of the second, alpha = 1/5 of the third.
    refined = AutoNEB(evaluations=4).refine(path, profile({0.2 + 0.5 * 3 / 5: 0.5, 0.7 + 0.3 / 5: 0.9}), Phase(1, 1.0))
    assert isinstance(refined, Polyline)
    expected_B = torch.tensor([0, 0.2, 0.5, 0.7, 0.76, 1], dtype=torch.float64)
    torch.testing.assert_close(refined.knots_B, expected_B)
    assert torch.equal(refined.bends_BP[[0, 1, 3, 5]], path.bends_BP)
    _, second, third, fourth = path.bends_BP
    torch.testing.assert_close(refined.bends_BP[2], 0.4 * second + 0.6 * third)
    torch.testing.assert_close(refined.bends_BP[4], 0.8 * third + 0.2 * fourth)


def test_refine_inserts_the_highest_where_it_may_not_insert_all() -> None:
    finder = AutoNEB(evaluations=4, max_insertions=2)
    refined = finder.refine(band(), profile({0.08: 0.5, 0.5: 0.4, 0.76: 0.9}), Phase(1, 1.0))
    torch.testing.assert_close(refined.grid(2, 0), torch.tensor([0, 0.08, 0.2, 0.7, 0.76, 1], dtype=torch.float64))


def test_status_says_whether_a_pivot_would_be_inserted_and_whether_a_force_is_left() -> None:
    finder, path, still = AutoNEB(evaluations=4), band(), lambda path: (torch.zeros(len(path.bends_BP) - 2, 3), flat)
    flat, calm, high = torch.zeros(4), profile({0.5: 0.19}), profile({0.5: 0.21})
    assert finder.status(finder.quality(path, calm, still)) == "converged"
    assert finder.refine(path, calm, Phase(1, 1.0)) is path
    assert finder.status(finder.quality(path, high, still)) == "undersampled"
    assert finder.status({"residuum": 0.19, "force_left": 0.06}) == "unrelaxed"


class Counting(MullerBrown):
    """Counts points whose gradient is asked for."""

    gradients = 0

    def energy(self, theta_KP: Tensor) -> Tensor:
        self.gradients += len(theta_KP) if theta_KP.requires_grad else 0
        return super().energy(theta_KP)


def test_cost_is_steps_times_pivots_of_every_cycle() -> None:
    surface = Counting()
    a_P, b_P = (torch.tensor(minimum[:2], dtype=torch.float64) for minimum in surface.minima[:2])
    # The straight band crosses a ridge in many segments: two pivots are inserted after each cycle but the last.
    cycles = [{"steps": 10, "lr": 1e-5, "repeat": 2}, {"steps": 7, "lr": 1e-6}]
    finder = AutoNEB(cycles, pivots=3, threshold=0, max_insertions=2, momentum=0.0)
    found = find_path(surface, a_P, b_P, finder)
    assert found.gradient_evaluations == 10 * 3 + 10 * 5 + 7 * 7
    # At the end once more, and of the highest sample and the first three pivots, to tell how well it has converged.
    assert surface.gradients == found.gradient_evaluations + 7 + 1 + 3
    assert len(found.path.bends_BP) == 2 + 7
    assert found.status == "undersampled"
    # Looked at after every cycle: nine points between the pivots there were.
    assert [snapshot.shape for snapshot in found.snapshots] == [(2, 4 * 10 + 1), (2, 6 * 10 + 1), (2, 8 * 10 + 1)]


def test_draxler_schedule() -> None:
    finder = AutoNEB()
    assert [phase.lr for phase in finder.phases] == [0.1] * 6 + [0.01] * 4 + [0.001] * 4
    assert [phase.steps for phase in finder.phases] == [1000] * 4 + [2000] * 2 + [1000] * 8
    assert (finder.evaluations, finder.threshold, finder.momentum, finder.weight_decay) == (9, 0.2, 0.9, 1e-4)


@pytest.mark.parametrize("cycle", [{"steps": 3}, {"steps": 3, "lr": 0.1, "times": 2}])
def test_cycles_with_wrong_keys_are_refused(cycle: dict[str, float]) -> None:
    with pytest.raises(LowlossError, match="steps, lr and optionally repeat"):
        AutoNEB([cycle])


@pytest.mark.parametrize(
    "cycles", ["foo", None, 3, [], (), {"steps": 3, "lr": 0.1}, ["foo"], [[3, 0.1]], [{"steps": 3, "lr": 0.1}, None]]
)
def test_cycles_that_are_no_list_of_cycles_are_refused(cycles: Any) -> None:
    with pytest.raises(LowlossError, match=r"cycles must be a list of \{steps: NUMBER, lr: RATE, repeat: TIMES\}"):
        AutoNEB(cycles)


@pytest.mark.parametrize(
    "change",
    [{"repeat": 0}, {"repeat": -1}, {"repeat": 1.5}, {"steps": 2.5}, {"steps": "many"}, {"lr": "high"}, {"climb": 1}],
)
def test_cycles_of_other_kinds_are_refused(change: dict[str, Any]) -> None:
    with pytest.raises(
        LowlossError, match="steps and repeat must be whole numbers of at least 1, its lr a number and its climb"
    ):
        AutoNEB([{"steps": 3, "lr": 0.1, **change}])


@pytest.mark.parametrize("threshold", [-0.1, float("nan")])
def test_a_threshold_that_a_line_exceeds_is_refused(threshold: float) -> None:
    with pytest.raises(LowlossError, match="threshold must be at least 0"):
        AutoNEB(threshold=threshold)


@pytest.mark.parametrize(
    "cycle",
    [{"steps": 0, "lr": 0.1}, {"steps": 10, "lr": 0.0}, {"steps": -1, "lr": 0.1}, {"steps": 3, "lr": float("inf")}],
)
def test_cycles_that_take_no_step_are_refused(cycle: dict[str, float]) -> None:
    with pytest.raises(LowlossError, match="at least one step"):
        AutoNEB([cycle])
