"""Networks; each is an ordinary nn.Module, written once."""

from lowloss.model.residual import DenseNet, ResNet, WideResNet
from lowloss.model.simple import CNN, MLP, VGG9, VGG16

__all__ = ["CNN", "MLP", "VGG9", "VGG16", "DenseNet", "ResNet", "WideResNet"]
