"""Trajectories of minima, beside their projections onto a plane.

Shapes: E epochs, P parameters, D directions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from math import ceil
from typing import TYPE_CHECKING

from lowloss.errors import LowlossError
from lowloss.files import load_tensors
from lowloss.imports import pd, torch
from lowloss.jobs.base import Bench, Config
from lowloss.jobs.minima import minimum, points

if TYPE_CHECKING:
    from lowloss.landscape.base import Columns
    from lowloss.measure.exact import Statistics
    from lowloss.points import Grid
    from lowloss.training.tabulate import Measure


def collected(minima: Config) -> int:
    """How many points a trajectory has by these settings, the minimum among them."""
    collect, epochs = minima["collect"], minima["epochs"]
    return ceil(epochs) + 1 if collect == "every" else len({epochs, *(min(epoch, epochs) for epoch in collect or ())})


def trajectory(bench: Bench, k: int) -> torch.Tensor:
    """Where a minimum was when it was kept on its way (E, P)."""
    return torch.stack([_kept(bench, k, place) for place in range(len(_epochs(bench, k)))])


def _epochs(bench: Bench, k: int) -> list[float]:
    """The epochs (E) at which a minimum was kept."""
    epochs: list[float] = minimum(bench, k).artifact.notes()["trajectory_epochs"]
    return epochs


def _kept(bench: Bench, k: int, place: int) -> torch.Tensor:
    return load_tensors(minimum(bench, k).artifact.folder / "trajectory" / f"{place:04d}.safetensors")[0]["theta"]


def at_epoch(bench: Bench, k: int, epoch: float | None) -> torch.Tensor:
    """Where a minimum was (P,) at an epoch of its training at which it was kept; None: at the end."""
    if epoch is None:
        return points(bench, [k])[0]
    return _kept(bench, k, _epochs(bench, k).index(epoch))


def check_epochs(bench: Bench, key: str, epochs: Iterable[float]) -> None:
    """Raise LowlossError for epochs at which the minima are not kept, and for one that is named twice."""
    minima, wanted = bench.config["minima"], list(epochs)
    if wanted and "files" in minima:
        raise LowlossError(f"{key} starts from an epoch, and minima from files have none: set it to null")
    kept = minima.get("collect")
    for i, epoch in enumerate(wanted):
        if epoch in wanted[:i]:
            raise LowlossError(f"{key} starts from epoch {epoch:g} twice: name it once")
        if epoch > minima["epochs"] or (kept != "every" and epoch not in (kept or ())) or epoch != round(epoch):
            told = f"minima.collect={kept} in {minima['epochs']:g} epochs"
            raise LowlossError(f"{key} starts from epoch {epoch:g}, which {told} does not keep: add it there")


def losses_of(
    tabulated: Callable[[str, torch.Tensor, Measure], Columns],
    grid: Grid,
    epochs: list[float],
    points_EP: torch.Tensor,
    history: pd.DataFrame,
    centred: bool,
    statistics: Statistics | None,
) -> tuple[dict[str, torch.Tensor], Config, pd.DataFrame]:
    """What a trajectory's points lose, with BatchNorm's statistics recomputed at each, beside their projections.

    Args:
        tabulated: measures points, under a name.
        epochs: those at which it was collected, and of the minimum.
        points_EP: where it was then; the minimum comes last, perhaps twice.
        history: its learning curve, a row an epoch.
        centred: whether the rows' mean is taken off before their components are told.
        statistics: BatchNorm's on the plane, for the projections.

    Returns:
        Tensors: the rate at which training went on from each point, from the last that of the last step; coordinates of
        the projections, distances to the plane, metrics of both; notes: the share of variance of each principal
        component of the rows theta_i - theta_n, and of each of the plane's directions; and all of it as a table.
    """
    from lowloss.measure import Exact
    from lowloss.points.directions import principal_components

    if torch.equal(points_EP[-2], points_EP[-1]):
        points_EP, epochs = points_EP[:-1], epochs[:-1]
    coordinates_ED = grid.project(points_EP)
    projected_EP = grid.origin_P + coordinates_ED.to(grid.directions_DP) @ grid.directions_DP
    distance_E = torch.linalg.vector_norm((points_EP - projected_EP).double(), dim=1)
    rates_E, (x_E, y_E) = _rates(history, epochs), coordinates_ED.T
    tensors = {"trajectory_epochs": torch.tensor(epochs, dtype=torch.float64), "trajectory_lr": rates_E}
    tensors |= {"trajectory_projected": coordinates_ED, "trajectory_distance": distance_E}
    columns = {"epoch": epochs, "lr": rates_E, "x": x_E, "y": y_E, "distance": distance_E}
    real = tabulated("trajectory", points_EP, Exact())
    plane = tabulated("projection", projected_EP, Exact(statistics=statistics))
    for name in real:
        tensors |= {f"trajectory_{name}": real[name], f"projection_{name}": plane[name]}
        columns |= {name: real[name], f"{name}_projected": plane[name]}
    rows_EP, along_ED = points_EP - points_EP[-1], coordinates_ED
    if centred:
        rows_EP, along_ED = rows_EP - rows_EP.mean(0), along_ED - along_ED.mean(0)
    _, share_E = principal_components(rows_EP, 2)
    captured_D = along_ED.square().sum(0) / sum(row_P.double().square().sum() for row_P in rows_EP)
    return tensors, {"variance": share_E.tolist(), "captured": captured_D.tolist()}, pd.DataFrame(columns)


def _rates(history: pd.DataFrame, epochs: list[float]) -> torch.Tensor:
    """The rates (E,) at which training went on from these epochs, as a learning curve has them."""
    steps = torch.tensor(epochs, dtype=torch.float64) * history["step"].iloc[0]
    row_E = torch.searchsorted(torch.tensor(history["step"].to_numpy(), dtype=torch.float64), steps, right=True)
    return torch.tensor(history["lr"].to_numpy())[row_E.clamp_max(len(history) - 1)]
