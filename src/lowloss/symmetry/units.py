"""Units followed through one run of a module.

Every number of every tensor of the run carries the unit that it belongs to: a linear layer's outputs are new units, a
reshape moves them, a sum makes its operands' units one, and so on. Whatever keeps shapes counts as elementwise.

Shapes: N units along an axis, and tensors of units in the shape of the tensors that they describe.
"""

import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves, tree_map
from torch.utils.hooks import RemovableHandle

FIXED, NEUTRAL = 0, -1
"""Units that stay where they are, and what belongs to none, as a mask or the zeros of a padding."""

SHAPES = re.compile(
    "__get__|__getitem__|cat|chunk|clone|concat(enate)?|contiguous|detach|expand(_as)?|flatten|flip|index_select|"
    "move(axis|dim)|narrow|permute|(channel|pixel)_(un)?shuffle|repeat(_interleave)?|reshape|roll|select|split|squeeze|stack|swapaxes|t|"
    "tensor_split|tile|to|transpose|unbind|unflatten|unsqueeze|view(_as)?"
)
"""Functions that move numbers and change none: they move the units alike."""

REDUCTIONS = re.compile("sum|mean|amax|amin|max|min|std|var|norm|logsumexp|prod")

NOT_ODD = re.compile("relu|elu|silu|mish|sig(moid)?|soft|exp|abs|square|sqrt|pow|cos|log|max|min|threshold|masked_fill")
"""Functions behind which a unit's sign cannot change; of others it is tried."""

POOLS = ("pool1d", "pool2d", "pool3d", "interpolate", "upsample")


CONSTANTS = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
"""Functions that take a tensor's type, or its shape, and none of its numbers."""


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
            rule = RULES.get(name) or next((_pool for part in POOLS if part in name), None)
            if SHAPES.fullmatch(name):
                rule = _shape
            elif REDUCTIONS.fullmatch(name) and not (name in ("max", "min") and len(inputs) > 1):
                rule = _reduction
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


def _shape(run: Run, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    def moved(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return None if isinstance(leaf, (torch.dtype, torch.device)) else leaf
        indices = leaf.dtype in (torch.long, torch.bool) and run.units(leaf) is None
        return leaf if indices else run.resolved(leaf)

    if isinstance(out, Tensor) and run.is_parameter(args[0]) and (axes := _axes(args[0], out)):
        if out is not args[0]:
            run.make(out, [args[0]], axes)
        return
    # A view of units that may lie otherwise in memory; the others keep the shape.
    if func.__name__ in ("view", "view_as", "to", "clone", "contiguous", "detach"):
        run.set(out, run.resolved(args[0]).reshape(out.shape))
        return
    units = func(*tree_map(moved, args), **tree_map(moved, kwargs))
    for one, of in zip(tree_leaves(out), tree_leaves(units), strict=True):
        run.set(one, of)


def _axes(parameter: Tensor, view: Tensor) -> tuple[int, ...]:
    """Which axes of a matrix those of a view of it are, whole or transposed; none of another view."""
    if parameter.dim() == 2 == view.dim() and parameter.data_ptr() == view.data_ptr():
        for axes in ((0, 1), (1, 0)):
            turned = parameter.permute(axes)
            if (turned.shape, turned.stride()) == (view.shape, view.stride()):
                return axes
    return ()


def _pad(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    (x, pads), mode = args[:2], args[2] if len(args) > 2 else kwargs.get("mode", "constant")
    units = run.resolved(x)
    extra = {"value": NEUTRAL} if mode == "constant" else {}
    # torch pads no integers by reflection.
    run.set(out, torch.nn.functional.pad(units.double(), pads, mode, **extra).long())


def _reduction(run: Run, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """What is the same along the reduced axes stays; a symmetric function of several units belongs to none."""
    units, dim = run.resolved(args[0]), kwargs.get("dim", args[1] if len(args) > 1 else None)
    dims = list(range(units.dim())) if dim is None else [dim] if isinstance(dim, int) else list(dim)
    low, high = units.amin(dims, keepdim=True), units.amax(dims, keepdim=True)
    found = low.where(low == high, NEUTRAL)
    for one in tree_leaves(out):
        run.set(one, found.reshape(one.shape))


def _pool(run: Run, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    """What works on each channel by itself; statistics of its own are recomputed."""
    _spread(run, run.collapse(run.resolved(args[0]), 1), 1, out)


def _spread(run: Run, units_N: Tensor, axis: int, out: Any) -> None:
    for one in tree_leaves(out):
        if isinstance(one, Tensor):
            shape = [1] * one.dim()
            shape[axis] = len(units_N)
            run.set(one, units_N.view(shape).expand(one.shape))


def _named(names: str, args: Any, kwargs: Any) -> dict[str, Any]:
    """The arguments of a call by the names of those that are given by their places."""
    return dict(zip(names.split(), args, strict=False)) | kwargs


def _layer(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """A linear layer or a convolution; where that is transposed, its weight has the inputs first."""
    given = _named("input weight bias stride padding dilation groups", args, kwargs)
    weight, axis, transposed = given["weight"], 1 if "conv" in func.__name__ else -1, "transpose" in func.__name__
    run.read(weight)
    # What belongs to no unit is read where it is. A transposed convolution has the groups in the same place.
    groups, inputs_N = given.get("groups", 1), run.collapse(run.resolved(given["input"]), axis).clamp_min(FIXED)
    whole_N, part = run.along(weight, 0), weight.shape[1] if groups > 1 else 0
    if groups == 1:
        inner_N = run.along(weight, 1)
        run.unite(inputs_N, whole_N if transposed else inner_N)
        outputs_N = inner_N if transposed else whole_N
    elif len(inputs_N) == groups:  # depthwise: a channel goes with its own outputs
        run.unite(inputs_N.repeat_interleave(len(whole_N) // groups), whole_N)
        outputs_N = inputs_N.repeat_interleave(part) if transposed else whole_N
    else:
        # Channels stay within their group. What is at an index of the other axis is another unit in each group.
        inner_N = run.fresh(groups * part) if transposed else inputs_N
        numbers = run.along(weight, None).view(groups, len(whole_N) // groups, part, -1)
        run.unite(numbers, inner_N.view(groups, 1, part, 1))
        if transposed:
            run.unite(inputs_N, whole_N)
        outputs_N = inner_N if transposed else whole_N
        for units_N in (inputs_N, outputs_N):
            run.tag(units_N, groups)
    if given.get("bias") is not None:
        run.unite(run.along(given["bias"], None), outputs_N)
    _spread(run, outputs_N, axis, out)


def _batch_norm(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """Statistics are no parameters: they are recomputed at every point."""
    given = _named("input running_mean running_var weight bias", args, kwargs)
    units_N = run.collapse(run.resolved(given["input"]), 1)
    for name in ("weight", "bias"):
        if given.get(name) is not None:
            run.unite(units_N, run.along(given[name], None))
    _spread(run, units_N, 1, out)


def _group_norm(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    given = _named("input num_groups weight bias", args, kwargs)
    _batch_norm(run, func, (), {name: given.get(name) for name in ("input", "weight", "bias")}, out)
    channels, groups = out.shape[1], given["num_groups"]
    if 1 < groups < channels:
        run.tag(run.collapse(run.resolved(out), 1), groups)


def _embedding(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    weight = _named("input weight", args, kwargs)["weight"]
    run.read(weight)
    _spread(run, run.along(weight, 1), -1, out)


def _weight_norm(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> bool | None:
    """A direction times a length of each of its rows: the axes are those of both."""
    direction, length = args[:2]
    if not (run.is_parameter(direction) and id(length) in run.names):
        return False
    run.scales.add(run.names[id(length)])
    run.make(out, [direction, length], range(out.dim()))
    return None


def _prelu(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> bool | None:
    """A slope for each channel, or one for all."""
    x, weight = args[:2]
    if weight.numel() == 1:
        return False
    _batch_norm(run, func, (), {"input": x, "weight": weight}, out)
    return None


def _glu(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    given = _named("input dim", args, kwargs)
    run.set(out, run.unite(*run.resolved(given["input"]).chunk(2, given.get("dim", -1))))


def _ordered(run: Run, func: Any, args: Any, kwargs: Any, out: Any) -> None:
    raise ValueError("channels next to each other are read together")


def _matmul(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    """What is summed over becomes one unit, as the numbers of an attention head do."""
    a, b = args[:2]
    if run.is_weight(b):
        run.read(b)
        run.unite(run.collapse(run.resolved(a), -1), run.along(b, 0))
        _spread(run, run.along(b, 1), -1, out)
    else:
        run.set(out, _product(run, run.resolved(a), run.resolved(b)))


def _product(run: Run, a: Tensor, b: Tensor) -> Tensor:
    return run.unite(run.collapse(a, -1, keep=True), run.collapse(b, -2, keep=True))


def _attention(run: Run, func: Any, args: Any, kwargs: Any, out: Tensor) -> None:
    q, k, v = (run.resolved(one) for one in args[:3])
    run.set(out, _product(run, _product(run, q, k.transpose(-1, -2)), v))


def _multi_head(run: Run, func: Any, args: Any, kwargs: Any, out: Any) -> bool | None:
    query, key, value, _, heads, weight, bias, bias_k, _, _, _, out_weight, out_bias = args[:13]
    if kwargs.get("use_separate_proj_weight") or bias_k is not None or weight is None:
        return False
    for x in (query, key, value):
        run.unite(run.collapse(run.resolved(x), -1), run.along(weight, 1))
    units_N = run.fresh(heads).repeat_interleave(query.shape[-1] // heads)
    run.unite(run.along(weight, 0), units_N.repeat(3))
    if bias is not None:
        run.unite(run.along(bias, None), units_N.repeat(3))
    run.unite(run.along(out_weight, 1), units_N)
    if out_bias is not None:
        run.unite(run.along(out_bias, None), run.along(out_weight, 0))
    _spread(run, run.along(out_weight, 0), -1, out[0])
    return None


RULES: dict[str, Callable[..., Any]] = {
    **{f"conv{kind}{dimensions}d": _layer for kind in ("", "_transpose") for dimensions in (1, 2, 3)},
    **dict.fromkeys(("matmul", "__matmul__", "bmm"), _matmul),
    "linear": _layer,
    "batch_norm": _batch_norm,
    "instance_norm": _batch_norm,
    "glu": _glu,
    "prelu": _prelu,
    "local_response_norm": _ordered,
    **dict.fromkeys(CONSTANTS, lambda *_: None),
    "_weight_norm": _weight_norm,
    "group_norm": _group_norm,
    "embedding": _embedding,
    "pad": _pad,
    "scaled_dot_product_attention": _attention,
    "multi_head_attention_forward": _multi_head,
}
