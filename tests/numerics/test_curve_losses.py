"""Curves with several bends by their formulas, and losses (1) and (3) by integration (Garipov et al. 2018)."""

import itertools
from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from torch import Tensor

from lowloss import PolygonalChain
from lowloss.finder import ArcLengthChain
from lowloss.landscape import AnalyticSurface
from lowloss.points.path import Bezier, Polyline


@pytest.mark.parametrize("bends", [1, 2, 3, 4])
def test_formulas_of_the_appendix(bends: int) -> None:
    w = torch.randn(bends + 2, 3, dtype=torch.float64)
    for t in np.linspace(0, 1, 23):
        i = min(int(t * (bends + 1)), bends)
        chain = (bends + 1) * ((t - i / (bends + 1)) * w[i + 1] + ((i + 1) / (bends + 1) - t) * w[i])
        torch.testing.assert_close(Polyline(w).points(torch.tensor([t]))[0], chain)
        points = list(w)  # de Casteljau's algorithm
        while len(points) > 1:
            points = [(1 - t) * a + t * b for a, b in itertools.pairwise(points)]
        torch.testing.assert_close(Bezier(w).points(torch.tensor([t]))[0], points[0])


class Hills(AnalyticSurface):
    """sin(x) + x y² + 2."""

    dim = 2

    def energy(self, theta_KP: Tensor) -> Tensor:
        x_K, y_K = theta_KP.unbind(1)
        return x_K.sin() + x_K * y_K.square() + 2


BENDS = torch.tensor([[0.0, 0.5], [0.4, 1.5], [1.0, 1.2], [1.1, 0.0]], dtype=torch.float64)
DECAY = 0.3


def loss(theta: np.ndarray) -> float:
    return np.sin(theta[0]) + theta[0] * theta[1] ** 2 + 2 + DECAY / 2 * theta @ theta


def loss_1(bends: np.ndarray) -> float:
    """The mean over the chain's length, an integral a segment."""
    over, length = 0.0, 0.0
    for a, b in itertools.pairwise(bends):
        of = np.linalg.norm(b - a)
        over += of * quad(lambda s, a=a, b=b: loss((1 - s) * a + s * b), 0, 1, epsabs=1e-12)[0]
        length += of
    return over / length


def loss_3(bends: np.ndarray) -> float:
    parts = [quad(lambda s, a=a, b=b: loss((1 - s) * a + s * b), 0, 1)[0] for a, b in itertools.pairwise(bends)]
    return float(np.mean(parts))


@pytest.fixture
def midpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    """t is no longer drawn, but the midpoints of a fine grid, so that a mean over it is an integral."""
    monkeypatch.setattr(torch, "rand", lambda count, **_: (torch.arange(count, dtype=torch.float64) + 0.5) / count)


@pytest.mark.usefixtures("midpoints")
@pytest.mark.parametrize(("finder", "integral"), [(ArcLengthChain, loss_1), (PolygonalChain, loss_3)])
def test_losses_and_gradients_against_integration(
    finder: type[PolygonalChain], integral: Callable[[np.ndarray], float]
) -> None:
    bends_BP = BENDS.clone().requires_grad_()
    curve = finder(bends=2, samples=3000, weight_decay=DECAY)
    value, _ = curve.objective(Polyline(bends_BP), Hills(), None, seed=0)
    assert value.item() == pytest.approx(integral(BENDS.numpy()), abs=1e-6)
    (gradient_BP,) = torch.autograd.grad(value, bends_BP)
    for b in (1, 2):
        for p in (0, 1):
            ahead, behind = BENDS.numpy().copy(), BENDS.numpy().copy()
            ahead[b, p] += 1e-5
            behind[b, p] -= 1e-5
            slope = (integral(ahead) - integral(behind)) / 2e-5
            assert gradient_BP[b, p].item() == pytest.approx(slope, abs=1e-5)


def test_the_losses_agree_on_two_equal_segments_and_their_gradients_do_not() -> None:
    # Both segments have the length one; the loss is higher on the first.
    bends_BP = torch.tensor([[2.0, 0.0], [1.0, 0.0], [1.0, 1.0]], dtype=torch.float64).requires_grad_()
    found = [
        finder(samples=50, weight_decay=DECAY).objective(Polyline(bends_BP), Hills(), None, seed=3)[0]
        for finder in (ArcLengthChain, PolygonalChain)
    ]
    assert found[0].item() == pytest.approx(found[1].item(), rel=1e-12)
    gradients = [torch.autograd.grad(value, bends_BP)[0][1] for value in found]
    # Besides: the means over the segments times the derivatives of their shares of the length. Moving the bend by
    # (d, e) changes the lengths by -d and -e, so the shares by (e - d) / 4 and its opposite.
    t_K = torch.rand(50, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    points_KP = Polyline(bends_BP.detach()).points(t_K)
    values_K = Hills().energy(points_KP) + DECAY / 2 * points_KP.square().sum(1)
    apart = 2 / 50 * (values_K[t_K < 0.5].sum() - values_K[t_K >= 0.5].sum())
    expected = apart * torch.tensor([-0.25, 0.25], dtype=torch.float64)
    torch.testing.assert_close(gradients[0] - gradients[1], expected)


def test_squared_norms_are_those_of_the_points() -> None:
    t_K = torch.linspace(0, 1, 13, dtype=torch.float64)
    for path in (Polyline(BENDS), Bezier(BENDS)):
        torch.testing.assert_close(path.squared_norms(t_K), path.points(t_K).square().sum(1))
