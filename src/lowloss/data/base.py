"""A data set, its minibatches and its augmentation.

Shapes: N samples, B samples of a minibatch, K points; images are (channels, height, width).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated, Any, NamedTuple, Protocol, runtime_checkable

import torch
from annotated_types import Ge, Le
from torch import Tensor

from lowloss.data.pixels import Pixels
from lowloss.data.task import Classification, Task
from lowloss.errors import LowlossError, check_number
from lowloss.seeding import derive

Augmentation = Callable[[Tensor, torch.Generator], Tensor]


class Inputs(Protocol):
    """The inputs of a split. A tensor (N, ...) is one; others make samples ready when they are asked for."""

    @property
    def device(self) -> torch.device: ...

    @property
    def shape(self) -> tuple[int, ...]:
        """(N, ...), as `self[:]` would have it."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, index: Any, /) -> Tensor:
        """The samples of a slice, or of indices of any shape (...): (..., *shape[1:]), on the device."""
        ...

    def to(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Inputs:
        """The same on a device; floating samples come in this dtype."""
        ...


@runtime_checkable
class Requested(Inputs, Protocol):
    """Inputs that take long to make ready, so that a minibatch is asked for before it is needed."""

    def request(self, index_KB: Tensor, seeds: Sequence[int]) -> Callable[[], Tensor]:
        """Begin to make training samples ready, augmented by one seed a row; the call that is returned waits for them.

        Args:
            index_KB: on the CPU.
        """
        ...


class Carry:
    """The hidden states of a recurrent network's rows, handed from one minibatch to the next.

    states: one a row, a tensor or a nest of tuples of tensors; None before the first minibatch of an epoch.
    """

    def __init__(self, rows: int) -> None:
        self.states: list[Any] = [None] * rows


class Batch(NamedTuple):
    """A minibatch, either shared by all points or one for each of the K points.

    x: (B, ...) shared, or (K, B, ...).  y: (B, ...) shared, or (K, B, ...).
    seeds: what fixes the randomness inside the network (dropout), one a point, or one for all.
    carry: where a recurrent network's states come from and go to; None: it begins afresh.
    """

    x: Tensor
    y: Tensor
    seeds: tuple[int, ...]
    shared: bool = True
    carry: Carry | None = None

    @property
    def samples(self) -> int:
        """B."""
        return self.y.shape[0 if self.shared else 1]

    def row(self, k: int) -> tuple[Tensor, Tensor, int]:
        """x (B, ...), y (B, ...) and the seed for point k."""
        seed = self.seeds[k] if len(self.seeds) > 1 else self.seeds[0]
        return (self.x, self.y, seed) if self.shared else (self.x[k], self.y[k], seed)

    def part(self, first: int, end: int) -> Batch:
        """Some samples of it."""
        x, y = (t[first:end] if self.shared else t[:, first:end] for t in (self.x, self.y))
        return self._replace(x=x, y=y)


HELD_OUT = "valid"
"""The split that no minimum saw, of data that have one."""

AUGMENTED = "augmented"
"""What `Data.split` calls the training split after one augmentation; `Data.splits` does not name it."""

DRAWN = 1000
"""Images that are augmented at once for that."""


class Data:
    """A data set: inputs and targets of splits, and the task that says what a network's outputs mean.

    Args:
        x_train, x_test: (N, ...) inputs, already normalised.
        y_train, y_test: (N, ...) targets: class indices from 0 (N,), unless a task asks for others.
        num_classes: by default one more than the largest label.
        augment: called as `augment(x_B, generator)` on every training minibatch, never in evaluation.
        task: by default `Classification`.
        more: further splits to evaluate, by name: (x, y) each.
        streams: how many parallel streams the rows of each split are, for recurrent networks, which then carry their
            state in evaluation: row i + streams continues row i. See `lowloss.data.text`.

    Raises LowlossError: the tensors do not fit together.
    """

    def __init__(
        self,
        x_train: Inputs,
        y_train: Tensor,
        x_test: Inputs,
        y_test: Tensor,
        num_classes: int | None = None,
        augment: Augmentation | None = None,
        task: Task | None = None,
        more: Mapping[str, tuple[Inputs, Tensor]] | None = None,
        streams: int | None = None,
    ) -> None:
        self._splits: dict[str, tuple[Inputs, Tensor]] = {"train": (x_train, y_train), "test": (x_test, y_test)}
        self._splits |= more or {}
        for name, pair in self._splits.items():
            for what in pair:
                if not hasattr(what, "shape") or hasattr(what, "__array_interface__"):
                    told = f"{type(what).__name__}: torch.as_tensor makes one"
                elif getattr(what, "is_complex", bool)():
                    told = "complex ones: torch.view_as_real makes two of each number"
                else:
                    continue
                raise LowlossError(f"the {name} split must be tensors of real numbers, got {told}")
        classes = task is None or type(task) is Classification
        if classes:
            for _, y in self._splits.values():
                whole = not y.is_floating_point() or bool((y == y.round()).all())
                remedy = "y.argmax(1) of one-hot rows" if y.dim() > 1 and y.shape[1] > 1 else "y.flatten()"
                if y.dim() != 1 and whole:
                    got = f"{tuple(y.shape)}: take {remedy}"
                    raise LowlossError(f"labels are one integer a sample (N,), got {got}, or give a task")
                if y.is_floating_point() or y.dtype == torch.bool:
                    remedy = "take y.astype(int), or give a task" if whole else "give a task, such as Regression()"
                    raise LowlossError(f"labels must be integers, got {y.dtype}: {remedy}")
        for name, (x, y) in self._splits.items():
            if len(x) != len(y) or len(y) == 0:
                raise LowlossError(
                    f"the {name} split needs as many labels (N,) as inputs (N, ...), both at least one: "
                    f"got x {tuple(x.shape)}, y {tuple(y.shape)}"
                )
            if isinstance(x, Tensor) and x.is_floating_point() and not x.isfinite().all():
                raise LowlossError(
                    f"the {name} split's inputs hold NaN or infinite values: leave these samples out, or replace them, "
                    "as numpy.nan_to_num does"
                )
            if y.is_floating_point() and not y.isfinite().all():
                raise LowlossError(f"the {name} split's targets hold NaN or infinite values: leave these samples out")
            if tuple(x.shape[1:]) != tuple(x_train.shape[1:]):
                shapes = f"{tuple(x_train.shape[1:])} and {tuple(x.shape[1:])}"
                raise LowlossError(f"the train and {name} splits differ in their inputs' shape: {shapes}")
            self._splits[name] = x, y if y.is_floating_point() else y.long()
        self.num_classes = num_classes or getattr(task, "num_classes", None)
        if classes:
            labels = [y for _, y in self._splits.values()]
            largest, smallest = int(max(y.max() for y in labels)), int(min(y.min() for y in labels))
            self.num_classes = largest + 1 if self.num_classes is None else self.num_classes
            if largest >= self.num_classes or smallest < 0:
                found = f"these lie in {smallest} … {largest}"
                raise LowlossError(
                    f"labels must lie in 0 … {self.num_classes - 1}, and {found}: number the classes from 0 on, as "
                    f"numpy.unique(y, return_inverse=True)[1] does{', or raise num_classes' if smallest >= 0 else ''}"
                )
            task = task or Classification(self.num_classes)
        assert task is not None
        self.task: Task = task
        self._augmented: Tensor | None = None
        self.augment, self.streams, self.splits = augment, streams, tuple(self._splits)
        self.input_shape = tuple(x_train.shape[1:])

    @classmethod
    def from_datasets(
        cls,
        train: Any,
        test: Any,
        num_classes: int | None = None,
        augment: Augmentation | None = None,
        task: Task | None = None,
        workers: int = 0,
    ) -> Data:
        """The data of two map-style torch Datasets of (x, y), whose samples are the same whenever they are read.

        Inputs of at most 2 GiB a split are read once and kept; others are read when they are asked for. Random
        transforms belong into `augment`: in a Dataset they would be frozen, or disturb exact evaluation.

        Args:
            workers: threads that read samples, for which a Dataset must be thread-safe; 0 reads in the caller's.

        Raises LowlossError: a sample cannot be read, or is of another shape than the first.
        """
        from lowloss.data.images import read_dataset

        splits = (read_dataset(dataset, name, workers) for dataset, name in ((train, "train"), (test, "test")))
        (x_train, y_train), (x_test, y_test) = splits
        return cls(x_train, y_train, x_test, y_test, num_classes, augment, task)

    @property
    def device(self) -> torch.device:
        return self._splits["train"][1].device

    @property
    def single_class(self) -> int | None:
        """The class of all training labels of a classification, where they are of one."""
        if type(self.task) is not Classification or (self.y_train != self.y_train[0]).any():
            return None
        return int(self.y_train[0])

    def split(self, name: str) -> tuple[Inputs, Tensor]:
        """x (N, ...) and y (N, ...) of a split; of AUGMENTED, x is drawn once and the same in every study."""
        if name == AUGMENTED and self.augments_images:
            if self._augmented is None:
                self._augmented = torch.cat([self._drawn(first) for first in range(0, len(self.y_train), DRAWN)])
            return self._augmented, self.y_train
        if name not in self._splits:
            raise ValueError(f"splits are {', '.join(self._splits)}, not {name!r}")
        return self._splits[name]

    @property
    def augments_images(self) -> bool:
        """Whether the training split is augmented by a function of images that are there, not while they are read."""
        return self.augment is not None and not self.requested

    @property
    def requested(self) -> bool:
        """Whether training samples are made ready when they are asked for."""
        return isinstance(self.x_train, Requested)

    def _drawn(self, first: int) -> Tensor:
        x_B = self.x_train[first : first + DRAWN]
        assert self.augment is not None
        device = torch.device("cpu") if isinstance(self.augment, CropFlip) else x_B.device
        return self.augment(x_B, torch.Generator(device=device).manual_seed(derive(0, AUGMENTED, first)))

    @property
    def x_train(self) -> Inputs:
        return self._splits["train"][0]

    @property
    def y_train(self) -> Tensor:
        return self._splits["train"][1]

    @property
    def x_test(self) -> Inputs:
        return self._splits["test"][0]

    @property
    def y_test(self) -> Tensor:
        return self._splits["test"][1]

    def batches(self, size: int | None, seeds: Sequence[int], shared: bool) -> Batches:
        """Training minibatches, or with None the whole set: one a seed, or with `shared` one for all points."""
        return Batches(self, size, seeds[:1] if shared else seeds, shared)

    def moved(self, device: torch.device | None = None, dtype: torch.dtype | None = None) -> Data:
        """The same data on a device, floating inputs and targets in a dtype; this object stays as it is."""
        other = object.__new__(type(self))
        other.__dict__.update(self.__dict__)
        other._augmented = None

        def to(part: Any) -> Any:
            whole = isinstance(part, Tensor) and not part.is_floating_point()
            return part.to(device=device, dtype=None if whole else dtype)

        other._splits = {name: (to(x), to(y)) for name, (x, y) in self._splits.items()}
        return other

    def some(self, count: int) -> Data:
        """The same data with `count` training samples, evenly from all, read once and not augmented; of rows that
        continue one another, the first ones."""
        x, y = self._splits["train"]
        index = _evenly(min(count, len(y)), len(y))
        if self.streams:
            index = torch.arange(max(1, min(count, len(y)) // self.streams) * self.streams)
        other = self.moved()
        other._splits["train"], other.augment = (x[index], y[index]), None
        return other

    def holding_out(self, count: int) -> Data:
        """The same data with `count` training samples, evenly from all, as the split HELD_OUT instead.

        Raises LowlossError: fewer than one sample is left, there is such a split, or samples continue one another or
            are read when they are asked for.
        """
        x, y = self._splits["train"]
        if HELD_OUT in self._splits or self.streams or self.requested:
            why = f"have a split {HELD_OUT}" if HELD_OUT in self._splits else "continue one another"
            why = "are read when they are asked for" if self.requested else why
            raise LowlossError(f"held_out={count}, but these data {why}: set it to null")
        if count >= len(y):
            raise LowlossError(f"held_out={count} leaves none of {len(y):,} training samples: lower it")
        held_N = torch.zeros(len(y), dtype=torch.bool)
        held_N[_evenly(count, len(y))] = True
        other = self.moved()
        for name, of_N in (("train", ~held_N), (HELD_OUT, held_N)):
            index = of_N.nonzero()[:, 0].to(y.device)
            other._splits[name] = x.taken(index) if isinstance(x, Pixels) else x[index], y[index]
        other.splits = tuple(other._splits)
        return other

    def move(self, device: torch.device) -> None:
        """Move this object itself, so that minibatches which it handed out come from the device too."""
        self._splits, self._augmented = self.moved(device=device)._splits, None


def _evenly(count: int, total: int) -> Tensor:
    """So many indices, evenly from 0 … total - 1."""
    return torch.arange(count) * total // count


class Batches:
    """The training minibatches of every step: `batches[step]` depends on the step and the seeds alone.

    Each epoch visits the samples in a fresh random order; an incomplete last minibatch is dropped. With `shared`,
    one minibatch of the first seed serves all points; else each seed has its own order and augmentation, so a row
    trained with others sees what it would see alone.

    Args:
        size: samples a minibatch; None for the whole set, in its order, which all rows share.
    """

    def __init__(self, data: Data, size: int | None, seeds: Sequence[int], shared: bool) -> None:
        if size is not None:
            check_number("batch_size", size, int, 1)
        self.data, self.seeds, self.shared, self.whole = data, tuple(seeds), shared, size is None
        self.size = min(size or len(data.y_train), len(data.y_train))
        self.steps_per_epoch = len(data.y_train) // self.size
        self._epoch, self._order_KN = -1, torch.empty(0)
        self._asked: dict[int, Callable[[], Tensor]] = {}

    def __getitem__(self, step: int, /) -> Batch:
        seeds = self.seeds_at(step)
        if self.whole and self.data.augment is None:
            return Batch(self.data.x_train[:], self.data.y_train, seeds)
        index_KB = self._index(step)
        x_KB = self._augment(self._inputs(step, index_KB), step)
        y_KB = self.data.y_train[index_KB.to(self.data.device)]
        return Batch(x_KB[0], y_KB[0], seeds) if self.shared else Batch(x_KB, y_KB, seeds, shared=False)

    def seeds_at(self, step: int) -> tuple[int, ...]:
        """The seeds of a step's dropout, one a row."""
        return tuple(derive(seed, "step", step) for seed in self.seeds)

    def _index(self, step: int) -> Tensor:
        epoch, i = divmod(step, self.steps_per_epoch)
        if epoch != self._epoch:
            samples = len(self.data.y_train)
            generators = [torch.Generator().manual_seed(derive(seed, "epoch", epoch)) for seed in self.seeds]
            order_KN = torch.stack([torch.randperm(samples, generator=g) for g in generators])
            # Where samples are requested they are chosen on the CPU, which then need not wait for the device.
            requested = isinstance(self.data.x_train, Requested)
            self._epoch, self._order_KN = epoch, order_KN if requested else order_KN.to(self.data.device)
        return self._order_KN[:, i * self.size : (i + 1) * self.size]

    def _inputs(self, step: int, index_KB: Tensor) -> Tensor:
        x_N = self.data.x_train
        if not isinstance(x_N, Requested):
            return x_N[index_KB]
        ready = self._asked.pop(step, None) or x_N.request(index_KB, self._augment_seeds(step))
        # The next minibatch is made ready while this step computes.
        self._asked = {step + 1: x_N.request(self._index(step + 1), self._augment_seeds(step + 1))}
        return ready()

    def _augment_seeds(self, step: int) -> list[int]:
        return [derive(seed, "augment") for seed in self.seeds_at(step)]

    def _augment(self, x_KB: Tensor, step: int) -> Tensor:
        augment = self.data.augment
        if augment is None:
            return x_KB
        seeds = self._augment_seeds(step)
        if isinstance(augment, CropFlip):
            # One call for all rows: a GPU would otherwise spend longer on ten augmentations than on ten gradients.
            drawn = [augment.draw(x_KB.shape[1], torch.Generator().manual_seed(seed)) for seed in seeds]
            return augment.apply(x_KB.flatten(0, 1), torch.cat(drawn)).unflatten(0, x_KB.shape[:2])
        generators = [torch.Generator(device=x_KB.device).manual_seed(seed) for seed in seeds]
        return torch.stack([augment(x_B, generator) for x_B, generator in zip(x_KB, generators, strict=True)])


class CropFlip:
    """Random crops of the zero-padded image and horizontal flips (He et al. 2016, sec. 4.2).

    Padding happens after normalisation, so a padded pixel has the mean colour.

    Args:
        padding: pixels added on each side before the crop.
        flip: whether to mirror half of the images.
    """

    def __init__(self, padding: Annotated[int, Ge(0), Le(10_000)] = 4, flip: bool = True) -> None:
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
