"""What processes of several devices tell each other arrives with the same bits, and what could not is refused."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from math import copysign, inf, nan
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor

from lowloss import AutoNEB, GaussianMixture, Line, LowlossError, find_path
from lowloss.finder import Polyline
from lowloss.finder.base import Phase
from lowloss.landscape import RandomSpan
from lowloss.measure import Exact, Extremes, Hessian
from lowloss.measure.exact import interpolated
from lowloss.points.grid import Grid
from lowloss.schedule import Steps
from lowloss.training.messages import decode, encode


def sent(value: Any) -> Any:
    text, payload_N = encode(value)
    assert type(text) is bytes
    assert payload_N.dtype == torch.uint8
    return decode(text, payload_N)


WORDS = torch.tensor([0x7FF8000000000001, -1, 0, 0x7FF0000000000000])  # as floats: NaNs with a payload, 0 and inf
TENSORS = {
    "bool": torch.tensor([True, False, True]),
    "int64": torch.tensor([[-(2**63), 2**63 - 1], [0, -1]]),
    "float64": WORDS.view(torch.float64),
    "float32": torch.tensor([nan, -0.0, inf, 1e-45]),
    "bfloat16": torch.tensor([1.5, -2.0], dtype=torch.bfloat16),
    "uint8": torch.arange(3, dtype=torch.uint8),
    "complex64": torch.tensor([1 + 2j, -3j]),
    "scalar": torch.tensor(3.5),
    "empty": torch.empty(0),
    "empty matrix": torch.empty(2, 0, 5, dtype=torch.float64),
    "transposed": torch.arange(6.0).view(2, 3).T,
    "part": torch.arange(9.0)[3:5],
}


def bits(tensor: Tensor) -> tuple[torch.dtype, torch.Size, list[int]]:
    return tensor.dtype, tensor.shape, tensor.contiguous().view(-1).view(torch.uint8).tolist()


@pytest.mark.parametrize("name", TENSORS)
def test_a_tensor_has_the_same_bits(name: str) -> None:
    # Behind a byte, so that no other begins where its type would have it aligned.
    first, found = sent((torch.tensor([True]), TENSORS[name]))
    assert bits(found) == bits(TENSORS[name])
    assert first.tolist() == [True]


def test_tensors_of_all_types_follow_each_other_in_one_message() -> None:
    found = sent({"all": TENSORS})["all"]
    assert list(found) == list(TENSORS)
    assert all(bits(found[name]) == bits(TENSORS[name]) for name in TENSORS)
    found["empty"].resize_(1)
    found["scalar"].zero_()  # memory of its own
    assert bits(found["part"]) == bits(TENSORS["part"])


NOTES = {
    "rows": [["line", 3, 0.1, None], [True, False, 1, 1.0]],
    "pair": (1, (2.5, "x"), ()),
    ("a", 1): {"nested": {"deeper": [{}, [], {2: "two"}]}},
    "text": "list \u00e9 \udcff \x00 \U0001f600",  # a file's name need not be UTF-8
    "folder": Path("a") / "b",
    "types": [torch.float32, torch.device("cpu"), torch.optim.SGD, len, Steps],
    "large": 2**80,
    "small": 5e-324,
}


def test_nested_notes_are_equal_and_of_the_same_types() -> None:
    found = sent(NOTES)
    assert found == NOTES
    assert repr(found) == repr(NOTES)  # 1, 1.0 and True are equal


def test_numbers_that_json_has_no_word_for() -> None:
    found = sent([nan, inf, -inf, -0.0])
    assert found[0] != found[0]
    assert found[1:3] == [inf, -inf]
    assert copysign(1, found[3]) == -1


class Told(NamedTuple):
    name: str
    theta_P: Tensor


@dataclass(frozen=True)
class Held:
    of: Any


def _added(first: Tensor, second: Tensor) -> Tensor:
    return first + second


def test_objects_and_functions_do_the_same() -> None:
    a_P, b_P = torch.tensor([-0.9, -0.7], dtype=torch.float64), torch.tensor([0.8, 0.9], dtype=torch.float64)
    finder = AutoNEB([Phase(5, 5e-3), {"steps": 5, "lr": 5e-3}], weight_decay=0.0)
    expected, found = (find_path(GaussianMixture(0), a_P, b_P, one).path.bends_BP for one in (finder, sent(finder)))
    assert torch.equal(found, expected)
    told = sent(Told("x", a_P))
    assert type(told) is Told
    assert told.name == "x"
    assert torch.equal(told.theta_P, a_P)
    held = sent(Held(Steps([0.25], 0.5)))
    assert type(held) is Held
    assert [held.of(x) for x in (0.0, 0.3)] == [1, 0.5]
    assert sent(partial(_added, a_P, second=b_P))().tolist() == (a_P + b_P).tolist()
    assert type(sent(Line())) is Line
    assert vars(sent(RandomSpan(3))) == vars(RandomSpan(3))


def test_what_a_scan_and_a_path_are_told_with() -> None:
    grid = Grid(torch.tensor([1.0, 2, 3]), torch.eye(3)[:2], (torch.tensor([0.0, 1]),) * 2, torch.zeros(1, 2), ("a",))
    assert torch.equal(sent(grid.points)(torch.arange(4)), grid.points(torch.arange(4)))
    path = Polyline(torch.tensor([[0.0, 1], [2, 3], [4, 4]]))
    t_T = torch.linspace(0, 1, 7)
    assert torch.equal(sent(path).points(t_T), path.points(t_T))
    anchors_AD = torch.tensor([[0.0, 0], [1, 0], [0, 1]])
    statistics = interpolated(grid.project, anchors_AD, [{"mean": torch.tensor([float(a)])} for a in range(3)])
    measures = [Exact(details=["test"], statistics=statistics), Extremes(Hessian(statistics=statistics))]
    exact, extremes = sent(measures)
    at_KP = grid.points(torch.arange(4))
    for found in (exact.statistics, extremes.hessian.statistics):
        assert [one["mean"].tolist() for one in found(at_KP)] == [one["mean"].tolist() for one in statistics(at_KP)]
    assert exact.details == ("test",)


def _of_a_function() -> Callable[[], int]:
    return lambda: 1


class Slotted:
    __slots__ = ("value",)

    def __init__(self) -> None:
        self.value = 1


@pytest.mark.parametrize(
    "value",
    [_of_a_function(), Slotted(), Held(_of_a_function()), torch.Generator(), {1}, type("Local", (), {})()],
    ids=["lambda", "slots", "within", "generator", "set", "class"],
)
def test_what_cannot_be_told_is_refused(value: Any) -> None:
    with pytest.raises(LowlossError, match="one device"):
        encode([value])
