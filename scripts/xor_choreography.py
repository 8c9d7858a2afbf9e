"""Fig. 8 of Draxler et al. 2018, computed: exchanging the two hidden neurons of a network that solves XOR.

python scripts/xor_choreography.py [FOLDER]

With Alice and Bob alone every path between a minimum and its mirror image misclassifies an input: AutoNEB finds the
lowest. With Charlie's help there is a path on which the network's function does not change at all.

Shapes: T points along a path, P parameters, B bends, H hidden neurons.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import NamedTuple

import matplotlib as mpl
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from lowloss import AutoNEB, Data, NetworkLandscape, find_path, train_minima
from lowloss.finder import Polyline
from lowloss.report.pictures import STYLE

CORNERS = torch.tensor([[0.0, 0.0], [0.0, 1.0], [1.0, 0.0], [1.0, 1.0]])
LABELS = torch.tensor([0, 1, 1, 0])
NAMES = ("Alice", "Bob", "Charlie")
COLOURS = ("#1f5fbf", "#d9822b", "#2a9d6f")
CYCLES = [{"steps": 200, "lr": 0.1, "repeat": 4}, {"steps": 200, "lr": 0.01}]


class Choreography(NamedTuple):
    """A path between a minimum and the one with Alice and Bob exchanged.

    arc_T, loss_T, error_T: along it, exact, on the four inputs.  theta_TP: its points.
    """

    arc_T: Tensor
    loss_T: Tensor
    error_T: Tensor
    theta_TP: Tensor


def xor(hidden: int) -> NetworkLandscape:
    """A perceptron with H tanh neurons on the four inputs."""
    network = nn.Sequential(nn.Linear(2, hidden), nn.Tanh(), nn.Linear(hidden, 2)).double()
    inputs = CORNERS.double()
    return NetworkLandscape(network, Data(inputs, LABELS, inputs, LABELS))


def minimum(seeds: int = 6) -> Tensor:
    """A minimum (P,) of two neurons that solves XOR: the lowest of several seeds, some of which get stuck."""
    landscape = xor(2)

    def optimizer(parameters: object) -> torch.optim.Optimizer:
        return torch.optim.Adam(parameters, lr=0.03, weight_decay=1e-4)  # type: ignore[arg-type]

    found = train_minima(landscape, count=seeds, epochs=800, batch_size=4, optimizer=optimizer)
    return found.theta_KP[landscape.evaluate(found.theta_KP)["loss"].argmin()]


def neurons(theta_P: Tensor, hidden: int) -> Tensor:
    """A view of a point's hidden neurons (H, 5), a row each: two weights and bias in, two weights out."""
    weights, biases, out = theta_P[: 2 * hidden], theta_P[2 * hidden : 3 * hidden], theta_P[3 * hidden : 5 * hidden]
    return torch.cat([weights.view(hidden, 2), biases[:, None], out.view(2, hidden).T], dim=1)


def point(neurons_H5: Tensor, output_bias_2: Tensor) -> Tensor:
    """The point (P,) with these neurons."""
    parts = neurons_H5[:, :2].flatten(), neurons_H5[:, 2], neurons_H5[:, 3:].T.flatten(), output_bias_2
    return torch.cat(parts)


def exchanged(theta_P: Tensor) -> Tensor:
    """The two-neuron network with Alice and Bob exchanged: the same function."""
    return point(neurons(theta_P, 2).flip(0), theta_P[-2:])


def two_neurons(theta_P: Tensor) -> Choreography:
    """The path that AutoNEB finds between the minimum and its mirror image."""
    landscape = xor(2)
    # A straight line would lead through the point where both neurons are one, from which no force leads away.
    start_P = theta_P + 1e-3 * torch.randn(len(theta_P), generator=torch.Generator().manual_seed(0)).double()
    finder = AutoNEB(CYCLES, pivots=9, batch_size=4, weight_decay=0.0, max_insertions=6)
    path = find_path(landscape, start_P, exchanged(theta_P), finder).path
    return _along(landscape, path.bends_BP, path.grid(points=201, between=9), path.knots_B)  # type: ignore[attr-defined]


def three_neurons(theta_P: Tensor) -> Choreography:
    """Charlie stands in for Bob, Bob takes Alice's role, Alice takes over from Charlie.

    A neuron moves only while its outgoing weights are zero, and hands them only to one that computes the same.
    """
    alice, bob = neurons(theta_P, 2)
    out = torch.tensor([0.0, 0, 0, 1, 1]).double()
    idle = torch.tensor([0.3, -0.2, 0.1, 0, 0]).double()  # Charlie before and after
    silent_alice, silent_bob = alice * (1 - out), bob * (1 - out)
    acts = [
        [alice, bob, idle],
        [alice, bob, silent_bob],  # enter Charlie
        [alice, silent_bob, bob],  # Charlie stands in for Bob
        [alice, silent_alice, bob],  # Bob transitions to Alice's role
        [silent_alice, alice, bob],
        [silent_bob, alice, bob],
        [bob, alice, silent_bob],  # Alice takes over from Charlie
        [bob, alice, idle],  # exit Charlie
    ]
    bends_BP = torch.stack([point(torch.stack(act), theta_P[-2:]) for act in acts])
    path = Polyline(bends_BP)
    return _along(xor(3), bends_BP, path.grid(points=211, between=29), path.knots_B)


def _along(landscape: NetworkLandscape, bends_BP: Tensor, t_T: Tensor, knots_B: Tensor) -> Choreography:
    path = Polyline(bends_BP, knots_B)
    arc_T = torch.cat([torch.zeros(1).double(), path.lengths(t_T).cumsum(0)])
    theta_TP = path.points(t_T)
    result = landscape.evaluate(theta_TP)
    return Choreography(arc_T / arc_T[-1], result["loss"], result["error"], theta_TP)


def draw(two: Choreography, three: Choreography, file: Path) -> None:
    with mpl.rc_context(STYLE):
        figure = Figure(figsize=(13, 6.6), layout="constrained")
        rows = figure.subplots(2, 6)
        for axes, found, hidden in zip(rows, (two, three), (2, 3), strict=True):
            # Of the choreography, the middle of the acts in which Charlie, Bob and Alice move.
            last, highest = len(found.arc_T) - 1, float(found.arc_T[found.loss_T.argmax()])
            middle = [round((act + 0.5) / 7 * last) for act in (0, 2, 4)]
            if hidden == 2:
                middle = [int((found.arc_T < at).sum()) for at in (highest / 2, highest, (1 + highest) / 2)]
            for axis, t in zip(axes[:5], (0, *middle, last), strict=True):
                _stage(axis, found, t, hidden)
            axes[5].plot(found.arc_T, found.loss_T, color="black", label="loss (nats)")
            axes[5].plot(found.arc_T, found.error_T, color="#b03a5b", label="error")
            axes[5].set(ylim=(-0.02, 0.8), xlim=(0, 1), xlabel="fraction of the length")
            axes[5].legend(fontsize=8)
        rows[0, 0].set_ylabel("Alice and Bob alone")
        rows[1, 0].set_ylabel("with Charlie")
        file.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(file, dpi=140, metadata={"Software": None})


def _stage(axis: mpl.axes.Axes, found: Choreography, t: int, hidden: int) -> None:
    """The inputs with what the network says of them, and each neuron's zero line; dashed if nobody listens to it."""
    theta_P = found.theta_TP[t]
    axis_G = torch.linspace(-0.5, 1.5, 101).double()
    grid_G2 = torch.cartesian_prod(axis_G, axis_G)
    module = xor(hidden).module(theta_P)
    with torch.no_grad():
        difference = module(grid_G2).diff(dim=1).view(101, 101).T
        wrong = module(CORNERS.double()).argmax(1) != LABELS
    axis.contourf(axis_G, axis_G, difference, levels=[-1e9, 0, 1e9], colors=["#eef1f5", "#cfd8e6"])
    for (w1, w2, bias, *out), name, colour in zip(neurons(theta_P, hidden).tolist(), NAMES, COLOURS, strict=False):
        norm = max((w1**2 + w2**2) ** 0.5, 1e-9)
        x, y = -bias * w1 / norm**2, -bias * w2 / norm**2
        quiet = max(map(abs, out)) < 1e-6
        axis.axline((x, y), (x - w2 / norm, y + w1 / norm), color=colour, linestyle="--" if quiet else "-", label=name)
    for corner, label, mistaken in zip(CORNERS.tolist(), LABELS.tolist(), wrong.tolist(), strict=True):
        axis.plot(*corner, "o" if label else "s", color="#b03a5b" if mistaken else "black", markersize=9)
    axis.set(xlim=(-0.5, 1.5), ylim=(-0.5, 1.5), xticks=[], yticks=[], aspect="equal")
    axis.set_title(f"error {found.error_T[t]:.0%}, loss {found.loss_T[t]:.2g}", fontsize=9)
    if t == 0:
        axis.legend(fontsize=6, loc="lower right")


def main(folder: str = "outputs/xor") -> None:
    theta_P = minimum()
    two, three = two_neurons(theta_P), three_neurons(theta_P)
    for name, found in {"two neurons": two, "three neurons": three}.items():
        print(
            f"{name}: loss {found.loss_T[0]:.4g} at the minimum, at most {found.loss_T.max():.4g}; "
            f"error at most {found.error_T.max():.0%}"
        )
    draw(two, three, Path(folder) / "choreography.png")


if __name__ == "__main__":
    if len(sys.argv) > 2 or any(argument.startswith("-") for argument in sys.argv[1:]):
        sys.exit(__doc__)
    main(*sys.argv[1:])
