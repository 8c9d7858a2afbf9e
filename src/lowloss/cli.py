"""The command line; the only module that knows Hydra."""

from __future__ import annotations

import inspect
import json
import logging
import os
import re
import shlex
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints

from lowloss import files, group, imports
from lowloss.errors import LowlossError

Config = dict[str, Any]


def config_folder() -> Path:
    """conf/ of the checkout, or its copy inside an installed package."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def run_config(config: Any) -> float | None:
    """Run the stages of a composed configuration; called by Hydra once a job. Returns its objective, if it has one."""
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode

    hydra = HydraConfig.get()
    sweep = hydra.mode == RunMode.MULTIRUN
    try:
        if sweep:
            config.study = study_name(config, hydra.sweeper, hydra.overrides.task, hydra.job.num)
        elif any(re.match("hydra/launcher=(?!basic$)", override) for override in hydra.overrides.hydra):
            raise LowlossError("without -m this process does the work itself, not hydra/launcher: lowloss -m …")
        value = _run_job(config, hydra.overrides)
    except Exception as error:
        _hold_back(error)
        # Told here, since Hydra would add lines of its own; the other jobs of a sweep still run.
        _tell(error)
        ended_well.append(False)
        failed.append((str(config.get("study")), " ".join(_explain(error).split()) or "see above"))
        if not sweep or group.place() is not None:
            sys.exit(1)
        return None
    ended_well.append(True)
    return value


def _run_job(config: Any, overrides: Any) -> float | None:
    from omegaconf import OmegaConf

    from lowloss import progress
    from lowloss.launch import VALUE
    from lowloss.run import Run
    from lowloss.runs import Study
    from lowloss.stages import run_grouped, run_stages

    plain: Any = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    root = Path(plain["outputs"]) / str(plain["study"])
    place, count = group.place(), device_count(plain["trainer"])
    if count > 1 and place is None:
        return _run_group(overrides, plain["study"], count)
    if place is not None and place[1] != count:
        raise LowlossError(
            f"trainer.devices={count}, but there are {place[1]} processes: set trainer=ddp trainer.devices={place[1]}"
        )
    progress.shown = place is None or place[0] == 0
    kept = [o for o in overrides.task if not o.startswith(("stages=", "study="))]
    command = shlex.join(["lowloss", *kept, f"study={quoted(plain['study'])}"])
    run = Run(Study(root), plain, _Builder(plain), command)
    value = run_stages(run) if count == 1 else run_grouped(run, first=place == (0, count))
    if not progress.shown:
        return None
    if VALUE in os.environ:  # a launcher waits for it in another process
        files.write_text(Path(os.environ[VALUE]), json.dumps(value))
    return value


def device_count(trainer: Config) -> int:
    """The number of devices of a trainer's settings. Raises LowlossError if they leave it open, or do not split."""
    devices = trainer["devices"]
    count = len(devices) if isinstance(devices, list) else int(devices) if str(devices).isdecimal() else 0
    if count < 1:
        raise LowlossError(f"trainer.devices must be a number of devices or a list of their numbers, got {devices!r}")
    if count > 1 and trainer.get("strategy") != "ddp":
        raise LowlossError(f"trainer.devices={devices} needs trainer=ddp, which starts a process for each device")
    return count


def _run_group(overrides: Any, study: str, count: int) -> float | None:
    """Run a job as a process a device; returns its objective, if it has one."""
    from lowloss.launch import VALUE

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


def config_flags() -> list[str]:
    """The flags of this command line that say where configurations lie, for a command made of it."""
    flags = [part for part in sys.argv[1:] if part.startswith("--config-dir=")]
    for flag in {"--config-dir", "-cd"} & {*sys.argv}:
        flags += [flag, sys.argv[sys.argv.index(flag) + 1]]
    return flags


def _hold_back(error: Exception) -> None:
    """In a group, leave time to be stopped to a process that fails because another one did."""
    place = group.place()
    if place is not None and (place[0] > 0 or not isinstance(error, (LowlossError, OSError))):
        time.sleep(group.GRACE)


def study_name(config: Any, sweeper: Any, overrides: Sequence[str], number: int) -> str:
    """The study of a job of a sweep, in a folder named by what is swept; an experiment has a name already."""
    swept = {key.lstrip("+~") for key in (*os.environ.get(SWEPT, "").split(), *(sweeper.get("params") or ()))}
    chosen = {o: key for o in overrides if (key := o.split("=")[0].lstrip("+~")) in swept}
    named = [o.replace("/", "_") for o, key in chosen.items() if key.split("@")[0] != "experiment"]
    if chosen and not named:
        return str(config.study)
    return f"{config.study}/{','.join(sorted(named)) or number}"


def quoted(text: Any) -> str:
    """A text as Hydra's grammar reads it back, whatever is in it."""
    plain = re.fullmatch(r"[\w./-]+", str(text))
    return str(text) if plain else "'" + str(text).replace("\\", "\\\\").replace("'", "\\'") + "'"


SWEPT = "LOWLOSS_SWEPT"
"""Environment variable with the keys that a sweep varies; a launcher's processes inherit it."""

ended_well: list[bool] = []
"""Whether each job of this command that has ended did so without a failure; the launchers add theirs."""

failed: list[tuple[str, str]] = []
"""Study and reason of the jobs that failed in this process."""


class _Builder:
    """Builds the object of a configuration node, named by its key so that messages can name it too."""

    def __init__(self, config: dict[str, Any]) -> None:
        self.config = config

    def __call__(self, key: str, partial: bool = False) -> Any:
        from hydra.errors import InstantiationException
        from hydra.utils import instantiate

        from lowloss.runs import lookup

        node = lookup(self.config, key)
        _check_types(key, node)
        try:
            return instantiate(node, _partial_=partial, _convert_="all")
        except InstantiationException as error:
            causes = list(_causes(error))
            ours = [cause for cause in causes if isinstance(cause, LowlossError)]
            raise LowlossError(f"{key}: {(ours or causes[-1:])[0]}") from error


def _check_types(key: str, node: dict[str, Any]) -> None:
    """Raise LowlossError for a key that our own constructors or torch's optimizers do not know, or a value that is no
    number, flag or text where they ask for one."""
    from hydra.utils import get_object

    if not str(node.get("_target_")).startswith(("lowloss.", "torch.optim.")):
        return
    try:
        target = get_object(node["_target_"])
    except (ImportError, AttributeError, ValueError):  # told by whoever builds it
        return
    known = inspect.signature(target).parameters
    given = [name for name in node if not name.startswith("_")]
    unknown = [name for name in given if name not in known]
    if unknown and all(parameter.kind is not parameter.VAR_KEYWORD for parameter in known.values()):
        raise LowlossError(f"{key} has no {', '.join(unknown)}; it has {', '.join(known) or 'no keys'}")
    hints = get_type_hints(target.__init__ if isinstance(target, type) else target)  # type: ignore[misc]
    for name, value in node.items():
        hint = hints.get(name)
        kinds = set(get_args(hint)) if get_origin(hint) in (Union, UnionType) else {hint}
        # A learning rate may be a tensor, which no configuration holds.
        kinds = {kind for kind in kinds if getattr(kind, "__name__", "") != "Tensor"}
        if kinds and kinds <= {int, float, bool, str, type(None)}:
            fitting = kinds | {int} if float in kinds else kinds
            if type(value) not in fitting:
                names = " or ".join(sorted(getattr(kind, "__name__", "") for kind in kinds)).replace("NoneType", "null")
                raise LowlossError(f"{key}.{name} must be {names}, got {value!r}")


def main() -> None:
    """Entry point: run the command line, and turn errors that a user can mend into one line and status 1."""
    # Hydra would print its own errors over several lines; raised, they are told in one.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    # Before torch is loaded: waiting threads would keep the processors from other workers on the machine.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    os.environ.setdefault(SWEPT, " ".join(_swept(sys.argv[1:])))
    imports.light = True
    # What it says of a failed trial has been told.
    logging.getLogger("hydra_plugins.hydra_optuna_sweeper").setLevel(logging.CRITICAL)
    for asked in STOP:
        signal.signal(asked, _stop)
    group.follow_parent()
    if sys.argv[1:2] == ["compare"]:
        _compare(sys.argv[2:])
        return
    app = hydra.main(config_path=str(config_folder()), config_name="config", version_base="1.3")(run_config)
    try:
        app()
    except (HydraException, OmegaConfBaseException, LowlossError) as error:
        _tell(error)
        sys.exit(1)
    except ValueError as error:
        # Optuna's, when a search has ended and there is no best trial.
        if "No trials are completed" not in str(error):
            raise
        if all(ended_well):
            print("lowloss: no trial gave a value to minimise: set objective, and wait for the jobs", file=sys.stderr)
            sys.exit(1)
    except (KeyboardInterrupt, SystemExit) as end:
        # Lightning turns a keyboard interrupt into an exit of its own.
        keyboard = any(isinstance(cause, KeyboardInterrupt) for cause in _causes(end))
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


STOP = (signal.SIGTERM, signal.SIGUSR1, signal.SIGUSR2)
"""What asks to stop; a cluster tells of preemption and of the time limit by a signal of the user's."""


def _stop(*_: object) -> None:
    # Once: a second signal must not cut short what the first one has begun.
    for asked in STOP:
        signal.signal(asked, signal.SIG_IGN)
    sys.exit(143)


def _compare(arguments: list[str]) -> None:
    """`lowloss compare FOLDER ... [--to FOLDER]`."""
    import argparse

    from lowloss import progress
    from lowloss.report.compare import compare

    parser = argparse.ArgumentParser(
        "lowloss compare", description="Gather studies into one table (CSV) and one HTML page that needs no network."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a study, or a folder that holds some")
    parser.add_argument("--to", metavar="FOLDER", help="where to write; by default `compare` beside them")
    given = parser.parse_args(arguments)
    progress.shown = True
    try:
        if "" in (*given.folders, given.to):  # most often a variable of the shell that is not set
            raise LowlossError("a folder's name is empty: name the folder of a study or of a sweep")
        folders, to = [Path(folder) for folder in given.folders], Path(given.to) if given.to else None
        page, damaged = compare(folders, {group: _options(group) for group in ("model", "data")}, to)
    except (LowlossError, OSError) as error:
        _tell(error)
        sys.exit(1)
    for line in damaged:
        progress.say(f"left out: {line}")
    progress.say(f"compare: {page}")


def _options(group: str) -> dict[str, dict[str, Any]]:
    """The options of a configuration group by their names."""
    import yaml

    found = sorted((config_folder() / group).glob("*.yaml"))
    return {file.stem: yaml.safe_load(file.read_text(encoding="utf-8")) for file in found}


def _swept(arguments: list[str]) -> list[str]:
    """The keys of the overrides that have several values."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    keys = []
    for argument in arguments:
        try:
            (override,) = OverridesParser.create().parse_overrides([argument])
        except HydraException:  # a flag, or what Hydra will complain of
            continue
        if override.is_sweep_override():
            keys.append(override.key_or_group)
    return keys


def _tell(error: Exception) -> None:
    """Print an error: one line if a user can mend it, else with its traceback, since it is ours to mend."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if isinstance(error, group.ToldError):
        return
    if isinstance(error, (LowlossError, OSError, HydraException, OmegaConfBaseException)):
        print(f"lowloss: {' '.join(_explain(error).split())}", file=sys.stderr)
    elif group.TRACE in os.environ and (group.place() or (0,))[0] == 0:
        Path(os.environ[group.TRACE]).write_text("".join(traceback.format_exception(error)), encoding="utf-8")
    else:
        traceback.print_exception(error)


def _explain(error: BaseException) -> str:
    """The message, with the valid choices where Hydra leaves them out."""
    from hydra.errors import MissingConfigException
    from omegaconf.errors import MissingMandatoryValue

    text = str(error)
    if isinstance(error, OSError) and error.errno in files.REMEDIES:
        return f"{text}: {files.REMEDIES[error.errno]}"
    if isinstance(error, MissingMandatoryValue):
        return f"{error.full_key} must be set: {error.full_key}=VALUE"
    if isinstance(error, MissingConfigException) and error.missing_cfg_file:
        group = config_folder() / Path(error.missing_cfg_file).parent
        options = sorted(file.stem for file in group.glob("*.yaml"))
        return f"there is no {error.missing_cfg_file}; {group.name} can be {', '.join(options)}"
    for cause in _causes(error):
        parent = getattr(cause, "parent_node", None)
        if parent is not None and hasattr(parent, "keys"):
            return f"{text.splitlines()[0]} (the keys there are {', '.join(map(str, parent.keys()))})"
    return text


def _causes(error: BaseException) -> Iterator[BaseException]:
    """The error and what led to it, the outermost first."""
    cause: BaseException | None = error
    while cause is not None:
        yield cause
        cause = cause.__cause__ or cause.__context__
