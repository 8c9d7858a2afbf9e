"""Hessian products through convolutions and held BatchNorms against dense Hessians by torch's own derivatives."""

from contextlib import nullcontext
from functools import partial

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


class Between(Odd):
    """Something lies between a convolution and its BatchNorm, or comes after both."""

    def __init__(self, way):
        super().__init__()
        self.way, self.first = way, nn.Conv2d(2, 4, 3, padding=1)
        if way == "backward hook":
            self.norm.register_full_backward_hook(lambda part, given, along: (given[0] * 0.3,))

    def forward(self, x):
        with torch.no_grad() if self.way == "frozen" else nullcontext():
            h = self.first(x)
        if self.way == "data":
            h.data.mul_(0.5)
        if self.way == "hook" and h.requires_grad:
            h.register_hook(lambda along: along * 0.3)
        n = self.norm(h)
        if self.way == "later hook" and h.requires_grad:
            h.register_hook(lambda along: along * 0.3)
        if self.way == "gradient" and h.requires_grad and not self.norm.training:  # which has no third derivative
            n = n + torch.autograd.grad(n.square().sum(), h, create_graph=True)[0]
        if self.way == "complex":
            n = n + conv2d(h * (1 + 2j), self.second.weight * 1j, padding=1, groups=2).abs().square()
        x = conv2d(n.tanh(), self.second.weight, padding=1, groups=2)
        return self.head(self.last(self.third(x)).flatten(1))


WAYS = ("frozen", "data", "hook", "later hook", "backward hook", "gradient", "complex")

NETWORKS = {
    "odd": Odd,
    "checkpointed": Checkpointed,
    "line": Line,
    **{way: partial(Between, way) for way in WAYS},
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
