"""Trajectories of minima, beside their projections onto a plane.

Shapes: E epochs, P parameters, D directions.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import ceil
from pathlib import Path
from typing import TYPE_CHECKING

from lowloss.errors import LowlossError
from lowloss.jobs.bench import Bench
from lowloss.jobs.minima import minimum, points
from lowloss.study import Config

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

    from lowloss.measure.exact import Statistics
    from lowloss.points import Grid


def collected(minima: Config) -> int:
    """How many points a trajectory has by these settings, the minimum among them."""
    collect, epochs = minima["collect"], minima["epochs"]
    return ceil(epochs) + 1 if collect == "every" else len({epochs, *(min(epoch, epochs) for epoch in collect or ())})


def trajectory(bench: Bench, k: int) -> tuple[list[float], Tensor]:
    """The epochs (E) at which a minimum was kept on its way, and where it was then (E, P)."""
    import torch

    from lowloss.files import load_tensors

    artifact = minimum(bench, k).artifact
    epochs = artifact.notes()["trajectory_epochs"]
    files = [artifact.folder / "trajectory" / f"{i:04d}.safetensors" for i in range(len(epochs))]
    return epochs, torch.stack([load_tensors(file)[0]["theta"] for file in files])


def at_epoch(bench: Bench, k: int, epoch: float | None) -> Tensor:
    """Where a minimum was (P,) at an epoch of its training at which it was kept; None: at the end."""
    if epoch is None:
        return points(bench, [k])[0]
    epochs, points_EP = trajectory(bench, k)
    return points_EP[epochs.index(epoch)]


def check_epochs(bench: Bench, key: str, epochs: Iterable[float]) -> None:
    """Raise LowlossError for epochs at which the minima are not kept."""
    minima, wanted = bench.config["minima"], list(epochs)
    if wanted and "files" in minima:
        raise LowlossError(f"{key} starts from an epoch, and minima from files have none: set it to null")
    kept = minima.get("collect")
    for epoch in wanted:
        if epoch > minima["epochs"] or (kept != "every" and epoch not in (kept or ())) or epoch != round(epoch):
            told = f"minima.collect={kept} in {minima['epochs']:g} epochs"
            raise LowlossError(f"{key} starts from epoch {epoch:g}, which {told} does not keep: add it there")


def losses_of(
    bench: Bench,
    grid: Grid,
    k: int,
    epochs: list[float],
    points_EP: Tensor,
    centred: bool,
    statistics: Statistics | None,
    work: Path,
) -> tuple[dict[str, Tensor], list[float], pd.DataFrame]:
    """What a trajectory's points lose, with BatchNorm's statistics recomputed at each, beside their projections.

    Args:
        k: the minimum.
        points_EP: its trajectory; the minimum comes last, and is one more than the epochs.
        centred: whether the rows' mean is taken off before their components are told.
        statistics: BatchNorm's on the plane, for the projections.

    Returns:
        Tensors: the rate at which training went on from each point, from the last that of the last step; coordinates of
        the projections, distances to the plane, metrics of both; the share of variance of each principal component of
        the rows theta_i - theta_n; and all of it as a table.
    """
    import pandas as pd
    import torch

    from lowloss.measure import Exact
    from lowloss.points.trajectory import principal_components
    from lowloss.training.tabulate import tabulate

    if torch.equal(points_EP[-2], points_EP[-1]):
        points_EP = points_EP[:-1]
    else:
        epochs = [*epochs, bench.config["minima"]["epochs"]]
    coordinates_ED = grid.project(points_EP)
    projected_EP = grid.origin_P + coordinates_ED.to(grid.directions_DP) @ grid.directions_DP
    distance_E = torch.linalg.vector_norm((points_EP - projected_EP).double(), dim=1)
    tensors = {
        "trajectory_epochs": torch.tensor(epochs, dtype=torch.float64),
        "trajectory_lr": _rates(bench, k, epochs),
        "trajectory_projected": coordinates_ED,
        "trajectory_distance": distance_E,
    }
    columns = {
        "epoch": epochs,
        "lr": tensors["trajectory_lr"],
        "x": coordinates_ED[:, 0],
        "y": coordinates_ED[:, 1],
        "distance": distance_E,
    }
    real, plane = (
        bench.everywhere(tabulate, at_EP, None, [measure], folder=work / name, title=f"{name} by epochs")
        for name, at_EP, measure in (
            ("trajectory", points_EP, Exact()),
            ("projection", projected_EP, Exact(statistics=statistics)),
        )
    )
    for name in real:
        tensors |= {f"trajectory_{name}": real[name], f"projection_{name}": plane[name]}
        columns |= {name: real[name], f"{name}_projected": plane[name]}
    _, share_E = principal_components(points_EP - points_EP[-1], 2, centred)
    return tensors, share_E.tolist(), pd.DataFrame(columns)


def _rates(bench: Bench, k: int, epochs: list[float]) -> Tensor:
    """The rates (E,) at which training went on from these epochs, as its learning curve has them."""
    import torch

    history = minimum(bench, k).artifact.table("metrics.csv", ["step", "lr"])
    steps = torch.tensor(epochs, dtype=torch.float64) * history["step"].iloc[0]  # a row an epoch
    row_E = torch.searchsorted(torch.tensor(history["step"].to_numpy(), dtype=torch.float64), steps, right=True)
    return torch.tensor(history["lr"].to_numpy())[row_E.clamp_max(len(history) - 1)]
