"""The stages, found in the files of this package, and run in their order."""

import contextlib
import re
from functools import cache, partial
from importlib import import_module
from pkgutil import iter_modules
from typing import Any

from lowloss import files, jobs, progress
from lowloss.errors import LowlossError, OtherConfigError
from lowloss.jobs.base import Bench, Stage
from lowloss.jobs.runner import check_needs, tidy


@cache
def stages() -> dict[str, Stage]:
    """Every stage by its word, each after those that it needs; what needs all of them is the last."""
    found = [import_module(f"{jobs.__name__}.{module.name}") for module in iter_modules(jobs.__path__)]
    left = {module.STAGE.name: module.STAGE for module in found if hasattr(module, "STAGE")}
    ordered: dict[str, Stage] = {}
    while left:
        # What has no artifacts of its own tells of all others'.
        ready = [name for name, stage in left.items() if not {*stage.after} - {*ordered}]
        ready = [name for name in ready if left[name].kind is not None] or ready
        assert ready, f"the stages {', '.join(left)} need one another"
        name = min(ready)
        ordered[name] = left.pop(name)
    return ordered


OBJECTIVES = {"(train|test)_": "minima", r"(?!min_|saddle_|barrier_)\w+_test_": "ensemble"}
"""How the names of objectives begin that come from these stages; others come from paths."""


class ObjectiveStage(Stage):
    """What comes after the stages: a logger is told of the value that a sweeper minimises."""

    name = "objective"


def _check(bench: Bench) -> None:
    """Raise LowlossError for what can be known to fail before anything is made."""
    bench.check()
    _check_objective(bench)
    coming = [stage.name for stage in bench.wanted]
    for stage in bench.wanted:
        for job in stage.jobs(bench):
            with contextlib.suppress(OtherConfigError):  # told once values that make no sense have been
                if any(needed.stage not in coming for needed in job.needs()) and not job.complete:
                    check_needs(job, coming)


def _check_objective(bench: Bench) -> None:
    if (wanted := bench.config["objective"]) is None:
        return
    from lowloss.report.gather import check_objective

    check_objective(wanted)
    source = next((stage for start, stage in OBJECTIVES.items() if re.match(start, wanted)), "path")
    if source not in bench.config["stages"] and not bench.study.complete(str(bench.stages[source].kind)):
        raise LowlossError(f"objective={wanted} comes from {source}, which stages leaves out: add it there")


def run_stages(bench: Bench) -> float | None:
    """Run the configured stages in their order; returns the objective, where there is one.

    Raises LowlossError for what a user can mend.
    """
    _check(bench)
    wanted = bench.config["objective"]
    progress.record = progress.Record(bench.study.root, partial(_plan, bench))
    progress.say(f"study: {bench.study.root}")
    for stage in bench.wanted:
        if stage.kind is None:  # it would tell that all is up to date
            _check_results(bench)
        with bench.making(stage):
            try:
                stage.run(bench)
            except OtherConfigError:
                # A value that makes no sense also differs from what was made: tell that of it first.
                bench.check_settings()
                raise
            finally:
                if stage.kind is not None:
                    with contextlib.suppress(OSError):  # what was refused leaves no empty folder
                        (bench.study.root / stage.kind).rmdir()
            if stage.kind is not None:
                tidy(bench.study.root / stage.kind)
    if all(stage.kind is not None for stage in bench.wanted):
        _check_results(bench)
    if wanted is None:
        return None
    from lowloss.report.gather import objective

    value = objective(bench.study.root, wanted)
    if hasattr(bench.logger, "log_objective"):
        with bench.making(ObjectiveStage()):
            bench.tell_logger().log_objective(value)
    return value


def _plan(bench: Bench) -> dict[str, Any]:
    """What the configured stages make for certain: by stage the kind and the names of its artifacts."""
    return {stage.name: [stage.kind, [job.name for job in stage.jobs(bench)]] for stage in bench.wanted}


READ = 1 << 28
"""Bytes of results that a command reads whole once all are made; those of larger studies are for `lowloss verify`."""


def _check_results(bench: Bench) -> None:
    """Raise LowlossError if a result of the configured stages, perhaps not needed now, is damaged."""
    artifacts = [one for stage in bench.wanted if stage.kind is not None for one in bench.study.complete(stage.kind)]
    held = [file for artifact in artifacts for file in artifact.folder.rglob("*") if file.is_file()]
    if sum(file.stat().st_size for file in held) <= READ:
        lines = [line for artifact in artifacts for line in artifact.damages()]
        if lines:
            more = f" ({len(lines) - 1} more by `lowloss verify {bench.study.root}`)" if lines[1:] else ""
            raise LowlossError(f"{lines[0]}{more}")


def dry_run(bench: Bench) -> None:
    """Tell what the configured stages would make, and at which cost, and make nothing. The time is that of as many
    gradients and evaluations as are timed here.

    Raises LowlossError for what a run would refuse before it starts, but for a trainer that this machine lacks.
    """
    from lowloss.training.timing import Timing

    bench.dry = True
    _check(bench)
    parameters = bench.landscape.dim
    progress.say(f"study: {bench.study.root}, {parameters:,} parameters, nothing is made")
    timing, total = Timing(bench.landscape, bench.config["trainer"].get("accelerator") != "cpu"), 0.0
    for stage in bench.wanted:
        jobs = stage.jobs(bench)
        missing = [job for job in jobs if not job.complete]
        told = [f"{len(missing)} to make, {len(jobs) - len(missing)} complete"] if jobs else ["from what is complete"]
        costs = [job.cost() for job in missing]
        known = [cost for cost in costs if cost is not None]
        if known:
            gradients, evaluations = (sum(getattr(cost, of) for cost in known) for of in ("gradients", "evaluations"))
            bound, kept = max(cost.bound for cost in known), sum(cost.size(parameters) for cost in known)
            taken = f"{gradients:,} gradient evaluations, " if gradients else ""
            told += [f"{bound} {taken}{evaluations:,} points exactly evaluated".strip()]
            seconds = sum(cost.gradients * timing.gradient(cost.samples) for cost in known if cost.gradients)
            seconds += evaluations * timing.evaluation
            total += seconds
            told += [f"about {progress.duration(seconds)}", f"{files.size(kept)} kept"]
        if len(known) < len(costs):
            told += [f"{len(costs) - len(known)} of unknown cost"]
        progress.say(f"{stage.name}: {'; '.join(part for part in told if part)}")
    how = ", by the plain loop, where the graph engine may be many times faster" if timing.on_gpu else ""
    told = [f"about {progress.duration(total)} on {timing.machine}{how}", "roughly, without start and report"]
    progress.say(f"time: {'; '.join(told)}")


def run_grouped(bench: Bench, first: bool) -> float | None:
    """Run the stages in a group of processes, one a device: the first one leads, the others do their part."""
    from lowloss.training import devices

    devices.join()
    bench.several = True
    value = None
    if first:
        value = run_stages(bench)
        devices.announce(None)
    else:
        bench.serve()
    devices.leave()
    return value
