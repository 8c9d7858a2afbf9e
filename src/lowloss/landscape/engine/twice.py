"""What a loss is differentiated twice through, faster than torch does it, and to the same numbers up to rounding.

torch takes the second derivative of a convolution by convolutions whose kernels are as large as the images, and that of
a BatchNorm at held statistics by a score of passes over its input. Here the former is what it is, two convolutions and
two gradients of convolutions, and the latter part of the convolution before it. Of ReLUs no zeros are written.

Shapes: C input and O output channels.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import batch_norm, relu
from torch.overrides import TorchFunctionMode

Settings = tuple[list[int], list[int], list[int], int]
"""Stride, padding, dilation and groups."""

Given = tuple[Tensor, Tensor, Tensor | None, Settings]
"""What a convolution takes."""


def _gradients(gradient: Tensor, x: Tensor, weight: Tensor, settings: Settings, *wanted: bool) -> tuple[Any, ...]:
    """Those of a convolution's x, weight and bias."""
    stride, padding, dilation, groups = settings
    shared = [len(weight)], stride, padding, dilation, False, [0] * len(stride), groups
    found: tuple[Any, ...] = torch.ops.aten.convolution_backward(gradient, x, weight, *shared, list(wanted))
    return found


def _convolved(x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
    stride, padding, dilation, groups = settings
    return torch.convolution(x, weight, bias, stride, padding, dilation, False, [0] * len(stride), groups)


class _Convolution(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None, settings: Settings) -> Tensor:
        ctx.save_for_backward(x, weight)
        ctx.settings = settings
        return _convolved(x, weight, bias, settings)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        wanted = tuple(ctx.needs_input_grad[:3])
        return *_Gradients.apply(upstream[0], *ctx.saved_tensors, ctx.settings, wanted), None


class _Gradients(torch.autograd.Function):
    """The gradients of a convolution, which are linear in the one of its outputs, and in its x or its weight."""

    @staticmethod
    def forward(
        ctx: Any, gradient: Tensor, x: Tensor, weight: Tensor, settings: Settings, wanted: tuple[bool, ...]
    ) -> tuple[Any, ...]:
        ctx.set_materialize_grads(False)
        ctx.save_for_backward(gradient, x, weight)
        ctx.settings = settings
        return _gradients(gradient, x, weight, settings, *wanted)

    @staticmethod
    def backward(ctx: Any, *along: Tensor | None) -> tuple[Tensor | None, ...]:
        (gradient, x, weight), settings, (of_x, of_weight, of_bias) = ctx.saved_tensors, ctx.settings, along
        to_gradient = to_x = to_weight = None
        if ctx.needs_input_grad[0]:
            if of_x is not None:
                to_gradient = _convolved(of_x, weight, of_bias, settings)
            if of_weight is not None:
                bias = of_bias if to_gradient is None else None
                through = _convolved(x, of_weight, bias, settings)
                to_gradient = through if to_gradient is None else to_gradient.add_(through)
            if to_gradient is None and of_bias is not None:
                to_gradient = of_bias.view(-1, *[1] * (gradient.dim() - 2)).expand_as(gradient)
        if ctx.needs_input_grad[1] and of_weight is not None:
            to_x = _gradients(gradient, x, of_weight, settings, True, False, False)[0]
        if ctx.needs_input_grad[2] and of_x is not None:
            to_weight = _gradients(gradient, of_x, weight, settings, False, True, False)[1]
        return to_gradient, to_x, to_weight, None, None


class _Rectified(torch.autograd.Function):
    """torch adds zeros, written out, as the derivative of a ReLU's derivative."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        y = x.relu()
        ctx.save_for_backward(y)
        return y

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Any:
        return _Passed.apply(upstream[0], *ctx.saved_tensors)


class _Passed(torch.autograd.Function):
    """What a ReLU of these outputs hands back."""

    @staticmethod
    def forward(ctx: Any, gradient: Tensor, y: Tensor) -> Any:
        ctx.save_for_backward(y)
        return torch.ops.aten.threshold_backward(gradient, y, 0)

    @staticmethod
    def backward(ctx: Any, *along: Tensor) -> tuple[Any, None]:
        return torch.ops.aten.threshold_backward(along[0], *ctx.saved_tensors, 0), None


LOOKS = {Tensor.dim, Tensor.size, Tensor.shape.__get__, Tensor.ndim.__get__}  # type: ignore[attr-defined]
"""What may be asked of a convolution's outputs on their way into a BatchNorm."""

GRADIENTS = {
    *(torch.autograd.grad, torch.autograd.backward, Tensor.backward, Tensor.register_hook, Tensor.retain_grad),
    Tensor.grad_fn.__get__,  # type: ignore[union-attr]
}
"""By what a module takes gradients, or has hooks on them: of tensors that no BatchNorm here may have skipped."""


class Plainly(Exception):  # noqa: N818
    """A module has to be differentiated as it is written."""


class Twice(TorchFunctionMode):
    """While convolutions, ReLUs and BatchNorms at held statistics are computed for fast second derivatives.

    Raises Plainly: the module uses gradients, or hooks on them, as it runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self._last: tuple[Any, ...] = ()

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        if func in GRADIENTS:
            raise Plainly
        if func in LOOKS:
            return func(*args, **kwargs)
        last, self._last = self._last, ()
        if torch.is_autocast_enabled("cpu") or torch.is_autocast_enabled("cuda"):
            return func(*args, **kwargs)
        if func in (torch.conv1d, torch.conv2d, torch.conv3d):
            given = _settings(*args, **kwargs)
            if given is not None:
                found = _Convolution.apply(*given)
                self._last = (found, given) if found.requires_grad else ()
                return found
        elif func in (relu, torch.relu) and len(args) == 1 and not kwargs.get("inplace"):
            return _Rectified.apply(*args)
        elif func is batch_norm and len(args) == 3 and not kwargs["training"] and args[1] is not None:
            before = last[1] if last and last[0] is args[0] else None
            return _normalised(before, *args, kwargs["weight"], kwargs["bias"], kwargs["eps"])
        return func(*args, **kwargs)


def _normalised(
    convolved: Given | None,
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Tensor:
    """A BatchNorm of x, which a convolution has just made of what it was given, if one has."""
    scale = (var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -mean * scale if bias is None else bias - mean * scale
    if convolved:
        before, kernel, offset, settings = convolved
        shift = shift if offset is None else shift + offset * scale
        found: Tensor = _Convolution.apply(before, kernel * scale.view(-1, *[1] * (x.dim() - 1)), shift, settings)
        return found
    shape = -1, *[1] * (x.dim() - 2)
    return x * scale.view(shape) + shift.view(shape)


def _settings(
    input: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride: Any = 1,
    padding: Any = 0,
    dilation: Any = 1,
    groups: int = 1,
) -> Given | None:
    """What a convolution takes; None where it pads by a rule, is complex, or the sample stands alone."""
    axes = weight.dim() - 2
    if isinstance(padding, str) or not input.is_floating_point() or input.dim() != weight.dim():
        return None
    stride, padding, dilation = (
        [given] * axes if isinstance(given, int) else [*given] * (axes if len(given) == 1 else 1)
        for given in (stride, padding, dilation)
    )
    return input, weight, bias, (stride, padding, dilation, groups)
