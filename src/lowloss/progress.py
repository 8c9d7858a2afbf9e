"""Progress bars on standard error: one line a piece of work, left standing when it is done."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

console = Console(stderr=True, highlight=False)
shown = console.is_terminal
"""Whether bars are drawn; the command line always draws them, the Python API on a terminal."""

Advance = Callable[[int, str], None]


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
    with Progress(*columns, console=console, disable=not shown) as progress:
        task = progress.add_task(title, total=max(total, 1), note="")

        def advance(completed: int, note: str = "") -> None:
            progress.update(task, completed=completed if total else 1, note=note)

        yield advance


def say(line: str) -> None:
    """A line of the story the command line tells."""
    if shown:
        console.print(line, soft_wrap=True, markup=False)
