"""Hessian products through convolutions and held BatchNorms against dense Hessians by torch's own derivatives."""

import pytest
import torch
from torch import nn
from torch.func import functional_call
from torch.nn.functional import conv2d, cross_entropy
from torch.utils.checkpoint import checkpoint

from lowloss import Data, NetworkLandscape
from lowloss.landscape.engine import twice
from lowloss.model import ResNet


class Odd(nn.Module):
    """Convolutions that are called otherwise, one whose outputs go two ways, and one that is changed in its place."""

    def __init__(self):
        super().__init__()
        self.first, self.norm = nn.Conv2d(2, 4, 3, padding="same"), nn.BatchNorm2d(4)
        self.second, self.other = nn.Conv2d(4, 4, 3, padding=1, groups=2), nn.BatchNorm2d(4, affine=False)
        self.third, self.last = nn.Conv2d(4, 3, (3, 2), stride=2, dilation=(1, 2)), nn.BatchNorm2d(3)
        self.head = nn.Linear(12, 3)

    def forward(self, x):
        x = torch.tanh(self.norm(self.first(x)))
        y = self.second(x)
        x = torch.tanh(self.other(y) + y)
        x = x + torch.tanh(conv2d(weight=self.second.weight, input=x, bias=None, padding=1, groups=2))
        x = self.third(torch.relu(x) + nn.functional.relu(x - 0.1, inplace=True))
        x = self.last(x.tanh_())
        return self.head(x.flatten(1))


class Checkpointed(Odd):
    def forward(self, x):
        return checkpoint(super().forward, x, use_reentrant=False)


class Line(nn.Sequential):
    def __init__(self):
        layers = nn.Conv1d(2, 3, 3, stride=2), nn.BatchNorm1d(3), nn.Tanh(), nn.Flatten(), nn.Linear(36, 3)
        super().__init__(nn.Flatten(2), *layers)


NETWORKS = {
    "odd": Odd,
    "checkpointed": Checkpointed,
    "line": Line,
    "resnet": lambda: ResNet((2, 5, 5), 3, depth=8, width=2, shortcuts="projection"),
}


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("statistics", ["held", "batch"])
def test_products_are_those_of_the_dense_hessian(network, statistics, monkeypatch):
    generator = torch.Generator().manual_seed(0)
    x, y = torch.randn(12, 2, 5, 5, generator=generator).double(), torch.randint(3, (12,), generator=generator)
    land = NetworkLandscape(lambda: NETWORKS[network]().double(), Data(x, y, x, y), evaluation_batch=12)
    theta_P = land.initial(0)
    theta_P = theta_P + 0.1 * torch.randn(theta_P.shape, generator=generator)
    v_P = torch.randn(theta_P.shape, generator=generator).double()
    used, apply = [], twice._Convolution.apply
    monkeypatch.setattr(twice._Convolution, "apply", lambda *given: used.append(given) or apply(*given))
    found_P = land.product(theta_P[None], v_P[None], "train", statistics)[0]
    assert used
    module, buffers = land.loop.module, land.statistics(theta_P)
    module.train(statistics == "batch")
    if network == "checkpointed":  # whose parts would run again without the given parameters
        module.__class__ = Odd

    def gradient(at_P):
        # BatchNorm changes those that it is given in training.
        given = {name: buffer.clone() for name, buffer in buffers.items()}
        loss = cross_entropy(functional_call(module, {**land.layout.views(at_P), **given}, (x,)), y)
        return torch.autograd.grad(loss, at_P, create_graph=True)[0]

    at_P = theta_P.clone().requires_grad_()
    expected_P = torch.autograd.grad(gradient(at_P) @ v_P, at_P)[0]
    torch.testing.assert_close(found_P, expected_P, rtol=1e-9, atol=1e-11)
