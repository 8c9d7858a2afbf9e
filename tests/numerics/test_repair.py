"""REPAIR: the statistics of the corrected midpoint are those between the ends', computed by hand layer by layer."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils.parametrizations import weight_norm

from lowloss.data import Data
from lowloss.errors import LowlossError
from lowloss.landscape import NetworkLandscape
from lowloss.model import CNN
from lowloss.symmetry import derive_symmetries, repaired

X = torch.randn(80, 2, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def landscape_of(module):
    y = torch.arange(80) % 4
    return NetworkLandscape(module.double(), Data(X, y, X[:20], y[:20], 4))


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(2, 5, 3, padding=1), nn.ReLU(), nn.Conv2d(5, 6, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(24, 8), nn.ReLU(), nn.Linear(8, 4),
    )  # fmt: skip


def preactivations(landscape, theta_P):
    """Those of the three hidden layers (samples and positions, units), by hand."""
    w = landscape.layout.views(theta_P)
    one = F.conv2d(X, w["0.weight"], w["0.bias"], padding=1)
    two = F.conv2d(one.relu(), w["2.weight"], w["2.bias"], stride=2)
    three = two.relu().flatten(1) @ w["5.weight"].T + w["5.bias"]
    return [one.permute(0, 2, 3, 1).reshape(-1, 5), two.permute(0, 2, 3, 1).reshape(-1, 6), three]


def moments(rows):
    return rows.mean(0), ((rows - rows.mean(0)) ** 2).mean(0).sqrt()


def points(landscape):
    generator = torch.Generator().manual_seed(1)
    start_P = landscape.point(landscape.loop.module)
    return [start_P + 0.3 * torch.randn(landscape.dim, generator=generator, dtype=torch.float64) for _ in range(2)]


@pytest.mark.parametrize("t", [0.5, 0.2])
def test_statistics_of_the_repaired_network_are_those_between_the_ends(t):
    landscape = landscape_of(network())
    a_P, b_P = points(landscape)
    symmetries = derive_symmetries(landscape.loop.module, X[:2])
    found_P = repaired(landscape, symmetries, a_P, b_P, X, t)
    of_a, of_b, of_mean, of_found = (
        preactivations(landscape, point_P) for point_P in (a_P, b_P, (1 - t) * a_P + t * b_P, found_P)
    )
    for a, b, mean, found in zip(of_a, of_b, of_mean, of_found, strict=True):
        for one, other, _, mended in zip(*map(moments, (a, b, mean, found)), strict=True):
            wanted = (1 - t) * one + t * other
            assert torch.allclose(mended, wanted, rtol=1e-9, atol=1e-9)
        # At the midpoint itself units vary less, as the paper has it.
        assert (moments(mean)[1] < 0.95 * moments(found)[1]).all()
    # The outputs' own layer is the mean of both.
    w, (u, v) = (landscape.layout.views(found_P), (landscape.layout.views(end_P) for end_P in (a_P, b_P)))
    assert torch.allclose(w["7.weight"], (1 - t) * u["7.weight"] + t * v["7.weight"])


def test_weight_norm_is_repaired_by_its_lengths():
    torch.manual_seed(0)
    layers = [weight_norm(nn.Linear(72, 9)), nn.ReLU(), weight_norm(nn.Linear(9, 8)), nn.ReLU(), nn.Linear(8, 4)]
    landscape = landscape_of(nn.Sequential(nn.Flatten(), *layers))
    a_P, b_P = points(landscape)
    symmetries = derive_symmetries(landscape.loop.module, X[:2])
    found_P = repaired(landscape, symmetries, a_P, b_P, X)
    for depth in (2, 4):
        modules = (landscape.module(point_P)[:depth] for point_P in (a_P, b_P, found_P))
        one, other, mended = (moments(module(X)) for module in modules)
        for k in range(2):
            assert torch.allclose(mended[k], (one[k] + other[k]) / 2, rtol=1e-9, atol=1e-9)


def test_layers_that_share_a_weight_stay_the_mean():
    torch.manual_seed(0)
    layers = [nn.Flatten(), nn.Linear(72, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU(), nn.Linear(6, 6), nn.ReLU()]
    layers[5].weight = layers[3].weight
    landscape = landscape_of(nn.Sequential(*layers, nn.Linear(6, 4)))
    a_P, b_P = points(landscape)
    found_P = repaired(landscape, derive_symmetries(landscape.loop.module, X[:2]), a_P, b_P, X)
    one, other, mended = (moments(landscape.module(point_P)[:2](X)) for point_P in (a_P, b_P, found_P))
    for k in range(2):
        assert torch.allclose(mended[k], (one[k] + other[k]) / 2, rtol=1e-9, atol=1e-9)
    w, mean = landscape.layout.views(found_P), landscape.layout.views((a_P + b_P) / 2)
    for name in ("3.weight", "3.bias", "5.bias"):
        assert torch.allclose(w[name], mean[name])


def test_a_network_between_itself_is_itself():
    landscape = landscape_of(network())
    a_P, _ = points(landscape)
    symmetries = derive_symmetries(landscape.loop.module, X[:2])
    assert torch.allclose(repaired(landscape, symmetries, a_P, a_P, X), a_P, rtol=1e-9, atol=1e-12)


def test_a_constant_unit_is_only_shifted():
    landscape = landscape_of(network())
    a_P, b_P = points(landscape)
    for end_P, sign in ((a_P, 1), (b_P, -1)):  # opposite filters cancel in the mean
        w = landscape.layout.views(end_P)
        w["0.weight"][3] = sign
        w["0.bias"][3] = 2.0 + sign
    symmetries = derive_symmetries(landscape.loop.module, X[:2])
    found_P = repaired(landscape, symmetries, a_P, b_P, X)
    wanted = sum(preactivations(landscape, end_P)[0][:, 3].mean() for end_P in (a_P, b_P)) / 2
    assert (preactivations(landscape, found_P)[0][:, 3] - wanted).abs().max() < 1e-12
    assert found_P.isfinite().all()


def test_what_cannot_be_repaired_is_told_in_a_line():
    landscape = landscape_of(CNN((2, 6, 6), 4, width=3, depth=2, hidden=5))
    symmetries = derive_symmetries(landscape.loop.module, X[:2])
    a_P = landscape.initial(0)
    with pytest.raises(LowlossError, match=r"^a network with BatchNorm needs no REPAIR: its statistics are recomputed"):
        repaired(landscape, symmetries, a_P, a_P + 1, X)
    landscape = landscape_of(nn.Sequential(nn.Flatten(), nn.Linear(72, 5, bias=False), nn.ReLU(), nn.Linear(5, 4)))
    symmetries = derive_symmetries(landscape.loop.module, X[:2])
    a_P = landscape.initial(0)
    with pytest.raises(LowlossError, match=r"^no hidden layer has a bias, which REPAIR shifts$"):
        repaired(landscape, symmetries, a_P, a_P + 1, X)
