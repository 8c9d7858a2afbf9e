"""Networks; each is an ordinary nn.Module, written once."""

from lowloss.model.recurrent import LSTM
from lowloss.model.residual import DenseNet, PreResNet, ResNet, WideResNet
from lowloss.model.simple import CNN, MLP, VGG9, VGG16, ConvFC, SimpleCNN
