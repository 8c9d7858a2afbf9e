"""The trivial curve of Garipov et al. 2018, appendix A.6: outputs scale, predictions stay, the loss rises."""

from math import log

import pytest
import torch
from torch import nn

from lowloss import Data, LowlossError, MullerBrown, NetworkLandscape, find_path, tabulate, train_minima
from lowloss.finder import Trivial
from lowloss.finder.curve import powers
from lowloss.model import CNN, ConvFC, ResNet
from lowloss.points.path import path_from_tensors
from lowloss.schedule import Cosine


def blobs(shape: tuple[int, ...] = (4,)) -> Data:
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(3, (90,), generator=generator)
    x = torch.randn(90, *shape, generator=generator) + 2 * y.view(-1, *(1,) * len(shape))
    return Data(x, y, x, y, 3)


def test_predictions_stay_and_the_loss_rises() -> None:
    net = nn.Sequential(nn.Linear(4, 12), nn.ReLU(), nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3))
    landscape = NetworkLandscape(net, blobs())
    a_P, b_P = train_minima(landscape, count=2, epochs=60, batch_size=30, schedule=Cosine()).theta_KP
    path = find_path(landscape, a_P, b_P, Trivial()).path
    t_T = path.grid(points=21, between=0)
    assert 0.5 not in t_T.tolist()
    torch.testing.assert_close(path.points(torch.tensor([0.0, 1.0])), torch.stack([a_P, b_P]), rtol=0, atol=0)
    loaded = path_from_tensors(path.kind, path.tensors())
    for t, theta_P in zip(t_T.tolist(), loaded.points(t_T), strict=True):
        end_P, s = (a_P, 1 - 2 * t) if t < 0.5 else (b_P, 2 * t - 1)
        named, at_end = landscape.layout.views(theta_P), landscape.layout.views(end_P)
        for layer, key in enumerate(("0", "2", "4"), start=1):
            torch.testing.assert_close(named[f"{key}.weight"], s * at_end[f"{key}.weight"])
            torch.testing.assert_close(named[f"{key}.bias"], s**layer * at_end[f"{key}.bias"])
        outputs, whole = (next(iter(landscape.outputs(p, "test")))[0] for p in (theta_P, end_P))
        torch.testing.assert_close(outputs, s**3 * whole, rtol=1e-3, atol=1e-5)
        assert torch.equal(outputs.argmax(1), whole.argmax(1))
    table = tabulate(landscape, path.points(t_T))
    assert table["test_error"].unique().numel() <= 2
    assert (table["train_loss"][:11].diff() > 0).all()
    assert (table["train_loss"][11:].diff() < 0).all()
    assert table["train_loss"].max() == pytest.approx(log(3), abs=0.01)
    assert table["train_loss"].max() > 5 * max(table["train_loss"][0], table["train_loss"][-1])


def test_length_by_polygons() -> None:
    landscape = NetworkLandscape(lambda: ConvFC((1, 15, 15), 3, scale=0.004), blobs((1, 15, 15)))
    a_P, b_P = landscape.initial(0), landscape.initial(1)
    path = find_path(landscape, a_P, b_P, Trivial()).path
    assert int(powers(landscape.layout).max()) == 6
    t_T = torch.linspace(0, 1, 401, dtype=torch.float64)
    chords = path.points(t_T).double().diff(dim=0).norm(dim=1)
    assert float(path.lengths(t_T).sum()) == pytest.approx(float(chords.sum()), rel=1e-4)


@pytest.mark.parametrize(
    ("model", "told"),
    [
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.Tanh(), nn.Linear(5, 3)), "needs ReLU networks"),
        (lambda: nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)), "there is 1.weight"),
    ],
)
def test_other_networks_are_refused(model, told) -> None:  # type: ignore[no-untyped-def]
    landscape = NetworkLandscape(model, blobs())
    with pytest.raises(LowlossError, match=told):
        find_path(landscape, landscape.initial(0), landscape.initial(1), Trivial())


def test_shortcuts_and_surfaces_are_refused() -> None:
    landscape = NetworkLandscape(lambda: ResNet((1, 8, 8), 3, depth=8, width=2), blobs((1, 8, 8)))
    with pytest.raises(LowlossError, match="weights and biases alone"):
        find_path(landscape, landscape.initial(0), landscape.initial(1), Trivial())
    assert any(
        "bias" not in name for name in NetworkLandscape(lambda: CNN((1, 8, 8), 3), blobs((1, 8, 8))).layout.names
    )
    a_P, b_P = torch.zeros(2, dtype=torch.float64), torch.ones(2, dtype=torch.float64)
    with pytest.raises(LowlossError, match="needs a network"):
        find_path(MullerBrown(), a_P, b_P, Trivial())
