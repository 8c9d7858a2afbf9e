"""What a stage is."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from lowloss.jobs.base import Job
from lowloss.jobs.bench import Bench
from lowloss.jobs.runner import make_jobs

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
