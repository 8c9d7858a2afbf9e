"""Matching: the permutation of a network's units that brings it closest to another (Ainsworth et al. 2023).

Shapes: P parameters, N units of a group, U of a layer, S samples and positions.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from lowloss.landscape.layout import Layout
from lowloss.symmetry.groups import Group, Place, Symmetries

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
    a_P, b_P = a_P.double().cpu(), b_P.double().cpu()
    found = {group.name: torch.arange(group.size) for group in groups}
    inside: dict[str, list[str]] = {}
    for group in symmetries.groups:
        for place in group.places:
            inside.setdefault(place.parameter, []).append(group.name)
    for group in groups:
        certain = [place for place in group.places if _once(inside[place.parameter], group.name, matched)]
        sigma_N = _assigned(_products(layout, certain or group.places, a_P, b_P))
        b_P = symmetries.permuted(b_P, {group.name: sigma_N})
        found[group.name] = sigma_N
        matched.add(group.name)
    best, grows = float(a_P @ b_P), True
    while grows:
        grows = False
        for group in groups:
            sigma_N = _assigned(_products(layout, group.places, a_P, b_P))
            moved_P = symmetries.permuted(b_P, {group.name: sigma_N})
            # A group on two axes of a parameter is not matched exactly: then the product may fall.
            if (product := float(a_P @ moved_P)) > best + 1e-12 * abs(best):
                best, b_P, grows = product, moved_P, True
                found[group.name] = found[group.name][sigma_N]
    return found


def match_activations(symmetries: Symmetries, a: nn.Module, b: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """Permutations of b, a group each, whose units' activations correlate the most with those of a.

    Activations are outputs of the linear and convolutional layers that make the units, over all samples and positions.
    A group that no such layer makes, as the heads of attention, or whose layers are not called, is left out.
    """
    of_a, of_b = _activations(symmetries, a, x), _activations(symmetries, b, x)
    found = {}
    for group in symmetries.groups:
        made = [(name, index_N) for name, index_N in _makers(group, a) if name in of_a]
        products = [of_a[name][:, index_N].T @ of_b[name][:, index_N] for name, index_N in made]
        if products:
            found[group.name] = _assigned(torch.stack(products).sum(0))
    return found


def _once(inside: Sequence[str], name: str, matched: set[str]) -> bool:
    """Whether a group is in a parameter once, and every other group in it is matched."""
    return inside.count(name) == 1 and {*inside} <= matched | {name}


def _products(layout: Layout, places: Sequence[Place], a_P: Tensor, b_P: Tensor) -> Tensor:
    """The scalar products (N, N) of what belongs to each unit of a with that of each of b."""
    named_a, named_b = layout.views(a_P), layout.views(b_P)
    return torch.stack([p.rows(named_a[p.parameter]) @ p.rows(named_b[p.parameter]).T for p in places]).sum(0)


def _assigned(products_NN: Tensor) -> Tensor:
    """The permutation sigma (N,) for which the sum of products[i, sigma[i]] is largest."""
    from scipy.optimize import linear_sum_assignment

    return torch.from_numpy(linear_sum_assignment(products_NN.numpy(), maximize=True)[1])


def _makers(group: Group, module: nn.Module) -> list[tuple[str, Tensor]]:
    """The layers whose outputs are units of a group, and their indices (N,) among these."""
    layers, made = dict(module.named_modules()), []
    for place in group.places:
        name, _, kind = place.parameter.rpartition(".")
        # A transposed convolution's weight has its inputs first.
        axis = int(getattr(layers.get(name), "transposed", False))
        if kind == "weight" and place.axis == axis and place.index_NR.shape[1] == 1:
            made.append((name, place.index_NR[:, 0]))
    return made


@torch.no_grad()
def _activations(symmetries: Symmetries, module: nn.Module, x: Tensor) -> dict[str, Tensor]:
    """The standardised outputs (S, units) of every layer that makes units, by its name."""
    found: dict[str, Tensor] = {}

    def keep(name: str, rows_SU: Tensor) -> None:
        rows_SU = rows_SU.double() - rows_SU.double().mean(0)
        found[name] = rows_SU / rows_SU.norm(dim=0).clamp_min(torch.finfo(rows_SU.dtype).tiny)

    with looked_at(module, {name for group in symmetries.groups for name, _ in _makers(group, module)}, keep):
        module(x)
    return found


@contextlib.contextmanager
def looked_at(module: nn.Module, names: Collection[str], look: Look) -> Iterator[None]:
    """While it lasts, `look` is called with the outputs of these layers, see `Look`."""

    def hook(name: str, axis: int) -> Callable[[nn.Module, Any, Tensor], Tensor | None]:
        def seen(part: nn.Module, inputs: Any, output: Tensor) -> Tensor | None:
            last = output.movedim(axis, -1)
            changed = look(name, last.flatten(0, -2))
            return None if changed is None else (last * changed[0] + changed[1]).movedim(-1, axis)

        return seen

    hooks = [
        part.register_forward_hook(hook(name, 1 if isinstance(part, nn.modules.conv._ConvNd) else -1))
        for name, part in module.named_modules()
        if name in names
    ]
    try:
        yield
    finally:
        for one in hooks:
            one.remove()
