"""Images and torch Datasets that are read when they are asked for, against torchvision's transforms."""

import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset, Subset, TensorDataset
from torchvision.transforms import v2

from lowloss import Data, LowlossError
from lowloss.data import Batches, image_folder, images
from lowloss.data.images import TRIES, box
from lowloss.seeding import derive

MEAN, STD = (0.5, 0.4, 0.3), (0.2, 0.3, 0.4)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Three training images of class a and two of class b, one test image each, of many sizes."""
    random = np.random.default_rng(0)
    for split, name, number in (("train", "a", 3), ("train", "b", 2), ("val", "a", 1), ("val", "b", 1)):
        folder = tmp_path / split / name
        folder.mkdir(parents=True)
        for i in range(number):
            pixels = random.integers(0, 256, (40 + 9 * i, 61 - 13 * i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"{i}.{'png' if i else 'JPEG'}")
    Image.open(tmp_path / "train" / "b" / "1.png").convert("L").save(tmp_path / "train" / "b" / "1.png")
    (tmp_path / "train" / "a" / "notes.txt").write_text("no image")
    return tmp_path


def folder(root: Path, workers: int = 2, **settings: Any) -> Data:
    return image_folder(str(root), size=16, workers=workers, mean=MEAN, std=STD, **settings)


def test_evaluation_resizes_and_crops_as_torchvision(root: Path) -> None:
    data = folder(root)
    names = [("a/0.JPEG", 0), ("a/1.png", 0), ("a/2.png", 0), ("b/0.JPEG", 1), ("b/1.png", 1)]
    assert data.y_train.tolist() == [label for _, label in names]
    assert data.input_shape == (3, 16, 16)
    assert (len(data.x_train), len(data.x_test), data.num_classes) == (5, 2, 2)
    transform = v2.Compose(
        [
            v2.RGB(), v2.Resize(18), v2.CenterCrop(16), v2.ToImage(),
            v2.ToDtype(torch.float32, scale=True), v2.Normalize(MEAN, STD),
        ]
    )  # fmt: skip
    expected = torch.stack([transform(Image.open(root / "train" / name)) for name, _ in names])
    torch.testing.assert_close(data.x_train[:], expected, rtol=1e-6, atol=1e-6)
    assert torch.equal(data.x_train[torch.tensor([[4, 1], [0, 0]])], data.x_train[:][torch.tensor([[4, 1], [0, 0]])])
    assert torch.equal(data.x_train[1:3], data.x_train[:][1:3])
    assert torch.equal(folder(root, workers=0).x_train[:], data.x_train[:])
    wide = data.moved(dtype=torch.float64).x_train[:]
    assert wide.dtype == torch.float64
    assert torch.equal(wide, data.x_train[:].double())
    assert torch.equal(pickle.loads(pickle.dumps(data)).x_test[:], data.x_test[:])


def test_training_minibatches_are_crops_of_their_images(root: Path) -> None:
    batches = Batches(folder(root), 5, [3], shared=True)
    batch = batches[0]
    files = sorted((root / "train").glob("*/*.[pJ]*"))
    expected, flips = [], 0
    index = torch.randperm(5, generator=torch.Generator().manual_seed(derive(3, "epoch", 0)))
    (seed,) = batch.seeds
    drawn = torch.rand(5, 4 * TRIES + 1, generator=torch.Generator().manual_seed(derive(seed, "augment")))
    for i, numbers in zip(index.tolist(), drawn, strict=True):
        image = Image.open(files[i]).convert("RGB")
        left, top, width, height = box(numbers[:-1].view(-1, 4), *image.size)
        crop = v2.functional.resized_crop(image, top, left, height, width, [16, 16])
        flips += bool(numbers[-1] < 0.5)
        crop = v2.functional.hflip(crop) if numbers[-1] < 0.5 else crop
        expected.append(v2.functional.to_dtype(v2.functional.to_image(crop), torch.float32, scale=True))
    torch.testing.assert_close(batch.x, v2.functional.normalize(torch.stack(expected), MEAN, STD), rtol=1e-6, atol=1e-6)
    assert 0 < flips < 5
    assert batch.y.tolist() == [int(i >= 3) for i in index]


@pytest.mark.parametrize(("width", "height"), [(60, 40), (31, 97)])
def test_crops_are_distributed_as_torchvisions(width: int, height: int) -> None:
    generator = torch.Generator().manual_seed(0)
    drawn = torch.rand(4000, TRIES, 4, generator=generator)
    ours = torch.tensor([box(numbers, width, height) for numbers in drawn]).double()
    image = torch.zeros(1, height, width)
    crops = [v2.RandomResizedCrop.make_params(v2.RandomResizedCrop(8), [image]) for _ in range(4000)]
    theirs = torch.tensor([[c["left"], c["top"], c["width"], c["height"]] for c in crops]).double()
    assert (ours >= 0).all()
    assert (ours[:, 0] + ours[:, 2] <= width).all()
    assert (ours[:, 1] + ours[:, 3] <= height).all()
    assert (ours[:, 0] + ours[:, 2]).max() == width
    error = (ours.var(0) / 4000 + theirs.var(0) / 4000).sqrt()
    assert ((ours.mean(0) - theirs.mean(0)).abs() < 4 * error).all()
    assert ((ours.std(0) / theirs.std(0) - 1).abs() < 0.1).all()


@pytest.mark.parametrize(("width", "height"), [(100, 10), (10, 100), (40, 40)])
def test_a_crop_that_never_fits_is_the_centre(width: int, height: int) -> None:
    # The whole area at the ratio 4/3, or 3/4, which fits into none of these images.
    numbers = torch.tensor([[1.0, 1.0 if height >= width else 0.0, 0.0, 0.0]])
    left, top, w, h = box(numbers, width, height)
    expected = {(100, 10): (43, 0, 13, 10), (10, 100): (0, 43, 10, 13), (40, 40): (0, 0, 40, 40)}
    assert (left, top, w, h) == expected[width, height]


def test_randomness_depends_on_the_step_and_the_row_alone(root: Path) -> None:
    forwards = Batches(folder(root, workers=3), 2, [1, 2], shared=False)
    batches = [forwards[step] for step in range(5)]
    backwards = Batches(folder(root, workers=0), 2, [1, 2], shared=False)
    alone = Batches(folder(root, workers=1), 2, [2], shared=False)
    for step in reversed(range(5)):
        again = backwards[step]
        assert torch.equal(again.x, batches[step].x)
        assert torch.equal(again.y, batches[step].y)
        assert torch.equal(alone[step].x[0], batches[step].x[1])
    assert len({float(x.sum()) for batch in batches for x in batch.x.flatten(0, 1)}) == 20
    # Without augmentation each is one of the images as they are evaluated.
    plain = folder(root, augment=False)
    whole = plain.x_train[:]
    batch = Batches(plain, 2, [1], shared=True)[0]
    assert all(any(torch.equal(x, image) for image in whole) for x in batch.x)


def test_the_next_minibatch_is_read_while_this_one_computes(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = folder(root)
    asked: list[Tensor] = []
    request = images.Samples.request

    def noted(self: Any, index_KB: Tensor, seeds: Any) -> Callable[[], Tensor]:
        asked.append(index_KB)
        return request(self, index_KB, seeds)

    monkeypatch.setattr(images.Samples, "request", noted)
    batches = Batches(data, 2, [1], shared=True)
    for step in range(4):
        batch = batches[step]
        # Each minibatch is asked for once, and one ahead of time.
        assert len(asked) == step + 2
        assert torch.equal(batch.y, data.y_train[asked[step][0]])


def test_a_broken_image_is_named(root: Path) -> None:
    (root / "train" / "b" / "1.png").write_bytes(b"no image")
    data = folder(root)
    data.x_train[:4]
    with pytest.raises(LowlossError, match=r"train/b/1\.png cannot be read.*mend or delete it"):
        data.x_train[:]
    with pytest.raises(LowlossError, match=r"1\.png cannot be read"):
        Batches(data, 5, [1], shared=True)[0]


def test_folders_that_do_not_fit_are_refused(root: Path) -> None:
    with pytest.raises(LowlossError, match="other does not exist"):
        folder(root, test="other")
    with pytest.raises(LowlossError, match=r"data\.std"):
        image_folder(str(root), std=(0.1, 0.0, 0.1))
    (root / "val" / "c").mkdir()
    with pytest.raises(LowlossError, match="val/c holds no image"):
        folder(root)
    Image.new("RGB", (9, 9)).save(root / "val" / "c" / "0.png")
    with pytest.raises(LowlossError, match="train lacks the class folder c"):
        folder(root)
    (root / "none").mkdir()
    with pytest.raises(LowlossError, match="none holds no folder of a class"):
        folder(root, train="none")


class Squares(Dataset[Any]):
    """Sample i is [i, i²] with label i % 3."""

    def __init__(self, samples: int) -> None:
        self.samples, self.read = samples, 0

    def __len__(self) -> int:
        return self.samples

    def __getitem__(self, i: int) -> Any:
        self.read += 1
        return np.array([i, i * i], dtype=np.float32), i % 3


SQUARES = torch.arange(7.0)[:, None] ** torch.tensor([1, 2])


@pytest.mark.parametrize("workers", [0, 2])
def test_a_small_dataset_is_read_once(workers: int) -> None:
    dataset = Squares(7)
    data = Data.from_datasets(dataset, Subset(dataset, [2, 4]), workers=workers)
    assert isinstance(data.x_train, Tensor)
    assert torch.equal(data.x_train, SQUARES)
    assert torch.equal(data.x_test[:], SQUARES[[2, 4]])
    assert data.y_train.tolist() == [0, 1, 2, 0, 1, 2, 0]
    assert data.y_test.tolist() == [2, 1]
    assert data.num_classes == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_large_dataset_is_read_when_it_is_asked_for(workers: int, monkeypatch: pytest.MonkeyPatch) -> None:
    held = Data.from_datasets(Squares(7), Squares(3))
    monkeypatch.setattr(images, "HELD", 55)
    dataset = Squares(7)  # 56 bytes
    data = Data.from_datasets(dataset, Squares(3), workers=workers)
    assert not isinstance(data.x_train, Tensor)
    assert torch.equal(data.y_train, held.y_train)
    before = dataset.read
    assert torch.equal(data.x_train[2:4], SQUARES[2:4])
    assert dataset.read == before + 2
    wide = data.moved(dtype=torch.float64)
    assert wide.x_train[:2].dtype == torch.float64
    for step in range(5):
        ours, theirs = (Batches(d, 2, [1, 2], shared=False)[step] for d in (data, held))
        assert torch.equal(ours.x, theirs.x)
        assert torch.equal(ours.y, theirs.y)
    # Augmented on the device.
    data.augment = held.augment = lambda x_B, generator: x_B + torch.rand(x_B.shape, generator=generator)
    ours, theirs = (Batches(d, 2, [1, 2], shared=False)[3] for d in (data, held))
    assert torch.equal(ours.x, theirs.x)


def test_known_targets_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(images, "HELD", 0)

    class Known(Squares):
        targets = (2, 1, 0, 2, 1, 0, 1)
        target_transform: Any = None

    dataset, other = Known(7), Known(7)
    other.target_transform = str
    data = Data.from_datasets(dataset, other)
    assert data.y_train.tolist() == list(Known.targets)
    assert dataset.read < 7
    # A transform of the targets changes them.
    assert data.y_test.tolist() == [0, 1, 2, 0, 1, 2, 0]


def test_datasets_that_do_not_do_are_refused() -> None:
    good = Squares(3)

    class Broken(Squares):
        def __getitem__(self, i: int) -> Any:
            if i == 2:
                raise OSError("no such file\nat all")
            return super().__getitem__(i)

    class Uneven(Squares):
        def __getitem__(self, i: int) -> Any:
            return torch.zeros(3 if i == 1 else 2), i

    class Mixed(Squares):
        def __getitem__(self, i: int) -> Any:
            return torch.zeros(2), 0.5 if i == 1 else 0

    class Pictures(Squares):
        def __getitem__(self, i: int) -> Any:
            return Image.new("RGB", (2, 2)), 0

    for dataset, message in (
        (Broken(3), r"sample 2 of the dataset cannot be read as tensors \(x, y\): no such file$"),
        (Uneven(3), r"sample 1 is float32 of shape \(3,\), and the first is float32 of shape \(2,\)"),
        (Mixed(3), "the target of sample 1 is float32"),
        (Pictures(3), "give the dataset a transform"),
        (Squares(0), "the train dataset is empty"),
        (iter([]), "the train dataset is empty or has no length"),
    ):
        for workers in (0, 2):
            with pytest.raises(LowlossError, match=message):
                Data.from_datasets(dataset, good, workers=workers)
    with pytest.raises(LowlossError, match="the train and test splits differ"):
        Data.from_datasets(good, TensorDataset(torch.zeros(2, 3), torch.zeros(2, dtype=torch.long)))
