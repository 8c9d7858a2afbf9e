"""What the configuration holds beside the keys of constructors, which their own annotations describe."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt, Le, Lt, MinLen

from lowloss.checking import Count, Few, Index, Name, Positive, check_arguments, check_value, shown
from lowloss.conf import option
from lowloss.errors import LowlossError, nearest

Config = dict[str, Any]


@dataclass
class Settings:
    """The top of the configuration."""

    stages: Any
    outputs: Name
    name: Name
    study: Name | int
    seed: Index
    objective: str | None
    published: str | None
    evaluation_batch: Count
    held_out: Count | None
    samples: Count | None
    minima: Config
    path: Config
    merge: Config
    connector: Config
    width: Config
    dimension: Config
    landscape: Config
    permutation: Config
    curvature: Config
    model: Config
    data: Config
    optimizer: Config
    schedule: Config
    finder: dict[str, Config]
    ensemble: dict[str, Config]
    scan: dict[str, Config]
    trainer: Config
    engine: Config
    chart: Config
    logger: Config


@dataclass
class Training:
    """minima=train."""

    count: Few
    epochs: Positive
    batch_size: Count | None
    together: Count | None
    collect: Any
    branch: Any
    gradient_norm: Annotated[float, Ge(0)] | None


@dataclass
class Files:
    """minima=checkpoints."""

    files: Any


@dataclass
class Paths:
    """path."""

    pairs: Any
    budget: Any
    only: dict[str, Any]
    align: str | None
    points: Annotated[int, Ge(2), Le(1_000_000)]
    bracket: Annotated[float, Ge(1e-6), Le(1)]
    augmented: bool
    between: Annotated[int, Ge(0), Le(10_000)]


@dataclass
class Merges:
    """merge."""

    align: Sequence[str]


@dataclass
class Connectors:
    """connector."""

    m: Annotated[Sequence[Few], MinLen(1)]
    resolution: Annotated[int, Ge(2), Le(1000)]
    steps: Count
    optimizer: Config
    batch_size: Count | None
    weight_decay: Annotated[float, Ge(0)]
    samples: Few


@dataclass
class Widths:
    """width."""

    minima: Sequence[Index] | None
    directions: Count
    orthogonal: bool
    threshold: float | None
    rise: Positive
    longest: Positive


@dataclass
class Dimensions:
    """dimension."""

    at: Annotated[Sequence[str], MinLen(1)]
    dims: Annotated[Sequence[Count], MinLen(1)]
    rounds: Few
    repeats: Few
    finder: Name
    along: Sequence[Annotated[float, Ge(0), Le(1)]]
    displacement: Annotated[float, Ge(0), Le(1e6)]
    steps: Count
    optimizer: Config
    batch_size: Count | None
    column: Name
    threshold: float | None
    share: Annotated[float, Gt(0), Lt(1)] | None


@dataclass
class Permutations:
    """permutation."""

    layer: Name | None
    pairs: Any
    teacher: bool
    steps: Count
    to: Annotated[float, Gt(0), Le(0.5)]
    iterations: Count
    gradient_norm: Annotated[float, Ge(0)]
    order: Few


@dataclass
class Quadrature:
    """curvature.density."""

    probes: Annotated[int, Ge(1), Le(1000)]
    steps: Annotated[int, Ge(1), Le(1000)]


@dataclass
class Curvature:
    """curvature."""

    split: Name
    samples: Count | None
    statistics: Literal["held", "batch"]
    count: Annotated[int, Ge(1), Le(100)]
    tolerance: Positive
    products: Count
    trace: Annotated[int, Ge(6), Le(10_000)] | None
    density: Config | None
    layers: bool
    pivots: Annotated[int, Ge(0), Le(10_000)] | None


SECTIONS = {"path": Paths, "curvature": Curvature, "connector": Connectors, "width": Widths,
            "permutation": Permutations, "dimension": Dimensions, "merge": Merges}  # fmt: skip
"""What the sections hold, but for minima, of which there are two kinds."""

MADE = {
    "data": "lowloss.data.Data",
    "landscape": "lowloss.landscape.AnalyticSurface",
    "schedule": "collections.abc.Callable",
    "finder": "lowloss.finder.Finder",
    "ensemble": "lowloss.ensemble.EnsembleRecipe",
    "scan": "lowloss.points.Plane",
    "engine": "lowloss.landscape.Engine",
    "logger": "lightning.pytorch.loggers.Logger",
}
"""What the groups make."""

TRAINER = {
    "accelerator": Name,
    "devices": Any,
    "strategy": Name,
    "benchmark": bool | None,
    "deterministic": bool | Name | None,
    "default_root_dir": Name | None,
    "profiler": Any,
}
"""Keys of a trainer that change no result; the stages set the others."""

SEVERAL = "finder", "ensemble", "scan"
"""Groups of which several options may be chosen."""

LONGEST = 200
"""Bytes of a folder's name: file systems take 255, and some have more to their names."""

MAY_BE_NONE = ("chart", "landscape", "logger")
"""Groups with an option that makes nothing."""


def check_optimizer_settings(node: Config, choice: str) -> None:
    """Raise LowlossError for settings of an optimizer, which may be torch's, that are told without importing it: a text
    in the place of a number that the option's file holds, and what no optimizer takes.

    choice: the option.
    """
    given = option("optimizer", choice)
    for name, value in node.items() if node.get("_target_") == given.get("_target_") else ():
        if isinstance(value, str) and type(given.get(name)) in (int, float):
            check_value(f"optimizer.{name}", value, type(given[name]))
    if isinstance(lr := node.get("lr"), (int, float)) and not lr >= 0:
        raise LowlossError(f"optimizer.lr must be at least 0, got {lr}")
    if isinstance(momentum := node.get("momentum"), (int, float)) and not momentum < 1:
        raise LowlossError(f"optimizer.momentum must be less than 1, got {momentum}")


def check_data(config: Config) -> None:
    """Raise LowlossError where the data of a study that is new are missing; what is complete needs none."""
    path = config["data"].get("path")
    if (
        isinstance(path, str)
        and str(config["data"]["_target_"]).startswith("lowloss.data.")
        and not Path(path).exists()
    ):
        raise LowlossError(f"data: {path} does not exist: set data.path to where the data lie")


def check_study(name: str, kinds: Sequence[str]) -> None:
    """Raise LowlossError for a name that is no folder of its own within outputs.

    Args:
        kinds: the folders that a study has.
    """
    parts = PurePath(name).parts
    if not parts or PurePath(name).is_absolute() or ".." in parts:
        raise LowlossError(f"study={name} does not lie in outputs: take another name, or set outputs")
    longest = max(parts, key=lambda part: len(part.encode()))
    if len(longest.encode()) > LONGEST:
        raise LowlossError(f"study={shown(name)} has a part of more than {LONGEST} bytes: take a shorter name")
    for part in parts:
        if part.startswith(".") or part in (*kinds, "report"):
            raise LowlossError(f"study={name}, but {part} is a folder that belongs to other things: take another name")


def check_settings(config: Config, finders: Iterable[str]) -> None:
    """Raise LowlossError for a setting that belongs to no constructor and is missing, unknown or out of range.

    Args:
        finders: the options of the group.
    """
    check_arguments("", Settings, config, whole=True, more=True)
    check_arguments("minima", Files if "files" in config["minima"] else Training, config["minima"], whole=True)
    for key, section in SECTIONS.items():
        check_arguments(key, section, config[key], whole=True)
    if config["curvature"]["density"] is not None:
        check_arguments("curvature.density", Quadrature, config["curvature"]["density"], whole=True)
    for group in ("model", "data", "optimizer", "schedule", "trainer", "engine", *MAY_BE_NONE):
        target = config[group].get("_target_")
        if not isinstance(target, str) and not (target is None and group in MAY_BE_NONE):
            raise LowlossError(f"{group}._target_ must name what is made, got {target!r}: choose {group}=OPTION")
    finders = {*finders, *config["finder"]}
    asked = {f"path.only.{name}": name for name in config["path"]["only"]}
    asked |= {f"scan.{name}.path": node["path"] for name, node in config["scan"].items() if "path" in node}
    for key, name in asked.items():
        check_value(key, name, str)
        if name not in finders:
            raise LowlossError(f"{key} asks for the finder {name}{nearest(name, finders)}: add it to finder=[…]")
    for key, value in config["trainer"].items():
        if key not in TRAINER and not str(key).startswith("_"):
            raise LowlossError(f"trainer.{key} is for the stages to set; yours are {', '.join(TRAINER)}")
        check_value(f"trainer.{key}", value, TRAINER.get(key, Any))
