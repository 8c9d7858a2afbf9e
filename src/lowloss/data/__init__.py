"""Data sets, held on the device."""

from lowloss.data.base import Augmentation, Batches, CropFlip, Data
from lowloss.data.sources import arrays, cifar10, cifar100, digits, fashion_mnist, mnist

__all__ = [
    "Augmentation",
    "Batches",
    "CropFlip",
    "Data",
    "arrays",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "mnist",
]
