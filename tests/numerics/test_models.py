"""Networks against the parameter counts and the layout of the papers."""

from collections.abc import Callable, Sequence
from itertools import pairwise
from math import sqrt

import pytest
import torch
from torch import nn

from lowloss.model import CNN, LSTM, MLP, VGG9, VGG16, ConvFC, DenseNet, PreResNet, ResNet, SimpleCNN, WideResNet

CIFAR = (3, 32, 32)


def count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


PUBLISHED: dict[str, tuple[Callable[[], nn.Module], int]] = {
    "ResNet-8": (lambda: ResNet(CIFAR, 10, depth=8), 75_290),
    "ResNet-20": (lambda: ResNet(CIFAR, 10, depth=20), 269_722),
    "ResNet-32": (lambda: ResNet(CIFAR, 10, depth=32), 464_154),
    "ResNet-44": (lambda: ResNet(CIFAR, 10, depth=44), 658_586),
    "ResNet-56": (lambda: ResNet(CIFAR, 10, depth=56), 853_018),
    "DenseNet-121": (lambda: DenseNet(CIFAR, 10, growth=32, bottleneck=True, layers=(6, 12, 24, 16)), 6_956_298),
    "DenseNet-40-12": (lambda: DenseNet(CIFAR, 10, depth=40, growth=12), 1_019_722),
    "DenseNet-100-12-BC": (lambda: DenseNet(CIFAR, 10, depth=100, growth=12, bottleneck=True), 769_162),
    "WRN-28-10": (lambda: WideResNet(CIFAR, 10, depth=28, widen=10), 36_479_194),
    "ResNet-110": (lambda: ResNet(CIFAR, 10, depth=110), 1_727_962),
    "PreResNet-110": (lambda: PreResNet(CIFAR, 10, depth=110, bottleneck=False), 1_730_522),
    "PreResNet-164": (lambda: PreResNet(CIFAR, 10, depth=164), 1_703_258),
    "VGG-16": (lambda: VGG16(CIFAR, 10), 15_245_130),
}


@pytest.mark.parametrize("name", PUBLISHED)
def test_parameters_and_outputs(name: str) -> None:
    build, parameters = PUBLISHED[name]
    with torch.device("meta"):
        module = build().eval()
        assert count(module) == parameters
        assert module(torch.empty(2, *CIFAR)).shape == (2, 10)


@pytest.mark.parametrize(
    ("name", "millions"),
    [
        # Table 6 of He et al. 2016, and table 2 of Huang et al. 2017.
        ("ResNet-20", "0.27"),
        ("ResNet-32", "0.46"),
        ("ResNet-44", "0.66"),
        ("ResNet-56", "0.85"),
        ("ResNet-110", "1.7"),
        # Table 4 of He et al. 2016, Identity mappings.
        ("PreResNet-110", "1.7"),
        ("PreResNet-164", "1.7"),
        ("WRN-28-10", "36.5"),
        ("DenseNet-40-12", "1.0"),
        ("DenseNet-100-12-BC", "0.8"),
    ],
)
def test_parameters_as_the_papers_round_them(name: str, millions: str) -> None:
    digits = len(millions.partition(".")[2])
    assert f"{PUBLISHED[name][1] / 1e6:.{digits}f}" == millions


@pytest.mark.parametrize("bottleneck", [False, True])
def test_densenet_dropout_follows_every_convolution_but_the_first(bottleneck: bool) -> None:
    plain, module = (
        [part for part in DenseNet(CIFAR, 10, 10, 4, bottleneck, dropout).modules() if not list(part.children())]
        for dropout in (0.0, 0.2)
    )
    assert not [part for part in plain if isinstance(part, nn.Dropout)]
    for i, part in enumerate(module):
        assert isinstance(part, nn.Dropout) == (i > 1 and isinstance(module[i - 1], nn.Conv2d))
        assert not isinstance(part, nn.Dropout) or part.p == 0.2


def test_vgg16_with_batch_norm_has_two_parameters_more_a_channel() -> None:
    with torch.device("meta"):
        channels = 2 * 64 + 2 * 128 + 3 * 256 + 6 * 512
        assert count(VGG16(CIFAR, 10, batch_norm=True)) == 15_245_130 + 2 * channels


@pytest.mark.parametrize(("width", "depth"), [(12, 1), (48, 1), (48, 2), (48, 3), (96, 1)])
def test_cnn_by_formula(width: int, depth: int) -> None:
    convolutions = 25 * 3 * width + (depth - 1) * 25 * width**2
    features = width * (32 // 2**depth) ** 2
    # Every layer but the last has BatchNorm (two a unit) in place of a bias.
    expected = convolutions + 2 * width * depth + features * 256 + 2 * 256 + 256 * 10 + 10
    module = CNN(CIFAR, 10, width=width, depth=depth)
    assert count(module) == expected
    assert module(torch.randn(2, *CIFAR)).shape == (2, 10)


def test_mlp_by_formula() -> None:
    assert count(MLP((1, 8, 8), 10, hidden=(20, 30))) == 64 * 20 + 20 + 20 * 30 + 30 + 30 * 10 + 10
    assert count(MLP((1, 8, 8), 10, (20, 30), batch_norm=True)) == 64 * 20 + 40 + 20 * 30 + 60 + 30 * 10 + 10
    assert count(MLP((5,), 3, hidden=())) == 5 * 3 + 3


@pytest.mark.parametrize("shape", [CIFAR, (1, 28, 28), (1, 8, 8)])
@pytest.mark.parametrize(
    "build",
    [
        lambda shape: ResNet(shape, 7, depth=8, width=4),
        lambda shape: WideResNet(shape, 7, depth=10, widen=1),
        lambda shape: WideResNet(shape, 7, depth=16, widen=2),
        lambda shape: PreResNet(shape, 7, depth=11, width=4),
        lambda shape: PreResNet(shape, 7, depth=14, bottleneck=False, width=4),
        lambda shape: DenseNet(shape, 7, depth=10, growth=4),
        lambda shape: DenseNet(shape, 7, depth=10, growth=4, bottleneck=True),
        lambda shape: CNN(shape, 7, width=4, depth=2, hidden=16),
        lambda shape: MLP(shape, 7, hidden=(16,), batch_norm=True),
    ],
)
def test_networks_take_small_images_of_any_size(
    build: Callable[[Sequence[int]], nn.Module], shape: tuple[int, ...]
) -> None:
    module = build(shape)
    logits = module(torch.randn(3, *shape))
    assert logits.shape == (3, 7)
    # Every parameter counts.
    gradients = torch.autograd.grad(logits.square().sum(), list(module.parameters()))
    assert all(gradient.any() for gradient in gradients)


@torch.no_grad()
def test_resnet_shortcuts_subsample_and_pad_with_zeros() -> None:
    module = ResNet(CIFAR, 3, depth=8, width=2).eval()
    for block in module.blocks:
        for part in block.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.zero_()
    x = torch.randn(4, *CIFAR)
    # Without residuals only the stem is left, at every fourth pixel, amid the eight channels.
    stem = module.stem(x)[:, :, ::4, ::4].mean((2, 3))
    features = torch.zeros(4, 8)
    features[:, 3:5] = stem
    torch.testing.assert_close(module(x), module.classifier(features))


def test_convolutions_start_as_he_et_al_say() -> None:
    for module in (ResNet(CIFAR, 10, depth=8), WideResNet(CIFAR, 10, depth=10, widen=2), DenseNet(CIFAR, 10, 40, 12)):
        for part in module.modules():
            if isinstance(part, nn.Conv2d) and part.weight.numel() > 2000:
                fan_out = part.out_channels * part.kernel_size[0] * part.kernel_size[1]
                assert part.weight.std().item() == pytest.approx(sqrt(2 / fan_out), rel=0.1)


@pytest.mark.parametrize("depth", [2, 7, 19, 21, 22])
def test_resnet_depths(depth: int) -> None:
    with pytest.raises(ValueError, match="6n \\+ 2"):
        ResNet(CIFAR, 10, depth=depth)


@pytest.mark.parametrize("depth", [4, 20, 26, 27])
def test_wide_resnet_depths(depth: int) -> None:
    with pytest.raises(ValueError, match="6n \\+ 4"):
        WideResNet(CIFAR, 10, depth=depth)


@pytest.mark.parametrize(("depth", "bottleneck"), [(4, False), (41, False), (4, True), (43, True), (3, False)])
def test_densenet_depths(depth: int, bottleneck: bool) -> None:
    with pytest.raises(ValueError, match="6n \\+ 4" if bottleneck else "3n \\+ 4"):
        DenseNet(CIFAR, 10, depth=depth, bottleneck=bottleneck)


def test_cnn_depths() -> None:
    with pytest.raises(ValueError, match="6 poolings"):
        CNN(CIFAR, 10, depth=6)
    assert CNN(CIFAR, 10, width=2, depth=5)(torch.randn(2, *CIFAR)).shape == (2, 10)


@pytest.mark.parametrize(("depth", "bottleneck"), [(110, True), (164, False), (2, True), (2, False), (10, True)])
def test_pre_activation_depths(depth: int, bottleneck: bool) -> None:
    if bottleneck and depth == 110:  # 9 · 12 + 2 as well
        assert len(PreResNet((1, 8, 8), 3, depth, bottleneck, width=1).blocks) == 3 * 12 + 2
        return
    if depth == 164:  # 6 · 27 + 2 as well
        assert len(PreResNet((1, 8, 8), 3, depth, bottleneck, width=1).blocks) == 3 * 27 + 2
        return
    with pytest.raises(ValueError, match="9n \\+ 2" if bottleneck else "6n \\+ 2"):
        PreResNet(CIFAR, 10, depth, bottleneck)


def test_resnet_158_has_26_blocks_a_stage() -> None:
    with torch.device("meta"):
        assert len(ResNet(CIFAR, 10, depth=158).blocks) == 3 * 26


@pytest.mark.parametrize("scale", [0.3, 0.5, 0.8, 1.0])
def test_3conv3fc_by_formula(scale: float) -> None:
    with torch.device("meta"):
        module = ConvFC(CIFAR, 10, scale)
        convolutions = (25 * 3 + 1) * 32 + (25 * 32 + 1) * 64 + (25 * 64 + 1) * 128
        # 32, 15, 7, 3 pixels a side.
        n = int(1000 * scale)
        assert count(module) == convolutions + (128 * 9 + 1) * n + (n + 1) * n + (n + 1) * 10
        assert module(torch.empty(2, *CIFAR)).shape == (2, 10)
    with pytest.raises(ValueError, match="14 × 32"):
        ConvFC((3, 14, 32), 10, scale)


@pytest.mark.parametrize(("width", "millions"), [(1500, "66"), (650, "20"), (200, "5")])
def test_lstm_of_the_penn_treebank(width: int, millions: str) -> None:
    """Zaremba et al. 2014 count 66 million parameters in the large one."""
    with torch.device("meta"):
        module = LSTM(10_000, width)
        # A layer has four gates, each with weights of inputs and state and two biases.
        assert count(module) == 10_000 * width + 2 * 4 * width * (2 * width + 2) + 10_000 * (width + 1)
    assert f"{count(module) / 1e6:.0f}" == millions


def test_lstm_goes_on_from_its_state() -> None:
    module, x = LSTM(7, width=5, dropout=0.5, span=0.3).eval(), torch.randint(7, (3, 8))
    whole, _ = module(x)
    first, state = module(x[:, :5])
    second, _ = module(x[:, 5:], state)
    torch.testing.assert_close(torch.cat([first, second], 1), whole)
    assert max(float(parameter.detach().abs().max()) for parameter in module.parameters()) <= 0.3


@pytest.mark.parametrize("activation", ["tanh", "relu"])
def test_simple_cnn_by_formula(activation: str) -> None:
    model = SimpleCNN(CIFAR, 10, activation=activation)
    convolutions = 9 * (3 * 16 + 16 * 32 + 32 * 32) + 16 + 32 + 32
    assert count(model) == convolutions + 4 * 4 * 32 * 10 + 10
    x, layers = torch.randn(3, *CIFAR), dict(model.layers.named_children())
    expected = x
    for k in (0, 3, 6):
        convolved = torch.nn.functional.conv2d(expected, layers[str(k)].weight, layers[str(k)].bias, padding=1)
        expected = getattr(torch, activation)(convolved).unfold(2, 2, 2).unfold(3, 2, 2).amax((4, 5))
    torch.testing.assert_close(model(x), layers["10"](expected.flatten(1)))


def test_simple_cnn_has_dropout_where_it_is_asked_for() -> None:
    def drops(model: nn.Module) -> list[float]:
        return [part.p for part in model.modules() if isinstance(part, nn.Dropout)]

    assert (drops(SimpleCNN(CIFAR, 10)), drops(SimpleCNN(CIFAR, 10, dropout=0.3))) == ([], [0.3])
    with pytest.raises(ValueError, match="activation must be one of tanh, relu"):
        SimpleCNN(CIFAR, 10, activation="gelu")
    with pytest.raises(ValueError, match="3 poolings leave nothing of a 4 × 4 image"):
        SimpleCNN((1, 4, 4), 10)


@torch.no_grad()
def test_a_block_without_a_shortcut_is_its_residual_alone() -> None:
    module = ResNet(CIFAR, 10, depth=8, width=4, shortcuts="none").eval()
    features = module.stem(torch.randn(2, *CIFAR))
    for block in module.blocks:
        before, features = features, block(features)
        torch.testing.assert_close(features, block.get_submodule("residual")(before).relu())
    assert features.shape == (2, 16, 8, 8)


@torch.no_grad()
def test_projections_are_where_the_shape_changes() -> None:
    module = ResNet(CIFAR, 10, depth=14, width=4, shortcuts="projection").eval()
    for i, block in enumerate(module.blocks):
        x = torch.randn(2, (4, 4, 4, 8, 8, 16)[i], 8, 8)
        shortcut = block(x) - 0
        for part in block.get_submodule("residual").modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.zero_()
        projection = [part for name, part in block.named_modules() if name == "projection"]
        assert bool(projection) == (i in (2, 4))
        torch.testing.assert_close(block(x), (projection[0](x) if projection else x).relu())
        assert not torch.equal(shortcut, block(x))


@pytest.mark.parametrize("depth", [20, 56, 110, 158])
def test_parameters_of_li_et_als_networks_by_formula(depth: int) -> None:
    with torch.device("meta"):
        plain, identity, projection = (
            count(ResNet(CIFAR, 10, depth, shortcuts=kind)) for kind in ("none", "identity", "projection")
        )
    assert plain == identity
    # Two 1 × 1 convolutions, each with BatchNorm's two a channel.
    assert projection - identity == 16 * 32 + 2 * 32 + 32 * 64 + 2 * 64


def test_vgg9_by_formula() -> None:
    widths = [3, 64, 128, 128, 256, 256, 512, 512]
    convolutions = sum(9 * a * b + 2 * b for a, b in pairwise(widths))
    assert count(VGG9(CIFAR, 10)) == convolutions + 512 * 4 * 4 * 512 + 2 * 512 + 512 * 10 + 10
    assert len([part for part in VGG9(CIFAR, 10).modules() if isinstance(part, (nn.Conv2d, nn.Linear))]) == 9
    assert VGG9((1, 8, 8), 3, width=2, hidden=4)(torch.randn(2, 1, 8, 8)).shape == (2, 3)
    with pytest.raises(ValueError, match="at least 8 × 8"):
        VGG9((1, 7, 8), 3)


def test_unknown_shortcuts() -> None:
    with pytest.raises(ValueError, match="identity, projection, none"):
        ResNet(CIFAR, 10, shortcuts="dense")
