"""What jobs and stages are. A file of this package imports from here all that it declares its own with."""

from __future__ import annotations

import re
from collections.abc import Sequence
from math import isfinite
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar

from lowloss.jobs.bench import Bench, Cost
from lowloss.study import Artifact, Config, Result, Study, check_config, merge

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape


class Job:
    """One artifact to make, at a bench that has the landscape and the study."""

    kind: ClassVar[str]
    """The folder of a study for artifacts of this kind."""
    stage: ClassVar[str]
    """The stage that makes it, by the user's word."""
    keys: ClassVar[Sequence[str]]
    """Of the configuration, that determine it besides what it needs."""
    rows: ClassVar[bool] = False
    """Whether jobs of this kind train together, as rows of one matrix."""

    def __init__(self, bench: Bench, name: str) -> None:
        self.bench, self.name = bench, name

    @property
    def artifact(self) -> Artifact:
        return self.bench.study.artifact(self.kind, self.name)

    def needs(self) -> Sequence[Job]:
        """The jobs whose artifacts it starts from."""
        return ()

    def own_settings(self) -> Config:
        """The part of the configuration that determines it, besides what it needs."""
        return self.bench.describes(*self.keys)

    def settings(self) -> Config:
        """All of the configuration that determines it."""
        settings: Config = {}
        for needed in self.needs():
            settings = merge(settings, needed.settings())
        return merge(settings, self.own_settings())

    def cost(self) -> Cost | None:
        """What it takes; None if that is not known before."""
        return None

    def renamed(self, name: str) -> Job:
        """The job of this name that trains together with this one."""
        raise NotImplementedError

    def make(self, work: Path) -> Result:
        """Make it; unfinished work waits in the folder, from which the same call continues."""
        raise NotImplementedError

    @classmethod
    def make_all(cls, jobs: Sequence[Job], work: Path) -> list[Result]:
        """Make jobs: one, or several that train together."""
        return [job.make(work) for job in jobs]

    @property
    def complete(self) -> bool:
        """Whether it is made. Raises OtherConfigError if it was made with other settings, and LowlossError if what it
        was made from has been replaced since."""
        if self.artifact.complete:
            check_config(self.artifact.folder, self.settings())
            self.artifact.check_inputs()
        return self.artifact.complete


class Stage:
    """A word of the user's for some jobs; a file of this package declares one as STAGE.

    Attributes:
        name: the word.
        kind: of its artifacts, if it has any; the module of lowloss.report of that name says how they are shown.
        after: the stages whose artifacts it needs.
    """

    name: ClassVar[str]
    kind: ClassVar[str | None] = None
    after: ClassVar[tuple[str, ...]] = ()

    def check(self, bench: Bench) -> None:
        """Raise LowlossError for a value that it could not use; nothing heavy is imported."""

    def check_made(self, bench: Bench) -> None:
        """Raise LowlossError for settings that do not go together, once what they describe can be made."""

    def check_network(self, bench: Bench, landscape: NetworkLandscape) -> None:
        """Raise LowlossError for settings that do not fit the network, before any training."""

    def jobs(self, bench: Bench) -> list[Job]:
        """All that it makes for certain."""
        return []

    def run(self, bench: Bench) -> None:
        """Make what is missing."""
        from lowloss.jobs.runner import make_jobs

        make_jobs(self.name, self.jobs(bench))

    def numbers(self, study: Study) -> dict[str, float]:
        """What runs of a logger are sorted by: for each sort of artifact, such as a finder, the means of its notes that
        are real numbers, as path/bezier/saddle_train_loss."""
        values: dict[str, list[float]] = {}
        for artifact in study.complete(self.kind) if self.kind is not None else ():
            sort = sort_of(artifact)
            for name, value in artifact.notes().items():
                if isinstance(value, float) and isfinite(value):
                    values.setdefault("/".join(part for part in (self.name, sort, name) if part), []).append(value)
        return {name: sum(found) / len(found) for name, found in values.items()}


def sort_of(artifact: Artifact) -> str:
    """The name of an artifact without its minima: the finder of a path, the recipe of a scan, nothing of a minimum."""
    return re.sub(r"^[\d-]+|[\d-]+$", "", artifact.name)
