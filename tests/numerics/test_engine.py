"""The engine's parts against the plain loop and against float64, on whatever processor there is."""

import random
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, dropout, linear
from torchvision.models import mobilenet_v2

from lowloss import Classification, Data, LowlossError, NetworkLandscape, tabulate, train_minima
from lowloss.landscape import Batch, Engine, Layout
from lowloss.landscape.engine import convolution
from lowloss.landscape.engine.capture import compiled, differentiated, laid_out
from lowloss.landscape.engine.checked import Trust
from lowloss.landscape.engine.folded import FoldedDropout, FoldedLinear, fold, separate, widen
from lowloss.landscape.engine.graph import Graph
from lowloss.landscape.engine.loop import Loop
from lowloss.model import CNN, MLP, VGG16, DenseNet, ResNet, WideResNet

IMAGE = (3, 32, 32)
TASK = Classification(10)
FAMILIES = {
    "mlp": partial(MLP, hidden=(32, 16), batch_norm=True),
    "cnn": partial(CNN, width=6, depth=2, hidden=16),
    "resnet": partial(ResNet, depth=8, width=8),
    "wide resnet": partial(WideResNet, depth=10, widen=1),
    "densenet": partial(DenseNet, depth=7, growth=4),
    "densenet-bc": partial(DenseNet, depth=10, growth=4, bottleneck=True),
    "vgg": partial(VGG16, dropout=0.0),
    "vgg-bn": partial(VGG16, batch_norm=True, dropout=0.0),
    "other norms": lambda input_shape, num_classes: nn.Sequential(
        nn.Conv2d(3, 8, 3, stride=2, bias=True),
        nn.GroupNorm(2, 8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, groups=2, dilation=2),
        nn.Flatten(),
        nn.LayerNorm(968),
        nn.Linear(968, num_classes),
    ),
}


def joined(chunks):
    """The outputs of all chunks."""
    return torch.cat(list(chunks))


def labelled(x):
    """Inputs with targets, which an engine is compared on."""
    return x, torch.zeros(len(x), dtype=torch.int64)


def engines(module, step=torch.float32, evaluation=torch.float32):
    layout = Layout.of(module)
    loop = Loop(module, layout, TASK)
    return loop, Graph(loop, labelled(torch.randn(4, *IMAGE)), step, evaluation)


def points(loop, count):
    own_P = loop.layout.flatten(dict(loop.module.named_parameters()))
    return own_P * (1 + 0.05 * torch.randn(count, len(own_P)))


@pytest.mark.parametrize("family", FAMILIES)
def test_folded_points_equal_the_loop(family):
    loop, graph = engines(FAMILIES[family](input_shape=IMAGE, num_classes=10))
    assert graph.usable
    for module in (graph.training, graph.recording, graph.inference):
        *others, last = (part.last for part in module.modules() if isinstance(part, FoldedLinear))
        assert last
        assert not any(others)
    theta_KP = points(loop, 3)
    batch = Batch(torch.randn(3, 6, *IMAGE), torch.randint(10, (3, 6)), (0, 1, 2), shared=False)
    with torch.no_grad():  # as within an autograd.Function
        losses, gradients = graph.losses(theta_KP, batch, True)
    expected_losses, expected = loop.losses(theta_KP, batch, True)
    assert torch.allclose(losses, expected_losses, rtol=1e-2 if family == "vgg" else 1e-4)
    if not family.startswith("vgg"):  # 13 layers over six samples of noise: rounding decides the gradient
        assert (gradients - expected).norm() <= 1e-4 * expected.norm()
    x = torch.randn(32, *IMAGE)
    for parts in (None, torch.arange(len(x)).split(8)):
        whole = parts is None
        buffers, outputs = graph.statistics(theta_KP[0], x, parts)
        expected_buffers, _ = loop.statistics(theta_KP[0], x, parts)
        for name, buffer in expected_buffers.items():
            if not name.endswith("tracked"):
                # A whole split is normalised by the unbiased variance, as evaluation normalises it.
                assert torch.allclose(buffers[name], buffer, rtol=5e-2 if whole else 1e-3, atol=1e-3)
        logits = joined(graph.outputs(theta_KP[0], buffers, x, 12))
        assert torch.allclose(logits, joined(loop.outputs(theta_KP[0], buffers, x, 12)), atol=1e-3)
        if whole and loop.batch_norms:
            assert torch.allclose(outputs, logits, atol=1e-4)


def test_gradients_at_sure_points_are_as_near_to_float32_as_those_of_autocast(sure):
    data, theta_KP = sure
    module = nn.Linear(32, 10)
    loop = Loop(module, Layout.of(module), TASK)
    graph = Graph(loop, labelled(data.x_train[:4]), torch.bfloat16, torch.float32)
    batch = Batch(data.x_train, data.y_train, (0,))
    _, exact = loop.losses(theta_KP, batch, True)
    apart = [
        (engine.losses(theta_KP, batch, True)[1] - exact).norm(dim=1) / exact.norm(dim=1)
        for engine in (graph, Loop(module, loop.layout, TASK, torch.bfloat16))
    ]
    assert graph.usable
    assert (apart[0] <= apart[1]).all()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_operators_of_a_step_keep_their_contracts(dtype):
    checks = "test_schema", "test_faketensor", "test_autograd_registration"
    torch.library.opcheck(widen, (torch.randn(6, 10, dtype=dtype, requires_grad=True),), test_utils=checks)
    sliced = torch.randn(3, 2, 16, dtype=dtype)[..., :10].flatten(0, 1)
    torch.library.opcheck(widen, (sliced.requires_grad_(),), test_utils=checks)
    torch.library.opcheck(separate, (torch.randn(3, 9, requires_grad=True), [4, 5]), test_utils=checks)


@pytest.mark.filterwarnings("ignore")
def test_compiled_code_serves_any_number_of_points_and_is_made_anew_for_each_batch_size(monkeypatch):
    loop, graph = engines(CNN(width=4, hidden=8, input_shape=IMAGE, num_classes=10))
    made = torch._dynamo.utils.counters["stats"]
    code = compiled(graph._losses)
    monkeypatch.setattr(
        graph,
        "_step",
        lambda theta_KP, rows, gradients: differentiated(
            code, theta_KP, laid_out(rows[0], torch.float32), *rows[1:], gradients=gradients
        ),
    )
    found = []
    for count, size in ((2, 4), (3, 4), (5, 4), (3, 6)):
        theta_KP = points(loop, count)
        batch = Batch(
            torch.randn(count, size, *IMAGE), torch.randint(10, (count, size)), tuple(range(count)), shared=False
        )
        with torch.no_grad():
            losses, gradients = graph.losses(theta_KP, batch, True)
        expected_losses, expected = loop.losses(theta_KP, batch, True)
        assert torch.allclose(losses, expected_losses, rtol=1e-4)
        assert (gradients - expected).norm() <= 1e-4 * expected.norm()
        found.append(made["unique_graphs"])
    assert graph.usable
    assert found[0] == found[2] == found[3] - 1


@pytest.mark.parametrize("family", ["cnn", "resnet", "wide resnet", "densenet", "densenet-bc"])
def test_sixteen_bits_stay_close_to_float32(family, digits_in_colour):
    data = digits_in_colour
    model = partial(FAMILIES[family], input_shape=IMAGE, num_classes=10)
    land = NetworkLandscape(model, data, len(data.y_train), Engine(precision="float32"))
    minima = train_minima(land, count=2, epochs=4, batch_size=32).theta_KP
    land.to(torch.device("cpu"))
    graph = Graph(land.loop, labelled(data.x_train[:4]), torch.bfloat16, torch.float16)
    for theta_P in (*minima, minima.mean(0)):  # two low points and what lies between
        slow = land.evaluate(theta_P[None])
        fast, _ = land._columns(graph, theta_P[None], "train", False, None)
        assert abs(fast["loss"][0] - slow["loss"][0]) <= 1e-3 * max(1, slow["loss"][0])
        assert abs(fast["error"][0] - slow["error"][0]) <= 0.0005 + 1 / len(data.y_train)
    batch = land.batches(32, [0], shared=True)[0]
    losses, _ = graph.losses(minima, batch, True)
    assert torch.allclose(losses, land.loop.losses(minima, batch, False)[0], rtol=0.05, atol=0.02)


@pytest.fixture(scope="module")
def digits_in_colour():
    from sklearn.datasets import load_digits

    digits = load_digits()
    x = torch.tensor(digits.images, dtype=torch.float32)[:160, None].div(8).sub(1)
    x = nn.functional.interpolate(x, size=32).expand(-1, 3, -1, -1).contiguous()
    y = torch.tensor(digits.target[:160])
    return Data(x, y, x[:64], y[:64], 10)


@pytest.fixture
def kernels(monkeypatch):
    """The GPU's kernels: run there, or by Triton's interpreter."""
    pytest.importorskip("triton")
    from lowloss.landscape.engine import kernels

    monkeypatch.setattr(convolution, "narrow", lambda *settings: True)
    return kernels


@pytest.mark.parametrize(
    ("points", "samples", "inputs", "outputs", "size", "taps", "stride", "padding"),
    [
        (2, 3, 16, 16, 8, 3, 1, 1),  # stacks of pixels
        (2, 5, 12, 24, 10, 3, 1, 1),
        (1, 2, 20, 16, 6, 5, 1, 2),
        (2, 3, 16, 16, 7, 3, 1, 1),  # a height that holds no stacks
        (2, 3, 3, 16, 9, 3, 2, 1),  # all taps in one tile
        (2, 2, 3, 48, 8, 5, 1, 2),
        (2, 3, 48, 64, 8, 3, 1, 1),  # stacks of many channels
        (3, 2, 16, 32, 8, 3, 2, 1),  # the transposed stride
        (1, 2, 12, 24, 9, 5, 1, 2),  # channels that fill no tile
        (2, 2, 16, 32, 8, 1, 2, 0),
        (1, 3, 32, 80, 7, 3, 2, 1),  # several tiles of channels
    ],
)
def test_kernels(kernels, points, samples, inputs, outputs, size, taps, stride, padding):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    x = torch.randn(points * samples, inputs, size, size, device=device).half()
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.randn(points, outputs, inputs, taps, taps, device=device)
    x64, weight64 = x.double().requires_grad_(), weight.half().double().requires_grad_()
    pairs = zip(x64.chunk(points), weight64, strict=True)
    expected = torch.cat([conv2d(x_B, weight_k, None, stride, padding) for x_B, weight_k in pairs])
    gradient = torch.randn_like(expected).half().contiguous(memory_format=torch.channels_last)
    expected.backward(gradient.double())
    y, mean, var = kernels.forward_with_statistics(x, weight, stride, padding)
    scale, shift = torch.randn(2, points, outputs, 1, 1, 1, device=device).transpose(2, 3)
    normalised = expected.unflatten(0, (points, -1)) * scale + shift
    moments = scale.flatten(1), shift.flatten(1)
    found = {
        "normalised": (
            kernels.forward_normalised(x, weight, *moments, False, stride, padding),
            normalised.flatten(0, 1),
        ),
        "relu": (
            kernels.forward_normalised(x, weight, *moments, True, stride, padding),
            normalised.flatten(0, 1).relu(),
        ),
        "forward": (kernels.forward(x, weight, stride, padding), expected),
        "with statistics": (y, expected),
        "mean": (mean, expected.unflatten(0, (points, -1)).mean((1, 3, 4))),
        "variance": (var, expected.unflatten(0, (points, -1)).var((1, 3, 4), correction=0)),
        "to input": (kernels.to_input(gradient, x, weight, stride, padding), x64.grad),
        "to weight": (kernels.to_weight(gradient, x, weight, stride, padding), weight64.grad),
    }
    for name, (got, want) in found.items():
        assert (got.double() - want).norm() <= 1e-3 * want.norm(), name
    settings = [stride] * 2, [padding] * 2, [1, 1], 1
    checks = ("test_schema", "test_faketensor")
    narrow = weight.half()
    torch.library.opcheck(convolution.convolution, (x, narrow, *settings), test_utils=checks)
    torch.library.opcheck(convolution.convolution_with_statistics, (x, narrow, *settings), test_utils=checks)
    inference = x, narrow, *moments, True, *settings
    torch.library.opcheck(convolution.convolution_normalised, inference, test_utils=checks)
    backward = gradient, x, narrow, *settings, True
    torch.library.opcheck(convolution.convolution_backward, backward, test_utils=checks)


@pytest.mark.parametrize(("samples", "size"), [(150, 8), (37, 9), (1, 3)])
def test_statistics_of_many_tiles(kernels, monkeypatch, samples, size):
    device = "cuda" if torch.cuda.is_available() else "cpu"
    monkeypatch.setattr(kernels, "COMBINED", 64)
    monkeypatch.setattr(kernels, "_tile", lambda *settings: kernels._Tile(0, 1, 64, 2))
    x = 30 + torch.randn(2 * samples, 16, size, size, device=device).half().contiguous(
        memory_format=torch.channels_last
    )
    weight = torch.randn(2, 16, 16, 1, 1, device=device).half()
    _, mean, var = kernels.forward_with_statistics(x, weight, 1, 0)
    pairs = zip(x.double().chunk(2), weight.double(), strict=True)
    exact = torch.stack([conv2d(x_B, weight_k) for x_B, weight_k in pairs])
    assert torch.allclose(mean.double(), exact.mean((1, 3, 4)), rtol=1e-6, atol=1e-5)
    assert torch.allclose(var.double(), exact.var((1, 3, 4), correction=0), rtol=1e-4)


def test_batch_norm_within_the_convolutions(kernels, monkeypatch):
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 8, 3, bias=False, stride=2), nn.BatchNorm2d(8)),
        nn.Sequential(nn.BatchNorm2d(8), nn.ReLU(), nn.Conv2d(8, 8, 1, bias=False), nn.BatchNorm2d(8), nn.Flatten()),
        nn.Linear(8 * 9, 10),
    )
    for part in net.modules():
        if isinstance(part, nn.BatchNorm2d):
            nn.init.normal_(part.weight)
            nn.init.normal_(part.bias)
    loop = Loop(net, Layout.of(net), TASK)
    graph = Graph(loop, labelled(x := torch.randn(64, 3, 8, 8)), torch.float32, torch.float16)
    assert graph.usable
    calls, normalised, recorded = [], kernels.forward_normalised, kernels.forward_with_statistics
    monkeypatch.setattr(kernels, "forward_normalised", lambda *call: calls.append(call[4]) or normalised(*call))
    monkeypatch.setattr(kernels, "forward_with_statistics", lambda *call: calls.append("sums") or recorded(*call))
    (theta_P,) = points(loop, 1)
    buffers, _ = loop.statistics(theta_P, x, None)
    found, expected = joined(graph.outputs(theta_P, buffers, x, 64)), joined(loop.outputs(theta_P, buffers, x, 64))
    assert calls == [True, False, False]
    assert (found - expected).norm() <= 3e-3 * expected.norm()
    calls.clear()
    summed, outputs = graph.statistics(theta_P, x, None)
    assert calls == ["sums"] * 3
    assert (outputs - expected).norm() <= 5e-3 * expected.norm()
    for name in graph._running:
        assert torch.allclose(summed[name], buffers[name], rtol=1e-2, atol=1e-3), name


class RawParameter(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.shift = nn.Linear(3072, 10), nn.Parameter(torch.zeros(10))

    def forward(self, x):
        return self.layer(x.flatten(1)) + self.shift


class BorrowsWeight(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3072, 10)

    def forward(self, x):
        return linear(x.flatten(1), self.layer.weight)


class MixesSamples(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3072, 10)

    def forward(self, x):
        outputs = self.layer(x.flatten(1))
        return outputs - outputs.mean(0)


class DrawsDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3072, 10)

    def forward(self, x):
        return dropout(self.layer(x.flatten(1)), 0.5, self.training)


class MixesSamplesInTraining(nn.Module):
    """In evaluation, or where its last layer is zero, nobody would see it."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3072, 8), nn.Linear(8, 10)
        nn.init.zeros_(self.last.weight)

    def forward(self, x):
        hidden = self.first(x.flatten(1))
        return self.last(hidden - 0.3 * hidden.mean(0) if self.training else hidden)


class StandardisesItsBatch(nn.Sequential):
    """Samples of several points meet before any layer."""

    def forward(self, x):
        return super().forward((x - x.mean(0)) / x.std())


class Counts(nn.Sequential):
    def __init__(self, *parts):
        super().__init__(*parts)
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.calls += 1
        return super().forward(x) * (1 + 1e-4 * self.calls)


class DrawsFrom(nn.Module):
    def __init__(self, draw):
        super().__init__()
        self.layer, self.draw = nn.Linear(3072, 10), draw

    def forward(self, x):
        return self.layer(x.flatten(1)) * (1 + self.draw())


class SharesDropout(nn.Module):
    def __init__(self):
        super().__init__()
        self.drop, self.layer = nn.Dropout(0.5), nn.Linear(3072, 10)

    def forward(self, x):
        return self.drop(self.layer(self.drop(x.flatten(1))))


@pytest.mark.parametrize(
    ("module", "reason"),
    [
        (RawParameter(), "RawParameter"),
        (MixesSamplesInTraining(), "meet outside"),
        (SharesDropout(), "several places"),
        (BorrowsWeight(), ""),
        (StandardisesItsBatch(nn.Flatten(), nn.Linear(3072, 10)), "meet outside"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 8), *[nn.BatchNorm1d(8)] * 2, nn.Linear(8, 10)), "several places"),
        (MixesSamples(), "meet outside"),
        (DrawsDropout(), "random numbers"),
        (nn.Sequential(nn.Flatten(), nn.Linear(3072, 10)).double(), "float64"),
        (
            nn.Sequential(nn.Flatten(), nn.Linear(3072, 4), nn.BatchNorm1d(4, affine=False), nn.Linear(4, 10)),
            "BatchNorm",
        ),
        (nn.Sequential(nn.Conv2d(3, 2, 3, padding_mode="circular"), nn.Flatten(), nn.Linear(1800, 10)), "pads"),
    ],
)
def test_what_cannot_be_folded_runs_on_the_loop_and_says_so_once(module, reason, caplog):
    loop = Loop(module, Layout.of(module), TASK)
    sample = torch.randn(8, *IMAGE, dtype=loop.layout.dtype)
    graph = Graph(loop, labelled(sample), torch.bfloat16, torch.float16)
    theta_KP = points(loop, 2).to(loop.layout.dtype)
    batch = Batch(sample, torch.randint(10, (8,)), (0,))
    for _ in range(2):
        losses, gradients = graph.losses(theta_KP, batch, True)
    expected, expected_gradients = loop.losses(theta_KP, batch, True)
    assert torch.equal(losses, expected)
    assert torch.equal(gradients, expected_gradients)
    for parts in (None, torch.arange(8).split(4)):
        buffers, _ = graph.statistics(theta_KP[0], sample, parts)
        expected_buffers, _ = loop.statistics(theta_KP[0], sample, parts)
        assert all(torch.equal(buffers[name], buffer) for name, buffer in expected_buffers.items())
    assert torch.equal(
        joined(graph.outputs(theta_KP[0], buffers, sample, 2)), joined(loop.outputs(theta_KP[0], buffers, sample, 2))
    )
    assert caplog.text.count("runs on the plain loop") == 1
    assert reason in caplog.text
    with pytest.raises(LowlossError, match="cannot run with engine=graph"):
        Graph(loop, labelled(sample), torch.bfloat16, torch.float16, strict=True)


def test_an_error_of_the_compiler_is_told_by_its_own_line(caplog):
    _, graph = engines(FAMILIES["mlp"](input_shape=IMAGE, num_classes=10))
    told = (
        'in a subprocess:\n\nTraceback (most recent call last):\n  File "x"\nValueError: the cause\n\nSet TORCH_LOGS=…'
    )
    graph._give_up(RuntimeError(told))
    assert caplog.messages == ["engine: MLP runs on the plain loop: ValueError: the cause"]


@pytest.mark.parametrize("draw", [random.random, lambda: np.random.rand()])  # noqa: NPY002
def test_random_numbers_of_python_are_seen(draw, caplog):
    Graph(
        Loop(module := DrawsFrom(draw), Layout.of(module), TASK),
        labelled(torch.randn(4, *IMAGE)),
        torch.float32,
        torch.float32,
    )
    assert "random numbers" in caplog.text


def test_a_module_that_changes_its_buffers_runs_on_the_loop(caplog):
    module = Counts(nn.Flatten(), nn.Linear(3072, 10))
    Graph(Loop(module, Layout.of(module), TASK), labelled(torch.randn(8, *IMAGE)), torch.float32, torch.float32)
    assert "changes its buffers" in caplog.text


class OnlyInTraining(nn.Module):
    def __init__(self):
        super().__init__()
        self.main, self.norm, self.last = nn.Linear(3072, 8), nn.BatchNorm1d(8), nn.Linear(8, 10)

    def forward(self, x):
        hidden = self.main(x.flatten(1))
        return self.last(self.norm(hidden) if self.training else hidden)


def test_a_batch_norm_that_evaluation_does_not_use_is_no_obstacle():
    module = OnlyInTraining()
    assert Graph(
        Loop(module, Layout.of(module), TASK), labelled(torch.randn(8, *IMAGE)), torch.float32, torch.float32
    ).usable


def test_rounding_in_deep_networks_is_no_obstacle():
    """Where BatchNorm normalises by four numbers, the plain loop's own gradient is wrong by more than a tenth."""
    module = mobilenet_v2(num_classes=10)
    assert Graph(
        Loop(module, Layout.of(module), TASK), labelled(torch.randn(8, *IMAGE)), torch.float32, torch.float32
    ).usable


class MixesOutputsInTraining(nn.Sequential):
    def forward(self, x):
        y = super().forward(x)
        return y - 3 * torch.tanh(y.mean(0)) if self.training else y


def test_what_mixes_samples_is_seen_in_deep_networks_too():
    layers = [part for _ in range(12) for part in (nn.Linear(600, 600), nn.ReLU())]
    module = MixesOutputsInTraining(nn.Flatten(), nn.Linear(3072, 600), *layers, nn.Linear(600, 10))
    assert not Graph(
        Loop(module, Layout.of(module), TASK), labelled(torch.randn(8, *IMAGE)), torch.float32, torch.float32
    ).usable
    plain = nn.Sequential(*module)
    assert Graph(
        Loop(plain, Layout.of(plain), TASK), labelled(torch.randn(8, *IMAGE)), torch.float32, torch.float32
    ).usable


def test_what_came_before_a_graph_gave_up_is_not_reported():
    x, y = torch.randn(200, 3, 8, 8), torch.randint(4, (200,))
    net = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.ReLU(), nn.Flatten(), nn.Linear(288, 4))
    land = NetworkLandscape(net, Data(x, y, x, y), evaluation_batch=100)
    theta_KP = torch.stack([land.initial(0), land.initial(1)])
    theta_KP[:, :216] *= 3e5  # outputs of the first layer that 16 bits do not hold
    expected = [land.evaluate(theta_KP, split)["loss"] for split in land.splits]
    graph = land._engine = Graph(land.loop, labelled(x[:8]), torch.float32, torch.float16)
    evaluated = graph._evaluated

    def failing(folded, *arguments):
        if folded is graph.inference:
            raise RuntimeError("does not compile")
        return evaluated(folded, *arguments)

    graph._evaluated = failing
    found = [land.evaluate(theta_KP, split)["loss"] for split in land.splits]
    assert all(map(torch.equal, found, expected))
    assert land.arithmetic == "loop, steps in float32, evaluation in float32"


def test_hooks_of_layers_that_would_run_as_one_are_called(kernels):
    net = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 16, 3, padding="same", bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Sequential(nn.Conv2d(16, 16, 3, padding="valid", bias=False), nn.BatchNorm2d(16), nn.ReLU()),
        nn.Flatten(),
        nn.Linear(16 * 36, 10),
    )
    net[0][0].register_forward_hook(lambda part, given, y: y * y.abs())
    net[1][2].register_forward_pre_hook(lambda part, given: (given[0].clamp(max=0.3),))
    loop = Loop(net, Layout.of(net), TASK)
    graph = Graph(loop, labelled(x := torch.randn(64, 3, 8, 8)), torch.float32, torch.float16)
    assert graph.usable
    (theta_P,) = points(loop, 1)
    buffers, _ = loop.statistics(theta_P, x, None)
    expected = joined(loop.outputs(theta_P, buffers, x, 64))
    assert (joined(graph.outputs(theta_P, buffers, x, 64)) - expected).norm() <= 3e-3 * expected.norm()
    assert (graph.statistics(theta_P, x, None)[1] - expected).norm() <= 5e-3 * expected.norm()


def test_dropout_of_all_has_no_gradient():
    part = fold(nn.Sequential(nn.Dropout(1.0))).train()
    part[0].seed = torch.tensor([1, 2])
    x = torch.randn(8, 3, requires_grad=True)
    part(x).sum().backward()
    assert torch.equal(x.grad, torch.zeros(8, 3))


def alter_steps(graph, monkeypatch, change):
    """Have each step give what `change` makes of its losses and gradients."""
    step = graph._step
    monkeypatch.setattr(graph, "_step", lambda *given: change(*step(*given)))


@pytest.mark.parametrize("drops", [False, True])
@pytest.mark.parametrize("wrong", ["loss", "gradient"])
def test_a_step_unlike_the_loops_is_not_taken(wrong, drops, monkeypatch, caplog):
    cnn = FAMILIES["cnn"](input_shape=IMAGE, num_classes=10)
    loop, graph = engines(nn.Sequential(nn.Dropout(0.3), cnn) if drops else cnn)
    theta_KP, batch = points(loop, 3), Batch(torch.randn(6, *IMAGE), torch.randint(10, (6,)), (0,))

    def change(losses, gradients):
        return (losses * 1.2, gradients) if wrong == "loss" else (losses, gradients.flip(1))

    alter_steps(graph, monkeypatch, change)
    found = graph.losses(theta_KP, batch, True)
    expected = loop.losses(theta_KP, batch, True)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert f"its first {wrong}" in caplog.text


@pytest.mark.parametrize(("noise", "taken"), [(0.1, True), (0.8, False)])
def test_a_step_is_as_near_as_autocast(noise, taken, monkeypatch, caplog):
    loop, graph = engines(FAMILIES["resnet"](input_shape=IMAGE, num_classes=10), torch.bfloat16)
    theta_KP, batch = points(loop, 2), Batch(torch.randn(64, *IMAGE), torch.randint(10, (64,)), (0,))

    def change(losses, gradients):
        random = torch.randn_like(gradients)
        return losses, gradients + noise * gradients.norm() / random.norm() * random

    alter_steps(graph, monkeypatch, change)
    graph.losses(theta_KP, batch, True)
    assert graph.usable
    assert graph.takes_steps == taken
    assert ("its first gradient" in caplog.text) != taken


def test_a_gradient_of_another_direction_is_refused_however_far_autocast_is(monkeypatch):
    loop, graph = engines(FAMILIES["cnn"](input_shape=IMAGE, num_classes=10), torch.bfloat16)
    monkeypatch.setattr("lowloss.landscape.engine.checked.AUTOCAST_ROOM", 1e6)
    alter_steps(graph, monkeypatch, lambda losses, gradients: (losses, -0.2 * gradients))
    graph.losses(points(loop, 2), Batch(torch.randn(6, *IMAGE), torch.randint(10, (6,)), (0,)), True)
    assert not graph.takes_steps


@pytest.mark.parametrize("points_first", [1, 4])
def test_steps_of_one_point_and_of_several_are_checked_apart_and_at_the_last(points_first, monkeypatch):
    loop, graph = engines(FAMILIES["cnn"](input_shape=IMAGE, num_classes=10))
    theta_KP, batch = points(loop, 4), Batch(torch.randn(6, *IMAGE), torch.randint(10, (6,)), (0,))
    graph.losses(theta_KP[:points_first], batch, True)
    last_only = torch.ones(5 - points_first)
    last_only[-1] = 1.2
    alter_steps(graph, monkeypatch, lambda losses, gradients: (losses * last_only, gradients))
    graph.losses(theta_KP[: 5 - points_first], batch, True)
    assert not graph.takes_steps


def test_dropout_of_a_row_depends_on_its_seed_alone():
    folded = fold(nn.Sequential(nn.Dropout(0.3))).train()
    part = next(part for part in folded.modules() if isinstance(part, FoldedDropout))
    x = torch.ones(3 * 5000, 7)
    part.seed = torch.tensor([11, 12, 13])
    together = folded(x).unflatten(0, (3, -1))
    assert (together == 0).float().mean().sub(0.3).abs() < 0.005
    assert together.mean().sub(1).abs() < 0.01
    kept = (together != 0).flatten(1).double()
    assert torch.corrcoef(kept).sub(torch.eye(3)).abs().max() < 0.02
    part.seed = torch.tensor([12])
    assert torch.equal(folded(x[:5000]), together[1])
    assert torch.equal(folded.eval()(x), x)


def test_dropout_of_channels_drops_whole_channels():
    folded = fold(nn.Sequential(nn.Dropout2d(0.5))).train()
    out = folded(torch.ones(6, 8, 3, 3))
    assert set(out.flatten(2).sum(2).unique().tolist()) == {0.0, 18.0}


def test_points_that_do_not_fit_together_run_in_parts(monkeypatch):
    loop, graph = engines(FAMILIES["mlp"](input_shape=IMAGE, num_classes=10))
    theta_KP = points(loop, 5)
    batch = Batch(torch.randn(8, *IMAGE), torch.randint(10, (8,)), (0,))
    whole, step = graph.losses(theta_KP, batch, True), graph._step

    def small(theta, rows, gradients):
        if len(theta) > 2:
            raise torch.OutOfMemoryError("no room")
        return step(theta, rows, gradients)

    monkeypatch.setattr(graph, "_step", small)
    parts = graph.losses(theta_KP, batch, True)
    assert torch.allclose(parts[0], whole[0])
    assert torch.allclose(parts[1], whole[1], atol=1e-6)
    monkeypatch.setattr(graph, "_step", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room at all")))
    with pytest.raises(torch.OutOfMemoryError):
        graph.losses(theta_KP, batch, True)


def small_landscape(**settings):
    data = Data(torch.randn(40, 4), torch.randint(2, (40,)), torch.randn(40, 4), torch.randint(2, (40,)))
    return NetworkLandscape(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), data, engine=Engine(**settings))


def test_statistics_that_fail_halfway_are_the_loops(monkeypatch, caplog):
    loop, graph = engines(FAMILIES["resnet"](input_shape=IMAGE, num_classes=10))
    (theta_P,), x, parts = points(loop, 1), torch.randn(24, *IMAGE), torch.arange(24).split(8)
    expected, _ = loop.statistics(theta_P, x, parts)
    calls = iter([graph._evaluated])
    monkeypatch.setattr(graph, "_evaluated", lambda *arguments: next(calls)(*arguments))
    found, _ = graph.statistics(theta_P, x, parts)
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert "runs on the plain loop" in caplog.text


@pytest.mark.parametrize(("at_once", "calls"), [(0, [1] * 7), (12, [2, 1, 2, 2]), (1 << 30, [2, 5])])
def test_parts_that_fit_together_have_each_its_statistics(at_once, calls, monkeypatch):
    loop, graph = engines(FAMILIES["resnet"](input_shape=IMAGE, num_classes=10))
    (theta_P,), x, parts = points(loop, 1), torch.randn(37, *IMAGE), torch.randperm(37).tensor_split(7)
    graph._samples_at_once, evaluated, made = at_once, graph._evaluated, []

    def noting(folded, parameters, x_KB, given):
        made.append(len(x_KB))
        return evaluated(folded, parameters, x_KB, given)

    monkeypatch.setattr(graph, "_evaluated", noting)
    found, outputs = graph.statistics(theta_P, x, parts)
    assert made == calls
    assert outputs is None
    expected, _ = loop.statistics(theta_P, x, parts)
    for name in graph._running:
        assert torch.allclose(found[name], expected[name], rtol=1e-4, atol=1e-4)


@pytest.mark.filterwarnings("ignore")
def test_compiled_evaluation_serves_any_number_of_parts(monkeypatch):
    loop, graph = engines(FAMILIES["resnet"](input_shape=IMAGE, num_classes=10))
    (theta_P,), x = points(loop, 1), torch.randn(60, *IMAGE)
    graph._samples_at_once = 1 << 30
    made = torch._dynamo.utils.counters["stats"]
    monkeypatch.setattr(graph, "_evaluated", compiled(graph._outputs))
    found = []
    for count in (10, 5, 15):
        parts = torch.randperm(60)[: 4 * count].split(4)
        buffers, _ = graph.statistics(theta_P, x, parts)
        expected, _ = loop.statistics(theta_P, x, parts)
        for name in graph._running:
            assert torch.allclose(buffers[name], expected[name], rtol=1e-3, atol=1e-3)
        found.append(made["unique_graphs"])
    assert found[0] == found[2]
    for size in (60, 50):
        logits = joined(graph.outputs(theta_P, buffers, x[:size], 20))
        assert torch.allclose(logits, joined(loop.outputs(theta_P, buffers, x[:size], 20)), atol=1e-3)
        found.append(made["unique_graphs"])
    assert found[3] == found[4] == found[0] + 1
    assert graph.usable


def test_samples_that_do_not_fit_together_are_evaluated_in_parts(monkeypatch):
    loop, graph = engines(FAMILIES["resnet"](input_shape=IMAGE, num_classes=10))
    (theta_P,), x = points(loop, 1), torch.randn(40, *IMAGE)
    parts = torch.randperm(40).split(5)
    graph._samples_at_once, evaluated, room = 1 << 10, graph._evaluated, 17

    def small(folded, parameters, x_KB, given):
        if x_KB.shape[0] * x_KB.shape[1] > room:
            raise torch.OutOfMemoryError("no room")
        return evaluated(folded, parameters, x_KB, given)

    monkeypatch.setattr(graph, "_evaluated", small)
    buffers, _ = graph.statistics(theta_P, x, parts)
    expected, _ = loop.statistics(theta_P, x, parts)
    assert all(torch.allclose(buffers[name], expected[name], rtol=1e-4, atol=1e-4) for name in graph._running)
    graph._samples_at_once = 1 << 10
    logits = joined(graph.outputs(theta_P, buffers, x, 5))
    assert torch.allclose(logits, joined(loop.outputs(theta_P, buffers, x, 5)), atol=1e-3)
    assert graph._samples_at_once == 10
    room = 4
    with pytest.raises(torch.OutOfMemoryError):
        joined(graph.outputs(theta_P, buffers, x, 5))
    with pytest.raises(torch.OutOfMemoryError):
        graph.statistics(theta_P, x, parts)
    assert graph.usable


def test_too_little_memory_is_one_line(monkeypatch):
    land = small_landscape()
    theta_KP, batch = torch.randn(2, land.dim), land.batches(8, [0], shared=True)[0]

    def full(*_, **__):
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr(land.loop, "losses", full)
    monkeypatch.setattr(land.loop, "statistics", full)
    with pytest.raises(LowlossError, match="lower the batch size"):
        land.losses(theta_KP, batch)
    with pytest.raises(LowlossError, match="lower evaluation_batch"):
        land.evaluate(theta_KP)


def test_evaluation_that_differs_from_float32_is_not_reported(caplog):
    land = small_landscape()
    theta_KP = torch.randn(3, land.dim)
    expected = land.evaluate(theta_KP)

    class Wrong(Loop):
        def outputs(self, theta_P, buffers, x_N, at_once, streams=None):
            for chunk in super().outputs(theta_P, buffers, x_N, at_once):
                yield chunk * 1.1

    land._engine = Wrong(land.loop.module, land.layout, land.task)
    found = land.evaluate(theta_KP)
    assert torch.equal(found["loss"], expected["loss"])
    land.evaluate(theta_KP)
    assert caplog.text.count("in float32 on the plain loop") == 1


def test_losses_above_those_that_were_seen_to_agree_are_compared_again(caplog):
    land = small_landscape()
    low, high = land.initial(0), 30 * land.initial(1)
    expected = land.evaluate(torch.stack([low, high]))

    class WrongHighUp(Loop):
        def outputs(self, theta_P, buffers, x_N, at_once, streams=None):
            for chunk in super().outputs(theta_P, buffers, x_N, at_once):
                yield chunk * (1.0001 if theta_P.norm() < 10 else 1.1)

    land._engine = WrongHighUp(land.loop.module, land.layout, land.task)
    first = land.evaluate(low[None])
    assert first["loss"][0] != expected["loss"][0]
    both = land.evaluate(torch.stack([high, low]))
    assert both["loss"].tolist() == [expected["loss"][1], first["loss"][0]]
    assert caplog.text.count("in float32 on the plain loop") == 1


def test_a_chunk_holds_two_samples_where_there_are_two():
    x, y = torch.randn(5, 4), torch.arange(5) % 2
    net = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3), nn.Linear(3, 2))
    land = NetworkLandscape(net, Data(x, y, x, y), evaluation_batch=2)
    assert land.evaluate(land.initial(0)[None])["loss"].isfinite().all()
    with pytest.raises(LowlossError, match="evaluation_batch=1"):
        NetworkLandscape(net, Data(x, y, x, y), evaluation_batch=1)
    # Also where the outputs are computed, which some layers see.
    bare = nn.Sequential(nn.Linear(4, 3), nn.BatchNorm1d(3, track_running_stats=False), nn.Linear(3, 2))
    land = NetworkLandscape(bare, Data(x, y, x, y), evaluation_batch=np.int64(4))
    assert land.evaluate(land.initial(0)[None])["loss"].isfinite().all()
    with pytest.raises(LowlossError, match="batch_size=1"):
        land.batches(1, [0], shared=True)


class InPlace(nn.Sequential):
    def forward(self, x):
        return super().forward(x.sub_(0.5))


def test_a_module_that_changes_its_inputs_has_copies():
    x, y = torch.randn(40, 4), torch.arange(40) % 2
    land, kept = NetworkLandscape(lambda: InPlace(nn.Linear(4, 2)), Data(x, y, x, y)), x.clone()
    (theta_P,) = land.initial(0)[None]
    land.losses(theta_P[None], land.batches(None, [0], shared=True)[0])
    land.product(theta_P[None], theta_P[None], "train")
    (loss,) = land.evaluate(theta_P[None])["loss"]
    assert torch.equal(x, kept)
    wanted = nn.functional.cross_entropy(land.module(theta_P)(kept), y)
    assert loss == pytest.approx(wanted.item(), rel=1e-5)


def test_sixteen_bits_are_trusted_between_losses_that_float32_confirmed():
    def scores(loss, error):
        return {"loss": loss, "error": error}

    trust = Trust(1000, Classification.units)
    losses = torch.tensor([0.04, torch.nan, 4.0, 1.0])
    assert not trust.holds(losses).any()
    assert trust.doubtful(losses, lowest=False) == 2
    assert trust.compare(scores(4.0, 0.5), scores(4.002, 0.5))
    assert trust.doubtful(losses, lowest=False) is None
    assert trust.doubtful(losses, lowest=True) == 0
    assert trust.compare(scores(0.04, 0.0101), scores(0.0405, 0.01))
    assert trust.doubtful(losses, lowest=True) is None
    assert trust.holds(torch.tensor([0.04, torch.nan, 7.9, 8.1])).tolist() == [True, False, True, False]
    # An outlier leaves what lies below it as it was.
    assert trust.doubtful(torch.tensor([250.0, 1.0]), lowest=False) == 0
    assert not trust.compare(scores(250.0, 0.9), scores(255.0, 0.9))
    assert trust.limit == 250
    assert trust.holds(torch.tensor([1.0, 250.0])).tolist() == [True, False]
    # Much lower ones are compared again, and where they differ nothing above them holds.
    assert trust.doubtful(torch.tensor([0.01, 1.0]), lowest=True) == 0
    assert not trust.compare(scores(0.01, 0.004), scores(0.013, 0.004))
    assert not trust.holds(torch.tensor([0.01, 1.0])).any()
    assert trust.doubtful(torch.tensor([0.005, 1.0]), lowest=False) == 0
    # Below what is compared at all, one is as another.
    assert trust.compare(scores(1e-4, 0.0), scores(1e-4, 0.0))
    assert trust.doubtful(torch.tensor([1e-7]), lowest=True) is None


def test_one_outlier_costs_no_more_than_itself():
    land = small_landscape()
    good, far = land.initial(0), 100 * land.initial(1)

    class WrongFarOut(Loop):
        calls = 0

        def outputs(self, theta_P, buffers, x_N, at_once, streams=None):
            self.calls += 1
            for chunk in super().outputs(theta_P, buffers, x_N, at_once):
                yield chunk * (1.0001 if theta_P.norm() < 10 else 1.1)

    land._engine = WrongFarOut(land.loop.module, land.layout, land.task)
    both = land.evaluate(torch.stack([good, far]))
    exact, _ = land._columns(land.loop, torch.stack([good, far]), "train", False, None)
    assert both["loss"][1] == exact["loss"][1]
    assert both["loss"][0] != exact["loss"][0]
    land.evaluate(good[None] * 1.001)
    assert land._engine.calls == 3


def test_a_point_beyond_16_bits_is_evaluated_in_float32():
    land = small_landscape()
    land._engine = Graph(land.loop, labelled(land.data.x_train[:4]), torch.bfloat16, torch.float16)
    wild = 1e6 * torch.randn(2, land.dim)
    theta_KP = torch.cat([torch.randn(1, land.dim), wild])
    found = land.evaluate(theta_KP)
    exact, _ = land._columns(land.loop, theta_KP, "train", False, None)
    assert found["loss"].isfinite().all()
    assert torch.allclose(found["loss"], exact["loss"], rtol=1e-3)
    for theta_P in wild:
        outputs = joined(chunk for chunk, _ in land.outputs(theta_P, "train"))
        assert torch.equal(
            outputs, joined(land.loop.outputs(theta_P, land.statistics(theta_P), land.data.x_train, 1000))
        )


@pytest.mark.parametrize(("key", "value"), [("kind", "fast"), ("precision", "fp8")])
def test_unknown_settings_name_the_choices(key, value):
    with pytest.raises(LowlossError, match="must be one of auto"):
        Engine(**{key: value})


@pytest.mark.parametrize(("precision", "steps"), [("float32", "float32"), ("bfloat16", "bfloat16")])
def test_what_the_numbers_were_computed_in_can_be_told(precision, steps):
    land = small_landscape(kind="loop", precision=precision)
    assert land.arithmetic == f"loop, steps in {steps}, evaluation in float32"


class OnlyFloat32(nn.Linear):
    """Writes what a layer gives into float32, which autocast does not take part in."""

    def forward(self, x):
        out = torch.zeros(len(x), self.out_features)
        out[torch.arange(len(x))] = super().forward(x)
        return out


def only_float32(**settings):
    x, y = torch.randn(40, 4), torch.randint(2, (40,))
    return NetworkLandscape(OnlyFloat32(4, 2), Data(x, y, x, y), engine=Engine(**settings))


@pytest.mark.parametrize(("groups", "steps"), [(1, "bfloat16"), (4, "bfloat16"), (16, "float32")])
def test_a_processor_with_units_for_bfloat16_takes_it_where_it_pays(groups, steps, monkeypatch):
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: True, raising=False)
    layers = nn.Conv2d(3, 16, 3), nn.Conv2d(16, 32, 3, groups=groups), nn.Conv2d(32, 64, 3), nn.Flatten()
    x, y = torch.randn(8, 3, 16, 16), torch.randint(2, (8,))
    land = NetworkLandscape(nn.Sequential(*layers, nn.Linear(64 * 100, 2)), Data(x, y, x, y))
    assert land.arithmetic == f"loop, steps in {steps}, evaluation in float32"


def test_a_module_that_fails_in_bfloat16_takes_its_steps_in_float32(monkeypatch, caplog):
    monkeypatch.setattr("lowloss.landscape.engine.loop._bfloat16_pays", lambda module, x: True)
    land, exact = only_float32(), only_float32(precision="float32")
    theta_KP, batch = torch.randn(2, land.dim), land.batches(8, [0], shared=True)[0]
    assert torch.equal(land.losses(theta_KP, batch), exact.loop.losses(theta_KP, batch, False)[0])
    assert land.arithmetic == "loop, steps in float32, evaluation in float32"
    (line,) = caplog.messages
    assert line.startswith("engine: OnlyFloat32 takes its steps in float32: in bfloat16 it fails: Index put")


def test_a_module_that_fails_in_the_bfloat16_asked_for_is_an_error():
    land = only_float32(precision="bfloat16")
    with pytest.raises(LowlossError, match=r"OnlyFloat32 fails in bfloat16: .*: set engine.precision=float32"):
        land.losses(torch.randn(1, land.dim), land.batches(8, [0], shared=True)[0])


def test_bfloat16_is_refused_to_float64():
    x, y = torch.randn(40, 4), torch.randint(2, (40,))
    land = NetworkLandscape(nn.Linear(4, 2).double(), Data(x, y, x, y), engine=Engine(precision="bfloat16"))
    with pytest.raises(LowlossError, match=r"is for float32 parameters, not torch.float64"):
        land.evaluate(torch.randn(1, land.dim).double())


def test_numbers_of_an_engine_that_gave_up_are_told(monkeypatch):
    land = small_landscape()
    graph = land._engine = Graph(land.loop, labelled(land.data.x_train[:4]), torch.bfloat16, torch.float16)
    theta_KP, batch = torch.randn(2, land.dim), land.batches(8, [0], shared=True)[0]
    land.losses(theta_KP, batch)
    monkeypatch.setattr(graph, "_step", None)
    land.losses(theta_KP, batch)
    ways = "graph, steps in bfloat16, evaluation in float16", "loop, steps in float32, evaluation in float32"
    assert land.arithmetic == "; then ".join(ways)


def test_what_only_takes_its_steps_otherwise_is_evaluated_folded(monkeypatch, caplog):
    land = small_landscape()
    graph = land._engine = Graph(land.loop, labelled(land.data.x_train[:4]), torch.bfloat16, torch.float16)
    alter_steps(graph, monkeypatch, lambda losses, gradients: (losses, -gradients))
    theta_KP, batch = torch.randn(2, land.dim), land.batches(8, [0], shared=True)[0]
    given = theta_KP.clone().requires_grad_()
    land.losses(given, batch).sum().backward()
    assert torch.equal(given.grad, land.loop.losses(theta_KP, batch, True)[1])
    evaluated, outputs = [], graph.outputs
    monkeypatch.setattr(graph, "outputs", lambda *rest: evaluated.append(1) or outputs(*rest))
    assert torch.allclose(land.evaluate(theta_KP)["loss"], small_evaluation(land, theta_KP), atol=1e-3)
    assert evaluated
    assert caplog.text.count("takes its steps on the plain loop: its first gradient") == 1
    assert land.arithmetic == "graph, evaluation in float16; loop, steps in float32"


def small_evaluation(land, theta_KP):
    x, y = land.data.split("train")
    logits = (torch.cat(list(land.loop.outputs(theta_P, {}, x, len(x)))) for theta_P in theta_KP)
    return torch.stack([nn.functional.cross_entropy(some, y) for some in logits]).double()


def test_a_step_whose_check_does_not_fit_the_memory_counts(monkeypatch, caplog):
    land = small_landscape()
    graph = Graph(land.loop, labelled(land.data.x_train[:4]), torch.float32, torch.float32)
    monkeypatch.setattr(Loop, "losses", lambda *_: (_ for _ in ()).throw(torch.OutOfMemoryError("no room")))
    theta_KP, batch = torch.randn(3, land.dim), land.batches(8, [0], shared=True)[0]
    for _ in range(2):
        found, _ = graph.losses(theta_KP, batch, True)
    monkeypatch.undo()
    assert torch.allclose(found, land.loop.losses(theta_KP, batch, False)[0])
    assert graph._points_at_once >= 3
    assert caplog.messages == ["engine: a step could not be checked against float32, which does not fit the memory"]


def test_a_check_that_does_not_fit_the_memory_keeps_its_activations_on_the_host(monkeypatch, caplog):
    land = small_landscape()
    graph = Graph(land.loop, labelled(land.data.x_train[:4]), torch.float32, torch.float32)
    tries, losses, packed, cpu = [], Loop.losses, [], torch.Tensor.cpu

    def small(*arguments):
        tries.append(len(packed))
        if len(tries) == 1:
            raise torch.OutOfMemoryError("no room")
        return losses(*arguments)

    monkeypatch.setattr(Loop, "losses", small)
    monkeypatch.setattr(torch.Tensor, "cpu", lambda tensor: packed.append(tensor) or cpu(tensor))
    graph.losses(torch.randn(3, land.dim), land.batches(8, [0], shared=True)[0], True)
    assert len(tries) > 1
    assert packed
    assert graph._compared
    assert not caplog.messages


def test_a_graph_needs_a_gpu():
    land = small_landscape(kind="graph")
    with pytest.raises(LowlossError, match="needs a GPU"):
        land.losses(torch.randn(1, land.dim), land.batches(8, [0], shared=True)[0])


def test_bfloat16_steps_on_a_processor_are_float32_to_three_digits():
    loop, _ = engines(FAMILIES["resnet"](input_shape=IMAGE, num_classes=10))
    theta_KP = points(loop, 2)
    batch = Batch(torch.randn(16, *IMAGE), torch.randint(10, (16,)), (0,))
    exact, exact_gradients = loop.losses(theta_KP, batch, True)
    narrow = Loop(loop.module, loop.layout, TASK, torch.bfloat16)
    losses, gradients = narrow.losses(theta_KP, batch, True)
    assert losses.dtype == gradients.dtype == torch.float32
    assert torch.allclose(losses, exact, atol=0.01)
    assert not torch.equal(losses, exact)
    assert (gradients - exact_gradients).norm() <= 0.2 * exact_gradients.norm()


def test_no_points_and_one_point():
    loop, graph = engines(FAMILIES["cnn"](input_shape=IMAGE, num_classes=10))
    batch = Batch(torch.randn(6, *IMAGE), torch.randint(10, (6,)), (0,))
    losses, gradients = graph.losses(points(loop, 1)[:0], batch, True)
    assert losses.shape == (0,)
    assert gradients.shape == (0, loop.layout.dim)
    assert graph.losses(points(loop, 1), batch, True)[1].shape == (1, loop.layout.dim)
    land = small_landscape()
    none = land.evaluate(torch.empty(0, land.dim))
    assert none["loss"].shape == none["error"].shape == (0,)
    with pytest.raises(LowlossError, match="no point to evaluate"):
        tabulate(land, lambda index: torch.zeros(len(index), land.dim), 0)
