"""Convolutions of K points as implicit matrix products, in Triton.

Activations lie channels last, (K·B, H, W, C) in memory; a weight is laid out (K, taps, C, O) for a call. A program
computes one tile of one point; accumulation is in float32, and no atomics are used, so results repeat.

Shapes: K points, B samples, C input and O output channels, H × W pixels, R × S taps.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor


@triton.jit
def _gather_product(
    x,
    w,
    y,
    pixels,
    point_stride,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    HO: tl.constexpr,
    WO: tl.constexpr,
    O: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    PAD: tl.constexpr,
    BM: tl.constexpr,
    BN: tl.constexpr,
    BC: tl.constexpr,
):
    """y[m, o] = sum over taps (r, s) and c of x[pixel(m, r, s), c] w[r, s, c, o].

    The pixel of row ho is (ho · UP + r - PAD) / DOWN where that is whole and inside: UP is the stride of a
    convolution, DOWN that of its transpose.
    """
    k = tl.program_id(2).to(tl.int64)
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    n = tl.program_id(1) * BN + tl.arange(0, BN)
    wo = m % WO
    ho = (m // WO) % HO
    b = m // (WO * HO)
    x += k * point_stride
    w += k * (R * S * C * O)
    y += k * pixels * O
    acc = tl.zeros((BM, BN), tl.float32)
    for tap in range(R * S):
        h = ho * UP + tap // S - PAD
        v = wo * UP + tap % S - PAD
        inside = (m < pixels) & (h >= 0) & (h < H * DOWN) & (v >= 0) & (v < W * DOWN)
        if DOWN > 1:
            inside = inside & (h % DOWN == 0) & (v % DOWN == 0)
            h = h // DOWN
            v = v // DOWN
        offset = ((b * H + h) * W + v) * C
        for c0 in tl.static_range(0, C, BC):
            c = c0 + tl.arange(0, BC)
            if C % BC == 0:
                a = tl.load(x + offset[:, None] + c[None, :], mask=inside[:, None], other=0.0)
                t = tl.load(w + (tap * C + c[:, None]) * O + n[None, :], mask=(n < O)[None, :], other=0.0)
            else:
                a = tl.load(x + offset[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
                t = tl.load(
                    w + (tap * C + c[:, None]) * O + n[None, :], mask=(c < C)[:, None] & (n < O)[None, :], other=0.0
                )
            acc = tl.dot(a, t, acc)
    rows = (m < pixels)[:, None] & (n < O)[None, :]
    tl.store(y + m[:, None] * O + n[None, :], acc.to(y.dtype.element_ty), mask=rows)


@triton.jit
def _pixel_product(
    x,
    g,
    out,
    pixels,
    point_stride,
    per_split,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    HO: tl.constexpr,
    WO: tl.constexpr,
    O: tl.constexpr,
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    BJ: tl.constexpr,
    BO: tl.constexpr,
    BP: tl.constexpr,
):
    """out[split, k, j, o] = sum over the split's pixels m of x[pixel(m, r, s), c] g[m, o], where j = (r, s, c)."""
    split = tl.program_id(0)
    blocks: tl.constexpr = (R * S * C + BJ - 1) // BJ
    j = (tl.program_id(1) % blocks) * BJ + tl.arange(0, BJ)
    o = (tl.program_id(1) // blocks) * BO + tl.arange(0, BO)
    k = tl.program_id(2).to(tl.int64)
    c = j % C
    r = (j // C) // S
    s = (j // C) % S
    x += k * point_stride
    g += k * pixels * O
    acc = tl.zeros((BJ, BO), tl.float32)
    first = split * per_split
    for p in range(first, min(first + per_split, pixels), BP):
        m = p + tl.arange(0, BP)
        live = (m < pixels) & (m < first + per_split)
        h = (((m // WO) % HO) * STRIDE - PAD)[:, None] + r[None, :]
        v = ((m % WO) * STRIDE - PAD)[:, None] + s[None, :]
        offset = ((m // (WO * HO))[:, None] * H + h) * W + v
        inside = live[:, None] & (j < R * S * C)[None, :] & (h >= 0) & (h < H) & (v >= 0) & (v < W)
        a = tl.load(x + offset * C + c[None, :], mask=inside, other=0.0)
        t = tl.load(g + m[:, None] * O + o[None, :], mask=live[:, None] & (o < O)[None, :], other=0.0)
        acc = tl.dot(tl.trans(a), t, acc)
    out += (split * tl.num_programs(2) + k) * (R * S * C * O)
    tl.store(out + j[:, None] * O + o[None, :], acc, mask=(j < R * S * C)[:, None] & (o < O)[None, :])


GATHER = 128, 4, 3
PIXEL = 64, 64, 4, 3, 1024


def forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """x (K·B, C, H, W), weight (K, O, C, R, S) to (K·B, O, H', W'); x and the result channels last."""
    taps = weight.shape[3:]
    height, width = ((n + 2 * padding - t) // stride + 1 for n, t in zip(x.shape[2:], taps, strict=True))
    laid_out = weight.permute(0, 3, 4, 2, 1)
    return _gather(x, laid_out, (height, width), up=stride, down=1, padding=padding)


def to_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient with respect to x: the transposed convolution, with the taps mirrored."""
    laid_out = weight.flip(3, 4).permute(0, 3, 4, 1, 2)
    height, width = x.shape[2:]
    return _gather(gradient, laid_out, (height, width), up=1, down=stride, padding=weight.shape[3] - 1 - padding)


def _gather(x: Tensor, weight: Tensor, size: tuple[int, int], up: int, down: int, padding: int) -> Tensor:
    points, rows, columns, inputs, outputs = weight.shape
    samples = len(x) // points
    y = torch.empty((len(x), outputs, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels = samples * size[0] * size[1]
    tile_outputs = min(max(16, triton.next_power_of_2(outputs)), 64)
    tile_inputs = min(max(16, triton.next_power_of_2(inputs)), 64)
    tile, warps, stages = GATHER
    _gather_product[(triton.cdiv(pixels, tile), triton.cdiv(outputs, tile_outputs), points)](
        x,
        weight.to(x.dtype).contiguous(),
        y,
        pixels,
        samples * inputs * x.shape[2] * x.shape[3],
        *x.shape[2:],
        inputs,
        *size,
        outputs,
        rows,
        columns,
        up,
        down,
        padding,
        tile,
        tile_outputs,
        tile_inputs,
        num_warps=warps,
        num_stages=stages,
    )
    return y


def to_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient with respect to weight (K, O, C, R, S), float32, summed in a fixed order."""
    points, outputs, inputs, rows, columns = weight.shape
    samples = len(x) // points
    pixels = samples * gradient.shape[2] * gradient.shape[3]
    products = rows * columns * inputs
    widest, tile_pixels, warps, stages, programs = PIXEL
    tile_products = min(max(16, triton.next_power_of_2(products)), widest)
    tile_outputs = min(max(16, triton.next_power_of_2(outputs)), 64)
    blocks = triton.cdiv(products, tile_products) * triton.cdiv(outputs, tile_outputs)
    splits = max(1, min(programs // (blocks * points), pixels // (8 * tile_pixels)))
    per_split = triton.cdiv(triton.cdiv(pixels, splits), tile_pixels) * tile_pixels
    parts = torch.empty((splits, points, rows, columns, inputs, outputs), dtype=torch.float32, device=x.device)
    _pixel_product[(splits, blocks, points)](
        x,
        gradient,
        parts,
        pixels,
        samples * inputs * x.shape[2] * x.shape[3],
        per_split,
        *x.shape[2:],
        inputs,
        *gradient.shape[2:],
        outputs,
        rows,
        columns,
        stride,
        padding,
        tile_products,
        tile_outputs,
        tile_pixels,
        num_warps=warps,
        num_stages=stages,
    )
    return parts.sum(0).permute(0, 4, 3, 1, 2).contiguous()
