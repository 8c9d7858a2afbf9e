"""The study folder: artifacts that are whole or not there, their configuration, and where unfinished work waits.

    <study>/minima/0003/   paths/0000-0003-autoneb/   ensembles/fge-0000/   scans/plane-0000-0001/   report/

An artifact folder holds config.yaml, provenance.json, result.safetensors and tables; it is complete because it was
renamed into place. Unfinished work lies in `.<name>.work` beside it, and `.<name>.claim` tells which process is at it.
"""

from __future__ import annotations

import datetime
import io
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from lowloss import claims, files
from lowloss.errors import LowlossError, OtherConfigError

if TYPE_CHECKING:
    import pandas as pd
    from torch import Tensor

Config = dict[str, Any]

RESULT = "result.safetensors"

MACHINE = ("root", "download")
"""Keys of the data that say where they lie on this machine, not what they are."""


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
        """Where unfinished work waits; gone once the artifact is complete."""
        return self.folder.parent / f".{self.name}.work"

    @property
    def claim(self) -> Path:
        """What tells that a process is at work on it; see lowloss.claims."""
        return self.folder.parent / f".{self.name}.claim"

    def matches(self, config: Config) -> bool:
        """Whether the artifact is complete. Raises LowlossError if it was made with another configuration."""
        if self.complete:
            check_config(self.folder, config)
        return self.complete

    def begin(self, config: Config) -> Path:
        """The work folder, made or found. Raises LowlossError if it holds work under another configuration."""
        return begin_work(self.work, config)

    def commit(
        self,
        config: Config,
        tensors: Mapping[str, Tensor],
        notes: Mapping[str, Any],
        tables: Mapping[str, pd.DataFrame],
        seconds: float,
        arithmetic: str,
    ) -> None:
        """Write everything beside the artifact's place, then rename it there."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        for left_over in self.folder.parent.glob(f".{self.name}.new-*"):
            shutil.rmtree(left_over, ignore_errors=True)
        new = Path(tempfile.mkdtemp(dir=self.folder.parent, prefix=f".{self.name}.new-"))
        try:
            new.chmod(0o755)
            files.write_text(new / "config.yaml", _to_yaml(config))
            files.write_text(new / "provenance.json", json.dumps(_provenance(seconds, arithmetic), indent=1) + "\n")
            for name, table in tables.items():
                files.write_text(new / name, table.to_csv(index=False))
            files.save_tensors(new / RESULT, tensors, notes)
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
        shutil.rmtree(self.work, ignore_errors=True)

    def load(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Tensors and notes. Raises LowlossError if the file is damaged."""
        return files.load_tensors(self.folder / RESULT)

    def notes(self) -> dict[str, Any]:
        """The notes alone, without torch. Raises LowlossError if the file is damaged."""
        return files.load_notes(self.folder / RESULT)

    def table(self, name: str, columns: Sequence[str]) -> pd.DataFrame:
        """Columns of numbers of a CSV table. Raises LowlossError if the file is damaged or has no row."""
        import pandas as pd

        file = self.folder / name
        try:
            text = file.read_text(encoding="utf-8")
            if not text.endswith("\n"):
                raise ValueError("it is cut off")
            table = pd.read_csv(io.StringIO(text), usecols=list(columns), dtype=float)
            if table.empty:
                raise ValueError("it has no row")
        except (OSError, ValueError) as error:
            raise files.unreadable(file, error) from error
        return table

    def stamp(self) -> list[int]:
        """Changes when the artifact is made anew."""
        status = (self.folder / RESULT).stat()
        return [status.st_mtime_ns, status.st_size]


@dataclass(frozen=True)
class Study:
    """All results of one model on one data set."""

    root: Path

    def artifact(self, kind: str, name: str) -> Artifact:
        return Artifact(self.root / kind / name)

    def complete(self, kind: str) -> list[Artifact]:
        """The complete artifacts of a kind, by name."""
        folder = self.root / kind
        if not folder.is_dir():
            return []
        return [Artifact(p) for p in sorted(folder.iterdir()) if p.is_dir() and not p.name.startswith(".")]


def make_missing(jobs: Sequence[tuple[Artifact, Config]], make: Callable[[int], None]) -> None:
    """Call `make` for every job whose artifact is missing, sharing them with the other processes on this study.

    An artifact that another process works on is left to it; at the end all are complete.
    Raises LowlossError if one was made with another configuration.
    """
    left, patience = list(range(len(jobs))), claims.Patience()
    while left := [i for i in left if not jobs[i][0].matches(jobs[i][1])]:
        taken = 0
        for i in left:
            artifact, config = jobs[i]
            claim = claims.take(artifact.claim)
            if claim is None:
                continue
            with claim:
                taken += 1
                # It may have been completed since we looked.
                if not artifact.matches(config):
                    make(i)
        if not taken:
            patience.wait(jobs[left[0]][0].claim)


def begin_work(work: Path, config: Config) -> Path:
    """Make a work folder that remembers its configuration, or check the one in which work was done."""
    begun = work.is_dir() and any(path.name != "config.yaml" for path in work.glob("[!.]*"))
    if begun:
        check_config(work, config)
    else:
        files.write_text(work / "config.yaml", _to_yaml(config))
    return work


def check_config(folder: Path, config: Config) -> None:
    """Raise OtherConfigError if what lies in the folder was made with another configuration."""
    try:
        made = yaml.safe_load((folder / "config.yaml").read_text(encoding="utf-8"))
        assert isinstance(made, dict)
    except (OSError, yaml.YAMLError, AssertionError) as error:
        raise LowlossError(f"{folder / 'config.yaml'} is unreadable: delete {folder} and run again") from error
    before, now = flat(made), flat(config)
    keys = [key for key in sorted({*before, *now}) if before.get(key) != now.get(key)]
    if keys:
        absent = "nothing"
        differences = "; ".join(f"{k}={before.get(k, absent)}, now {k}={now.get(k, absent)}" for k in keys[:3])
        more = f" (and {len(keys) - 3} more keys)" if len(keys) > 3 else ""
        raise OtherConfigError(
            f"{folder} was made with {differences}{more}: "
            "choose another folder with study=NAME, or delete this one to make it anew"
        )


def lookup(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        if not isinstance(value, dict) or part not in value:
            raise LowlossError(f"the configuration has no {key}: do not take {key.split('.')[0]} out of it")
        value = value[part]
    return value


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


def _provenance(seconds: float, arithmetic: str) -> dict[str, Any]:
    import torch

    return {
        "finished": datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        "seconds_since_last_start": round(seconds, 1),
        "command": " ".join(sys.argv),
        "lowloss": version("lowloss"),
        "torch": torch.__version__,
        "lightning": version("lightning"),
        "python": platform.python_version(),
        "machine": platform.machine(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "threads": torch.get_num_threads(),
        "engine": arithmetic,
    }
