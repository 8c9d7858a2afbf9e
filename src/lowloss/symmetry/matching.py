"""Matching: the permutation of a network's units, with signs where these can change, that brings it closest to another
(Ainsworth et al. 2023).

Shapes: P parameters, N units of a group, U of a layer, S samples and positions.
"""

import contextlib
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from lowloss.errors import LowlossError
from lowloss.symmetry.groups import WEIGHT, Group, Place, Symmetries, after

CHUNK = 100
"""Samples whose activations are held at once."""

TIE = 1e-6
"""How much the outputs of layers weigh beside what goes on from them, where activations are compared."""

Look = Callable[[str, Tensor], tuple[Tensor, Tensor] | None]
"""What is done with the outputs (S, U) of a layer, by its name; it may return a scale and a shift (U,) with which the
run goes on."""


def match_weights(
    symmetries: Symmetries, a_P: Tensor, b_P: Tensor, groups: Sequence[Group] | None = None
) -> dict[str, Tensor]:
    """Permutations of b, a group each, that make its scalar product with a large: its distance from a small.

    First every group is matched in the order of the network, by the parameters whose other axes are matched already:
    a permuted copy is found exactly by this. Then coordinate descent (Ainsworth et al. 2023, Algorithm 1): a group at a
    time is matched exactly, the others held, while the product grows.

    Args:
        groups: by default all.
    """
    groups = symmetries.groups if groups is None else groups
    layout, matched = symmetries.layout, {group.name for group in symmetries.groups} - {group.name for group in groups}
    a_P, b_P = a_P.double().cpu(), b_P.double().cpu().clone()
    named_a, named_b = layout.views(a_P), layout.views(b_P)
    found = dict[str, Tensor]()
    inside: dict[str, list[str]] = {}
    for group in symmetries.groups:
        for place in group.places:
            inside.setdefault(place.parameter, []).append(group.name)
    for group in groups:
        # In which it is once, and every other group is matched.
        here = {name for name, of in inside.items() if of.count(group.name) == 1 and {*of} <= matched | {group.name}}
        certain = [place for place in group.places if place.parameter in here]
        found[group.name] = _assigned(group, *_products(certain or group.places, named_a, named_b))
        group.permute(named_b, found[group.name])
        matched.add(group.name)
    scale, grows = float(a_P @ b_P), True
    while grows:
        grows = False
        for group in groups:
            moved = _assigned(group, *_products(group.places, named_a, named_b))
            before = {place.parameter: named_b[place.parameter].clone() for place in group.places}
            group.permute(named_b, moved)
            gain = sum(float((named_a[name] * (named_b[name] - kept)).sum()) for name, kept in before.items())
            # A group on two axes of a parameter is not matched exactly: then the product may fall.
            if gain > 1e-12 * abs(scale):
                grows, found[group.name] = True, after(found[group.name], moved)
                continue
            for name, kept in before.items():
                named_b[name].copy_(kept)
    return found


def match_activations(symmetries: Symmetries, a: nn.Module, b: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Permutations of b, a group each, whose units' activations correlate the most with those of a.

    Activations are what the linear and convolutional layers read that the units go into, after the nonlinearity, over
    all samples and positions. Units that are constant there are told apart by what the layers give that make them. A
    group that no such layer reads or makes, as the heads of attention, or whose layers are not called, is left out.

    Raises LowlossError: a network is of another architecture than the symmetries.
    """
    for network in (a, b):
        shapes = {name: parameter.shape for name, parameter in network.named_parameters()}
        for name, shape in zip(symmetries.layout.names, symmetries.layout.shapes, strict=True):
            if shapes.get(name) != shape:
                given = tuple(shapes[name]) if name in shapes else "none"
                raise LowlossError(f"the symmetries are of networks with {name} of shape {tuple(shape)}, got {given}")
    sides = [(group, reads, _layers(group, a, reads)) for group in symmetries.groups for reads in (True, False)]
    names = [{name for _, side, layers in sides if side == reads for name, _ in layers} for reads in (False, True)]
    sums: dict[tuple[str, bool, str], tuple[Tensor, ...]] = {}
    for x_S in x.split(CHUNK):
        of_a, of_b = (_activations(network, names, x_S) for network in (a, b))
        for group, reads, layers in sides:
            for name, index_NR in layers:
                if (name, reads) in of_a:
                    rows = [of[name, reads][:, index_NR].transpose(1, 2).flatten(0, 1).double() for of in (of_a, of_b)]
                    key, more = (group.name, reads, name), _sums(*rows)
                    sums[key] = tuple(s + m for s, m in zip(sums[key], more, strict=True)) if key in sums else more
    found = {}
    for group in symmetries.groups:
        own = {key: some for key, some in sums.items() if key[0] == group.name}
        correlations = [_correlations(*some) * (1 if reads else TIE) for (_, reads, _), some in own.items()]
        if correlations:
            found[group.name] = _assigned(group, torch.stack(correlations).sum(0))
    return found


def _sums(a_SN: Tensor, b_SN: Tensor) -> tuple[Tensor, ...]:
    """What correlations follow from, to be summed over chunks of samples."""
    count = torch.tensor(float(len(a_SN)), dtype=a_SN.dtype)
    return count, a_SN.sum(0), b_SN.sum(0), a_SN.square().sum(0), b_SN.square().sum(0), a_SN.T @ b_SN


def _correlations(
    count: Tensor, sum_a_N: Tensor, sum_b_N: Tensor, square_a_N: Tensor, square_b_N: Tensor, products_NN: Tensor
) -> Tensor:
    """The correlations (N, N); zero where one is constant, which is a variance of 1e-12 of the mean square or less."""
    spread = []
    for sum_N, square_N in ((sum_a_N, square_a_N), (sum_b_N, square_b_N)):
        variance_N = square_N - sum_N.square() / count
        spread.append(torch.where(variance_N > 1e-12 * square_N, 1 / variance_N.sqrt(), 0.0))
    return (products_NN - sum_a_N[:, None] * sum_b_N / count) * spread[0][:, None] * spread[1]


def _products(
    places: Sequence[Place], named_a: Mapping[str, Tensor], named_b: Mapping[str, Tensor]
) -> tuple[Tensor, Tensor]:
    """The scalar products (N, N) of what belongs to each unit of a with that of each of b: what changes its sign with
    the unit, and what does not."""
    size = len(places[0].index_NR)
    signed_NN, rest_NN = (torch.zeros(size, size, dtype=torch.double) for _ in range(2))
    for p in places:
        sum_NN = signed_NN if p.signed else rest_NN
        sum_NN += p.rows(named_a[p.parameter]) @ p.rows(named_b[p.parameter]).T
    return signed_NN, rest_NN


def _assigned(group: Group, signed_NN: Tensor, rest_NN: Tensor | float = 0.0) -> Tensor:
    """The permutation sigma (N,), or with signs (2, N), for which the sum of sign[i] signed[i, sigma[i]] +
    rest[i, sigma[i]] is largest."""
    from scipy.optimize import linear_sum_assignment

    gains_NN = (signed_NN.abs() if group.odd else signed_NN) + rest_NN
    sigma_N = torch.from_numpy(linear_sum_assignment(gains_NN.numpy(), maximize=True)[1])
    if not group.odd:
        return sigma_N
    negative_N = signed_NN.gather(1, sigma_N[:, None])[:, 0] < 0
    return torch.stack([sigma_N, 1 - 2 * negative_N.long()])


def _layers(group: Group, module: nn.Module, reads: bool) -> list[tuple[str, Tensor]]:
    """The layers whose outputs, or inputs, are units of a group, and their indices (N, R) among these."""
    layers, found = dict(module.named_modules()), []
    for place in group.places:
        part, index_NR = layers.get(place.layer), place.index_NR
        # The weight of a transposed convolution or an embedding has its inputs first.
        axis = int((isinstance(part, nn.Embedding) or getattr(part, "transposed", False)) != reads)
        if axis == 1 and place.axis is None and isinstance(part, _ConvNd) and part.weight.dim() > 1 < part.groups:
            found.append((place.layer, _channels(part, index_NR)))
        elif place.axis == axis and WEIGHT.search(place.parameter):
            found.append((place.layer, index_NR))
    return found


def _channels(part: _ConvNd, index_NR: Tensor) -> Tensor:
    """The channels (N, C) whose numbers in the weight of a convolution in groups are at these indices."""
    rows, inner = part.weight.shape[0] // part.groups, part.weight.shape[1]
    each = part.weight[0, 0].numel()
    row_NR, rest_NR = index_NR // (inner * each), index_NR % (inner * each)
    first_NR = (row_NR % rows == 0) & (rest_NR % each == 0)  # each channel is there once
    return (row_NR // rows * inner + rest_NR // each)[first_NR].view(len(index_NR), -1)


@torch.no_grad()
def _activations(module: nn.Module, names: Sequence[Collection[str]], x: Tensor) -> dict[tuple[str, bool], Tensor]:
    """The outputs (S, U) of layers, names[0], and the inputs of those of names[1], by name and whether it reads."""
    found: dict[tuple[str, bool], list[Tensor]] = {}

    def keep(reads: bool) -> Look:
        return lambda name, rows_SU: found.setdefault((name, reads), []).append(rows_SU)

    with looked_at(module, names[0], keep(False)), looked_at(module, names[1], keep(True), reads=True):
        module(x)
    return {key: torch.cat(calls) for key, calls in found.items()}


@contextlib.contextmanager
def looked_at(module: nn.Module, names: Collection[str], look: Look, reads: bool = False) -> Iterator[None]:
    """While it lasts, `look` is called with the outputs of these layers, or with what they read; see `Look`."""

    def hook(name: str, axis: int) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def seen(part: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            last = (inputs[0] if reads else output).movedim(axis, -1)
            changed = look(name, last.flatten(0, -2))
            return None if changed is None else (last * changed[0] + changed[1]).movedim(-1, axis)

        return seen

    hooks = [
        part.register_forward_hook(hook(name, 1 if isinstance(part, _ConvNd) else -1))
        for name, part in module.named_modules()
        if name in names
    ]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
