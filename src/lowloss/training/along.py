"""Measures along a path, sampled closer and closer around its highest points.

Shapes: T sampled points.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path as Folder

import torch
from torch import Tensor

from lowloss.landscape.base import Columns, Landscape
from lowloss.points.path import Path, around_top, widths
from lowloss.training.descent import default_trainer
from lowloss.training.devices import TrainerFactory
from lowloss.training.tabulate import Measure, tabulate


def along(
    landscape: Landscape,
    path: Path,
    points: int = 61,
    between: int = 9,
    bracket: float = 1e-3,
    measures: Sequence[Measure] | None = None,
    trainer: TrainerFactory = default_trainer,
    folder: Folder | None = None,
    title: str = "path",
) -> Columns:
    """Measure a path: at `path.grid(points, between)`, and around the highest train losses, see `around_top`.

    Args:
        bracket: the widest interval around the highest sample, as a fraction of the path's length.
        measures, trainer, folder, title: as in `tabulate`; the measures give `train_loss`.

    Returns:
        t, arc (the fraction of the path's length) and the measures' columns, T first, in the order of t.
    """
    t_T, new_T, table = torch.empty(0, dtype=torch.float64), path.grid(points, between), Columns()
    while len(new_T):
        kept = folder / f"from-{len(t_T):06d}" if folder else None
        told = f"{title}, near its saddle" if table else title
        found = tabulate(landscape, partial(_points, path, new_T), len(new_T), measures, trainer, kept, told)
        t_T, order_T = torch.cat([t_T, new_T]).sort()
        table = {name: torch.cat([table[name], column])[order_T] if table else column for name, column in found.items()}
        length_T = torch.cat([torch.zeros(1, dtype=torch.float64), path.lengths(t_T).cumsum(0)])
        arc_T = length_T / length_T[-1] if length_T[-1] > 0 else t_T  # the ends may be one point
        new_T = around_top(t_T, arc_T, table["train_loss"], bracket)
    return {"t": t_T, "arc": arc_T, **table}


def _points(path: Path, t_T: Tensor, index: Tensor) -> Tensor:
    return path.points(t_T[index])


def levels(table: Columns, splits: Sequence[str], metrics: Sequence[str]) -> dict[str, float]:
    """Levels along a path, from the columns of `along`; the saddle is the point of highest train loss.

    min_<split>_<metric>: the mean of the two ends.  saddle_<split>_<metric>: the highest value on the path, each
    metric for itself.  <split>_<metric>_at_saddle: the value at the saddle.
    barrier_<split>_loss: the highest loss above the linear interpolation of the end losses along the path's length.
    barrier_above_ends_<split>_loss: above the higher end.
    saddle_arc: where the saddle lies, as a fraction of the path's length.  saddle_bracket: the width of the interval
    between its two neighbouring samples, as such a fraction: how well its place is known.
    """
    arc_T, top = table["arc"], int(table["train_loss"].argmax())
    found = {"saddle_arc": float(arc_T[top]), "saddle_bracket": float(widths(arc_T)[top])}
    for split in splits:
        for metric in metrics:
            column_T = table[f"{split}_{metric}"]
            first, last, highest = float(column_T[0]), float(column_T[-1]), float(column_T.max())
            found[f"min_{split}_{metric}"], found[f"saddle_{split}_{metric}"] = (first + last) / 2, highest
            found[f"{split}_{metric}_at_saddle"] = float(column_T[top])
            if metric == "loss":
                found[f"barrier_{split}_loss"] = float((column_T - first - (last - first) * arc_T).max())
                found[f"barrier_above_ends_{split}_loss"] = highest - max(first, last)
    return found
