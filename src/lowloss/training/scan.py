"""Scanning a grid of points.

Shapes: the grid's own, one axis a direction.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from pathlib import Path

from lowloss.landscape.base import Landscape
from lowloss.scans.grid import Grid
from lowloss.training.evaluation import Table, evaluate_points
from lowloss.training.loop import TrainerFactory, default_trainer


def scan(
    landscape: Landscape,
    grid: Grid,
    splits: Sequence[str] | None = None,
    trainer: TrainerFactory = default_trainer,
    folder: Path | None = None,
    title: str = "scan",
) -> Table:
    """Exact loss and error at every point of a grid.

    Returns:
        Float64 tables of the grid's shape, `<split>_loss` and `<split>_error` for each split; values that are not
        finite stay as they are.
    """
    table = evaluate_points(landscape, grid.points, prod(grid.shape), splits, trainer, folder, title)
    return {name: column.view(grid.shape) for name, column in table.items()}
