"""What the functions that a module calls do to the units of their inputs.

A rule sets the units of what a function gave, and makes units one that have to be. It returns False where the function
counts as elementwise after all.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_map

if TYPE_CHECKING:
    from lowloss.symmetry.units import Run

FIXED, NEUTRAL = 0, -1
"""Units that stay where they are, and what belongs to none, as a mask or the zeros of a padding."""

SHAPES = re.compile(
    "__get__|__getitem__|cat|chunk|clone|concat(enate)?|contiguous|detach|expand(_as)?|flatten|flip|index_select|"
    "move(axis|dim)|narrow|permute|(channel|pixel)_(un)?shuffle|repeat(_interleave)?|reshape|roll|select|split|squeeze|stack|swapaxes|t|"
    "tensor_split|tile|to|transpose|unbind|unflatten|unsqueeze|view(_as)?"
)
"""Functions that move numbers and change none: they move the units alike."""

REDUCTIONS = re.compile("sum|mean|amax|amin|max|min|std|var|norm|logsumexp|prod")

POOLS = ("pool1d", "pool2d", "pool3d", "interpolate", "upsample")

CONSTANTS = ("new_zeros", "new_ones", "new_full", "zeros_like", "ones_like", "full_like")
"""Functions that take a tensor's type, or its shape, and none of its numbers."""


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


def rule_of(name: str, inputs: int) -> Callable[..., Any] | None:
    """The rule of a function by its name and how many tensors it takes; None if it counts as elementwise."""
    if SHAPES.fullmatch(name):
        return _shape
    if REDUCTIONS.fullmatch(name) and not (name in ("max", "min") and inputs > 1):
        return _reduction
    return RULES.get(name) or next((_pool for part in POOLS if part in name), None)
