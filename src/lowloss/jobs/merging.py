"""Merging: two minima averaged as they are, aligned and repaired, and how good that is."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from lowloss import files, progress
from lowloss.errors import LowlossError
from lowloss.imports import torch
from lowloss.jobs.base import Bench, Config, Cost, Job, Result, Stage
from lowloss.jobs.checkpoints import Checkpoint, UnfitError, read_point
from lowloss.jobs.minima import minimum, points
from lowloss.jobs.paths import ALIGNMENTS, SAMPLING, PathJob, straight
from lowloss.study import Study

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape


class MergeJob(Job):
    """The means of minimum 0 and another one, whose units are permuted in several ways.

    Tensors: <way>_t, <way>_arc and the exact columns along the straight line of every way: `mean` as they are, and by
    each of merge.align.  <way>.safetensors: the mean's state_dict, BatchNorm's statistics recomputed, and
    <way>-repaired.safetensors after REPAIR, where there is no BatchNorm.  Notes: `ways`, a dictionary each.
    """

    kind, stage = "merges", "merge"
    keys = ("seed", "merge", *(f"path.{key}" for key in SAMPLING))

    def __init__(self, bench: Bench, end: int) -> None:
        self.end = end
        super().__init__(bench, f"0000-{end:04d}")

    def needs(self) -> Sequence[Job]:
        return minimum(self.bench, 0), minimum(self.bench, self.end)

    def cost(self) -> Cost:
        from lowloss.symmetry.straight_through import BATCH, STEPS

        align = self.bench.config["merge"]["align"]
        ways = 1 + len(align)
        points = ways * (self.bench.config["path"]["points"] + 2)
        return Cost(STEPS + 1 if "ste" in align else 0, points, 2 * ways, samples=BATCH)

    def make(self, work: Path) -> Result:
        from lowloss.ensemble import ensemble_metrics
        from lowloss.symmetry import irreparable, repaired, samples, symmetries_of
        from lowloss.training.alignment import aligned

        bench, landscape = self.bench, self.bench.landscape
        a_P, b_P = points(bench, [0, self.end])
        symmetries = symmetries_of(landscape)
        seed, why = bench.seed("align", 0, self.end), irreparable(landscape, symmetries)
        found, rows, tensors = dict[str, torch.Tensor](), dict[str, Config](), dict[str, torch.Tensor]()
        for way in ("mean", *bench.config["merge"]["align"]):
            other_P = b_P
            if way != "mean":
                other_P, _ = bench.everywhere(aligned, a_P, b_P, way, seed=seed, folder=work)
            table, told = straight(bench, a_P, other_P, f"0–{self.end}, {way}", work / f"line-{way}")
            rows[way] = {name: told[name] for name in ("barrier_train_loss", "barrier_above_ends_train_loss")}
            tensors |= {f"{way}_{name}": column for name, column in table.items() if column.dim() == 1}
            found[way] = a_P.lerp(other_P, 0.5)
            if not why:
                found[f"{way}-repaired"] = repaired(landscape, symmetries, a_P, other_P, samples(landscape))
        table = bench.table(torch.stack([*found.values()]), f"0–{self.end}, means", work / "means")
        names = [f"{split}_{metric}" for split in landscape.splits for metric in landscape.task.units]
        kept = {}
        for i, (way, theta_P) in enumerate(found.items()):
            rows[way] = {"way": way, **rows.get(way, {}), **{name: float(table[name][i]) for name in names}}
            file = kept[f"{way}.safetensors"] = work / f"{way}.safetensors"
            files.save_tensors(file, landscape.module(theta_P).state_dict(), {"way": way})
        ends = [one.artifact.notes() for one in self.needs()]
        notes: Config = {"start": 0, "end": self.end, "ways": [rows[way] for way in found], "without_repair": why}
        called = [end.get("file", f"minimum {k}") for k, end in zip((0, self.end), ends, strict=True)]
        notes["ends"] = [{"way": way, **{n: end[n] for n in names}} for way, end in zip(called, ends, strict=True)]
        notes["left_out"] = list(symmetries.notes)
        notes["samples"] = len(landscape.data.split("test" if "test" in landscape.splits else "train")[1])
        if "test" in landscape.splits:
            together, _ = ensemble_metrics(landscape, torch.stack([a_P, b_P]))
            notes["together"] = {f"test_{name}": float(column[-1]) for name, column in together.items()}
        wrong = [one.artifact.load()[0].get("test_wrong") for one in self.needs()]
        if wrong[0] is not None and wrong[1] is not None and (total := int(wrong[0].sum() + wrong[1].sum())):
            notes["overlap"] = 2 * int((wrong[0] & wrong[1]).sum()) / total
        return Result(tensors, notes, files=kept)


class MergeStage(Stage):
    """Merges minimum 0 with every other, and tells whether that is any good."""

    name, kind, after = "merge", "merges", ("minima", "path")

    def check(self, bench: Bench) -> None:
        for by in bench.config["merge"]["align"]:
            if by not in ALIGNMENTS:
                raise LowlossError(f"merge.align must be a list of some of {', '.join(ALIGNMENTS)}, got {by!r}")
        if bench.count < 2:
            raise LowlossError(f"two networks are merged, but there is one minimum: {bench.more_minima}")

    def check_network(self, bench: Bench, landscape: NetworkLandscape) -> None:
        """Raises LowlossError if files hold networks of several architectures."""
        fit, unfit = list[Path](), list[str]()
        for job in (minimum(bench, k) for k in range(bench.count)):
            if isinstance(job, Checkpoint):
                try:
                    read_point(job.file, landscape)
                    fit.append(job.file)
                except UnfitError as error:
                    unfit.append(str(error).rpartition(": ")[0])  # without its remedy
        if fit and unfit:
            raise LowlossError(f"{unfit[0]}, which {fit[0]} fits: merge networks of one architecture")

    def jobs(self, bench: Bench) -> list[Job]:
        return [MergeJob(bench, end) for end in range(1, bench.count)]

    def run(self, bench: Bench) -> None:
        from lowloss.report.merges import told

        super().run(bench)
        for end, job in enumerate(self.jobs(bench), 1):
            searched = [PathJob(bench, name, 0, end).artifact for name in bench.config["finder"]]
            curves = [artifact.notes() for artifact in searched if artifact.complete]
            for line in told(job.artifact, curves):
                progress.say(line)

    def numbers(self, study: Study) -> dict[str, float]:
        """With what each way of averaging gives, of the last two networks."""
        ways = [way for artifact in study.complete("merges") for way in artifact.notes()["ways"]]
        told = {f"merge/{way['way']}/{name}": value for way in ways for name, value in way.items() if name != "way"}
        return super().numbers(study) | told


STAGE = MergeStage()
