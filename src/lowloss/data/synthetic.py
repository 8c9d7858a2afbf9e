"""Data that are drawn."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from lowloss.checking import Few, Index
from lowloss.data.base import Data
from lowloss.data.task import Regression
from lowloss.errors import LowlossError


def teacher(
    inputs: Few = 2, hidden: Few = 5, outputs: Few = 1, samples: Few = 1000, activation: str = "ReLU", seed: Index = 0
) -> Data:
    """A random network's outputs for standard normal inputs, to be learned by students (Brea et al. 2019, fig. 1).

    The teacher has one hidden layer; its weights and biases are standard normal. The loss is the squared error, summed
    over the outputs, over the mean square of the targets. As many samples are drawn for the test split.

    Raises LowlossError: torch.nn has no such activation, or all targets are zero.
    """
    if not hasattr(nn.modules.activation, activation):
        raise LowlossError(f"data.activation={activation}: take ReLU, Tanh, Sigmoid, Softplus or another of torch.nn")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    w_HI, b_H, v_OH, c_O = normal(hidden, inputs), normal(hidden), normal(outputs, hidden), normal(outputs)
    x_N = normal(2 * samples, inputs)
    y_N = getattr(nn, activation)()(x_N @ w_HI.T + b_H) @ v_OH.T + c_O
    task = Regression(scale=float(y_N[:samples].square().mean()) / outputs)
    return Data(x_N[:samples], y_N[:samples], x_N[samples:], y_N[samples:], outputs, task=task)
