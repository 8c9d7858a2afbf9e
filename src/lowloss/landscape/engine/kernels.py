"""Convolutions of K points as implicit matrix products, in Triton.

Activations lie channels last, (K·B, H, W, C) in memory; a weight is laid out (K, taps, C, O) for a call. A program
computes one tile of one point; accumulation is in float32, and no atomics are used, so results repeat.

Shapes: K points, B samples, C input and O output channels, H × W pixels, R × S taps, T tiles.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

AT_ONCE = 128
"""Products of an output, taps times channels, up to which they fit one tile."""

COMBINED = 8192
"""Sums that a program combines, tiles times channels: few, since it waits for them all."""


FENCE = tuple(map(int, triton.__version__.split(".")[:2])) < (3, 8)
"""Whether Triton leaves out what has the matrix units of Hopper wait for copies to shared memory (triton#10537)."""


@triton.jit
def _add_product(a, t, acc, FENCED: tl.constexpr):
    if FENCED:
        # One for each of 128 threads.
        asm: tl.constexpr = "fence.proxy.async.shared::cta; mov.u32 $0, $1;"
        tl.inline_asm_elementwise(asm, "=r,r", [tl.arange(0, 128)], tl.int32, is_pure=False, pack=1)
    return tl.dot(a, t, acc)


@triton.jit
def _gather_product(
    x,
    w,
    y,
    sums,
    scale,
    shift,
    pixels,
    point_stride,
    H: tl.constexpr,
    W: tl.constexpr,
    C: tl.constexpr,
    HO: tl.constexpr,
    WO: tl.constexpr,
    O: tl.constexpr,  # noqa: E741
    R: tl.constexpr,
    S: tl.constexpr,
    UP: tl.constexpr,
    DOWN: tl.constexpr,
    PAD: tl.constexpr,
    MIRROR: tl.constexpr,
    STATISTICS: tl.constexpr,
    NORMALISED: tl.constexpr,
    RELU: tl.constexpr,
    TALL: tl.constexpr,
    BM: tl.constexpr,
    BO: tl.constexpr,
    BC: tl.constexpr,
    BJ: tl.constexpr,
    FENCED: tl.constexpr,
):
    """y[m, o] = sum over taps (r, s) and c of x[pixel(m, r, s), c] w[r, s, c, o].

    The pixel of image row ho is (ho · UP + r - PAD) / DOWN where that is whole and inside: UP is the stride of a
    convolution, DOWN that of its transpose, which takes the taps mirrored. STATISTICS stores the tile's sums and sums
    of squared deviations from the tile's means. NORMALISED: times scale[o] plus shift[o], and with RELU its positive
    part. BJ: columns of the one tile of all taps, or 0 for a loop over taps.

    With TALL > 1 (UP and DOWN 1) a row of the tile is a stack of that many pixels m, one below the other, and its
    columns are (place in the stack, o). What taps of neighbours share is loaded once: of 3 × 3, 6 loads a pixel of y
    for TALL 2 and 4.5 for 4, where 1 takes 9.
    """
    k = tl.program_id(2).to(tl.int64)
    BN: tl.constexpr = TALL * BO
    down = tl.arange(0, BN) // BO
    o = tl.program_id(1) * BO + tl.arange(0, BN) % BO
    stacks = pixels // TALL
    m = tl.program_id(0) * BM + tl.arange(0, BM)
    live = m < stacks
    wo = m % WO
    ho = (m // WO) % (HO // TALL) * TALL
    b = m // (WO * (HO // TALL))
    x += k * point_stride
    w += k * (R * S * C * O)
    y += k * pixels * O
    acc = tl.zeros((BM, BN), tl.float32)
    if BJ > 0:
        # Few products, as from an image's three channels: all taps in one tile.
        j = tl.arange(0, BJ)
        h = (ho * UP - PAD)[:, None] + (j // (S * C))[None, :]
        v = (wo * UP - PAD)[:, None] + ((j // C) % S)[None, :]
        inside = live[:, None] & (j < R * S * C)[None, :] & (h >= 0) & (h < H) & (v >= 0) & (v < W)
        pixel = ((b[:, None] * H + h) * W + v).to(tl.int64)
        a = tl.load(x + pixel * C + (j % C)[None, :], mask=inside, other=0.0)
        tap = R * S - 1 - j // C if MIRROR else j // C
        weight = w + (tap * C + j % C)[:, None] * O + o[None, :]
        t = tl.load(weight, mask=(j < R * S * C)[:, None] & (o < O)[None, :], other=0.0)
        acc = tl.dot(a, t, acc)
    else:
        top = ho * UP - PAD
        left = wo * UP - PAD
        if DOWN == 1:
            top = tl.where(live, top, -H - R - TALL)  # where no tap is inside
            corner = x + ((b * H + top) * W + left).to(tl.int64) * C
        for position in range((R + TALL - 1) * S):
            h = top + position // S
            v = left + position % S
            if DOWN == 1:
                # Each tap lies a constant away from the first: less to compute than from h and v.
                inside = (h >= 0) & (h < H) & (v >= 0) & (v < W)
                start = corner + (position // S * W + position % S) * C
            else:
                inside = live & (h >= 0) & (h < H * DOWN) & (v >= 0) & (v < W * DOWN)
                inside = inside & (h % DOWN == 0) & (v % DOWN == 0)
                start = x + ((b * H + h // DOWN) * W + v // DOWN).to(tl.int64) * C
            if TALL == 1:
                tap = position
                used = o < O
            else:
                # The tap that leads from here to each pixel of the stack, where there is one.
                tap = position - down * S
                used = (o < O) & (tap >= 0) & (tap < R * S)
            column = (R * S - 1 - tap if MIRROR else tap) * (C * O) + o
            for c0 in tl.static_range(0, C, BC):
                c = c0 + tl.arange(0, BC)
                if C % BC == 0:
                    a = tl.load(start[:, None] + c[None, :], mask=inside[:, None], other=0.0)
                    t = tl.load(w + c[:, None] * O + column[None, :], mask=used[None, :], other=0.0)
                else:
                    a = tl.load(start[:, None] + c[None, :], mask=inside[:, None] & (c < C)[None, :], other=0.0)
                    t = tl.load(w + c[:, None] * O + column[None, :], mask=(c < C)[:, None] & used[None, :], other=0.0)
                acc = _add_product(a, t, acc, FENCED)
    if STATISTICS:
        # Rows past the end are zero and drop out of both sums.
        total = tl.sum(tl.reshape(tl.sum(acc, 0), (TALL, BO)), 0)
        count = (tl.minimum(stacks - tl.program_id(0) * BM, BM) * TALL).to(tl.float32)
        mean = tl.reshape(tl.broadcast_to((total / count)[None, :], (TALL, BO)), (BN,))
        off = acc - live.to(tl.float32)[:, None] * mean[None, :]
        squared = tl.sum(tl.reshape(tl.sum(off * off, 0), (TALL, BO)), 0)
        sums += (k * tl.num_programs(0) + tl.program_id(0)) * (2 * O)
        n = tl.program_id(1) * BO + tl.arange(0, BO)
        tl.store(sums + n, total, mask=n < O)
        tl.store(sums + O + n, squared, mask=n < O)
    if NORMALISED:
        acc *= tl.load(scale + k * O + o, mask=o < O, other=0.0)[None, :]
        acc += tl.load(shift + k * O + o, mask=o < O, other=0.0)[None, :]
        if RELU:
            acc = tl.where(acc < 0, 0.0, acc)  # which keeps what is not a number
    out = acc.to(y.dtype.element_ty)
    first = ((b * HO + ho) * WO + wo).to(tl.int64)
    place = down * WO * O + o
    tl.store(y + first[:, None] * O + place[None, :], out, mask=live[:, None] & (o < O)[None, :])


@triton.jit
def _combine(
    sums,
    first,
    second,
    tiles,
    tile,
    pixels,
    O: tl.constexpr,  # noqa: E741
    BO: tl.constexpr,
    GROUP: tl.constexpr,
    LAST: tl.constexpr,
):
    """The sums and squared deviations of GROUP tiles as those of one, for each point and group (Chan et al. 1983).

    Deviations are within the tiles, and of the tiles' means from the group's. LAST: one group, as mean and variance.
    """
    group = tl.program_id(0)
    k = tl.program_id(1).to(tl.int64)
    o = tl.arange(0, BO)
    t = group * GROUP + tl.arange(0, GROUP)
    inside = (t < tiles)[:, None] & (o < O)[None, :]
    row = sums + k * tiles * (2 * O) + t[:, None] * (2 * O) + o[None, :]
    totals = tl.load(row, mask=inside, other=0.0)
    within = tl.load(row + O, mask=inside, other=0.0)
    total = tl.sum(totals, 0)
    begin = group.to(tl.int64) * GROUP * tile
    here = tl.minimum(pixels - begin, tile.to(tl.int64) * GROUP).to(tl.float32)
    count = tl.maximum(tl.minimum(pixels - t.to(tl.int64) * tile, tile), 1).to(tl.float32)[:, None]
    off = totals / count - (total / here)[None, :]
    squared = tl.sum(tl.where(inside, within + count * off * off, 0.0), 0)
    if LAST:
        tl.store(first + k * O + o, total / here, mask=o < O)
        tl.store(second + k * O + o, squared / here, mask=o < O)
    else:
        place = (k * tl.num_programs(0) + group) * (2 * O) + o
        tl.store(first + place, total, mask=o < O)
        tl.store(first + place + O, squared, mask=o < O)


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
    O: tl.constexpr,  # noqa: E741
    R: tl.constexpr,
    S: tl.constexpr,
    STRIDE: tl.constexpr,
    PAD: tl.constexpr,
    BJ: tl.constexpr,
    BO: tl.constexpr,
    BP: tl.constexpr,
    FENCED: tl.constexpr,
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
    # An address is a part of the pixel's plus a part of the tap's.
    column = (r * W + s) * C + c
    acc = tl.zeros((BJ, BO), tl.float32)
    first = split * per_split
    for p in range(first, min(first + per_split, pixels), BP):
        m = p + tl.arange(0, BP)
        live = (m < pixels) & (m < first + per_split)
        ho = ((m // WO) % HO) * STRIDE - PAD
        wo = (m % WO) * STRIDE - PAD
        row = (((m // (WO * HO)) * H + ho) * W + wo).to(tl.int64) * C
        h = ho[:, None] + r[None, :]
        v = wo[:, None] + s[None, :]
        inside = live[:, None] & (j < R * S * C)[None, :] & (h >= 0) & (h < H) & (v >= 0) & (v < W)
        a = tl.load(x + row[:, None] + column[None, :], mask=inside, other=0.0)
        t = tl.load(g + m.to(tl.int64)[:, None] * O + o[None, :], mask=live[:, None] & (o < O)[None, :], other=0.0)
        acc = _add_product(tl.trans(a), t, acc, FENCED)
    out += (split * tl.num_programs(2) + k) * (R * S * C * O)
    tl.store(out + j[:, None] * O + o[None, :], acc, mask=(j < R * S * C)[:, None] & (o < O)[None, :])


def forward(x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """x (K·B, C, H, W), weight (K, O, C, R, S) to (K·B, O, H', W'); x and the result channels last."""
    return _gather(x, weight.permute(0, 3, 4, 2, 1), _size(x, weight, stride, padding), stride, 1, padding)[0]


def forward_with_statistics(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[Tensor, Tensor, Tensor]:
    """As forward, with the mean and the biased variance (K, O) of each output channel."""
    size = _size(x, weight, stride, padding)
    y, sums_KT2O, tile = _gather(x, weight.permute(0, 3, 4, 2, 1), size, stride, 1, padding, statistics=True)
    return y, *_moments(sums_KT2O, tile, len(x) // len(weight) * size[0] * size[1])


def forward_normalised(
    x: Tensor, weight: Tensor, scale: Tensor, shift: Tensor, relu: bool, stride: int, padding: int
) -> Tensor:
    """As forward, times scale (K, O) plus shift (K, O), and the positive part of that with `relu`."""
    taps_last, size = weight.permute(0, 3, 4, 2, 1), _size(x, weight, stride, padding)
    return _gather(x, taps_last, size, stride, 1, padding, normalised=(scale.contiguous(), shift.contiguous(), relu))[0]


def _moments(sums_KT2O: Tensor, tile: int, pixels: int) -> tuple[Tensor, Tensor]:
    """The mean and the biased variance (K, O) of all pixels, from the sums of tiles of so many."""
    points, tiles, _, outputs = sums_KT2O.shape
    width = max(16, triton.next_power_of_2(outputs))
    group = COMBINED // width
    groups = triton.cdiv(tiles, group)
    last = groups == 1
    shape = (points, outputs) if last else (points, groups, 2, outputs)
    first = sums_KT2O.new_empty(shape)
    second = torch.empty_like(first) if last else first  # sums and deviations of groups lie in one
    _combine[groups, points](sums_KT2O, first, second, tiles, tile, pixels, outputs, width, group, last, num_warps=8)
    return (first, second) if last else _moments(first, tile * group, pixels)


def to_input(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient with respect to x: the transposed convolution."""
    padding = weight.shape[3] - 1 - padding
    size = x.shape[2], x.shape[3]
    return _gather(gradient, weight.permute(0, 3, 4, 1, 2), size, 1, stride, padding, mirror=True)[0]


def _size(x: Tensor, weight: Tensor, stride: int, padding: int) -> tuple[int, int]:
    height, width = ((n + 2 * padding - t) // stride + 1 for n, t in zip(x.shape[2:], weight.shape[3:], strict=True))
    return height, width


class _Tile(NamedTuple):
    """What a program computes: what measured fastest on an H200."""

    columns: int
    """Of the one tile of all taps, or 0 for a loop over taps."""
    tall: int
    """Pixels of the stack that a row is."""
    rows: int
    stages: int
    """Loads in flight."""
    registers: int | None = None
    """Of a thread at most, so that one more program fits a multiprocessor."""


def _tile(weight: Tensor, size: tuple[int, int], up: int, down: int) -> _Tile:
    _, high, wide, inputs, outputs = weight.shape
    products, width = high * wide * inputs, max(_width(inputs), _width(outputs))
    if products <= AT_ONCE and down == 1:
        rows = {16: 512, 32: 512, 64: 256}[width] if products <= 32 else 128
        return _Tile(max(32, triton.next_power_of_2(products)), 1, rows, 2)
    if high > 1 and up == down == 1 and max(inputs, outputs) <= 64 and size[0] % 2 == 0:
        return {16: _Tile(0, 2, 512, 4, 168), 32: _Tile(0, 2, 256, 3, 168), 64: _Tile(0, 2, 128, 3)}[width]
    return _Tile(0, 1, {16: 512, 32: 256, 64: 128}[width], 4 if up > 1 else 3)


def _width(channels: int) -> int:
    """Channels of a tile: a power of two that the matrix units take."""
    return min(max(16, triton.next_power_of_2(channels)), 64)


def _fenced(x: Tensor) -> bool:
    return FENCE and x.is_cuda and torch.cuda.get_device_capability(x.device) >= (9, 0)


def _gather(
    x: Tensor,
    weight: Tensor,
    size: tuple[int, int],
    up: int,
    down: int,
    padding: int,
    mirror: bool = False,
    statistics: bool = False,
    normalised: tuple[Tensor, Tensor, bool] | None = None,
) -> tuple[Tensor, Tensor, int]:
    """The product with weight (K, R, S, C, O), the tiles' sums (K, T, 2, O) if asked for, and the pixels of a tile."""
    points, high, wide, inputs, outputs = weight.shape
    samples = len(x) // points
    y = torch.empty((len(x), outputs, *size), dtype=x.dtype, device=x.device, memory_format=torch.channels_last)
    pixels = samples * size[0] * size[1]
    tile = _tile(weight, size, up, down)
    tile_pixels = tile.rows * tile.tall
    tiles = triton.cdiv(pixels, tile_pixels)
    sums_KT2O = torch.empty((points, tiles, 2, outputs) if statistics else 0, dtype=torch.float32, device=x.device)
    scale, shift, relu = normalised or (sums_KT2O, sums_KT2O, False)
    laid_out = torch.empty(weight.shape, dtype=x.dtype, device=x.device).copy_(weight)
    _gather_product[(tiles, triton.cdiv(outputs, _width(outputs)), points)](
        x,
        laid_out,
        y,
        sums_KT2O,
        scale,
        shift,
        pixels,
        samples * inputs * x.shape[2] * x.shape[3],
        *x.shape[2:],
        inputs,
        *size,
        outputs,
        high,
        wide,
        up,
        down,
        padding,
        mirror,
        statistics,
        normalised is not None,
        relu,
        tile.tall,
        tile.rows,
        _width(outputs),
        _width(inputs),
        tile.columns,
        _fenced(x),
        num_warps=4,
        num_stages=tile.stages,
        maxnreg=tile.registers,
    )
    return y, sums_KT2O, tile_pixels


def to_weight(gradient: Tensor, x: Tensor, weight: Tensor, stride: int, padding: int) -> Tensor:
    """The gradient with respect to weight (K, O, C, R, S), float32, summed in a fixed order."""
    points, outputs, inputs, rows, columns = weight.shape
    samples = len(x) // points
    pixels = samples * gradient.shape[2] * gradient.shape[3]
    products = rows * columns * inputs
    tile_pixels = 128
    tile_products, tile_outputs = _width(products), _width(outputs)
    blocks = triton.cdiv(products, tile_products) * triton.cdiv(outputs, tile_outputs)
    splits = max(1, min(256 // (blocks * points), pixels // (8 * tile_pixels)))
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
        _fenced(x),
        num_warps=4,
        num_stages=3,
    )
    return parts.sum(0).permute(0, 4, 3, 1, 2).contiguous()
