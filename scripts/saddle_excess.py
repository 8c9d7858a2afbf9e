"""How far AutoNEB's saddles lie above the true ones, on random 2-D landscapes.

python scripts/saddle_excess.py [LANDSCAPES [CSV]]

For each seed: AutoNEB between the two deepest minima of a mixture of Gaussian wells, against the least highest energy
of any path between them by Dijkstra on a fine grid. Prints the distribution of the excess, and writes a row a seed,
by default of 100 landscapes to outputs/saddle_excess.csv.

Shapes: X × Y nodes of a grid, K points along a path, P = 2 coordinates.
"""

from __future__ import annotations

import heapq
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from lowloss import AutoNEB, GaussianMixture, find_path
from lowloss.finder import Path as WeightPath
from lowloss.landscape import AnalyticSurface
from lowloss.training.along import along

SPACING, SIDE = 0.01, 261
"""The grid: its distance of nodes, and how many of them span [-1.3, 1.3]."""


class Peak(NamedTuple):
    """The saddle that a study reports of a path; slope: the norm of the gradient there."""

    energy: float
    slope: float
    point_P: Tensor


class Comparison(NamedTuple):
    """error: how far the sampling, of the grid and along the path, may have put the two energies apart."""

    seed: int
    peak: Peak
    minimax: float
    error: float
    status: str
    gradient_evaluations: int

    @property
    def excess(self) -> float:
        return self.peak.energy - self.minimax


def minimax(energy_XY: Tensor, start: tuple[int, int], goal: tuple[int, int]) -> float:
    """The least maximum over the nodes of any path between two nodes of a grid, diagonals allowed (Dijkstra)."""
    energy = energy_XY.tolist()
    columns, rows = energy_XY.shape
    reached = {start}
    queue = [(energy[start[0]][start[1]], start)]
    while queue:
        highest, (i, j) = heapq.heappop(queue)
        if (i, j) == goal:
            return highest
        neighbours = ((i + di, j + dj) for di in (-1, 0, 1) for dj in (-1, 0, 1))
        for x, y in neighbours:
            if 0 <= x < columns and 0 <= y < rows and (x, y) not in reached:
                reached.add((x, y))
                heapq.heappush(queue, (max(highest, energy[x][y]), (x, y)))
    raise AssertionError("the grid is connected")


def deepest_minima(energy_XY: Tensor) -> list[tuple[int, int]]:
    """The two deepest nodes that are no higher than their eight neighbours."""
    lowest_XY = -torch.nn.functional.max_pool2d(-energy_XY[None], 3, stride=1, padding=1)[0]
    nodes = (energy_XY == lowest_XY).nonzero()
    order = energy_XY[nodes[:, 0], nodes[:, 1]].argsort()[:2]
    return [(x, y) for x, y in nodes[order].tolist()]


def sampling_error(surface: AnalyticSurface, saddle_P: Tensor, spacing: float) -> float:
    """How far a grid's minimax may be from the true one: half the curvature times half a diagonal squared."""
    hessian = torch.autograd.functional.hessian(lambda p: surface.energy(p[None])[0], saddle_P)
    return float(0.5 * torch.linalg.eigvalsh(hessian).abs().max() * spacing**2 / 2)


def peak(surface: AnalyticSurface, path: WeightPath) -> Peak:
    """The saddle of a path, sampled as a study's paths are (conf/config.yaml)."""
    table = along(surface, path, points=61, between=9)
    k = int(table["train_loss"].argmax())
    point_P = path.points(table["t"][k : k + 1])[0].requires_grad_()
    (gradient_P,) = torch.autograd.grad(surface.energy(point_P[None]).sum(), point_P)
    return Peak(float(table["train_loss"][k]), float(gradient_P.norm()), point_P.detach())


def compare(seeds: range) -> Iterator[Comparison]:
    """AutoNEB against Dijkstra, a landscape a seed."""
    axis = torch.arange(SIDE, dtype=torch.float64) * SPACING - 1.3
    cycles = [{"steps": 120, "lr": 5e-3, "repeat": 4}]
    finder = AutoNEB(cycles, pivots=3, threshold=0.02, momentum=0.0, weight_decay=0.0)
    for seed in seeds:
        surface = GaussianMixture(seed)
        energy_XY = surface.energy(torch.cartesian_prod(axis, axis)).view(SIDE, SIDE)
        a, b = deepest_minima(energy_XY)
        found = find_path(surface, axis[list(a)], axis[list(b)], finder, block=1000)
        top = peak(surface, found.path)
        error = sampling_error(surface, top.point_P, SPACING)
        yield Comparison(seed, top, minimax(energy_XY, a, b), error, found.status, found.gradient_evaluations)


def main(landscapes: str = "100", file: str = "outputs/saddle_excess.csv") -> None:
    if not landscapes.isdecimal() or int(landscapes) < 1:
        sys.exit(f"saddle_excess: LANDSCAPES must be a whole number of at least 1, got {landscapes!r}")
    # Before the work, so that a wrong place is told at once.
    Path(file).parent.mkdir(parents=True, exist_ok=True)
    rows = [
        [c.seed, c.peak.energy, c.minimax, c.excess, c.error, c.peak.slope, c.status, c.gradient_evaluations]
        for c in compare(range(int(landscapes)))
    ]
    columns = ["seed", "saddle", "minimax", "excess", "sampling_error", "slope", "status", "gradient_evaluations"]
    table = pd.DataFrame(rows, columns=columns)
    table.to_csv(file, index=False)
    print(table["excess"].describe(percentiles=[0.25, 0.5, 0.75, 0.9]).to_string(float_format="%.4f"))
    print(f"within the sampling error: {(table['excess'] <= table['sampling_error']).mean():.0%} of the landscapes")
    print(f"below the true minimax by more than that: {(table['excess'] < -table['sampling_error']).sum()}")


if __name__ == "__main__":
    if len(sys.argv) > 3 or {"-h", "--help"} & {*sys.argv}:
        sys.exit(__doc__)
    main(*sys.argv[1:])
