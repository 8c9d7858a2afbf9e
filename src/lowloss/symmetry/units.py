"""Units followed through one run of a module.

Every number of every tensor of the run carries the unit that it belongs to: a linear layer's outputs are new units, a
reshape moves them, a sum makes its operands' units one, and so on. Whatever keeps shapes counts as elementwise.

Shapes: N units along an axis, and tensors of units in the shape of the tensors that they describe.
"""

import re
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves
from torch.utils.hooks import RemovableHandle

from lowloss.symmetry.rules import FIXED, NEUTRAL, rule_of

NOT_ODD = re.compile("relu|elu|silu|mish|sig(moid)?|soft|exp|abs|square|sqrt|pow|cos|log|max|min|threshold|masked_fill")
"""Functions behind which a unit's sign cannot change; of others it is tried."""


class Run(TorchFunctionMode):
    """Follows the units through the functions that a module calls.

    Attributes:
        axes: the units along an axis of a parameter, or (axis None) of all its numbers, once they are asked for.
        pairs: units that are one.
        tags: units, labels that tell apart which of them permute, and the layer that does so.
        scales: parameters that do not change their signs with a unit.
        uses: the layers that read a parameter as their weight, a call each.
        fixed_signs: units that go through a function that is not odd.
        lost: functions through which units could not be followed, by layer.
    """

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.names = {id(p): name for name, p in module.named_parameters() if p.requires_grad}
        self.axes: dict[tuple[str, int | None], Tensor] = {}
        self.pairs: list[Tensor] = []
        self.tags: list[tuple[Tensor, Tensor, str]] = []
        self.scales = {name for name, p in module.named_parameters() if p.dim() == 1 and name.endswith("weight")}
        self.uses: dict[str, list[str]] = {}
        self.fixed_signs: list[Tensor] = []
        self.lost: list[str] = []
        self.count = 1
        # The tensors are kept, so that no other takes the place of one in memory.
        self._known: dict[int, tuple[Tensor, Tensor]] = {}
        self._made: dict[int, tuple[Tensor, Sequence[Tensor], Sequence[int]]] = {}
        self._static: set[int] = set()
        self._within: list[str] = []

    @property
    def layer(self) -> str:
        """The one that runs."""
        return self._within[-1] if self._within and self._within[-1] else "the network"

    def fresh(self, size: int) -> Tensor:
        self.count += size
        return torch.arange(self.count - size, self.count)

    def set(self, tensor: Any, units: Tensor) -> None:
        if isinstance(tensor, Tensor):
            self._known[id(tensor)] = tensor, units

    def make(self, tensor: Tensor, parts: Sequence[Tensor], axes: Sequence[int]) -> None:
        """Take a tensor as a parameter whose axes are these of other ones, some of which may have one number there."""
        self._made[id(tensor)] = tensor, parts, axes

    def is_parameter(self, tensor: Any) -> bool:
        return id(tensor) in self.names or id(tensor) in self._made

    def is_weight(self, tensor: Tensor) -> bool:
        """Whether it is a matrix that parameters alone make."""
        return tensor.dim() == 2 and (self.is_parameter(tensor) or id(tensor) in self._static)

    def follows(self, tensor: Any) -> bool:
        return isinstance(tensor, Tensor) and (id(tensor) in self._known or self.is_parameter(tensor))

    def read(self, weight: Tensor) -> None:
        """Note which layer reads a weight, for what is said of weights that several read."""
        for part in self._made[id(weight)][1] if id(weight) in self._made else [weight]:
            if id(part) in self.names:
                self.uses.setdefault(self.names[id(part)], []).append(self.layer)

    def along(self, parameter: Tensor, axis: int | None) -> Tensor:
        """The units along an axis of a parameter; those of anything else stay."""
        size = parameter.numel() if axis is None else parameter.shape[axis]
        if id(parameter) in self._made:
            _, parts, axes = self._made[id(parameter)]
            if axis is None:
                return self.along(parts[0], None).view(parts[0].shape).permute(*axes).flatten()
            found = [self.along(one, axes[axis]) for one in parts if one.dim() and one.shape[axes[axis]] == size]
            for units in found[1:]:
                self.unite(found[0], units)
            return found[0]
        if id(parameter) not in self.names:
            if id(parameter) in self._known:
                self.lost.append(f"{self.layer}: a weight that is computed from parameters keeps its order")
                self.unite(self._known[id(parameter)][1], torch.tensor(FIXED))
            return torch.full((size,), FIXED)
        key = self.names[id(parameter)], axis
        if key not in self.axes:
            self.axes[key] = self.fresh(size)
        return self.axes[key]

    def units(self, tensor: Tensor) -> Tensor | None:
        """The units of a tensor in its shape; None of a constant."""
        if id(tensor) in self._known:
            return self._known[id(tensor)][1]
        return self.along(tensor, None).view(tensor.shape) if self.is_parameter(tensor) else None

    def resolved(self, tensor: Tensor) -> Tensor:
        """The units of a tensor in its shape; of a constant those that stay, or none where it is one number."""
        units = self.units(tensor)
        if units is None:
            constant = tensor.numel() > 0 and bool((tensor == tensor.flatten()[0]).all())
            units = torch.full(tensor.shape, NEUTRAL if constant else FIXED)
        return units

    def unite(self, a: Tensor, b: Tensor) -> Tensor:
        """Make units one, as they lie beside each other; returns them."""
        a, b = torch.broadcast_tensors(a, b)
        differ = (a != b) & (a >= 0) & (b >= 0)
        if differ.any():
            self.pairs.append(torch.unique(torch.stack([a[differ], b[differ]]), dim=1))
        return torch.where(a < 0, b, a)

    def tag(self, units_N: Tensor, groups: int) -> None:
        """Let units permute within groups alone, which lie one after the other."""
        self.tags.append((units_N, torch.arange(groups).repeat_interleave(len(units_N) // groups), self.layer))

    def collapse(self, units: Tensor, axis: int, keep: bool = False) -> Tensor:
        """The units (N,) along an axis, where those that lie across it are one; with `keep`, across it alone."""
        if keep:  # along the axis itself they become one
            some = units.amax(axis, keepdim=True)
            self.unite(some, units)
            return some
        flat = units.movedim(axis, 0).flatten(1)
        # As where positions are mixed for each channel.
        if bool((flat == flat[:1]).all()) and len(flat[0].clamp_min(FIXED).unique()) > 1:
            self.lost.append(f"{self.layer}: units beside the axis that it reads keep their order")
        some_N = flat.amax(1)  # where there is one: borders that are padded belong to none
        self.unite(some_N[:, None], flat)
        return some_N

    def watch(self, name: str, part: nn.Module) -> tuple[RemovableHandle, RemovableHandle]:
        """Hooks that tell when a layer runs."""

        def leave(*_: Any) -> None:
            self._within.pop()

        before = part.register_forward_pre_hook(lambda *_: self._within.append(name), prepend=True)
        return before, part.register_forward_hook(leave)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        outputs = [leaf for leaf in tree_leaves(out) if isinstance(leaf, Tensor)]
        inputs = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        if not outputs or not any(self.follows(one) for one in inputs):
            return out
        name = getattr(func, "__name__", str(func))
        with torch._C.DisableTorchFunction():
            rule = rule_of(name, len(inputs))
            if NOT_ODD.search(name):
                self.fixed_signs += [units.flatten() for one in inputs if (units := self.units(one)) is not None]
            try:
                if rule is None or rule(self, func, args, kwargs, out) is False:
                    self._elementwise(name, inputs, outputs)
            except (RuntimeError, TypeError, ValueError, IndexError, AttributeError):
                self._lose(name, inputs, outputs)
        if all(self.is_parameter(one) or id(one) in self._static for one in inputs if self.follows(one)):
            self._static |= {id(one) for one in outputs if self.follows(one)}
        return out

    def _elementwise(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        """Numbers that lie beside each other belong to one unit."""
        shape = torch.broadcast_shapes(*(one.shape for one in inputs))
        if any(one.shape != shape for one in outputs):
            self._lose(name, inputs, outputs)
            return
        found = torch.tensor(NEUTRAL).expand(shape)
        for units in _tied([units for one in inputs if (units := self.units(one)) is not None], shape):
            found = self.unite(found, units)
        for one in inputs:
            if self.units(one) is None:
                constant = _constant(one, found)
                if constant == FIXED:
                    self.lost.append(f"{self.layer}: numbers that are no parameters tell units apart in {name}")
                found = self.unite(found, constant)
        for one in outputs:
            self.set(one, found)

    def _lose(self, name: str, inputs: Sequence[Tensor], outputs: Sequence[Tensor]) -> None:
        self.lost.append(f"{self.layer}: what goes through {name} keeps its order")
        for one in inputs:
            if (units := self.units(one)) is not None:
                self.unite(units, torch.tensor(FIXED))
        for one in outputs:
            self.set(one, torch.full(one.shape, FIXED))


def _tied(operands: Sequence[Tensor], shape: Sequence[int]) -> list[Tensor]:
    """The operands (of units) whose units are those of the result: all but what each of several units meets alike, as a
    scale of all channels."""
    wide = [units.view(*[1] * (len(shape) - units.dim()), *units.shape) for units in operands]
    if all(units.shape == shape for units in wide):
        return wide
    varying = [
        {axis for axis, n in enumerate(units.shape) if n > 1 and bool((units != units.narrow(axis, 0, 1)).any())}
        for units in wide
    ]
    found = []
    for units, own in zip(wide, varying, strict=True):
        others = set().union(*(axes for axes in varying if axes is not own))
        alike = {axis for axis, n in enumerate(units.shape) if n == 1 < shape[axis]}
        if not alike & others or own & others:
            found.append(units)
    return found or wide


def _constant(tensor: Tensor, units: Tensor) -> Tensor:
    """The units of a constant beside others: it fixes those among which it can tell differences."""
    shape = (1,) * (units.dim() - tensor.dim()) + tuple(tensor.shape)
    wide = [axis for axis, size in enumerate(shape) if size > 1 and units.shape[axis] > 1]
    varies = any(bool((units != units.narrow(axis, 0, 1)).any()) for axis in wide)
    return torch.tensor(FIXED if varies else NEUTRAL)
