"""What points predict, counted by hand; and where a learning curve falls below a level."""

from math import isnan, nan

import pandas as pd
import pytest
import torch
from torch import Tensor

from lowloss import Classification
from lowloss.report.tables import falls_below


def predictions(logits_KNC: Tensor, y_N: Tensor) -> dict[str, Tensor]:
    task = Classification(logits_KNC.shape[2])
    details = [task.details(logits_NC.double(), y_N) for logits_NC in logits_KNC]
    return task.summarise({name: torch.stack([one[name] for one in details]) for name in details[0]}, y_N)


def test_predictions_by_hand() -> None:
    probability_KNC = torch.tensor([
        [[0.9, 0.1], [0.6, 0.4], [0.3, 0.7], [0.8, 0.2]],
        [[0.5, 0.5], [0.2, 0.8], [0.1, 0.9], [0.3, 0.7]],
    ])  # fmt: skip
    found = predictions(probability_KNC.log() + 5, torch.tensor([0, 0, 1, 1]))
    assert found["wrong"].tolist() == [[False, False, False, True], [False, True, False, False]]
    torch.testing.assert_close(found["confidence"], torch.tensor([3.0, 2.9], dtype=torch.float64) / 4)
    assert found["class_error"].tolist() == [[0.0, 0.5], [0.5, 0.0]]
    expected = torch.tensor([[0.75, 0.75], [0.65, 0.8]], dtype=torch.float64)
    torch.testing.assert_close(found["class_confidence"], expected)


def test_a_class_without_samples_has_no_error() -> None:
    found = predictions(torch.zeros(1, 2, 3), torch.tensor([0, 1]))
    assert found["class_error"].isnan().tolist() == [[False, False, True]]


@pytest.mark.parametrize(
    ("curve", "last", "first"),
    [
        ([3.0, 2.0, 0.9, 0.8], 3.0, 3.0),
        ([3.0, 0.9, 1.1, 0.8], 4.0, 2.0),
        ([0.5, 0.4, 0.3, 0.2], 1.0, 1.0),
        ([3.0, 0.9, 1.1, 1.0], nan, nan),
    ],
)
def test_where_a_curve_falls_below_one(curve: list[float], last: float, first: float) -> None:
    found = falls_below(pd.Series(curve, index=[1.0, 2.0, 3.0, 4.0]), 1.0)
    assert found == (last, first) or all(map(isnan, (*found, last, first)))
