"""Paths: pairs of minima connected by a finder, exactly evaluated along the way."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from functools import partial
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING

from lowloss.errors import LowlossError, OtherConfigError
from lowloss.jobs import plans
from lowloss.jobs.base import Job
from lowloss.jobs.bench import Bench
from lowloss.jobs.minima import minimum, points
from lowloss.jobs.runner import make_jobs
from lowloss.jobs.stage import Stage
from lowloss.seeding import derive
from lowloss.study import Config, Result, Study

if TYPE_CHECKING:
    from torch import Tensor

    from lowloss.points.path import Path as WeightPath
    from lowloss.report.pictures import Picture

ALIGNMENTS = ("weights", "activations")


class PathJob(Job):
    """The path between two minima by a finder; it leads from the smaller index to the larger.

    Tensors: bends, t and arc of the sampled points, the exact columns there, and snapshots of the search.
    metrics.csv: the search.  along.csv: the columns along the path.
    """

    kind, stage = "paths", "path"

    def __init__(self, bench: Bench, finder: str, start: int, end: int) -> None:
        self.finder, (self.start, self.end) = finder, sorted((start, end))
        super().__init__(bench, f"{self.start:04d}-{self.end:04d}-{finder}")

    def needs(self) -> Sequence[Job]:
        return minimum(self.bench, self.start), minimum(self.bench, self.end)

    def own_settings(self) -> Config:
        align = ["path.align"] if self.bench.config["path"]["align"] else []
        return self.bench.describes("seed", f"finder.{self.finder}", "path.points", "path.between", *align)

    def make(self, work: Path) -> Result:
        import pandas as pd
        import torch

        from lowloss.training.methods import find_path

        bench, settings, title = self.bench, self.bench.config["path"], f"{self.finder} {self.start}–{self.end}"
        ends_2P, aligned = points(bench, [self.start, self.end]), Config()
        if settings["align"]:
            ends_2P, aligned = self._aligned(ends_2P, work)
        landscape, finder = bench.landscape, bench.finders[self.finder]
        seed = derive(bench.config["seed"], "path", self.start, self.end, self.finder)
        found = bench.everywhere(find_path, *ends_2P, finder, seed=seed, folder=work, title=title)
        t_T = found.path.grid(settings["points"], settings["between"])
        table = bench.table(partial(_points_along, found.path, t_T), title, work, count=len(t_T))
        table.pop("test_wrong", None)  # as many numbers as samples, at every point
        arc_T = torch.cat([torch.zeros(1, dtype=torch.float64), found.path.lengths(t_T).cumsum(0)])
        snapshots = {f"snapshot-{i:03d}": snapshot for i, snapshot in enumerate(found.snapshots)}
        tensors = {**found.path.tensors(), "t": t_T, "arc": arc_T / arc_T[-1], **table, **snapshots}
        notes: Config = {"finder": self.finder, "start": self.start, "end": self.end, "kind": found.path.kind}
        notes |= aligned | {"status": found.status, "pivots": len(found.path.bends_BP) - 2}
        notes |= {"length_ratio": found.path.length_ratio(), "gradient_evaluations": found.gradient_evaluations}
        notes |= levels(table, tensors["arc"], landscape.splits, list(landscape.task.units))
        head = ["phase", "step", "lr", "mean_loss", "max_loss"]
        history = pd.DataFrame(found.history, columns=head).astype({"phase": int, "step": int})
        columns = {name: column for name, column in table.items() if column.dim() == 1}
        along = pd.DataFrame({"t": t_T, "arc": tensors["arc"], **columns})
        return Result(tensors, notes, {"metrics.csv": history, "along.csv": along})

    def _aligned(self, ends_2P: Tensor, work: Path) -> tuple[Tensor, Config]:
        """The ends, the second one with its units permuted, and the barrier of the straight line before and after."""
        import torch

        from lowloss.symmetry.matching import align

        bench, by = self.bench, self.bench.config["path"]["align"]
        b_P, symmetries = align(bench.landscape, ends_2P[0], ends_2P[1], by)
        t_T = torch.linspace(0, 1, bench.config["path"]["points"], dtype=torch.float64)
        after_2P, title = torch.stack([ends_2P[0], b_P]), f"{self.start}–{self.end} aligned by {by}"
        ends = {"before": ends_2P, "after": after_2P}
        notes: Config = {"align": by, "align_left_out": list(symmetries.notes)}
        for when, ends_2P in ends.items():
            line = partial(_line, ends_2P, t_T)
            table = bench.table(line, f"{title}, {when}", work / f"line-{when}", count=len(t_T))
            found = levels(table, t_T, ["train"], ["loss"])
            notes[f"line_barrier_train_loss_{when}"] = found["barrier_train_loss"]
        return after_2P, notes


def load_path(job: PathJob) -> WeightPath:
    """The path of a complete artifact."""
    from lowloss.points.path import path_from_tensors

    tensors, notes = job.artifact.load()
    return path_from_tensors(notes["kind"], tensors)


def _points_along(path: WeightPath, t_T: Tensor, index: Tensor) -> Tensor:
    return path.points(t_T[index])


def _line(ends_2P: Tensor, t_T: Tensor, index: Tensor) -> Tensor:
    return ends_2P[0].lerp(ends_2P[1], t_T[index, None].to(ends_2P))


def levels(table: dict[str, Tensor], arc_T: Tensor, splits: Sequence[str], metrics: Sequence[str]) -> dict[str, float]:
    """Levels along a path: at its ends (their mean), at its highest point, and the barrier between.

    barrier: the highest loss above the linear interpolation of the end losses along the path's length;
    barrier_above_ends: above the higher end.
    """
    found: dict[str, float] = {}
    for split, metric in product(splits, metrics):
        column_T = table[f"{split}_{metric}"]
        first, last = float(column_T[0]), float(column_T[-1])
        found[f"min_{split}_{metric}"] = (first + last) / 2
        found[f"saddle_{split}_{metric}"] = float(column_T.max())
        if metric == "loss":
            found[f"barrier_{split}_loss"] = float((column_T - first - (last - first) * arc_T).max())
            found[f"barrier_above_ends_{split}_loss"] = float(column_T.max()) - max(first, last)
            found[f"saddle_{split}_arc"] = float(arc_T[column_T.argmax()])
    return found


def _named(bench: Bench, finders: Iterable[str]) -> list[Job]:
    """The paths that these finders make for certain."""
    return [PathJob(bench, name, *pair) for name in finders for pair in plans.pairs(bench, name)]


class PathStage(Stage):
    """Connects pairs of minima with every finder."""

    name, kind, after = "path", "paths", ("minima",)

    def check(self, bench: Bench) -> None:
        by = bench.config["path"]["align"]
        if by not in (None, *ALIGNMENTS):
            raise LowlossError(f"path.align must be null, {' or '.join(ALIGNMENTS)}, got {by!r}")
        for finder in bench.config["finder"]:
            plans.pairs(bench, finder)
        plans.check_budget(bench)

    def check_made(self, bench: Bench) -> None:
        for finder in bench.config["finder"]:
            if plans.explores(bench, finder):
                plans.check_steps(bench, finder)

    def jobs(self, bench: Bench) -> list[Job]:
        return _named(bench, bench.config["finder"])

    def run(self, bench: Bench) -> None:
        named = [name for name in bench.config["finder"] if not plans.explores(bench, name)]
        wanted = _named(bench, named)
        complete = all(job.complete for job in wanted)
        make_jobs("path", wanted)
        for name in bench.config["finder"]:
            job = partial(PathJob, bench, name)
            if name not in named:
                plans.explore(bench, name, job)
            elif not (complete and plans.bounded(bench, name)):
                # Paths of another configuration, which nobody asked for now, are left out.
                plans.write_bounds(bench, name, plans.saddles(bench, job, OtherConfigError))

    def draw(self, study: Study, folder: Path) -> Iterator[Picture]:
        from lowloss.report.disconnectivity import draw_graphs
        from lowloss.report.figures import draw_paths
        from lowloss.report.search import draw_searches

        paths = study.complete("paths")
        if paths:
            yield draw_paths(paths, folder)
            yield from draw_graphs(study, folder)
            yield from draw_searches(study, folder)


STAGE = PathStage()
