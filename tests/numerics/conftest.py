"""Shared by the numerical tests: everything here is small, so one thread is the fastest."""

from collections.abc import Iterator

import pytest
import torch
from torch import Tensor

from lowloss import Data


@pytest.fixture(autouse=True)
def fixed_randomness() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def sure() -> tuple[Data, Tensor]:
    """512 samples of 10 classes, and points of nn.Linear(32, 10) that are the surer of them the later they come."""
    generator = torch.Generator().manual_seed(0)
    y = torch.randint(10, (512,), generator=generator)
    x = torch.eye(32)[y] + 0.1 * torch.randn(512, 32, generator=generator)
    weight_KP = torch.tensor([2.0, 12.0, 14.0])[:, None] * torch.eye(10, 32).flatten()
    return Data(x, y, x, y), torch.cat([weight_KP, 0.1 * torch.randn(3, 10, generator=generator)], 1)
