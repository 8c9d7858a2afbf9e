"""One runner for all jobs: claims, work folders, time and commits."""

from __future__ import annotations

import contextlib
import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import replace

from lowloss import files, progress
from lowloss.claims import Patience, take
from lowloss.errors import LowlossError
from lowloss.jobs.base import Job
from lowloss.study import ROWS, begin_work


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
                mine = _claimed(group, begun, stack)
                if mine:
                    taken += 1
                    make(group if begun else mine)
        left = [job for job in left if not job.complete]
        if left and not taken:
            patience.wait(left[0].artifact.claim)


def make(group: Sequence[Job]) -> None:
    """Make jobs whose claims are held, one, or several that train together, and keep what they give.

    Raises LowlossError if a needed artifact is missing or was made with other settings.
    """
    began, first = time.monotonic(), group[0]
    for needed in first.needs():
        if not needed.complete:
            command = f"{needed.bench.command} stages=[{needed.stage}]"
            raise LowlossError(f"{needed.artifact.folder} is missing: make it with `{command}`")
    names = [job.name for job in group]
    # A folder's name of every row would be too long for a file system.
    digest = hashlib.blake2b("/".join(names).encode(), digest_size=6).hexdigest()
    work = first.artifact.folder.parent / f".rows-{digest}.work" if first.rows else first.artifact.work
    begin_work(work, first.settings())
    if first.rows and not (work / ROWS).exists():
        files.write_text(work / ROWS, json.dumps(names))
    results = first.make_all(group, work)
    seconds = (time.monotonic() - began) / len(group)
    for job, result in zip(group, results, strict=True):
        if not job.artifact.complete:
            kept = replace(result, notes={**result.notes, "units": dict(job.bench.landscape.task.units)})
            job.artifact.commit(job.settings(), kept, seconds, job.bench.landscape.arithmetic)
    shutil.rmtree(work, ignore_errors=True)


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
    size = first.bench.config["minima"]["together"] or max(1, len(free))
    return [*groups, *((free[i : i + size], False) for i in range(0, len(free), size))]


def _claimed(group: Sequence[Job], begun: bool, stack: contextlib.ExitStack) -> list[Job]:
    """The jobs for this process to make: those that no other works on; of a group that has begun, all or none."""
    mine = []
    for job in group:
        if job.complete:
            continue
        claim = take(job.artifact.claim)
        if claim is not None:
            stack.enter_context(claim)
            mine.append(job)
        elif begun:
            return []
    # It may have been completed since we looked.
    return [job for job in mine if not job.complete]
