"""Spectra: the curvature of the landscape at minima and at points of paths."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss.imports import pd, torch
from lowloss.jobs.base import Bench, Config, Cost, Job, Result, Stage
from lowloss.jobs.minima import minimum, points
from lowloss.jobs.paths import PathJob, load_path
from lowloss.study import Study

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape
    from lowloss.landscape.base import Columns
    from lowloss.measure import Extremes, Hessian

WHICH = ("split", "samples", "statistics")
ENDS = (*WHICH, "tolerance", "products", "count")
"""The keys of `curvature` that determine which Hessian is measured, and its extreme eigenvalues."""


def hessian(bench: Bench) -> Hessian:
    """Which Hessian the configuration asks for."""
    from lowloss.measure import Hessian

    settings = {key: bench.config["curvature"][key] for key in WHICH}
    return Hessian(**settings, seed=bench.seed("curvature"))


def samples(bench: Bench) -> int:
    """Of how many samples it is: no more than the split has."""
    wanted, (_, y_N) = bench.config["curvature"]["samples"], bench.landscape.data.split(hessian(bench).split)
    return min(wanted or len(y_N), len(y_N))


def extremes(bench: Bench) -> Extremes:
    """The measure of its extreme eigenvalues."""
    from lowloss.measure import Extremes

    config = bench.config["curvature"]
    return Extremes(hessian(bench), config["tolerance"], config["products"], config["count"])


class Spectrum(Job):
    """The curvature of a minimum, or at the ends, the highest point and some inner points of a path.

    Tensors: the columns of the measures with the points first, and of a path t, where they lie on it.
    spectra.csv: a row a point; layers.csv, with curvature.layers: a row a point and layer.
    """

    kind, stage = "spectra", "curvature"

    def __init__(self, bench: Bench, of: Job) -> None:
        super().__init__(bench, of.name)
        self.of = of

    def needs(self) -> Sequence[Job]:
        return (self.of,)

    def own_settings(self) -> Config:
        settings = self.bench.describes("seed", "curvature")
        if not isinstance(self.of, PathJob):
            settings["curvature"] = {key: value for key, value in settings["curvature"].items() if key != "pivots"}
        return settings

    def cost(self) -> Cost:
        config, density = self.bench.config["curvature"], self.bench.config["curvature"]["density"] or {}
        points = config["pivots"] + 3 if isinstance(self.of, PathJob) else 1
        blocks = len(self.bench.landscape.layout.blocks()) if config["layers"] else 0
        products = (1 + blocks) * (config["products"] + (config["trace"] or 0))
        products += density.get("probes", 0) * density.get("steps", 0)
        return Cost(2 * products * points, points, 0, "at most", samples=config["samples"])

    def make(self, work: Path) -> Result:
        from lowloss.measure import Density, Exact, Layers, Trace

        bench, config, of = self.bench, self.bench.config["curvature"], hessian(self.bench)
        trace = Trace(of, config["trace"]) if config["trace"] else None
        layers = bench.landscape.layout.blocks() if config["layers"] else {}
        measures = [Exact(), extremes(bench), *([trace] if trace else [])]
        measures += [Density(of, **config["density"])] if config["density"] else []
        measures += [Layers(layers, extremes(bench), trace)] if layers else []
        if isinstance(self.of, PathJob):
            t_K, where = self._places(self.of), {"finder": self.of.finder, "start": self.of.start, "end": self.of.end}
            theta_KP, on = load_path(self.of).points(t_K), {"t": t_K}
        else:
            t_K, where = torch.zeros(1), {"finder": "minimum", "start": int(self.name), "end": int(self.name)}
            theta_KP, on = points(bench, [int(self.name)]), {}
        # There are few points, which take long.
        kept, chunk = (work / "each", 1) if bench.several else (work, 4)
        table = bench.tabulate(theta_KP, kept, f"curvature {self.name}", measures, chunk=chunk)
        about: dict[str, Any] = {"split": of.split, "samples": samples(bench), "statistics": of.statistics}
        columns = [name for name, column in table.items() if column.dim() == 1 and column.is_floating_point()]
        at = pd.DataFrame({**where, "t": t_K.tolist()})
        rows = at.assign(**{name: table[name].numpy() for name in (*columns, "hessian_index", "hessian_products")})
        tables = {"spectra.csv": rows.assign(status=_status(table["hessian_converged"]), **about)}
        if layers:
            tables["layers.csv"] = _by_layers(at, layers, table).assign(**about)
        notes = {**where, "hessian": {**of.about, "samples": samples(bench)}}
        return Result({**table, **on}, notes, tables)

    def _places(self, job: PathJob) -> torch.Tensor:
        """Values of t: the ends, the highest sampled train loss, and inner knots at near-equal distances."""
        tensors, _ = job.artifact.load()
        t_T, knots_B = tensors["t"].double(), load_path(job).grid(points=2, between=0)
        inner_B = (knots_B if len(knots_B) > 2 else t_T)[1:-1]
        wanted = min(self.bench.config["curvature"]["pivots"], len(inner_B))
        chosen = torch.linspace(0, len(inner_B) - 1, wanted + 2)[1:-1].round().long()
        highest_1 = t_T[tensors["train_loss"].argmax()][None]
        return torch.cat([t_T[[0, -1]], highest_1, inner_B[chosen]]).unique()


def _by_layers(at: pd.DataFrame, layers: Mapping[str, tuple[int, int]], table: Columns) -> pd.DataFrame:
    """A row a point and layer, of the columns of `Layers`."""
    rows = at.loc[at.index.repeat(len(layers))].reset_index(drop=True)
    rows["layer"] = [*layers] * len(at)
    rows["parameters"] = [end - first for first, end in layers.values()] * len(at)
    for name, column_KL in table.items():
        kind, _, what = name.partition("_")
        if kind == "layers" and what not in ("converged", "index"):
            rows[f"hessian_{what}"] = column_KL.flatten().tolist()
    return rows.assign(status=_status(table["layers_converged"].flatten()))


def _status(converged: torch.Tensor) -> list[str]:
    return ["converged" if done else "unconverged" for done in converged]


class CurvatureStage(Stage):
    """Measures the Hessian at minima and on paths; it is not among the stages unless it is asked for."""

    name, kind, after = "curvature", "spectra", ("minima", "path")

    def check_network(self, bench: Bench, landscape: NetworkLandscape) -> None:
        from lowloss.measure.curvature import check_twice

        check_twice(landscape)

    def jobs(self, bench: Bench) -> list[Job]:
        paths = bench.stages["path"].jobs(bench) if bench.config["curvature"]["pivots"] is not None else []
        if "path" not in bench.config["stages"]:
            paths = [job for job in paths if job.complete]
        return [Spectrum(bench, job) for job in [*(minimum(bench, k) for k in range(bench.count)), *paths]]

    def numbers(self, study: Study) -> dict[str, float]:
        """With the extreme eigenvalues at the minima, and on the paths of each finder."""
        found = super().numbers(study)
        for tensors, notes in (artifact.load() for artifact in study.complete("spectra")):
            for name, extreme in (("hessian_min", min), ("hessian_max", max)):
                key, here = f"curvature/{notes['finder']}/{name}", extreme(tensors[name].tolist())
                found[key] = extreme(here, found.get(key, here))
        return found


STAGE = CurvatureStage()
