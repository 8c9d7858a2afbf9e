"""REPAIR: the statistics of an interpolated network's units corrected (Jordan et al. 2023).

Between two networks the preactivations of units vary less than at either, from layer to layer more so. Each unit's are
rescaled and shifted to the mean and the standard deviation between those of the ends. Its layer's weights and bias can
do so, and the result is a point of the landscape. Where there is BatchNorm, its statistics are recomputed at every
point, which does the same.

Shapes: P parameters, U units of a layer, S samples and positions.
"""

from collections import Counter
from collections.abc import Collection

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lowloss.errors import LowlossError
from lowloss.landscape.network import NetworkLandscape
from lowloss.symmetry.groups import Symmetries
from lowloss.symmetry.matching import Look, looked_at

LAYERS = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d)

CONSTANT = 1e-9
"""A unit is constant if its standard deviation is at most this fraction of its mean."""


def repaired(
    landscape: NetworkLandscape, symmetries: Symmetries, a_P: Tensor, b_P: Tensor, x: Tensor, t: float = 0.5
) -> Tensor:
    """The point (P,) at t between a and b, with the statistics on x of its hidden units between those of a and b.

    Layer by layer in the order of the run, each after those that are corrected already, the mean becomes
    (1 - t) E[X_a] + t E[X_b] and the standard deviation (1 - t) std(X_a) + t std(X_b) (Jordan et al. 2023, sec. 3).
    A unit that is constant there is only shifted.

    Args:
        symmetries: of the network. Its linear and convolutional layers that make units, have a bias, share no
            parameter with another layer and are called once in a run are corrected.
        a_P, b_P: the ends, aligned.
        x: training inputs.

    Raises LowlossError where there is BatchNorm, or no such layer.
    """
    if why := irreparable(landscape, symmetries):
        raise LowlossError(why)
    of_a, of_b = (statistics(landscape, symmetries, end_P, x) for end_P in (a_P, b_P))
    theta_P, maps = a_P.double().lerp(b_P.double(), t), dict[str, tuple[Tensor, Tensor]]()

    def correct(name: str, rows_SU: Tensor) -> tuple[Tensor, Tensor]:
        (mean_U, std_U), (wanted_U, spread_U) = _moments(rows_SU), of_a[name].lerp(of_b[name], t)
        varies_U = std_U > CONSTANT * mean_U.abs()
        scale_U = torch.where(varies_U, spread_U / std_U.where(varies_U, torch.ones_like(std_U)), 1.0)
        maps[name] = scale_U, wanted_U - scale_U * mean_U
        return maps[name]

    _run(landscape, theta_P, x, of_a, correct)
    named, scaled = symmetries.layout.views(theta_P), _hidden(symmetries)
    for name, (scale_U, shift_U) in maps.items():
        named[scaled[name]].transpose(0, -1).mul_(scale_U.to(theta_P))
        named[f"{name}.bias"].mul_(scale_U.to(theta_P)).add_(shift_U.to(theta_P))
    return theta_P.to(a_P)


def irreparable(landscape: NetworkLandscape, symmetries: Symmetries) -> str:
    """Why a network cannot be repaired; "" if it can."""
    if any(isinstance(part, _BatchNorm) for part in landscape.loop.module.modules()):
        return "a network with BatchNorm needs no REPAIR: its statistics are recomputed at every point"
    return "" if _hidden(symmetries) else "no hidden layer has a bias, which REPAIR shifts"


def statistics(landscape: NetworkLandscape, symmetries: Symmetries, theta_P: Tensor, x: Tensor) -> dict[str, Tensor]:
    """The mean and the standard deviation (2, U) on x of the outputs of every layer that can be corrected."""
    calls: dict[str, list[Tensor]] = {}

    def keep(name: str, rows_SU: Tensor) -> None:
        calls.setdefault(name, []).append(_moments(rows_SU))

    _run(landscape, theta_P, x, _hidden(symmetries), keep)
    return {name: found[0] for name, found in calls.items() if len(found) == 1}


def _hidden(symmetries: Symmetries) -> dict[str, str]:
    """The layers with weights and biases whose outputs are units, and what scales these, in weight_norm its lengths."""
    places = [place for group in symmetries.groups for place in group.places if place.axis == 0]
    made = {p.layer: p.parameter for p in places if not p.parameter.endswith(("weight_v", "original1"))}
    return {name: parameter for name, parameter in made.items() if f"{name}.bias" in symmetries.layout.names}


def _run(landscape: NetworkLandscape, theta_P: Tensor, x: Tensor, names: Collection[str], look: Look) -> None:
    """Run the network at theta on x, in float64 and evaluation mode; `look` is called with these layers' outputs."""
    module = landscape.copy().cpu().double().eval()
    module.load_state_dict(landscape.layout.views(theta_P.double().cpu()), strict=False)
    uses = Counter(id(parameter) for _, parameter in module.named_parameters(remove_duplicate=False))
    corrected = {
        name
        for name, part in module.named_modules()
        if name in names
        and isinstance(part, LAYERS)
        and all(uses[id(parameter)] == 1 for parameter in part.parameters())
    }
    with torch.no_grad(), looked_at(module, corrected, look):
        module(x.double() if x.is_floating_point() else x)


def _moments(rows_SU: Tensor) -> Tensor:
    return torch.stack([rows_SU.mean(0), rows_SU.std(0, correction=0)])
