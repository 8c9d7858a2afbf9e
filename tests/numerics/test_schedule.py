"""Learning-rate schedules by hand."""

from math import sqrt

import pytest

from lowloss import LowlossError
from lowloss.schedule import Constant, Cosine, EpochDecay, Plateau, Steps


def test_constant() -> None:
    assert [Constant()(progress) for progress in (0, 0.5, 1)] == [1, 1, 1]


def test_cosine() -> None:
    expected = [1, (1 + sqrt(0.5)) / 2, 0.75, 0.5, 0.25, 0]
    assert [Cosine()(progress) for progress in (0, 1 / 4, 1 / 3, 1 / 2, 2 / 3, 1)] == pytest.approx(expected)


def test_epochs_decay_as_in_the_penn_treebank_tutorial() -> None:
    # The rate of epoch i = 0, 1, … is factor^max(i + 1 - constant, 0).
    schedule = EpochDecay(epochs=5, constant=2, factor=0.5)
    assert [schedule(step / 35) for step in (0, 13, 14, 20, 21, 34)] == [1, 1, 0.5, 0.5, 0.25, 0.125]


def test_steps_fall_at_their_milestones() -> None:
    # He et al. 2016: after 32,000 and 48,000 of 64,000 steps.
    schedule = Steps()
    steps = (0, 31_999, 32_000, 47_999, 48_000, 63_999)
    assert [schedule(step / 64_000) for step in steps] == pytest.approx([1, 1, 0.1, 0.1, 0.01, 0.01])
    assert Steps([0.25], factor=0.5)(0.25) == 0.5
    assert Steps([])(1) == 1


def test_plateau_falls_linearly_to_a_hundredth() -> None:
    expected = [1, 1, 1 - 0.99 / 4, 1 - 0.99 / 2, 0.01, 0.01]
    assert [Plateau()(progress) for progress in (0, 0.5, 0.6, 0.7, 0.9, 1)] == pytest.approx(expected)
    assert Plateau(0, 1, floor=0)(0.3) == pytest.approx(0.7)


@pytest.mark.parametrize("milestones", [(0.5, 0.4), (0, 0.5), (0.5, 1), (32_000, 48_000)])
def test_milestones_are_rising_fractions(milestones: tuple[float, float]) -> None:
    with pytest.raises(LowlossError, match="milestones"):
        Steps(milestones)


@pytest.mark.parametrize("fall", [(0.9, 0.5), (0.5, 0.5), (-0.1, 0.5), (0.5, 1.1)])
def test_plateau_ends_after_it_begins(fall: tuple[float, float]) -> None:
    with pytest.raises(LowlossError, match="fall_from"):
        Plateau(*fall)
