"""Kinds of ensembles: rates, times of collection, what is told of probabilities, temperatures and cost, by hand."""

from math import cos, log, pi

import numpy as np
import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn

from lowloss import FGE, Data, LowlossError, MullerBrown, NetworkLandscape, fast_ensemble
from lowloss.ensemble import SWA, Curve, Snapshot
from lowloss.ensemble.averaging import ensemble_columns
from lowloss.ensemble.base import epochs_spent
from lowloss.ensemble.curve import factors_by_loss, fitted_factor
from lowloss.training.ensembles import walk


def test_snapshots_anneal_by_a_cosine_and_are_kept_at_the_end_of_each_cycle() -> None:
    recipe = Snapshot(epochs=4, cycles=2, lr=0.8)
    cycle = recipe.cycle(2)
    assert (cycle, recipe.steps(cycle)) == (4, 8)
    by_hand = [0.8, 0.4 * (1 + cos(pi / 4)), 0.4, 0.4 * (1 - cos(pi / 4))]
    assert [recipe.rate(i, cycle) for i in range(1, 9)] == pytest.approx(by_hand * 2)
    assert [i for i in range(9) if recipe.collects(i, cycle)] == [4, 8]


def test_the_papers_cycles_of_half_epochs() -> None:
    # Four cycles in 150 epochs of 390 steps.
    recipe = Snapshot(epochs=150, cycles=4)
    assert recipe.cycle(390) == 14_625
    assert recipe.steps(14_625) == 150 * 390
    with pytest.raises(LowlossError, match="cycles=7 does not divide epochs=150"):
        Snapshot(epochs=150, cycles=7)


def test_averaged_weights_are_collected_where_the_rate_is_least() -> None:
    recipe = SWA(members=2, cycle_epochs=0.5, lr_max=0.9, lr_min=0.1)
    cycle = recipe.cycle(8)
    assert (cycle, recipe.steps(cycle)) == (4, 8)
    assert [recipe.rate(i, cycle) for i in range(1, 9)] == pytest.approx([0.7, 0.5, 0.3, 0.1] * 2)
    assert [i for i in range(9) if recipe.collects(i, cycle)] == [4, 8]


@pytest.mark.parametrize(
    ("wrong", "told"),
    [
        (lambda: FGE(starts=[]), "starts must name an epoch"),
        (lambda: SWA(lr_max=0.01, lr_min=0.02), "0 < lr_min <= lr_max"),
        (lambda: SWA(cycle_epochs=0), "cycle_epochs must be more than 0"),
        (lambda: Snapshot(lr=0), "lr must be more than 0"),
        (lambda: Curve(points=1), "two points"),
    ],
)
def test_recipes_that_make_no_sense_are_refused(wrong, told) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(LowlossError, match=told):
        wrong()


def test_the_budgets_of_the_paper() -> None:
    """Garipov et al. 2018, appendix A.5: a checkpoint's training is not repeated for the next one."""
    # ResNets: 125 epochs, then cycles of 4 with 6 members end after 22 more.
    walked = FGE(members=6, cycle_epochs=4).steps(4 * 390) / 390
    assert epochs_spent(0, 0, walked, 125, 1, walked) == 147
    # Wide ResNets: 156 epochs, and 22 from each of two checkpoints; two runs cost twice as much.
    assert epochs_spent(0, 1, walked, 156, 2, walked) == 200
    assert epochs_spent(1, 1, walked, 156, 2, walked) == 400
    # The first member comes after half of a cycle.
    assert epochs_spent(0, 0, 2, 156, 2, walked) == 158
    assert epochs_spent(0, 1, 2, 156, 2, walked) == 180
    # VGG: 11 members of cycles of 2; nothing is collected in the second half of the last cycle.
    assert FGE(members=11, cycle_epochs=2).steps(2 * 390) / 390 == 21


def test_the_start_is_a_member_if_asked_for() -> None:
    start_P = torch.tensor([-0.7, 1.2], dtype=torch.float64)
    recipe = FGE(members=2, cycle_epochs=4, lr_max=9e-4, lr_min=1e-4)
    found = fast_ensemble(MullerBrown(), start_P, recipe)
    more = fast_ensemble(
        MullerBrown(), start_P, FGE(members=2, cycle_epochs=4, lr_max=9e-4, lr_min=1e-4, include_start=True)
    )
    assert found.epochs == [2, 6]
    assert more.epochs == [0, 2, 6]
    torch.testing.assert_close(more.theta_MP, torch.cat([start_P[None], found.theta_MP]), rtol=0, atol=0)


def network(classes: int = 3, samples: int = 40) -> NetworkLandscape:
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(samples, 4, generator=generator), torch.randint(classes, (samples,), generator=generator)
    return NetworkLandscape(nn.Linear(4, classes), Data(x, y, x, y, classes, more={"valid": (x, y.roll(1))}))


def test_walks_that_descend_together_are_those_of_walks_alone() -> None:
    landscape = network()
    start_RP = torch.stack([landscape.initial(seed) for seed in range(2)])
    recipe = FGE(members=2, cycle_epochs=1, batch_size=8)
    together = walk(landscape, start_RP, recipe, seed=5)
    torch.testing.assert_close(together[0].theta_MP, fast_ensemble(landscape, start_RP[0], recipe, seed=5).theta_MP)
    assert [one.epochs for one in together] == [[0.4, 1.2]] * 2  # of a cycle of four of its five steps
    # Each sees minibatches of its own.
    same = walk(landscape, start_RP[[0, 0]], recipe, seed=5)
    torch.testing.assert_close(same[0].theta_MP, together[0].theta_MP)
    assert not torch.allclose(same[1].theta_MP, same[0].theta_MP, atol=1e-4)


def test_calibration_and_diversity_by_brute_force() -> None:
    landscape = network()
    theta_MP = 3 * torch.randn(4, landscape.dim, generator=torch.Generator().manual_seed(2))
    found = ensemble_columns(landscape, theta_MP, factors_M=torch.tensor([1.0, 0.5, 2.0, 1.0]))
    x, y = landscape.data.x_test.double().numpy(), landscape.data.y_test.numpy()
    members = []
    for theta_P, factor in zip(theta_MP.double().numpy(), (1.0, 0.5, 2.0, 1.0), strict=True):
        e = np.exp(factor * (x @ theta_P[:12].reshape(3, 4).T + theta_P[12:]))
        members.append(e / e.sum(1, keepdims=True))
    for m in range(4):
        p = np.mean(members[: m + 1], axis=0)
        assert found["brier"][m].item() == pytest.approx(
            np.mean([sum((p[i] - np.eye(3)[y[i]]) ** 2) for i in range(40)]), rel=1e-5
        )
        bins = [[] for _ in range(15)]
        for i in range(40):
            confidence = p[i].max()
            bins[next(b for b in range(15) if confidence <= (b + 1) / 15 + 1e-12)].append(i)
        ece = sum(abs(sum(p[i].max() - (p[i].argmax() == y[i]) for i in inside)) for inside in bins) / 40
        assert found["ece"][m].item() == pytest.approx(ece, rel=1e-5)
        pairs = [np.mean(members[a].argmax(1) != members[b].argmax(1)) for a in range(m + 1) for b in range(a)]
        assert found["disagreement"][m].item() == pytest.approx(np.mean(pairs) if pairs else 0)
        assert found["loss"][m].item() == pytest.approx(-np.log(p[np.arange(40), y]).mean(), rel=1e-5)


def test_factors_are_inversely_proportional_to_the_loss() -> None:
    factors_K = factors_by_loss(torch.tensor([0.1, 0.4, 0.3], dtype=torch.float64))
    assert factors_K.tolist() == pytest.approx([2, 0.5, 2 / 3])


def test_a_temperature_softens_by_hand() -> None:
    landscape = network(classes=2, samples=1)
    # One sample, of class 0 or 1: logits z with z_1 - z_0 = d at a factor of 1.
    theta_P = torch.zeros(landscape.dim)
    theta_P[-1] = 3.0
    y = int(landscape.data.y_test[0])
    for factor in (1.0, 0.5):
        found = ensemble_columns(landscape, theta_P[None], factors_M=torch.tensor([factor]))
        assert found["loss"].item() == pytest.approx(log(1 + np.exp((1 - 2 * y) * 3.0 * factor)), rel=1e-6)


def test_the_fitted_factor_is_the_minimum_of_the_cross_entropy() -> None:
    landscape = network()
    theta_P = 2 * torch.randn(landscape.dim, generator=torch.Generator().manual_seed(4))
    x, y = (tensor for tensor in landscape.data.split("valid"))
    # Labels of the network's own for most samples, so that the minimum is at a positive factor.
    logits = x @ theta_P[:12].view(3, 4).T + theta_P[12:]
    y.copy_(torch.where(torch.arange(40) % 5 > 0, logits.argmax(1), y))
    loss = lambda factor: torch.nn.functional.cross_entropy(factor * logits.double(), y).item()  # noqa: E731
    by_scipy = minimize_scalar(loss, bounds=(0.01, 10), method="bounded", options={"xatol": 1e-9})
    assert by_scipy.x > 0.1
    assert fitted_factor(landscape, theta_P) == pytest.approx(by_scipy.x, rel=1e-4)
