"""What a stage is."""

from __future__ import annotations

import re
from math import isfinite
from typing import TYPE_CHECKING, ClassVar

from lowloss.jobs.base import Job
from lowloss.jobs.bench import Bench
from lowloss.jobs.runner import make_jobs
from lowloss.study import Artifact, Study

if TYPE_CHECKING:
    from lowloss.landscape import NetworkLandscape


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
