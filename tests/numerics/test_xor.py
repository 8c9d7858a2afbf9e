"""Fig. 8 of Draxler et al. 2018: two neurons cannot change places without an error, three can."""

from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from lowloss.finder import Polyline

_spec = spec_from_file_location("xor_choreography", Path(__file__).parents[2] / "scripts" / "xor_choreography.py")
assert _spec is not None
assert _spec.loader is not None
xor: Any = module_from_spec(_spec)
_spec.loader.exec_module(xor)


@pytest.fixture(scope="module")
def theta_P() -> Tensor:
    found_P: Tensor = xor.minimum(4)
    return found_P


def test_the_minimum_and_its_mirror_image_solve_xor_alike(theta_P: Tensor) -> None:
    both = xor.xor(2).evaluate(torch.stack([theta_P, xor.exchanged(theta_P)]))
    assert both["error"].tolist() == [0, 0]
    assert both["loss"][0] < 0.01
    torch.testing.assert_close(both["loss"][0], both["loss"][1])
    assert (theta_P - xor.exchanged(theta_P)).norm() > 1


def test_two_neurons_have_a_barrier(theta_P: Tensor) -> None:
    found = xor.two_neurons(theta_P)
    assert found.error_T.max() >= 0.25
    assert found.loss_T.max() > 0.4
    # Nor does any other way avoid the error: here, through random points.
    generator = torch.Generator().manual_seed(0)
    for _ in range(40):
        bends_BP = torch.stack([theta_P, *3 * torch.randn(3, 12, generator=generator).double(), xor.exchanged(theta_P)])
        path = Polyline(bends_BP)
        assert xor.xor(2).evaluate(path.points(path.grid(41, 9)))["error"].max() >= 0.25


def test_three_neurons_have_none(theta_P: Tensor) -> None:
    found = xor.three_neurons(theta_P)
    assert found.error_T.max() == 0
    assert (found.loss_T - found.loss_T[0]).abs().max() < 1e-12
    first, last = (xor.neurons(found.theta_TP[t], 3) for t in (0, -1))
    assert torch.equal(last, first[[1, 0, 2]])
    assert torch.equal(first[:2], xor.neurons(theta_P, 2))
