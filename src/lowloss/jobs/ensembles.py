"""Ensembles of networks, each a recipe, evaluated on the test split: every prefix of its members, and what it cost.

Shapes: R walks, M members, T points of a path, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lowloss import progress
from lowloss.checking import Few, check_value
from lowloss.errors import LowlossError
from lowloss.imports import pd, torch
from lowloss.jobs.base import Bench, Config, Cost, Job, Result, Stage, Study
from lowloss.jobs.minima import minimum, points
from lowloss.jobs.paths import PathJob, check_path, load_path
from lowloss.jobs.trajectories import at_epoch, check_epochs

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape
    from lowloss.points.path import Path as WeightPath
    from lowloss.training.ensembles import Ensemble


class EnsembleJob(Job):
    """Tensors: each metric of the first 1, 2, … members together and, as <metric>_alone, of each member.

    notes["rows"]: method, members, and the metrics of all together.
    members.csv: a row a member: its run (from 1), the epochs spent up to it, the metrics of the ensemble that ends with
    it, and its distance to the member before.
    """

    kind, stage = "ensembles", "ensemble"
    refers: ClassVar[tuple[str, ...]] = ()
    """The settings that name minima."""
    reads: ClassVar[dict[str, Any]] = {}
    """The settings that are looked at before the recipe is built, and what each has to be."""

    def __init__(self, bench: Bench, key: str) -> None:
        self.key, self.node = key, bench.config["ensemble"][key]
        super().__init__(bench, "-".join([key, *(f"{self.node[one]:04d}" for one in self.refers)]))

    def own_settings(self) -> Config:
        return self.bench.describes("seed", f"ensemble.{self.key}")

    @classmethod
    def check_kinds(cls, bench: Bench, key: str) -> None:
        """Raise LowlossError for settings that are missing, or not of the kind that is asked for."""
        node = bench.config["ensemble"][key]
        for one in (*cls.refers, *cls.reads):
            if one not in node:
                raise LowlossError(f"the configuration has no ensemble.{key}.{one}: do not take it out")
        for one in cls.refers:
            bench.check_minimum(f"ensemble.{key}.{one}", node[one])
        for one, hint in cls.reads.items():
            check_value(f"ensemble.{key}.{one}", node[one], hint)

    def check(self) -> None:
        """Raise LowlossError for settings that cannot be used here; nothing heavy is imported."""

    def check_network(self, landscape: NetworkLandscape) -> None:
        """Raise LowlossError for settings that do not fit the network and the data."""

    @property
    def trained(self) -> float:
        """The epochs of a minimum's training; none for networks that were trained elsewhere."""
        return float(self.bench.config["minima"].get("epochs", 0))

    def evaluated(
        self, theta_MP: torch.Tensor, method: str, factors_M: torch.Tensor | None = None
    ) -> tuple[dict[str, torch.Tensor], list[Any]]:
        """The tensors of an ensemble and its row."""
        from lowloss.ensemble.averaging import ensemble_columns

        with progress.bar(f"{method} on the test split", len(theta_MP)) as advance:
            tensors = ensemble_columns(self.bench.landscape, theta_MP, factors_M=factors_M)
            advance(len(theta_MP), "")
        metrics = (float(tensors[name][-1]) for name in self.bench.landscape.task.units)
        return tensors, [method, len(theta_MP), *metrics]

    def single(self, k: int) -> list[Any]:
        """The row of the network that an ensemble starts from."""
        return self.evaluated(points(self.bench, [k]), "single")[1]


def members_table(tensors: dict[str, torch.Tensor], run_M: Sequence[int], epochs_M: Sequence[float]) -> pd.DataFrame:
    """The rows of members.csv; the first member has no distance."""
    columns: dict[str, Any] = {"members": range(1, len(run_M) + 1), "run": list(run_M), "epochs": list(epochs_M)}
    columns |= {name: column.tolist() for name, column in tensors.items() if len(column) == len(run_M)}
    columns["distance"] = [None, *tensors["distance"].tolist()]
    return pd.DataFrame(columns)


def distances(theta_MP: torch.Tensor) -> torch.Tensor:
    """Of consecutive members, (M - 1,)."""
    pairs = [(b_P - a_P).double().norm().cpu() for a_P, b_P in pairwise(theta_MP)]
    return torch.stack(pairs) if pairs else torch.empty(0, dtype=torch.float64)


class Walked(EnsembleJob):
    """Members collected on walks, as rows of one matrix, run by run."""

    def walk(self, start_RP: torch.Tensor, work: Path, *names: Any) -> tuple[list[Ensemble], pd.DataFrame]:
        """What is found from these starts with the seed of these names, and its learning curves, a column a walk."""
        from lowloss.training.ensembles import walk

        recipe, seed = self.bench.build(f"ensemble.{self.key}"), self.bench.seed(*names)
        found = self.bench.everywhere(walk, start_RP, recipe, seed=seed, folder=work, title=self.key)
        heads = ["train_loss", *(f"train_loss_{r}" for r in range(1, len(found)))]
        blocks = zip(*(one.history for one in found), strict=True)
        entries = [[*rows[0][:2], *(row[2] for row in rows)] for rows in blocks]
        return found, pd.DataFrame(entries, columns=["step", "lr", *heads]).astype({"step": int})

    def kept(
        self, found: Sequence[Ensemble], history: pd.DataFrame, before: float, starts: int, **columns: torch.Tensor
    ) -> Result:
        """All members together, with more columns of them.

        Args:
            before: epochs of a run's training, from whose points each of `starts` walks leads.
        """
        from lowloss.ensemble.base import epochs_spent

        theta_MP, last = torch.cat([one.theta_MP for one in found]), found[0].epochs[-1]
        members = [(*divmod(r, starts), here) for r, one in enumerate(found) for here in one.epochs]
        spent = [epochs_spent(run, start, here, before, starts, last) for run, start, here in members]
        tensors, row = self.evaluated(theta_MP, self.key)
        tensors |= {"distance": distances(theta_MP), **columns}
        table = members_table(tensors, [run + 1 for run, _, _ in members], spent)
        tables = {"metrics.csv": history, "members.csv": table}
        return Result({**tensors, "theta": theta_MP}, {"method": self.key, "rows": [row]}, tables)

    def walked(self, walks: int) -> Cost:
        """What so many walks take, their members evaluated and kept."""
        recipe: Any = self.bench.ensembles[self.key]
        per_epoch = self.bench.landscape.batches(recipe.batch_size, [0], shared=False).steps_per_epoch
        steps = recipe.steps(cycle := recipe.cycle(per_epoch))
        # Collected is at the ends of cycles, or in their middles.
        places = {*range(0, steps + 1, cycle), *range(cycle // 2, steps + 1, cycle)}
        members = walks * sum(recipe.collects(i, cycle) for i in places)
        return Cost(walks * steps, members, members, samples=recipe.batch_size)


class FastGeometric(Walked):
    """Garipov et al. 2018, Algorithm 1. Its rows are the single network that it starts from, and the ensemble.

    Tensors: of each member also `iteration` and `from_start`, the distance from where its walk began; the rate `lr` of
    every iteration.
    """

    refers = ("minimum",)
    reads: ClassVar = {
        "members": int, "cycle_epochs": float, "runs": Few, "starts": list[float] | None, "budget": float | None,
    }  # fmt: skip

    @property
    def starts(self) -> list[float | None]:
        return self.node["starts"] or [None]

    @property
    def before(self) -> float:
        """The epochs of training before a run's walks."""
        return float(max(self.node["starts"] or [self.trained]))

    @property
    def minima(self) -> list[int]:
        return [self.node["minimum"] + run for run in range(self.node["runs"])]

    def needs(self) -> Sequence[Job]:
        return [minimum(self.bench, k) for k in self.minima]

    def check(self) -> None:
        self.bench.check_minimum(f"ensemble.{self.key}.minimum + runs - 1", self.minima[-1])
        check_epochs(self.bench, f"ensemble.{self.key}", self.node["starts"] or ())
        budget, before, key = self.node["budget"], self.before, f"ensemble.{self.key}.budget"
        if budget is not None and budget < before:
            raise LowlossError(f"{key}={budget:g} epochs is less than the {before:g} of the training before: raise it")
        self._check_budget((self.node["members"] - 0.5) * self.node["cycle_epochs"])

    def check_network(self, landscape: NetworkLandscape) -> None:
        # A cycle is an even number of iterations, which may be more than its epochs have.
        recipe: Any = self.bench.ensembles[self.key]
        per_epoch = landscape.batches(recipe.batch_size, [0], shared=True).steps_per_epoch
        self._check_budget(recipe.steps(recipe.cycle(per_epoch)) / per_epoch)

    def _check_budget(self, walk: float) -> None:
        """Raise LowlossError if walks of so many epochs take more than a run may."""
        budget, needed = self.node["budget"], self.before + len(self.starts) * walk
        if budget is not None and budget < needed:
            key = f"ensemble.{self.key}.budget"
            raise LowlossError(f"{key}={budget:g} epochs is less than the {needed:g} that a run takes: raise it")

    def cost(self) -> Cost:
        walked = self.walked(len(self.minima) * len(self.starts))
        return walked._replace(evaluations=walked.evaluations + 1)  # the network that it starts from

    def make(self, work: Path) -> Result:
        start_RP = torch.stack([at_epoch(self.bench, k, epoch) for k in self.minima for epoch in self.starts])
        found, history = self.walk(start_RP, work, "fge", self.node["minimum"])
        away = [(one.theta_MP - start_P).double() for one, start_P in zip(found, start_RP, strict=True)]
        recipe: Any = self.bench.ensembles[self.key]
        per_epoch = self.bench.landscape.batches(recipe.batch_size, [0], shared=True).steps_per_epoch
        columns = {"from_start": torch.linalg.vector_norm(torch.cat(away), dim=1)}
        columns["iteration"] = torch.tensor([round(per_epoch * here) for one in found for here in one.epochs])
        single = self.single(self.minima[0])
        result, cycle = self.kept(found, history, self.before, len(self.starts), **columns), recipe.cycle(per_epoch)
        rates = [recipe.rate(i, cycle) for i in range(1, recipe.steps(cycle) + 1)]
        tensors = {**result.tensors, "lr": torch.tensor(rates, dtype=torch.float64)}
        rows = {"minimum": self.node["minimum"], "rows": [single, *result.notes["rows"]]}
        return Result(tensors, {**result.notes, **rows}, result.tables)


class Snapshots(Walked):
    """Huang et al. 2017: each run trains a network from an initial point of its own, in cycles."""

    reads: ClassVar = {"runs": Few}

    def cost(self) -> Cost:
        return self.walked(self.node["runs"])

    def make(self, work: Path) -> Result:
        seeds = [self.bench.seed(self.key, "initial", r) for r in range(self.node["runs"])]
        start_RP = torch.stack([self.bench.landscape.initial(seed) for seed in seeds])
        return self.kept(*self.walk(start_RP, work, self.key), before=0, starts=1)


class Averaged(Walked):
    """Stochastic weight averaging: one network, the mean of the weights collected so far, for each prefix.

    Tensors: beside it `predictions_<metric>`, of what was collected as an ensemble.
    """

    refers = ("minimum",)
    reads: ClassVar = {"start": float | None}

    def needs(self) -> Sequence[Job]:
        return (minimum(self.bench, self.node["minimum"]),)

    def check(self) -> None:
        start = self.node["start"]
        check_epochs(self.bench, f"ensemble.{self.key}", [] if start is None else [start])

    def cost(self) -> Cost:
        walked = self.walked(1)  # what is collected and its means are evaluated, and the last mean is kept
        return walked._replace(evaluations=2 * walked.evaluations + 1, vectors=1)

    def make(self, work: Path) -> Result:
        k, start = self.node["minimum"], self.node["start"]
        (found,), history = self.walk(at_epoch(self.bench, k, start)[None], work, self.key, k)
        counts_M1 = torch.arange(1, len(found.theta_MP) + 1)[:, None]
        mean_MP = (found.theta_MP.double().cumsum(0) / counts_M1).to(found.theta_MP)
        names, collected = self.bench.landscape.task.units, self.evaluated(found.theta_MP, f"{self.key}, collected")[0]
        means = [self.evaluated(mean_P[None], self.key)[0] for mean_P in mean_MP]
        tensors = {name: torch.cat([mean[name] for mean in means]) for name in means[0]}
        tensors |= {f"{name}_alone": collected[f"{name}_alone"] for name in names}
        tensors |= {f"predictions_{name}": collected[name] for name in names}
        tensors["distance"] = distances(found.theta_MP)
        row = [self.key, 1, *(float(tensors[name][-1]) for name in names)]
        spent = [(self.trained if start is None else start) + here for here in found.epochs]
        recipe: Any = self.bench.ensembles[self.key]
        notes = {"method": self.key, "rows": [self.single(k), row], "lr_max": recipe.lr_max}
        tables = {"metrics.csv": history, "members.csv": members_table(tensors, [1] * len(spent), spent)}
        return Result({**tensors, "theta": mean_MP[-1:]}, notes, tables)


class Together(EnsembleJob):
    """All minima together, one a run."""

    def __init__(self, bench: Bench, key: str) -> None:
        super().__init__(bench, key)
        self.name += f"-{bench.count}"

    def needs(self) -> Sequence[Job]:
        return [minimum(self.bench, k) for k in range(self.bench.count)]

    def own_settings(self) -> Config:
        return {}

    def cost(self) -> Cost:
        return Cost(0, self.bench.count, 0)

    def make(self, work: Path) -> Result:
        members = list(range(self.bench.count))
        theta_MP = points(self.bench, members)
        tensors, row = self.evaluated(theta_MP, self.key)
        tensors["distance"] = distances(theta_MP)
        table = members_table(tensors, [k + 1 for k in members], [(k + 1) * self.trained for k in members])
        return Result(tensors, {"method": self.key, "members": members, "rows": [row]}, {"members.csv": table})


class CurvePoints(EnsembleJob):
    """Points of a path: as they are, with logits rescaled by the loss, and by factors fitted where a split is held out.

    The first point is `start`: where that is the larger index, a path is walked backwards, and t falls from 1 to 0.

    Tensors: t of the points, and of each way, under its name and a dot, the columns of EnsembleJob, the factors, and
    pair_<metric>: of the first end and each point together (Garipov et al. 2018, fig. 4).
    members.csv: those columns, a row a point; members and the metrics of all before it are of points taken in order.
    """

    refers = ("start", "end")
    reads: ClassVar = {"path": str, "points": int, "weight_decay": float}
    shown = (*refers, "path")

    def __init__(self, bench: Bench, key: str) -> None:
        super().__init__(bench, key)
        self.name += f"-{self.node['path']}"

    @property
    def path(self) -> PathJob | None:
        """The path whose points these are; None: a random segment's."""
        if self.node["path"] == "random":
            return None
        return PathJob(self.bench, self.node["path"], self.node["start"], self.node["end"])

    def needs(self) -> Sequence[Job]:
        return [*([self.path] if self.path else []), *(minimum(self.bench, self.node[end]) for end in self.refers)]

    def check(self) -> None:
        start, end = (self.node[one] for one in self.refers)
        if start == end:
            key = f"ensemble.{self.key}"
            raise LowlossError(f"{key}.start and {key}.end are both {start}: name two minima")
        if self.path:
            check_path(self.bench, f"ensemble.{self.key}", self.node)

    def _found(self) -> tuple[WeightPath, float]:
        """The path, and the epochs that its search took."""
        from lowloss.points.path import random_segment

        if self.path is None:
            ends = [self.node[end] for end in self.refers]
            a_P, b_P = points(self.bench, ends)
            return random_segment(a_P, b_P, self.bench.seed("random-segment", *ends)), 0.0
        steps, finder = self.path.artifact.notes()["gradient_evaluations"], self.bench.finders[self.node["path"]]
        batches = self.bench.landscape.batches(finder.batch_size, [0], shared=True)
        return load_path(self.path), steps / batches.steps_per_epoch

    def cost(self) -> Cost:
        # The train split; then in up to three ways each point alone, and paired with the first.
        return Cost(0, self.node["points"] * (1 + 3 * 3), 0, "at most")

    def make(self, work: Path) -> Result:
        from lowloss.data.base import HELD_OUT
        from lowloss.ensemble.averaging import ensemble_columns
        from lowloss.ensemble.curve import factors_by_loss, fitted_factor
        from lowloss.finder.base import l2
        from lowloss.measure import Exact

        landscape, count = self.bench.landscape, self.node["points"]
        (path, searched), t_T = self._found(), torch.linspace(0, 1, count, dtype=torch.float64)
        if self.path and self.node["start"] > self.node["end"]:
            t_T = t_T.flip(0)
        theta_TP = path.points(t_T)
        names = list(landscape.task.units)
        table = self.bench.tabulate(theta_TP, work, f"{self.key} on train", [Exact(["train"])])
        loss_T = table["train_loss"] + l2(self.node["weight_decay"], theta_TP.double()).cpu()
        ways: dict[str, torch.Tensor | None] = {self.key: None}
        if self.path and landscape.task.logits(*next(iter(landscape.outputs(theta_TP[0], "test")))) is not None:
            ways[f"{self.key}-by-loss"] = factors_by_loss(loss_T)
            if HELD_OUT in landscape.splits:
                fitted = [fitted_factor(landscape, theta_P) for theta_P in theta_TP]
                ways[f"{self.key}-fitted"] = torch.tensor(fitted, dtype=torch.float64)
        tensors, rows = {"t": t_T, "train_loss_l2": loss_T}, []
        for way, factors_T in ways.items():
            columns, row = self.evaluated(theta_TP, way, factors_T)
            rows.append(row)
            own_T = [None if factors_T is None else factors_T[[0, k]] for k in range(count)]
            pairs = [ensemble_columns(landscape, theta_TP[[0, k]], factors_M=own_T[k]) for k in range(count)]
            columns |= {f"pair_{name}": torch.stack([pair[name][1] for pair in pairs]) for name in names}
            columns["factor"] = torch.ones(count, dtype=torch.float64) if factors_T is None else factors_T
            tensors |= {f"{way}.{name}": column for name, column in columns.items()}
        tensors["distance"] = distances(theta_TP)
        notes = {"method": self.key, "rows": rows, "ways": list(ways), **{key: self.node[key] for key in self.shown}}
        spent = 2 * self.trained + searched
        return Result(tensors, notes, {"members.csv": members_table(tensors, [1] * count, [spent] * count)})


KINDS: dict[str, type[EnsembleJob]] = {
    "FGE": FastGeometric, "Snapshot": Snapshots, "SWA": Averaged, "Independent": Together, "Curve": CurvePoints,
}  # fmt: skip
"""The job of each recipe, by the name of its class."""


def _kind(node: Config) -> str:
    return str(node["_target_"]).rpartition(".")[2]


class EnsembleStage(Stage):
    """Builds ensembles, each by its recipe, and compares them with one network."""

    name, kind, after = "ensemble", "ensembles", ("minima", "path")

    def check(self, bench: Bench) -> None:
        for key, node in bench.config["ensemble"].items():
            if _kind(node) not in KINDS:
                raise LowlossError(f"ensemble.{key}._target_ must be a recipe of {', '.join(KINDS)}")
            KINDS[_kind(node)].check_kinds(bench, key)
        for job in self.jobs(bench):
            assert isinstance(job, EnsembleJob)
            job.check()

    def check_network(self, bench: Bench, landscape: NetworkLandscape) -> None:
        for job in self.jobs(bench):
            assert isinstance(job, EnsembleJob)
            job.check_network(landscape)

    def jobs(self, bench: Bench) -> list[Job]:
        return [KINDS[_kind(node)](bench, key) for key, node in bench.config["ensemble"].items()]

    def numbers(self, study: Study) -> dict[str, float]:
        """With each method's metrics on the test split."""
        found = super().numbers(study)
        for notes in (artifact.notes() for artifact in study.complete("ensembles")):
            for method, _, *values in notes["rows"]:
                found |= {f"ensemble/{method}/test_{m}": v for m, v in zip(notes["units"], values, strict=True)}
        return found


STAGE = EnsembleStage()
