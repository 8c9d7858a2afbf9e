"""The permutation symmetries of a network as data: which axes of which parameters permute together.

A group is a set of N units, say the neurons of a layer or the channels of a residual stream, that may be put in any
order. A place is where they lie: the indices along an axis of a parameter. A permutation sigma moves unit sigma[i] to
position i, in all its places at once, and leaves the network's function as it is. Behind an odd activation, as tanh, a
unit's sign can change too: then a permutation may have the signs of the moved units as a second row.

Shapes: P parameters, N units of a group, R indices of a unit along an axis, L = R × (what lies at an index).
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lowloss.errors import LowlossError, nearest
from lowloss.landscape.layout import Layout
from lowloss.seeding import derive

WEIGHT = re.compile(r"(^|\.)(parametrizations\.)?weight(\.original[01]|_[gv])?$")
"""How the name of a layer's weight ends."""


@dataclass(frozen=True)
class Place:
    """Where the units of a group lie: unit i at the indices index_NR[i] of an axis, or of the flattened parameter.

    signed: whether what lies there changes its sign with the unit, as all but the scales of normalisations does.
    """

    parameter: str
    axis: int | None
    index_NR: Tensor
    signed: bool = True

    @property
    def layer(self) -> str:
        """The layer whose weight this is, also where weight_norm has it in two; of others the parameter's own name."""
        return WEIGHT.sub("", self.parameter)

    def along(self, parameter: Tensor) -> Tensor:
        """A view of the parameter with this axis first."""
        return parameter.view(-1) if self.axis is None else parameter.movedim(self.axis, 0)

    def rows(self, parameter: Tensor) -> Tensor:
        """What lies there of each unit (N, L), a copy."""
        return self.along(parameter)[self.index_NR].flatten(1)


@dataclass(frozen=True)
class Group:
    """Units that permute together. `name` is that of the first layer whose outputs they are.

    odd: whether each unit's sign can change by itself.
    """

    name: str
    places: tuple[Place, ...]
    odd: bool = False

    @property
    def size(self) -> int:
        """The number of units N."""
        return len(self.places[0].index_NR)

    def permute(self, named: Mapping[str, Tensor], permutation: Tensor) -> None:
        """Put the units into another order, in place in these parameters; see `Symmetries.permuted`."""
        for place in self.places:
            along = place.along(named[place.parameter])
            sigma_N, sign_N = split(permutation.to(along.device))
            index_NR = place.index_NR.to(along.device)
            moved = along[index_NR[sigma_N]]
            along[index_NR] = moved * sign_N.view(-1, *[1] * (moved.dim() - 1)) if place.signed else moved


@dataclass(frozen=True)
class Symmetries:
    """The groups of a network, and what could not be derived, a line each, by the layer's name.

    Raises LowlossError: two groups have one name, or a place of one is not there in the layout's parameters.
    """

    layout: Layout
    groups: tuple[Group, ...]
    notes: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        shapes, names = dict(zip(self.layout.names, self.layout.shapes, strict=True)), set[str]()
        for group in self.groups:
            if group.name in names:
                raise LowlossError(f"two groups are called {group.name}: name each otherwise")
            names.add(group.name)
            if not group.places:
                raise LowlossError(f"the group {group.name} has no places: give at least one")
            for place in group.places:
                _check(group, place, shapes)

    def group(self, name: str) -> Group:
        """A group by its name. Raises LowlossError if there is none."""
        known = {group.name: group for group in self.groups}
        if name not in known:
            raise LowlossError(
                f"no layer {name!r} has neurons that can be permuted{nearest(name, known)}: "
                f"take one of {', '.join(known) or 'another network'}"
            )
        return known[name]

    def permuted(self, theta_P: Tensor, permutations: Mapping[str, Tensor]) -> Tensor:
        """The point (P,) with the units of these groups in another order; the others stay.

        Args:
            permutations: of groups by their names, sigma (N,), or of groups that are odd (2, N), sigma and signs.

        Raises LowlossError: there is no such group, what is given for one is no permutation of its units, or they have
        signs that cannot change.
        """
        result_P = theta_P.clone()
        named = self.layout.views(result_P)
        for name, permutation in permutations.items():
            group, (sigma_N, sign_N) = self.group(name), split(permutation.cpu())
            if not torch.equal(sigma_N.sort().values, torch.arange(group.size)):
                raise LowlossError(f"{name} has the units 0 … {group.size - 1}: give each of them once")
            if not group.odd and (sign_N != 1).any():
                raise LowlossError(f"what follows {name} is not odd: its units cannot change their signs")
            group.permute(named, permutation)
        return result_P

    def random(self, seed: int) -> dict[str, Tensor]:
        """A random permutation of every group, with random signs where it is odd."""
        generator = torch.Generator().manual_seed(derive(seed, "permutations"))
        found = {group.name: torch.randperm(group.size, generator=generator) for group in self.groups}
        for group in self.groups:
            if group.odd:
                sign_N = 2 * torch.randint(2, (group.size,), generator=generator) - 1
                found[group.name] = torch.stack([found[group.name], sign_N])
        return found


def _check(group: Group, place: Place, shapes: Mapping[str, torch.Size]) -> None:
    """Raise LowlossError unless all units of a group lie at indices of their own in a parameter."""
    name, axis, index_NR, here = place.parameter, place.axis, place.index_NR, f"the group {group.name}"
    if name not in shapes:
        known = nearest(name, shapes) or f": the parameters are {', '.join(shapes)}"
        raise LowlossError(f"{here} lies in {name}, but there is no such parameter{known}")
    shape = tuple(shapes[name])
    if axis is not None and axis not in range(len(shape)):
        axes = ", ".join(map(str, range(len(shape))))
        raise LowlossError(
            f"{here} lies along axis {axis} of {name}, which has the shape {shape}: take one of {axes}, or None for "
            "all its numbers"
        )
    if index_NR.dim() != 2 or index_NR.is_floating_point() or len(index_NR) != group.size:
        raise LowlossError(
            f"{here} has {group.size} units, so their indices in {name} are integers of the shape ({group.size}, R), "
            f"got {index_NR.dtype} of {tuple(index_NR.shape)}"
        )
    size = shapes[name].numel() if axis is None else shape[axis]
    if index_NR.numel() and not 0 <= int(index_NR.min()) <= int(index_NR.max()) < size:
        raise LowlossError(
            f"{here} has the index {int(index_NR.min() if index_NR.min() < 0 else index_NR.max())} in {name}, but "
            f"there are 0 … {size - 1}"
        )
    if len(index_NR.unique()) < index_NR.numel():
        raise LowlossError(f"{here} has an index in {name} twice: give each once")


def split(permutation: Tensor) -> tuple[Tensor, Tensor]:
    """The order sigma (N,) of a permutation (N,) or (2, N), and its signs (N,)."""
    return (permutation[0], permutation[1]) if permutation.dim() == 2 else (permutation, torch.ones_like(permutation))


def after(first: Tensor, second: Tensor) -> Tensor:
    """The permutation that does what `first` does and then `second`."""
    (order_N, sign_N), (sigma_N, more_N) = split(first), split(second)
    if first.dim() == second.dim() == 1:
        return order_N[sigma_N]
    return torch.stack([order_N[sigma_N], sign_N[sigma_N] * more_N])
