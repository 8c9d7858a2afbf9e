"""One runner for all jobs: claims, work folders, time and commits."""

import contextlib
import hashlib
import json
import shutil
import time
from collections import ChainMap
from collections.abc import Container, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from lowloss import claims, files, progress
from lowloss.claims import Claim, Patience, take
from lowloss.errors import LowlossError
from lowloss.imports import torch
from lowloss.jobs.base import Config, Job
from lowloss.study import ROWS, Artifact, begin_work, progressed


def make_jobs(title: str, wanted: Sequence[Job]) -> None:
    """Make every job of one kind whose artifact is missing, sharing them with the other processes on this study.

    An artifact that another process works on is left to it; at the end all are complete.
    Raises LowlossError if one was made with other settings, or needs what is missing.
    """
    left = [job for job in wanted if not job.complete]
    if wanted and not left:
        progress.say(f"{title}: all {len(wanted)} are complete")
    patience = Patience()
    while left:
        taken = 0
        for group, begun in _groups(left):
            with contextlib.ExitStack() as stack:
                mine, held = _claimed(group, begun, stack)
                if mine:
                    taken += 1
                    make(group if begun else mine, held)
        left = [job for job in left if not job.complete]
        if left and not taken:
            patience.wait(left[0].artifact.claim)


def make(group: Sequence[Job], held: Sequence[Claim] = ()) -> None:
    """Make jobs, one, or several that train together, and keep what they give.

    A process that was suspended for long loses its claims, and when it resumes there are two at work in one folder:
    what this one lost it leaves to the other, and what the other removed under its hands it looks for again.

    Args:
        held: their claims.

    Raises LowlossError if a needed artifact is missing or was made with other settings.
    """
    work = _work(group)
    try:
        for again in (True, True, False):
            try:
                _make(group)
                return
            except (OSError, LowlossError) as error:
                if all(job.artifact.complete for job in group):
                    return
                if not all(claim.held for claim in held):
                    progress.say(f"{group[0].artifact.title} is left to the process that took it over")
                    return
                removed = any(isinstance(cause, FileNotFoundError) for cause in (error, error.__cause__))
                if not (again and held and removed):
                    raise
    finally:
        # Of no use to anybody: its results are there, though claims were lost meanwhile, or nothing has been done.
        done = all(job.artifact.complete for job in group)
        if done or (not progressed(work) and all(claim.held for claim in held)):
            shutil.rmtree(work, ignore_errors=True)


def check_needs(job: Job, coming: Container[str] = ()) -> None:
    """Raise LowlossError if an artifact that a job needs is missing, and of none of the coming stages."""
    for needed in job.needs():
        if needed.stage not in coming and not needed.complete:
            command = f"{needed.bench.command} stages=[{needed.stage}]"
            raise LowlossError(f"{needed.artifact.folder} is missing: make it with `{command}`")


def _work(group: Sequence[Job]) -> Path:
    """The work folder of jobs that are made together."""
    first = group[0].artifact
    # A folder's name of every row would be too long for a file system.
    digest = hashlib.blake2b("/".join(job.name for job in group).encode(), digest_size=6).hexdigest()
    return first.folder.parent / f".rows-{digest}.work" if group[0].rows else first.work


def _make(group: Sequence[Job]) -> None:
    began, first = time.monotonic(), group[0]
    first.bench.tell_logger()
    inputs: list[dict[str, str]] = []
    for job in group:
        check_needs(job)
        inputs.append({needed.artifact.title: needed.artifact.digest for needed in job.needs()})
    work = _work(group)
    from lowloss.training.devices import world

    processors = {"threads": torch.get_num_threads(), "devices": world()}
    before = begin_work(work, first.settings(), {"inputs": dict(ChainMap(*inputs)), **processors})
    if first.rows and not (work / ROWS).exists():
        files.write_text(work / ROWS, json.dumps([job.name for job in group]))
    progress.at(*(job.artifact.title for job in group))
    with _as_begun(work, before, first.bench.several):
        results = first.make_all(group, work)
        seconds = (time.monotonic() - began) / len(group)
        for job, result, needs in zip(group, results, inputs, strict=True):
            if not job.artifact.complete:
                kept = replace(result, notes={**result.notes, "units": dict(job.bench.landscape.task.units)})
                job.artifact.commit(job.settings(), kept, seconds, job.bench.landscape.arithmetic, needs)


def tidy(folder: Path) -> None:
    """Remove what killed processes left beside the complete results of a kind; what is at work is left alone."""
    claims.tidy(folder)
    for left in sorted(folder.glob(".*")):
        name, _, what = left.name[1:].rpartition(".")
        names = [name]
        if name.startswith("rows-"):
            try:
                names = json.loads((left / ROWS).read_text(encoding="utf-8"))
            except (OSError, ValueError):
                # Nobody continues it: a process that had lost its claim wrote there once more, and was killed.
                with contextlib.suppress(OSError):
                    if time.time() - left.stat().st_mtime > claims.STALE:
                        shutil.rmtree(left, ignore_errors=True)
                continue
        beside = [Artifact(folder / str(name)) for name in names]
        ours = what in ("work", "claim") or what.startswith("new-")
        with contextlib.ExitStack() as stack:
            if ours and all(one.complete for one in beside):
                mine = [stack.enter_context(claim) for one in beside if (claim := take(one.claim)) is not None]
                if len(mine) == len(beside) and left.is_dir():
                    shutil.rmtree(left, ignore_errors=True)


@contextlib.contextmanager
def _as_begun(work: Path, before: Config, several: bool) -> Iterator[None]:
    """With as many threads as the work was begun with: sums in other parts are of other bits.

    Raises LowlossError where processes of several devices take part, and each would have to be told.
    """
    from lowloss.training.devices import world

    threads, now = before["threads"], torch.get_num_threads()
    if threads != now and several:
        raise LowlossError(
            f"{work} was begun with {threads} threads and there are {now}, which gives other bits: "
            f"set OMP_NUM_THREADS={threads}, or delete {work} to start this piece of work afresh"
        )
    if threads != now:
        progress.say(f"{work.name} was begun with {threads} threads, not {now}, and continues with {threads}")
    if before["devices"] != world():
        progress.say(
            f"{work.name} was begun on {before['devices']} devices and continues on {world()}: "
            "its numbers will be those of either to rounding only"
        )
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(now)


def _groups(left: Sequence[Job]) -> list[tuple[list[Job], bool]]:
    """Jobs of one kind that are made at once, and whether they have begun: these groups first, then the others."""
    first, rows = left[0], {job.name: job for job in left}
    if not first.rows:
        return [([job], False) for job in left]
    groups: list[tuple[list[Job], bool]] = []
    for file in sorted(first.artifact.folder.parent.glob(f".rows-*.work/{ROWS}")):
        with contextlib.suppress(OSError, ValueError):
            names = json.loads(file.read_text(encoding="utf-8"))
            if {*names} & {*rows}:
                groups.append(([first.renamed(name) for name in names], True))
                rows = {name: job for name, job in rows.items() if name not in names}
    free = list(rows.values())
    size = first.bench.config["minima"].get("together") or max(1, len(free))
    return [*groups, *((free[i : i + size], False) for i in range(0, len(free), size))]


def _claimed(group: Sequence[Job], begun: bool, stack: contextlib.ExitStack) -> tuple[list[Job], list[Claim]]:
    """The jobs for this process to make, and their claims: those that no other works on; of a group that has begun,
    all or none."""
    mine, held = [], []
    for job in group:
        if job.complete:
            continue
        claim = take(job.artifact.claim)
        if claim is not None:
            stack.enter_context(claim)
            mine.append(job)
            held.append(claim)
        elif begun:
            return [], []
    # It may have been completed since we looked.
    return [job for job in mine if not job.complete], held
