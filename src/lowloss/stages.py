"""The stages of a study, each declared once.

A stage looks for its artifacts, makes those that are missing, and says so. To add one, write a function of a Run
and name it in STAGES. Everything heavy is imported where it is used: a finished stage answers without torch.
"""

from __future__ import annotations

import contextlib
import csv
import json
import shutil
import time
from collections.abc import Callable
from functools import partial
from itertools import product
from operator import getitem
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from lowloss import files, progress
from lowloss.claims import Patience, take, wait_for
from lowloss.errors import LowlossError, OtherConfigError
from lowloss.run import Run
from lowloss.runs import Artifact, Config, begin_work, make_missing
from lowloss.seeding import derive

if TYPE_CHECKING:
    from torch import Tensor

    from lowloss.ensemble import FGE
    from lowloss.finder import Path as WeightPath


def make_minima(run: Run) -> None:
    """Train the networks from independent seeds, together."""
    count, patience = run.config["minima"]["count"], Patience()
    missing = _missing_minima(run)
    if not missing:
        progress.say(f"minima: all {count} are complete")
    while missing:
        taken = 0
        for group, begun in _minima_groups(run.study.root / "minima", missing, run.config["minima"]["together"]):
            with contextlib.ExitStack() as stack:
                rows = _claim_minima(run, [k for k in group if k in missing], begun, stack)
                if rows:
                    taken += 1
                    _make_minima(run, group if begun else rows)
        if not taken:
            patience.wait(run.minimum(missing[0]).claim)
        missing = _missing_minima(run)


def _missing_minima(run: Run) -> list[int]:
    return [k for k in range(run.config["minima"]["count"]) if not run.minimum(k).matches(run.minima_config)]


def _minima_groups(folder: Path, missing: list[int], together: int | None) -> list[tuple[list[int], bool]]:
    """Rows that train together, and whether they have begun: these groups first, then those of what is left."""
    left, groups = list(missing), []
    for work in sorted(folder.glob(".*.work")):
        rows = [int(part) for part in work.name.split(".")[1].split("-")]
        if set(rows) & set(left):
            left = [k for k in left if k not in rows]
            groups.append((rows, True))
    size = together or max(1, len(left))
    return [*groups, *((left[i : i + size], False) for i in range(0, len(left), size))]


def _claim_minima(run: Run, rows: list[int], begun: bool, stack: contextlib.ExitStack) -> list[int]:
    """The rows for this process to make: those that no other works on; of a group that has begun, all or none."""
    mine = []
    for k in rows:
        claim = take(run.minimum(k).claim)
        if claim is not None:
            stack.enter_context(claim)
            mine.append(k)
        elif begun:
            return []
    return [k for k in mine if not run.minimum(k).complete]


def _make_minima(run: Run, rows: list[int]) -> None:
    from lowloss.training.evaluation import evaluate_points
    from lowloss.training.minima import train_minima

    began = time.monotonic()
    landscape, config = run.landscape, run.minima_config
    work = run.study.root / "minima" / f".{'-'.join(f'{k:04d}' for k in rows)}.work"
    begin_work(work, config)
    result = run.everywhere(
        train_minima,
        epochs=config["minima"]["epochs"],
        batch_size=config["minima"]["batch_size"],
        optimizer=run.build("optimizer", partial=True),
        schedule=run.build("schedule"),
        seed=config["seed"],
        indices=rows,
        folder=work,
    )
    table = run.everywhere(
        evaluate_points,
        partial(getitem, result.theta_KP),
        len(rows),
        folder=work,
        title="minima on both splits",
        chunk=1,
        labels_N=landscape.data.y_test,
    )
    import pandas as pd  # a second, of which training need not wait

    for row, k in enumerate(rows):
        if run.minimum(k).complete:
            continue
        history = pd.DataFrame(
            [[int(entry[0]), entry[1], entry[2 + row]] for entry in result.history],
            columns=["step", "lr", "train_loss"],
        )
        values = {name: float(column[row]) for name, column in table.items() if column.dim() == 1}
        tensors = {name: column[row] for name, column in table.items() if column.dim() > 1}
        seconds = (time.monotonic() - began) / len(rows)
        notes = values | {"steps": int(result.history[-1][0])}
        tensors["theta"] = result.theta_KP[row]
        run.minimum(k).commit(config, tensors, notes, {"metrics.csv": history}, seconds, run.landscape.arithmetic)
    shutil.rmtree(work, ignore_errors=True)


def make_paths(run: Run) -> None:
    """Connect pairs of minima with every finder."""
    fixed = [name for name in run.config["finder"] if not run.explores(name)]
    wanted = [(*pair, finder) for finder in fixed for pair in run.pairs(finder)]
    jobs = [(run.path(*path), run.path_config(path[2])) for path in wanted]
    complete = all(artifact.matches(config) for artifact, config in jobs)
    if fixed and complete:
        progress.say(f"path: all {len(jobs)} are complete")
    make_missing(jobs, lambda i: _make_path(run, *wanted[i]))
    for finder in run.config["finder"]:
        if finder not in fixed:
            from lowloss.explore import explore

            explore(run, finder, partial(_make_path, run, finder=finder))
        elif not (complete and _bounded(run, finder)):
            from lowloss.explore import write_bounds

            write_bounds(run, finder)


def _bounded(run: Run, finder: str) -> bool:
    """Whether the table of bounds has every pair: then what writes it need not be loaded."""
    count, file = run.config["minima"]["count"], run.bounds(finder)
    return file.exists() and len(file.read_text(encoding="utf-8").splitlines()) == 1 + count * (count - 1) // 2


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
    ends = ends_2P[0], ends_2P[1]
    found = run.everywhere(find_path, *ends, run.finders[finder], seed=seed, folder=work, title=title)
    t_T = found.path.grid(config["path"]["points"], config["path"]["between"])
    table = run.everywhere(
        evaluate_points,
        partial(_points_along, found.path, t_T),
        len(t_T),
        folder=work,
        title=f"{title} on both splits",
        labels_N=landscape.data.y_test,
    )
    del table["test_wrong"]  # as many numbers as samples, at every point
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
    columns = {name: column for name, column in table.items() if column.dim() == 1}
    along = pd.DataFrame({"t": t_T, "arc": tensors["arc"], **columns})
    tables = {"metrics.csv": history, "along.csv": along}
    artifact.commit(config, tensors, notes, tables, time.monotonic() - began, run.landscape.arithmetic)


def _points_along(path: WeightPath, t_T: Tensor, index: Tensor) -> Tensor:
    return path.points(t_T[index])


def _path_levels(table: dict[str, Tensor], arc_T: Tensor) -> dict[str, float]:
    """Levels along a path: at its ends (their mean), at its highest point, and the barrier between.

    barrier: the highest loss above the linear interpolation of the end losses along the path's length;
    barrier_above_ends: above the higher end.
    """
    levels: dict[str, float] = {}
    for split, metric in product(("train", "test"), ("loss", "error")):
        column_T = table[f"{split}_{metric}"]
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
    jobs = [(fge, run.minima_config | run.describes("ensemble")), (independent, run.minima_config)]
    if all(artifact.matches(config) for artifact, config in jobs):
        progress.say("ensemble: complete")
        return
    run.points(list(range(count)))
    makers = (_make_fast_ensemble, _make_independent_ensemble)
    make_missing(jobs, lambda i: makers[i](run, *jobs[i]))


def _make_fast_ensemble(run: Run, artifact: Artifact, config: Config) -> None:
    import pandas as pd

    from lowloss.training.ensemble import fast_ensemble

    began, start = time.monotonic(), config["ensemble"]["minimum"]
    start_1P = run.points([start])
    recipe = cast("FGE", run.build("ensemble"))
    work = artifact.begin(config)
    seed = derive(config["seed"], "fge", start)
    found = run.everywhere(fast_ensemble, start_1P[0], recipe, seed=seed, folder=work)
    history = pd.DataFrame(found.history, columns=["step", "lr", "train_loss"]).astype({"step": int})
    tensors, rows = _ensemble_on_test(run, found.theta_MP, "fge")
    single = _ensemble_on_test(run, start_1P, "single")[1]
    notes = {"method": "fge", "minimum": start, "rows": [*single, *rows]}
    tensors["theta"] = found.theta_MP
    artifact.commit(
        config, tensors, notes, {"metrics.csv": history}, time.monotonic() - began, run.landscape.arithmetic
    )


def _make_independent_ensemble(run: Run, artifact: Artifact, config: Config) -> None:
    began, members = time.monotonic(), list(range(run.config["minima"]["count"]))
    tensors, rows = _ensemble_on_test(run, run.points(members), "independent")
    notes = {"method": "independent", "members": members, "rows": rows}
    artifact.commit(config, tensors, notes, {}, time.monotonic() - began, run.landscape.arithmetic)


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
    names = list(run.config["scan"])
    jobs = [_scan(run, name) for name in names]
    if all(artifact.matches(config) for artifact, config in jobs):
        progress.say(f"scan: all {len(jobs)} are complete")
    make_missing(jobs, lambda i: _make_scan(run, names[i], *jobs[i]))


def _scan_minima(node: Config) -> list[int]:
    return [node["minimum"]] if "minimum" in node else [node["start"], node["end"]]


def _scan(run: Run, name: str) -> tuple[Artifact, Config]:
    """A scan's artifact and what determines it."""
    node = run.config["scan"][name]
    artifact = run.study.artifact("scans", "-".join([name, *(f"{k:04d}" for k in _scan_minima(node))]))
    config = run.minima_config | run.describes(f"scan.{name}")
    if "path" in node:
        config |= {key: value for key, value in run.path_config(node["path"]).items() if key not in config}
    return artifact, config


def _make_scan(run: Run, name: str, artifact: Artifact, config: Config) -> None:
    import torch

    from lowloss.training.scan import scan

    began, node = time.monotonic(), run.config["scan"][name]
    minima = _scan_minima(node)
    plane = run.planes[name]
    path = run.load_path(minima[0], minima[1], plane.path) if plane.path else None
    seed = derive(config["seed"], "scan", name)
    try:
        grid = plane.grid(run.points(minima), path, run.landscape.layout, seed)
    except ValueError as error:
        raise LowlossError(f"scan.{name}: {error}") from error
    work = artifact.begin(config)
    table = run.everywhere(scan, grid, folder=work, title=f"scan {name}")
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
    artifact.commit(config, tensors, notes, {}, time.monotonic() - began, run.landscape.arithmetic)


def make_report(run: Run) -> None:
    """Write tables, figures and the HTML page from what is complete."""
    root = run.study.root
    if _report_is_up_to_date(run):
        progress.say(f"report: up to date, {root / 'report' / 'index.html'}")
        _say_comparison(run)
        return
    from lowloss.report.page import build_report

    with wait_for(root / ".report.claim"):
        if not _report_is_up_to_date(run):
            # Looked at before it is made: what is completed meanwhile makes it out of date.
            made_from = _report_inputs(run)
            written = [str(file.relative_to(root)) for file in build_report(run.study, run.config["paper"])]
            record = {"made_from": made_from, "written": written}
            files.write_text(root / "report" / "inputs.json", json.dumps(record, indent=1))
            if hasattr(run.logger, "log_report"):
                run.tell_logger().log_report()
    progress.say(f"report: {root / 'report' / 'index.html'}")
    _say_comparison(run)


def _say_comparison(run: Run) -> None:
    """Our row of a paper's table beside the one that it published, if the configuration has one."""
    file = run.study.root / "report" / "comparison.csv"
    if not run.config["paper"] or not file.exists():
        return
    with file.open(newline="", encoding="utf-8") as lines:
        for name, *values in zip(*csv.reader(lines), strict=True):
            cells = values if name == "finder" else [_rounded(value) for value in values]
            progress.say(f"  {name:<20}" + "  ".join(f"{cell:>30}" for cell in cells))


def _rounded(value: str) -> str:
    return f"{float(value):.4g}" if value else "–"


def _report_inputs(run: Run) -> Config:
    """What a report is made from. Raises LowlossError if there is nothing."""
    inputs = {
        f"{kind}/{artifact.name}": artifact.stamp()
        for kind in ("minima", "paths", "ensembles", "scans")
        for artifact in run.study.complete(kind)
    }
    if not inputs:
        raise LowlossError(f"{run.study.root} holds nothing to report: make it with `{run.command}`")
    from lowloss import __version__

    return {"lowloss": __version__, "paper": run.config["paper"], "inputs": inputs}


def _report_is_up_to_date(run: Run) -> bool:
    root, made_from = run.study.root, _report_inputs(run)
    record = root / "report" / "inputs.json"
    before = json.loads(record.read_text()) if record.exists() else {}
    return before.get("made_from") == made_from and all((root / name).exists() for name in before["written"])


STAGES: dict[str, Callable[[Run], None]] = {
    "minima": make_minima,
    "path": make_paths,
    "ensemble": make_ensemble,
    "scan": make_scans,
    "report": make_report,
}


def run_stages(run: Run) -> float | None:
    """Run the configured stages in their order; returns the objective, where there is one.

    Raises LowlossError for what a user can mend.
    """
    run.check(STAGES)
    wanted = run.config["objective"]
    if wanted is not None:
        from lowloss.report.gather import check_objective

        check_objective(wanted)
    progress.say(f"study: {run.study.root}")
    for name, make in STAGES.items():
        if name in run.config["stages"]:
            with run.making(name):
                try:
                    make(run)
                except OtherConfigError:
                    # A value that makes no sense also differs from what was made: tell that of it first.
                    run.check_settings()
                    raise
    if wanted is None:
        return None
    from lowloss.report.gather import objective

    value = objective(run.study.root, wanted)
    if hasattr(run.logger, "log_objective"):
        with run.making("objective"):
            run.tell_logger().log_objective(value)
    return value


def run_grouped(run: Run, first: bool) -> float | None:
    """Run the stages in a group of processes, one a device: the first one leads, the others do their part."""
    from lowloss.training import devices

    devices.join()
    run.several = True
    value = None
    if first:
        value = run_stages(run)
        run.dismiss()
    else:
        run.serve()
    devices.leave()
    return value
