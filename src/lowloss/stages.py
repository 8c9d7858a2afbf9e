"""The stages of a study, each declared once.

A stage looks for its artifacts, makes those that are missing, and says so. To add one, write a function of a Run
and name it in STAGES. Everything heavy is imported where it is used: a finished stage answers without torch.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lowloss import files, progress
from lowloss.errors import LowlossError
from lowloss.runs import Artifact, Config, Study, begin_work
from lowloss.seeding import derive

if TYPE_CHECKING:
    from torch import Tensor

    from lowloss.ensemble import FGE
    from lowloss.finder import Finder
    from lowloss.finder import Path as WeightPath
    from lowloss.landscape import NetworkLandscape
    from lowloss.scans import Plane
    from lowloss.training.loop import TrainerFactory


NUMBERS: dict[str, tuple[type, float]] = {
    "seed": (int, 0),
    "evaluation_batch": (int, 1),
    "minima.count": (int, 1),
    "minima.epochs": (float, 1e-6),
    "minima.batch_size": (int, 1),
    "path.points": (int, 2),
    "path.between": (int, 0),
}
"""Settings that must be numbers: their kind and least value."""


class Run:
    """What a stage is given.

    Args:
        study: the folder.
        config: the resolved configuration, plain dictionaries.
        build: turns a configuration node with `_target_` into its object; with `partial=True`, into a factory.
        command: the command line without its choice of stages, for messages.
    """

    def __init__(self, study: Study, config: Config, build: Callable[..., Any], command: str) -> None:
        self.study, self.config, self.build, self.command = study, config, build, command

    def describes(self, *sections: str) -> Config:
        """The part of the configuration that determines an artifact: sections, dotted for a part of one."""
        described: Config = {}
        for section in sections:
            value: Any = self.config
            *parents, last = section.split(".")
            node = described
            for part in parents:
                value, node = value[part], node.setdefault(part, {})
            node[last] = value[last]
        # Where the data lie on this machine changes no result; what lies there does.
        if isinstance(described.get("data"), dict):
            described["data"] = {k: v for k, v in described["data"].items() if k not in ("root", "download")}
            if "path" in described["data"]:
                described["data"]["path"] = self._data_digest
        return described

    @cached_property
    def _data_digest(self) -> str:
        file = Path(self.config["data"]["path"])
        if file.is_dir():
            return str(file)
        if not file.is_file():
            raise LowlossError(f"{file} does not exist: set data.path to an .npz file")
        with file.open("rb") as stream:
            return f"{file.name} sha256:{files.digest(stream)}"

    @property
    def minima_config(self) -> Config:
        training = ("minima.epochs", "minima.batch_size")
        return self.describes("seed", "model", "data", "optimizer", "schedule", *training, "evaluation_batch")

    @cached_property
    def landscape(self) -> NetworkLandscape:
        from lowloss.landscape import NetworkLandscape
        from lowloss.training.loop import check_optimizer, check_trainer

        # Whoever needs the landscape is about to work long: find a wrong value of any stage first.
        _ = self.finders, self.planes, self.build("ensemble"), self.build("schedule")
        check_optimizer(self.build("optimizer", partial=True))
        check_trainer(self.trainer)
        data = self.build("data")
        factory = self.build("model", partial=True)
        return NetworkLandscape(factory, data, self.config["evaluation_batch"])

    @cached_property
    def trainer(self) -> TrainerFactory:
        from functools import partial

        trainer: TrainerFactory = self.build("trainer", partial=True)
        logger = self.config["logger"]
        return partial(trainer, logger=self.build("logger")) if logger.get("_target_") else trainer

    @cached_property
    def finders(self) -> dict[str, Finder]:
        return {name: self.build(f"finder.{name}") for name in self.config["finder"]}

    @cached_property
    def planes(self) -> dict[str, Plane]:
        return {name: self.build(f"scan.{name}") for name in self.config["scan"]}

    def minimum(self, k: int) -> Artifact:
        return self.study.artifact("minima", f"{k:04d}")

    def path(self, start: int, end: int, finder: str) -> Artifact:
        return self.study.artifact("paths", f"{start:04d}-{end:04d}-{finder}")

    def require(self, artifact: Artifact, config: Config, stage: str) -> None:
        """Raise LowlossError if a needed artifact is missing or was made with another configuration."""
        if not artifact.matches(config):
            raise LowlossError(f"{artifact.folder} is missing: make it with `{self.command} stages=[{stage}]`")

    def points(self, indices: list[int]) -> Tensor:
        """The minima (K, P) of these indices."""
        import torch

        for k in indices:
            self.require(self.minimum(k), self.minima_config, "minima")
        return torch.stack([self.minimum(k).load()[0]["theta"] for k in indices])

    def load_path(self, start: int, end: int, finder: str) -> WeightPath:
        from lowloss.finder.path import path_from_tensors

        artifact = self.path(start, end, finder)
        self.require(artifact, self.path_config(finder), "path")
        tensors, notes = artifact.load()
        return path_from_tensors(notes["kind"], tensors)

    def path_config(self, finder: str) -> Config:
        return self.minima_config | self.describes(f"finder.{finder}", "path.points", "path.between")

    def pairs(self, finder: str) -> list[tuple[int, int]]:
        """The pairs of minima that a finder connects. Raises LowlossError if they do not exist."""
        count, settings = self.config["minima"]["count"], self.config["path"]
        key, wanted = "path.pairs", settings["pairs"]
        if finder in settings["only"]:
            key, wanted = f"path.only.{finder}", settings["only"][finder]
        if wanted == "star":
            return [(0, k) for k in range(1, count)]
        if wanted == "all":
            return [(i, j) for i in range(count) for j in range(i + 1, count)]
        if not isinstance(wanted, list) or not all(
            isinstance(pair, list) and [type(k) for k in pair] == [int, int] for pair in wanted
        ):
            raise LowlossError(f"{key} must be star, all or a list like [[0,1],[0,2]], got {wanted!r}")
        for i, j in wanted:
            if not (0 <= i < count and 0 <= j < count and i != j):
                raise LowlossError(f"{key} names [{i},{j}], but the minima are 0 … {count - 1}: raise minima.count")
        return [(i, j) for i, j in wanted]

    def check(self) -> None:
        """Raise LowlossError for a value that no stage could use; needs nothing heavy."""
        for key, (kind, least) in NUMBERS.items():
            value: Any = self.config
            for part in key.split("."):
                value = value[part]
            allowed = (int, float) if kind is float else (int,)
            if not isinstance(value, allowed) or isinstance(value, bool) or not value >= least:
                noun = "a number" if kind is float else "a whole number"
                raise LowlossError(f"{key} must be {noun} of at least {least:g}, got {value!r}")
        wanted = self.config["stages"]
        if not isinstance(wanted, list):
            raise LowlossError(f"stages must be a list: stages=[{wanted}]")
        unknown = [name for name in wanted if name not in STAGES]
        if unknown:
            raise LowlossError(f"stages has {', '.join(map(str, unknown))}, but the stages are {', '.join(STAGES)}")
        for finder in self.config["finder"]:
            self.pairs(finder)
        if "ensemble" in wanted:
            self._check_minimum("ensemble.minimum", self.config["ensemble"]["minimum"])
        if "scan" in wanted:
            for name, node in self.config["scan"].items():
                self._check_scan(f"scan.{name}", node)

    def _check_minimum(self, key: str, k: int) -> None:
        count = self.config["minima"]["count"]
        if not 0 <= k < count:
            raise LowlossError(f"{key}={k}, but the minima are 0 … {count - 1}: raise minima.count")

    def _check_scan(self, key: str, node: Config) -> None:
        for end in ("minimum", "start", "end"):
            if end in node:
                self._check_minimum(f"{key}.{end}", node[end])
        if "path" not in node:
            return
        finders = self.config["finder"]
        if node["path"] not in finders:
            raise LowlossError(f"{key}.path={node['path']}, but finder has {', '.join(finders)}")
        start, end = node["start"], node["end"]
        if (start, end) not in self.pairs(node["path"]) and not self.path(start, end, node["path"]).complete:
            raise LowlossError(
                f"{key} needs the path [{start},{end}] by {node['path']}, which path.pairs leaves out: "
                f"add it there, or change {key}.start and {key}.end"
            )


def make_minima(run: Run) -> None:
    """Train the networks from independent seeds, together."""
    count = run.config["minima"]["count"]
    missing = [k for k in range(count) if not run.minimum(k).matches(run.minima_config)]
    if not missing:
        progress.say(f"minima: all {count} are complete")
    for work, rows in _minima_groups(run.study.root / "minima", missing):
        _make_minima(run, work, rows)


def _minima_groups(folder: Path, missing: list[int]) -> Iterator[tuple[Path, list[int]]]:
    """Work folders and the rows that train together there: interrupted groups first, then one of all that is left."""
    left = list(missing)
    for work in sorted(folder.glob(".*.work")):
        rows = [int(part) for part in work.name.split(".")[1].split("-")]
        if set(rows) & set(left):
            left = [k for k in left if k not in rows]
            yield work, rows
    if left:
        yield folder / f".{'-'.join(f'{k:04d}' for k in left)}.work", left


def _make_minima(run: Run, work: Path, rows: list[int]) -> None:
    import pandas as pd

    from lowloss.training.evaluation import evaluate_points
    from lowloss.training.minima import train_minima

    began = time.monotonic()
    landscape, config = run.landscape, run.minima_config
    begin_work(work, config)
    result = train_minima(
        landscape,
        epochs=config["minima"]["epochs"],
        batch_size=config["minima"]["batch_size"],
        optimizer=run.build("optimizer", partial=True),
        schedule=run.build("schedule"),
        seed=config["seed"],
        indices=rows,
        trainer=run.trainer,
        folder=work,
    )
    table = evaluate_points(
        landscape,
        lambda index: result.theta_KP[index],
        len(rows),
        trainer=run.trainer,
        folder=work,
        title="minima on both splits",
        chunk=1,
    )
    for row, k in enumerate(rows):
        if run.minimum(k).complete:
            continue
        history = pd.DataFrame(
            [[int(entry[0]), entry[1], entry[2 + row]] for entry in result.history],
            columns=["step", "lr", "train_loss"],
        )
        values = {name: float(column[row]) for name, column in table.items()}
        seconds = (time.monotonic() - began) / len(rows)
        notes = values | {"steps": int(result.history[-1][0])}
        run.minimum(k).commit(config, {"theta": result.theta_KP[row]}, notes, {"metrics.csv": history}, seconds)
    shutil.rmtree(work, ignore_errors=True)


def make_paths(run: Run) -> None:
    """Connect pairs of minima with every finder."""
    todo = []
    total = 0
    for finder in run.config["finder"]:
        for start, end in run.pairs(finder):
            total += 1
            if not run.path(start, end, finder).matches(run.path_config(finder)):
                todo.append((start, end, finder))
    if not todo:
        progress.say(f"path: all {total} are complete")
        return
    for start, end, finder in todo:
        _make_path(run, start, end, finder)


def _make_path(run: Run, start: int, end: int, finder: str) -> None:
    import pandas as pd
    import torch

    from lowloss.training.evaluation import evaluate_points
    from lowloss.training.path import find_path

    began = time.monotonic()
    ends_2P = run.points([start, end])
    artifact, config = run.path(start, end, finder), run.path_config(finder)
    landscape = run.landscape
    work = artifact.begin(config)
    title = f"{finder} {start}–{end}"
    seed = derive(config["seed"], "path", start, end, finder)
    found = find_path(landscape, ends_2P[0], ends_2P[1], run.finders[finder], seed, run.trainer, work, title=title)
    t_T = found.path.grid(config["path"]["points"], config["path"]["between"])
    table = evaluate_points(
        landscape,
        lambda index: found.path.points(t_T[index]),
        len(t_T),
        trainer=run.trainer,
        folder=work,
        title=f"{title} on both splits",
    )
    arc_T = torch.cat([torch.zeros(1, dtype=torch.float64), found.path.lengths(t_T).cumsum(0)])
    tensors = {**found.path.tensors(), "t": t_T, "arc": arc_T / arc_T[-1], **table}
    for i, snapshot in enumerate(found.snapshots):
        tensors[f"snapshot-{i:03d}"] = snapshot
    notes = {
        "finder": finder,
        "start": start,
        "end": end,
        "kind": found.path.kind,
        "status": found.status,
        "pivots": len(found.path.bends_BP) - 2,
        "length_ratio": found.path.length_ratio(),
        "gradient_evaluations": found.gradient_evaluations,
        **_path_levels(table, tensors["arc"]),
    }
    history = pd.DataFrame(found.history, columns=["phase", "step", "lr", "mean_loss", "max_loss"])
    history = history.astype({"phase": int, "step": int})
    along = pd.DataFrame({"t": t_T, "arc": tensors["arc"], **table})
    tables = {"metrics.csv": history, "along.csv": along}
    artifact.commit(config, tensors, notes, tables, time.monotonic() - began)


def _path_levels(table: dict[str, Tensor], arc_T: Tensor) -> dict[str, float]:
    """Levels along a path: at its ends (their mean), at its highest point, and the barrier between.

    barrier: the highest loss above the linear interpolation of the end losses along the path's length;
    barrier_above_ends: above the higher end.
    """
    levels: dict[str, float] = {}
    for name, column_T in table.items():
        split, metric = name.split("_")
        first, last = float(column_T[0]), float(column_T[-1])
        levels[f"min_{split}_{metric}"] = (first + last) / 2
        levels[f"saddle_{split}_{metric}"] = float(column_T.max())
        if metric == "loss":
            levels[f"barrier_{split}_loss"] = float((column_T - first - (last - first) * arc_T).max())
            levels[f"barrier_above_ends_{split}_loss"] = float(column_T.max()) - max(first, last)
            levels[f"saddle_{split}_arc"] = float(arc_T[column_T.argmax()])
    return levels


def make_ensemble(run: Run) -> None:
    """Build a fast geometric ensemble and compare it with one network and with all minima."""
    start, count = run.config["ensemble"]["minimum"], run.config["minima"]["count"]
    fge = run.study.artifact("ensembles", f"fge-{start:04d}")
    independent = run.study.artifact("ensembles", f"independent-{count}")
    fge_config = run.minima_config | run.describes("ensemble")
    independent_config = run.minima_config
    complete = [fge.matches(fge_config), independent.matches(independent_config)]
    if all(complete):
        progress.say("ensemble: complete")
        return
    import pandas as pd

    from lowloss.training.ensemble import fast_ensemble

    minima_KP = run.points(list(range(count)))
    began = time.monotonic()
    if not fge.complete:
        landscape, recipe = run.landscape, cast("FGE", run.build("ensemble"))
        work = fge.begin(fge_config)
        seed = derive(run.config["seed"], "fge", start)
        found = fast_ensemble(landscape, minima_KP[start], recipe, seed, run.trainer, work)
        history = pd.DataFrame(found.history, columns=["step", "lr", "train_loss"]).astype({"step": int})
        tensors, rows = _ensemble_on_test(run, found.theta_MP, "fge")
        single = _ensemble_on_test(run, minima_KP[start : start + 1], "single")[1]
        notes = {"method": "fge", "minimum": start, "rows": [*single, *rows]}
        tensors["theta"] = found.theta_MP
        fge.commit(fge_config, tensors, notes, {"metrics.csv": history}, time.monotonic() - began)
    began = time.monotonic()
    if not independent.complete:
        tensors, rows = _ensemble_on_test(run, minima_KP, "independent")
        notes = {"method": "independent", "members": list(range(count)), "rows": rows}
        independent.commit(independent_config, tensors, notes, {}, time.monotonic() - began)


def _ensemble_on_test(run: Run, theta_MP: Tensor, method: str) -> tuple[dict[str, Tensor], list[list[Any]]]:
    """Error and NLL of the first 1, 2, … members together and of each alone, and the method's row for the table."""
    import torch

    from lowloss.ensemble import ensemble_curve

    landscape, logits = run.landscape, []
    with progress.bar(f"{method} on the test split", len(theta_MP)) as advance:
        for done, theta_P in enumerate(theta_MP, start=1):
            result = landscape.evaluate(theta_P[None], "test", logits=True)
            assert result.logits_KNC is not None
            logits.append(result.logits_KNC)
            advance(done, "")
    y_N = landscape.data.y_test
    error_M, nll_M = ensemble_curve(torch.cat(logits), y_N)
    alone = [ensemble_curve(member, y_N) for member in logits]
    tensors = {
        "error": error_M,
        "nll": nll_M,
        "error_alone": torch.cat([error for error, _ in alone]),
        "nll_alone": torch.cat([nll for _, nll in alone]),
    }
    return tensors, [[method, len(theta_MP), float(error_M[-1]), float(nll_M[-1])]]


def make_scans(run: Run) -> None:
    """Tabulate loss and error on planes through the landscape."""
    complete = 0
    for name in run.config["scan"]:
        complete += _make_scan(run, name)
    if complete == len(run.config["scan"]):
        progress.say(f"scan: all {complete} are complete")


def _make_scan(run: Run, name: str) -> bool:
    """Make one scan; whether it was there already."""
    node = run.config["scan"][name]
    minima = [node["minimum"]] if "minimum" in node else [node["start"], node["end"]]
    artifact = run.study.artifact("scans", "-".join([name, *(f"{k:04d}" for k in minima)]))
    config = run.minima_config | run.describes(f"scan.{name}")
    if "path" in node:
        config |= {key: value for key, value in run.path_config(node["path"]).items() if key not in config}
    if artifact.matches(config):
        return True
    import torch

    from lowloss.training.scan import scan

    began = time.monotonic()
    plane = run.planes[name]
    path = run.load_path(minima[0], minima[1], plane.path) if plane.path else None
    seed = derive(config["seed"], "scan", name)
    try:
        grid = plane.grid(run.points(minima), path, run.landscape.layout, seed)
    except ValueError as error:
        raise LowlossError(f"scan.{name}: {error}") from error
    work = artifact.begin(config)
    table = scan(run.landscape, grid, trainer=run.trainer, folder=work, title=f"scan {name}")
    tensors = {"directions": grid.directions_DP, "origin": grid.origin_P, "anchors": grid.anchors_AD, **table}
    tensors |= {f"axis-{d}": axis for d, axis in enumerate(grid.axes)}
    if path is not None:
        bends_B2 = grid.project(path.bends_BP)
        t_T = path.grid(points=201, between=9)
        tensors["bends_projected"] = bends_B2
        tensors["path_projected"] = path.coefficients(t_T) @ bends_B2
        offset_BP = path.bends_BP - grid.origin_P - bends_B2.to(grid.directions_DP) @ grid.directions_DP
        tensors["bends_distance"] = torch.linalg.vector_norm(offset_BP.double(), dim=1)
    notes = {"scan": name, "anchor_names": list(grid.anchor_names), "settings": node}
    artifact.commit(config, tensors, notes, {}, time.monotonic() - began)
    return False


def make_report(run: Run) -> None:
    """Write tables, figures and the HTML page from what is complete."""
    root = run.study.root
    inputs = {
        f"{kind}/{artifact.name}": artifact.stamp()
        for kind in ("minima", "paths", "ensembles", "scans")
        for artifact in run.study.complete(kind)
    }
    if not inputs:
        raise LowlossError(f"{root} holds nothing to report: make it with `{run.command}`")
    from lowloss import __version__

    made_from = {"lowloss": __version__, "inputs": inputs}
    record = root / "report" / "inputs.json"
    before = json.loads(record.read_text()) if record.exists() else {}
    if before.get("made_from") == made_from and all((root / name).exists() for name in before["written"]):
        progress.say(f"report: up to date, {root / 'report' / 'index.html'}")
        return
    from lowloss.report.page import build_report

    written = [str(file.relative_to(root)) for file in build_report(run.study)]
    files.write_text(record, json.dumps({"made_from": made_from, "written": written}, indent=1))
    progress.say(f"report: {root / 'report' / 'index.html'}")


STAGES: dict[str, Callable[[Run], None]] = {
    "minima": make_minima,
    "path": make_paths,
    "ensemble": make_ensemble,
    "scan": make_scans,
    "report": make_report,
}


def run_stages(run: Run) -> None:
    """Run the configured stages in their order. Raises LowlossError for what a user can mend."""
    run.check()
    progress.say(f"study: {run.study.root}")
    for name, make in STAGES.items():
        if name in run.config["stages"]:
            make(run)
