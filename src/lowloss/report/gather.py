"""Many studies as tables: read without torch, from the notes and tables of their artifacts.

A study may be a stranger's: no file is opened but a regular one that is not too large, and whatever cannot be read is
left out and told, beside all that can.
"""

from __future__ import annotations

import contextlib
import csv
import hashlib
import io
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, reduce
from glob import glob
from itertools import islice
from pathlib import Path
from stat import S_ISLNK, S_ISREG
from typing import Any, TypeVar

import numpy as np
import pandas as pd
import yaml

from lowloss import files, processes, progress, status
from lowloss.errors import LowlossError
from lowloss.report import tables
from lowloss.study import DIGESTS, MACHINE, RESULT, Artifact, Config, Study, flat, merge

Options = Mapping[str, Mapping[str, Config]]
"""For `model`, `data` and `landscape`: the options of the group by name, to call a node by its option's name."""

T = TypeVar("T")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)

MOST = {"config.yaml": 1 << 18, "along.csv": 1 << 24, DIGESTS: 1 << 24, RESULT: 1 << 24}
"""Bytes that are read of a file; of results, those of the notes."""

PLANE = 31
"""Points along an axis of a plane that are compared; of finer planes every second, third … is."""

LINKS = 20
"""Configurations of a study that a page links to."""

FEW = 100
"""Studies that a process reads at least, where several do."""

MOST_UNDONE = 100
"""Jobs of a study that are not done, and are told of."""


@dataclass
class Record:
    """What one study holds.

    config: merged from its artifacts; the folders of the artifacts are relative to `root`.
    units: of its metrics.
    points: a row a minimum.
    paths: a row a path, as in summary.csv, with `folder`, and `along`, the columns `arc` and those of `metrics`.
    low_and_high: a row a finder, see tables.low_and_high.
    planes: of each scan of a plane its axes x and y, and rows z of log10 train losses; no more than PLANE points each.
    undone: a row a job that is not done: its folder, and "running", "stopped" or "failed: why".
    damaged: a line for each file that is left out.
    """

    root: Path
    config: Config
    units: tables.Units
    points: list[dict[str, Any]]
    paths: list[dict[str, Any]]
    low_and_high: list[dict[str, Any]]
    ensembles: dict[str, float]
    planes: dict[str, dict[str, Any]]
    undone: list[dict[str, Any]]
    parameters: int | None
    figures: list[str]
    configs: list[str]
    damaged: list[str]

    @property
    def holds(self) -> bool:
        """Whether there is anything to compare."""
        return any((self.points, self.paths, self.ensembles, self.planes, self.undone))


def find_studies(folders: Iterable[Path]) -> list[Path]:
    """The study folders at or under these folders, links followed, each once, with results, begun or asked for by the
    last sweep there.

    Raises LowlossError: a folder has none.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        here = list(status.studies_under(folder, _leave_out))
        at, known = Path(os.path.abspath(folder)), {*map(os.path.realpath, here)}
        asked = status.swept(at) if here else ()
        here += [folder / root.relative_to(at) for root in asked if os.path.realpath(root) not in known]
        if not here:
            what = "holds no study" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
            raise LowlossError(f"{folder} {what}: name the folder of a study or of a sweep, such as outputs/quickstart")
        for root in here:
            found.setdefault(os.path.realpath(root), root)
    if not any(Study(root).kinds for root in found.values()):
        raise LowlossError("no study there has results yet: wait for the first, or name other folders")
    return list(found.values())


def _leave_out(line: str) -> None:
    """Tell what is left out in one line of a terminal, whatever names and errors hold."""
    shown = "".join(c if c.isprintable() else " " for c in line)
    progress.say(f"left out: {shown if len(shown) <= 1000 else shown[:1000] + '…'}")


_real = cache(os.path.realpath)


def _check(folder: Path, name: str, root: Path | None = None) -> str:
    """A file of a folder, to be read.

    Raises LowlossError for what is no regular file, lies outside of the study of which root is given, or is large.
    """
    size, linked, file = 0, False, f"{folder}/{name}"
    with contextlib.suppress(FileNotFoundError, NotADirectoryError):
        found = os.lstat(file)
        if linked := S_ISLNK(found.st_mode):
            found = os.stat(file)
        size = found.st_size if S_ISREG(found.st_mode) else 0  # what /proc has is of no size
    if size and name == RESULT:
        with open(file, "rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
    if not size or size > MOST.get(name, size):
        raise LowlossError(f"{file} is unreadable (it is {f'of {size} bytes' if size else 'empty, or no file'})")
    if root is not None:
        real = os.path.realpath(file) if linked else f"{_real(folder)}/{name}"
        if not real.startswith(os.path.join(_real(root), "")):
            raise LowlossError(f"{file} is left out (it lies outside of the study)")
    return file


def _text(artifact: Artifact, name: str, root: Path | None = None) -> str:
    """The text of a file of a result.

    Raises LowlossError for a file that cannot be read, or is another than when it was written, ValueError for no text.
    """
    with open(_check(artifact.folder, name, root), "rb") as stream:
        content = stream.read()
    if os.path.exists(f"{artifact.folder}/{DIGESTS}"):
        _check(artifact.folder, DIGESTS)
        artifact.check_digest(name, hashlib.sha256(content).hexdigest())
    return content.decode()


def read_study(root: Path, swept: Sequence[status.SweptJob] = ()) -> Record:
    """Read a study; what is damaged is left out and named in the record. swept: the jobs of the last sweep for it."""
    study, damaged = Study(root), list[str]()
    _real.cache_clear()

    def each(artifacts: Iterable[Artifact], read: Callable[[Artifact, dict[str, Any]], T]) -> list[T]:
        found = []
        for artifact in artifacts:
            try:
                found.append(read(artifact, files.load_notes(Path(_check(artifact.folder, RESULT)), foreign=True)))
            except LowlossError as error:
                damaged.append(str(error))
            except Exception as error:  # whatever strangers wrote
                damaged.append(f"{artifact.folder} is no result of this version ({type(error).__name__}: {error})")
        return found

    minima = each(study.complete("minima"), lambda artifact, notes: (artifact, _units(notes), _point(artifact, notes)))
    points = [row for _, _, row in minima]
    paths = each(study.complete("paths"), _path)
    ensembles = {name: value for scores in each(study.complete("ensembles"), _scores) for name, value in scores}
    planes = {name: plane for name, plane in each(study.complete("scans"), _plane) if plane}
    sizes = each([artifact for artifact, _, _ in minima[:1]], _parameters)
    units = minima[0][1] if minima else tables.CLASSIFICATION
    figures, drawn = [], root / "report" / "figures"
    for name in sorted(glob("*.png", root_dir=drawn)):
        try:
            _check(drawn, name, root)
            figures.append(name)
        except (OSError, LowlossError) as error:
            damaged.append(str(error))
    overview, config = tables.low_and_high(paths, points), merged_config(study, damaged)
    parameters, undone = next(iter(sizes), None), list(islice(_undone(root, swept), MOST_UNDONE))
    configs = sorted(glob("*/*/config.yaml", root_dir=root), key=lambda file: file.split("/"))[:LINKS]
    results = (units, points, paths, overview, ensembles, planes)
    return Record(root, config, *results, undone, parameters, figures, configs, damaged)


def metrics(units: tables.Units) -> dict[str, tuple[str, float]]:
    """The columns that are compared, each with its label and the factor to what is shown."""
    named = [("train", "loss"), *(("test", name) for name in units)]
    return {f"{s}_{m}": (tables.label(s, m, units[m]), tables.scale(units[m])) for s, m in named}


def _units(notes: dict[str, Any]) -> tables.Units:
    units: dict[str, str] = notes["units"]
    if not all(isinstance(unit, str) for unit in units.values()):
        raise TypeError("units are texts")
    return {"loss": units["loss"], **units}


def _number(value: Any) -> Any:
    if type(value) not in (int, float):
        raise TypeError(f"{value!r:.40} is no number")
    float(value)  # or it is beyond all
    return value


def _point(artifact: Artifact, notes: dict[str, Any]) -> dict[str, Any]:
    return {name: _number(value) for name, value in tables.minimum_row(artifact, notes).items()}


def _parameters(artifact: Artifact, _: dict[str, Any]) -> int:
    (count,) = files.tensor_shape(artifact.folder / RESULT, "theta")
    return count


def _path(artifact: Artifact, notes: dict[str, Any]) -> dict[str, Any]:
    units = _units(notes)
    names = metrics(units)
    row = {name: notes.get(name) for name in tables.summary_columns(units)}
    needed = ("finder", "start", "end", *(f"saddle_{name}" for name in names))
    for name, value in row.items():
        if value is None and name in needed:
            raise KeyError(name)
        row[name] = str(value) if name in ("finder", "status") else None if value is None else _number(value)
    try:
        along = _columns(_text(artifact, "along.csv"), ["arc", *names])
    except (OSError, ValueError, KeyError, csv.Error) as error:
        raise LowlossError(f"{artifact.folder / 'along.csv'} is unreadable ({error})") from error
    return row | {"folder": f"paths/{artifact.name}", "along": along}


def _scores(artifact: Artifact, notes: dict[str, Any]) -> list[tuple[str, float]]:
    return [
        (f"{method}_test_{name}", _number(value))
        for method, _, *values in notes["rows"]
        for name, value in zip(_units(notes), values, strict=True)
    ]


def _plane(artifact: Artifact, notes: dict[str, Any]) -> tuple[str, dict[str, Any]]:
    """A scan's name and its plane, which is empty for lines."""
    if notes.get("lines"):
        return artifact.name, {}
    names = ["axis-0", "axis-1", "train_loss"]
    x, y, loss_RC = files.load_arrays(artifact.folder / RESULT, names, most=1 << 22)
    rows, columns = (slice(None, None, -(-len(axis) // PLANE)) for axis in (x, y))
    loss_RC = loss_RC[rows, columns].astype(float)
    height_RC = np.log10(loss_RC, out=np.full_like(loss_RC, np.nan), where=np.isfinite(loss_RC) & (loss_RC > 0))
    return artifact.name, {"x": x[rows], "y": y[columns], "z": height_RC.T.astype(np.float32)}


def _undone(root: Path, swept: Sequence[status.SweptJob]) -> Iterator[dict[str, Any]]:
    """The jobs of a study that have begun and are not complete, and why the last command or sweep's job failed."""
    for work in sorted(root.glob("*/.*.work")):
        name = work.name.removeprefix(".").removesuffix(".work")
        runs = status.holds(work.with_name(f".{name}.claim"))
        yield {"status": f"{'running' if runs else 'stopped'}: {work.parent.name}/{name}"}
    with contextlib.suppress(Exception):  # whatever strangers wrote
        if swept or (root / progress.FOLDER).is_dir():
            state = status.read_study(root, swept)
            if state.state == "failed" or not root.is_dir():
                yield {"status": f"{state.state}: {' '.join(state.why.split())[:300] or 'not begun'}"}


def _columns(text: str, names: Sequence[str]) -> dict[str, Any]:
    # A plain split takes a fraction of the time, and numbers have no quotes.
    cells = csv.reader(io.StringIO(text, newline="")) if '"' in text else (x.split(",") for x in text.splitlines())
    head, *rows = cells
    columns = dict(zip(head, zip(*rows, strict=True), strict=True))
    # pandas leaves a cell empty where there is no number.
    with np.errstate(over="ignore"):
        return {name: np.array([float(cell or "nan") for cell in columns[name]], np.float32) for name in names}


def merged_config(study: Study, damaged: list[str] | None = None) -> Config:
    """The configurations of a study's artifacts, merged; those that add nothing are not read.

    Args:
        damaged: what cannot be read is named there.
    """
    merged, seen = Config(), set[tuple[str, str]]()
    damaged = [] if damaged is None else damaged
    for kind in sorted(study.kinds, key=("paths", "scans", "ensembles").__contains__, reverse=True):
        for artifact in study.complete(kind):
            # A path ends in its finder's name, a scan begins with its own; all hold the configuration of the minima.
            name = artifact.name.strip("0123456789-")
            if (kind, name) in seen or (seen and name in ("", "independent")):
                continue
            try:
                text = _text(artifact, "config.yaml", study.root)
                sections = [_section(part) for part in re.split(r"^(?=\w)", text, flags=re.MULTILINE) if part]
            except Exception as error:  # whatever strangers wrote
                told = f"{artifact.folder / 'config.yaml'} is unreadable ({error})"
                damaged.append(str(error) if isinstance(error, LowlossError) else told)
                continue
            seen.add((kind, name))
            merged = reduce(merge, sections, merged)
    return merged


@cache
def _section(text: str) -> Config:
    """A section of a configuration; most studies of a sweep share most sections, and YAML is slow to read.

    Raises an error for what is no configuration, or would not end, as aliases within aliases.
    """
    if "*" in text and any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, _Loader)):
        raise ValueError("it has aliases")
    loaded = json.loads(json.dumps(yaml.load(text, _Loader), default=str))
    flat(loaded)  # or it is nested too deeply
    return dict(loaded)


def option_name(node: Any, options: Mapping[str, Config]) -> str:
    """The option that a node was made from. Where settings differ, the option of the same target with most in common,
    or the target, and a digest of the settings."""
    if not isinstance(node, dict):
        return str(node)[:40]
    settings = {key: value for key, value in node.items() if key not in MACHINE}
    near = {"": 0}
    for name, option in options.items():
        own = {key: value for key, value in option.items() if key not in MACHINE}
        if own == settings:
            return name
        if own.get("_target_") == settings.get("_target_"):
            near[name] = sum(settings.get(key) == value for key, value in own.items())
    target = str(node.get("_target_", "?")).rpartition(".")[2][:40]
    text = json.dumps(settings, sort_keys=True, default=str)
    nearest = max(near, key=lambda name: (name == target.lower(), near[name]))
    return f"{nearest or target} {hashlib.sha256(text.encode()).hexdigest()[:4]}"


def called(config: Config, group: str, options: Options) -> str:
    """What a study's model or data are called; a landscape by a formula stands for the network, and has no data."""
    if group not in config and isinstance(config.get("landscape"), dict):
        return option_name(config["landscape"], options.get("landscape", {})) if group == "model" else ""
    return option_name(config[group], options.get(group, {})) if group in config else ""


def _read(task: tuple[Path, Sequence[status.SweptJob]]) -> Record | str:
    """The record of a study, or a line that tells why it cannot be read."""
    try:
        return read_study(*task)
    except Exception as error:  # whatever strangers wrote
        return f"{task[0]} is unreadable ({type(error).__name__}: {error})"


def gather(folders: Sequence[Path], options: Options) -> tuple[list[Record], pd.DataFrame]:
    """Read all studies at or under the folders, and tell what cannot be read.

    Returns:
        The records, and a table with a row a path: the study, its model, data and whatever else the studies differ
        in, then the columns of summary.csv and of its ensembles. A study without paths has one row.

    Raises LowlossError: a folder holds no study.
    """
    roots, records, lost = find_studies(folders), list[Record](), list[str]()
    swept = {root: jobs for folder in folders for root, jobs in status.swept(Path(os.path.abspath(folder))).items()}
    tasks = [(root, swept.get(Path(os.path.abspath(root)), ())) for root in roots]
    counted = progress.counted(len(roots), "studies")
    with processes.sharing(_read, tasks, FEW) as found, progress.bar(counted, len(roots)) as advance:
        for done, record in enumerate(found, start=1):
            records += [record] if isinstance(record, Record) else []
            lost += [record] if isinstance(record, str) else []
            advance(done, "")
    for line in (*lost, *(line for record in records for line in record.damaged)):
        _leave_out(line)
    if all(record.damaged and not record.holds for record in records):
        raise LowlossError("no study there can be read: `lowloss verify STUDY` tells what to do, or name other folders")
    common = common_folder([record.root for record in records])
    flats = [flat(record.config) for record in records]
    fixed = ("study", "parameters", "minima", "data.root", "model._target_", "data._target_")
    keys = {key: None for settings in flats for key in settings if key not in fixed}
    # A key that a study lacks, say another finder's, is no difference between settings.
    varied = [key for key in keys if len({repr(settings[key]) for settings in flats if key in settings}) > 1]
    rows = []
    for record, settings in zip(records, flats, strict=True):
        head = {
            "study": str(record.root.relative_to(common)),
            **{group: called(record.config, group, options) for group in ("data", "model")},
            "parameters": record.parameters,
            **{key: settings.get(key) for key in varied},
            "minima": len(record.points),
        }
        columns = tables.summary_columns(record.units)
        paths = [{**head, **{k: path.get(k) for k in columns}, **record.ensembles} for path in record.paths]
        rows += paths or ([] if record.undone else [{**head, **record.ensembles}])
        rows += [{**head, **job} for job in record.undone]
    # As they are: a column of numbers would make fractions of the integers beside an empty cell.
    return records, pd.DataFrame(rows, dtype=object)


def common_folder(roots: Sequence[Path]) -> Path:
    """The folder that the studies' names are relative to; a single study's own parent."""
    return Path(os.path.commonpath(roots)) if len(roots) > 1 else roots[0].parent


def check_objective(name: Any) -> None:
    """Raises LowlossError for a name that no study has a value of, whatever its metrics are."""
    columns = [c for c in tables.summary_columns(tables.CLASSIFICATION) if c not in ("finder", "status")]
    levels = r"((min|saddle|barrier)_)?(train|test)_\w+|\w+_test_\w+"
    if name not in columns and not re.fullmatch(levels, str(name)):
        raise LowlossError(
            f"objective={name} is none of {', '.join(columns)}, a minimum's such as train_loss and test_error, or an "
            "ensemble's such as fge_test_loss"
        )


def objective(root: Path, name: str) -> float:
    """The value of a study that a sweep minimises: a column, averaged over its paths or its minima, or an ensemble's.

    Raises LowlossError: the study has no such value.
    """
    record = read_study(root)
    for rows in (record.paths, record.points):
        values = [row[name] for row in rows if isinstance(row.get(name), (int, float))]
        if values:
            return float(sum(values) / len(values))
    if name in record.ensembles:
        return record.ensembles[name]
    known = {key: None for row in [*record.paths, *record.points] for key, value in row.items() if type(value) is float}
    raise LowlossError(f"objective={name}, but {root} has {', '.join([*known, *record.ensembles]) or 'no results'}")
