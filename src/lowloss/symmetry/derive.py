"""The permutation symmetries of any module, read off one run of it.

Units that lie in the same places of the parameters may be put in any order; those of the outputs and of the inputs
stay. Since whatever keeps shapes counts as elementwise, every group is checked: permuted at random, it has to leave the
outputs as they are; so are changes of signs.
"""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _NormBase
from torch.utils._pytree import tree_leaves

from lowloss.errors import LowlossError, reason
from lowloss.landscape.layout import Layout
from lowloss.landscape.network import NetworkLandscape
from lowloss.symmetry.groups import Group, Place, Symmetries, split
from lowloss.symmetry.rules import FIXED
from lowloss.symmetry.units import Run

EXACT = 1e-9
"""Outputs in float64 agree if they differ by at most this fraction of the largest."""


def derive_symmetries(module: nn.Module, x: Tensor) -> Symmetries:
    """The permutation symmetries of a module.

    Args:
        module: which is left as it is. Its BatchNorm statistics are taken as recomputed at every point. Units that lie
            in frozen parameters stay where they are, unless all are frozen.
        x: at least two samples of its inputs.

    Raises LowlossError: the module does not run on x in float64.
    """
    named = dict(module.named_parameters())
    frozen = {name for name, p in named.items() if not p.requires_grad}
    frozen = frozen if len(frozen) < len(named) else set()
    try:
        # The older weight_norm keeps its weight, which is no leaf, until the next run.
        held = [t for part in module.modules() for t in vars(part).values() if isinstance(t, Tensor) and not t.is_leaf]
        module = copy.deepcopy(module, {id(t): t.detach() for t in held}).cpu().double().eval().requires_grad_(True)
        for part in module.modules():
            if isinstance(part, _NormBase):
                part.reset_running_stats()
        x = x.detach().cpu()
        x = x.double() if x.is_floating_point() else x
        run = Run(module)
        run.set(x, torch.full(x.shape, FIXED))
        hooks = [hook for name, part in module.named_modules() for hook in run.watch(name, part)]
        with run:
            outputs = module(x)
        for hook in hooks:
            hook.remove()
    except Exception as error:  # whatever the module's own code does
        raise LowlossError(f"{type(module).__name__} cannot be traced: {reason(error)}") from error
    for one in tree_leaves(outputs):
        units = run.units(one) if isinstance(one, Tensor) else None
        if units is not None:
            run.unite(units, torch.tensor(FIXED))
    groups, alone = _groups(run)
    kept, wrong = _checked(Symmetries(Layout.of(module), groups), module, x)
    stay = [group.name for group in kept if any(place.parameter in frozen for place in group.places)]
    told = [f"{name}: its units cannot be permuted by themselves" for name in wrong]
    told += [f"{name}: its units lie in frozen parameters" for name in stay]
    for name, parameter in module.named_parameters():
        parameter.requires_grad_(name not in frozen)
    layout, free = Layout.of(module), tuple(group for group in kept if group.name not in stay)
    notes = [*dict.fromkeys([*run.lost, *alone, *told])]
    if not free and not notes and len(layout.names) > 2:
        notes = ["no parameters whose units can be permuted were recognised"]
    return Symmetries(layout, free, tuple(notes))


def symmetries_of(landscape: NetworkLandscape) -> Symmetries:
    """Those of a landscape's network."""
    return derive_symmetries(landscape.loop.module, landscape.data.x_train[:2])


def _groups(run: Run) -> tuple[tuple[Group, ...], list[str]]:
    """The units that lie in the same places, as groups in the order in which the network makes them; and the layers
    for which no unit is left beside another, a line each."""
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    a, b = (torch.cat(run.pairs, dim=1) if run.pairs else torch.zeros(2, 0, dtype=torch.long)).numpy()
    graph = coo_array((np.ones(len(a)), (a, b)), shape=(run.count, run.count))
    labels = connected_components(graph, directed=False)[1]
    lies: dict[int, dict[int, list[int]]] = {}
    keys = list(run.axes)
    for place, units_N in enumerate(run.axes.values()):
        for index, label in enumerate(labels[units_N.numpy()].tolist()):
            lies.setdefault(label, {}).setdefault(place, []).append(index)
    tags: dict[int, set[tuple[int, int]]] = {}
    for number, (units_N, tag_N, _) in enumerate(run.tags):
        for label, tag in zip(labels[units_N.numpy()].tolist(), tag_N.tolist(), strict=True):
            tags.setdefault(label, set()).add((number, tag))
    even = {int(label) for units in run.fixed_signs for label in np.unique(labels[units[units >= 0].numpy()])}
    alike: dict[Any, list[int]] = {}
    for label, places in lies.items():
        if label != labels[FIXED]:
            counts = tuple((place, len(indices)) for place, indices in places.items())
            alike.setdefault((counts, frozenset(tags.get(label, ()))), []).append(label)
    groups, used, permuting = [], dict[str, int](), set[int]()
    for (counts, _), members in alike.items():
        (place, count), *others = counts
        unread = count == 1 and not others and keys[place][1] is None  # it lies at one number alone
        if len(members) < 2 or unread:
            continue
        permuting |= {*members}
        where = []
        for place, _ in counts:
            parameter, axis = keys[place]
            index_NR = torch.tensor([lies[label][place] for label in members])
            where.append(Place(parameter, axis, index_NR, signed=parameter not in run.scales))
        name = next((place for place in where if place.axis == 0), where[0]).layer
        used[name] = used.get(name, 0) + 1
        groups.append(Group(name if used[name] == 1 else f"{name}:{used[name]}", (*where,), not even & {*members}))
    alone = []
    for units_N, _, layer in run.tags:
        found = {*labels[units_N.numpy()].tolist()} - {labels[FIXED]}
        if found and not found & permuting:
            alone.append(f"{layer}: each channel is alone in its group, and keeps its place")
    for parameter, layers in run.uses.items():
        axes = [units_N.numpy() for (name, axis), units_N in run.axes.items() if name == parameter and axis is not None]
        if len(layers) > 1 and all((labels[units_N] == labels[FIXED]).all() for units_N in axes):
            readers = " and ".join(dict.fromkeys(layers))
            alone.append(f"{readers}: one weight is read {len(layers)} times, and its units keep their order")
    return tuple(groups), alone


def _checked(symmetries: Symmetries, module: nn.Module, x: Tensor) -> tuple[tuple[Group, ...], list[str]]:
    """The groups whose permutations leave the outputs as they are, and the names of the others."""
    layout = symmetries.layout
    theta_P = layout.flatten(dict(module.named_parameters()))
    generator = torch.Generator().manual_seed(0)
    # Where parameters are all one or zero, as a normalisation's, nothing could be told apart.
    noise_P = torch.randn(theta_P.shape, generator=generator, dtype=theta_P.dtype)
    theta_P = theta_P * (1 + 0.1 * noise_P) + 0.02 * noise_P

    @torch.no_grad()
    def outputs(permutations: Mapping[str, Tensor]) -> Tensor:
        named = layout.views(symmetries.permuted(theta_P, permutations))
        found = tree_leaves(functional_call(module, named, (x,)))
        return torch.cat([one.double().flatten() for one in found if isinstance(one, Tensor)])

    before, drawn = outputs({}), symmetries.random(0)

    def holds(permutations: Mapping[str, Tensor]) -> bool:
        return bool((outputs(permutations) - before).abs().max() <= EXACT * before.abs().max())

    orders = {name: split(permutation)[0] for name, permutation in drawn.items()}
    whole = holds(orders)

    def odd(group: Group) -> bool:
        units_N = torch.arange(group.size)  # of which every second one changes: two signs may make up for each other
        return group.odd and holds({group.name: torch.stack([units_N, 1 - 2 * (units_N % 2)])})

    kept = [group for group in symmetries.groups if whole or holds({group.name: orders[group.name]})]
    wrong = [group.name for group in symmetries.groups if group not in kept]
    return tuple(replace(group, odd=odd(group)) for group in kept), wrong
