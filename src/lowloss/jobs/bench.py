"""What a job is made at: the study, its configuration, and the objects that the configuration describes.

Everything heavy is imported where it is used: a finished stage answers without torch.
"""

from __future__ import annotations

import contextlib
import os
import re
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property, partial
from math import prod
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from lowloss.checking import check_value
from lowloss.digests import digest
from lowloss.errors import LowlossError
from lowloss.files import size
from lowloss.seeding import derive
from lowloss.study import MACHINE, Config, Study, lookup

T = TypeVar("T")

if TYPE_CHECKING:
    from lowloss.ensemble import EnsembleRecipe
    from lowloss.finder import Finder
    from lowloss.jobs.base import Stage
    from lowloss.landscape import Columns, NetworkLandscape
    from lowloss.points import Plane
    from lowloss.training.devices import TrainerFactory
    from lowloss.training.tabulate import Measure


COLUMNS = 150
"""Bytes that a grid keeps of a point, as tensors and in its CSV table."""


class Cost(NamedTuple):
    """What a job takes: gradients of single points on a minibatch (a product with a Hessian is two), exact evaluations
    of points, and vectors of the network's size, 4 bytes a number, that it keeps.

    bound: how the first two are meant, "at least", "at most" or "about", where they depend on what is found.
    grid: of a grid, the points, whose columns are kept.
    samples: of a minibatch; None for the whole training split.
    """

    gradients: int
    evaluations: int
    vectors: int
    bound: str = ""
    grid: int = 0
    samples: int | None = None

    def size(self, parameters: int) -> int:
        """The bytes that it keeps, of a network of so many parameters."""
        return 4 * parameters * self.vectors + COLUMNS * self.grid


class Bench:
    """What a job is made at.

    Args:
        study: the folder.
        config: the resolved configuration, plain dictionaries.
        build: turns a configuration node with `_target_` into its object; with `partial=True`, into a factory.
        command: the command line without its choice of stages, for messages.
        stages: all that there are, in their order.
        whole: the command line that makes the whole study, where `command` makes other stages.
    """

    def __init__(
        self,
        study: Study,
        config: Config,
        build: Callable[..., Any],
        command: str,
        stages: Mapping[str, Stage],
        whole: str = "",
    ) -> None:
        self.study, self.config, self.build, self.command, self.stages = study, {**config}, build, command, stages
        self.whole = whole or command
        # An experiment may hold settings of some that the command did not choose.
        for group in ("finder", "scan", "ensemble"):
            self.config[group] = {name: node for name, node in config[group].items() if "_target_" in node}
        self.stage: Stage | None = None
        self._sources: list[str] | None = None
        """The stages whose artifacts the present one starts from, once a logger was told."""
        self._digests: dict[Path, str] = {}
        self._logs = False
        """Whether the present stage makes something, so that a logger is told of it."""
        self.dry = False
        """Whether nothing is made here, so that the machine need not have what the trainer wants."""
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
                check_value("data.path", described["data"]["path"], str)
                file = Path(described["data"]["path"])
                told = str(file) if file.is_dir() else self.digest(file, "set data.path to the file of your data")
                described["data"]["path"] = told
        return described

    def digest(self, file: Path, remedy: str) -> str:
        """A file's name and the digest of what it holds. Raises LowlossError if it is not there."""
        if not file.is_file():
            raise LowlossError(f"{file} does not exist: {remedy}")
        if file not in self._digests:
            self._digests[file] = f"{file.name} sha256:{digest(file)}"
        return self._digests[file]

    @cached_property
    def landscape(self) -> NetworkLandscape:
        from lowloss.landscape import NetworkLandscape
        from lowloss.landscape.initial import counted
        from lowloss.training.descent import check_trainer

        # Whoever needs the landscape is about to work long: find a wrong value of any stage first.
        self.check_settings()
        if not self.dry:
            check_trainer(self.trainer)
        if self.ground == ("landscape",):
            from lowloss.landscape.analytic import as_network

            factory, data = as_network(self.build("landscape"))
        else:
            factory, data = self.build("model", partial=True), self.build("data")
            data = data.holding_out(self.config["held_out"]) if self.config["held_out"] else data
            data = data.some(self.config["samples"]) if self.config["samples"] else data
        self._check_room(counted(factory, data))
        landscape = NetworkLandscape(factory, data, self.config["evaluation_batch"], self.build("engine"))
        self._check_room(landscape.dim)
        for stage in self.wanted:
            stage.check_network(self, landscape)
        self._check_vectors(landscape)
        if (split := self.config["curvature"]["split"]) not in landscape.splits:
            raise LowlossError(f"curvature.split={split}, but these data have {', '.join(landscape.splits)}")
        wanted = self.config["objective"]
        ends = tuple(f"{split}_{metric}" for split in landscape.splits for metric in landscape.task.units)
        if wanted and re.search("(train|test)_", wanted) and not wanted.endswith(ends):
            raise LowlossError(f"objective={wanted} ends with none of {', '.join(ends)}, which these data have")
        return landscape

    @property
    def ground(self) -> tuple[str, ...]:
        """The sections of the configuration that describe the landscape: a surface, or a network and data."""
        parts = [key for key in ("held_out", "samples") if self.config[key]]
        return ("landscape",) if self.config["landscape"].get("_target_") else ("model", "data", *parts)

    def _disk(self) -> tuple[Path, int]:
        """The folder where the study is to lie, as far as there is one, and the bytes that are free there."""
        place = next(folder for folder in (self.study.root, *self.study.root.resolve().parents) if folder.is_dir())
        return place, shutil.disk_usage(place).free

    def _check_room(self, parameters: int) -> None:
        """Raise LowlossError if a point cannot be trained in memory, or the missing minima and scans fill the disk."""
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        if 12 * parameters > memory:  # its parameters, their gradient and momentum
            raise LowlossError(
                f"a point of {parameters:,} parameters takes {size(12 * parameters)} to train, and this machine has "
                f"{size(memory)}: make the model smaller"
            )
        points = sum(prod(plane.shape) for plane in self.planes.values())
        missing = max(0, self.count - len(self.study.complete("minima")))
        needed, (place, free) = Cost(0, 0, missing, grid=points).size(parameters), self._disk()
        if needed > free:
            raise LowlossError(
                f"{missing} minima of {parameters:,} parameters and {points:,} grid points of scans need about "
                f"{needed / 1e9:,.0f} GB, and {place} has {free / 1e9:,.0f} GB: lower minima.count or the scans' "
                "resolution, or set outputs to a larger disk"
            )

    def _check_vectors(self, landscape: NetworkLandscape) -> None:
        """Raise LowlossError if what the stages keep of the network's size cannot fit on the disk."""
        self.__dict__["landscape"] = landscape  # which costs may ask for
        needed: dict[str, int] = {}
        try:
            for stage in self.wanted:
                missing = [job.cost() for job in stage.jobs(self) if not job.artifact.complete]
                needed[stage.name] = 4 * landscape.dim * sum(cost.vectors for cost in missing if cost is not None)
        finally:
            del self.__dict__["landscape"]
        place, free = self._disk()
        if sum(needed.values()) > free:
            told = ", ".join(f"{name} {size(count)}" for name, count in needed.items() if count)
            raise LowlossError(
                f"what is missing keeps {size(sum(needed.values()))} ({told}), and {place} has {size(free)}: "
                "take fewer points, pairs or members, or set outputs to a larger disk"
            )

    @cached_property
    def logger(self) -> Any:
        """The configured logger, or None; one that does not keep stages apart is told the configuration at once."""
        logger = self.build("logger") if self.config["logger"].get("_target_") else None
        if logger is not None and not hasattr(logger, "begin"):
            logger.log_hyperparams(self.config)
        return logger

    def everywhere(self, work: Callable[..., T], *arguments: Any, **settings: Any) -> T:
        """A function of `training`, called on the landscape in the process of every device; its result here."""
        _ = self.landscape  # what is wrong with the configuration is told by one process
        if self.several:
            from lowloss.training.devices import announce

            announce((work, arguments, settings))
        return work(self.landscape, *arguments, trainer=self.trainer, **settings)

    def tabulate(self, at: Any, work: Path, title: str, measures: Any = None, **settings: Any) -> Columns:
        """What `tabulate` gives, the exact metrics by default."""
        from lowloss.training.tabulate import tabulate

        return self.everywhere(tabulate, at, measures=measures, folder=work, title=title, **settings)

    def table(
        self, at: Any, title: str, work: Path, how: Any = None, more: Sequence[Measure] = (), **settings: Any
    ) -> Columns:
        """The exact metrics, with details of the test split, and more: at points, as `tabulate` or `how` takes them."""
        from lowloss.measure import Exact
        from lowloss.training.tabulate import tabulate

        splits = self.landscape.splits
        title = f"{title} on {'both splits' if len(splits) == 2 else ', '.join(splits)}"
        measures = [Exact(details=["test"]), *more]
        return self.everywhere(how or tabulate, at, measures=measures, folder=work, title=title, **settings)

    def seed(self, *names: object) -> int:
        """The seed of a random stream of the study."""
        return derive(self.config["seed"], *names)

    def check_optimizer(self, key: str = "optimizer", without_decay: str | None = None) -> None:
        """Raise LowlossError if the optimizer of a section cannot be made with its settings.

        Args:
            without_decay: what to do instead, where its weight decay would act on a chart's coordinates; else None.
        """
        from lowloss.training.descent import check_optimizer

        made = check_optimizer(self.build(key, partial=True))
        decay = made.param_groups[0].get("weight_decay", 0)
        if without_decay is not None and decay != 0:
            raise LowlossError(
                f"{key}.weight_decay={decay:g} of {type(made).__name__} would act on the coordinates of a chart, not "
                f"on the parameters: {without_decay}"
            )

    def serve(self) -> None:
        """Take part in what the first process has done everywhere, until it announces nothing."""
        from lowloss.training.devices import announce

        while (called := announce()) is not None:
            work, arguments, settings = called
            work(self.landscape, *arguments, trainer=self.build("trainer", partial=True), **settings)

    @property
    def trainer(self) -> TrainerFactory:
        """Makes trainers that log, where there is a logger, to what belongs to the stage."""
        trainer: TrainerFactory = self.build("trainer", partial=True)
        return trainer if self.logger is None else partial(trainer, logger=self.tell_logger())

    def tell_logger(self) -> Any:
        """The logger, told which stage the log belongs to if it keeps stages apart."""
        self._logs = self.logger is not None
        if hasattr(self.logger, "begin") and self.stage is not None:
            if self._sources is None:  # once a stage, not for each of what may be thousands of jobs
                self._sources = sorted({one.stage for job in self.stage.jobs(self) for one in job.needs()})
            self.logger.begin(self.stage.name, self.stage.kind, self._sources, self.study, self.config)
        return self.logger

    @contextlib.contextmanager
    def making(self, stage: Stage) -> Iterator[None]:
        """While a stage is made: a logger is told the numbers of what it made, or has, and one that keeps stages apart
        of its end."""
        self.stage, self._sources, self._logs, status = stage, None, False, 1
        try:
            yield
            status = 0
            if self._logs and (numbers := stage.numbers(self.study)):
                getattr(self.logger, "log_summary", self.logger.log_metrics)(numbers)
                self.logger.save()
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

    @cached_property
    def ensembles(self) -> dict[str, EnsembleRecipe]:
        return {name: self.build(f"ensemble.{name}") for name in self.config["ensemble"]}

    @property
    def wanted(self) -> list[Stage]:
        """The configured stages, in their order."""
        return [stage for name, stage in self.stages.items() if name in self.config["stages"]]

    @property
    def count(self) -> int:
        """The number of minima."""
        minima = self.config["minima"]
        count: int = len(minima["files"]) if "files" in minima else minima["count"]
        return count

    @property
    def more_minima(self) -> str:
        """What to do for more of them, for messages."""
        return "name more files in minima.files" if "files" in self.config["minima"] else "raise minima.count"

    def check_settings(self) -> None:
        """Raise LowlossError for a setting that its finder, scan, ensemble, schedule or optimizer refuses."""
        _ = self.finders, self.planes, self.ensembles, self.build("schedule")
        self.check_optimizer()
        for stage in self.wanted:
            stage.check_made(self)

    def check(self) -> None:
        """Raise LowlossError for a value that no stage of those that are asked for could use; needs nothing heavy."""
        wanted = self.config["stages"]
        if not isinstance(wanted, list):
            raise LowlossError(f"stages must be a list of some of {', '.join(self.stages)}, such as stages=[minima]")
        unknown = [name for name in wanted if not isinstance(name, str) or name not in self.stages]
        if unknown:
            raise LowlossError(
                f"stages has {', '.join(map(str, unknown))}, but the stages are {', '.join(self.stages)}"
            )
        # Every stage that makes something starts from the minima.
        for name in dict.fromkeys(["minima", *wanted]):
            self.stages[name].check(self)

    def check_minimum(self, key: str, k: Any) -> None:
        """Raise LowlossError for a minimum that there is not."""
        check_value(key, k, int)
        if not 0 <= k < self.count:
            raise LowlossError(f"{key}={k}, but the minima are 0 … {self.count - 1}: {self.more_minima}")
