"""Data sets, their normalisation, minibatches and augmentation."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor

from lowloss import Data, LanguageModel, LowlossError
from lowloss.data import Batches, Classification, CropFlip, Regression, arrays, cifar10, mnist, tiny
from lowloss.data.pixels import Pixels
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
    with pytest.raises(LowlossError, match="0 … 1"):
        Data(x, y, x, y, task=Classification(2))


def test_labels_may_have_any_integer_type() -> None:
    x, y = torch.zeros(3, 2), torch.tensor([0, 2, 1], dtype=torch.uint16)
    data = Data(x, y, x, y.to(torch.int8))
    assert data.num_classes == 3
    assert data.y_train.dtype == data.y_test.dtype == torch.long


def pixels(*shape: int) -> npt.NDArray[np.uint8]:
    return np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)


def stored(file: Path, **changed: Any) -> str:
    kept = {"x_train": pixels(20, 2, 5, 4), "y_train": np.arange(20) % 3, "x_test": pixels(6, 2, 5, 4)}
    np.savez(file, **{**kept, "y_test": np.arange(6) % 3, **changed})
    return str(file)


def test_samples_are_held_out_evenly_as_a_split_of_their_own(tmp_path: Path) -> None:
    data = numbered(20)
    held = data.holding_out(5)
    assert held.splits == ("train", "test", "valid")
    assert held.split("valid")[0][:, 0].tolist() == [0, 4, 8, 12, 16]
    assert held.x_train[:, 0].tolist() == [i for i in range(20) if i % 4]
    for split in held.splits:
        x, y = held.split(split)
        assert torch.equal(x[:, 0] % 3, y.float())
    assert data.splits == ("train", "test")
    assert len(data.y_train) == 20
    images = arrays(stored(tmp_path / "a.npz"))
    part = images.holding_out(3).split("valid")[0]
    assert isinstance(part, Pixels)
    assert torch.equal(part[:], images.x_train[torch.arange(3) * len(images.y_train) // 3])


def test_what_cannot_be_held_out_is_refused() -> None:
    with pytest.raises(LowlossError, match=r"^held_out=20 leaves none of 20 training samples: lower it$"):
        numbered(20).holding_out(20)
    with pytest.raises(LowlossError, match=r"^held_out=2, but these data have a split valid: set it to null$"):
        numbered(20).holding_out(5).holding_out(2)
    x, y = torch.arange(20)[:, None].expand(20, 3), torch.arange(60).view(20, 3) % 3
    data = Data(x, y, x, y, task=LanguageModel(20), streams=4)
    with pytest.raises(LowlossError, match=r"^held_out=2, but these data continue one another: set it to null$"):
        data.holding_out(2)


@pytest.mark.parametrize("given", [True, False])
def test_pixels_are_normalised_when_they_are_asked_for(given: bool, tmp_path: Path) -> None:
    mean, std = ([0.3, 0.6], [0.2, 0.7]) if given else (None, None)
    data = arrays(stored(tmp_path / "a.npz"), mean=mean, std=std)
    scaled = torch.from_numpy(pixels(20, 2, 5, 4)).float() / 255
    centre = torch.tensor(mean) if given else scaled.mean((0, 2, 3))
    spread = torch.tensor(std) if given else scaled.std((0, 2, 3))
    expected = (scaled - centre[:, None, None]) / spread[:, None, None]
    assert isinstance(data.x_train, Pixels)
    assert data.x_train.pixels.dtype == torch.uint8
    assert data.input_shape == (2, 5, 4)
    index = torch.tensor([[3, 0], [19, 3]])
    # To the last bit, however many are asked for.
    assert torch.equal(data.x_train[:], expected)
    assert torch.equal(data.x_train[4:7], expected[4:7])
    assert torch.equal(data.x_train[index], expected[index])
    wide = data.moved(dtype=torch.float64)
    assert torch.equal(wide.x_train[:], expected.double())
    assert torch.equal(data.x_train[:], expected)
    for step in range(5):
        batch = Batches(data, 4, [1, 2], shared=False)[step]
        held = Batches(Data(expected, data.y_train, expected, data.y_train), 4, [1, 2], shared=False)[step]
        assert torch.equal(batch.x, held.x)
        assert torch.equal(batch.y, held.y)
    assert torch.equal(Batches(data, None, [1], shared=True)[0].x, expected)


def test_a_constant_channel_stays_finite(tmp_path: Path) -> None:
    x = pixels(20, 2, 5, 4)
    x[:, 1] = 51
    data = arrays(stored(tmp_path / "a.npz", x_train=x))
    assert data.x_train[:][:, 1].abs().max() < 1e-6
    assert data.x_test[:].isfinite().all()


def test_arrays_of_floats_features_and_images_without_channels(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(3, 2, (20, 4))
    data = arrays(stored(tmp_path / "a.npz", x_train=x, x_test=x[:6]))
    assert isinstance(data.x_train, Tensor)
    assert data.x_train.dtype == torch.float32
    np.testing.assert_allclose(data.x_train, (x - x.mean(0)) / x.std(0, ddof=1), rtol=1e-4, atol=1e-6)
    data = arrays(stored(tmp_path / "a.npz", x_train=pixels(20, 5, 4), x_test=pixels(6, 5, 4)), std=[0.5])
    assert data.input_shape == (1, 5, 4)
    flat = pixels(20, 5, 4).astype(np.float64) / 255
    np.testing.assert_allclose(data.x_train[:][:, 0], (flat - flat.mean()) / 0.5, rtol=1e-4, atol=1e-6)
    # Floats of three axes may be sequences: they stay as they are.
    data = arrays(stored(tmp_path / "a.npz", x_train=x.reshape(20, 2, 2), x_test=x[:6].reshape(6, 2, 2)))
    assert data.input_shape == (2, 2)


def test_arrays_with_a_task_of_their_own(tmp_path: Path) -> None:
    y = np.random.default_rng(0).normal(size=(20, 2))
    data = arrays(stored(tmp_path / "a.npz", y_train=y, y_test=y[:6]), task=Regression())
    np.testing.assert_array_equal(data.y_train, y)
    with pytest.raises(LowlossError, match="give a task"):
        arrays(stored(tmp_path / "a.npz", y_train=y, y_test=y[:6]))


def test_arrays_that_do_not_do_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "a.npz"
    with pytest.raises(LowlossError, match="complex"):
        arrays(stored(file, x_train=np.zeros((20, 4), complex)[:, :4], x_test=np.zeros((6, 4), complex)))
    for std in ([0.5, 0.0], [-1.0], [float("nan")]):
        with pytest.raises(LowlossError, match=r"data\.std must be positive"):
            arrays(stored(file), std=std)
    with pytest.raises(LowlossError, match=r"data\.mean has 3 entries for 2 channels"):
        arrays(stored(file), mean=[0.0, 0.0, 0.0])
    with pytest.raises(LowlossError, match="the same in both splits"):
        arrays(stored(file, x_test=pixels(6, 2, 4, 4)))
    with pytest.raises(LowlossError, match="two axes"):
        arrays(stored(file, x_train=np.zeros(20), x_test=np.zeros(6)))
    y = np.arange(20) % 3
    for told, changed in {
        "has no numbers but <U": {"y_train": y.astype(str)},
        r"y_train of .* has pickled objects, which are not read: store numbers": {"y_train": y.astype(object)},
        r"\(N,\), got \(20, 3\): take y.argmax\(1\) of one-hot rows": {"y_train": np.eye(3)[y]},
        r"\(N,\), got \(20, 1\): take y.flatten\(\)": {"y_train": y[:, None]},
        r"float64: take y.astype\(int\)": {"y_train": y.astype(float)},
        r"bool: take y.astype\(int\)": {"y_train": y > 0},
        r"float64: give a task, such as Regression\(\)": {"y_train": y + 0.5},
        r"0 … 2, and these lie in -1 … 2: number the classes from 0 on, as numpy\.unique": {"y_train": y - 1},
        "inputs hold NaN or infinite values: leave these samples out": {"x_train": np.full((20, 2, 5, 4), np.nan)},
    }.items():  # fmt: skip
        with pytest.raises(LowlossError, match=told):
            arrays(stored(file, **changed))
    with pytest.raises(LowlossError, match=r"these lie in 0 … 2: number .* or raise num_classes"):
        arrays(stored(file), num_classes=2)
    with pytest.raises(LowlossError, match="targets hold NaN or infinite values: leave these samples out"):
        arrays(stored(file, y_train=np.full(20, np.nan)), task=Regression())
    np.save(file.with_suffix(".npy"), y)
    with pytest.raises(LowlossError, match=r"holds one array of shape \(20,\), as .npy does: .*numpy.savez"):
        arrays(str(file.with_suffix(".npy")))
    file.write_text("no archive")
    with pytest.raises(LowlossError, match=r"savez"):
        arrays(str(file))
    np.savez(file, x=np.zeros(2))
    with pytest.raises(LowlossError, match=r"lacks x_train"):
        arrays(str(file))


def test_images_of_torchvision_stay_pixels(monkeypatch: pytest.MonkeyPatch) -> None:
    class Stored:
        classes = ("cat", "dog", "owl")

        def __init__(self, root: str, train: bool, download: bool) -> None:
            samples = 6 if train else 3
            shape = (samples, 5, 4, 3) if root == "colour" else (samples, 5, 4)
            self.data = pixels(*shape) if root == "colour" else torch.from_numpy(pixels(*shape))
            self.targets = [i % 3 for i in range(samples)]

    monkeypatch.setattr("torchvision.datasets.CIFAR10", Stored)
    monkeypatch.setattr("torchvision.datasets.MNIST", Stored)
    colour, grey = cifar10("colour", mean=[0.1, 0.2, 0.3], std=[1.0, 2.0, 3.0]), mnist("grey", mean=[0.1], std=[2.0])
    assert isinstance(colour.x_train, Pixels)
    assert isinstance(grey.x_test, Pixels)
    assert (colour.num_classes, colour.input_shape, grey.input_shape) == (3, (3, 5, 4), (1, 5, 4))
    x = torch.from_numpy(pixels(6, 5, 4, 3)).float() / 255
    expected = (x - torch.tensor([0.1, 0.2, 0.3])) / torch.tensor([1.0, 2.0, 3.0])
    assert torch.equal(colour.x_train[:], expected.permute(0, 3, 1, 2))
    assert torch.equal(grey.x_test[:][:, 0], (torch.from_numpy(pixels(3, 5, 4)).float() / 255 - 0.1) / 2.0)


def test_tiny_data_are_the_first_of_the_digits() -> None:
    data, whole = tiny(size=24, samples=10, channels=3), digits()
    assert data.input_shape == (3, 24, 24)
    assert data.num_classes == 10
    for name, count in (("train", 10), ("test", 5)):
        (x, y), (x_whole, y_whole) = data.split(name), whole.split(name)
        expected = torch.nn.functional.interpolate(x_whole[:count], size=(24, 24), mode="nearest")
        assert torch.equal(x[:], expected.expand(-1, 3, -1, -1))
        assert torch.equal(y, y_whole[:count])
    assert (len(tiny().y_train), len(tiny().y_test), tiny().input_shape) == (128, 64, (1, 8, 8))
    taught = tiny(samples=10, outputs=1)  # a regression, for the students of teachers
    assert isinstance(taught.task, Regression)
    assert (taught.input_shape, tuple(taught.y_train.shape)) == ((2,), (10, 1))
    for settings in ({"size": 12}, {"samples": 800}, {"samples": 1}, {"channels": 0}):
        with pytest.raises(LowlossError, match=next(iter(settings))):
            tiny(**settings)


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


def test_a_tiny_text_has_as_many_windows_as_samples() -> None:
    data = tiny(samples=12, steps=5, streams=2)
    assert data.splits == ("train", "test", "valid")
    assert (data.num_classes, tuple(data.x_train.shape), data.streams) == (7, (12, 5), 2)
    assert all(0 <= int(data.split(name)[0][:].min()) <= int(data.split(name)[0][:].max()) < 7 for name in data.splits)
