"""What a job is."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, NamedTuple

from lowloss.study import Artifact, Config, Result, check_config, merge

if TYPE_CHECKING:
    from lowloss.jobs.bench import Bench


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


class Job(ABC):
    """One artifact to make, at a bench that has the landscape and the study."""

    kind: ClassVar[str]
    """The folder of a study for artifacts of this kind."""
    stage: ClassVar[str]
    """The stage that makes it, by the user's word."""
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

    @abstractmethod
    def own_settings(self) -> Config:
        """The part of the configuration that determines it, besides what it needs."""

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
