"""The stages of a study, each declared once.

A stage looks for its artifacts, makes those that are missing, and says so. To add one, write a function of a Run
and name it in STAGES. Everything heavy is imported where it is used: a finished stage answers without torch.
"""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lowloss import files, progress
from lowloss.errors import LowlossError
from lowloss.run import Run
from lowloss.runs import begin_work
from lowloss.seeding import derive

if TYPE_CHECKING:
    from torch import Tensor

    from lowloss.ensemble import FGE


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
    from lowloss.report import build_report

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
    run.check(STAGES)
    progress.say(f"study: {run.study.root}")
    for name, make in STAGES.items():
        if name in run.config["stages"]:
            make(run)
