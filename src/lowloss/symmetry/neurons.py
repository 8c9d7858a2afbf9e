"""The neurons of a layer whose outputs the next layer alone reads, as Brea et al. 2019 have them.

Shapes: K points, R pairs of neurons, N neurons, S incoming and O outgoing numbers of a neuron, P parameters.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from lowloss.errors import LowlossError
from lowloss.symmetry.groups import Symmetries


@dataclass(frozen=True)
class Neurons:
    """Where a layer's neurons lie in a point (P,).

    incoming_NS: the parameter vector of each, its weights and its bias.  outgoing_NO: what the next layer weighs it by.
    next_layer: n_{k+1}, the neurons of the next layer.
    """

    layer: str
    incoming_NS: Tensor
    outgoing_NO: Tensor
    next_layer: int

    @classmethod
    def of(cls, symmetries: Symmetries, layer: str | None) -> Neurons:
        """Those of a layer; by default of the last one that has such neurons.

        Raises:
            LowlossError: there is no such layer, or other parameters than its own and the next layer's are its
                neurons' too, as those of a normalisation or of a residual stream are.
        """
        plain = [group.name for group in symmetries.groups if not _others(symmetries, group.name)]
        if layer is None and not plain:
            why = "; ".join(symmetries.notes) or "their groups have a normalisation's parameters, or several readers'"
            raise LowlossError(f"no layer's neurons are read by one other layer alone ({why}): take another network")
        name = plain[-1] if layer is None else symmetries.group(layer).name
        if others := _others(symmetries, name):
            raise LowlossError(
                f"the neurons of {name} are those of {others[0]} too: take a layer whose outputs the next one alone "
                f"reads ({', '.join(plain) or 'this network has none'})"
            )
        group, named = symmetries.group(name), symmetries.layout.views(torch.arange(symmetries.layout.dim))
        own = [place for place in group.places if place.parameter.startswith(f"{name}.")]
        (after,) = (place for place in group.places if place not in own)
        incoming_NS = torch.cat([place.rows(named[place.parameter]) for place in own], dim=1)
        return cls(name, incoming_NS, after.rows(named[after.parameter]), named[after.parameter].shape[0])

    def __len__(self) -> int:
        return len(self.incoming_NS)

    def check(self, pairs: Sequence[Sequence[int]]) -> None:
        """Raise LowlossError unless these are pairs of neurons."""
        for pair in pairs:
            if len({*pair}) != 2 or not {*pair} <= set(range(len(self))):
                raise LowlossError(f"{self.layer} has the neurons 0 … {len(self) - 1}: name two of them, not {pair}")

    def distances(self, theta_P: Tensor, pairs: Sequence[Sequence[int]]) -> Tensor:
        """The distances (R,) of the parameter vectors of pairs. Raises LowlossError where one is zero."""
        vectors_NS = theta_P[self.incoming_NS]
        found = torch.stack([(vectors_NS[l] - vectors_NS[m]).norm() for l, m in pairs])  # noqa: E741
        for (l, m), distance in zip(pairs, found.tolist(), strict=True):  # noqa: E741
            if distance == 0:
                raise LowlossError(f"the neurons {l} and {m} of {self.layer} are equal already: name other pairs")
        return found

    def by_similarity(self, theta_P: Tensor, among: Sequence[int] | None = None) -> Iterator[list[int]]:
        """Pairs by the cosine similarity of their parameter vectors, the largest first (Brea et al. 2019, fig. 3).

        Args:
            among: neurons in their order, by default all.
        """
        chosen = list(range(len(self))) if among is None else list(among)
        unit_NS = torch.nn.functional.normalize(theta_P[self.incoming_NS[chosen]].double())
        first_R, second_R = torch.triu_indices(len(chosen), len(chosen), 1)
        order_R = (unit_NS @ unit_NS.T)[first_R, second_R].argsort(descending=True, stable=True)
        for r in order_R.tolist():
            yield [chosen[first_R[r]], chosen[second_R[r]]]

    def similar(self, theta_P: Tensor, among: Sequence[int] | None = None) -> list[int]:
        """The most similar pair of neurons that are not equal, see `by_similarity`. Raises LowlossError if all are."""
        for l, m in self.by_similarity(theta_P, among):  # noqa: E741
            if not torch.equal(*theta_P[self.incoming_NS[[l, m]]]):
                return [l, m]
        raise LowlossError(f"all neurons of {self.layer} are equal already: take another network or layer")

    def sources(self, dim: int, label_RN: Tensor) -> Tensor:
        """The sources (R, P) of the parameters, for `Tied`, where neuron i is the same as label[i]."""
        index_NS = torch.cat([self.incoming_NS, self.outgoing_NO], dim=1)
        source_RP = torch.arange(dim).repeat(len(label_RN), 1)
        for source_P, label_N in zip(source_RP, label_RN, strict=True):
            source_P[index_NS] = index_NS[label_N]
        return source_RP

    def swapped(self, theta_KP: Tensor, l: int, m: int) -> Tensor:  # noqa: E741
        """The points with two neurons exchanged."""
        result_KP = theta_KP.clone()
        for index in (self.incoming_NS, self.outgoing_NO):
            result_KP[:, index[[l, m]]] = theta_KP[:, index[[m, l]]]
        return result_KP

    def exchange(self, point_P: Tensor, l: int, m: int, i: int) -> Tensor:  # noqa: E741
        """The way (7, P) from a point where l and m are one to that with m and i exchanged, at equal loss.

        Between two rows weights change on straight lines: the six moves of Brea et al. 2019, sec. 4.2, property (ii).
        Outgoing weights move between neurons that are equal, and incoming ones where the outgoing ones are zero.
        """
        way = [point_P]

        def move(index: Tensor, values: Tensor) -> None:
            way.append(way[-1].clone())
            way[-1][index] = values

        into, out = self.incoming_NS, self.outgoing_NO
        move(out[[m, l]], torch.stack([0 * point_P[out[m]], point_P[out[l]] + point_P[out[m]]]))
        move(into[m], point_P[into[i]])
        move(out[[m, i]], torch.stack([point_P[out[i]], 0 * point_P[out[i]]]))
        move(into[i], 0 * point_P[into[i]])
        move(into[i], point_P[into[l]])
        move(out[[i, l]], torch.stack([point_P[out[m]], point_P[out[l]]]))
        return torch.stack(way)


def _others(symmetries: Symmetries, name: str) -> list[str]:
    """The parameters of a group's units that are neither their layer's own rows nor of one next layer."""
    places, own = symmetries.group(name).places, (f"{name}.weight", f"{name}.bias")
    rest = [place for place in places if place.parameter not in own]
    after = [place.parameter for place in rest if place.axis == 1]
    # Weights that are tied read what they make.
    names = [place.parameter for place in places]
    tied = [names[0]] if not rest else [name for name in dict.fromkeys(names) if names.count(name) > 1]
    return tied + [place.parameter for place in rest if place.axis != 1] + after[1:]


def halfway(distance_RB: Tensor, last: int) -> Tensor:
    """The t in [0, 1/2] of points on the way to the permutation point (R, B).

    t = 1/4 (1 - d / d_0) while the distance d decreases (Brea et al. 2019, sec. 4.1), and then `last` equal parts.
    """
    t_RB = (1 - distance_RB / distance_RB[:, :1]) / 4
    start_R1, parts = t_RB[:, -last - 1, None], torch.arange(1, last + 1) / last
    return torch.cat([t_RB[:, :-last], start_R1 + (0.5 - start_R1) * parts.to(t_RB)], dim=1)
