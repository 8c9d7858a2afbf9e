"""Minima, paths and scans that the Python API finds, with the same face as those of a study.

Shapes: K minima, P parameters, A points that a recipe asks for.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache, partial, wraps
from math import prod
from typing import Any

import pandas as pd
import torch
from torch import Tensor

from lowloss.conf import options
from lowloss.ensemble.averaging import ensemble_columns
from lowloss.ensemble.base import Walk
from lowloss.errors import LowlossError
from lowloss.finder.base import Finder
from lowloss.jobs.ensembles import distances, members_table
from lowloss.jobs.minima import kept_minimum
from lowloss.jobs.paths import kept_path
from lowloss.jobs.scans import check_classes, kept_grid, statistics_on
from lowloss.jobs.trajectories import losses_of
from lowloss.landscape.base import Columns, Landscape
from lowloss.measure import Exact, Extremes, Hessian
from lowloss.measure.curvature import with_statistics
from lowloss.points import Grid, Plane
from lowloss.points.grid import Rays
from lowloss.points.path import Path
from lowloss.results.base import Made
from lowloss.results.kinds import EnsembleResult, Minima, MinimumResult, PathResult, ScanResult
from lowloss.study import Config, Result
from lowloss.training import ensembles, methods
from lowloss.training.along import along
from lowloss.training.descent import default_trainer
from lowloss.training.devices import TrainerFactory
from lowloss.training.tabulate import Measure, tabulate

DETAILED = Exact(details=["test"])
"""What a study measures of minima and along paths."""


@wraps(methods.train_minima)
def train_minima(landscape: Landscape, *arguments: Any, **settings: Any) -> Minima:
    found, trainer = methods.train_minima(landscape, *arguments, **settings), settings.get("trainer", default_trainer)

    @cache
    def table() -> Columns:
        return tabulate(landscape, found.theta_KP, measures=[DETAILED], trainer=trainer, title="minima")

    def make(row: int) -> Result:
        return _with_units(landscape, kept_minimum(found, table(), row))

    minima = []
    names = settings.get("indices") or range(len(found.theta_KP))
    for row, k in enumerate(names):
        known: Config = {"status": found.status[row], "steps": int(found.history[-1][0])}
        if found.trajectories:
            known |= {"trajectory": found.trajectories[row], "trajectory_epochs": found.trajectories[row].epochs}
        minima.append(MinimumResult("minima", Made(f"{k:04d}", partial(make, row), known)))
        vars(minima[-1])["theta"] = found.theta_KP[row]  # which needs no measuring
    results = Minima("minima", minima, none="there are no minima")
    vars(results).update(vars(found))
    return results


@wraps(methods.find_path)
def find_path(
    landscape: Landscape, a_P: Tensor, b_P: Tensor, finder: Finder, *arguments: Any, **settings: Any
) -> PathResult:
    found = methods.find_path(landscape, a_P, b_P, finder, *arguments, **settings)
    about: Config = {"finder": _option("finder", finder), "start": 0, "end": 1, "kind": found.path.kind}

    def make() -> Result:
        trainer = settings.get("trainer", default_trainer)
        table = along(landscape, found.path, measures=[DETAILED], trainer=trainer)
        kept = kept_path(found, table, landscape, about, getattr(finder, "weight_decay", 0.0))
        return _with_units(landscape, kept)

    result = PathResult("paths", Made(about["finder"], make, about | vars(found)))
    vars(result)["path"] = found.path
    return result


@wraps(ensembles.fast_ensemble)
def fast_ensemble(
    landscape: Landscape, start_P: Tensor, method: Walk, *arguments: Any, **settings: Any
) -> EnsembleResult:
    found = ensembles.fast_ensemble(landscape, start_P, method, *arguments, **settings)
    name = _option("ensemble", method)

    def make() -> Result:
        theta_MP = found.theta_MP
        tensors = {**ensemble_columns(landscape, theta_MP), "distance": distances(theta_MP)}
        row = [name, len(theta_MP), *(float(tensors[metric][-1]) for metric in landscape.task.units)]
        members = members_table(tensors, [1] * len(theta_MP), found.epochs)
        history = pd.DataFrame(found.history, columns=["step", "lr", "train_loss"])
        tables = {"metrics.csv": history, "members.csv": members}
        return _with_units(landscape, Result({**tensors, "theta": theta_MP}, {"method": name, "rows": [row]}, tables))

    return EnsembleResult("ensembles", Made(name, make, {"method": name, **vars(found)}))


def scan(
    landscape: Landscape,
    where: Grid | Plane,
    minima: Tensor | Sequence[MinimumResult] = (),
    path: PathResult | Path | None = None,
    measures: Sequence[Measure] = (),
    seed: int = 0,
    trainer: TrainerFactory = default_trainer,
) -> ScanResult:
    """Tabulate the exact metrics on lines or a plane.

    Args:
        where: a grid, or one of the recipes of `lowloss.points`, which makes it of the minima (and the path).
        minima: those that the recipe asks for, in its order: points (K, P), or what `train_minima` and a study have. A
            TrajectoryPlane and an InitialLine ask for one that was trained with `collect="every"`.
        path: one to project onto the plane.
        measures: what is measured there besides.
        seed: of random directions.

    Raises LowlossError: the recipe asks for other points, or they span no such lines or plane.
    """
    check_classes(landscape)
    curve = path.path if isinstance(path, PathResult) else path
    # What a recipe says beyond the grid that it makes.
    recipe: Any = where if isinstance(where, Plane) else None
    settings: Config = {"statistics": "recomputed"}
    statistics, trajectory = None, None
    if recipe is not None:
        layout = getattr(landscape, "layout", None)
        if layout is None and hasattr(recipe, "normalization"):
            raise LowlossError(f"a {type(landscape).__name__} has no layers to draw directions by: give a Grid")
        points_AP, trajectory = _points(recipe, minima, curve)
        try:
            grid = recipe.grid(points_AP, curve, layout, seed)
        except ValueError as error:
            raise LowlossError(f"{type(where).__name__}: {error}") from error
        settings = {name: value for name, value in vars(recipe).items() if isinstance(value, (str, int, float))}
        statistics = statistics_on(landscape, grid, recipe.statistics)  # type: ignore[arg-type]
    elif isinstance(where, Grid):
        grid = where
    else:
        raise LowlossError(f"a scan is over a Grid or by a recipe, such as RandomPlane(), got {where!r}")
    if path is not None:
        settings["path"] = path.finder if isinstance(path, PathResult) else "path"
    if isinstance(grid, Rays):
        settings["directions"] = len(grid.directions_DP)
    every: list[Measure] = [Exact(statistics=statistics), *measures]
    if recipe is not None and "curvature" in recipe.measures:
        every.append(Extremes(with_statistics(Hessian(), statistics)))
    table = tabulate(landscape, grid.points, prod(grid.shape), every, trainer, title="scan")
    tensors, tables = kept_grid(grid, table, curve)
    notes: Config = {"scan": _option("scan", where), "lines": grid.is_lines}
    if isinstance(every[-1], Extremes):
        notes["hessian"] = every[-1].hessian.about
    notes |= {"anchor_names": list(grid.anchor_names), "settings": settings}
    if trajectory is not None and recipe.begins == "trajectory":

        def tabulated(title: str, theta_EP: Tensor, measure: Measure) -> Columns:
            return tabulate(landscape, theta_EP, None, [measure], trainer, title=title)

        history = minima[0].frame  # type: ignore[union-attr]
        epochs = [*trajectory.epochs, history["step"].iloc[-1] / history["step"].iloc[0]]
        more, shares, tables["trajectory.csv"] = losses_of(
            tabulated, grid, epochs, points_AP, history, recipe.centred, statistics
        )
        tensors, notes = tensors | more, notes | shares
    result = _with_units(landscape, Result(tensors, notes, tables))
    known = {**result.notes, "_path": path.source if isinstance(path, PathResult) else None}
    return ScanResult("scans", Made(notes["scan"], lambda: result, known))


def _points(recipe: Plane, minima: Any, path: Path | None) -> tuple[Tensor, Any]:
    """The points (A, P) that a recipe asks for, and the trajectory of its minimum, if it asks for that."""
    name, wanted = type(recipe).__name__, len(recipe.minima)
    if len(minima) != wanted:
        raise LowlossError(f"{name} needs {wanted} minima, got {len(minima)}: give minima= as many")
    if recipe.path is not None and path is None:
        raise LowlossError(f"{name} needs a path: give path= what find_path returns")
    if isinstance(minima, Tensor):
        if recipe.begins:
            raise LowlossError(f"{name} needs the way to a minimum: give minima= what train_minima returns, or a study")
        return minima, None
    theta_KP = torch.stack([one.theta for one in minima])
    if not recipe.begins:
        return theta_KP, None
    trajectory = minima[0].trajectory
    if recipe.begins == "initial" and trajectory.epochs[0] != 0:
        raise LowlossError(f"{name} needs the initial point: train with collect=[0], or every")
    before_EP = trajectory.theta_EP
    return torch.cat([before_EP if recipe.begins == "trajectory" else before_EP[:1], theta_KP]), trajectory


def _with_units(landscape: Landscape, result: Result) -> Result:
    return Result(result.tensors, {**result.notes, "units": dict(landscape.task.units)}, result.tables)


def _option(group: str, made: Any) -> str:
    """The name that the configuration has for an object of this class, or that of the class."""
    name = type(made).__name__
    named = (option for option, node in options(group).items() if str(node.get("_target_")).endswith(f".{name}"))
    return next(named, name.lower())
