"""Data sets: tensors on the device, or samples that are read when they are asked for."""

from lowloss.data.base import Augmentation, Batches, CropFlip, Data
from lowloss.data.images import image_folder
from lowloss.data.language import text
from lowloss.data.sources import arrays, cifar10, cifar100, digits, fashion_mnist, mnist, tiny
from lowloss.data.synthetic import teacher
from lowloss.data.task import Classification, LanguageModel, Regression, Task

__all__ = [
    "Augmentation",
    "Batches",
    "Classification",
    "CropFlip",
    "Data",
    "LanguageModel",
    "Regression",
    "Task",
    "arrays",
    "cifar10",
    "cifar100",
    "digits",
    "fashion_mnist",
    "image_folder",
    "mnist",
    "teacher",
    "text",
    "tiny",
]
