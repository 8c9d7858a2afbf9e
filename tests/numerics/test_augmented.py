"""The loss over training images after one augmentation, which is the same for all points."""

import torch
from torch import nn
from torch.nn.functional import cross_entropy, pad

from lowloss import Data, NetworkLandscape
from lowloss.data import CropFlip
from lowloss.data.base import AUGMENTED, DRAWN
from lowloss.measure import augmented


def images(samples=DRAWN + 40, padding=1):
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(samples, 1, 4, 4, generator=generator, dtype=torch.float64)
    return Data(
        x, torch.arange(samples) % 3, x[:9], torch.arange(9) % 3, augment=CropFlip(padding) if padding else None
    )


def test_every_image_is_a_crop_of_its_own_drawn_once():
    data = images()
    drawn, labels = data.split(AUGMENTED)
    padded = pad(data.x_train, (1, 1, 1, 1))
    crops = [padded[:, :, i : i + 4, j : j + 4] for i in range(3) for j in range(3)]
    crops += [crop.flip(3) for crop in crops]
    same = torch.stack([(crop == drawn).flatten(1).all(1) for crop in crops])
    assert (same.sum(0) == 1).all()
    # All of the crops are drawn, each about as often, and not the same ones in each part.
    counts = same.sum(1) / len(drawn)
    assert ((counts > 0.5 / 18) & (counts < 1.5 / 18)).all()
    which = same.double().argmax(0)
    assert not torch.equal(which[:40], which[DRAWN : DRAWN + 40])
    assert torch.equal(labels, data.y_train)
    # Another object, and one that was moved, draw the same; no split is added.
    assert torch.equal(images().split(AUGMENTED)[0], drawn)
    assert torch.equal(data.moved(dtype=torch.float32).split(AUGMENTED)[0], drawn.float())
    assert data.splits == ("train", "test")
    assert not images(padding=None).augments_images


def test_the_loss_is_torchs_with_the_statistics_of_the_images_as_they_are():
    module = nn.Sequential(nn.Flatten(), nn.Linear(16, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).double()
    data = images(samples=50)
    for chunk in (50, 20):
        landscape = NetworkLandscape(module, data, evaluation_batch=chunk)
        theta_KP = torch.stack([landscape.initial(seed) for seed in (0, 1)])
        found_K = augmented(landscape, theta_KP)["train_loss_augmented"]
        for theta_P, found in zip(theta_KP, found_K, strict=True):
            net = landscape.module(theta_P).requires_grad_(False)
            torch.testing.assert_close(found, cross_entropy(net(data.split(AUGMENTED)[0]), data.y_train))
            assert abs(float(found - cross_entropy(net(data.x_train), data.y_train))) > 1e-3
