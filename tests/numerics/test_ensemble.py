"""Fast geometric ensembling and averaged predictions, by hand."""

from math import log

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from lowloss import FGE, Data, LowlossError, MullerBrown, NetworkLandscape, ensemble_metrics, fast_ensemble


def test_rate_over_a_cycle() -> None:
    recipe = FGE(lr_max=0.9, lr_min=0.1)
    # t = 1/4, 1/2, 3/4, 1: half-way down, at the bottom, half-way up, at the top; then again.
    assert [recipe.rate(i, 4) for i in range(1, 9)] == pytest.approx([0.5, 0.1, 0.5, 0.9] * 2)
    assert recipe.rate(1, 2) == pytest.approx(0.1)
    assert recipe.rate(3, 10) == pytest.approx(0.4 * 0.9 + 0.6 * 0.1)
    assert recipe.rate(9, 10) == pytest.approx(0.2 * 0.1 + 0.8 * 0.9)


def test_members_are_collected_in_mid_cycle_where_the_rate_is_least() -> None:
    recipe = FGE(members=3)
    for cycle in (2, 4, 10):
        collected = [i for i in range(1, 3 * cycle + 1) if recipe.collects(i, cycle)]
        assert collected == [cycle // 2, cycle // 2 + cycle, cycle // 2 + 2 * cycle]
        assert all(recipe.rate(i, cycle) == pytest.approx(recipe.lr_min) for i in collected)
        assert recipe.steps(cycle) == collected[-1]


@pytest.mark.parametrize(
    ("epochs", "steps_per_epoch", "cycle"), [(4, 10, 40), (2, 390, 780), (1, 1, 2), (0.5, 8, 4), (0.01, 10, 2)]
)
def test_cycles_are_even(epochs: float, steps_per_epoch: int, cycle: int) -> None:
    assert FGE(cycle_epochs=epochs).cycle(steps_per_epoch) == cycle
    for steps in range(1, 40):
        found = FGE(cycle_epochs=epochs).cycle(steps)
        assert found % 2 == 0
        assert found == 2 or abs(found - epochs * steps) <= 1


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        ({"lr_min": 0.1, "lr_max": 0.1}, "0 < lr_min < lr_max"),
        ({"lr_min": 0.0}, "0 < lr_min < lr_max"),
        ({"members": 0}, "members must be a whole number of at least 1"),
        ({"cycle_epochs": 0.0}, "cycle_epochs must be more than 0"),
        ({"momentum": 1.0}, "momentum must be at least 0 and less than 1"),
        ({"weight_decay": -1.0}, "weight_decay must be at least 0"),
        ({"batch_size": 0}, "batch_size must be a whole number of at least 1"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(wrong: dict[str, float], told: str) -> None:
    with pytest.raises(LowlossError, match=told):
        FGE(**wrong)


def test_members_are_those_of_sgd_by_hand() -> None:
    surface = MullerBrown()
    theta_P = torch.tensor([-0.7, 1.2], dtype=torch.float64)
    recipe = FGE(members=3, cycle_epochs=4, lr_max=9e-4, lr_min=1e-4, momentum=0.8, weight_decay=2.0)
    # One step an epoch: the cycle has four steps.
    found = fast_ensemble(surface, theta_P, recipe)
    velocity_P, members, losses = torch.zeros(2, dtype=torch.float64), [], []
    for i in range(1, 11):
        theta_P.requires_grad_()
        loss = surface.energy(theta_P[None])[0]
        (gradient_P,) = torch.autograd.grad(loss, theta_P)
        theta_P = theta_P.detach()
        velocity_P = 0.8 * velocity_P + gradient_P + 2.0 * theta_P
        theta_P = theta_P - (5e-4, 1e-4, 5e-4, 9e-4)[(i - 1) % 4] * velocity_P
        losses.append(loss.item())
        if i in (2, 6, 10):
            members.append(theta_P)
    torch.testing.assert_close(found.theta_MP, torch.stack(members), rtol=1e-10, atol=0)
    np.testing.assert_allclose(found.history, [[i + 1, (5e-4, 1e-4, 5e-4, 9e-4)[i % 4], losses[i]] for i in range(10)])


# Probability of class 0 by three members. The mean of the first sample's logits prefers class 1, that of the
# probabilities class 0.
CLASS_0 = torch.tensor([[0.001, 0.2], [0.8, 0.1], [0.8, 0.3]], dtype=torch.float64)
LABELS = torch.tensor([0, 1])


def together(logits_MNC: Tensor, y_N: Tensor) -> tuple[Tensor, Tensor]:
    """Error and loss of the first 1, 2, … members of networks whose parameters are their logits."""
    count, classes = logits_MNC.shape[1:]
    x = torch.eye(count, dtype=torch.float64)
    landscape = NetworkLandscape(
        nn.Linear(count, classes, bias=False, dtype=torch.float64), Data(x, y_N, x, y_N, classes)
    )
    metrics, alone = ensemble_metrics(landscape, logits_MNC.transpose(1, 2).flatten(1).double())
    for m, logits_NC in enumerate(logits_MNC.double()):
        assert alone["loss"][m].item() == pytest.approx(torch.nn.functional.cross_entropy(logits_NC, y_N).item())
    return metrics["error"], metrics["loss"]


def test_probabilities_are_averaged_not_logits() -> None:
    logits_MNC = torch.stack([CLASS_0, 1 - CLASS_0], dim=2).log() + 3.0
    error_M, nll_M = together(logits_MNC, LABELS)
    assert error_M.tolist() == [0.5, 0.5, 0]
    right = [(0.001, 0.8), (0.801 / 2, (0.8 + 0.9) / 2), (1.601 / 3, (0.8 + 0.9 + 0.7) / 3)]
    assert nll_M.tolist() == pytest.approx([-(log(first) + log(second)) / 2 for first, second in right])
    # The mean of the logits would have erred on the first sample.
    mean_logits_NC = logits_MNC.mean(0)
    assert mean_logits_NC.argmax(1).tolist() == [1, 1]
    assert torch.nn.functional.cross_entropy(mean_logits_NC, LABELS).item() > nll_M[2] + 0.3


def test_confident_members_do_not_underflow() -> None:
    logits_MNC = torch.tensor([[[0.0, 3000.0]], [[0.0, 2000.0]], [[0.0, -5000.0]]])
    error_M, nll_M = together(logits_MNC, torch.tensor([0]))
    assert error_M.dtype == nll_M.dtype == torch.float64
    # Together: 2000 - ln(1/2) for two; a third of certainty for three.
    assert nll_M.tolist() == pytest.approx([3000, 2000 + log(2), log(3)])
    assert error_M.tolist() == [1, 1, 1]
