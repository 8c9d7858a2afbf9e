"""Paths: pairs of minima connected by a finder, exactly evaluated along the way."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from lowloss import progress
from lowloss.errors import LowlossError, OtherConfigError
from lowloss.imports import pd, torch
from lowloss.jobs.base import Bench, Config, Cost, Job, Result, Stage
from lowloss.jobs.minima import minimum, points
from lowloss.jobs.plans import Exploration, Plan, check_budget
from lowloss.jobs.runner import make_jobs

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape
    from lowloss.landscape.base import Columns, Landscape
    from lowloss.points.path import Path as WeightPath
    from lowloss.training.methods import FoundPath

ALIGNMENTS = ("weights", "activations", "ste")

SAMPLING = ("points", "between", "bracket")
"""What determines where a path is sampled, of the section `path`."""


class PathJob(Job):
    """The path between two minima by a finder; it leads from the smaller index to the larger.

    Tensors: bends, t and arc of the sampled points, the L2 term of the finder's objective (of a line, the minima's)
    and the exact columns there, snapshots of the search, and the cosines (T, T) between the deviations from the
    straight line.
    metrics.csv: the search.  along.csv: the columns along the path.
    """

    kind, stage = "paths", "path"

    def __init__(self, bench: Bench, finder: str, start: int, end: int) -> None:
        self.finder, (self.start, self.end) = finder, sorted((start, end))
        super().__init__(bench, f"{self.start:04d}-{self.end:04d}-{finder}")

    def needs(self) -> Sequence[Job]:
        return minimum(self.bench, self.start), minimum(self.bench, self.end)

    def own_settings(self) -> Config:
        wanted = [key for key in ("align", "augmented") if self.bench.config["path"][key]]
        keys = [f"path.{key}" for key in (*SAMPLING, *wanted)]
        return self.bench.describes("seed", f"finder.{self.finder}", *keys)

    def cost(self) -> Cost:
        finder, settings = self.bench.finders[self.finder], self.bench.config["path"]
        if not finder.phases:
            return Cost(0, settings["points"], 2, "at least")
        path = finder.start(torch.zeros(1), torch.ones(1))
        steps, samples = sum(phase.steps for phase in finder.phases), path.grid(settings["points"], settings["between"])
        gradients = steps * finder.evaluations_per_step(path)
        return Cost(gradients, len(samples), len(path.bends_BP), "at least", samples=finder.batch_size)

    def make(self, work: Path) -> Result:
        from lowloss.measure import augmented
        from lowloss.training.along import along
        from lowloss.training.methods import find_path

        bench, settings, title = self.bench, self.bench.config["path"], f"path {self.finder} {self.start}–{self.end}"
        ends_2P, aligned = points(bench, [self.start, self.end]), Config()
        if settings["align"]:
            ends_2P, aligned = self._aligned(ends_2P, work)
        landscape, finder = bench.landscape, bench.finders[self.finder]
        seed = bench.seed("path", self.start, self.end, self.finder)
        found = bench.everywhere(find_path, *ends_2P, finder, seed=seed, folder=work, title=title)
        more = [augmented] if settings["augmented"] and landscape.data.augments_images else []
        table = bench.table(found.path, title, work, along, more, **{key: settings[key] for key in SAMPLING})
        trained = {} if "files" in bench.config["minima"] else bench.config["optimizer"]
        decay = getattr(finder, "weight_decay", trained.get("weight_decay") or 0.0)
        about: Config = {"finder": self.finder, "start": self.start, "end": self.end, "kind": found.path.kind}
        return kept_path(found, table, landscape, about | aligned, decay)

    def _aligned(self, ends_2P: torch.Tensor, work: Path) -> tuple[torch.Tensor, Config]:
        """The ends, the second one with its units permuted, and the barrier of the straight line before and after."""
        from lowloss.training.alignment import aligned

        bench, by = self.bench, self.bench.config["path"]["align"]
        (a_P, b_P), seed = ends_2P, bench.seed("align", self.start, self.end)
        moved_P, left_out = bench.everywhere(aligned, a_P, b_P, by, seed=seed, folder=work)
        notes: Config = {"align": by, "align_left_out": left_out}
        for when, end_P in (("before", b_P), ("after", moved_P)):
            title = f"{self.start}–{self.end} aligned by {by}, {when}"
            _, found = straight(bench, a_P, end_P, title, work / f"line-{when}")
            notes[f"line_barrier_train_loss_{when}"] = found["barrier_train_loss"]
        return torch.stack([a_P, moved_P]), notes


def kept_path(found: FoundPath, table: Columns, landscape: Landscape, about: Config, decay: float) -> Result:
    """What is kept of a path.

    Args:
        table: the exact columns along it.
        about: its first notes.
        decay: the weight decay of the L2 term.
    """
    from lowloss.points.path import changed_labels, deviation_cosines, halves
    from lowloss.training.along import levels

    table = {name: column for name, column in table.items() if name != "test_wrong"}  # a number a sample and point
    if (labels_TN := table.pop("test_label", None)) is not None:
        table["changed_from_start"], table["changed_from_end"] = changed_labels(labels_TN)
    snapshots = {f"snapshot-{i:03d}": snapshot for i, snapshot in enumerate(found.snapshots)}
    table["l2"] = 0.5 * decay * found.path.squared_norms(table["t"]).cpu()
    tensors = {**found.path.tensors(), **table, **snapshots}
    notes = {**about, "status": found.status, "pivots": len(found.path.bends_BP) - 2}
    notes |= {"length_ratio": found.path.length_ratio(), "gradient_evaluations": found.gradient_evaluations}
    notes |= found.quality | levels(table, landscape.splits, list(landscape.task.units))
    if "train_loss_augmented" in table:
        column_T = table["train_loss_augmented"]
        ends, top = float(column_T[[0, -1]].mean()), float(column_T.max())
        notes |= {"min_train_loss_augmented": ends, "saddle_train_loss_augmented": top}
    if (cosines_TT := deviation_cosines(found.path, table["t"])) is not None:
        tensors["cosines"] = cosines_TT
        within, between = halves(cosines_TT, table["arc"])
        if not isnan(within + between):  # there are few points
            notes |= {"cosine_within": within, "cosine_between": between}
    head = ["phase", "step", "lr", "mean_loss", "max_loss"]
    history = pd.DataFrame(found.history, columns=head).astype({"phase": int, "step": int})
    columns = pd.DataFrame({name: column for name, column in table.items() if column.dim() == 1})
    return Result(tensors, notes, {"metrics.csv": history, "along.csv": columns})


def straight(
    bench: Bench, a_P: torch.Tensor, b_P: torch.Tensor, title: str, work: Path
) -> tuple[dict[str, torch.Tensor], Config]:
    """The exact columns along the straight line between two points, sampled as paths are, and its levels of the train
    loss."""
    from lowloss.points.path import Polyline
    from lowloss.training.along import along, levels

    sampling = {key: bench.config["path"][key] for key in SAMPLING}
    table = bench.table(Polyline.straight(a_P, b_P), title, work, along, **sampling)
    return table, levels(table, ["train"], ["loss"])


def load_path(job: PathJob) -> WeightPath:
    """The path of a complete artifact."""
    from lowloss.points.path import path_from_tensors

    tensors, notes = job.artifact.load()
    return path_from_tensors(notes["kind"], tensors)


def check_path(bench: Bench, key: str, node: Config) -> None:
    """Raise LowlossError if the path of a node, between its start and end, is not one that the study makes or has."""
    finders, start, end = bench.config["finder"], node["start"], node["end"]
    if node["path"] not in finders:
        has = ", ".join(finders) or "none"
        raise LowlossError(f"{key}.path={node['path']}, but finder has {has}: add it there, or change {key}")
    wanted = (min(start, end), max(start, end)) in Plan(bench, node["path"]).pairs()
    if not wanted and not PathJob(bench, node["path"], start, end).artifact.complete:
        raise LowlossError(
            f"{key} needs the path [{start},{end}] by {node['path']}, which path.pairs leaves out: "
            f"add it there, or change {key}.start and {key}.end"
        )


class PathStage(Stage):
    """Connects pairs of minima with every finder."""

    name, kind, after = "path", "paths", ("minima",)

    def check(self, bench: Bench) -> None:
        by = bench.config["path"]["align"]
        if by not in (None, *ALIGNMENTS):
            raise LowlossError(f"path.align must be null, {', '.join(ALIGNMENTS[:-1])} or {ALIGNMENTS[-1]}, got {by!r}")
        for finder in bench.config["finder"]:
            Plan(bench, finder).pairs()
        check_budget(bench)

    def check_made(self, bench: Bench) -> None:
        for finder in bench.config["finder"]:
            Plan(bench, finder).check_steps()

    def check_network(self, bench: Bench, landscape: NetworkLandscape) -> None:
        if bench.config["path"]["augmented"] and landscape.data.requested:
            raise LowlossError(
                "path.augmented=true keeps all augmented images, but these are read when they are asked for: set it to "
                "false"
            )
        for finder in bench.finders.values():
            finder.check(landscape)

    def jobs(self, bench: Bench) -> list[Job]:
        return [PathJob(bench, name, *pair) for name in bench.config["finder"] for pair in Plan(bench, name).pairs()]

    def run(self, bench: Bench) -> None:
        before = len(bench.study.complete("paths"))
        plans = [Plan(bench, name) for name in bench.config["finder"]]
        wanted = [PathJob(bench, plan.finder, *pair) for plan in plans if not plan.explores for pair in plan.pairs()]
        complete = all(job.complete for job in wanted)
        make_jobs("path", wanted)
        for plan in plans:
            exploration = Exploration(plan, partial(PathJob, bench, plan.finder))
            if plan.explores:
                exploration.run()
            elif not (complete and plan.bounded):
                # Paths of another configuration, which nobody asked for now, are left out.
                exploration.read(left_out=(OtherConfigError,))
                plan.write_bounds(exploration.found)
        if len(bench.study.complete("paths")) > before:
            from lowloss.report.tables import doubts

            notes = [artifact.notes() for artifact in bench.study.complete("paths")]
            for line in doubts([path for path in notes if path["finder"] in bench.config["finder"]]):
                progress.say(f"path: {line}")


STAGE = PathStage()
