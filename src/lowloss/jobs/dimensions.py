"""Dimensions: from how many dimensions on a random cut through a place of the landscape reaches a low loss.

Shapes: R cuts, P parameters.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from pathlib import Path
from typing import TYPE_CHECKING

from lowloss.errors import LowlossError
from lowloss.imports import pd, torch
from lowloss.jobs.base import Bench, Config, Cost, Job, Result, Stage
from lowloss.jobs.connectors import ConnectorJob
from lowloss.jobs.minima import minimum
from lowloss.jobs.paths import PathJob, load_path
from lowloss.jobs.plans import Plan
from lowloss.jobs.spectra import WHICH, hessian

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape

PLACES = ("initial", "path", "connector")

SHARE = 0.9
"""Of minimum 0's accuracy, where no threshold is set: what Li, Farkhoor, Liu & Yosinski 2018 ask of a cut."""


class DimensionJob(Job):
    """The threshold dimension at one place, with hyperplanes of one orientation.

    Tensors: dims and values (R,) of all runs. notes: threshold of the values; low, the largest dimension that failed,
    and high, the smallest from which on all succeeded, where there is one; of the first orientation, where it is asked
    for, large, how many eigenvalues of the Hessian at the place are above a share of the largest.
    runs.csv: a row a run.

    Args:
        place: "initial", the initial point of a network; "path", a fraction of the first path of a finder; or
            "connector", the middle of that of m + 1 minima. The latter two are displaced at random.
        which: that fraction, or m.
    """

    kind, stage = "dimensions", "dimension"

    def __init__(self, bench: Bench, place: str, which: float, repeat: int) -> None:
        self.place, self.which, self.repeat = place, which, repeat
        where = {"initial": "initial", "path": f"path-{which:.3f}", "connector": f"connector-m{int(which):02d}"}
        super().__init__(bench, f"{where[place]}-{repeat:02d}")

        self.through: Job | None = None
        if place == "path":
            self.through = PathJob(bench, bench.config["dimension"]["finder"], 0, 1)
        elif place == "connector":
            self.through = ConnectorJob(bench, int(which))

    def needs(self) -> Sequence[Job]:
        return [*([self.through] if self.through else []), minimum(self.bench, 0)]

    def own_settings(self) -> Config:
        keys = ["dims", "rounds", "steps", "optimizer", "batch_size", "column", "threshold"]
        keys += ["displacement"] if self.through else []
        keys += ["share"] if self.counts else []
        counted = [f"curvature.{key}" for key in (*WHICH, "density")] if self.counts else []
        return self.bench.describes("seed", "schedule", *(f"dimension.{key}" for key in keys), *counted)

    @property
    def counts(self) -> bool:
        """Whether eigenvalues are counted here: the Hessian knows nothing of orientations."""
        return self.repeat == 0 and self.bench.config["dimension"]["share"] is not None

    def cost(self) -> Cost:
        settings = self.bench.config["dimension"]
        runs, density = settings["rounds"] * len({*settings["dims"]}), self.bench.config["curvature"]["density"] or {}
        products = density.get("probes", 2) * density.get("steps", 40) if self.counts else 0
        return Cost(runs * settings["steps"] + 2 * products, runs, 1, "at most", samples=settings["batch_size"])

    def make(self, work: Path) -> Result:
        from lowloss.measure import Large
        from lowloss.training.charts import bracket, descend_cuts, refined

        bench, settings = self.bench, self.bench.config["dimension"]
        column, threshold = settings["column"], settings["threshold"]
        if threshold is None:
            threshold = 1 - SHARE * (1 - minimum(bench, 0).artifact.notes()[column])
        seed = bench.seed("dimension", self.repeat)
        training = {name: settings[name] for name in ("steps", "batch_size")}
        training |= {"optimizer": bench.build("dimension.optimizer", partial=True), "schedule": bench.build("schedule")}
        origin_P, values, dims = self._origin(), dict[int, float](), sorted({*settings["dims"]})
        for i in range(settings["rounds"]):
            if not dims:
                break
            folder, title = work / f"round-{i}", f"{self.name}, round {i + 1}"
            theta_RP = bench.everywhere(descend_cuts, origin_P, dims, seed=seed, folder=folder, title=title, **training)
            table = bench.tabulate(theta_RP, folder, title)
            values |= dict(zip(dims, table[column].tolist(), strict=True))
            dims = refined(*bracket(values, threshold), len(settings["dims"]))
        low, high = bracket(values, threshold)
        notes: Config = {"place": self.place, "which": self.which, "repeat": self.repeat, "column": column}
        notes |= {"threshold": float(threshold), "low": low, **({"high": high} if high < inf else {})}
        if self.counts:
            measures = [Large(hessian(bench), settings["share"], **(bench.config["curvature"]["density"] or {}))]
            table = bench.tabulate(self._at()[None], work / "hessian", f"eigenvalues at {self.name}", measures)
            notes |= {"share": settings["share"], "large": float(table["hessian_large"])}
        runs = pd.DataFrame(sorted(values.items()), columns=["dim", column])
        tensors = {"dims": torch.tensor(sorted(values)), "values": torch.tensor(runs[column].to_numpy())}
        return Result({**tensors, "origin": origin_P}, notes, {"runs.csv": runs})

    def _at(self) -> torch.Tensor:
        """The place (P,)."""
        if self.through is None:
            return self.bench.landscape.initial(self.bench.seed("initial", self.repeat))
        if isinstance(self.through, PathJob):
            return load_path(self.through).points(torch.tensor([self.which], dtype=torch.float64))[0]
        return self.through.artifact.load()[0]["middle"]

    def _origin(self) -> torch.Tensor:
        """The point (P,) through which the cuts go."""
        from lowloss.points.directions import unit_directions

        bench, theta_P = self.bench, self._at()
        if self.through is None:
            return theta_P
        away_1P = unit_directions(theta_P, bench.seed("displacement"), False, torch.tensor([self.repeat]))
        return theta_P + bench.config["dimension"]["displacement"] * theta_P.norm() * away_1P[0]


class DimensionStage(Stage):
    """Finds the threshold dimension of random cuts."""

    name, kind, after = "dimension", "dimensions", ("minima", "connector", "path")

    def check(self, bench: Bench) -> None:
        settings = bench.config["dimension"]
        for place in settings["at"]:
            if place not in PLACES:
                raise LowlossError(f"dimension.at must be a list of some of {', '.join(PLACES)}, got {place!r}")
        if settings["threshold"] is None and not settings["column"].endswith("_error"):
            raise LowlossError(
                f"dimension.column={settings['column']} is no error, of which a threshold could follow from the "
                "minima's accuracy: set dimension.threshold"
            )
        finder = settings["finder"]
        there = finder in bench.config["finder"] and (0, 1) in Plan(bench, finder).pairs()
        if "path" in settings["at"] and not there:
            raise LowlossError(f"dimension.at=[path] needs the path [0,1] by {finder}: add it to finder and path.pairs")

    def check_network(self, bench: Bench, landscape: NetworkLandscape) -> None:
        if (largest := max(bench.config["dimension"]["dims"])) > landscape.dim:
            raise LowlossError(
                f"dimension.dims has {largest}, but the network has {landscape.dim} parameters: leave larger ones out"
            )
        column = bench.config["dimension"]["column"]
        columns = [f"{split}_{metric}" for split in landscape.splits for metric in landscape.task.units]
        if column not in columns:
            raise LowlossError(f"dimension.column={column}, but there are {', '.join(columns)}: choose one of them")

    def check_made(self, bench: Bench) -> None:
        bench.check_optimizer("dimension.optimizer", "set it to 0")

    def jobs(self, bench: Bench) -> list[Job]:
        settings = bench.config["dimension"]
        whiches = {"initial": [0.0], "path": settings["along"], "connector": bench.config["connector"]["m"]}
        places = [(place, which) for place in dict.fromkeys(settings["at"]) for which in dict.fromkeys(whiches[place])]
        return [DimensionJob(bench, *one, repeat) for one in places for repeat in range(settings["repeats"])]


STAGE = DimensionStage()
