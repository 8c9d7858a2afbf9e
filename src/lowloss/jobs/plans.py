"""Which pairs of minima are connected: named, the star, all, or explored (Draxler et al. 2018, Algorithm 3).

What was explored is what lies in the study: the next pair follows from the complete paths and from the claims of
living processes, so that a run continues, and is joined, by the same command.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable
from functools import cached_property
from itertools import combinations
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss import files, progress
from lowloss.claims import Claim, Patience, living, take, wait_for
from lowloss.digests import check_seal, seal
from lowloss.errors import LowlossError, NonFiniteLossError, is_number, reason
from lowloss.jobs.base import Bench, Job
from lowloss.jobs.minima import minimum
from lowloss.jobs.runner import make

if TYPE_CHECKING:
    from lowloss.spanning import Pair


class Plan:
    """The pairs that a finder is to connect, and what the study has of them."""

    def __init__(self, bench: Bench, finder: str) -> None:
        self.bench, self.finder, self.count = bench, finder, bench.count
        only = bench.config["path"]["only"]
        self.key = f"path.only.{finder}" if finder in only else "path.pairs"
        self.wanted: Any = only[finder] if finder in only else bench.config["path"]["pairs"]
        self.explores = self.wanted == "explore"
        """Whether it chooses its pairs by what the paths so far have shown."""
        self.bounds = bench.study.root / f"bounds-{finder}.csv"
        """Every pair's saddle, where known, and its upper bound."""

    def pairs(self) -> list[Pair]:
        """The pairs of minima that it connects for certain, each once and the smaller index first.

        Raises LowlossError if they do not exist.
        """
        key, wanted, count = self.key, self.wanted, self.count
        if wanted in ("all", "explore") and count > 1000:
            told = f"{key}={wanted} is for at most 1000 minima, and there are {count}"
            raise LowlossError(f"{told}: name the pairs, or star")
        if wanted in ("star", "explore"):
            return [(0, k) for k in range(1, count)]
        if wanted == "all":
            return list(combinations(range(count), 2))
        if not are_pairs(wanted):
            raise LowlossError(f"{key} must be star, all, explore or a list like [[0,1],[0,2]], got {wanted!r}")
        for i, j in wanted:
            if i == j:
                raise LowlossError(f"{key} names [{i},{j}], which joins a minimum to itself: name two minima")
            if not (0 <= i < count and 0 <= j < count):
                more = self.bench.more_minima
                raise LowlossError(f"{key} names [{i},{j}], but the minima are 0 … {count - 1}: {more}")
        return list(dict.fromkeys((min(pair), max(pair)) for pair in wanted))

    @cached_property
    def steps(self) -> int:
        """Of a path."""
        return sum(phase.steps for phase in self.bench.finders[self.finder].phases)

    def check_steps(self) -> None:
        """Raise LowlossError if it explores, and the budget's steps do not suffice for a single path."""
        limit = self.bench.config["path"]["budget"]["steps"]
        if self.explores and limit is not None and limit < self.steps:
            told = f"path.budget.steps={limit}, but a path by {self.finder} takes {self.steps}"
            raise LowlossError(f"{told}: raise it, or choose other path.pairs")

    @property
    def bounded(self) -> bool:
        """Whether the table of bounds has every pair: then what writes it need not be loaded."""
        lines = 1 + self.count * (self.count - 1) // 2
        return _sealed(self.bounds) and self.bounds.read_bytes().count(b"\n") == lines

    def write_bounds(self, known: dict[Pair, float]) -> None:
        """Write the table of bounds, from the saddles that are known."""
        from lowloss.spanning import upper_bounds

        bounds = upper_bounds(self.count, known)
        rows = [f"{i},{j},{known.get((i, j), '')},{bound}" for (i, j), bound in bounds.items()]
        text = "\n".join(["start,end,saddle,bound", *rows, ""])
        if not _sealed(self.bounds) or self.bounds.read_bytes() != text.encode():
            files.write_text(self.bounds, text)
            seal(self.bounds)

    def here(self, ending: str = "", beginning: str = "") -> set[Pair]:
        """The pairs of the study's minima whose folders, or files of this beginning and ending, are there."""
        pattern = re.compile(rf"{re.escape(beginning)}(\d+)-(\d+)-{re.escape(self.finder + ending)}")
        with contextlib.suppress(FileNotFoundError):
            matches = [pattern.fullmatch(name) for name in os.listdir(self.bench.study.root / "paths")]
            pairs = {(int(match[1]), int(match[2])) for match in matches if match}
            return {(i, j) for i, j in pairs if i < j < self.count}
        return set()


def are_pairs(wanted: Any) -> bool:
    """Whether a setting is a list of pairs of whole numbers."""
    return isinstance(wanted, list) and all(
        isinstance(pair, list) and [type(k) for k in pair] == [int, int] for pair in wanted
    )


def check_budget(bench: Bench) -> None:
    """Raise LowlossError for a budget of exploring that makes no sense, or does not suffice to begin."""
    budget, star = bench.config["path"]["budget"], bench.count - 1
    if not isinstance(budget, dict) or set(budget) != {"pairs", "steps", "hours"}:
        raise LowlossError(f"path.budget has the keys pairs, steps and hours, each perhaps null, got {budget!r}")
    for name, value in budget.items():
        kind, words = (float, "number") if name == "hours" else (int, "whole number")
        if value is not None and not (is_number(value, kind) and value > 0):
            raise LowlossError(f"path.budget.{name} must be null or a positive {words}, got {value!r}")
    exploring = any(Plan(bench, finder).explores for finder in bench.config["finder"])
    if exploring and budget["pairs"] is not None and budget["pairs"] < star:
        raise LowlossError(
            f"path.budget.pairs={budget['pairs']}, but to explore begins with the {star} pairs of minimum 0 and "
            "every other: raise it, or choose other path.pairs"
        )


def _sealed(file: Path) -> bool:
    """Whether a table is as it was written; tells where it is not."""
    try:
        if file.exists():
            check_seal(file)
        return file.exists()
    except (OSError, ValueError) as error:
        progress.say(f"{file} is damaged ({reason(error)}): it is written anew from the paths")
        return False


class Exploration:
    """What a process knows of the paths of a plan; complete ones and minima do not change, and are read once.

    Args:
        job: that of a pair.
    """

    def __init__(self, plan: Plan, job: Callable[[int, int], Job]) -> None:
        self.plan, self.bench, self.job, self.began = plan, plan.bench, job, time.monotonic()
        self.diverged: dict[Pair, NonFiniteLossError] = {}
        self.found: dict[Pair, float] = {}
        self.losses: list[float] = []
        self.write_at = 0.0

    def read(self, left_out: tuple[type[Exception], ...] = ()) -> None:
        """Read the highest train loss of every complete path; infinite where it is not finite.

        Args:
            left_out: errors of paths that do not count.
        """
        for pair in sorted(self.plan.here() - {*self.found}):
            path = self.job(*pair)
            with contextlib.suppress(*left_out):
                if path.complete:
                    loss = path.artifact.notes()["saddle_train_loss"]
                    self.found[pair] = loss if isfinite(loss) else inf

    def run(self) -> None:
        """Make paths until every pair is known, none of the others can be lower, or the budget is spent.

        The table of bounds is written after each path, but not so often that this takes more than a tenth of the time,
        and at the end.

        A search that diverges connects nothing, and does not keep the other pairs from being searched, unless a process
        a device takes part.

        Raises NonFiniteLossError at the end, if searches diverged.
        """
        patience, finder = Patience(), self.plan.finder
        while True:
            # One process chooses at a time, so that none exceeds the budget or chooses without knowing of the others.
            with wait_for(self.bench.study.root / "paths" / f".explore-{finder}.claim"):
                pair, claim, busy = self.choose()
            if claim is not None:
                assert pair is not None
                with claim:
                    try:
                        make([self.job(*pair)], [claim])
                    except NonFiniteLossError as error:
                        if self.bench.several:
                            raise  # the processes of the other devices have ended with it
                        progress.say(f"path: {finder} {pair[0]}–{pair[1]} diverged and connects nothing")
                        self.diverged[pair] = error
                patience = Patience()
            elif busy is not None:
                patience.wait(busy)
            elif self.diverged:
                pairs = ", ".join(f"{i}–{j}" for i, j in self.diverged)
                first = next(iter(self.diverged.values()))
                raise NonFiniteLossError(f"path: {finder} diverged on {pairs}: {first}") from first
            else:
                return

    def choose(self) -> tuple[Pair | None, Claim | None, Path | None]:
        """The next pair and its claim; else the claim of another process to wait for. Tells where it ends."""
        from lowloss.spanning import next_pair

        # In this order: a path that is completed in between is seen at least once.
        pending = {pair for pair in self.plan.here(".claim", ".") if living(self.job(*pair).artifact.claim)}
        self.read()
        found = dict.fromkeys(self.diverged, inf) | self.found
        if time.monotonic() > self.write_at:
            began = time.monotonic()
            self.plan.write_bounds(found)
            self.write_at = 10 * time.monotonic() - 9 * began
        if -inf in self.losses or not self.losses:
            minima = [minimum(self.bench, k).artifact for k in range(self.plan.count)]
            # Without a minimum, whoever needs it tells, and nothing is left out for it.
            self.losses = [one.notes()["train_loss"] if one.complete else -inf for one in minima]
        pair = next_pair(self.plan.count, found, pending, self.losses)
        spent = self._spent(len({*found, *pending}))
        if pair is not None and not spent:
            claim = self.job(*pair).artifact.claim
            return pair, take(claim), claim
        waits = bool(pending) and spent != "hours"
        if not waits:
            self.plan.write_bounds(found)
            self._tell(found, pair, spent, complete=not pending)
        return None, None, self.job(*min(pending)).artifact.claim if waits else None

    def _spent(self, begun: int) -> str | None:
        """The part of the budget that has no room for another path, if any."""
        budget, hours = self.bench.config["path"]["budget"], (time.monotonic() - self.began) / 3600
        steps = self.plan.steps if budget["steps"] is not None else 0
        needed = {"pairs": begun + 1, "steps": (begun + 1) * steps, "hours": hours}
        over = [name for name, limit in budget.items() if limit is not None and needed[name] > limit]
        return over[0] if over else None

    def _tell(self, found: dict[Pair, float], pair: Pair | None, spent: str | None, complete: bool) -> None:
        """Tell of the end: what is known, and why no more, where a pair is left."""
        from lowloss.spanning import spanning_tree, upper_bounds

        count, total = self.plan.count, self.plan.count * (self.plan.count - 1) // 2
        tree = spanning_tree(count, found)
        highest = f", highest saddle of the spanning tree {found[tree[0]]:.4g}" if tree else ""
        apart = sum(bound == inf for pair, bound in upper_bounds(count, found).items() if 0 in pair)
        if tree and apart:
            highest += f" (incomplete: {apart} of {count} minima are not connected with minimum 0)"
        why = f", path.budget.{spent} is spent" if spent and pair is not None else ""
        if pair is None and complete and len(found) < total:
            why = ", no other path could lower the tree"
        known = len(found) - len(self.diverged)
        progress.say(f"path: {self.plan.finder} explored {known} of {total} pairs{highest}{why}")
