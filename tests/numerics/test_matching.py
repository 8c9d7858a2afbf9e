"""Alignment: a permuted copy is found exactly, and one group is matched as an enumeration does."""

from copy import deepcopy
from itertools import permutations

import pytest
import torch
from scipy.optimize import linear_sum_assignment
from torch import nn
from torch.nn.utils.parametrizations import weight_norm

from lowloss.data import Data
from lowloss.errors import LowlossError
from lowloss.landscape import Layout, NetworkLandscape
from lowloss.model import CNN, MLP, DenseNet, ResNet
from lowloss.symmetry import align, derive_symmetries, match_activations, match_weights

SHAPE = (1, 8, 8)
NETWORKS = {
    "mlp": lambda: MLP(SHAPE, 10, [20, 14, 9]),
    # Behind tanh units may change their signs too, with BatchNorm between or without.
    "tanh": lambda: nn.Sequential(
        *(nn.Flatten(), nn.Linear(64, 9), nn.BatchNorm1d(9), nn.Tanh()), *(nn.Linear(9, 7), nn.Tanh(), nn.Linear(7, 10))
    ),
    "cnn with BatchNorm": lambda: CNN(SHAPE, 10, width=7, depth=2, hidden=16),
    "resnet": lambda: ResNet(SHAPE, 10, depth=14, width=4),
    "densenet": lambda: DenseNet(SHAPE, 10, depth=10, growth=5),
    # The weights of transposed convolutions have their inputs first.
    "decoder": lambda: nn.Sequential(
        nn.Conv2d(1, 6, 3, 2),
        nn.ReLU(),
        nn.ConvTranspose2d(6, 9, 2, 2),
        nn.Tanh(),
        nn.ConvTranspose2d(9, 5, 3),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(5 * 8 * 8, 10),
    ),
    "resnext": lambda: nn.Sequential(
        *(nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Conv2d(8, 12, 3, groups=2), nn.InstanceNorm2d(12, affine=True), nn.ReLU()),
        *(nn.Conv2d(12, 12, 3, groups=12), nn.ReLU(), nn.ConvTranspose2d(12, 6, 2, groups=3), nn.ReLU()),
        *(nn.Flatten(), nn.Linear(6 * 9, 10)),
    ),
    "weight_norm": lambda: nn.Sequential(
        *(nn.Flatten(), weight_norm(nn.Linear(64, 9)), nn.ReLU(), weight_norm(nn.Linear(9, 7)), nn.Tanh()),
        nn.Linear(7, 10),
    ),
    "transformer": lambda: nn.Sequential(
        nn.Flatten(2),
        nn.Unflatten(1, (1, 1)),
        nn.Flatten(1, 2),
        nn.Linear(64, 8),
        nn.TransformerEncoder(nn.TransformerEncoderLayer(8, 4, 12, dropout=0.0, batch_first=True), 2),
        nn.Flatten(),
        nn.Linear(8, 10),
    ),
}


def landscape_of(name):
    torch.manual_seed(0)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(60, *SHAPE, generator=generator)
    return NetworkLandscape(NETWORKS[name](), Data(x, torch.arange(60) % 10, x[:20], torch.arange(20) % 10, 10))


@pytest.mark.parametrize("by", ["weights", "activations"])
@pytest.mark.parametrize("name", NETWORKS)
def test_a_permuted_copy_is_found_exactly(name, by):
    landscape = landscape_of(name)
    symmetries = derive_symmetries(landscape.loop.module, landscape.data.x_train[:2])
    assert symmetries.groups
    noise_P = 0.05 * torch.randn(landscape.dim, generator=torch.Generator().manual_seed(1))
    a_P = landscape.point(landscape.loop.module) + noise_P  # a normalisation's parameters are no more alike
    if name == "mlp":  # and two units give nothing behind their nonlinearity
        landscape.layout.views(a_P)["layers.1.bias"][[3, 8]] = -100
    b_P = symmetries.permuted(a_P, symmetries.random(5))
    odd = [group.name for group in symmetries.groups if group.odd]
    assert len(odd) == {"tanh": 2, "transformer": 2, "decoder": 1, "weight_norm": 1}.get(name, 0)
    assert (a_P != b_P).float().mean() > 0.5
    aligned_P, _ = align(landscape, a_P, b_P, by)
    assert torch.equal(aligned_P, a_P)
    # Nothing changes what is aligned already.
    assert torch.equal(align(landscape, a_P, aligned_P, by)[0], a_P)


def test_a_copy_of_a_network_with_an_embedding_is_found():
    torch.manual_seed(0)
    a = nn.Sequential(nn.Embedding(30, 8), nn.ReLU(), nn.Flatten(), nn.Linear(8 * 5, 7))
    x, layout = torch.randint(30, (60, 5)), Layout.of(a)
    symmetries, a_P = derive_symmetries(a, x[:2]), layout.flatten(dict(a.named_parameters()))
    b_P, b = symmetries.permuted(a_P, symmetries.random(1)), deepcopy(a)
    b.load_state_dict(layout.views(b_P))
    assert torch.equal(symmetries.permuted(b_P, match_activations(symmetries, a, b, x)), a_P)


def test_one_group_is_matched_as_by_enumeration():
    torch.manual_seed(0)
    a, b = MLP((3,), 2, [6]), MLP((3,), 2, [6])
    symmetries, layout = derive_symmetries(a, torch.randn(2, 3)), Layout.of(a)
    a_P, b_P = (layout.flatten(dict(net.named_parameters())).double() for net in (a, b))
    w, v = (layout.views(point) for point in (a_P, b_P))
    first, bias, second = "layers.1.weight", "layers.1.bias", "layers.3.weight"
    best = min(
        sum(
            float((w[name] - moved).square().sum())
            for name, moved in (
                (first, v[first][list(sigma)]),
                (bias, v[bias][list(sigma)]),
                (second, v[second][:, list(sigma)]),
            )
        )
        for sigma in permutations(range(6))
    )
    (sigma_N,) = match_weights(symmetries, a_P, b_P).values()
    aligned = layout.views(symmetries.permuted(b_P, {"layers.1": sigma_N}))
    assert sum(float((w[n] - aligned[n]).square().sum()) for n in (first, bias, second)) == pytest.approx(best)


def test_matching_brings_networks_closer():
    landscape = landscape_of("resnet")
    a_P, b_P = landscape.initial(1), landscape.initial(2)
    aligned_P, symmetries = align(landscape, a_P, b_P, "weights")
    assert (a_P - aligned_P).norm() < (a_P - b_P).norm()
    # No swap of two units of any group comes closer: it is a local optimum of the assignment.
    for group in symmetries.groups:
        sigma_N = torch.arange(group.size)
        sigma_N[[0, 1]] = sigma_N[[1, 0]]
        swapped_P = symmetries.permuted(aligned_P, {group.name: sigma_N})
        assert (a_P - swapped_P).norm() >= (a_P - aligned_P).norm() - 1e-5


def test_activations_are_matched_behind_the_nonlinearity():
    torch.manual_seed(0)
    x = torch.randn(150, 3)
    a, b = (nn.Sequential(nn.Linear(3, 20), nn.ReLU(), nn.Linear(20, 2)) for _ in range(2))
    symmetries = derive_symmetries(a, x[:2])
    before, behind = (
        torch.tensor(linear_sum_assignment(torch.corrcoef(torch.cat([of(a), of(b)], 1).T)[:20, 20:].detach(), True)[1])
        for of in (lambda net: net[0](x), lambda net: net[:2](x))
    )
    assert not torch.equal(before, behind)
    assert torch.equal(match_activations(symmetries, a, b, x)["0"], behind)


@pytest.mark.parametrize("by", ["weight", "STE", None])
def test_only_known_ways_align(by):
    landscape = landscape_of("mlp")
    with pytest.raises(LowlossError, match=rf"^by must be weights, activations or ste, got {by!r}$"):
        align(landscape, landscape.initial(1), landscape.initial(2), by)


@pytest.mark.parametrize("by", ["weights", "activations", "ste"])
def test_points_that_are_not_finite_are_refused(by):
    landscape = landscape_of("mlp")
    a_P, b_P = landscape.initial(1), landscape.initial(2)
    b_P[7] = torch.nan
    with pytest.raises(LowlossError, match=r"^b holds NaN or infinite values, which cannot be matched"):
        align(landscape, a_P, b_P, by)
