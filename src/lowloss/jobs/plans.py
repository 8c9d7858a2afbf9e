"""Which pairs of minima are connected: named, the star, all, or explored (Draxler et al. 2018, Algorithm 3).

What was explored is what lies in the study: the next pair follows from the complete paths and from the claims of
living processes, so that a run continues, and is joined, by the same command.
"""

from __future__ import annotations

import contextlib
import os
import re
import time
from collections.abc import Callable, Collection
from itertools import combinations
from math import inf, isfinite
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss import files, progress
from lowloss.claims import Claim, Patience, living, take, wait_for
from lowloss.digests import check_seal, seal
from lowloss.errors import LowlossError, NonFiniteLossError, is_number, reason
from lowloss.jobs.base import Job
from lowloss.jobs.bench import Bench
from lowloss.jobs.minima import minimum
from lowloss.jobs.runner import make

if TYPE_CHECKING:
    from lowloss.spanning import Pair

JobOf = Callable[[int, int], Job]
"""The job of the path between two minima, by one finder."""


def _wanted_pairs(bench: Bench, finder: str) -> tuple[str, Any]:
    """Which pairs a finder is to connect, and the key that says so."""
    only = bench.config["path"]["only"]
    return (f"path.only.{finder}", only[finder]) if finder in only else ("path.pairs", bench.config["path"]["pairs"])


def explores(bench: Bench, finder: str) -> bool:
    """Whether a finder chooses its pairs by what the paths so far have shown."""
    return bool(_wanted_pairs(bench, finder)[1] == "explore")


def pairs(bench: Bench, finder: str) -> list[Pair]:
    """The pairs of minima that a finder connects for certain, each once and the smaller index first.

    Raises LowlossError if they do not exist.
    """
    count, (key, wanted) = bench.count, _wanted_pairs(bench, finder)
    if wanted in ("all", "explore") and count > 1000:
        raise LowlossError(f"{key}={wanted} is for at most 1000 minima, and there are {count}: name the pairs, or star")
    if wanted in ("star", "explore"):
        return [(0, k) for k in range(1, count)]
    if wanted == "all":
        return list(combinations(range(count), 2))
    if not isinstance(wanted, list) or not all(
        isinstance(pair, list) and [type(k) for k in pair] == [int, int] for pair in wanted
    ):
        raise LowlossError(f"{key} must be star, all, explore or a list like [[0,1],[0,2]], got {wanted!r}")
    for i, j in wanted:
        if i == j:
            raise LowlossError(f"{key} names [{i},{j}], which joins a minimum to itself: name two minima")
        if not (0 <= i < count and 0 <= j < count):
            raise LowlossError(f"{key} names [{i},{j}], but the minima are 0 … {count - 1}: {bench.more_minima}")
    return list(dict.fromkeys((min(pair), max(pair)) for pair in wanted))


def check_budget(bench: Bench) -> None:
    """Raise LowlossError for a budget of exploring that makes no sense, or does not suffice to begin."""
    budget, star = bench.config["path"]["budget"], bench.count - 1
    if not isinstance(budget, dict) or set(budget) != {"pairs", "steps", "hours"}:
        raise LowlossError(f"path.budget has the keys pairs, steps and hours, each perhaps null, got {budget!r}")
    for name, value in budget.items():
        kind, words = (float, "number") if name == "hours" else (int, "whole number")
        if value is not None and not (is_number(value, kind) and value > 0):
            raise LowlossError(f"path.budget.{name} must be null or a positive {words}, got {value!r}")
    exploring = any(explores(bench, finder) for finder in bench.config["finder"])
    if exploring and budget["pairs"] is not None and budget["pairs"] < star:
        raise LowlossError(
            f"path.budget.pairs={budget['pairs']}, but to explore begins with the {star} pairs of minimum 0 and "
            "every other: raise it, or choose other path.pairs"
        )


def check_steps(bench: Bench, finder: str) -> None:
    """Raise LowlossError if the budget's steps do not suffice for a single path by a finder."""
    limit, needed = bench.config["path"]["budget"]["steps"], sum(phase.steps for phase in bench.finders[finder].phases)
    if limit is not None and limit < needed:
        raise LowlossError(
            f"path.budget.steps={limit}, but a path by {finder} takes {needed}: raise it, or choose other path.pairs"
        )


def _bounds_file(bench: Bench, finder: str) -> Path:
    return bench.study.root / f"bounds-{finder}.csv"


def bounded(bench: Bench, finder: str) -> bool:
    """Whether the table of bounds has every pair: then what writes it need not be loaded."""
    count, file = bench.count, _bounds_file(bench, finder)
    return _sealed(file) and file.read_bytes().count(b"\n") == 1 + count * (count - 1) // 2


def _sealed(file: Path) -> bool:
    """Whether a table is as it was written; tells where it is not."""
    if not file.exists():
        return False
    try:
        check_seal(file)
    except (OSError, ValueError) as error:
        progress.say(f"{file} is damaged ({reason(error)}): it is written anew from the paths")
        return False
    return True


def explore(bench: Bench, finder: str, job: JobOf) -> None:
    """Make paths by a finder until every pair is known, none of the others can be lower, or the budget is spent.

    `bounds-<finder>.csv` holds every pair's saddle, where known, and its upper bound; it is written after each path,
    but not so often that this takes more than a tenth of the time, and at the end.

    A search that diverges connects nothing, and does not keep the other pairs from being searched, unless a process a
    device takes part.

    Args:
        job: that of a pair.

    Raises NonFiniteLossError at the end, if searches diverged.
    """
    exploration, patience = _Exploration(bench, finder, job), Patience()
    diverged = exploration.diverged
    while True:
        # One process chooses at a time, so that none exceeds the budget or chooses without knowing of the others.
        with wait_for(bench.study.root / "paths" / f".explore-{finder}.claim"):
            pair, claim, busy = exploration.choose()
        if claim is not None:
            assert pair is not None
            with claim:
                try:
                    make([job(*pair)], [claim])
                except NonFiniteLossError as error:
                    if bench.several:
                        raise  # the processes of the other devices have ended with it
                    progress.say(f"path: {finder} {pair[0]}–{pair[1]} diverged and connects nothing")
                    diverged[pair] = error
            patience = Patience()
        elif busy is not None:
            patience.wait(busy)
        elif diverged:
            pairs = ", ".join(f"{i}–{j}" for i, j in diverged)
            first = next(iter(diverged.values()))
            raise NonFiniteLossError(f"path: {finder} diverged on {pairs}: {first}") from first
        else:
            return


class _Exploration:
    """What a process knows of the paths by one finder; complete ones and minima do not change, and are read once."""

    def __init__(self, bench: Bench, finder: str, job: JobOf) -> None:
        self.bench, self.finder, self.job, self.began = bench, finder, job, time.monotonic()
        self.diverged: dict[Pair, NonFiniteLossError] = {}
        self.found: dict[Pair, float] = {}
        self.losses: list[float] = []
        self.write_at = 0.0

    def choose(self) -> tuple[Pair | None, Claim | None, Path | None]:
        """The next pair and its claim; else the claim of another process to wait for. Tells where it ends."""
        from lowloss.spanning import next_pair, spanning_tree, upper_bounds

        bench, job, count = self.bench, self.job, self.bench.count
        # In this order: a path that is completed in between is seen at least once.
        claimed = _pairs_here(bench, rf"\.(\d+)-(\d+)-{re.escape(self.finder)}\.claim")
        pending = {pair for pair in claimed if living(job(*pair).artifact.claim)}
        self.found |= saddles(bench, self.finder, job, self.found)
        found = dict.fromkeys(self.diverged, inf) | self.found
        if time.monotonic() > self.write_at:
            self._write_bounds(found)
        if not self.losses:
            minima = [minimum(bench, k).artifact for k in range(count)]
            # Without a minimum, whoever needs it tells, and nothing is left out for it.
            losses = [one.notes()["train_loss"] if one.complete else -inf for one in minima]
            self.losses = losses if -inf not in losses else []
        else:
            losses = self.losses
        pair = next_pair(count, found, pending, losses)
        spent = _spent(bench, self.finder, len({*found, *pending}), time.monotonic() - self.began)
        if pair is not None and not spent:
            claim = job(*pair).artifact.claim
            return pair, take(claim), claim
        waits = bool(pending) and spent != "hours"
        if not waits:
            self._write_bounds(found)
            tree, total = spanning_tree(count, found), count * (count - 1) // 2
            highest = f", highest saddle of the spanning tree {found[tree[0]]:.4g}" if tree else ""
            apart = sum(bound == inf for pair, bound in upper_bounds(count, found).items() if 0 in pair)
            if tree and apart:
                highest += f" (incomplete: {apart} of {count} minima are not connected with minimum 0)"
            why = f", path.budget.{spent} is spent" if spent and pair is not None else ""
            if pair is None and not pending and len(found) < total:
                why = ", no other path could lower the tree"
            known = len(found) - len(self.diverged)
            progress.say(f"path: {self.finder} explored {known} of {total} pairs{highest}{why}")
        return None, None, job(*min(pending)).artifact.claim if waits else None

    def _write_bounds(self, found: dict[Pair, float]) -> None:
        began = time.monotonic()
        write_bounds(self.bench, self.finder, found)
        ended = time.monotonic()
        self.write_at = ended + 9 * (ended - began)


def _pairs_here(bench: Bench, pattern: str) -> set[Pair]:
    """The pairs of the study's minima in the names of its folder of paths, where they match."""
    with contextlib.suppress(FileNotFoundError):
        matches = [re.fullmatch(pattern, name) for name in os.listdir(bench.study.root / "paths")]
        pairs = {(int(match[1]), int(match[2])) for match in matches if match}
        return {(i, j) for i, j in pairs if i < j < bench.count}
    return set()


def saddles(
    bench: Bench, finder: str, job: JobOf, known: Collection[Pair] = (), left_out: tuple[type[Exception], ...] = ()
) -> dict[Pair, float]:
    """The highest train loss of every complete path by a finder; infinite where it is not finite.

    Args:
        known: pairs that need not be read.
        left_out: errors of paths that do not count.
    """
    found = {}
    for pair in sorted(_pairs_here(bench, rf"(\d+)-(\d+)-{re.escape(finder)}") - {*known}):
        path = job(*pair)
        with contextlib.suppress(*left_out):
            if path.complete:
                loss = path.artifact.notes()["saddle_train_loss"]
                found[pair] = loss if isfinite(loss) else inf
    return found


def _spent(bench: Bench, finder: str, begun: int, seconds: float) -> str | None:
    """The part of the budget that has no room for another path, if any."""
    budget = bench.config["path"]["budget"]
    steps = sum(phase.steps for phase in bench.finders[finder].phases) if budget["steps"] is not None else 0
    needed = {"pairs": begun + 1, "steps": (begun + 1) * steps, "hours": seconds / 3600}
    over = [name for name, limit in budget.items() if limit is not None and needed[name] > limit]
    return over[0] if over else None


def write_bounds(bench: Bench, finder: str, known: dict[Pair, float]) -> None:
    """Write every pair's saddle, where known, and its upper bound to `bounds-<finder>.csv`."""
    from lowloss.spanning import upper_bounds

    bounds = upper_bounds(bench.count, known)
    rows = [f"{i},{j},{known.get((i, j), '')},{bound}" for (i, j), bound in bounds.items()]
    text = "\n".join(["start,end,saddle,bound", *rows, ""])
    file = _bounds_file(bench, finder)
    if not _sealed(file) or file.read_bytes() != text.encode():
        files.write_text(file, text)
        seal(file)
