"""Networks; each is an ordinary nn.Module, written once."""

from lowloss.model.residual import DenseNet, ResNet, WideResNet
from lowloss.model.simple import CNN, MLP, VGG16, SimpleCNN

__all__ = ["CNN", "MLP", "VGG16", "DenseNet", "ResNet", "SimpleCNN", "WideResNet"]
