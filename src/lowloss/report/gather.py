"""Many studies as tables: read without torch, from the notes and tables of their artifacts."""

from __future__ import annotations

import csv
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from math import nan
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml

from lowloss import files, progress
from lowloss.errors import LowlossError
from lowloss.report import tables
from lowloss.runs import MACHINE, RESULT, Artifact, Config, Study, flat

KINDS = ("minima", "paths", "ensembles", "scans")
METRICS = ("train_loss", "test_loss", "test_error")
ALONG = ("arc", *METRICS)

Options = Mapping[str, Mapping[str, Config]]
"""For `model` and `data`: the options of the configuration group by name, to call a node by its option's name."""

T = TypeVar("T")

_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


@dataclass
class Record:
    """What one study holds.

    config: merged from its artifacts; the folders of the artifacts are relative to `root`.
    paths: a row a path, as in summary.csv, with `folder`, and `along`, the columns ALONG.
    low_and_high: a row a finder, see low_and_high.
    """

    root: Path
    config: Config
    points: list[dict[str, Any]]
    paths: list[dict[str, Any]]
    low_and_high: list[dict[str, Any]]
    ensembles: dict[str, float]
    parameters: int | None
    figures: list[Path]
    damaged: list[str] = field(default_factory=list)


def find_studies(folders: Iterable[Path]) -> list[Path]:
    """The study folders at or under these folders, links followed, each once; what has no results yet is told.

    Raises:
        LowlossError: a folder has none.
    """
    found: dict[str, Path] = {}
    for folder in folders:
        here = list(_studies_under(folder))
        if not here:
            what = "holds no study" if folder.is_dir() else "is no folder" if folder.exists() else "does not exist"
            raise LowlossError(f"{folder} {what}: name the folder of a study or of a sweep, such as outputs/quickstart")
        for root in here:
            found.setdefault(os.path.realpath(root), root)
    studies = []
    for root in found.values():
        if any(Study(root).complete(kind) for kind in KINDS):
            studies.append(root)
        else:
            progress.say(f"left out: {root} has no results yet")
    if not studies:
        raise LowlossError("no study there has results yet: wait for the first, or name other folders")
    return studies


def _studies_under(folder: Path) -> Iterator[Path]:
    seen: set[str] = set()
    for parent, children, _ in os.walk(folder, followlinks=True):
        here = os.path.realpath(parent)
        if here in seen:  # a link to where we have been, perhaps in a circle
            children.clear()
            continue
        seen.add(here)
        if any(kind in children for kind in KINDS):
            yield Path(parent)
        children[:] = sorted(c for c in children if c not in (*KINDS, "report") and not c.startswith("."))


def read_study(root: Path) -> Record:
    """Read a study; what is damaged is left out and named in the record."""
    study, damaged = Study(root), []

    def each(kind: str, read: Callable[[Artifact, dict[str, Any]], T]) -> list[T]:
        found = []
        for artifact in study.complete(kind):
            try:
                found.append(read(artifact, artifact.notes()))
            except LowlossError as error:
                damaged.append(str(error))
            except (KeyError, TypeError, ValueError) as error:
                damaged.append(f"{artifact.folder} is no result of this version ({type(error).__name__}: {error})")
        return found

    points = each("minima", tables.minimum_row)
    paths = each("paths", _path)
    ensembles: dict[str, float] = {}
    for scores in each("ensembles", _scores):
        ensembles |= scores
    minima = [study.root / "minima" / f"{row['minimum']:04d}" for row in points[:1]]
    sizes = [files.tensor_shape(folder / RESULT, "theta") for folder in minima]
    pictures = sorted(file for file in (root / "report" / "figures").glob("*.png") if file.is_file())
    overview = low_and_high(paths, points)
    config = _config(study, damaged)
    return Record(root, config, points, paths, overview, ensembles, sizes[0][0] if sizes else None, pictures, damaged)


def _path(artifact: Artifact, notes: dict[str, Any]) -> dict[str, Any]:
    row = {name: notes.get(name) for name in tables.SUMMARY}
    for name in ("finder", "start", "end", *(f"saddle_{metric}" for metric in METRICS)):
        if row[name] is None:
            raise KeyError(name)
    file = artifact.folder / "along.csv"
    try:
        return row | {"folder": f"paths/{artifact.name}", "along": _columns(file)}
    except (OSError, ValueError, KeyError) as error:
        raise LowlossError(f"{file} is unreadable ({error})") from error


def _scores(artifact: Artifact, notes: dict[str, Any]) -> dict[str, float]:
    scores: dict[str, float] = {}
    for method, _, wrong, nll in notes["rows"]:
        scores |= {f"{method}_test_error": wrong, f"{method}_test_nll": nll}
    return scores


def low_and_high(paths: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each finder the mean levels of minima and saddles, as in table B.1 of Draxler et al. 2018.

    Saddles are averaged over the minimum spanning tree of the finder's paths, by saddle train loss; minima over those
    that the tree connects. Errors are in fractions.
    """
    levels = {row["minimum"]: row for row in points}
    found: dict[str, list[Mapping[str, Any]]] = {}
    for path in paths:
        found.setdefault(path["finder"], []).append(path)
    rows = []
    for finder, own in found.items():
        tree = [own[place] for place in tables.spanning_tree(own)]
        named = dict.fromkeys(k for path in tree for k in (path["start"], path["end"]))
        ends = [levels[k] for k in named if k in levels]
        row: dict[str, Any] = {"finder": finder}
        for metric in METRICS:
            row[f"{metric}_min"] = _mean([end[metric] for end in ends])
            row[f"{metric}_saddle"] = _mean([path[f"saddle_{metric}"] for path in tree])
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else nan


def _columns(file: Path) -> dict[str, list[float]]:
    with file.open(encoding="utf-8", newline="") as lines:
        head, *rows = csv.reader(lines)
    columns = dict(zip(head, zip(*rows, strict=True), strict=True))
    # pandas leaves a cell empty where there is no number.
    return {name: [float(cell or "nan") for cell in columns[name]] for name in ALONG}


def _config(study: Study, damaged: list[str]) -> Config:
    """The configurations of a study's artifacts, merged; those that add nothing are not read."""
    merged: Config = {}
    seen: set[tuple[str, str]] = set()
    for kind in ("paths", "scans", "ensembles", "minima"):
        for artifact in study.complete(kind):
            # A path ends in its finder's name, a scan begins with its own; all hold the configuration of the minima.
            name = artifact.name.strip("0123456789-")
            if (kind, name) in seen or (seen and name in ("", "independent")):
                continue
            try:
                text = (artifact.folder / "config.yaml").read_text(encoding="utf-8")
                sections = [_section(part) for part in re.split(r"^(?=\w)", text, flags=re.MULTILINE) if part]
            except (OSError, ValueError, yaml.YAMLError):
                damaged.append(f"{artifact.folder / 'config.yaml'} is unreadable")
                continue
            seen.add((kind, name))
            for section in sections:
                merged = merge(merged, section)
    return merged


@cache
def _section(text: str) -> Config:
    """A section of a configuration; most studies of a sweep share most sections, and YAML is slow to read."""
    loaded = yaml.load(text, Loader=_Loader)
    if not isinstance(loaded, dict):
        raise ValueError("not a section")
    return loaded


def merge(one: Config, other: Config) -> Config:
    """Both configurations' keys, level by level; the other's values where they differ."""
    merged = {**one}
    for key, value in other.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def option_name(node: Config, options: Mapping[str, Config]) -> str:
    """The option that a node was made from, or its target with the arguments."""
    settings = {key: value for key, value in node.items() if key not in MACHINE}
    for name, option in options.items():
        if {key: value for key, value in option.items() if key not in MACHINE} == settings:
            return name
    target = str(node.get("_target_", "?")).rpartition(".")[2]
    return f"{target}({', '.join(f'{k}={v}' for k, v in settings.items() if k != '_target_')})"


def gather(folders: Sequence[Path], options: Options) -> tuple[list[Record], pd.DataFrame]:
    """Read all studies at or under the folders.

    Returns:
        The records, and a table with a row a path: the study, its model, data and whatever else the studies differ
        in, then the columns of summary.csv and of its ensembles. A study without paths has one row.

    Raises:
        LowlossError: a folder holds no study.
    """
    roots = find_studies(folders)
    records = []
    with progress.bar(f"{len(roots)} studies", len(roots)) as advance:
        for done, root in enumerate(roots, start=1):
            records.append(read_study(root))
            advance(done, "")
    common = common_folder(roots)
    flats = [flat({k: v for k, v in record.config.items() if k not in ("model", "data")}) for record in records]
    keys = {key: None for settings in flats for key in settings}
    # A key that a study lacks, say another finder's, is no difference between settings.
    varied = [key for key in keys if len({repr(settings[key]) for settings in flats if key in settings}) > 1]
    rows = []
    for record, settings in zip(records, flats, strict=True):
        head = {
            "study": str(record.root.relative_to(common)),
            "data": option_name(record.config.get("data", {}), options.get("data", {})),
            "model": option_name(record.config.get("model", {}), options.get("model", {})),
            "parameters": record.parameters,
            **{key: settings.get(key) for key in varied},
            "minima": len(record.points),
        }
        rows += [{**head, **{k: path[k] for k in tables.SUMMARY}, **record.ensembles} for path in record.paths] or [
            {**head, **record.ensembles}
        ]
    return records, pd.DataFrame(rows)


def common_folder(roots: Sequence[Path]) -> Path:
    """The folder that the studies' names are relative to; a single study's own parent."""
    return Path(os.path.commonpath(roots)) if len(roots) > 1 else roots[0].parent


def check_objective(name: Any) -> None:
    """Raises LowlossError for a name that no study has a value of."""
    columns = [column for column in (*tables.SUMMARY, *tables.LEVELS) if column not in ("finder", "status")]
    if name not in columns and not str(name).endswith(("_test_error", "_test_nll")):
        raise LowlossError(
            f"objective={name} is none of {', '.join(columns)}, or an ensemble's such as fge_test_error, fge_test_nll"
        )


def objective(root: Path, name: str) -> float:
    """The value of a study that a sweep minimises: a column, averaged over its paths or its minima, or an ensemble's.

    Raises:
        LowlossError: the study has no such value.
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
