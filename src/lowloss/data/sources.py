"""Data sets by name, data that are drawn, and a user's own arrays."""

import zipfile
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from lowloss.checking import Count, Few, Index, Positive
from lowloss.data.base import Augmentation, Data, Inputs
from lowloss.data.language import SPLITS, Text
from lowloss.data.pixels import Pixels
from lowloss.data.task import Regression, Task
from lowloss.errors import LowlossError, check_number

IntArray = npt.NDArray[np.int64]


def digits(
    mean: Sequence[float] | None = None, std: Sequence[Positive] | None = None, augment: Augmentation | None = None
) -> Data:
    """scikit-learn's 1,797 handwritten digits, 8 × 8 pixels, with a fixed stratified split: 1,437 and 360."""
    # Read without scikit-learn, whose import takes seconds: its file, and the split of its train_test_split.
    installed = find_spec("sklearn")
    if installed is None or not installed.submodule_search_locations:
        raise LowlossError("data=digits needs scikit-learn: pip install scikit-learn")
    file = Path(installed.submodule_search_locations[0]) / "datasets" / "data" / "digits.csv.gz"
    rows_N65 = np.loadtxt(file, delimiter=",")
    images = torch.tensor(rows_N65[:, :-1] / 16.0, dtype=torch.float32).view(-1, 1, 8, 8)
    labels = torch.tensor(rows_N65[:, -1].astype(int))
    train, test = stratified_split(labels.numpy(), test_size=360, seed=0)
    return _normalised(images[train], labels[train], images[test], labels[test], 10, mean, std, augment)


def tiny(
    size: Few = 8,
    samples: Few = 128,
    channels: Few = 1,
    steps: Count | None = None,
    streams: Count = 2,
    carry: bool = False,
    outputs: Count | None = None,
) -> Data:
    """The first of the digits, half as many test samples, for trying things out in seconds; or a text or a regression.

    Args:
        size: pixels a side, a multiple of 8: each pixel is repeated.
        samples: of training, at most 720.
        channels: which are all the same.
        steps: of a window, of which a text has as many as samples, where a language model is tried out.
        streams, carry: of the text; see `text`.
        outputs: of a teacher; see `teacher`.
    """
    for key, value, least in (("size", size, 8), ("samples", samples, 2), ("channels", channels, 1)):
        check_number(f"data.{key}", value, int, least)
    if size % 8 or samples > 720:
        raise LowlossError(
            f"data=tiny has a size that is a multiple of 8 and at most 720 samples, got {size}, {samples}"
        )
    if outputs is not None:
        return teacher(outputs=outputs, samples=samples)
    if steps is not None:
        letters = torch.randint(3, (2 * samples * steps + 3,), generator=torch.Generator().manual_seed(0)).cumsum(0) % 7
        parts = letters.split([samples * steps + 1, *2 * [samples * steps // 2 + 1]])
        return Text(dict(zip(SPLITS, parts, strict=True)), "abcdefg", steps, streams, carry)
    data = digits()
    (x_train, y_train), (x_test, y_test) = (
        (x[:count].repeat_interleave(size // 8, 2).repeat_interleave(size // 8, 3).repeat(1, channels, 1, 1), y[:count])
        for count, (x, y) in ((samples, data.split("train")), (samples // 2, data.split("test")))
    )
    return Data(x_train, y_train, x_test, y_test, 10)


def _torchvision(own: str, name: str, what: str) -> Callable[..., Data]:
    """The function of this name that makes the data of a class of torchvision.datasets."""

    def load(
        root: str = "data",
        download: bool = False,
        mean: Sequence[float] | None = None,
        std: Sequence[Positive] | None = None,
        augment: Augmentation | None = None,
    ) -> Data:
        import torchvision

        source: Callable[..., Any] = getattr(torchvision.datasets, name)
        try:
            train, test = (source(root, train=is_train, download=download) for is_train in (True, False))
        except RuntimeError as error:
            raise LowlossError(
                f"{name} is not in {Path(root).resolve()}: set data.root to where it lies, or data.download=true"
            ) from error
        except OSError as error:
            told = f"{name} could not be fetched into {root} ({error}): try again, or set data.root"
            raise LowlossError(told) from error
        x_train, x_test = (_images(split.data) for split in (train, test))
        y_train, y_test = (torch.as_tensor(split.targets) for split in (train, test))
        return _normalised(x_train, y_train, x_test, y_test, len(train.classes), mean, std, augment)

    load.__name__ = load.__qualname__ = own
    load.__doc__ = f"{what}."
    return load


GREY = "60,000 and 10,000 images, 28 × 28 pixels, one channel"
COLOUR = "50,000 and 10,000 images, 32 × 32 pixels, three channels"

mnist = _torchvision("mnist", "MNIST", f"MNIST: {GREY}")
fashion_mnist = _torchvision("fashion_mnist", "FashionMNIST", f"Fashion-MNIST: {GREY}")
cifar10 = _torchvision("cifar10", "CIFAR10", f"CIFAR-10: {COLOUR}")
cifar100 = _torchvision("cifar100", "CIFAR100", f"CIFAR-100: {COLOUR}")


def arrays(
    path: str,
    num_classes: Count | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[Positive] | None = None,
    augment: Augmentation | None = None,
    task: Task | None = None,
) -> Data:
    """A user's own data: an .npz file with x_train, y_train, x_test and y_test.

    x: (N, channels, height, width) or (N, features) of any real type; uint8 is scaled to [0, 1], and may be images
    (N, height, width).  y: (N,) integers, or what the task asks for.
    """
    names = ("x_train", "y_train", "x_test", "y_test")
    if not Path(path).is_file():
        raise LowlossError(f"{path} does not exist: set data.path to an .npz file with {', '.join(names)}")
    try:
        archive = np.load(path, allow_pickle=False)
        if not isinstance(archive, np.lib.npyio.NpzFile):
            raise LowlossError(
                f"{path} holds one array of shape {archive.shape}, as .npy does: store the four arrays with "
                "numpy.savez(path, x_train=..., y_train=..., x_test=..., y_test=...)"
            )
        with archive:
            missing = [name for name in names if name not in archive]
            if missing:
                raise LowlossError(f"{path} lacks {', '.join(missing)}: it must hold {', '.join(names)}")
            x_train, y_train, x_test, y_test = (_numbers(archive, name, path) for name in names)
    except (OSError, ValueError, TypeError, zipfile.BadZipFile) as error:
        raise LowlossError(f"{path} cannot be read as .npz ({error}): write it with numpy.savez") from error
    x_train, x_test = (x[:, None] if x.dtype == torch.uint8 and x.dim() == 3 else x for x in (x_train, x_test))
    return _normalised(x_train, y_train, x_test, y_test, num_classes, mean, std, augment, task)


def _numbers(archive: Any, name: str, path: str) -> Tensor:
    try:
        array = archive[name]
    except ValueError as error:
        if "allow_pickle" not in str(error):
            raise
        raise LowlossError(
            f"{name} of {path} has pickled objects, which are not read: store numbers alone with numpy.savez, as "
            f"{name}.astype(float)"
        ) from error
    if array.dtype.kind not in "biufc":
        numbered = "number the classes, as numpy.unique(y, return_inverse=True)[1] does"
        remedy = numbered if name.startswith("y") else "store numbers"
        raise LowlossError(f"{name} of {path} has no numbers but {array.dtype}: {remedy}")
    return torch.from_numpy(array)


def teacher(
    inputs: Few = 2, hidden: Few = 5, outputs: Few = 1, samples: Few = 1000, activation: str = "ReLU", seed: Index = 0
) -> Data:
    """A random network's outputs for standard normal inputs, to be learned by students (Brea et al. 2019, fig. 1).

    The teacher has one hidden layer; its weights and biases are standard normal. The loss is the squared error, summed
    over the outputs, over the mean square of the targets. As many samples are drawn for the test split.

    Raises LowlossError: torch.nn has no such activation, or all targets are zero.
    """
    if not hasattr(nn.modules.activation, activation):
        raise LowlossError(f"data.activation={activation}: take ReLU, Tanh, Sigmoid, Softplus or another of torch.nn")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    w_HI, b_H, v_OH, c_O = normal(hidden, inputs), normal(hidden), normal(outputs, hidden), normal(outputs)
    x_N = normal(2 * samples, inputs)
    y_N = getattr(nn, activation)()(x_N @ w_HI.T + b_H) @ v_OH.T + c_O
    task = Regression(scale=float(y_N[:samples].square().mean()) / outputs)
    return Data(x_N[:samples], y_N[:samples], x_N[samples:], y_N[samples:], outputs, task=task)


def stratified_split(labels_N: IntArray, test_size: int, seed: int) -> tuple[IntArray, IntArray]:
    """Indices of a train and a test split with the same share of every class; those of sklearn's train_test_split."""
    random = np.random.RandomState(seed)
    counts_C = np.bincount(labels_N)
    train_C = _in_proportion(counts_C, len(labels_N) - test_size, random)
    test_C = _in_proportion(counts_C - train_C, test_size, random)
    train, test = [], []
    for label, (first, second) in enumerate(zip(train_C, test_C, strict=True)):
        index = np.flatnonzero(labels_N == label)[random.permutation(counts_C[label])]
        train.append(index[:first])
        test.append(index[first : first + second])
    return random.permutation(np.concatenate(train)), random.permutation(np.concatenate(test))


def _in_proportion(counts_C: IntArray, total: int, random: np.random.RandomState) -> IntArray:
    """Whole numbers of this total in proportion to the counts: the largest remainders round up, ties by lot."""
    exact_C = counts_C / counts_C.sum() * total
    whole_C = np.floor(exact_C)
    for remainder in np.unique(exact_C - whole_C)[::-1]:
        short = total - int(whole_C.sum())
        if not short:
            break
        tied = np.flatnonzero(exact_C - np.floor(exact_C) == remainder)
        whole_C[random.choice(tied, size=min(len(tied), short), replace=False)] += 1
    return whole_C.astype(int)


def _images(pixels: Any) -> Tensor:
    """(N, channels, height, width) from torchvision's (N, height, width[, channels])."""
    images = torch.as_tensor(pixels)
    return images[:, None] if images.dim() == 3 else images.permute(0, 3, 1, 2)


def _float(x: Tensor) -> Tensor:
    return x.float() / 255 if x.dtype == torch.uint8 else x.float()


def _normalised(
    x_train: Tensor,
    y_train: Tensor,
    x_test: Tensor,
    y_test: Tensor,
    num_classes: int | None,
    mean: Sequence[float] | None,
    std: Sequence[float] | None,
    augment: Augmentation | None,
    task: Task | None = None,
) -> Data:
    """Subtract the mean and divide by the standard deviation, a channel each; by default the training split's.

    Inputs that are uint8 stay so until they are asked for.
    """
    if x_train.dim() < 2 or x_train.shape[1:] != x_test.shape[1:]:
        shapes = f"{tuple(x_train.shape)} and {tuple(x_test.shape)}"
        raise LowlossError(f"inputs need at least two axes (N, features), the same in both splits, got shape {shapes}")
    if x_train.is_complex() or x_test.is_complex():
        raise LowlossError("inputs are complex: store their real and imaginary parts as two channels")
    axes = [axis for axis in range(x_train.dim()) if axis != 1]
    centre_C = _float(x_train).mean(axes) if mean is None else torch.tensor(list(mean), dtype=torch.float32)
    scale_C = _float(x_train).std(axes) if std is None else torch.tensor(list(std), dtype=torch.float32)
    for key, value_C in (("data.mean", centre_C), ("data.std", scale_C)):
        if len(value_C) not in (1, x_train.shape[1]):
            raise LowlossError(f"{key} has {len(value_C)} entries for {x_train.shape[1]} channels")
    if std is not None and not (scale_C > 0).all():
        raise LowlossError(f"data.std must be positive, got {list(std)}: null takes that of the training split")
    scale_C = torch.where(scale_C > 0, scale_C, 1.0)
    train, test = (_scaled(x, centre_C, scale_C) for x in (x_train, x_test))
    return Data(train, y_train, test, y_test, num_classes, augment, task)


def _scaled(x: Tensor, centre_C: Tensor, scale_C: Tensor) -> Inputs:
    if x.dtype == torch.uint8:
        return Pixels(x.contiguous(), centre_C, scale_C)
    after = (1,) * (x.dim() - 2)
    return ((x.float() - centre_C.view(-1, *after)) / scale_C.view(-1, *after)).contiguous()
