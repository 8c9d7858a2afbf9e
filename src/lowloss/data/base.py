"""A data set in memory, its minibatches and its augmentation, all on the device.

Shapes: N samples, B samples of a minibatch, K points; images are (channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from lowloss.errors import LowlossError, check_number
from lowloss.seeding import derive

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Batch(NamedTuple):
    """A minibatch, either shared by all points or one for each of the K points.

    x: (B, ...) shared, or (K, B, ...).  y: (B,) shared, or (K, B).
    seeds: what fixes the randomness inside the network (dropout), one a point, or one for all.
    """

    x: Tensor
    y: Tensor
    seeds: tuple[int, ...]

    @property
    def shared(self) -> bool:
        return self.y.dim() == 1

    def row(self, k: int) -> tuple[Tensor, Tensor, int]:
        """x (B, ...), y (B,) and the seed for point k."""
        if self.shared:
            return self.x, self.y, self.seeds[0]
        return self.x[k], self.y[k], self.seeds[k]


class Data:
    """A classification data set held as four tensors.

    Args:
        x_train, x_test: (N, ...) inputs, already normalised.
        y_train, y_test: (N,) class indices from 0.
        num_classes: by default one more than the largest label.
        augment: called as `augment(x_B, generator)` on every training minibatch, never in evaluation.

    Raises:
        LowlossError: the tensors do not fit together.
    """

    def __init__(
        self,
        x_train: Tensor,
        y_train: Tensor,
        x_test: Tensor,
        y_test: Tensor,
        num_classes: int | None = None,
        augment: Augmentation | None = None,
    ) -> None:
        for y in (y_train, y_test):
            if y.is_floating_point() or y.is_complex() or y.dtype == torch.bool:
                raise LowlossError(f"labels must be integers, got {y.dtype}")
        self.x_train, self.y_train = x_train, y_train.long()
        self.x_test, self.y_test = x_test, y_test.long()
        for split in ("train", "test"):
            x, y = self.split(split)
            if y.dim() != 1 or len(x) != len(y) or len(y) == 0:
                raise LowlossError(
                    f"the {split} split needs as many labels (N,) as inputs (N, ...), both at least one: "
                    f"got x {tuple(x.shape)}, y {tuple(y.shape)}"
                )
            if x.is_floating_point() and not x.isfinite().all():
                raise LowlossError(f"the {split} split's inputs hold NaN or infinite values: clean them first")
        if x_train.shape[1:] != x_test.shape[1:]:
            shapes = f"{tuple(x_train.shape[1:])} and {tuple(x_test.shape[1:])}"
            raise LowlossError(f"the train and test splits differ in their inputs' shape: {shapes}")
        largest = int(max(self.y_train.max(), self.y_test.max()))
        self.num_classes = largest + 1 if num_classes is None else num_classes
        smallest = int(min(self.y_train.min(), self.y_test.min()))
        if largest >= self.num_classes or smallest < 0:
            found = f"these lie in {smallest} … {largest}"
            raise LowlossError(f"labels must lie in 0 … {self.num_classes - 1}, and {found}")
        self.augment = augment

    @property
    def input_shape(self) -> tuple[int, ...]:
        return tuple(self.x_train.shape[1:])

    def split(self, name: str) -> tuple[Tensor, Tensor]:
        """x (N, ...) and y (N,) of "train" or "test"."""
        if name == "train":
            return self.x_train, self.y_train
        if name == "test":
            return self.x_test, self.y_test
        raise ValueError(f"splits are train and test, not {name!r}")

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> None:
        """Move everything to a device; convert floating inputs to a dtype."""
        for name in ("x_train", "y_train", "x_test", "y_test"):
            tensor: Tensor = getattr(self, name)
            converted = dtype if tensor.is_floating_point() else None
            setattr(self, name, tensor.to(device=device, dtype=converted))


class Batches:
    """The training minibatches of every step: `batches[step]` depends on the step and the seeds alone.

    Each epoch visits the samples in a fresh random order; an incomplete last minibatch is dropped. With `shared`,
    one minibatch of the first seed serves all points; else each seed has its own order and augmentation, so a row
    trained with others sees what it would see alone.
    """

    def __init__(self, data: Data, size: int, seeds: Sequence[int], shared: bool) -> None:
        check_number("batch_size", size, int, 1)
        self.data, self.seeds, self.shared = data, tuple(seeds), shared
        self.size = min(size, len(data.y_train))
        self.steps_per_epoch = len(data.y_train) // self.size
        self._epoch, self._order_KN = -1, torch.empty(0)

    def __getitem__(self, step: int, /) -> Batch:
        epoch, i = divmod(step, self.steps_per_epoch)
        index_KB = self._order(epoch)[:, i * self.size : (i + 1) * self.size]
        seeds = tuple(derive(seed, "step", step) for seed in self.seeds)
        x_KB, y_KB = self._augment(self.data.x_train[index_KB], seeds), self.data.y_train[index_KB]
        return Batch(x_KB[0], y_KB[0], seeds) if self.shared else Batch(x_KB, y_KB, seeds)

    def _order(self, epoch: int) -> Tensor:
        if epoch != self._epoch:
            samples = len(self.data.y_train)
            generators = [torch.Generator().manual_seed(derive(seed, "epoch", epoch)) for seed in self.seeds]
            order_KN = torch.stack([torch.randperm(samples, generator=g) for g in generators])
            self._epoch, self._order_KN = epoch, order_KN.to(self.data.y_train.device)
        return self._order_KN

    def _augment(self, x_KB: Tensor, seeds: Sequence[int]) -> Tensor:
        augment = self.data.augment
        if augment is None:
            return x_KB
        streams = [derive(seed, "augment") for seed in seeds]
        if isinstance(augment, CropFlip):
            # One call for all rows: a GPU would otherwise spend longer on ten augmentations than on ten gradients.
            drawn = [augment.draw(x_KB.shape[1], torch.Generator().manual_seed(seed)) for seed in streams]
            return augment.apply(x_KB.flatten(0, 1), torch.cat(drawn)).unflatten(0, x_KB.shape[:2])
        generators = [torch.Generator(device=x_KB.device).manual_seed(seed) for seed in streams]
        return torch.stack([augment(x_B, generator) for x_B, generator in zip(x_KB, generators, strict=True)])


class CropFlip:
    """Random crops of the zero-padded image and horizontal flips (He et al. 2016, sec. 4.2).

    Padding happens after normalisation, so a padded pixel has the mean colour.

    Args:
        padding: pixels added on each side before the crop.
        flip: whether to mirror half of the images.
    """

    def __init__(self, padding: int = 4, flip: bool = True) -> None:
        self.padding, self.flip = padding, flip

    def __call__(self, x_B: Tensor, generator: torch.Generator) -> Tensor:
        return self.apply(x_B, self.draw(len(x_B), generator))

    def draw(self, samples: int, generator: torch.Generator) -> Tensor:
        """Row offset, column offset and whether to flip, (B, 3), on the generator's device."""
        high = (2 * self.padding + 1, 2 * self.padding + 1, 2 if self.flip else 1)
        drawn = [torch.randint(h, (samples,), generator=generator, device=generator.device) for h in high]
        return torch.stack(drawn, dim=1)

    def apply(self, x_B: Tensor, drawn_B3: Tensor) -> Tensor:
        """The crops of x (B, C, H, W) that were drawn."""
        samples, _, height, width = x_B.shape
        pad, device = self.padding, x_B.device
        if x_B.is_cuda and not drawn_B3.is_cuda:
            drawn_B3 = drawn_B3.pin_memory()
        top_B1, left_B1, flip_B1 = drawn_B3.to(device, non_blocking=True)[:, :, None].unbind(1)
        rows_BH = top_B1 + torch.arange(height, device=device)
        columns_BW = left_B1 + torch.arange(width, device=device)
        columns_BW = torch.where(flip_B1 == 1, columns_BW.flip(1), columns_BW)
        padded = torch.nn.functional.pad(x_B, (pad, pad, pad, pad))
        sample_B11 = torch.arange(samples, device=device)[:, None, None]
        return padded[sample_B11, :, rows_BH[:, :, None], columns_BW[:, None, :]].permute(0, 3, 1, 2)
