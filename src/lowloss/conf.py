"""Where the configuration lies, and its CSV tables: families of experiments and the numbers that papers published."""

from __future__ import annotations

import csv
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lowloss.errors import LowlossError


def config_folder() -> Path:
    """conf/ of the checkout, or its copy inside an installed package."""
    inside = Path(__file__).parent / "conf"
    return inside if inside.is_dir() else Path(__file__).parents[2] / "conf"


def config_flags() -> list[str]:
    """The flags of this command line that say where configurations lie, for a command made of it."""
    flags = [part for part in sys.argv[1:] if part.startswith("--config-dir=")]
    for flag in {"--config-dir", "-cd"} & {*sys.argv}:
        flags += [flag, sys.argv[sys.argv.index(flag) + 1]]
    return flags


def config_dirs() -> list[Path]:
    """The user's own configuration folders."""
    flags = config_flags()
    return [Path(flag.removeprefix("--config-dir=")) for flag in flags if flag not in ("--config-dir", "-cd")]


def group_options(key: str) -> list[str]:
    """The options of a group, the user's own among them; none for what is no group."""
    folders = [config_folder(), *config_dirs()]
    return sorted({file.stem for folder in folders for file in (folder / key).glob("*.yaml")})


def read_table(file: Path, needed: Sequence[str]) -> list[dict[str, str]]:
    """The rows of a CSV table as texts, by its columns; lines that begin with # are comments.

    Raises LowlossError: the file cannot be read, lacks a needed column or value, or a row is not as long as the head.
    """
    try:
        lines = file.read_text(encoding="utf-8").splitlines()
        head, *rows = csv.reader(line for line in lines if line.strip() and not line.startswith("#"))
    except (OSError, ValueError, csv.Error) as error:
        raise LowlossError(f"{file} is no CSV table with a head: {error}") from error
    if missing := [column for column in needed if column not in head]:
        raise LowlossError(f"{file} has no column {', '.join(missing)}: it needs {', '.join(needed)}")
    for row in rows:
        if len(row) != len(head):
            raise LowlossError(f"{file} has {len(head)} columns, but {len(row)} cells in {','.join(row)}")
        if empty := [column for column in needed if not row[head.index(column)]]:
            raise LowlossError(f"{file} has no {', '.join(empty)} in {','.join(row)}")
    return [dict(zip(head, row, strict=True)) for row in rows]


def read_families(folder: Path) -> dict[str, list[dict[str, str]]]:
    """The families of experiments in `family/*.csv` of a configuration folder: for each file's name its rows.

    A row is an experiment: its name, the `base` from which it differs, and under each other column, which is a group or
    a dotted key, what it takes there; an empty cell leaves that as it is in the base.

    Raises LowlossError: a table is damaged, or names an experiment twice.
    """
    families = {}
    for file in sorted((folder / "family").glob("*.csv")):
        families[file.stem] = rows = read_table(file, ("experiment", "base"))
        names = [row["experiment"] for row in rows]
        if twice := sorted({name for name in names if names.count(name) > 1}):
            raise LowlossError(f"{file} has {', '.join(twice)} twice: give each row a name of its own")
    return families


def options(group: str) -> dict[str, dict[str, Any]]:
    """The options of a configuration group by their names."""
    return {file.stem: option(group, file.stem) for file in sorted((config_folder() / group).glob("*.yaml"))}


def option(group: str, name: str) -> dict[str, Any]:
    """An option of a configuration group, as its file has it; nothing where it is not ours."""
    import yaml

    file = config_folder() / group / f"{name}.yaml"
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")) or {}) if file.is_file() else {}
