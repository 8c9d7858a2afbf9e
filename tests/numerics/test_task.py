"""Tasks: losses, metrics and ensembles against numbers worked out by hand."""

from math import exp, log

import pytest
import torch

from lowloss import LowlossError
from lowloss.data import Classification, LanguageModel, Regression
from lowloss.data.task import PADDING

# Logits log p + c have the probabilities p.
P = [[0.7, 0.2, 0.1], [0.1, 0.3, 0.6], [0.25, 0.5, 0.25], [0.6, 0.2, 0.2]]
LOGITS = torch.tensor(P, dtype=torch.float64).log() + torch.tensor([[1.0], [-2.0], [0.0], [300.0]])


def close(actual: torch.Tensor, expected: list[float]) -> None:
    torch.testing.assert_close(actual.double(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_classification() -> None:
    task, y = Classification(3), torch.tensor([0, 1, 1, 2])
    expected = [-log(0.7), -log(0.3), -log(0.5), -log(0.2)]
    close(task.losses(LOGITS, y), expected)
    close(task.mean_loss(LOGITS, y)[None], [sum(expected) / 4])
    columns = task.columns(LOGITS, y)
    assert list(columns) == list(task.units) == ["loss", "error"]
    close(columns["loss"], expected)
    close(columns["error"], [0, 1, 0, 1])
    details = task.details(LOGITS, y)
    summary = task.summarise({name: column[None] for name, column in details.items()}, y)
    close(summary["confidence"], [(0.7 + 0.6 + 0.5 + 0.6) / 4])
    close(summary["class_error"][0], [0, 0.5, 1])
    close(summary["class_confidence"][0], [0.7, 0.55, 0.6])
    assert summary["wrong"].tolist() == [[False, True, False, True]]


def test_classifiers_average_probabilities() -> None:
    task = Classification(3)
    members = [LOGITS[:2], LOGITS[2:], LOGITS[[3, 0]]]
    averages = [outputs.exp() for outputs in task.together(members)]
    means = [[P[0], P[1]], [[0.475, 0.35, 0.175], [0.35, 0.25, 0.4]]]
    means.append([[(0.7 + 0.25 + 0.6) / 3, 0.9 / 3, 0.55 / 3], [1.4 / 3, 0.7 / 3, 0.9 / 3]])
    for average, mean in zip(averages, means, strict=True):
        torch.testing.assert_close(average, torch.tensor(mean, dtype=torch.float64))
    # Where every member is sure, and wrong, the loss stays finite.
    (_, sure) = task.together([torch.tensor([[0.0, 900.0]]), torch.tensor([[0.0, 800.0]])])
    close(task.losses(sure, torch.tensor([0])), [800 + log(2)])


def test_language_model() -> None:
    task = LanguageModel(3)
    outputs = LOGITS.view(2, 2, 3)
    y = torch.tensor([[0, 1], [PADDING, 2]])
    close(task.losses(outputs, y), [-(log(0.7) + log(0.3)) / 2, -log(0.2)])
    columns = task.columns(outputs, y)
    close(columns["loss"], [-log(0.7), -log(0.3), -log(0.2)])
    mean = (-log(0.7) - log(0.3) - log(0.2)) / 3
    finished = task.finish({"loss": columns["loss"].mean()})
    assert list(finished) == list(task.units) == ["loss", "perplexity"]
    close(finished["loss"][None], [mean])
    close(finished["perplexity"][None], [exp(mean)])
    close(task.losses(outputs, torch.full((2, 2), PADDING)), [0, 0])
    (_, both) = task.together([outputs, outputs.flip(0)])
    close(both.exp()[0, 1], [(0.1 + 0.6) / 2, (0.3 + 0.2) / 2, (0.6 + 0.2) / 2])


def test_regression() -> None:
    outputs, y = torch.tensor([[1.0, 2.0], [0.0, -1.0]]), torch.tensor([[1.0, 0.0], [3.0, -1.0]], dtype=torch.float64)
    close(Regression().losses(outputs, y), [2.0, 4.5])
    close(Regression(scale=4.0).mean_loss(outputs, y)[None], [3.25 / 4])
    close(Regression().columns(outputs.double(), y)["loss"], [2.0, 4.5])
    # One number a sample, in either shape.
    close(Regression().losses(outputs[:, 0], y[:, 0]), [0.0, 9.0])
    close(Regression().losses(outputs[:, :1], y[:, :1]), [0.0, 9.0])
    # Variances 1 and 0.25; predicting the mean has the error 1.
    task = Regression.normalised(y)
    assert task.scale == pytest.approx((1 + 0.25) / 2)
    close(task.mean_loss(y.mean(0).expand(2, 2), y)[None], [1.0])
    with pytest.raises(LowlossError, match="targets vary"):
        Regression.normalised(torch.ones(3, 1))
    averages = list(Regression().together([outputs, y, y]))
    close(averages[1].flatten(), [1.0, 1.0, 1.5, -1.0])
    close(averages[2].flatten(), [1.0, 2 / 3, 2.0, -1.0])


def test_outputs_that_do_not_fit_are_refused() -> None:
    with pytest.raises(LowlossError, match=r"shape \(4,\) for 3 classes"):
        Classification(3).check(torch.zeros(2, 4), torch.zeros(2, dtype=torch.long), "Net")
    with pytest.raises(LowlossError, match=r"\(5, 3\)"):
        LanguageModel(3).check(torch.zeros(2, 3), torch.zeros(2, 5, dtype=torch.long), "Net")
    with pytest.raises(LowlossError, match=r"\(1,\) for targets of shape \(\)"):
        Regression().check(torch.zeros(2, 1), torch.zeros(2), "Net")
