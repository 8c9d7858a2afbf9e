"""Networks trained together as rows of one matrix are those trained one at a time, and those of a plain loop."""

from collections.abc import Sequence
from copy import deepcopy
from functools import partial
from math import cos, pi

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from lowloss import Data, NetworkLandscape, train_minima
from lowloss.data import CropFlip
from lowloss.landscape import BatchSource
from lowloss.schedule import Cosine

LR, MOMENTUM, DECAY, SIZE = 0.05, 0.9, 0.01, 8
sgd = partial(torch.optim.SGD, lr=LR, momentum=MOMENTUM, weight_decay=DECAY)


def with_dropout() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 12), nn.ReLU(), nn.Dropout(0.5), nn.Linear(12, 3))


def with_batch_norm() -> nn.Module:
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(16, 3))


class Recording(NetworkLandscape):
    """Keeps the initial points and minibatches that it handed out."""

    points: list[Tensor]
    source: BatchSource

    def initial(self, seed: int) -> Tensor:
        self.points = [*getattr(self, "points", []), super().initial(seed)]
        return self.points[-1]

    def batches(self, size: int, seeds: Sequence[int], shared: bool) -> BatchSource:
        assert not shared
        self.source = super().batches(size, seeds, shared)
        return self.source


@pytest.fixture(params=[with_dropout, with_batch_norm])
def landscape(request: pytest.FixtureRequest) -> Recording:
    x, y = torch.randn(42, 1, 4, 4), torch.arange(42) % 3
    return Recording(request.param, Data(x, y, x[:6], y[:6], augment=CropFlip(padding=1)))


def train(landscape: NetworkLandscape, indices: Sequence[int] | None = None, **arguments: object) -> Tensor:
    keywords = {"epochs": 3, "batch_size": SIZE, "optimizer": sgd, "schedule": Cosine(), "seed": 4} | arguments
    return train_minima(landscape, indices=indices, **keywords).theta_KP


def test_rows_together_are_rows_alone(landscape: Recording) -> None:
    together_KP = train(landscape, count=3)
    assert together_KP.unique(dim=0).shape == (3, landscape.dim)
    for k in range(3):
        torch.testing.assert_close(train(landscape, [k])[0], together_KP[k], rtol=0, atol=1e-6)
    torch.testing.assert_close(train(landscape, [2, 0]), together_KP[[2, 0]], rtol=0, atol=1e-6)
    torch.testing.assert_close(train(landscape, count=2), together_KP[:2], rtol=0, atol=1e-6)
    assert not torch.equal(train(landscape, [0], seed=5)[0], together_KP[0])


def test_rows_are_those_of_a_plain_training_loop(landscape: Recording) -> None:
    found = train_minima(landscape, 2, epochs=3, batch_size=SIZE, optimizer=sgd, schedule=Cosine())
    steps_per_epoch = 42 // SIZE
    steps = 3 * steps_per_epoch
    assert not isinstance(landscape.model, nn.Module)
    losses = torch.zeros(2, steps)
    for k in range(2):
        module = deepcopy(landscape.model()).train()
        vector_to_parameters(landscape.points[k].clone(), module.parameters())
        optimizer = sgd(module.parameters())
        for step in range(steps):
            for group in optimizer.param_groups:
                group["lr"] = LR * 0.5 * (1 + cos(pi * step / steps))
            batch = landscape.source[step]
            assert batch is not None
            torch.manual_seed(batch.seeds[k])
            loss = cross_entropy(module(batch.x[k]), batch.y[k])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            losses[k, step] = loss.detach()
        torch.testing.assert_close(found.theta_KP[k], parameters_to_vector(module.parameters()), rtol=1e-4, atol=1e-5)
    # An epoch a row: the step, its rate and the mean loss of each network.
    for epoch, (step, rate, *means) in enumerate(found.history, start=1):
        assert step == epoch * steps_per_epoch
        assert rate == pytest.approx(LR * 0.5 * (1 + cos(pi * (step - 1) / steps)))
        expected = losses[:, (epoch - 1) * steps_per_epoch : epoch * steps_per_epoch].mean(1)
        assert means == pytest.approx(expected.tolist(), rel=1e-4)
    assert len(found.history) == 3


def test_a_fraction_of_an_epoch_is_a_number_of_steps(landscape: Recording) -> None:
    found = train_minima(landscape, 1, epochs=1.4, batch_size=SIZE, optimizer=sgd)
    assert [row[0] for row in found.history] == [5, 7]
