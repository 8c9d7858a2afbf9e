"""What a stage is given: the study, its configuration, and the objects that the configuration describes.

Everything heavy is imported where it is used: a finished stage answers without torch.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Collection, Iterator
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from lowloss import files
from lowloss.errors import LowlossError, check_number, is_number
from lowloss.runs import MACHINE, Artifact, Config, Study, lookup

T = TypeVar("T")

if TYPE_CHECKING:
    from torch import Tensor

    from lowloss.finder import Finder
    from lowloss.finder import Path as WeightPath
    from lowloss.landscape import NetworkLandscape
    from lowloss.scans import Plane
    from lowloss.training.loop import TrainerFactory


NUMBERS: dict[str, tuple[type, float]] = {
    "seed": (int, 0),
    "evaluation_batch": (int, 1),
    "minima.count": (int, 1),
    "minima.epochs": (float, 1e-6),
    "minima.batch_size": (int, 1),
    "path.points": (int, 2),
    "path.between": (int, 0),
}
"""Settings that must be numbers: their kind and least value."""


class Run:
    """What a stage is given.

    Args:
        study: the folder.
        config: the resolved configuration, plain dictionaries.
        build: turns a configuration node with `_target_` into its object; with `partial=True`, into a factory.
        command: the command line without its choice of stages, for messages.
    """

    def __init__(self, study: Study, config: Config, build: Callable[..., Any], command: str) -> None:
        # An experiment may hold settings of finders and scans that the command line did not choose.
        chosen = {
            group: {name: node for name, node in config[group].items() if "_target_" in node}
            for group in ("finder", "scan")
        }
        self.study, self.config, self.build, self.command = study, config | chosen, build, command
        self.stage = ""
        self.several = False
        """Whether other processes, one a device, wait in `serve` for what is to be done everywhere."""

    def describes(self, *sections: str) -> Config:
        """The part of the configuration that determines an artifact: sections, dotted for a part of one."""
        described: Config = {}
        for section in sections:
            *parents, last = section.split(".")
            node = described
            for part in parents:
                node = node.setdefault(part, {})
            node[last] = lookup(self.config, section)
        # Where the data lie on this machine changes no result; what lies there does.
        if isinstance(described.get("data"), dict):
            described["data"] = {k: v for k, v in described["data"].items() if k not in MACHINE}
            if "path" in described["data"]:
                described["data"]["path"] = self._data_digest
        return described

    @cached_property
    def _data_digest(self) -> str:
        file = Path(self.config["data"]["path"])
        if file.is_dir():
            return str(file)
        if not file.is_file():
            raise LowlossError(f"{file} does not exist: set data.path to an .npz file")
        with file.open("rb") as stream:
            return f"{file.name} sha256:{files.digest(stream)}"

    @property
    def minima_config(self) -> Config:
        training = ("minima.epochs", "minima.batch_size")
        return self.describes("seed", "model", "data", "optimizer", "schedule", *training, "evaluation_batch")

    @cached_property
    def landscape(self) -> NetworkLandscape:
        from lowloss.landscape import NetworkLandscape
        from lowloss.training.loop import check_trainer

        # Whoever needs the landscape is about to work long: find a wrong value of any stage first.
        self.check_settings()
        check_trainer(self.trainer)
        engine = self.build("engine")
        data = self.build("data")
        factory = self.build("model", partial=True)
        return NetworkLandscape(factory, data, self.config["evaluation_batch"], engine)

    @cached_property
    def logger(self) -> Any:
        """The configured logger, or None."""
        return self.build("logger") if self.config["logger"].get("_target_") else None

    def everywhere(self, work: Callable[..., T], *arguments: Any, **settings: Any) -> T:
        """A function of `training`, called on the landscape in the process of every device; its result here."""
        _ = self.landscape  # what is wrong with the configuration is told by one process
        if self.several:
            from lowloss.training.devices import announce

            announce((work, arguments, settings))
        return work(self.landscape, *arguments, trainer=self.trainer, **settings)

    def serve(self) -> None:
        """Take part in what the first process has done everywhere, until it `dismiss`es."""
        from lowloss.training.devices import announce

        while (called := announce()) is not None:
            work, arguments, settings = called
            work(self.landscape, *arguments, trainer=self.build("trainer", partial=True), **settings)

    def dismiss(self) -> None:
        """Let the other processes go."""
        from lowloss.training.devices import announce

        announce(None)

    @property
    def trainer(self) -> TrainerFactory:
        """Makes trainers that log, where there is a logger, to what belongs to the stage."""
        from functools import partial

        trainer: TrainerFactory = self.build("trainer", partial=True)
        if self.logger is None:
            return trainer
        return partial(trainer, logger=self.tell_logger())

    def tell_logger(self) -> Any:
        """The logger, told which stage the log belongs to if it keeps stages apart."""
        if hasattr(self.logger, "begin"):
            self.logger.begin(self.stage, self.study, self.config)
        return self.logger

    @contextlib.contextmanager
    def making(self, stage: str) -> Iterator[None]:
        """While a stage is made: a logger that keeps stages apart is told of its end."""
        self.stage = stage
        status = 1
        try:
            yield
            status = 0
        finally:
            # Whoever had nothing to do has built no logger.
            if hasattr(self.__dict__.get("logger"), "end"):
                self.logger.end(status)

    @cached_property
    def finders(self) -> dict[str, Finder]:
        return {name: self.build(f"finder.{name}") for name in self.config["finder"]}

    @cached_property
    def planes(self) -> dict[str, Plane]:
        return {name: self.build(f"scan.{name}") for name in self.config["scan"]}

    def check_settings(self) -> None:
        """Raise LowlossError for a setting that its finder, scan, ensemble, schedule or optimizer refuses."""
        from lowloss.training.loop import check_optimizer

        _ = self.finders, self.planes, self.build("ensemble"), self.build("schedule")
        check_optimizer(self.build("optimizer", partial=True))

    def minimum(self, k: int) -> Artifact:
        return self.study.artifact("minima", f"{k:04d}")

    def path(self, start: int, end: int, finder: str) -> Artifact:
        """The path between two minima, in whichever order: it leads from the smaller index to the larger."""
        low, high = sorted((start, end))
        # An earlier version went the other way where a list of pairs said so.
        turned = self.study.artifact("paths", f"{high:04d}-{low:04d}-{finder}")
        return turned if turned.complete else self.study.artifact("paths", f"{low:04d}-{high:04d}-{finder}")

    def require(self, artifact: Artifact, config: Config, stage: str) -> None:
        """Raise LowlossError if a needed artifact is missing or was made with another configuration."""
        if not artifact.matches(config):
            raise LowlossError(f"{artifact.folder} is missing: make it with `{self.command} stages=[{stage}]`")

    def points(self, indices: list[int]) -> Tensor:
        """The minima (K, P) of these indices."""
        import torch

        for k in indices:
            self.require(self.minimum(k), self.minima_config, "minima")
        return torch.stack([self.minimum(k).load()[0]["theta"] for k in indices])

    def load_path(self, start: int, end: int, finder: str) -> WeightPath:
        from lowloss.finder.path import path_from_tensors

        artifact = self.path(start, end, finder)
        self.require(artifact, self.path_config(finder), "path")
        tensors, notes = artifact.load()
        return path_from_tensors(notes["kind"], tensors)

    def bounds(self, finder: str) -> Path:
        """The table of the saddles' upper bounds."""
        return self.study.root / f"bounds-{finder}.csv"

    def path_config(self, finder: str) -> Config:
        return self.minima_config | self.describes(f"finder.{finder}", "path.points", "path.between")

    def _wanted_pairs(self, finder: str) -> tuple[str, Any]:
        """Which pairs a finder is to connect, and the key that says so."""
        settings = self.config["path"]
        if finder in settings["only"]:
            return f"path.only.{finder}", settings["only"][finder]
        return "path.pairs", settings["pairs"]

    def explores(self, finder: str) -> bool:
        """Whether a finder chooses its pairs by what the paths so far have shown."""
        return bool(self._wanted_pairs(finder)[1] == "explore")

    def pairs(self, finder: str) -> list[tuple[int, int]]:
        """The pairs of minima that a finder connects for certain, each once and the smaller index first.

        Raises LowlossError if they do not exist.
        """
        count = self.config["minima"]["count"]
        key, wanted = self._wanted_pairs(finder)
        if wanted in ("star", "explore"):
            return [(0, k) for k in range(1, count)]
        if wanted == "all":
            return [(i, j) for i in range(count) for j in range(i + 1, count)]
        if not isinstance(wanted, list) or not all(
            isinstance(pair, list) and [type(k) for k in pair] == [int, int] for pair in wanted
        ):
            raise LowlossError(f"{key} must be star, all, explore or a list like [[0,1],[0,2]], got {wanted!r}")
        for i, j in wanted:
            if i == j:
                raise LowlossError(f"{key} names [{i},{j}], which joins a minimum to itself: name two minima")
            if not (0 <= i < count and 0 <= j < count):
                raise LowlossError(f"{key} names [{i},{j}], but the minima are 0 … {count - 1}: raise minima.count")
        return list(dict.fromkeys((min(pair), max(pair)) for pair in wanted))

    def check(self, stages: Collection[str]) -> None:
        """Raise LowlossError for a value that none of these stages could use; needs nothing heavy."""
        for key, (kind, least) in NUMBERS.items():
            check_number(key, lookup(self.config, key), kind, least)
        together = self.config["minima"]["together"]
        if together is not None:
            check_number("minima.together", together, int, 1)
        wanted = self.config["stages"]
        if not isinstance(wanted, list):
            raise LowlossError(f"stages must be a list: stages=[{wanted}]")
        unknown = [name for name in wanted if name not in stages]
        if unknown:
            raise LowlossError(f"stages has {', '.join(map(str, unknown))}, but the stages are {', '.join(stages)}")
        for finder in self.config["finder"] if "path" in wanted else ():
            self.pairs(finder)
            if self.explores(finder):
                self._check_budget()
        paper = self.config["paper"]
        if paper and (set(paper) != {"source", "row"} or not isinstance(paper["row"], dict)):
            raise LowlossError(f"paper must be null or have a source and a row of numbers, got {paper!r}")
        if "ensemble" in wanted:
            self._check_minimum("ensemble.minimum", self.config["ensemble"]["minimum"])
        if "scan" in wanted:
            for name, node in self.config["scan"].items():
                self._check_scan(f"scan.{name}", node)

    def _check_budget(self) -> None:
        budget, star = self.config["path"]["budget"], self.config["minima"]["count"] - 1
        if not isinstance(budget, dict) or set(budget) != {"pairs", "steps", "hours"}:
            raise LowlossError(f"path.budget has the keys pairs, steps and hours, each perhaps null, got {budget!r}")
        for name, value in budget.items():
            whole = name != "hours"
            if value is None:
                continue
            if not is_number(value, int if whole else float) or not value > 0:
                kind = "whole number" if whole else "number"
                raise LowlossError(f"path.budget.{name} must be null or a positive {kind}, got {value!r}")
        if budget["pairs"] is not None and budget["pairs"] < star:
            raise LowlossError(
                f"path.budget.pairs={budget['pairs']}, but to explore begins with the {star} pairs of minimum 0 and "
                "every other: raise it, or choose other path.pairs"
            )

    def _check_minimum(self, key: str, k: int) -> None:
        count = self.config["minima"]["count"]
        if not 0 <= k < count:
            raise LowlossError(f"{key}={k}, but the minima are 0 … {count - 1}: raise minima.count")

    def _check_scan(self, key: str, node: Config) -> None:
        for end in ("minimum", "start", "end"):
            if end in node:
                self._check_minimum(f"{key}.{end}", node[end])
        if "path" not in node:
            return
        finders = self.config["finder"]
        if node["path"] not in finders:
            raise LowlossError(f"{key}.path={node['path']}, but finder has {', '.join(finders)}")
        start, end = node["start"], node["end"]
        wanted = (min(start, end), max(start, end)) in self.pairs(node["path"])
        if not wanted and not self.path(start, end, node["path"]).complete:
            raise LowlossError(
                f"{key} needs the path [{start},{end}] by {node['path']}, which path.pairs leaves out: "
                f"add it there, or change {key}.start and {key}.end"
            )
