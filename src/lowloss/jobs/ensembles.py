"""Ensembles: a fast geometric one from a minimum, and that of all minima, evaluated on the test split."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss import progress
from lowloss.jobs.base import Job
from lowloss.jobs.bench import Bench
from lowloss.jobs.minima import minimum, points
from lowloss.jobs.stage import Stage
from lowloss.seeding import derive
from lowloss.study import Config, Result, Study

if TYPE_CHECKING:
    from torch import Tensor

    from lowloss.report.pictures import Picture


class EnsembleJob(Job):
    """Tensors: each metric of the first 1, 2, … members together and, as <metric>_alone, of each member.

    notes["rows"]: method, members, and the metrics of all together.
    """

    kind, stage = "ensembles", "ensemble"

    def evaluated(self, theta_MP: Tensor, method: str) -> tuple[dict[str, Tensor], list[Any]]:
        """The tensors of an ensemble and its row."""
        from lowloss.ensemble import ensemble_metrics

        with progress.bar(f"{method} on the test split", len(theta_MP)) as advance:
            together, alone = ensemble_metrics(self.bench.landscape, theta_MP)
            advance(len(theta_MP), "")
        tensors = {**together, **{f"{name}_alone": column for name, column in alone.items()}}
        metrics = (float(together[name][-1]) for name in self.bench.landscape.task.units)
        return tensors, [method, len(theta_MP), *metrics]


class FastGeometric(EnsembleJob):
    """Garipov et al. 2018, Algorithm 1. Its rows are the single network that it starts from, and the ensemble."""

    def __init__(self, bench: Bench) -> None:
        self.start: int = bench.config["ensemble"]["minimum"]
        super().__init__(bench, f"fge-{self.start:04d}")

    def needs(self) -> Sequence[Job]:
        return (minimum(self.bench, self.start),)

    def own_settings(self) -> Config:
        return self.bench.describes("seed", "ensemble")

    def make(self, work: Path) -> Result:
        import pandas as pd

        from lowloss.training.methods import fast_ensemble

        start_1P, seed = points(self.bench, [self.start]), derive(self.bench.config["seed"], "fge", self.start)
        found = self.bench.everywhere(fast_ensemble, start_1P[0], self.bench.build("ensemble"), seed=seed, folder=work)
        history = pd.DataFrame(found.history, columns=["step", "lr", "train_loss"]).astype({"step": int})
        tensors, row = self.evaluated(found.theta_MP, "fge")
        single = self.evaluated(start_1P, "single")[1]
        notes = {"method": "fge", "minimum": self.start, "rows": [single, row]}
        return Result({**tensors, "theta": found.theta_MP}, notes, {"metrics.csv": history})


class Independent(EnsembleJob):
    """All minima together."""

    def __init__(self, bench: Bench) -> None:
        super().__init__(bench, f"independent-{bench.count}")

    def needs(self) -> Sequence[Job]:
        return [minimum(self.bench, k) for k in range(self.bench.count)]

    def own_settings(self) -> Config:
        return {}

    def make(self, work: Path) -> Result:
        members = list(range(self.bench.count))
        tensors, row = self.evaluated(points(self.bench, members), "independent")
        return Result(tensors, {"method": "independent", "members": members, "rows": [row]})


class EnsembleStage(Stage):
    """Builds a fast geometric ensemble and compares it with one network and with all minima."""

    name, kind, after = "ensemble", "ensembles", ("minima", "path")

    def check(self, bench: Bench) -> None:
        bench.check_minimum("ensemble.minimum", bench.config["ensemble"]["minimum"])

    def jobs(self, bench: Bench) -> list[Job]:
        return [FastGeometric(bench), Independent(bench)]

    def draw(self, study: Study, folder: Path) -> Iterator[Picture]:
        from lowloss.report.figures import draw_ensembles

        ensembles = study.complete("ensembles")
        if ensembles:
            yield draw_ensembles(ensembles, folder)


STAGE = EnsembleStage()
