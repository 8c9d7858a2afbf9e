"""Data sets: tensors on the device, or samples that are read when they are asked for."""

from lowloss.data.base import Augmentation, Batches, CropFlip, Data
from lowloss.data.images import image_folder
from lowloss.data.language import text
from lowloss.data.sources import arrays, cifar10, cifar100, digits, fashion_mnist, mnist, teacher, tiny
from lowloss.data.task import Classification, LanguageModel, Regression, Task
