"""Exact evaluation: BatchNorm statistics by hand, ends of paths, order of samples, modules handed out."""

from collections.abc import Callable
from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.utils import vector_to_parameters

from lowloss import AutoNEB, BezierCurve, Data, Line, NetworkLandscape, PolygonalChain
from lowloss.finder import Finder


def random_data(samples: int = 60, dtype: torch.dtype = torch.float64) -> Data:
    def split(count: int) -> tuple[Tensor, Tensor]:
        return torch.randn(count, 1, 4, 4, dtype=dtype), torch.randint(3, (count,))

    return Data(*split(samples), *split(25), num_classes=3)


def deep(dtype: torch.dtype = torch.float64) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout2d(0.3), nn.Flatten(), nn.Linear(16, 8),
        nn.BatchNorm1d(8, momentum=0.3), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3),
    ).to(dtype)  # fmt: skip


def shallow() -> nn.Module:
    return nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Linear(8, 3)).double()


def at(module: nn.Module, theta_P: Tensor) -> nn.Module:
    module = deepcopy(module)
    vector_to_parameters(theta_P, module.parameters())
    return module


def outputs(landscape: NetworkLandscape, theta_P: Tensor, split: str) -> Tensor:
    """The outputs (N, C) of a point on a whole split."""
    return torch.cat([chunk for chunk, _ in landscape.outputs(theta_P, split)])


def assert_evaluates(
    landscape: NetworkLandscape, theta_KP: Tensor, k: int, split: str, logits_NC: Tensor, y_N: Tensor
) -> None:
    result = landscape.evaluate(theta_KP, split)
    assert result["loss"].dtype == result["error"].dtype == torch.float64
    torch.testing.assert_close(result["loss"][k], cross_entropy(logits_NC, y_N), rtol=1e-9, atol=1e-9)
    assert result["error"][k] == (logits_NC.argmax(1) != y_N).sum().item() / len(y_N)
    torch.testing.assert_close(outputs(landscape, theta_KP[k], split).to(logits_NC), logits_NC)


def random_points(landscape: NetworkLandscape, count: int) -> Tensor:
    return torch.stack([landscape.initial(seed) for seed in range(count)]) * 1.5


def test_without_batch_norm_it_is_a_plain_forward_pass_in_any_number_of_chunks() -> None:
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3)).double()
    data = random_data()
    for chunk in (7, 60, 1000):
        landscape = NetworkLandscape(module, data, evaluation_batch=chunk)
        theta_KP = random_points(landscape, 2)
        for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
            for k, theta_P in enumerate(theta_KP):
                assert_evaluates(landscape, theta_KP, k, split, at(module, theta_P).eval()(x).detach(), y)


@torch.no_grad()
def test_statistics_by_hand_where_one_chunk_covers_the_data() -> None:
    data = random_data()
    landscape = NetworkLandscape(shallow(), data)
    theta_KP = random_points(landscape, 2)
    for split, x, y in (("train", data.x_train, data.y_train), ("test", data.x_test, data.y_test)):
        for k, theta_P in enumerate(theta_KP):
            _, first, norm, _, last = at(shallow(), theta_P)
            # The statistics are the training data's on both splits; running_var is the unbiased variance.
            units_NU = first(data.x_train.flatten(1))
            mean_U, variance_U = units_NU.mean(0), units_NU.var(0, unbiased=True)
            normal = (first(x.flatten(1)) - mean_U) / (variance_U + norm.eps).sqrt() * norm.weight + norm.bias
            assert_evaluates(landscape, theta_KP, k, split, last(normal.relu()), y)


@torch.no_grad()
def test_statistics_of_deep_networks_are_those_of_one_forward_pass_without_dropout() -> None:
    data = random_data()
    landscape = NetworkLandscape(deep(), data)
    theta_KP = random_points(landscape, 2)
    for k, theta_P in enumerate(theta_KP):
        module = at(deep(), theta_P).train()
        for part in module:
            if isinstance(part, _BatchNorm):
                part.momentum = 1.0  # the running statistics are the last batch's
            elif isinstance(part, (nn.Dropout, nn.Dropout2d)):
                part.eval()
        module(data.x_train)
        assert_evaluates(landscape, theta_KP, k, "test", module.eval()(data.x_test), data.y_test)


SEEN: list[Tensor] = []
WITH_GRADIENTS: list[bool] = []


class Recorder(nn.Module):
    """Keeps the inputs of forward passes in training mode of its BatchNorm, and whether they are differentiated."""

    def __init__(self) -> None:
        super().__init__()
        self.norm, self.linear = nn.BatchNorm1d(5, dtype=torch.float64), nn.Linear(5, 3, dtype=torch.float64)

    def forward(self, x: Tensor) -> Tensor:
        if self.norm.training:
            SEEN.append(x)
            WITH_GRADIENTS.append(torch.is_grad_enabled())
        return self.linear(self.norm(x))


@torch.no_grad()
def test_statistics_of_several_chunks_are_averaged() -> None:
    x, y = torch.randn(60, 5, dtype=torch.float64).cumsum(0), torch.arange(60) % 3
    data = Data(x, y, x[:9], y[:9], augment=lambda x_B, generator: x_B * 0)
    landscape = NetworkLandscape(Recorder, data, evaluation_batch=20)
    theta_P = landscape.initial(0)
    SEEN.clear()
    WITH_GRADIENTS.clear()
    landscape.evaluate(theta_P[None], "test")
    # One pass over the training data as they are, each sample once, in equal chunks.
    assert [len(chunk) for chunk in SEEN] == [20, 20, 20]
    assert torch.equal(torch.cat(SEEN).sort(0).values, x.sort(0).values)
    module = at(Recorder(), theta_P)
    mean = sum(chunk.mean(0) for chunk in SEEN) / 3
    variance = sum(chunk.var(0, unbiased=True) for chunk in SEEN) / 3
    normal = (x[:9] - mean) / (variance + module.norm.eps).sqrt() * module.norm.weight + module.norm.bias
    assert_evaluates(landscape, theta_P[None], 0, "test", module.linear(normal), y[:9])
    # A second split of the same points needs no second pass; other points do, in the same tensor as well.
    SEEN.clear()
    landscape.evaluate(theta_P[None], "train")
    assert SEEN == []
    moving_KP = theta_P[None] + 1
    landscape.evaluate(moving_KP)
    moving_KP -= 0.5
    loss_K = landscape.evaluate(moving_KP)["loss"]
    assert len(SEEN) == 6
    assert not any(WITH_GRADIENTS)
    assert torch.equal(NetworkLandscape(Recorder, data, evaluation_batch=20).evaluate(moving_KP)["loss"], loss_K)


@torch.no_grad()
def test_samples_sorted_by_class_do_not_spoil_the_statistics() -> None:
    y = torch.arange(1200) // 400
    # The classes lie far apart: chunks of one class have a seventh of the whole data's variance.
    x = torch.randn(1200, 5, dtype=torch.float64) + 3 * y[:, None]
    shuffled = torch.randperm(1200)
    whole = NetworkLandscape(Recorder, Data(x, y, x, y), evaluation_batch=1200)
    in_order = NetworkLandscape(Recorder, Data(x, y, x, y), evaluation_batch=100)
    mixed = NetworkLandscape(Recorder, Data(x[shuffled], y[shuffled], x, y), evaluation_batch=100)
    theta_KP = random_points(whole, 2)
    expected_K = whole.evaluate(theta_KP)["loss"]
    torch.testing.assert_close(in_order.evaluate(theta_KP)["loss"], expected_K, rtol=0.02, atol=0)
    torch.testing.assert_close(mixed.evaluate(theta_KP)["loss"], expected_K, rtol=0.02, atol=0)
    # What chunks of one class would have given is far away.
    module = at(Recorder(), theta_KP[0])
    variance = torch.stack([chunk.var(0) for chunk in x.split(100)]).mean(0)
    normal = (x - x.mean(0)) / variance.sqrt() * module.norm.weight + module.norm.bias
    assert abs(cross_entropy(module.linear(normal), y) / expected_K[0] - 1) > 0.1


def test_a_last_chunk_is_never_a_single_sample() -> None:
    data = random_data(samples=41)
    landscape = NetworkLandscape(deep(), data, evaluation_batch=20)
    assert landscape.evaluate(random_points(landscape, 1))["loss"].isfinite().all()


def test_order_of_points_does_not_matter() -> None:
    landscape = NetworkLandscape(deep(), random_data())
    theta_KP = random_points(landscape, 3)
    together = landscape.evaluate(theta_KP)["loss"]
    alone = torch.cat([landscape.evaluate(theta_P[None])["loss"] for theta_P in theta_KP.flip(0)])
    assert torch.equal(together, alone.flip(0))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    "finder", [Line, lambda: BezierCurve(bends=2), lambda: PolygonalChain(bends=3), lambda: AutoNEB(pivots=4)]
)
def test_ends_of_a_path_reproduce_the_end_networks(finder: Callable[[], Finder], dtype: torch.dtype) -> None:
    landscape = NetworkLandscape(deep(dtype), random_data(dtype=dtype), evaluation_batch=20)
    a_P, b_P = random_points(landscape, 2)
    path = finder().start(a_P, b_P)
    bends_BP = path.bends_BP + 0
    bends_BP[1:-1] += torch.randn_like(bends_BP[1:-1])
    path = path.with_bends(bends_BP)
    theta_TP = path.points(path.grid(points=5, between=1))
    for split in landscape.splits:
        own = [landscape.evaluate(theta_P[None], split) for theta_P in (a_P, b_P)]
        along = landscape.evaluate(theta_TP, split)
        for t, theta_P, end in ((0, a_P, own[0]), (-1, b_P, own[1])):
            assert along["loss"][t] == end["loss"][0]
            assert along["error"][t] == end["error"][0]
            assert torch.equal(outputs(landscape, theta_TP[t], split), outputs(landscape, theta_P, split))


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.norm, self.inner, self.tied = nn.BatchNorm1d(16), nn.Linear(16, 16), nn.Linear(16, 16)
        self.tied.weight = self.inner.weight
        self.out = nn.Linear(16, 3).requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        return self.out(self.tied(self.norm(self.inner(x.flatten(1)).relu())))


def repeated() -> nn.Module:
    layer, norm = nn.Linear(16, 16), nn.BatchNorm1d(16)
    return nn.Sequential(nn.Flatten(), layer, norm, nn.ReLU(), layer, norm, nn.Linear(16, 3))


@torch.no_grad()
@pytest.mark.parametrize("build", [deep, shallow, Tied, repeated])
def test_a_module_handed_out_gives_the_evaluated_logits(build: Callable[[], nn.Module]) -> None:
    given = build().double()
    data = random_data()
    landscape = NetworkLandscape(given, data)
    theta_KP = random_points(landscape, 2)
    result = landscape.evaluate(theta_KP, "test")
    modules = [landscape.module(theta_P) for theta_P in theta_KP]
    for k, module in enumerate(modules):
        assert not any(part.training for part in module.modules())
        assert all(isinstance(parameter, nn.Parameter) for parameter in module.parameters())
        assert_evaluates(landscape, theta_KP, k, "test", module(data.x_test), data.y_test)
        assert torch.equal(landscape.point(module), theta_KP[k])
        momenta = [[part.momentum for part in m.modules() if isinstance(part, _BatchNorm)] for m in (module, given)]
        assert momenta[0] == momenta[1]
    # It is the user's own: the landscape keeps nothing of it.
    for parameter in modules[0].parameters():
        parameter.zero_()
    assert torch.equal(landscape.evaluate(theta_KP, "test")["loss"], result["loss"])


def test_unknown_split() -> None:
    landscape = NetworkLandscape(shallow(), random_data())
    with pytest.raises(ValueError, match="splits are train, test"):
        landscape.evaluate(random_points(landscape, 1), "validation")
