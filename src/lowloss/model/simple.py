"""Fully connected and plain convolutional networks.

`input_shape` is (channels, height, width), of an MLP any, and `num_classes` the number of outputs.
"""

from collections.abc import Sequence
from itertools import pairwise
from math import prod

from torch import Tensor, nn

from lowloss.checking import Few, Fraction, Positive, Width

ACTIVATIONS: dict[str, type[nn.Module]] = {"tanh": nn.Tanh, "relu": nn.ReLU}


class Classifier(nn.Module):
    """Features, and a classifier of them."""

    features: nn.Module
    classifier: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        return self.classifier(self.features(x))


def init_he(module: nn.Module) -> None:
    """Initialise convolutions as in He et al. 2015, their biases with zero."""
    for part in module.modules():
        if isinstance(part, nn.Conv2d):
            nn.init.kaiming_normal_(part.weight, mode="fan_out", nonlinearity="relu")
            if part.bias is not None:
                nn.init.zeros_(part.bias)


class MLP(nn.Module):
    """A multi-layer perceptron.

    Args:
        hidden: widths of the hidden layers.
        batch_norm: whether to normalise each hidden layer.
        activation: a class of torch.nn, as ReLU, Tanh, Sigmoid or Softplus.

    Raises ValueError: torch.nn has no such activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        hidden: Sequence[Width] = (256,),
        batch_norm: bool = False,
        activation: str = "ReLU",
    ) -> None:
        super().__init__()
        if not hasattr(nn.modules.activation, activation):
            raise ValueError(f"torch.nn has no activation {activation!r}: take ReLU, Tanh, Sigmoid or Softplus")
        widths = [prod(input_shape), *hidden]
        layers: list[nn.Module] = [nn.Flatten()]
        for inputs, outputs in pairwise(widths):
            layers.append(nn.Linear(inputs, outputs, bias=not batch_norm))
            if batch_norm:
                layers.append(nn.BatchNorm1d(outputs))
            layers.append(getattr(nn, activation)())
        self.layers = nn.Sequential(*layers, nn.Linear(widths[-1], num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class CNN(Classifier):
    """CNN-W×D of Draxler et al. 2018, sec. 4.2: D times 5 × 5 convolution and max-pooling, one hidden layer.

    Each layer but the last is followed by BatchNorm and ReLU.

    Args:
        width: W, channels of each convolution.
        depth: D, convolutions.
        hidden: units of the fully connected hidden layer.

    Raises ValueError: the image is too small for that many poolings.
    """

    def __init__(
        self, input_shape: Sequence[int], num_classes: int, width: Width = 12, depth: Few = 1, hidden: Width = 256
    ) -> None:
        super().__init__()
        channels, rows, columns = input_shape
        if min(rows, columns) >> depth < 1:
            raise ValueError(f"{depth} poolings leave nothing of a {rows} × {columns} image")
        layers: list[nn.Module] = []
        for _ in range(depth):
            layers.append(nn.Conv2d(channels, width, 5, padding=2, bias=False))
            layers += [nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2)]
            channels = width
        features = width * (rows >> depth) * (columns >> depth)
        self.features = nn.Sequential(*layers, nn.Flatten())
        self.classifier = nn.Sequential(
            nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )


class SimpleCNN(nn.Module):
    """SimpleCNN of Fort & Jastrzebski 2019, sec. 4.1: 3 × 3 convolutions, each with 2 × 2 pooling, and a linear layer.

    The paper names neither the padding, which keeps the size here, nor the kind of pooling, which takes the maximum
    here, nor where dropout is, which acts on the inputs of the linear layer here.

    Args:
        channels: of the convolutions.
        activation: "tanh" or "relu", before each pooling.
        dropout: probability.

    Raises ValueError: the image is too small for that many poolings, or an unknown activation.
    """

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        channels: Sequence[Width] = (16, 32, 32),
        activation: str = "tanh",
        dropout: Fraction = 0.0,
    ) -> None:
        super().__init__()
        inputs, rows, columns = input_shape
        if min(rows, columns) >> len(channels) < 1:
            raise ValueError(f"{len(channels)} poolings leave nothing of a {rows} × {columns} image")
        if activation not in ACTIVATIONS:
            raise ValueError(f"activation must be one of {', '.join(ACTIVATIONS)}, got {activation!r}")
        layers: list[nn.Module] = []
        for outputs in channels:
            layers += [nn.Conv2d(inputs, outputs, 3, padding=1), ACTIVATIONS[activation](), nn.MaxPool2d(2)]
            inputs = outputs
        layers += [nn.Flatten(), *([nn.Dropout(dropout)] if dropout else [])]
        features = inputs * (rows >> len(channels)) * (columns >> len(channels))
        self.layers = nn.Sequential(*layers, nn.Linear(features, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)


class VGG16(Classifier):
    """VGG-16 for small images, as in Garipov et al. 2018: 13 convolutions, two hidden layers with dropout.

    Args:
        batch_norm: whether each convolution is followed by BatchNorm.
        dropout: probability in the hidden layers.
        width: factor on the channels and units of every layer.

    Raises ValueError: the image is smaller than 32 × 32.
    """

    plan = (64, 64, "pool", 128, 128, "pool", 256, 256, 256, "pool", 512, 512, 512, "pool", 512, 512, 512, "pool")

    def __init__(
        self,
        input_shape: Sequence[int],
        num_classes: int,
        batch_norm: bool = False,
        dropout: Fraction = 0.5,
        width: Positive = 1.0,
    ) -> None:
        super().__init__()
        channels, rows, columns = input_shape
        if min(rows, columns) < 32:
            raise ValueError(f"VGG-16's five poolings need images of at least 32 × 32, got {rows} × {columns}")
        layers: list[nn.Module] = []
        for step in self.plan:
            if isinstance(step, str):
                layers.append(nn.MaxPool2d(2))
                continue
            outputs = max(1, round(width * step))
            layers.append(nn.Conv2d(channels, outputs, 3, padding=1))
            if batch_norm:
                layers.append(nn.BatchNorm2d(outputs))
            layers.append(nn.ReLU())
            channels = outputs
        self.features = nn.Sequential(*layers, nn.Flatten())
        features = channels * (rows >> 5) * (columns >> 5)
        hidden = [nn.Dropout(dropout), nn.Linear(features, channels), nn.ReLU()]
        hidden += [nn.Dropout(dropout), nn.Linear(channels, channels), nn.ReLU()]
        self.classifier = nn.Sequential(*hidden, nn.Linear(channels, num_classes))
        init_he(self)


class VGG9(Classifier):
    """VGG-9 for small images (Li et al. 2018, sec. 5), which has BatchNorm after every layer but the last.

    The paper names nine layers and no more. These are chosen: seven 3 × 3 convolutions, max-pooling after the 1st, 3rd
    and 5th of them, and two fully connected layers.

    Args:
        width: channels of the first convolution; the others have 2, 4 and 8 times as many.
        hidden: units of the hidden fully connected layer.

    Raises ValueError: the image is smaller than 8 × 8.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, width: Width = 64, hidden: Width = 512) -> None:
        super().__init__()
        channels, rows, columns = input_shape
        if min(rows, columns) < 8:
            raise ValueError(f"VGG-9's three poolings need images of at least 8 × 8, got {rows} × {columns}")
        layers: list[nn.Module] = []
        for i, factor in enumerate((1, 2, 2, 4, 4, 8, 8)):
            layers.append(nn.Conv2d(channels, factor * width, 3, padding=1, bias=False))
            channels = factor * width
            layers += [nn.BatchNorm2d(channels), nn.ReLU()]
            if i in (0, 2, 4):
                layers.append(nn.MaxPool2d(2))
        self.features = nn.Sequential(*layers, nn.Flatten())
        features = channels * (rows >> 3) * (columns >> 3)
        self.classifier = nn.Sequential(
            nn.Linear(features, hidden, bias=False), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, num_classes)
        )


class ConvFC(Classifier):
    """3conv3fc of Garipov et al. 2018, sec. 4.2: 5 × 5 convolutions with max-pooling, and layers of 1000 K units.

    The convolutions, of 32, 64 and 128 channels, are those of the code published with the paper. The paper's text
    scales every layer by K, its figure 3 the fully connected ones, as is done here.

    Args:
        scale: K, 0.3 to 1 in the paper.

    Raises ValueError: the image is too small for three poolings of 3 × 3 pixels.
    """

    def __init__(self, input_shape: Sequence[int], num_classes: int, scale: Positive = 1.0) -> None:
        super().__init__()
        channels, *sides = input_shape
        layers: list[nn.Module] = []
        for width in (32, 64, 128):
            layers += [nn.Conv2d(channels, width, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
            channels, sides = width, [(side - 3) // 2 + 1 for side in sides]
        if min(sides) < 1:
            raise ValueError(f"three poolings leave nothing of an image of {input_shape[1]} × {input_shape[2]}")
        self.features = nn.Sequential(*layers, nn.Flatten())
        hidden = round(1000 * scale)
        self.classifier = nn.Sequential(
            nn.Linear(channels * sides[0] * sides[1], hidden), nn.ReLU(), nn.Linear(hidden, hidden), nn.ReLU(),
            nn.Linear(hidden, num_classes),
        )  # fmt: skip
        init_he(self)
