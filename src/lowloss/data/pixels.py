"""Images that are kept as uint8."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor


class Pixels:
    """Images kept as uint8, a quarter of their size; those that are asked for come scaled to [0, 1] and normalised.

    Args:
        pixels: (N, channels, ...) uint8.
        mean, std: of each channel (C,), or of all (1,).
    """

    def __init__(self, pixels: Tensor, mean: Tensor, std: Tensor, dtype: torch.dtype = torch.float32) -> None:
        self.pixels, self.mean, self.std, self.dtype = pixels, mean, std, dtype
        self.shape, self.device = tuple(pixels.shape), pixels.device

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: Any, /) -> Tensor:
        after = (1,) * (self.pixels.dim() - 2)
        x = self.pixels[index].float()
        # Divided by a tensor of the device: a GPU multiplies by the reciprocal of a number, which rounds otherwise.
        x.div_(torch.full((), 255.0, device=x.device)).sub_(self.mean.view(-1, *after))
        return x.div_(self.std.view(-1, *after)).to(self.dtype)

    def taken(self, index: Tensor) -> Pixels:
        """Some of them, as uint8 too."""
        return Pixels(self.pixels[index], self.mean, self.std, self.dtype)

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Pixels:
        pixels, mean, std = (tensor.to(device=device) for tensor in (self.pixels, self.mean, self.std))
        return Pixels(pixels, mean, std, dtype or self.dtype)
