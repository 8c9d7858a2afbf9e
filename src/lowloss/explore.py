"""Exploring pairs of minima, alone or together with other processes on the same study (Draxler et al., Algorithm 3).

What was explored is what lies in the study: the next pair follows from the complete paths and from the claims of
living processes, so that a run continues, and is joined, by the same command.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Collection
from itertools import combinations
from math import inf, isfinite
from pathlib import Path

from lowloss import files, progress
from lowloss.claims import Claim, Patience, living, take, wait_for
from lowloss.errors import NonFiniteLossError, OtherConfigError
from lowloss.finder.exploration import Pair, next_pair, spanning_tree, upper_bounds
from lowloss.run import Run


def explore(run: Run, finder: str, make: Callable[[int, int], None]) -> None:
    """Make paths by a finder until every pair is known, none of the others can be lower, or the budget is spent.

    After each path `bounds-<finder>.csv` holds every pair's saddle, where known, and its upper bound.

    A search that diverges connects nothing, and does not keep the other pairs from being searched, unless a process a
    device takes part.

    Args:
        make: makes the path between two minima, whose claim is held.

    Raises:
        NonFiniteLossError: at the end, if searches diverged.
    """
    began, patience = time.monotonic(), Patience()
    diverged: dict[Pair, NonFiniteLossError] = {}
    while True:
        # One process chooses at a time, so that none exceeds the budget or chooses without knowing of the others.
        with wait_for(run.study.root / "paths" / f".explore-{finder}.claim"):
            pair, claim, busy = _choose(run, finder, time.monotonic() - began, diverged)
        if claim is not None:
            assert pair is not None
            with claim:
                try:
                    make(*pair)
                except NonFiniteLossError as error:
                    if run.several:
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


def _choose(
    run: Run, finder: str, seconds: float, diverged: Collection[Pair]
) -> tuple[Pair | None, Claim | None, Path | None]:
    """The next pair and its claim; else the claim of another process to wait for. Tells where it ends."""
    count = run.config["minima"]["count"]
    # In this order: a path that is completed in between is seen at least once.
    pending = {pair for pair in combinations(range(count), 2) if living(run.path(*pair, finder).claim)}
    saddles = dict.fromkeys(diverged, inf) | _saddles(run, finder)
    _write_bounds(run, finder, saddles)
    pair = next_pair(count, saddles, pending, _losses(run))
    spent = _spent(run, finder, len({*saddles, *pending}), seconds)
    if pair is not None and not spent:
        claim = run.path(*pair, finder).claim
        return pair, take(claim), claim
    waits = bool(pending) and spent != "hours"
    if not waits:
        tree = spanning_tree(count, saddles)
        highest = f", highest saddle of the spanning tree {saddles[tree[0]]:.4g}" if tree else ""
        apart = sum(bound == inf for pair, bound in upper_bounds(count, saddles).items() if 0 in pair)
        if tree and apart:
            highest += f" (incomplete: {apart} of {count} minima are not connected with minimum 0)"
        why = f", path.budget.{spent} is spent" if spent and pair is not None else ""
        total = count * (count - 1) // 2
        if pair is None and not pending and len(saddles) < total:
            why = ", no other path could lower the tree"
        known = len(saddles) - len(diverged)
        progress.say(f"path: {finder} explored {known} of {total} pairs{highest}{why}")
    return None, None, run.path(*min(pending), finder).claim if waits else None


def write_bounds(run: Run, finder: str) -> None:
    """Write every pair's saddle, where known, and its upper bound to `bounds-<finder>.csv`.

    Paths of another configuration, which nobody asked for now, are left out.
    """
    _write_bounds(run, finder, _saddles(run, finder, OtherConfigError))


def _losses(run: Run) -> list[float]:
    """The minima's train losses; without a minimum, whoever needs it tells, and nothing is left out for it."""
    minima = [run.minimum(k) for k in range(run.config["minima"]["count"])]
    return [minimum.notes()["train_loss"] if minimum.complete else -inf for minimum in minima]


def _saddles(run: Run, finder: str, *left_out: type[Exception]) -> dict[Pair, float]:
    """The highest train loss of every complete path; infinite where it is not finite."""
    config, saddles = run.path_config(finder), {}
    for pair in combinations(range(run.config["minima"]["count"]), 2):
        artifact = run.path(*pair, finder)
        with contextlib.suppress(*left_out):
            if artifact.matches(config):
                loss = artifact.notes()["saddle_train_loss"]
                saddles[pair] = loss if isfinite(loss) else inf
    return saddles


def _spent(run: Run, finder: str, begun: int, seconds: float) -> str | None:
    """The part of the budget that has no room for another path, if any."""
    budget = run.config["path"]["budget"]
    steps = sum(phase.steps for phase in run.finders[finder].phases) if budget["steps"] is not None else 0
    needed = {"pairs": begun + 1, "steps": (begun + 1) * steps, "hours": seconds / 3600}
    over = [name for name, limit in budget.items() if limit is not None and needed[name] > limit]
    return over[0] if over else None


def _write_bounds(run: Run, finder: str, saddles: dict[Pair, float]) -> None:
    bounds = upper_bounds(run.config["minima"]["count"], saddles)
    rows = [f"{i},{j},{saddles.get((i, j), '')},{bound}" for (i, j), bound in bounds.items()]
    text = "\n".join(["start,end,saddle,bound", *rows, ""])
    file = run.bounds(finder)
    if not file.exists() or file.read_text() != text:
        files.write_text(file, text)
