"""Residual networks for small images.

`input_shape` is (channels, height, width), and `num_classes` the number of outputs.
"""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn.functional import pad, relu

from lowloss.checking import Few, Fraction, Width
from lowloss.model.simple import init_he


class _Residual(nn.Module):
    """Three stages of blocks, with once, twice and four times `width` channels; the last two halve the image."""

    def __init__(
        self,
        stem: nn.Module,
        block: Callable[[int, int, int], nn.Module],
        channels: int,
        width: int,
        blocks: int,
        classes: int,
    ) -> None:
        super().__init__()
        self.stem, self.blocks = stem, nn.Sequential()
        for outputs, stride in ((width, 1), (2 * width, 2), (4 * width, 2)):
            for i in range(blocks):
                self.blocks.append(block(channels, outputs, stride if i == 0 else 1))
                channels = outputs
        self.classifier = nn.Linear(channels, classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x)
        # One call of all would hold what the first one takes to the end.
        for block in self.blocks:
            x = block(x)
        return self.classifier(x.mean((2, 3)))


SHORTCUTS = ("identity", "projection", "none")


class ResNet(_Residual):
    """ResNet of He et al. 2016, sec. 4.2: depth 6n + 2.

    Args:
        depth: 8, 20, 32, 44, 56, 110, …
        width: channels of the first of three stages; the others have twice and four times as many.
        shortcuts: "identity", parameter-free (their option A); "projection", a 1 × 1 convolution and BatchNorm where
            the shape changes (option B); or "none", the "VGG-like" networks of Li et al. 2018.

    Raises ValueError: the depth is not 6n + 2, or there are no such shortcuts.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: Few = 20,
        width: Width = 16,
        shortcuts: str = "identity",
    ) -> None:
        if shortcuts not in SHORTCUTS:
            raise ValueError(f"shortcuts must be one of {', '.join(SHORTCUTS)}, got {shortcuts!r}")
        if depth < 8 or (depth - 2) % 6:
            raise ValueError(f"a ResNet's depth is 6n + 2 (8, 20, 32, 44, 56, …), got {depth}")
        stem = nn.Sequential(_conv(input_shape[0], width), nn.BatchNorm2d(width), nn.ReLU())
        block = partial(_BasicBlock, shortcuts=shortcuts)
        super().__init__(stem, block, width, width, (depth - 2) // 6, num_classes)


class _BasicBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int, shortcuts: str) -> None:
        super().__init__()
        self.residual = _two_convolutions(inputs, outputs, stride).append(nn.BatchNorm2d(outputs))
        self.stride, self.new_channels, self.plain = stride, outputs - inputs, shortcuts == "none"
        self.projection = None
        if shortcuts == "projection" and self.new_channels:
            convolution = nn.Conv2d(inputs, outputs, 1, stride, bias=False)
            self.projection = nn.Sequential(convolution, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        if self.plain:
            return relu(self.residual(x))
        if self.projection is not None:
            return relu(self.residual(x) + self.projection(x))
        shortcut = x[:, :, :: self.stride, :: self.stride]
        if self.new_channels:
            half = self.new_channels // 2
            shortcut = pad(shortcut, (0, 0, 0, 0, half, self.new_channels - half))
        return relu(self.residual(x) + shortcut)


class WideResNet(_Residual):
    """Wide residual network of Zagoruyko & Komodakis 2016 (WRN-depth-widen), pre-activation, no dropout.

    Args:
        depth: 6n + 4, as 28.
        widen: widening factor k, as 10.

    Raises ValueError: the depth is not 6n + 4.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, depth: Few = 28, widen: Few = 10) -> None:
        if depth < 10 or (depth - 4) % 6:
            raise ValueError(f"a wide ResNet's depth is 6n + 4 (10, 16, 22, 28, …), got {depth}")
        super().__init__(_conv(input_shape[0], 16), _PreActivationBlock, 16, 16 * widen, (depth - 4) // 6, num_classes)
        self.blocks.extend([nn.BatchNorm2d(64 * widen), nn.ReLU()])


class _PreActivationBlock(nn.Module):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.activation = nn.Sequential(nn.BatchNorm2d(inputs), nn.ReLU())
        self.residual = _two_convolutions(inputs, outputs, stride)
        self.shortcut = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if inputs != outputs else None

    def forward(self, x: Tensor) -> Tensor:
        active = self.activation(x)
        shortcut = x if self.shortcut is None else self.shortcut(active)
        return self.residual(active) + shortcut


class PreResNet(_Residual):
    """Pre-activation ResNet of He et al. 2016, Identity mappings in deep residual networks, for small images.

    Where a block changes the channels, its shortcut is a 1 × 1 convolution.

    Args:
        depth: 6n + 2, as 110; with bottlenecks 9n + 2, as 164.
        bottleneck: blocks of 1 × 1, 3 × 3 and 1 × 1 convolutions, the last of four times as many channels.
        width: channels of the 3 × 3 convolutions of the first of three stages.

    Raises ValueError: the depth is no such number.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: Few = 164,
        bottleneck: bool = True,
        width: Width = 16,
    ) -> None:
        per_block = 9 if bottleneck else 6
        if depth < per_block + 2 or (depth - 2) % per_block:
            raise ValueError(f"a pre-activation ResNet's depth is {per_block}n + 2, got {depth}")
        block, outputs = (_PreActivationBottleneck, 4 * width) if bottleneck else (_PreActivationBlock, width)
        stem = _conv(input_shape[0], width)
        super().__init__(stem, block, width, outputs, (depth - 2) // per_block, num_classes)
        self.blocks.extend([nn.BatchNorm2d(4 * outputs), nn.ReLU()])


class _PreActivationBottleneck(_PreActivationBlock):
    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__(inputs, outputs, stride)
        inner = outputs // 4
        layers: list[nn.Module] = [nn.Conv2d(inputs, inner, 1, bias=False), nn.BatchNorm2d(inner), nn.ReLU()]
        layers += [_conv(inner, inner, stride), nn.BatchNorm2d(inner), nn.ReLU()]
        self.residual = nn.Sequential(*layers, nn.Conv2d(inner, outputs, 1, bias=False))


class DenseNet(nn.Module):
    """DenseNet of Huang et al. 2017 for small images: three dense blocks, or as many as are named.

    Args:
        depth: layers in all, as 40 (or 100 with bottlenecks).
        growth: channels that each layer adds.
        bottleneck: DenseNet-BC: 1 × 1 bottlenecks, and transitions that halve the channels.
        layers: dense layers of each block, in place of what follows from the depth: 6, 12, 24 and 16 for DenseNet-121.
        dropout: probability after every convolution but the first; 0.2 in the paper for data without augmentation.

    Raises ValueError: the depth does not divide into three blocks.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        depth: Few = 40,
        growth: Few = 12,
        bottleneck: bool = False,
        dropout: Fraction = 0.0,
        layers: Sequence[Few] | None = None,
    ) -> None:
        super().__init__()
        per_layer = 2 if bottleneck else 1
        if layers is None and (depth <= 4 or (depth - 4) % (3 * per_layer)):
            raise ValueError(f"a DenseNet's depth is {3 * per_layer}n + 4, got {depth}")
        channels = 2 * growth if bottleneck else 16
        counts = [(depth - 4) // (3 * per_layer)] * 3 if layers is None else layers
        parts: list[nn.Module] = [_conv(input_shape[0], channels)]
        for block, count in enumerate(counts):
            for _ in range(count):
                parts.append(_DenseLayer(channels, growth, bottleneck, dropout))
                channels += growth
            if block < len(counts) - 1:
                outputs = channels // 2 if bottleneck else channels
                parts += [nn.BatchNorm2d(channels), nn.ReLU(), nn.Conv2d(channels, outputs, 1, bias=False)]
                parts += [*_dropout(dropout), nn.AvgPool2d(2)]
                channels = outputs
        self.features = nn.Sequential(*parts, nn.BatchNorm2d(channels), nn.ReLU())
        self.classifier = nn.Linear(channels, num_classes)
        init_he(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x).mean((2, 3)))


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Module:
    return nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)


def _two_convolutions(inputs: int, outputs: int, stride: int) -> nn.Sequential:
    return nn.Sequential(_conv(inputs, outputs, stride), nn.BatchNorm2d(outputs), nn.ReLU(), _conv(outputs, outputs))


def _dropout(probability: float) -> list[nn.Module]:
    return [nn.Dropout(probability)] if probability else []


class _DenseLayer(nn.Module):
    def __init__(self, inputs: int, growth: int, bottleneck: bool, dropout: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        if bottleneck:
            layers += [nn.BatchNorm2d(inputs), nn.ReLU(), nn.Conv2d(inputs, 4 * growth, 1, bias=False)]
            layers += _dropout(dropout)
            inputs = 4 * growth
        layers += [nn.BatchNorm2d(inputs), nn.ReLU(), _conv(inputs, growth)]
        self.layers = nn.Sequential(*layers, *_dropout(dropout))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([x, self.layers(x)], dim=1)
