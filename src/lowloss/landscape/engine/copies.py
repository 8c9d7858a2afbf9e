"""One point's parameters and buffers in memory that its steps use again."""

from __future__ import annotations

import torch
from torch import Tensor


class Copies:
    """Copies of a list of tensors in memory that is kept, so that a call is one kernel and not one a tensor.

    Each is aligned, as a GPU's convolutions want it, where a view of a point may start at any coordinate.
    """

    def __init__(self, requires_grad: bool = False) -> None:
        self._kept: list[Tensor] = []
        self._kinds: list[list[int]] = []
        self._requires_grad = requires_grad

    @torch.no_grad()
    def __call__(self, given: list[Tensor]) -> list[Tensor]:
        """The copies, which the next call overwrites."""
        if len(given) != len(self._kept) or any(
            kept.device != part.device for kept, part in zip(self._kept, given, strict=True)
        ):
            self._kept = [torch.empty_like(part, requires_grad=self._requires_grad) for part in given]
            dtypes = {part.dtype for part in given}
            self._kinds = [[i for i, part in enumerate(given) if part.dtype == dtype] for dtype in dtypes]
        for kind in self._kinds:
            torch._foreach_copy_([self._kept[i] for i in kind], [given[i] for i in kind])
        return self._kept


class Place:
    """The memory of one point's parameters and buffers, which each of its steps uses again."""

    def __init__(self) -> None:
        self.parameters, self.buffers = Copies(requires_grad=True), Copies()
