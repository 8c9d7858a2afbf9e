"""A module that runs K points in one call: their samples folded into the batch axis, their weights side by side.

What a network does between its layers acts on each sample alone, so it need not know that the samples belong to
different points. Only layers with parameters, BatchNorm and dropout do; each has a class here.

Shapes: K points, B samples, C channels.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import group_norm, layer_norm

from lowloss.errors import LowlossError
from lowloss.landscape.engine import convolution as convolutions
from lowloss.landscape.engine.convolution import convolution, convolution_normalised, convolution_with_statistics


def fold(module: nn.Module) -> nn.Module:
    """A copy of the module that takes x (K·B, ...) and, by functional_call, parameters with a first axis K.

    Raises LowlossError: a layer has parameters and no class here.
    """
    folded = copy.deepcopy(module)
    for name, part in folded.named_modules():
        kind = FOLDED.get(type(part))
        if kind is not None:
            part.__class__ = kind
            part.prepare()
        elif any(True for _ in part.parameters(recurse=False)) or isinstance(part, nn.modules.dropout._DropoutNd):
            raise LowlossError(
                f"{name or 'the module'} is a {type(part).__name__}, which does not run at several points at once"
            )
    return folded


def record(folded: nn.Module) -> list[FoldedBatchNorm]:
    """Have a folded module's BatchNorms normalise by their minibatch and add up its statistics; returns them."""
    norms = [part for part in folded.modules() if isinstance(part, FoldedBatchNorm)]
    for norm in norms:
        norm.train()
        norm.recording = True
    return norms


@torch.library.custom_op("lowloss::separate", mutates_args=())
def separate(theta_KP: Tensor, sizes: list[int]) -> list[Tensor]:
    """Each parameter (K, size) in memory of its own.

    A compiler that sees where each begins writes a kernel for every layer, and weighs all pairs of kernels for the
    theta that they share; so like layers share a kernel, and compilation takes time in proportion to their number.
    """
    parts = [theta_KP.new_empty(len(theta_KP), size) for size in sizes]
    rows = [row for part in parts for row in part]
    torch._foreach_copy_(rows, [row for part in theta_KP.split(sizes, 1) for row in part])
    return parts


@separate.register_fake
def _(theta_KP: Tensor, sizes: list[int]) -> list[Tensor]:
    return [theta_KP.new_empty(theta_KP.shape[0], size) for size in sizes]


@torch.library.custom_op("lowloss::join", mutates_args=())
def join(parts: list[Tensor]) -> Tensor:
    """Of parameters (K, size) the points (K, P)."""
    return torch.cat(parts, 1)


@join.register_fake
def _(parts: list[Tensor]) -> Tensor:
    return parts[0].new_empty(parts[0].shape[0], sum(part.shape[1] for part in parts))


separate.register_autograd(lambda _, gradients: (join(gradients), None))


@torch.library.custom_op("lowloss::widen", mutates_args=())
def widen(x: Tensor) -> Tensor:
    """x, as its precision rounds it, in float32.

    A compiler that sees the conversion may leave out the rounding in one kernel and not in the next (pytorch#151352).
    The log-sum-exp would then be of unrounded logits and be subtracted from rounded ones: at a minimum, where all
    samples are right, that difference is larger than the gradient.
    """
    return x.to(torch.float32, copy=True)


@widen.register_fake
def _(x: Tensor) -> Tensor:
    return torch.empty_like(x, dtype=torch.float32)


def _keep_precision(ctx: Any, inputs: tuple[Tensor], output: Tensor) -> None:
    ctx.dtype = inputs[0].dtype


widen.register_autograd(lambda ctx, gradient: gradient.to(ctx.dtype), setup_context=_keep_precision)


def _unfold(x: Tensor, points: int) -> Tensor:
    return x.unflatten(0, (points, -1))


def _scaled(x: Tensor, weight: Tensor, bias: Tensor | None, after: int) -> Tensor:
    """x (K·B, ...) times weight (K, ...) plus bias, the weight's axes followed by `after` axes of x."""
    points = len(weight)
    x = _unfold(x, points)
    shape = [points, *[1] * (x.dim() - weight.dim() - after), *weight.shape[1:], *[1] * after]
    x = x * weight.view(shape)
    return (x if bias is None else x + bias.view(shape)).flatten(0, 1)


class FoldedLinear(nn.Linear):
    """`last`: its outputs are the module's, and computed in float32, as rounded logits are most of a step's error where
    all samples are right."""

    last = False

    def prepare(self) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        x = x.float() if self.last else x
        weight = self.weight.to(x.dtype)
        rows = _unfold(x, len(weight)).flatten(1, -2)
        out = rows @ weight.mT
        if self.bias is not None:
            out = out + self.bias.to(x.dtype)[:, None]
        return out.reshape(*x.shape[:-1], -1)


class _Conv2d(nn.Conv2d):
    def prepare(self) -> None:
        if self.padding == "valid":
            self.padding = 0, 0
        spans = [d * (taps - 1) for d, taps in zip(self.dilation, self.kernel_size, strict=True)]
        if self.padding == "same" and all(span % 2 == 0 for span in spans):
            self.padding = spans[0] // 2, spans[1] // 2
        if self.padding_mode != "zeros" or isinstance(self.padding, str):
            raise LowlossError("a convolution pads otherwise than with a number of zeros on each side")

    @property
    def settings(self) -> tuple[list[int], list[int], list[int], int]:
        assert not isinstance(self.padding, str)
        return list(self.stride), list(self.padding), list(self.dilation), self.groups

    def forward(self, x: Tensor) -> Tensor:
        out = convolution(x, self.weight, *self.settings)
        if self.bias is None:
            return out
        return (_unfold(out, len(self.bias)) + self.bias.to(x.dtype)[:, None, :, None, None]).flatten(0, 1)


class FoldedBatchNorm(nn.modules.batchnorm._BatchNorm):
    """In training mode each point's minibatch normalises; with `recording`, its statistics are added up as well.

    `whole`: the minibatch is the whole split, and is normalised as evaluation will normalise it.
    """

    recording = False
    whole = False

    def prepare(self) -> None:
        if not self.affine or not self.track_running_stats:
            raise LowlossError("a BatchNorm has no scale and shift or keeps no statistics")

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return _scaled(x.float(), *self.scale_and_shift(), x.dim() - 2).to(x.dtype)
        wide = _unfold(x.float(), len(self.weight))
        others = [axis for axis in range(wide.dim()) if axis not in (0, 2)]
        var_KC, mean_KC = torch.var_mean(wide, others, correction=0)
        return self.normalise(x, mean_KC, var_KC)

    def normalise(self, x: Tensor, mean_KC: Tensor, var_KC: Tensor) -> Tensor:
        """x (K·B, C, ...) by its mean and biased variance."""
        if self.recording:
            assert self.running_mean is not None
            assert self.running_var is not None
            count = _unfold(x, len(mean_KC))[0, :, 0].numel()
            unbiased_KC = var_KC * (count / max(count - 1, 1))
            self.running_mean.add_(mean_KC)
            self.running_var.add_(unbiased_KC)
            var_KC = unbiased_KC if self.whole else var_KC
        return _scaled(x.float(), *self._scale_and_shift(mean_KC, var_KC), x.dim() - 2).to(x.dtype)

    def scale_and_shift(self) -> tuple[Tensor, Tensor]:
        """What evaluation does to each channel (K, C)."""
        assert self.running_mean is not None
        assert self.running_var is not None
        return self._scale_and_shift(self.running_mean, self.running_var)

    def _scale_and_shift(self, mean_KC: Tensor, var_KC: Tensor) -> tuple[Tensor, Tensor]:
        reciprocal_KC = (var_KC + self.eps).rsqrt()
        # Not mean times scale: Triton 3.6 fails on the kernel that the compiler makes of that.
        return reciprocal_KC * self.weight, self.bias - mean_KC * reciprocal_KC * self.weight


class _BatchNorm1d(FoldedBatchNorm, nn.BatchNorm1d): ...


class _BatchNorm2d(FoldedBatchNorm, nn.BatchNorm2d): ...


class _Sequential(nn.Sequential):
    """Outside of training a convolution without bias and the BatchNorm after it are one, where kernels do that.

    The kernel of the convolution gives BatchNorm's statistics with its outputs, or where they are known normalises
    them, with the ReLU that follows. Hooks of these parts would not be called, so a part that has some runs by itself.
    """

    def prepare(self) -> None:
        self._hooked = [bool(part._forward_hooks or part._forward_pre_hooks) for part in self]

    def forward(self, x: Tensor) -> Tensor:
        parts, i = list(self), 0
        while i < len(parts):
            part, norm = parts[i], parts[i + 1] if i + 1 < len(parts) else None
            bare = not any(self._hooked[i : i + 2])
            if isinstance(part, _Conv2d) and part.bias is None and isinstance(norm, _BatchNorm2d) and bare:
                if norm.recording:
                    x = norm.normalise(*convolution_with_statistics(x, part.weight, *part.settings))
                    i += 2
                    continue
                if not norm.training and convolutions.narrow(x, part.weight, *part.settings):
                    relu = i + 2 < len(parts) and type(parts[i + 2]) is nn.ReLU and not self._hooked[i + 2]
                    x = convolution_normalised(x, part.weight, *norm.scale_and_shift(), relu, *part.settings)
                    i += 3 if relu else 2
                    continue
            x = part(x)
            i += 1
        return x


class _GroupNorm(nn.GroupNorm):
    def prepare(self) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        out = group_norm(x.float(), self.num_groups, eps=self.eps)
        return (_scaled(out, self.weight, self.bias, x.dim() - 2) if self.affine else out).to(x.dtype)


class _LayerNorm(nn.LayerNorm):
    def prepare(self) -> None: ...

    def forward(self, x: Tensor) -> Tensor:
        out = layer_norm(x.float(), self.normalized_shape, eps=self.eps)
        return (_scaled(out, self.weight, self.bias, 0) if self.elementwise_affine else out).to(x.dtype)


class FoldedDropout(nn.Dropout):
    """Masks from a counter-based hash of the row's seed: the same whatever rows run beside it."""

    axes: int | None = None
    seed: Tensor

    def prepare(self) -> None:
        self.register_buffer("seed", torch.zeros(1, dtype=torch.int64))

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        rows = _unfold(x, len(self.seed))
        kept = rows.shape[1:] if self.axes is None else rows.shape[1 : 1 + self.axes]
        count = kept.numel()
        counter = torch.arange(count, device=x.device, dtype=torch.int64)
        # A product of the counter would be taken for an index, of 32 bits, by the compiler.
        mask = _uniform(self.seed[:, None] * 0x632BE59BD9B4E019 + counter) >= self.p
        mask = mask.view(len(rows), *kept, *[1] * (rows.dim() - 1 - len(kept)))
        # Where all are dropped, a division by zero would make gradients of nothing NaN.
        return torch.where(mask, rows / ((1 - self.p) or 1), 0).flatten(0, 1).to(x.dtype)


class _Dropout2d(FoldedDropout, nn.Dropout2d):
    axes = 2


def _uniform(counter: Tensor) -> Tensor:
    """Uniform numbers in [0, 1) from 64-bit counters, by the finaliser of splitmix64 (Steele et al. 2014)."""
    for shift, factor in ((30, -0x40A7B892E31B1A47), (27, -0x6B2FB644ECCEEE15), (31, 1)):
        counter = (counter ^ ((counter >> shift) & ((1 << (64 - shift)) - 1))) * factor
    return ((counter >> 40) & 0xFFFFFF).float() / 2**24


FOLDED = {
    nn.Sequential: _Sequential,
    nn.Linear: FoldedLinear,
    nn.Conv2d: _Conv2d,
    nn.BatchNorm1d: _BatchNorm1d,
    nn.BatchNorm2d: _BatchNorm2d,
    nn.GroupNorm: _GroupNorm,
    nn.LayerNorm: _LayerNorm,
    nn.Dropout: FoldedDropout,
    nn.Dropout2d: _Dropout2d,
}
"""The layers that know K, or whose parts do, by the exact class that they replace."""
