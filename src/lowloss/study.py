"""The study folder: artifacts that are whole or not there, their configuration, and where unfinished work waits.

    <study>/minima/0003/   paths/0000-0003-autoneb/   ensembles/fge-0000/   scans/plane-0000-0001/   report/

An artifact folder holds config.yaml, provenance.json, result.safetensors, tables, and digests.json: the digests of
these files and of the results that it was made from. It is complete because it was renamed into place. Unfinished work
lies in `.<name>.work` beside it, and `.<name>.claim` tells which process is at it.
"""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import io
import json
import os
import platform
import re
import secrets
import shlex
import shutil
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import yaml

from lowloss import files
from lowloss.digests import check_regular, identity
from lowloss.errors import LowlossError, OtherConfigError, reason

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

Config = dict[str, Any]

T = TypeVar("T")

RESULT = "result.safetensors"

DIGESTS = "digests.json"

ROWS = "rows.json"
"""In the work folder of jobs that train together: their names."""

BEGUN = "begun.json"
"""In a work folder: what the work was begun from and with, which is no configuration."""

MACHINE = ("root", "download")
"""Keys of the data that say where they lie on this machine, not what they are."""


@dataclass(frozen=True)
class Result:
    """What a job gives to be kept.

    tensors and notes: of result.safetensors.  tables: by their file names.  files: finished ones, by the names under
    which the artifact keeps them.
    """

    tensors: Mapping[str, Tensor]
    notes: Mapping[str, Any]
    tables: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    files: dict[str, Path] = field(default_factory=dict)


class Source(Protocol):
    """What figures and tables are drawn from: an artifact, or a result that is in memory alone."""

    @property
    def name(self) -> str:
        """By which its kind knows it."""

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and notes."""

    def notes(self) -> dict[str, Any]:
        """The notes alone."""

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Columns of numbers of a table, or with None all of it."""


@dataclass(frozen=True)
class Artifact:
    """One result of a study."""

    folder: Path

    @property
    def name(self) -> str:
        return self.folder.name

    @property
    def complete(self) -> bool:
        return self.folder.is_dir()

    @property
    def work(self) -> Path:
        """Where unfinished work waits."""
        return self.folder.parent / f".{self.name}.work"

    @property
    def claim(self) -> Path:
        """What tells that a process is at work on it; see lowloss.claims."""
        return self.folder.parent / f".{self.name}.claim"

    @property
    def title(self) -> str:
        """Its kind and name, by which a study knows it."""
        return f"{self.folder.parent.name}/{self.name}"

    def commit(
        self, config: Config, result: Result, seconds: float, arithmetic: str, inputs: Mapping[str, str]
    ) -> None:
        """Write everything beside the artifact's place, then rename it there.

        Args:
            inputs: the digests of the results that it was made from, by their titles.
        """
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for left_over in self.folder.parent.glob(f".{self.name}.new-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        new = self.folder.parent / f".{self.name}.new-{secrets.token_hex(4)}"
        new.mkdir()
        try:
            files.write_text(new / "config.yaml", _to_yaml(config))
            files.write_text(new / "provenance.json", json.dumps(_provenance(seconds, arithmetic), indent=1) + "\n")
            for name, table in result.tables.items():
                files.write_text(new / name, table.to_csv(index=False))
            for name, file in result.files.items():
                files.place(file, new / name)
            files.save_tensors(new / RESULT, result.tensors, result.notes)
            held = {str(f.relative_to(new)): identity(f) for f in sorted(new.rglob("*")) if f.is_file()}
            record = {"artifact": self.title, "files": held, "inputs": dict(inputs)}
            files.write_text(new / DIGESTS, json.dumps(record, indent=1) + "\n")
            files.sync(new)
            try:
                new.rename(self.folder)
            except OSError:
                # Suspended for so long that another process took over, which was faster: the result is the same.
                if not self.complete:
                    raise
            files.sync(self.folder.parent)
        finally:
            shutil.rmtree(new, ignore_errors=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and notes. Raises LowlossError if the file is damaged."""
        return files.load_tensors(self.folder / RESULT)

    def notes(self) -> dict[str, Any]:
        """The notes alone, without torch. Raises LowlossError if the file is damaged."""
        return files.load_notes(self.folder / RESULT)

    def table(self, name: str, columns: Sequence[str] | None = None) -> pd.DataFrame:
        """Columns of numbers of a CSV table, or with None all of it. Raises LowlossError if the file is damaged or has
        no row."""
        import pandas as pd

        file = self.folder / name
        try:
            text = file.read_text(encoding="utf-8")
            if not text.endswith("\n"):
                raise ValueError("it is cut off")
            if identity(file) != self.record()[0].get(name):
                raise ValueError("its digest is another than when it was written")
            numbers: Any = {"usecols": list(columns), "dtype": float} if columns is not None else {}
            table: pd.DataFrame = pd.read_csv(io.StringIO(text), **numbers)
            if table.empty:
                raise ValueError("it has no row")
        except (OSError, ValueError) as error:
            raise files.unreadable(file, error) from error
        return table

    @property
    def digest(self) -> str:
        """What its result is known by: another where that is of other bits. Raises LowlossError if it is damaged."""
        file = self.folder / RESULT
        try:
            status = file.stat()
            return _digest(file, status.st_mtime_ns, status.st_size)
        except (OSError, ValueError) as error:
            raise files.unreadable(file, error) from error

    def record(self) -> tuple[dict[str, str], dict[str, str]]:
        """The digests of its files, by their names in the folder, and of the results that it was made from, by their
        titles. Raises LowlossError if they cannot be read, or are another artifact's."""
        file = self.folder / DIGESTS
        try:
            check_regular(file)
            record = json.loads(file.read_text(encoding="utf-8"))
            held, inputs = record["files"], record["inputs"]
            if not all(isinstance(digest, str) for digest in (*held.values(), *inputs.values())):
                raise ValueError("a digest is no text")
            if record["artifact"] != self.title:
                raise ValueError(f"it is that of {record['artifact']}, which was copied here")
        except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            raise files.unreadable(file, error) from error
        return held, inputs

    def check_digest(self, name: str, digest: str) -> None:
        """Raise LowlossError if the digest of a file is another than when it was written."""
        if self.record()[0].get(name) != digest:
            raise files.unreadable(self.folder / name, ValueError("its digest is another than when it was written"))

    def damages(self) -> Iterator[str]:
        """A line, with its remedy, for each file that is another than when it was written; all bytes are read."""
        try:
            held, _ = self.record()
        except LowlossError as error:
            yield str(error)
            return
        for name, told in held.items():
            try:
                if identity(self.folder / name, whole=True) != told:
                    raise ValueError("its digest is another than when it was written")
            except (OSError, ValueError) as error:
                yield str(files.unreadable(self.folder / name, ValueError(reason(error))))

    def check_inputs(self, left_out: Collection[str] = ()) -> None:
        """Raise LowlossError if a result that it was made from, but for those left out, has been replaced since."""
        for title, digest in self.record()[1].items():
            source = Artifact(self.folder.parent.parent / title)
            if title not in left_out and source.complete and source.digest != digest:
                source.record()  # or it is the copy of another
                raise LowlossError(
                    f"{self.folder} was made from another {title} than the one that is there now: "
                    f"delete {self.folder} to make it anew, or put back {source.folder}"
                )


@cache
def _digest(file: Path, mtime_ns: int, size: int) -> str:
    """The identity of a file as it was at that time."""
    return identity(file)


@dataclass(frozen=True)
class Study:
    """All results of one model on one data set, but for those that are left out, by their titles."""

    root: Path
    left_out: frozenset[str] = frozenset()

    def artifact(self, kind: str, name: str) -> Artifact:
        return Artifact(self.root / kind / name)

    @property
    def kinds(self) -> list[str]:
        """The kinds of artifacts of which there are complete ones, by name."""
        found = list[str]()
        for kind in _folders(self.root) if os.access(self.root, os.R_OK) else ():
            folder = os.path.join(self.root, kind)
            with contextlib.suppress(PermissionError):
                if any(os.path.exists(os.path.join(folder, name, RESULT)) for name in _folders(folder)):
                    found.append(kind)
        return found

    def complete(self, kind: str) -> list[Artifact]:
        """The complete artifacts of a kind, by name."""
        folder = self.root / kind
        return [Artifact(folder / name) for name in _folders(folder) if f"{kind}/{name}" not in self.left_out]

    def read(self, reader: Callable[[Study], T]) -> tuple[T, list[str]]:
        """What a reader makes of the study, or where that fails, of what is not damaged there; and a line for each
        result that is. Raises the reader's LowlossError where none is damaged."""
        try:
            return reader(self), []
        except LowlossError:
            every = [artifact for kind in self.kinds for artifact in self.complete(kind)]
            damaged = {artifact.title: line for artifact in every for line in islice(artifact.damages(), 1)}
            if not damaged:
                raise
        return reader(Study(self.root, frozenset(damaged))), [*damaged.values()]


def _folders(folder: str | Path) -> list[str]:
    """The names of the folders in a folder that are not hidden, in order; none where there is none."""
    if not os.path.isdir(folder):
        return []
    with os.scandir(folder) as found:
        return sorted(one.name for one in found if not one.name.startswith(".") and os.path.isdir(one))


def progressed(work: Path) -> bool:
    """Whether anything has been done in a work folder."""
    kept = ("config.yaml", ROWS, BEGUN)
    return any(file.name not in kept and not file.name.startswith(".") for file in work.rglob("*") if file.is_file())


def begin_work(work: Path, config: Config, now: Config) -> Config:
    """Make a work folder that remembers its configuration, or check the one in which work was done.

    Args:
        now: `inputs`, the digests of what it starts from, and whatever else is to be as it was.

    Returns:
        What it was begun with.

    Raises OtherConfigError if that was done with another configuration, LowlossError if with other inputs.
    """
    file, before = work / BEGUN, None
    if progressed(work):
        check_config(work, config)
        try:
            text, told = file.read_text(encoding="utf-8").splitlines()
            if hashlib.sha256(text.encode()).hexdigest() != told:
                raise ValueError("its digest is another than when it was written")
            before = {**json.loads(text)}
            changed = [title for title, digest in now["inputs"].items() if before["inputs"][title] != digest]
        except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
            raise files.unreadable(file, error) from error
        if changed:
            raise LowlossError(
                f"{work} was begun from another {changed[0]} than the one that is there now: "
                f"delete {work} to start this piece of work afresh"
            )
        return before
    files.write_text(work / "config.yaml", _to_yaml(config))
    text = json.dumps(now)
    files.write_text(file, f"{text}\n{hashlib.sha256(text.encode()).hexdigest()}\n")
    return now


def check_config(
    folder: Path,
    config: Config,
    sections: Sequence[str] | None = None,
    remedy: str = "choose another folder with study=NAME, or delete this one to make it anew",
) -> None:
    """Raise OtherConfigError if what lies in the folder was made with another configuration.

    Args:
        sections: those that are compared; by default all.
    """
    try:
        made = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        assert isinstance(made, dict)
    except (OSError, ValueError, RecursionError, yaml.YAMLError, AssertionError) as error:
        raise LowlossError(f"{folder / 'config.yaml'} is unreadable: delete {folder} and run again") from error
    if sections is not None:
        made, config = ({key: of[key] for key in sections if key in of} for of in (made, config))
    before, now = flat(made), flat(config)
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if keys:
        told = [f"{k}={before.get(k, 'nothing')}, now {k}={now.get(k, 'nothing')}" for k in keys[:3]]
        more = f" (and {len(keys) - 3} more keys)" if len(keys) > 3 else ""
        raise OtherConfigError(f"{folder} was made with {'; '.join(told)}{more}: {remedy}")


def lookup(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise LowlossError(f"the configuration has no {key}: do not take {key.split('.')[0]} out of it")
        value = value[part]
    return value


def merge(one: Config, other: Config) -> Config:
    """Both configurations' keys, level by level; the other's values where they differ."""
    merged = {**one}
    for key, value in other.items():
        below = merged.get(key)
        merged[key] = merge(below, value) if isinstance(value, dict) and isinstance(below, dict) else value
    return merged


def flat(config: Config, prefix: str = "") -> Config:
    """The values of a nested configuration by their dotted keys."""
    values: Config = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            values |= flat(value, f"{prefix}{key}.")
        else:
            values[f"{prefix}{key}"] = value
    return values


def _to_yaml(config: Config) -> str:
    return yaml.safe_dump(config, sort_keys=False)


_WORD = r"(?:api_?key|access_?key|private_?key|secret(?:_?key)?|token|password|passwd|credentials?)"
_SECRET = re.compile(rf"^([\w.+@/-]*?(?:^|[.+_]){_WORD})=.*", re.IGNORECASE | re.DOTALL)
_NESTED = re.compile(rf"(\b(?:\w+_)?{_WORD}\s*:\s*)('[^']*'|\"[^\"]*\"|[^,}}\]]+)", re.IGNORECASE)

_URL = re.compile(r"(\b[a-z][a-z0-9+.-]*://[^\s/:@]*:)[^\s/]+@", re.IGNORECASE)


def pasteable(arguments: Sequence[str]) -> str:
    """The command line to paste into a shell; values of keys that look like secrets are ???, which Hydra asks for, and
    so are passwords within addresses."""
    shown = [_URL.sub(r"\1???@", _NESTED.sub(r"\1???", _SECRET.sub(r"\1=???", argument))) for argument in arguments]
    return shlex.join(["lowloss", *shown])


def _provenance(seconds: float, arithmetic: str) -> dict[str, Any]:
    import torch

    return {
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds_since_last_start": round(seconds, 1),
        "command": pasteable(sys.argv[1:]),
        "lowloss": version("lowloss"),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "engine": arithmetic,
    }
