"""Convolution of K points at once: each point's samples with its own weights.

Networks of this field are small, and a GPU spends its time on starting kernels and moving activations. On a GPU in
16-bit precision narrow convolutions therefore run as one implicit matrix product over all points (kernels.py);
elsewhere the points run one after the other with the library's convolution.

Shapes: K points, B samples, C input and O output channels, H × W pixels, R × S taps.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.functional import conv2d

NARROW = 128
"""Channels up to which the kernels are used; beyond, the library's convolution fills the device by itself."""


@torch.library.custom_op("lowloss::convolution", mutates_args=())
def convolution(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> Tensor:
    """x (K·B, C, H, W) with weight (K, O, C / groups, R, S) gives (K·B, O, H', W'), channels last, in x's precision."""
    if narrow(x, weight, stride, padding, dilation, groups):
        from lowloss.landscape.engine import kernels

        return kernels.forward(_last(x), weight, stride[0], padding[0])
    parts = [
        conv2d(x_B, _aligned(weight_k), None, stride, padding, dilation, groups)
        for x_B, weight_k in zip(x.chunk(len(weight)), weight.to(x.dtype), strict=True)
    ]
    return _last(torch.cat(parts))


@convolution.register_fake
def _(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> Tensor:
    sizes = [
        (size + 2 * p - d * (taps - 1) - 1) // s + 1
        for size, taps, s, p, d in zip(x.shape[2:], weight.shape[3:], stride, padding, dilation, strict=True)
    ]
    return _empty_last(x, (x.shape[0], weight.shape[1], *sizes))


@torch.library.custom_op("lowloss::convolution_with_statistics", mutates_args=())
def convolution_with_statistics(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    """As convolution, with the mean and the biased variance (K, O) of the outputs, in float32; not differentiable."""
    if narrow(x, weight, stride, padding, dilation, groups):
        from lowloss.landscape.engine import kernels

        return kernels.forward_with_statistics(_last(x), weight, stride[0], padding[0])
    y = convolution(x, weight, stride, padding, dilation, groups)
    var_KO, mean_KO = torch.var_mean(y.unflatten(0, (len(weight), -1)).float(), (1, 3, 4), correction=0)
    return y, mean_KO, var_KO


@convolution_with_statistics.register_fake
def _(
    x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int
) -> tuple[Tensor, Tensor, Tensor]:
    y = torch.ops.lowloss.convolution(x, weight, stride, padding, dilation, groups)
    mean_KO, var_KO = (weight.new_empty(weight.shape[:2], dtype=torch.float32) for _ in range(2))
    return y, mean_KO, var_KO


@torch.library.custom_op("lowloss::convolution_normalised", mutates_args=())
def convolution_normalised(
    x: Tensor,
    weight: Tensor,
    scale: Tensor,
    shift: Tensor,
    relu: bool,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
) -> Tensor:
    """The outputs times scale (K, O) plus shift (K, O), and their positive part with `relu`; of narrow ones alone."""
    from lowloss.landscape.engine import kernels

    return kernels.forward_normalised(_last(x), weight, scale, shift, relu, stride[0], padding[0])


@convolution_normalised.register_fake
def _(x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, relu: bool, *settings: Any) -> Tensor:
    y: Tensor = torch.ops.lowloss.convolution(x, weight, *settings)
    return y


@torch.library.custom_op("lowloss::convolution_backward", mutates_args=())
def convolution_backward(
    gradient: Tensor,
    x: Tensor,
    weight: Tensor,
    stride: list[int],
    padding: list[int],
    dilation: list[int],
    groups: int,
    input_too: bool,
) -> tuple[Tensor, Tensor]:
    """The gradients with respect to x (empty unless `input_too`) and weight (float32)."""
    if narrow(x, weight, stride, padding, dilation, groups):
        from lowloss.landscape.engine import kernels

        gradient, x = _last(gradient), _last(x)
        to_weight = kernels.to_weight(gradient, x, weight, stride[0], padding[0])
        to_x = kernels.to_input(gradient, x, weight, stride[0], padding[0]) if input_too else x.new_empty(0)
        return to_x, to_weight
    to_x = torch.empty_like(_last(x)) if input_too else x.new_empty(0)
    to_weight = torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    points, weight = len(weight), weight.to(x.dtype)
    for k, (gradient_B, x_B) in enumerate(zip(gradient.chunk(points), x.chunk(points), strict=True)):
        mask = [input_too, True, False]
        found = torch.ops.aten.convolution_backward(
            gradient_B, x_B, _aligned(weight[k]), None, stride, padding, dilation, False, [0, 0], groups, mask
        )
        if input_too:
            to_x.chunk(points)[k].copy_(found[0])
        to_weight[k] = found[1]
    return to_x, to_weight


@convolution_backward.register_fake
def _(gradient: Tensor, x: Tensor, weight: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    *_, input_too = settings
    to_x = _empty_last(x, tuple(x.shape)) if input_too else x.new_empty(0)
    return to_x, weight.new_empty(weight.shape, dtype=torch.float32)


def _keep(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    x, weight, *ctx.settings = inputs
    ctx.save_for_backward(x, weight)


def _differentiate(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
    x, weight = ctx.saved_tensors
    to_x, to_weight = convolution_backward(gradient, x, weight, *ctx.settings, ctx.needs_input_grad[0])
    return to_x if ctx.needs_input_grad[0] else None, to_weight.to(weight.dtype), None, None, None, None


convolution.register_autograd(_differentiate, setup_context=_keep)


def narrow(x: Tensor, weight: Tensor, stride: list[int], padding: list[int], dilation: list[int], groups: int) -> bool:
    """Whether the kernels take it."""
    square = stride[0] == stride[1] and padding[0] == padding[1] and dilation == [1, 1] and groups == 1
    square = square and weight.shape[3] == weight.shape[4]
    small = weight.shape[1] <= NARROW and weight.shape[2] <= NARROW
    return x.is_cuda and x.dtype in (torch.bfloat16, torch.float16) and square and small


def _aligned(weight: Tensor) -> Tensor:
    """For the library's kernels, which fault on a view that starts anywhere."""
    return weight.clone() if weight.data_ptr() % 16 else weight.contiguous()


def _last(x: Tensor) -> Tensor:
    return x.contiguous(memory_format=torch.channels_last)


def _empty_last(x: Tensor, shape: tuple[int, ...]) -> Tensor:
    return torch.empty(shape, dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
