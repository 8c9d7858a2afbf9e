"""What a command tells while it works: bars on a terminal, a line now and then where there is none, and a record beside
the results, from which `lowloss status` tells."""

from __future__ import annotations

import contextlib
import json
import os
import re
import secrets
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from math import inf
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from lowloss import processes

console = Console(stderr=True, highlight=False)
shown = console.is_terminal
"""Whether bars are drawn; the command line always draws them, the Python API on a terminal."""

EVERY = 30.0
"""Seconds between two lines of one piece of work, where there is no terminal."""
BEAT = 2.0
"""Seconds between two writings of a record, at least."""
SILENT = 300.0
"""Seconds after which a record of nobody who is known here counts as left; who still works writes it again."""
FOLDER = ".progress"
"""The folder of a study for the records."""
LINES, LOSSES = 20, 64
"""Of a record: how many of the last lines it holds, and of the losses of a piece of work, at most."""

Advance = Callable[[int, str], None]


class Record:
    """The record of this process in a study: a JSON file that is there while the process works, and stays if it fails.

    It begins with the first piece of work, so that a command that finds everything complete writes nothing, and one
    that fails before leaves alone what there is; in a study that holds nothing yet its failure is kept too. Whoever may
    not write it works without.

    Args:
        root: the study.
        plan: tells what the command is to make, when it begins: by stage the kind and the names of its artifacts.
    """

    def __init__(self, root: Path, plan: Callable[[], Any]) -> None:
        self.file = root / FOLDER / f"{os.getpid()}-{secrets.token_hex(4)}.json"
        self.plan, self.lines = plan, deque[str](maxlen=LINES)
        self.held: dict[str, Any] = {"owner": processes.identity(os.getpid()), "at": [], "end": None}
        self.begun, self.written = False, -inf

    def tell(self, now: bool = False, **news: Any) -> None:
        """Keep what is new; it is written now and then, or at once."""
        self.held |= news
        if "work" in news and not self.begun:
            self.begun, self.held["stages"] = True, self.plan()
        if self.begun and (now or time.monotonic() - self.written >= BEAT):
            self.written, beside = time.monotonic(), self.file.with_suffix(".new")
            with contextlib.suppress(OSError):
                self.file.parent.mkdir(parents=True, exist_ok=True)
                beside.write_text(json.dumps({**self.held, "lines": [*self.lines]}), encoding="utf-8")
                beside.replace(self.file)

    def end(self, why: str | None, lines: Sequence[str] = ()) -> None:
        """The command has ended: why it failed, and what was told of that; None if it did not.

        What ended well needs no records, nor those of processes that are gone.
        """
        self.lines.extend(lines)
        if why is not None:
            root = self.file.parents[1]
            if not (self.begun or any(root.glob("*/.*.work")) or any(root.glob("*/*/result.safetensors"))):
                self.begun, self.held = True, self.held | {"stages": {}, "work": {}}
            self.tell(now=True, end=why)
        else:
            for file in self.file.parent.glob("*"):
                with contextlib.suppress(OSError):
                    if file == self.file or _over(file):
                        file.unlink()
            with contextlib.suppress(OSError):
                self.file.parent.rmdir()


def _over(file: Path) -> bool:
    """Whether the process of a record has ended; where that cannot be told, whether it has written nothing for long."""
    try:
        told = json.loads(file.read_text(encoding="utf-8"))
        ended, runs = told["end"] is not None, processes.running(told["owner"])
    except (ValueError, LookupError, TypeError, AttributeError):
        ended, runs = False, None
    return ended or runs is False or (runs is None and time.time() - file.stat().st_mtime > SILENT)


record: Record | None = None
"""Of the study that this process works on; the command line sets it."""


def end_record(why: str | None, lines: Sequence[str] = ()) -> None:
    """Tell in the record of the study that this process worked on why that failed, if it did."""
    global record
    if record is not None:
        record.end(why, lines)
        record = None


def at(*titles: str) -> None:
    """From now on the process is at work on these artifacts."""
    if record is not None:
        record.tell(at=list(titles))


@contextlib.contextmanager
def bar(title: str, total: int) -> Iterator[Advance]:
    """A bar; yields `advance(completed, note)`, where completed counts from the start of the work."""
    columns = (
        TextColumn("{task.description:<34}"),
        BarColumn(24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[note]}"),
    )
    told, first, losses = time.monotonic(), None, list[list[float]]()
    work: dict[str, Any] = {"title": title, "done": 0, "total": total, "since": 0.0, "left": None, "note": ""}
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(title, total=max(total, 1), note="")

        def advance(completed: int, note: str = "") -> None:
            nonlocal told, first
            progress.update(task, completed=completed if total else 1, note=note)
            now = time.monotonic()
            first = first or (completed, now)
            done, since = completed - first[0], now - first[1]
            left = since * (total - completed) / done if done > 0 else None
            if shown and not console.is_terminal and now - told >= EVERY and completed < total:
                told = now
                later = f", about {duration(left)} left" if left is not None else ""
                say(f"{title}: {completed}/{total}{f', {note}' if note else ''}{later}")
            if record is not None:
                if number := re.fullmatch(r"loss (\S+)", note):
                    if not losses or losses[-1][1] != float(number[1]):
                        losses.append([completed, float(number[1])])
                    losses[:] = losses[:: 1 if len(losses) <= LOSSES else 2]
                done_so_far = {"done": completed, "since": since, "left": left, "note": note, "losses": losses}
                record.tell(work=work | done_so_far)

        if record is not None:
            record.tell(work=work | {"losses": []})
        yield advance


def say(line: str) -> None:
    """A line of the story the command line tells."""
    if record is not None:
        record.lines.extend(line.splitlines())
    if shown:
        console.print(line, soft_wrap=True, markup=False)


def counted(count: int, what: str) -> str:
    """So many of what the plural names, the singular where it is one."""
    singular = {"minima": "minimum", "spectra": "spectrum", "studies": "study", "jobs not done": "job not done"}
    return f"{count} {singular.get(what, what.removesuffix('s')) if count == 1 else what}"


def duration(seconds: float) -> str:
    """A time as people say it, in its two largest units."""
    minutes, hours, days = seconds / 60, seconds / 3600, seconds / 86400
    if days >= 2:
        return f"{days:.0f} days"
    if hours >= 1:
        return f"{int(hours)} h {int(minutes) % 60} min"
    return f"{minutes:.0f} min" if minutes >= 2 else f"{seconds:.0f} s"
