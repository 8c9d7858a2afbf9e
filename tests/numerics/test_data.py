"""Minibatches and augmentation."""

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from lowloss import Data, LowlossError
from lowloss.data import Batches, CropFlip
from lowloss.data.sources import digits, stratified_split


def numbered(samples: int) -> Data:
    """Sample i is the number i with label i % 3."""
    x, y = torch.arange(float(samples))[:, None], torch.arange(samples) % 3
    return Data(x, y, x, y)


@pytest.mark.parametrize("shared", [True, False])
def test_every_sample_once_an_epoch_in_fresh_order(shared: bool) -> None:
    batches = Batches(numbered(12), 4, seeds=[1] if shared else [1, 2], shared=shared)
    assert batches.steps_per_epoch == 3
    rows = 1 if shared else 2
    x = torch.stack([batches[step].x.view(rows, 4) for step in range(6)])
    orders = x.view(2, 3, rows, 4).permute(0, 2, 1, 3).reshape(2 * rows, 12)
    assert all(order.sort().values.tolist() == list(range(12)) for order in orders)
    assert len(orders.unique(dim=0)) == 2 * rows
    for step in range(6):
        assert torch.equal(batches[step].y, batches[step].x[..., 0].long() % 3)


def test_the_incomplete_minibatch_is_dropped() -> None:
    batches = Batches(numbered(11), 4, seeds=[1], shared=True)
    assert batches.steps_per_epoch == 2
    left_out = set()
    for epoch in range(50):
        seen = torch.cat([batches[2 * epoch].x, batches[2 * epoch + 1].x]).flatten().tolist()
        assert len(set(seen)) == 8
        left_out |= set(range(11)) - set(seen)
    # Not always the same ones.
    assert left_out == set(range(11))


def test_a_minibatch_is_no_larger_than_the_data() -> None:
    batches = Batches(numbered(5), 100, seeds=[1], shared=True)
    assert batches.steps_per_epoch == 1
    assert sorted(batches[0].x.flatten().tolist()) == list(range(5))
    with pytest.raises(LowlossError, match="batch_size"):
        Batches(numbered(5), 0, seeds=[1], shared=True)


def noise(x_B: Tensor, generator: torch.Generator) -> Tensor:
    return x_B + 0.4 * torch.rand(x_B.shape, generator=generator)


def test_the_step_and_the_seed_fix_a_minibatch() -> None:
    data = numbered(12)
    data.augment = noise
    forwards = Batches(data, 4, seeds=[1, 2, 3], shared=False)
    batches = [forwards[step] for step in range(9)]
    backwards, alone = Batches(data, 4, seeds=[1, 2, 3], shared=False), Batches(data, 4, seeds=[2], shared=False)
    for step in reversed(range(9)):
        assert torch.equal(backwards[step].x, batches[step].x)
        assert backwards[step].seeds == batches[step].seeds
        x, y, seed = alone[step].row(0)
        assert torch.equal(x, batches[step].x[1])
        assert torch.equal(y, batches[step].y[1])
        assert seed == batches[step].seeds[1]
        # One row's samples and noise are another's only by chance.
        assert not torch.equal(batches[step].x[0], batches[step].x[1])
    assert len({seed for batch in batches for seed in batch.seeds}) == 27
    assert len({float(value) for batch in batches for value in (batch.x % 1).flatten()}) > 100


def test_a_shared_minibatch_is_every_points() -> None:
    data = numbered(12)
    data.augment = noise
    batch = Batches(data, 4, seeds=[1], shared=True)[2]
    own = Batches(data, 4, seeds=[1, 2], shared=False)[2]
    for k in (0, 1, 5):
        x, y, seed = batch.row(k)
        assert torch.equal(x, own.x[0])
        assert torch.equal(y, own.y[0])
        assert seed == own.seeds[0]


# Two unequal sides and channels; every pixel has its own value, and none is zero like the padding.
IMAGES = torch.arange(1.0, 1 + 3 * 2 * 3 * 4).view(3, 2, 3, 4)


def windows(image: Tensor, padding: int) -> list[list[float]]:
    padded = torch.zeros(2, 3 + 2 * padding, 4 + 2 * padding)
    padded[:, padding : padding + 3, padding : padding + 4] = image
    shifts = range(2 * padding + 1)
    return [padded[:, row : row + 3, column : column + 4].flatten().tolist() for row in shifts for column in shifts]


def mirrored(window: list[float]) -> list[float]:
    return torch.tensor(window).view(2, 3, 4).flip(2).flatten().tolist()


@pytest.mark.parametrize("flip", [True, False])
def test_crops_are_windows_of_the_padded_image_or_their_mirror(flip: bool) -> None:
    generator = torch.Generator().manual_seed(0)
    augment = CropFlip(padding=1, flip=flip)
    crops = torch.stack([augment(IMAGES, generator) for _ in range(400)])
    assert crops.shape == (400, *IMAGES.shape)
    for image, crops_T in zip(IMAGES, crops.unbind(1), strict=True):
        plain = windows(image, 1)
        expected = {tuple(window) for window in plain}
        if flip:
            expected |= {tuple(mirrored(window)) for window in plain}
        seen = [tuple(crop.flatten().tolist()) for crop in crops_T]
        assert set(seen) == expected
        # All are equally likely.
        assert max(seen.count(window) for window in expected) < 3 * 400 / len(expected)


def test_samples_of_a_minibatch_move_independently() -> None:
    images = IMAGES[:1].expand(300, -1, -1, -1)
    crops = CropFlip(padding=1)(images, torch.Generator().manual_seed(0))
    assert len({tuple(crop.flatten().tolist()) for crop in crops}) == 18


def test_no_padding_and_no_flip_change_nothing() -> None:
    assert torch.equal(CropFlip(padding=0, flip=False)(IMAGES, torch.Generator()), IMAGES)


def test_no_padding_leaves_images_or_mirrors() -> None:
    crops = CropFlip(padding=0)(IMAGES[:1].expand(300, -1, -1, -1), torch.Generator().manual_seed(0))
    same = (crops == IMAGES[0]).flatten(1).all(1)
    mirror = (crops == IMAGES[0].flip(2)).flatten(1).all(1)
    assert (same ^ mirror).all()
    assert same.double().mean().item() == pytest.approx(0.5, abs=0.1)


@pytest.mark.parametrize(
    ("labels", "num_classes", "message"),
    [
        ([0, 1, 3], 3, "0 … 2"),
        ([0, -1, 1], None, "labels"),
        ([0, 1], None, "as many labels"),
        ([], None, "at least one"),
    ],
)
def test_tensors_that_do_not_fit_are_refused(labels: list[int], num_classes: int | None, message: str) -> None:
    x, y = torch.zeros(3 if labels else 0, 2), torch.tensor(labels, dtype=torch.long)
    with pytest.raises(LowlossError, match=message):
        Data(x, y, torch.zeros(1, 2), torch.zeros(1, dtype=torch.long), num_classes)


def test_tensors_that_would_train_wrongly_are_refused() -> None:
    x, y = torch.zeros(3, 2), torch.tensor([0, 1, 2])
    with pytest.raises(LowlossError, match="integers"):
        Data(x, y + 0.5, x, y)
    with pytest.raises(LowlossError, match="shape"):
        Data(x, y, torch.zeros(3, 4), y)
    with pytest.raises(LowlossError, match="test split's inputs hold NaN"):
        Data(x, y, torch.full_like(x, torch.nan), y)


def test_digits_are_those_of_scikit_learn() -> None:
    source, data = load_digits(), digits(mean=[0.0], std=[1.0])
    train, test = train_test_split(np.arange(1797), test_size=360, random_state=0, stratify=source.target)
    for x, y, index in ((data.x_train, data.y_train, train), (data.x_test, data.y_test, test)):
        assert torch.equal(x, torch.tensor(source.images[index] / 16, dtype=torch.float32)[:, None])
        assert torch.equal(y, torch.tensor(source.target[index]))


@pytest.mark.parametrize(("samples", "test_size"), [(80, 23), (100, 37), (999, 300)])
def test_stratified_split_is_that_of_scikit_learn(samples: int, test_size: int) -> None:
    for seed in range(10):
        labels = np.random.default_rng(seed).integers(0, 7, samples)
        expected = train_test_split(np.arange(samples), test_size=test_size, random_state=seed, stratify=labels)
        for split, index in zip(stratified_split(labels, test_size, seed), expected, strict=True):
            assert np.array_equal(split, index)
