"""Three convolutions and three fully connected layers.

`input_shape` is (channels, height, width), and `num_classes` the number of outputs.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from lowloss.checking import Positive
from lowloss.model.simple import Classifier, init_he


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
