"""Statistics of a whole split in parts, and evaluation and Hessian products in parts, against all at once."""

import threading

import pytest
import torch
from torch import nn

from lowloss import Data, LowlossError, NetworkLandscape
from lowloss.landscape.engine.loop import PART
from lowloss.landscape.engine.parts import Parts
from lowloss.model import DenseNet, ResNet


class Shared(nn.Module):
    """One BatchNorm at two places, and one without scale and shift."""

    def __init__(self):
        super().__init__()
        self.layers, self.norm = nn.ModuleList(nn.Linear(6, 6) for _ in range(2)), nn.BatchNorm1d(6)
        self.last, self.head = nn.BatchNorm1d(6, affine=False), nn.Linear(6, 3)

    def forward(self, x):
        x = x.flatten(1)[:, :6]
        for layer in self.layers:
            x = torch.tanh(self.norm(layer(x)))
        return self.head(self.last(x))


class Wandering(Shared):
    """Passes a BatchNorm or not as its samples have it."""

    def forward(self, x):
        x = x.flatten(1)[:, :6]
        return self.head(self.last(x) if x[0, 0] > 0 else self.norm(x))


NETWORKS = {
    "resnet": lambda: ResNet((3, 8, 8), 3, depth=8, width=4, shortcuts="projection"),
    "densenet": lambda: DenseNet((3, 8, 8), 3, depth=10, growth=4),
    "shared": Shared,
}


def landscape(make, samples=103):
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(samples, 3, 8, 8, generator=generator, dtype=torch.float64)
    y = torch.randint(3, (samples,), generator=generator)
    return NetworkLandscape(lambda: make().double(), Data(x, y, x[:40], y[:40]), evaluation_batch=samples)


@pytest.mark.parametrize("network", NETWORKS)
def test_statistics_of_the_whole_split_are_the_same_in_parts(network):
    land = landscape(NETWORKS[network])
    theta_P = land.initial(0)
    whole = land.statistics(theta_P)
    shapes = []
    hook = land.loop.module.register_forward_pre_hook(lambda module, inputs: shapes.append(len(inputs[0])))
    assert land.loop.part == PART
    land.loop.part = 20
    land._statistics = None
    threads = threading.active_count()
    parts = land.statistics(theta_P)
    hook.remove()
    assert shapes == [2, 18] + [17] * 5  # two samples tell which BatchNorms there are
    assert whole.keys() == parts.keys()
    for name, buffer in whole.items():
        torch.testing.assert_close(parts[name], buffer, rtol=1e-12, atol=1e-13)
    assert threading.active_count() == threads
    assert not any("forward" in vars(module) for module in land.loop.module.modules())


def test_an_error_in_a_part_is_told_and_leaves_the_module_as_it_was():
    land = landscape(Wandering)
    theta_P, threads = land.initial(0), threading.active_count()
    expected = land.statistics(theta_P)
    land.loop.part = 20
    land._statistics = None
    with pytest.raises(LowlossError, match="set evaluation_batch below"):
        land.statistics(theta_P)
    assert threading.active_count() == threads
    land.loop.part = 1000
    for name, buffer in land.statistics(theta_P).items():
        assert torch.equal(buffer, expected[name])


def test_parts_are_halved_where_the_memory_is_short():
    parts, asked = Parts(40), []

    def work(span):
        asked.append(span.stop - span.start)
        if asked[-1] > 12:
            raise torch.OutOfMemoryError("no room")
        return list(range(100))[span]

    assert [k for part in parts(work, 100) for k in part] == list(range(100))
    assert asked[:3] == [34, 17, 8]
    assert max(asked[2:]) <= 8 == parts.size
    with pytest.raises(torch.OutOfMemoryError):
        list(Parts(40)(lambda span: work(slice(0, 100)), 100))


def test_hessian_products_are_the_same_in_parts():
    land = landscape(NETWORKS["resnet"])
    theta_KP = torch.stack([land.initial(seed) for seed in range(3)])
    v_KP = torch.randn(3, land.dim, dtype=torch.float64)
    whole = land.product(theta_KP, v_KP, "train")
    land._product_parts = Parts(10)
    torch.testing.assert_close(land.product(theta_KP, v_KP, "train"), whole, rtol=1e-9, atol=1e-12)
    # Some of them later, at the statistics that are known.
    asked = []
    land.loop.statistics = lambda *arguments: asked.append(arguments)
    torch.testing.assert_close(land.product(theta_KP[[2, 0]], v_KP[[2, 0]], "train"), whole[[2, 0]])
    assert not asked
