"""Samples that are read when they are asked for: a folder of images, and any torch Dataset.

Shapes: N samples of a split, B samples of a minibatch, K points; images are (3, S, S).
"""

import copy
import os
from collections.abc import Callable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from math import log
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from lowloss.checking import Few, Index, Positive
from lowloss.data.base import Data, Inputs
from lowloss.data.pixels import Pixels
from lowloss.errors import LowlossError, check_number, reason

HELD = 2 * 1024**3
"""Bytes up to which a split of a Dataset is kept in memory."""

PART = 1024
"""Samples of a Dataset that are read at once, where only their targets are kept."""

SUFFIXES = (".jpeg", ".jpg", ".png", ".bmp", ".webp", ".ppm")

SCALE, RATIO, TRIES = (0.08, 1.0), (3 / 4, 4 / 3), 10
"""Share of the area and aspect ratio of random crops, and how often one that does not fit is drawn anew."""


class Samples:
    """The inputs of a split that threads read when they are asked for, in the caller's thread if there are none.

    Args:
        samples: N.
        like: what a sample is like.
        workers: threads.
    """

    def __init__(self, samples: int, like: Tensor, workers: int) -> None:
        check_number("workers", workers, int, 0)
        self.shape, self.read_dtype, self.workers = (samples, *like.shape), like.dtype, workers
        self.device, self.dtype = torch.device("cpu"), None if not like.is_floating_point() else like.dtype
        self._threads: ThreadPoolExecutor | None = None

    def read(self, sample: int, drawn: Tensor | None) -> Tensor:
        """A sample, augmented by random numbers if there are any. Raises LowlossError."""
        raise NotImplementedError

    def draw(self, samples: int, seed: int) -> Tensor | None:
        """What augments so many samples (B, ...); None: nothing does."""
        return None

    def finish(self, x: Tensor) -> Tensor:
        """What is left to do on the device."""
        return x if self.dtype is None else x.to(self.dtype)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, index: Any, /) -> Tensor:
        index = index.cpu() if isinstance(index, Tensor) else index
        return self._read(torch.arange(len(self))[index], None)()

    def request(self, index_KB: Tensor, seeds: Sequence[int]) -> Callable[[], Tensor]:
        drawn = [self.draw(index_KB.shape[1], seed) for seed in seeds]
        return self._read(index_KB, None if drawn[0] is None else torch.cat([d for d in drawn if d is not None]))

    def _read(self, index: Tensor, drawn: Tensor | None) -> Callable[[], Tensor]:
        x = torch.empty((index.numel(), *self.shape[1:]), dtype=self.read_dtype)

        def read(places: Sequence[tuple[int, int]]) -> None:
            for place, sample in places:
                found = self.read(sample, None if drawn is None else drawn[place])
                _check_like(found, x[0], f"sample {sample}")
                x[place] = found

        places = list(enumerate(index.flatten().tolist()))
        begun: list[Future[None]] = []
        if self.workers:
            self._threads = self._threads or ThreadPoolExecutor(self.workers)
            size = max(1, len(places) // (4 * self.workers))
            begun = [self._threads.submit(read, places[i : i + size]) for i in range(0, len(places), size)]

        def ready() -> Tensor:
            try:
                for future in begun:
                    future.result()
            except BaseException:
                for future in begun:
                    future.cancel()
                raise
            if not begun:
                read(places)
            return self.finish(x.to(self.device)).view(*index.shape, *self.shape[1:])

        return ready

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Inputs:
        other = copy.copy(self)
        other.device = self.device if device is None else torch.device(device)
        other.dtype = self.dtype if self.dtype is None or dtype is None else dtype
        return other

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_threads": None}


class ImageFiles(Samples):
    """Image files, decoded to (3, size, size), normalised on the device.

    They are resized so that their shorter side is size · 256 / 224, and cropped to their centre; training minibatches
    of those with `augment` are random crops and mirrored at random instead (Szegedy et al. 2015, sec. 6).
    """

    def __init__(
        self, files: Sequence[str], size: int, workers: int, mean: Sequence[float], std: Sequence[float], augment: bool
    ) -> None:
        super().__init__(len(files), torch.empty((3, size, size), dtype=torch.uint8), workers)
        self.files, self.size, self.augment, self.dtype = files, size, augment, torch.float32
        self.mean, self.std = (torch.tensor(list(value), dtype=torch.float32) for value in (mean, std))

    def read(self, sample: int, drawn: Tensor | None) -> Tensor:
        from PIL import Image

        try:
            with Image.open(self.files[sample]) as file:
                image = file.convert("RGB")
        except Exception as error:  # decoders raise whatever they like on broken files
            raise LowlossError(f"{self.files[sample]} cannot be read ({reason(error)}): mend or delete it") from error
        if drawn is None:
            image = centred(image, self.size)
        else:
            left, top, width, height = box(drawn[:-1].view(TRIES, 4), image.width, image.height)
            image = image.crop((left, top, left + width, top + height))
            image = image.resize((self.size, self.size), Image.Resampling.BILINEAR)
            image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if drawn[-1] < 0.5 else image
        return torch.from_numpy(np.array(image)).permute(2, 0, 1)

    def draw(self, samples: int, seed: int) -> Tensor | None:
        if not self.augment:
            return None
        return torch.rand(samples, 4 * TRIES + 1, generator=torch.Generator().manual_seed(seed))

    def finish(self, x: Tensor) -> Tensor:
        assert self.dtype is not None
        return Pixels(x, self.mean.to(x.device), self.std.to(x.device), self.dtype)[:]


def centred(image: Any, size: int) -> Any:
    """The centre (size, size) of a PIL image whose shorter side becomes size · 256 / 224."""
    from PIL import Image

    shorter = size * 256 // 224
    width, height = (int(shorter * side / min(image.size)) for side in image.size)
    left, top = (round((side - size) / 2) for side in (width, height))
    resized = image.resize((width, height), Image.Resampling.BILINEAR)
    return resized.crop((left, top, left + size, top + size))


def box(numbers_T4: Tensor, width: int, height: int) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop, from uniform numbers in [0, 1) of several tries.

    A try has an area of 8 to 100 % of the image's and an aspect ratio of 3/4 to 4/3, uniform in its logarithm, as in
    torchvision's RandomResizedCrop. Where none fits, it is the largest central crop of a ratio that is allowed.
    """
    low, high = (log(ratio) for ratio in RATIO)
    for share, shape, x, y in numbers_T4.tolist():
        area = (SCALE[0] + (SCALE[1] - SCALE[0]) * share) * width * height
        ratio = np.exp(low + (high - low) * shape)
        w, h = round((area * ratio) ** 0.5), round((area / ratio) ** 0.5)
        if 0 < w <= width and 0 < h <= height:
            return int(x * (width - w + 1)), int(y * (height - h + 1)), w, h
    w, h = min(width, round(height * RATIO[1])), min(height, round(width / RATIO[0]))
    return (width - w) // 2, (height - h) // 2, w, h


def image_folder(
    root: str,
    size: Few = 224,
    workers: Index | None = None,
    train: str = "train",
    test: str = "val",
    mean: Sequence[float] = (0.485, 0.456, 0.406),
    std: Sequence[Positive] = (0.229, 0.224, 0.225),
    augment: bool = True,
) -> Data:
    """Images in root/train/<class>/ and root/val/<class>/, as ImageNet has them, decoded when they are asked for.

    Args:
        size: pixels a side.
        workers: threads that decode; by default as many as torch computes with.
        train, test: the folders of the splits.
        mean, std: of each channel; by default ImageNet's.
        augment: whether training minibatches are random crops and mirrored at random.

    Raises LowlossError: a folder is missing or empty, or the splits' classes differ; when it is read, a broken image.
    """
    check_number("data.size", size, int, 8)
    if len(mean) != 3 or len(std) != 3 or not min(std) > 0:
        raise LowlossError(f"data.mean and data.std have three entries, those of std positive: got {mean} and {std}")
    splits = [_classes(Path(root) / name) for name in (train, test)]
    for (one, other), name in zip((splits, splits[::-1]), (test, train), strict=True):
        if lacking := sorted(set(one) - set(other)):
            raise LowlossError(f"{Path(root) / name} lacks the class folder {lacking[0]}: give both splits the same")
    threads = torch.get_num_threads() if workers is None else workers
    x_train, x_test = (
        ImageFiles([file for files in classes.values() for file in files], size, threads, mean, std, augments)
        for classes, augments in zip(splits, (augment, False), strict=True)
    )
    y_train, y_test = (
        torch.tensor([i for i, files in enumerate(classes.values()) for _ in files]) for classes in splits
    )
    return Data(x_train, y_train, x_test, y_test, len(splits[0]))


def _classes(folder: Path) -> dict[str, list[str]]:
    """The image files of each class, in the order of their names."""
    if not folder.is_dir():
        raise LowlossError(f"{folder} does not exist: set data.root to a folder with one folder a split, each a class")
    classes = {}
    for entry in sorted((entry for entry in os.scandir(folder) if entry.is_dir()), key=lambda entry: entry.name):
        classes[entry.name] = sorted(file.path for file in os.scandir(entry) if file.name.lower().endswith(SUFFIXES))
        if not classes[entry.name]:
            raise LowlossError(f"{entry.path} holds no image ({', '.join(SUFFIXES)}): delete it or fill it")
    if not classes:
        raise LowlossError(f"{folder} holds no folder of a class: put the images into one folder a class")
    return classes


class DatasetSamples(Samples):
    """The inputs of a torch Dataset of (x, y).

    y_N: the targets of the samples that have been read.
    """

    def __init__(self, dataset: Any, workers: int) -> None:
        x, y = _sample(dataset, 0)
        super().__init__(len(dataset), x, workers)
        self.dataset, self.y_N = dataset, y.new_zeros((len(dataset), *y.shape))

    def read(self, sample: int, drawn: Tensor | None) -> Tensor:
        x, y = _sample(self.dataset, sample)
        _check_like(y, self.y_N[0], f"the target of sample {sample}")
        self.y_N[sample] = y
        return x


def read_dataset(dataset: Any, name: str, workers: int) -> tuple[Inputs, Tensor]:
    """The inputs and targets of a map-style torch Dataset; the inputs are kept where they take at most `HELD` bytes."""
    if not hasattr(dataset, "__len__") or len(dataset) == 0:
        raise LowlossError(f"the {name} dataset is empty or has no length: give a map-style torch Dataset of (x, y)")
    x_N = DatasetSamples(dataset, workers)
    if x_N[:1].nbytes * len(x_N) <= HELD:
        return x_N[:], x_N.y_N
    known = getattr(dataset, "targets", None)
    if known is not None and getattr(dataset, "target_transform", None) is None:
        return x_N, torch.as_tensor(known)
    for first in range(0, len(x_N), PART):
        x_N[first : first + PART]
    return x_N, x_N.y_N.clone()


def _sample(dataset: Any, sample: int) -> tuple[Tensor, Tensor]:
    try:
        x, y = dataset[sample]
        if hasattr(x, "getbands"):
            raise TypeError("x is an image: give the dataset a transform that makes it a tensor")
        return torch.as_tensor(x), torch.as_tensor(y)
    except Exception as error:  # whatever a dataset raises
        raise LowlossError(
            f"sample {sample} of the dataset cannot be read as tensors (x, y): {reason(error)}"
        ) from error


def _check_like(found: Tensor, first: Tensor, what: str) -> None:
    if found.shape != first.shape or found.dtype != first.dtype:
        kinds = [f"{t.dtype} of shape {tuple(t.shape)}".removeprefix("torch.") for t in (found, first)]
        raise LowlossError(f"{what} is {kinds[0]}, and the first is {kinds[1]}: let all be alike")
