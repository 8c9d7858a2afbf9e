"""Minima: networks trained from independent seeds, as rows of one matrix."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING

from lowloss.errors import LowlossError, check_collect, is_number
from lowloss.imports import pd, torch
from lowloss.jobs.base import Bench, Config, Cost, Job, Result, Stage
from lowloss.jobs.checkpoints import Checkpoint, apart, check_files, check_fit

if TYPE_CHECKING:
    from lowloss.landscape.base import Columns
    from lowloss.training.methods import Minima


class Minimum(Job):
    """The network of one seed, exactly evaluated.

    Tensors: theta (P,), and z (Q,) where it was found in the coordinates of a chart.  metrics.csv: the learning curve.
    trajectory/: where it was at the epochs of `minima.collect`, a file each.
    """

    kind, stage, rows = "minima", "minima", True

    def __init__(self, bench: Bench, k: int) -> None:
        super().__init__(bench, f"{k:04d}")
        self.k = k

    def renamed(self, name: str) -> Minimum:
        return Minimum(self.bench, int(name))

    def own_settings(self) -> Config:
        training = [f"minima.{key}" for key in ("epochs", "batch_size", "collect", "gradient_norm", "branch")]
        chart = ["chart"] if self.bench.config["chart"].get("_target_") else []
        sections = ("seed", *self.bench.ground, "optimizer", "schedule", *training, "evaluation_batch", *chart)
        return self.bench.describes(*sections)

    def cost(self) -> Cost:
        settings, epochs = self.bench.config["minima"], self.bench.config["minima"]["epochs"]
        per_epoch = self.bench.landscape.batches(settings["batch_size"], [0], shared=False).steps_per_epoch
        collect = settings["collect"]
        kept = round(epochs) + 1 if collect == "every" else len(collect or ())
        return Cost(max(1, round(epochs * per_epoch)), 1, 1 + kept, samples=settings["batch_size"])

    @classmethod
    def make_all(cls, jobs: Sequence[Job], work: Path) -> list[Result]:
        from lowloss.training.methods import train_minima

        bench, config = jobs[0].bench, jobs[0].settings()
        settings = {
            **config["minima"],  # epochs, batch_size, collect, gradient_norm
            "optimizer": bench.build("optimizer", partial=True),
            "schedule": bench.build("schedule"),
            "chart": bench.build("chart") if "chart" in config else None,
            "seed": config["seed"],
        }
        indices, branch, results = [int(job.name) for job in jobs], settings["branch"] or (), list[Result]()
        found = bench.everywhere(train_minima, indices=indices, folder=work, **settings)
        table = bench.table(found.theta_KP, "minima", work, chunk=1)
        for row, k in enumerate(indices):
            result, files = kept_minimum(found, table, row), found.trajectories[row].files if found.trajectories else []
            notes = {**result.notes, **({"branch": branch[k - 1]} if 1 <= k <= len(branch) else {})}
            kept = {f"trajectory/{i:04d}.safetensors": file for i, file in enumerate(files)}
            results.append(replace(result, notes=notes, files=kept))
        return results


def kept_minimum(found: Minima, table: Columns, row: int) -> Result:
    """What is kept of a row of trained points, whose exact columns are those of the table."""
    entries = [[int(entry[0]), entry[1], entry[2 + row]] for entry in found.history]
    history = pd.DataFrame(entries, columns=["step", "lr", "train_loss"])
    values, tensors = apart(table, row)
    tensors["theta"] = found.theta_KP[row]
    if found.z_KQ is not None:
        tensors["z"] = found.z_KQ[row]
    notes = {**values, "steps": int(found.history[-1][0]), "status": found.status[row]}
    if not isnan(found.gradient_norms[row]):
        notes["gradient_norm"] = found.gradient_norms[row]
    if found.trajectories:
        notes["trajectory_epochs"] = found.trajectories[row].epochs
    return Result(tensors, notes, {"metrics.csv": history})


def minimum(bench: Bench, k: int) -> Job:
    """The job of the k-th minimum: trained, or read from a file."""
    return Checkpoint(bench, k) if "files" in bench.config["minima"] else Minimum(bench, k)


class OfMinimum(Job):
    """What is made of the k-th minimum."""

    def __init__(self, bench: Bench, k: int) -> None:
        super().__init__(bench, f"{k:04d}")
        self.k, self.minimum = k, minimum(bench, k)

    def needs(self) -> Sequence[Job]:
        return (self.minimum,)


def points(bench: Bench, indices: Sequence[int]) -> torch.Tensor:
    """The minima (K, P) of these indices."""
    return torch.stack([minimum(bench, k).artifact.load()[0]["theta"] for k in indices])


class MinimaStage(Stage):
    """Makes the minima of the study."""

    name, kind = "minima", "minima"

    def check(self, bench: Bench) -> None:
        if "files" in bench.config["minima"]:
            check_files(bench)
            return
        check_collect("minima.collect", bench.config["minima"]["collect"])
        if branch := bench.config["minima"]["branch"]:
            if not (isinstance(branch, list) and all(is_number(e, float) and e >= 0 for e in branch)):
                raise LowlossError(f"minima.branch must be null or a list of epochs, got {branch!r}")
            if (last := max(branch[: bench.count - 1], default=0)) >= (epochs := bench.config["minima"]["epochs"]):
                raise LowlossError(f"minima.branch has {last:g}, but training ends after {epochs:g} epochs: lower it")
            if bench.count > len(branch) + 1:
                raise LowlossError(
                    f"minima.branch has an epoch for {len(branch)} of the {bench.count - 1} minima that part from the "
                    f"first: name one for each, or set minima.count={len(branch) + 1}"
                )
            if bench.config["minima"]["batch_size"] is None:
                raise LowlossError("minima.branch needs minibatches, whose order differs: set minima.batch_size")
        decay = bench.config["optimizer"].get("weight_decay")
        if bench.config["chart"].get("_target_") and is_number(decay, float) and decay != 0:
            raise LowlossError(
                f"optimizer.weight_decay={decay:g} would act on the coordinates of the chart, not on the parameters: "
                "set optimizer.weight_decay=0, and chart.weight_decay"
            )

    def jobs(self, bench: Bench) -> list[Job]:
        return [minimum(bench, k) for k in range(bench.count)]

    def run(self, bench: Bench) -> None:
        if "files" in bench.config["minima"] and not all(job.complete for job in self.jobs(bench)):
            check_fit(bench)
        super().run(bench)


STAGE = MinimaStage()
