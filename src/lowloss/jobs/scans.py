"""Scans: the exact metrics on lines and planes through the landscape."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss.errors import LowlossError, OnceError
from lowloss.imports import pd, torch
from lowloss.jobs.base import Bench, Config, Cost, Job, Result, Stage, Study, sort_of
from lowloss.jobs.minima import minimum
from lowloss.jobs.paths import PathJob, check_path, load_path
from lowloss.jobs.spectra import ENDS, extremes, samples
from lowloss.jobs.trajectories import at_epoch, check_epochs, collected, losses_of, trajectory

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape
    from lowloss.landscape.base import Columns, Landscape
    from lowloss.measure.exact import Statistics
    from lowloss.points import Grid
    from lowloss.points.path import Path as WeightPath
    from lowloss.training.tabulate import Measure


ENDPOINTS = ("start", "end", "third")
"""The keys of a plane that name minima, but for the one of a single minimum."""


OTHERS, AT = 5, (-1.0, -0.5, 0.5, 1.0)
"""How many other directions a random plane is compared with, and at which parts of its extent."""


class Scan(Job):
    """A grid of points, by a recipe of the configuration's.

    Tensors: directions, origin, anchors and axes of the grid, the exact columns in its shape, and of a plane through
    a path where that lies; of a random plane the train loss at some coordinates along its own directions and along
    others. scan.csv: a row a point. Notes: of a plane whose statistics are held, the curvature at its centre along its
    axes.
    """

    kind, stage = "scans", "scan"

    def __init__(self, bench: Bench, scan: str) -> None:
        self.scan, self.node = scan, bench.config["scan"][scan]
        ends = ("minimum",) if "minimum" in self.node else [end for end in ENDPOINTS if end in self.node]
        self.minima: list[int] = [self.node[end] for end in ends]
        super().__init__(bench, "-".join([scan, *(f"{k:04d}" for k in self.minima)]))

    @property
    def path(self) -> PathJob | None:
        """The path that it goes through, if any."""
        return PathJob(self.bench, self.node["path"], *self.minima) if "path" in self.node else None

    @property
    def is_random_plane(self) -> bool:
        from lowloss.points import RandomPlane

        return isinstance(self.bench.planes[self.scan], RandomPlane)

    def needs(self) -> Sequence[Job]:
        # The path first: of all that may be missing it is told, as it needs the minima itself.
        return [*([self.path] if self.path else []), *(minimum(self.bench, k) for k in self.minima)]

    def own_settings(self) -> Config:
        measures = self.node.get("measures")
        maps = isinstance(measures, list) and "curvature" in measures
        mapped = [f"curvature.{key}" for key in ENDS] if maps else []
        return self.bench.describes("seed", f"scan.{self.scan}", *mapped)

    def cost(self) -> Cost:
        plane = self.bench.planes[self.scan]
        points = prod(plane.shape)
        if "curvature" in plane.measures:
            settings = self.bench.config["curvature"]
            return Cost(2 * settings["products"] * points, points, 3, "at most", points, settings["samples"])
        spread = len(AT) * (2 + OTHERS) if self.is_random_plane else 0
        return Cost(0, points + spread, 3, grid=points)

    def make(self, work: Path) -> Result:
        from lowloss.measure import Exact
        from lowloss.measure.curvature import with_statistics

        bench, plane = self.bench, self.bench.planes[self.scan]
        path = load_path(self.path) if self.path else None
        minima_KP = torch.stack([at_epoch(bench, k, plane.epoch) for k in self.minima])
        if path is not None and bench.config["path"]["align"]:  # its second end is a permuted minimum
            minima_KP = path.bends_BP[[0, -1] if self.minima[0] < self.minima[1] else [-1, 0]]
        minima_KP = self._with_begin(plane.begins, minima_KP)
        try:
            grid = plane.grid(minima_KP, path, bench.landscape.layout, bench.seed("scan", self.scan))
        except ValueError as error:
            raise LowlossError(f"scan.{self.scan}: {error}") from error
        statistics, notes = statistics_on(bench.landscape, grid, plane.statistics), Config()
        measures: list[Any] = [Exact(statistics=statistics)]
        if "curvature" in plane.measures:
            ends = extremes(bench)
            measures.append(replace(ends, hessian=with_statistics(ends.hessian, statistics)))
            notes["hessian"] = {**measures[-1].hessian.about, "samples": samples(bench)}
        table = bench.tabulate(grid.points, work, f"scan {self.scan}", measures, count=prod(grid.shape))
        tensors, tables = kept_grid(grid, table, path)
        if plane.begins == "trajectory":
            artifact, centred = minimum(bench, self.minima[0]).artifact, self.node.get("centred", False)
            epochs = [*artifact.notes()["trajectory_epochs"], bench.config["minima"]["epochs"]]
            history = artifact.table("metrics.csv", ["step", "lr"])

            def by_epochs(name: str, theta_EP: torch.Tensor, measure: Measure) -> Columns:
                return bench.tabulate(theta_EP, work / name, f"{name} by epochs", [measure])

            more, shares, tables["trajectory.csv"] = losses_of(
                by_epochs, grid, epochs, minima_KP, history, centred, statistics
            )
            tensors, notes = tensors | more, notes | shares
        if not grid.is_lines and plane.statistics == "held":
            with suppress(OnceError):  # what has no second derivative has no such note
                notes["centre"] = self._centre(grid, statistics, work)
        if self.is_random_plane:
            tensors |= self._spread(grid, statistics, work)
        if self.is_random_plane and "files" not in bench.config["minima"]:
            at = bench.tabulate(self._initial()[None], work / "initial", "initial point")
            notes["initial_train_loss"] = float(at["train_loss"])
        notes |= {"scan": self.scan, "lines": grid.is_lines, "anchor_names": list(grid.anchor_names)}
        notes["settings"] = {**self.node, "statistics": plane.statistics}
        return Result(tensors, notes, tables)

    def _initial(self) -> torch.Tensor:
        """Where the first minimum began (P,)."""
        # Minima that part from minimum 0 began where it did.
        leader = 0 if self.bench.config["minima"].get("branch") else self.minima[0]
        return self.bench.landscape.initial(self.bench.seed("initial", leader))

    def _with_begin(self, begins: str | None, minima_KP: torch.Tensor) -> torch.Tensor:
        """The points that the plane asks for: before its minimum what it says of its way there."""
        if begins is None:
            return minima_KP
        way_EP = trajectory(self.bench, self.minima[0]) if begins == "trajectory" else self._initial()[None]
        return torch.cat([way_EP.to(minima_KP), minima_KP])

    def _spread(self, grid: Grid, statistics: Statistics | None, work: Path) -> dict[str, torch.Tensor]:
        """Whether a random plane is like others: the train loss along its own directions (the first two rows) and along
        others, at some coordinates."""
        from lowloss.measure import Exact
        from lowloss.points.directions import random_directions
        from lowloss.points.grid import rays

        bench, at_X = self.bench, float(grid.axes[0].abs().max()) * torch.tensor(AT, dtype=torch.float64)
        given = bench.landscape.layout, bench.seed("scan", self.scan, "spread"), OTHERS, self.node["normalization"]
        directions_DP = torch.cat([grid.directions_DP, random_directions(grid.origin_P, *given)])
        lines = rays(grid.origin_P, directions_DP, at_X, grid.anchor_names)
        measures = [Exact(statistics=statistics)]
        table = bench.tabulate(lines.points, work / "spread", "other directions", measures, count=prod(lines.shape))
        return {"spread_x": at_X, "spread_train_loss": table["train_loss"].view(lines.shape)}

    def _centre(self, grid: Grid, statistics: Statistics | None, work: Path) -> Config:
        """What a plane shows of the curvature at its centre along each axis, at its own spacing, and the Hessian's."""
        from lowloss.measure import Directional

        spacings = [float(axis[1] - axis[0]) for axis in grid.axes]
        measures = [Directional(grid.directions_DP, spacings, statistics)]
        found = self.bench.tabulate(grid.origin_P[None], work / "centre", "curvature at the centre", measures)
        return {"spacing": spacings, **{name: column[0].tolist() for name, column in found.items()}}


def check_classes(landscape: Landscape) -> None:
    """Raise LowlossError where all training labels are of one class."""
    from lowloss.landscape import NetworkLandscape

    if isinstance(landscape, NetworkLandscape) and (only := landscape.data.single_class) is not None:
        raise LowlossError(
            f"all training labels are of class {only}, so there is nothing to scan: give data of at least two classes, "
            "or raise samples"
        )


def statistics_on(landscape: NetworkLandscape, grid: Grid, policy: str) -> Statistics | None:
    """BatchNorm's statistics on a grid, unless each point has its own; see Plane."""
    from lowloss.measure.exact import interpolated

    if policy == "recomputed":
        return None
    anchors_AD = grid.anchors_AD if policy == "interpolated" else grid.anchors_AD[:1]
    anchors_AP = grid.origin_P + anchors_AD.to(grid.directions_DP) @ grid.directions_DP
    statistics = [landscape.statistics(theta_P) for theta_P in anchors_AP]
    return interpolated(grid.project, anchors_AD, statistics)


def kept_grid(
    grid: Grid, table: Columns, path: WeightPath | None = None
) -> tuple[dict[str, torch.Tensor], dict[str, pd.DataFrame]]:
    """The tensors that are kept of a grid with the columns of its points, and scan.csv: a row a point, of what is one
    number a point.

    Args:
        path: one that is projected onto it.
    """
    tensors = {"directions": grid.directions_DP, "origin": grid.origin_P, "anchors": grid.anchors_AD}
    tensors |= {name: column.view(*grid.shape, *column.shape[1:]) for name, column in table.items()}
    tensors |= {f"axis-{d}": axis for d, axis in enumerate(grid.axes)}
    if path is not None:
        tensors["bends_projected"] = bends_B2 = grid.project(path.bends_BP)
        tensors["path_projected"] = path.coefficients(path.grid(points=201, between=9)) @ bends_B2
        offset_BP = path.bends_BP - grid.origin_P - bends_B2.to(grid.directions_DP) @ grid.directions_DP
        tensors["bends_distance"] = torch.linalg.vector_norm(offset_BP.double(), dim=1)
    names = ("direction", "x") if grid.is_lines and len(grid.axes) > 1 else ("x", "y")[: len(grid.axes)]
    at = pd.MultiIndex.from_product([axis.tolist() for axis in grid.axes], names=names).to_frame(index=False)
    rows = at.assign(**{name: column.numpy() for name, column in table.items() if column.dim() == 1})
    return tensors, {"scan.csv": rows}


class ScanStage(Stage):
    """Tabulates the exact metrics on lines and planes."""

    name, kind, after = "scan", "scans", ("minima", "path")

    def check(self, bench: Bench) -> None:
        for key, node in ((f"scan.{name}", node) for name, node in bench.config["scan"].items()):
            if "minimum" not in node and not {"start", "end"} <= {*node}:
                raise LowlossError(
                    f"{key} has neither minimum nor start and end: give it the keys of a plane of scan=[…]"
                )
            for end in (end for end in ("minimum", *ENDPOINTS) if end in node):
                bench.check_minimum(f"{key}.{end}", node[end])
            if "path" in node:
                check_path(bench, key, node)
                if bench.config["finder"][node["path"]].get("_target_") == "lowloss.finder.Line":
                    raise LowlossError(
                        f"{key}.path={node['path']}, but a straight line spans no plane: set it to another finder, or "
                        "scan=[line]"
                    )
            named = [node[end] for end in ENDPOINTS if end in node]
            if "minimum" not in node and len({*named}) < len(named):
                raise LowlossError(f"{key} needs different minima, got {', '.join(map(str, named))}: change {key}.end")

    def check_made(self, bench: Bench) -> None:
        for name, plane in bench.planes.items():
            minima = bench.config["minima"]
            check_epochs(bench, f"scan.{name}", [] if plane.epoch is None else [plane.epoch])
            if plane.begins and "files" in minima:
                raise LowlossError(
                    f"scan.{name} needs where a minimum began, which minima of files do not tell: train them here, "
                    "with minima=train"
                )
            if plane.begins == "trajectory" and (kept := collected(minima)) < 3:
                raise LowlossError(
                    f"scan.{name} needs a trajectory of at least 3 points, the minimum among them, but minima.collect="
                    f"{minima['collect'] or 'null'} with minima.epochs={minima['epochs']} makes {kept}: "
                    "set minima.collect=every and at least 2 epochs"
                )

    def check_network(self, bench: Bench, landscape: NetworkLandscape) -> None:
        from lowloss.measure.curvature import check_twice
        from lowloss.points.directions import NO_FILTERS

        for name, plane in bench.planes.items():
            how = getattr(plane, "normalization", "none")
            if how != "none" and not any(len(shape) >= 2 for shape in landscape.layout.shapes):
                raise LowlossError(f"scan.{name}: {NO_FILTERS.format(how)}")
        if bench.planes:
            check_classes(landscape)
        if any("curvature" in plane.measures for plane in bench.planes.values()):
            check_twice(landscape)

    def jobs(self, bench: Bench) -> list[Job]:
        return [Scan(bench, name) for name in bench.config["scan"]]

    def numbers(self, study: Study) -> dict[str, float]:
        """With the least and highest train loss on each scan."""
        found = super().numbers(study)
        for artifact in study.complete("scans"):
            losses = artifact.load()[0]["train_loss"]
            for name, value in (("min", losses.min()), ("max", losses.max())):
                found[f"scan/{sort_of(artifact)}/{name}_train_loss"] = float(value)
        return found


STAGE = ScanStage()
