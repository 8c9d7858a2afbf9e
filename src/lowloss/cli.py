"""The command line; with what it tells (`telling`) the only module that knows Hydra."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import fields
from functools import partial
from pathlib import Path
from typing import Any

from lowloss import files, group, imports, progress
from lowloss.arguments import normalised, quoted
from lowloss.checking import Name, check_arguments, check_value
from lowloss.conf import config_dirs, config_flags, config_folder, group_options, option, read_families
from lowloss.declared import declared
from lowloss.errors import LowlossError
from lowloss.launch import SWEPT, VALUE, study_name
from lowloss.overview import help_text
from lowloss.settings import MADE, SEVERAL, Training, check_data, check_optimizer_settings, check_settings, check_study
from lowloss.subcommands import run_other
from lowloss.telling import causes_of, explain, tell

Config = dict[str, Any]


def register_families() -> None:
    """Make options of the group `experiment` of the rows of every family, also of a user's --config-dir, and of the
    family's name the sweep over its rows. Where a YAML file has the name of a row, Hydra takes the file."""
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    folders = [config_folder(), *config_dirs()]
    store = ConfigStore.instance().store
    for family, rows in (item for folder in folders for item in read_families(folder).items()):
        for row in rows:
            given = {key: cell for key, cell in row.items() if cell and key not in ("experiment", "base")}
            groups = [key for key in given if any((folder / key).is_dir() for folder in folders)]
            chosen = OmegaConf.from_dotlist([f"{key}={given.pop(key)}" for key in groups])
            defaults = [row["base"], *({"override /" + str(key): option} for key, option in chosen.items())]
            values = OmegaConf.from_dotlist([f"{key}={cell}" for key, cell in given.items()])
            node = {"defaults": defaults, "name": row["experiment"], **values}
            store(row["experiment"], node, "experiment", "_global_")
        # A group of its own, in the experiment's place, so that what comes after it wins over a row as well.
        swept = {"experiment@_global_": ",".join(row["experiment"] for row in rows)}
        sweep = {"mode": "MULTIRUN", "sweeper": {"params": swept}}
        node = {"defaults": ["_self_", {"/experiment@_global_": None}], "name": family, "hydra": sweep}
        store(family, node, "experiment", "_global_")


def run_config(config: Any) -> float | None:
    """Run the stages of a composed configuration; called by Hydra once a job. Returns its objective, if it has one."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    try:
        _name_own(config, hydra.runtime.choices)
        if sweep:
            check_value("study", config.get("study"), Name | int)
            config.study = study_name(config, hydra.sweeper, hydra.overrides.task, hydra.job.num)
        elif any(re.match("hydra/launcher=(?!in_turn$|basic$)", override) for override in hydra.overrides.hydra):
            raise LowlossError("without -m this process does the work itself, not hydra/launcher: lowloss -m …")
        value = _run_job(config, hydra.overrides)
    except Exception as error:
        _hold_back(error)
        # Told here, since Hydra would add lines of its own; the other jobs of a sweep still run.
        told = tell(error)
        why = " ".join(explain(error).split()) or "see above"
        progress.end_record(why, told.splitlines())
        ended_well.append(False)
        failed.append((str(config.get("study")), why))
        if not sweep or group.place() is not None:
            sys.exit(1)
        return None
    except BaseException:
        progress.end_record("interrupted; the same command continues")
        raise
    progress.end_record(None)
    ended_well.append(True)
    return value


def _name_own(config: Any, choices: Any) -> None:
    """Have the default name tell a network or data by what makes them, where that is not what the option names."""
    from omegaconf import OmegaConf

    plain: Any = OmegaConf.to_container(config)
    for kind in ("data", "model"):
        node, own = plain.get(kind), option(kind, str(choices.get(kind))).get("_target_")
        if own and isinstance(node, dict) and node.get("_target_", own) != own and isinstance(plain["name"], str):
            called = str(node["_target_"]).rpartition(".")[2]
            plain["name"] = plain["name"].replace(f"${{hydra:runtime.choices.{kind}}}", called)
            config.name = plain["name"]


def job_bench(config: Any, overrides: Sequence[str]) -> Any:
    """The bench of a job of a composed configuration. Raises LowlossError for settings that are of no use."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    from lowloss.jobs.bench import Bench
    from lowloss.jobs.pipeline import stages
    from lowloss.study import Study

    own = OmegaConf.masked_copy(config, [key for key in config if key != "hydra"])
    plain: Any = OmegaConf.to_container(own, resolve=True, throw_on_missing=True)
    if "files" in plain["minima"]:
        # What an experiment says of how its minima are trained is of no use to those that are.
        asked = {override.lstrip("+").partition("=")[0] for override in overrides}
        ours = {f"minima.{field.name}" for field in fields(Training)} - asked
        plain["minima"] = {key: value for key, value in plain["minima"].items() if f"minima.{key}" not in ours}
    check_settings(plain, group_options("finder"))
    check_study(str(plain["study"]), [stage.kind for stage in stages().values() if stage.kind is not None])
    for key in ("model", *MADE):
        _check_node(key, plain[key], declared)
    check_optimizer_settings(plain["optimizer"], str(HydraConfig.get().runtime.choices.get("optimizer")))
    kept = [o for o in overrides if not o.startswith(("stages=", "study="))]
    chosen = [o for o in overrides if o.startswith("stages=")]
    command = shlex.join(["lowloss", *kept, f"study={quoted(plain['study'])}"])
    # A merge has stages of its own, whichever the command line chose then.
    whole = shlex.join(["lowloss", *kept, f"study={quoted(plain['study'])}", *chosen[:-1]])
    root = Path(plain["outputs"]) / str(plain["study"])
    if not root.exists():
        check_data(plain)
    return Bench(Study(root), plain, partial(_build, plain), command, stages(), whole)


def _run_job(config: Any, overrides: Any) -> float | None:
    from lowloss.jobs.pipeline import dry_run, run_grouped, run_stages

    bench = job_bench(config, overrides.task)
    trainer = bench.config["trainer"]
    place, count = group.place(), device_count(trainer)
    if count > 1 and place is None and DRY not in os.environ:
        return _run_group(overrides, bench.config["study"], count)
    if place is not None and place[1] != count:
        raise LowlossError(
            f"trainer.devices={count}, but there are {place[1]} processes: set trainer=ddp trainer.devices={place[1]}"
        )
    progress.shown = place is None or place[0] == 0
    if DRY in os.environ:
        progress.shown = True
        dry_run(bench)
        return None
    value = run_stages(bench) if count == 1 else run_grouped(bench, first=place == (0, count))
    if not progress.shown:
        return None
    profiler = trainer.get("profiler")
    if isinstance(profiler, dict) and profiler.get("dirpath") and Path(profiler["dirpath"]).is_dir():
        progress.say(f"profile: {profiler['dirpath']}")
    if VALUE in os.environ:  # a launcher waits for it in another process
        files.write_text(Path(os.environ[VALUE]), json.dumps(value))
    return value


def device_count(trainer: Config) -> int:
    """The number of devices of a trainer's settings. Raises LowlossError if they leave it open, or do not split."""
    devices: Any = trainer.get("devices")
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 0
    if not 1 <= count <= max(8, os.cpu_count() or 1):  # no machine has more devices than processors
        raise LowlossError(f"trainer.devices must be a number of devices or a list of their numbers, got {devices!r}")
    if count > 1 and trainer.get("strategy") != "ddp":
        raise LowlossError(f"trainer.devices={devices} needs trainer=ddp, which starts a process for each device")
    return count


def _run_group(overrides: Any, study: str, count: int) -> float | None:
    """Run a job as a process a device; returns its objective, if it has one."""
    with tempfile.TemporaryDirectory() as folder:
        file = Path(os.environ.setdefault(VALUE, str(Path(folder) / "value")))
        arguments = (*config_flags(), *overrides.task, f"study={quoted(study)}")
        try:
            group.run_group(arguments, count)
        finally:
            if file.is_relative_to(folder):
                del os.environ[VALUE]
        value: float | None = json.loads(file.read_text()) if file.exists() else None
    return value


def _hold_back(error: Exception) -> None:
    """In a group, leave time to be stopped to a process that fails because another one did."""
    place = group.place()
    if place is not None and (place[0] > 0 or not isinstance(error, (LowlossError, OSError))):
        time.sleep(group.GRACE)


ended_well: list[bool] = []
"""Whether each job of this command that has ended did so without a failure; the launchers add theirs."""

failed: list[tuple[str, str]] = []
"""Study and reason of the jobs that failed in this process."""


def _build(config: Config, key: str, partial: bool = False) -> Any:
    """The object of a configuration node, named by its key so that messages can name it too."""
    from hydra.errors import InstantiationException
    from hydra.utils import get_object, instantiate

    from lowloss.study import lookup

    node = lookup(config, key)
    _check_node(key, node, get_object)
    try:
        made = instantiate(node, _partial_=partial, _convert_="all")
    except InstantiationException as error:
        causes = list(causes_of(error))
        ours = [cause for cause in causes if isinstance(cause, LowlossError)]
        raise LowlossError(f"{key}: {(ours or causes[-1:])[0]}") from error
    wanted = MADE.get(key.split(".")[0])
    if wanted is not None and not partial and not isinstance(made, get_object(wanted)):
        raise LowlossError(f"{key} must make {wanted}, got {type(made).__name__}: set {key}._target_")
    return made


def _check_node(key: str, node: Any, takes: Callable[[str], Any]) -> None:
    """Raise LowlossError for a key that one of our own constructors or torch's optimizers does not know, or a value
    that is not what they ask for; within the node as well.

    takes: what is of a dotted name, or its arguments; an error of its is for whoever builds it.
    """
    target = node.get("_target_")
    if str(target).startswith(("lowloss.", "torch.optim.", "lightning.")):
        with contextlib.suppress(ImportError, AttributeError, NameError, ValueError):
            check_arguments(key, takes(target), node)
    for name, value in node.items():
        if isinstance(value, dict) and "_target_" in value:
            _check_node(f"{key}.{name}", value, takes)


def main() -> None:
    """Entry point: run the command line, and turn errors that a user can mend into one line and status 1."""
    # Hydra would print its own errors over several lines; raised, they are told in one.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Before torch is loaded: waiting threads would keep the processors from other workers on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    imports.light = True
    for asked in STOP:
        signal.signal(asked, _stop)
    group.follow_parent()
    try:
        if run_other(sys.argv[1:]):
            return
        if {"--help", "-h"} & {*sys.argv}:
            signal.signal(signal.SIGPIPE, signal.SIG_DFL)
            print(help_text([config_folder(), *config_dirs()]))
            return
    except (LowlossError, OSError) as error:
        tell(error)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    # As for `python -m`, so that a model in the current folder is found.
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    if DRY_RUN in sys.argv:
        if any(argument.startswith("hydra/launcher=") for argument in sys.argv):
            tell(LowlossError(f"{DRY_RUN} tells here what jobs would make: leave hydra/launcher out"))
            sys.exit(1)
        os.environ[DRY] = "1"
        sys.argv[1:] = [argument for argument in sys.argv[1:] if argument != DRY_RUN]
    # What it says of a failed trial has been told.
    logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)
    app = hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")(run_config)
    try:
        sys.argv[1:] = normalised(sys.argv[1:], lambda override: bool(_parsed(override)))
        os.environ[SWEPT] = os.environ.get(SWEPT) or " ".join(_swept(sys.argv[1:]))
        register_families()
        app()
    except (HydraException, OmegaConfBaseException, LowlossError) as error:
        told = "" if isinstance(error, LowlossError) else _explain_group()
        tell(LowlossError(told) if told else error)
        sys.exit(1)
    except (TypeError, ValueError, RecursionError) as error:
        known = re.search("flag can only|Only one of|Exceeds|recursion", str(error))
        if told := str(error) if known else _explain_group():
            tell(LowlossError(told))
            sys.exit(1)
        # Optuna's, when a search has ended and there is no best trial.
        if "No trials are completed" not in str(error):
            raise
        if all(ended_well):
            print("lowloss: no trial gave a value to minimise: set objective, and wait for the jobs", file=sys.stderr)
            sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning turns a keyboard interrupt into an exit of its own.
        keyboard = any(isinstance(cause, KeyboardInterrupt) for cause in causes_of(end))
        if not keyboard and getattr(end, "code", 0) != 143:
            raise
        if group.PARENT not in os.environ:  # else it is told by the process that started this one
            print("lowloss: interrupted; the same command continues", file=sys.stderr)
        sys.exit(130 if keyboard else 143)
    if not all(ended_well):
        if failed and len(ended_well) > 1:
            from lowloss.launch import aligned

            print("\n".join(aligned([("study", "why"), *failed])), file=sys.stderr)
        count = f"{ended_well.count(False)} of {len(ended_well)} jobs failed"
        print(f"lowloss: {count}; the same command runs them again", file=sys.stderr)
        sys.exit(1)


DRY_RUN, DRY = "--dry-run", "LOWLOSS_DRY_RUN"
"""The flag, and the environment variable that keeps it for the processes of a launcher."""

STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What asks to stop; a cluster tells of preemption and of the time limit by a signal of the user's."""


def _stop(*_: object) -> None:
    # Once: a second signal must not cut short what the first one has begun.
    for asked in STOP:
        signal.signal(asked, signal.SIG_IGN)
    sys.exit(143)


def _explain_group() -> str:
    """What is wrong with an override of this command line that gives a group no name; "" if none does."""
    for argument in sys.argv[1:]:
        override = _parsed(argument)
        value = None if override is None else override.value()
        names = value if isinstance(value, list) else [value]
        if override is None or override.is_delete():
            continue
        key = override.key_or_group
        one = key not in SEVERAL and isinstance(value, list)
        if all(isinstance(name, str) for name in names) and not one:
            continue
        if not key:
            return f"{argument} names no key: settings are KEY=VALUE"
        if options := group_options(key):
            what = "one option" if one else "an option"
            return f"{argument}, but {key} takes the name of {what}, of {', '.join(options)}; ~{key} leaves it out"
        if (config_folder() / key).is_dir():
            return f"{argument}, but {key} has nothing to choose: leave it out"
    return ""


def _parsed(argument: str) -> Any:
    """An override as Hydra reads it; None for a flag, or what Hydra will complain of."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    try:
        return OverridesParser.create().parse_overrides([argument])[0]
    except (HydraException, RecursionError, ValueError):
        return None


def _swept(arguments: list[str]) -> list[str]:
    """The keys of the overrides that have several values. Raises LowlossError for a range of none, or of millions."""
    from hydra.core.override_parser.types import RangeSweep

    keys = []
    for override in map(_parsed, arguments):
        if override is not None and override.is_sweep_override():
            keys.append(override.key_or_group)
            r = override.value()
            count = ((r.stop or 0) - (r.start or 0)) / (r.step or 1) if isinstance(r, RangeSweep) else 1
            values = [str(value) for value in override.value().list] if override.is_choice_sweep() else []
            if twice := [value for value in values if values.count(value) > 1]:
                raise LowlossError(f"{override.input_line} has {twice[0]} twice, which is one study: name it once")
            if not 0 < count <= 100_000:
                raise LowlossError(f"{override.input_line} has {max(0, count):.0f} values: 1 … 100000 can be swept")
    return keys
