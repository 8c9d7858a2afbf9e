"""The layout of a point: a flat vector seen as named tensors, layers and filters.

Shapes: K points, P parameters, F filters.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor, nn

from lowloss.errors import LowlossError


@dataclass(frozen=True)
class Layout:
    """Names and shapes of a network's trainable parameters, in the order in which they lie in a flat vector.

    A parameter shared by several modules is one coordinate block; frozen parameters (requires_grad=False) and
    buffers, BatchNorm's running statistics among them, are no coordinates.
    """

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]
    dtype: torch.dtype

    @classmethod
    def of(cls, module: nn.Module) -> Layout:
        """The layout of a module. Raises LowlossError if there is nothing to train, or dtypes are mixed or complex."""
        named = {name: p for name, p in module.named_parameters() if p.requires_grad}
        dtypes = {p.dtype for p in named.values()}
        if not named:
            raise LowlossError(f"{type(module).__name__} has no trainable parameters")
        if wide := [name for name, p in named.items() if p.is_complex()]:
            raise LowlossError(
                f"{wide[0]} of {type(module).__name__} is complex, and coordinates are real: have "
                "torch.view_as_real(...) of it as the parameter, and torch.view_as_complex of that in forward()"
            )
        if len(dtypes) > 1:
            found = ", ".join(sorted(map(str, dtypes)))
            raise LowlossError(f"{type(module).__name__} mixes parameter dtypes ({found}): convert it to one")
        return cls(tuple(named), tuple(p.shape for p in named.values()), dtypes.pop())

    @property
    def sizes(self) -> list[int]:
        return [prod(shape) for shape in self.shapes]

    @property
    def dim(self) -> int:
        return sum(self.sizes)

    def views(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Named views of one point (P,); writing to them writes to the point. Raises LowlossError for another shape."""
        sizes = self.sizes
        if theta_P.shape != (sum(sizes),):
            raise LowlossError(f"a point of this network has {sum(sizes)} numbers, got {tuple(theta_P.shape)}")
        parts = theta_P.split(sizes)
        return {name: part.view(shape) for name, part, shape in zip(self.names, parts, self.shapes, strict=True)}

    def flatten(self, named: dict[str, Tensor]) -> Tensor:
        """One point (P,) from named tensors."""
        return torch.cat([named[name].detach().reshape(-1) for name in self.names])

    def filters(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Views (F, weights a filter) of each conv or linear weight: a filter is what makes one output unit.

        Tensors with fewer than two axes (biases, BatchNorm) have no filters and are left out.
        """
        return {name: view.flatten(1) for name, view in self.views(theta_P).items() if view.dim() >= 2}

    def layers(self, theta_P: Tensor) -> dict[str, Tensor]:
        """Views (1, weights) of each weight tensor with at least two axes, whole."""
        return {name: view.reshape(1, -1) for name, view in self.filters(theta_P).items()}

    def blocks(self) -> dict[str, tuple[int, int]]:
        """For each layer, a module with parameters of its own, where they begin and end in a flat vector."""
        found: dict[str, tuple[int, int]] = {}
        end = 0
        for name, size in zip(self.names, self.sizes, strict=True):
            layer = name.rpartition(".")[0] or name
            found[layer] = (found[layer][0] if layer in found else end, end + size)
            end += size
        return found


def places(module: nn.Module) -> dict[str, str]:
    """Every place of a tensor in a module once, with the tensor's first name.

    functional_call would visit a module that has two names twice, and could not restore it (pytorch/pytorch#164759).
    """
    first = {id(tensor): name for name, tensor in [*module.named_parameters(), *module.named_buffers()]}
    return {
        f"{path}.{name}" if path else name: first[id(tensor)]
        for path, part in module.named_modules()
        for name, tensor in [*part._parameters.items(), *part._buffers.items()]
        if tensor is not None
    }
