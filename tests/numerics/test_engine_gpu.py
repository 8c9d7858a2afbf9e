"""On a GPU: the graph engine against the plain loop in float32, for each architecture family."""

import copy
import gc
from functools import partial

import pytest
import torch
from sklearn.datasets import load_digits
from torch import nn
from torch.nn.functional import interpolate

from lowloss import Data, LanguageModel, NetworkLandscape, Regression, train_minima
from lowloss.data import CropFlip
from lowloss.data.base import Carry
from lowloss.data.pixels import Pixels
from lowloss.landscape import Batch, Engine
from lowloss.landscape.engine import checked, graph
from lowloss.landscape.engine.convolution import convolution, convolution_backward
from lowloss.landscape.engine.loop import Loop
from lowloss.model import CNN, MLP, VGG16, DenseNet, ResNet, WideResNet

pytestmark = [
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),
]
CUDA = torch.device("cuda")
FAMILIES = {
    "mlp": partial(MLP, hidden=(256, 128), batch_norm=True),
    "cnn": partial(CNN, width=24, depth=2),
    "resnet": partial(ResNet, depth=8),
    "wide resnet": partial(WideResNet, depth=10, widen=2),
    "densenet": partial(DenseNet, depth=10),
    "densenet-bc": partial(DenseNet, depth=16, bottleneck=True),
    "vgg": partial(VGG16, batch_norm=False),
    "vgg-bn": partial(VGG16, batch_norm=True),
}


@pytest.fixture(scope="module")
def data():
    """10,000 noisy, shifted digits as colour images of CIFAR-10's size."""
    generator = torch.Generator().manual_seed(0)
    digits = load_digits()
    x = interpolate(torch.tensor(digits.images, dtype=torch.float32)[:, None] / 8 - 1, size=32, mode="bilinear")
    chosen = torch.randint(len(x), (10_000,), generator=generator)
    x = CropFlip(flip=False)(x[chosen].expand(-1, 3, -1, -1), generator)
    x = x + 0.8 * torch.randn(x.shape, generator=generator)
    y = torch.tensor(digits.target)[chosen]
    return Data(x, y, x[:1000], y[:1000], 10)


@pytest.mark.parametrize("family", FAMILIES)
def test_agrees_with_the_loop_in_float32(family, data, capsys):
    rate = 0.01 if family == "vgg" else 0.05
    land = NetworkLandscape(partial(FAMILIES[family], input_shape=(3, 32, 32), num_classes=10), data, len(data.y_train))
    optimizer = partial(torch.optim.SGD, lr=rate, momentum=0.9)
    minima = train_minima(land, count=2, epochs=3, batch_size=128, optimizer=optimizer, seed=1).theta_KP.to(CUDA)
    land.to(CUDA)
    assert land.engine is not land.loop
    assert land.engine.usable
    # Two minima, and the top of the straight line between them.
    points = torch.stack([minima[0], minima[1], minima.mean(0)])
    fast = land.evaluate(points, "train")
    slow = NetworkLandscape(land.model, data, len(data.y_train), Engine("loop")).to(CUDA).evaluate(points, "train")
    loss, error = (fast["loss"] - slow["loss"]).abs(), (fast["error"] - slow["error"]).abs()
    batch = land.batches(512, [3], shared=True)[0]
    with checked._without_dropout(land.engine.training), checked._without_dropout(land.loop.module):
        land.engine._steps.clear()
        losses, gradients = land.engine.losses(points, batch, True)
        with land.loop.exact():
            exact_losses, exact = land.loop.losses(points, batch, True)
        _, narrow = Loop(land.loop.module, land.layout, land.task, torch.bfloat16).losses(points, batch, True)
    relative, autocast = apart(gradients, exact), apart(narrow, exact)
    with capsys.disabled():
        print(
            f"\n{family:12s} loss {slow['loss'].tolist()} error {slow['error'].tolist()} "
            f"differences: loss {loss.max():.1e}, error {100 * error.max():.3f} points, "
            f"step loss {(losses - exact_losses).abs().max():.1e}, gradient {relative.tolist()}, "
            f"of autocast {autocast.tolist()}"
        )
    assert land._trust["train"].holds(slow["loss"]).all()
    assert land.arithmetic == "graph, steps in bfloat16, evaluation in float16"
    assert loss.max() <= 1e-3
    assert error.max() <= 0.0005
    assert (losses - exact_losses).abs().max() <= 0.02 * exact_losses.abs().max()
    assert relative.max() <= 0.35
    assert (relative <= 1.5 * autocast + 0.01).all()


@pytest.mark.parametrize("family", ["resnet", "mlp", "cnn"])
def test_evaluation_in_parts_agrees_with_the_loop(family, data):
    model = partial(FAMILIES[family], input_shape=(3, 32, 32), num_classes=10)
    land, slow = (NetworkLandscape(model, data, 300, Engine(kind)).to(CUDA) for kind in ("graph", "loop"))
    optimizer = partial(torch.optim.SGD, lr=0.05, momentum=0.9)
    minima = train_minima(land, count=2, epochs=2, batch_size=128, optimizer=optimizer).theta_KP.to(CUDA)
    for split in ("train", "test"):
        found, expected = land.evaluate(minima, split), slow.evaluate(minima, split)
        assert (found["loss"] - expected["loss"]).abs().max() <= 1e-3
        assert (found["error"] - expected["error"]).abs().max() <= 0.0005 + 1 / len(data.split(split)[1])
    assert "losses from" not in land.arithmetic
    # All parts of a length went through together.
    assert land.engine._samples_at_once >= len(data.y_train)


def random_convolution(points, samples, inputs, outputs, size, stride, taps, dtype):
    """x and a gradient of the outputs in a dtype, channels last, and the weights of the points."""

    def images(channels, size):
        x = torch.randn(points * samples, channels, size, size, device=CUDA)
        return x.to(dtype).contiguous(memory_format=torch.channels_last)

    weight = torch.randn(points, outputs, inputs, taps, taps, device=CUDA) / inputs**0.5 / taps
    return images(inputs, size), images(outputs, size // stride), weight


def by_the_library(x, gradient, weight, stride, padding):
    """In float32, from the same rounded numbers: outputs, and the gradients with respect to x and weight."""
    found = []
    with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
        for x_B, gradient_B, weight_k in zip(x.chunk(len(weight)), gradient.chunk(len(weight)), weight, strict=True):
            x_B, weight_k = x_B.float().requires_grad_(), weight_k.to(x.dtype).float().requires_grad_()
            y = nn.functional.conv2d(x_B, weight_k, None, stride, padding)
            found.append((y.detach(), *torch.autograd.grad(y, (x_B, weight_k), gradient_B.float())))
    y, to_x, to_weight = zip(*found, strict=True)
    return torch.cat(y), torch.cat(to_x), torch.stack(to_weight)


def apart(found, expected):
    """Relative distance of each sample, or of each point's weight or gradient."""
    return (found.float() - expected).flatten(1).norm(dim=1) / expected.flatten(1).norm(dim=1)


@pytest.mark.parametrize(
    ("points", "samples", "inputs", "outputs", "size", "stride", "taps"),
    [
        (3, 512, 3, 16, 32, 1, 3),
        (3, 512, 16, 16, 32, 1, 3),
        (3, 512, 16, 32, 32, 2, 3),
        (3, 512, 32, 32, 16, 1, 3),
        (3, 512, 64, 64, 8, 1, 3),
        (3, 512, 3, 64, 32, 1, 3),
        (3, 512, 64, 64, 32, 1, 3),
        (3, 512, 64, 128, 16, 1, 3),
        (3, 512, 128, 128, 16, 1, 3),
        (3, 512, 36, 12, 32, 1, 3),
        (3, 512, 120, 12, 16, 1, 3),
        (10, 128, 16, 16, 32, 1, 3),
        (10, 128, 48, 48, 32, 1, 3),
        (2, 128, 3, 24, 32, 1, 5),
        (3, 512, 24, 24, 16, 1, 5),
        (3, 512, 60, 12, 16, 1, 1),
    ],
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_kernels_agree_with_the_library_on_every_sample(points, samples, inputs, outputs, size, stride, taps, dtype):
    from lowloss.landscape.engine import kernels

    x, gradient, weight = random_convolution(points, samples, inputs, outputs, size, stride, taps, dtype)
    scale, shift = torch.randn(2, points, outputs, device=CUDA)
    padding = taps // 2
    runs = {
        "forward": lambda: kernels.forward(x, weight, stride, padding),
        "with statistics": lambda: kernels.forward_with_statistics(x, weight, stride, padding)[0],
        "normalised": lambda: kernels.forward_normalised(x, weight, scale, shift, True, stride, padding),
        "to input": lambda: kernels.to_input(gradient, x, weight, stride, padding),
        "to weight": lambda: kernels.to_weight(gradient, x, weight, stride, padding),
    }
    y, to_x, to_weight = by_the_library(x, gradient, weight, stride, padding)
    scaled = y.unflatten(0, (points, -1)) * scale[:, None, :, None, None] + shift[:, None, :, None, None]
    expected = dict(zip(runs, (y, y, scaled.relu().flatten(0, 1), to_x, to_weight), strict=True))
    for name, run in runs.items():
        found = run()
        distance = apart(found, expected[name])
        bound = 1e-4 if name == "to weight" else torch.finfo(dtype).eps / 2
        assert distance.max() <= bound, f"{name}: {(distance > bound).sum()} of {len(distance)}, {distance.max():.2g}"
        for _ in range(5):
            assert torch.equal(run(), found), f"{name} does not repeat"


@pytest.mark.parametrize(
    ("inputs", "outputs", "size"), [(128, 256, 8), (256, 256, 8), (256, 512, 4), (512, 512, 4), (512, 512, 2)]
)
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_wide_convolutions_are_right_on_every_sample(inputs, outputs, size, dtype):
    x, gradient, weight = random_convolution(3, 512, inputs, outputs, size, 1, 3, dtype)
    settings = [1, 1], [1, 1], [1, 1], 1
    found = convolution(x, weight, *settings), *convolution_backward(gradient, x, weight, *settings, True)
    for ours, exact in zip(found, by_the_library(x, gradient, weight, 1, 1), strict=True):
        assert apart(ours, exact).max() <= torch.finfo(dtype).eps


class Wandering(nn.Module):
    """Goes another way where the data say so, which no graph can hold."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(4, 2)

    def forward(self, x):
        return self.layer(x) if x.sum() > 0 else self.layer(-x)


def test_data_dependent_control_flow_runs_on_the_loop(caplog):
    x, y = torch.randn(40, 4), torch.randint(2, (40,))
    land = NetworkLandscape(Wandering(), Data(x, y, x, y)).to(CUDA)
    theta_KP = torch.randn(3, land.dim, device=CUDA)
    batch = Batch(x[:8].to(CUDA), y[:8].to(CUDA), (0,))
    expected, _ = land.loop.losses(theta_KP, batch, False)
    assert torch.allclose(land.losses(theta_KP, batch), expected)
    assert caplog.text.count("runs on the plain loop") == 1


def test_any_number_of_points_dropout_and_both_kinds_of_batches():
    data = Data(torch.randn(64, 1, 8, 8), torch.randint(10, (64,)), torch.randn(64, 1, 8, 8), torch.randint(10, (64,)))
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, 10))
    land = NetworkLandscape(net, data, engine=Engine(precision="float32")).to(CUDA)
    theta_KP = torch.stack([land.initial(k) for k in range(5)]).to(CUDA)
    rows = land.batches(16, list(range(5)), shared=False)[0]
    together = land.engine.losses(theta_KP, rows, True)
    again = land.engine.losses(theta_KP, rows, True)
    assert torch.equal(together[0], again[0])
    for k in range(5):
        alone = land.engine.losses(
            theta_KP[k : k + 1], Batch(rows.x[k : k + 1], rows.y[k : k + 1], rows.seeds[k : k + 1], shared=False), True
        )
        assert torch.allclose(alone[0], together[0][k], atol=1e-5)
        assert torch.allclose(alone[1][0], together[1][k], atol=1e-5)
    assert land.engine.usable
    other = land.engine.losses(theta_KP, rows._replace(seeds=tuple(seed + 1 for seed in rows.seeds)), True)
    assert not torch.equal(other[0], together[0])
    assert land.losses(theta_KP[:0], rows).shape == (0,)


@pytest.mark.parametrize("end", [(), (nn.Hardtanh(-100, 100),)], ids=["float32 logits", "bfloat16 logits"])
def test_gradients_at_sure_points_are_as_small_as_in_float32(end, sure):
    data, theta_KP = sure
    land, theta_KP = NetworkLandscape(nn.Sequential(nn.Linear(32, 10), *end), data).to(CUDA), theta_KP.to(CUDA)
    batch = land.batches(512, [0], shared=True)[0]
    # With torch 2.11, a padded product and logits that are rounded only where they are stored, the gradient was off by
    # 230 times its length.
    with torch._inductor.config.patch(force_shape_pad=True):
        losses, gradients = land.losses(theta_KP, batch), land.engine.losses(theta_KP, batch, True)[1]
    exact_losses, exact = land.loop.losses(theta_KP, batch, True)
    assert land.engine.usable
    assert torch.allclose(losses, exact_losses, rtol=0.05, atol=1e-5)
    assert apart(gradients, exact).max() <= 0.05


def test_a_point_that_overflows_16_bits_is_evaluated_in_float32():
    x, y = torch.randn(20, 4), torch.randint(2, (20,))
    land = NetworkLandscape(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), Data(x, y, x, y)).to(CUDA)
    wild = torch.full((1, land.dim), 1e6, device=CUDA) * torch.randn(land.dim, device=CUDA)
    exact, _ = land._columns(land.loop, wild, "train", False, None)
    assert torch.allclose(land.evaluate(wild)["loss"], exact["loss"])
    assert land.evaluate(wild)["loss"].isfinite().all()


def test_chunks_where_the_memory_is_small(monkeypatch):
    data = Data(torch.randn(64, 4), torch.randint(2, (64,)), torch.randn(64, 4), torch.randint(2, (64,)))
    net = nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.Linear(8, 2))
    # In float32, since in 16 bits fewer points at once round otherwise.
    land = NetworkLandscape(net, data, engine=Engine(precision="float32")).to(CUDA)
    theta_KP = torch.randn(5, land.dim, device=CUDA)
    batch = land.batches(16, [0], shared=True)[0]
    whole = copy.copy(land.engine.losses(theta_KP, batch, True))
    step = land.engine._step

    def small(theta, rows, gradients):
        if len(theta) > 2:
            raise torch.OutOfMemoryError("no room")
        return step(theta, rows, gradients)

    monkeypatch.setattr(land.engine, "_step", small)
    parts = land.engine.losses(theta_KP, batch, True)
    assert torch.allclose(whole[0], parts[0], atol=1e-5)
    assert land.engine._points_at_once == 2


def test_batches_of_any_size_run_in_one_process():
    data = Data(torch.randn(640, 3, 16, 16), torch.arange(640) % 10, torch.randn(64, 3, 16, 16), torch.arange(64) % 10)
    land = NetworkLandscape(partial(ResNet, depth=8, input_shape=(3, 16, 16), num_classes=10), data).to(CUDA)
    theta_KP = torch.stack([land.initial(k) for k in range(3)]).to(CUDA)
    for size in (32, 48, 64):
        batch = land.batches(size, [0], shared=True)[0]
        with torch.no_grad():  # as within an autograd.Function
            losses, gradients = land.engine.losses(theta_KP, batch, True)
        assert torch.allclose(losses, land.loop.losses(theta_KP, batch, False)[0], rtol=0.05)
        assert gradients.any()
    assert land.engine.usable


def small():
    data = Data(torch.randn(640, 6), torch.arange(640) % 3, torch.randn(64, 6), torch.arange(64) % 3)
    net = nn.Sequential(nn.Linear(6, 32), nn.ReLU(), nn.Linear(32, 3))
    land = NetworkLandscape(net, data, engine=Engine(precision="float32")).to(CUDA)
    theta_KP = torch.stack([land.initial(k) for k in range(3)]).to(CUDA)
    return land, theta_KP


def test_steps_are_captured_again_when_all_graphs_are_gone():
    land, theta_KP = small()
    batches = land.batches(64, [0], shared=True)
    found = []
    for points in (3, 2, 3):
        found.append(land.engine.losses(theta_KP[:points], batches[0], True))
        assert land.engine.usable
        land.engine._steps.clear()
    assert torch.equal(found[0][0], found[2][0])
    assert torch.equal(found[0][1], found[2][1])


def test_nothing_lives_on_in_the_memory_of_graphs():
    land, theta_KP = small()
    for size in (32, 64):
        land.engine.losses(theta_KP, land.batches(size, [0], shared=True)[0], True)
    pools = {step.graph.pool() for step in land.engine._steps.values()}
    held = [segment for segment in torch.cuda.memory_snapshot() if segment["segment_pool_id"] in pools]
    assert len(pools) == 1
    assert held
    assert not any(segment["allocated_size"] for segment in held)


def test_a_graph_outlives_the_engines_before_it():
    gone, theta_KP = small()
    batch = gone.batches(64, [0], shared=True)[0]
    gone.engine.losses(theta_KP, batch, True)
    land, theta_KP = small()
    expected = land.engine.losses(theta_KP, batch, True)
    del gone
    gc.collect()
    torch.cuda.empty_cache()
    others = [torch.full((4096 << i,), 200, dtype=torch.uint8, device=CUDA) for i in range(16) for _ in range(8)]
    found = land.engine.losses(theta_KP, batch, True)
    assert torch.equal(found[0], expected[0])
    assert torch.equal(found[1], expected[1])
    assert all((other == 200).all() for other in others)


def test_a_minibatch_stays_the_callers():
    land, theta_KP = small()
    first, second = (land.batches(64, [0], shared=True)[step] for step in range(2))
    x, y = first.x.clone(), first.y.clone()
    for points in (1, 3):
        land.engine.losses(theta_KP[:points], first, True)
        land.engine.losses(theta_KP[:points], second, True)
    assert torch.equal(first.x, x)
    assert torch.equal(first.y, y)


def test_a_capture_that_fails_leaves_the_device_as_it_was(monkeypatch, caplog):
    x, y = torch.randn(40, 4), torch.randint(2, (40,))
    land = NetworkLandscape(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 2)), Data(x, y, x, y)).to(CUDA)
    differentiated = graph.differentiated

    def waiting(*arguments, **settings):
        if torch.cuda.is_current_stream_capturing():
            torch.cuda.synchronize()
        return differentiated(*arguments, **settings)

    monkeypatch.setattr(graph, "differentiated", waiting)
    theta_KP = torch.randn(3, land.dim, device=CUDA)
    batch = Batch(x[:8].to(CUDA), y[:8].to(CUDA), (0,))
    stream = torch.cuda.current_stream()
    losses = land.losses(theta_KP, batch)
    assert torch.cuda.current_stream() == stream
    assert not land.engine.usable
    assert "not permitted when stream is capturing" in caplog.text
    assert land.arithmetic == "loop, steps in float32, evaluation in float32"
    assert torch.allclose(losses, land.loop.losses(theta_KP, batch, False)[0])
    assert torch.randn(3, device=CUDA).isfinite().all()


def test_pixels_are_the_same_bits_as_on_the_cpu():
    pixels = torch.arange(256, dtype=torch.uint8).repeat(64, 3, 1).view(64, 3, 16, 16)
    on_cpu = Pixels(pixels, torch.tensor([0.4914, 0.4822, 0.4465]), torch.tensor([0.2470, 0.2435, 0.2616]))
    on_gpu = on_cpu.to(device=CUDA)
    assert torch.equal(on_gpu[:].cpu(), on_cpu[:])
    index = torch.randint(64, (2, 8))
    assert torch.equal(on_gpu[index.to(CUDA)].cpu(), on_cpu[index])


def test_a_regression_is_folded_and_minibatches_follow_the_landscape():
    x = torch.randn(600, 4)
    y = torch.stack([x.sin().sum(1), x.cos().sum(1)], 1)
    given = Data(x, y, x[:100], y[:100], task=Regression.normalised(y))
    land = NetworkLandscape(lambda: nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 2)), given)
    batches = land.batches(100, [0, 1], shared=False)  # before the landscape moves
    land.to(CUDA)
    theta_KP = torch.stack([land.initial(k) for k in range(2)]).to(CUDA)
    losses, gradients = land.engine.losses(theta_KP, batches[0], True)
    assert land.engine is not land.loop
    assert land.engine.usable
    exact, exact_gradients = land.loop.losses(theta_KP, batches[0], True)
    assert torch.allclose(losses, exact, rtol=0.02)
    assert apart(gradients, exact_gradients).max() <= 0.05
    v_KP = torch.randn_like(theta_KP)
    on_cpu = NetworkLandscape(land.model, given)
    expected = on_cpu.product(theta_KP.cpu(), v_KP.cpu(), "train")
    assert apart(land.product(theta_KP, v_KP, "train").cpu(), expected).max() <= 1e-4


def test_a_carried_state_continues_on_the_device():
    class Recurrent(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed, self.lstm, self.head = nn.Embedding(9, 8), nn.LSTM(8, 16, batch_first=True), nn.Linear(16, 9)

        def forward(self, x, state=None):
            h, state = self.lstm(self.embed(x), state)
            return self.head(h), state

    tokens = torch.randint(9, (40, 6))
    land = NetworkLandscape(Recurrent, Data(tokens, tokens, tokens, tokens, task=LanguageModel(9), streams=4)).to(CUDA)
    theta_KP = torch.stack([land.initial(k) for k in range(2)]).to(CUDA)
    carry = Carry(2)
    for step in range(2):
        x = tokens[step * 4 : step * 4 + 4].to(CUDA)
        losses = land.losses(theta_KP, Batch(x, x, (0, 1), carry=carry))
    assert losses.is_cuda
    assert carry.states[0][0].is_cuda
    slow = NetworkLandscape(Recurrent, Data(tokens, tokens, tokens, tokens, task=LanguageModel(9), streams=4))
    expected, found = slow.evaluate(theta_KP.cpu()), land.evaluate(theta_KP)
    assert torch.allclose(found["perplexity"], expected["perplexity"], rtol=1e-4)


class Sequence(nn.Module):
    """What cannot be folded: an embedding, a recurrent layer or attention, and dropout."""

    def __init__(self, kind, dropout=0.0, host=False):
        super().__init__()
        self.embed, self.drop, self.host = nn.Embedding(50, 32), nn.Dropout(dropout), host
        if kind == "lstm":
            self.layers = nn.LSTM(32, 32, batch_first=True)
        else:
            layer = nn.TransformerEncoderLayer(32, 4, 64, dropout=dropout, batch_first=True)
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
        self.head = nn.Linear(32, 10)

    def forward(self, x):
        hidden = self.layers(self.drop(self.embed(x)))
        hidden = (hidden[0] if isinstance(hidden, tuple) else hidden).mean(1)
        if self.host and torch.rand(()) < 0.5:
            hidden = 2 * hidden
        return self.head(hidden)


@pytest.mark.parametrize(("kind", "dropout"), [("lstm", 0.0), ("lstm", 0.3), ("encoder", 0.0), ("encoder", 0.3)])
def test_what_cannot_be_folded_is_captured_with_the_loops_numbers(kind, dropout):
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(50, (640, 12), generator=generator)
    data = Data(x, x[:, 0] % 10, x[:64], x[:64, 0] % 10, 10)
    land = NetworkLandscape(Sequence(kind, dropout), data).to(CUDA)
    start_P = land.point(land.loop.module).to(CUDA)
    for points, shared in ((1, True), (3, False), (3, True), (20, False)):  # 20 are more than one graph holds
        batches = land.batches(64, list(range(points)), shared)
        theta_KP = start_P + 0.05 * torch.randn(points, land.dim, generator=generator).to(CUDA)
        for step in range(6):
            land.engine.losses(theta_KP, batches[step], True)
        losses_K, gradients_KP = land.engine.losses(1.1 * theta_KP, batches[7], True)
        exact_K, exact_KP = land.loop.losses(1.1 * theta_KP, batches[7], True)
        torch.testing.assert_close(losses_K, exact_K, rtol=1e-5, atol=1e-6)
        assert apart(gradients_KP, exact_KP).max() < 1e-4
    assert land.engine.captured.used
    assert land.engine.captured.usable
    assert land.arithmetic.startswith("loop, steps captured in float32")


def test_random_numbers_of_the_host_are_not_captured(caplog):
    x = torch.randint(50, (640, 12), generator=torch.Generator().manual_seed(0))
    land = NetworkLandscape(Sequence("lstm", host=True), Data(x, x[:, 0] % 10, x[:64], x[:64, 0] % 10, 10)).to(CUDA)
    theta_1P = land.point(land.loop.module).to(CUDA)[None]
    batches = land.batches(64, [0], shared=True)
    for step in range(6):
        ours, exact = (engine.losses(theta_1P, batches[step], True) for engine in (land.engine, land.loop))
        torch.testing.assert_close(ours[0], exact[0])
    assert not land.engine.captured.usable
    assert "random numbers on the host" in caplog.text
