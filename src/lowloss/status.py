"""How far studies and sweeps are, read from what their processes leave beside the results; gathered once, and shown on
a terminal (`lowloss status`) or as a page (`lowloss watch`).

The records of processes tell what they are at (lowloss.progress), the list of a sweep which jobs there are and how they
ended (lowloss.launch), and the folders of results what is complete.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import shlex
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import log
from pathlib import Path
from typing import Any

from lowloss import files, processes
from lowloss.claims import STALE
from lowloss.errors import LowlossError
from lowloss.launch import JOBS, SWEEPS, End, aligned
from lowloss.progress import FOLDER, LINES, counted, duration
from lowloss.study import RESULT, Study

STATES = ("failed", "stopped", "at work", "waiting", "done")
"""Of a study, in the order in which they are shown."""

STOPPED = "interrupted"
"""How the reason of a command begins that was asked to stop."""

MOST = 1 << 24
"""Bytes that are read of a record."""

MOST_LINKED = 10_000
"""Folders at or under a link that are looked into."""


@dataclass(frozen=True)
class Stage:
    """Of a study: how many results are complete, of how many if that is known."""

    name: str
    done: int
    total: int | None


@dataclass(frozen=True)
class Work:
    """What a process is at: of which artifacts which part, how far, and about how many seconds more."""

    who: str
    at: str
    title: str
    done: int
    total: int
    note: str
    losses: str
    left: float | None


@dataclass(frozen=True)
class State:
    """A study. why, lines: why it failed or stopped, and what it told last. log: of the job of a sweep, if any."""

    study: str
    state: str
    stages: Sequence[Stage] = ()
    work: Sequence[Work] = ()
    left: float | None = None
    why: str = ""
    lines: Sequence[str] = ()
    log: Path | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Found:
    """The studies at or under a folder; about how many seconds are left for all; the folders of their logs."""

    folder: Path
    studies: Sequence[State]
    left: float | None
    logs: Sequence[Path]

    def of(self, state: str) -> list[State]:
        return [one for one in self.studies if one.state == state]

    @property
    def sentence(self) -> str:
        """How many studies are in which state."""
        counts = [f"{len(found)} {state}" for state in STATES if (found := self.of(state))]
        later = f"; about {duration(self.left)} left" if self.left is not None else ""
        return f"{counted(len(self.studies), 'studies')}: {', '.join(counts)}{later}"

    @property
    def goes_on(self) -> bool:
        return any(one.state in ("at work", "waiting") for one in self.studies)


@dataclass(frozen=True)
class SweptJob:
    """A job of a sweep. started: whether its launcher runs; None if that cannot be told."""

    log: Path
    launcher: bool | None
    end: End | None = field(default=None)

    @property
    def state(self) -> str:
        if self.end is not None:
            return "failed" if self.end.status else "done"
        if self.launcher is False:
            return "stopped"
        return "at work" if self.log.exists() else "waiting"


def gather(folder: Path) -> Found:
    """What can be told of the studies at or under a folder.

    Raises LowlossError if there is none, and no sweep has one there.
    """
    here = Path(os.path.abspath(folder))
    jobs, ignore = swept(here), list[str]().append
    roots = {Path(os.path.abspath(root)) for root in (studies_under(here, ignore) if here.is_dir() else ())}
    if not roots and not jobs:
        raise LowlossError(f"{folder} holds no study, and no sweep has one there: name another, say outputs/quickstart")
    shown = {root: _shown(folder, here, root) for root in sorted({*roots, *jobs})}
    states = []
    for root, name in shown.items():
        try:
            states.append(replace(read_study(root, jobs.get(root, ())), study=name))
        except Exception as error:  # whatever strangers wrote
            states.append(State(name, "stopped", why=f"{root / FOLDER} is unreadable ({error}): delete it"))
    states.sort(key=lambda one: STATES.index(one.state))
    sweeps = sorted({_sweep_of(job.log) for found in jobs.values() for job in found})
    return Found(folder, states, _left(states), [Path(os.path.relpath(sweep)) for sweep in sweeps])


def studies_under(folder: Path, tell: Callable[[str], None]) -> Iterator[Path]:
    """The folders of studies at or under a folder, of those too that have only begun; links are followed.

    Args:
        tell: is told what is left out.
    """
    seen, starts = set[str](), [folder]
    for start in starts:
        linked, links = start is not folder, list[Path]()
        for count, (parent, children, _) in enumerate(os.walk(start, followlinks=linked)):
            if linked and count == MOST_LINKED:
                tell(f"more than {MOST_LINKED} folders below the link {start}: name those that hold studies")
                break
            here = os.path.realpath(parent)
            if here in seen:  # a link to where we have been, perhaps in a circle
                children.clear()
                continue
            seen.add(here)
            kinds = {*Study(Path(parent)).kinds}
            # What has begun holds a folder of work, or a claim, of the minima, or why its first command failed.
            if kinds or any(Path(parent, "minima").glob(".*")) or any(Path(parent, FOLDER).glob("*.json")):
                yield Path(parent)
            children[:] = sorted(c for c in children if c not in {*kinds, "minima", "report"} and not c.startswith("."))
            links += [link for child in children if not linked and (link := Path(parent, child)).is_symlink()]
        starts += sorted(links)


def swept(folder: Path) -> dict[Path, list[SweptJob]]:
    """By study at or under a folder the jobs that the last sweep had for it."""
    outputs = next((parent for parent in (folder, *folder.parents) if (parent / SWEEPS).is_dir()), None)
    found: dict[Path, list[SweptJob]] = {}
    for file in sorted((outputs / SWEEPS).glob(f"*/{JOBS}"), key=lambda file: file.stat().st_mtime) if outputs else ():
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            told = _told(file)
            runs = processes.running(told["owner"]) if told["launcher"] == "local" else None
            new: dict[Path, list[SweptJob]] = {}
            for job in told["jobs"]:
                root, log = Path(os.path.abspath(file.parents[2] / job["study"])), file.parent / job["log"]
                if root.is_relative_to(folder):
                    new.setdefault(root, []).append(SweptJob(log, runs, _end(log)))
            found |= new
    return found


def _told(file: Path) -> Any:
    """What a file of JSON holds. Raises ValueError or OSError: it is no regular file, is too large, or no JSON."""
    if not file.is_file() or file.stat().st_size > MOST:
        raise ValueError(f"{file} is no file, or too large")
    return json.loads(file.read_text(encoding="utf-8"))


def _end(log: Path) -> End | None:
    with contextlib.suppress(OSError, ValueError, TypeError):
        return End(**_told(log.with_suffix(".json")))
    return None


def _sweep_of(log: Path) -> Path:
    """The folder of the logs of a log's sweep."""
    return next(parent for parent in log.parents if parent.parent.name == SWEEPS)


def _shown(folder: Path, here: Path, root: Path) -> str:
    """A study as the user would name it."""
    return str(folder / root.relative_to(here)) if root.is_relative_to(here) else str(root)


def records(root: Path) -> list[tuple[Path, dict[str, Any]]]:
    """The records of the processes at work on a study, or that failed there, the oldest first."""
    found = []
    for file in (root / FOLDER).glob("*.json"):
        with contextlib.suppress(OSError, ValueError, LookupError, TypeError, AttributeError):
            told = _told(file)
            if {"owner", "at", "end", "work", "stages", "lines"} <= told.keys():
                found.append((file.stat().st_mtime, file, told))
    return [(file, told) for _, file, told in sorted(found, key=lambda one: one[:2])]


def read_study(root: Path, jobs: Sequence[SweptJob]) -> State:
    """How far a study is. jobs: those that the last sweep had for it."""
    found, name = records(root), str(root)
    alive = [told for file, told in found if told["end"] is None and _alive(root, file, told)]
    plan = {stage: what for _, told in found for stage, what in told["stages"].items()}
    stages = [Stage(stage, *_count(root, kind, names)) for stage, (kind, names) in plan.items()]
    stages = stages or [Stage(kind, len(Study(root).complete(kind)), None) for kind in Study(root).kinds]
    states, latest = [job.state for job in jobs], max((p.stat().st_mtime for p in root.glob("*")), default=0.0)
    log = next((job.log for job in jobs if job.state == "failed"), jobs[-1].log if jobs else None)
    seconds = sum(job.end.seconds or 0 for job in jobs if job.end) if {*states} == {"done"} else None
    about: dict[str, Any] = {"stages": stages, "log": log if log is not None and log.exists() else None}
    if alive or "at work" in states or _claimed(root):
        return State(name, "at work", work=[_work(told) for told in alive], left=_left_of(root, plan, alive), **about)
    if "waiting" in states:
        return State(name, "waiting", **about)
    for job in jobs:
        # What was made since, by a command in another place, has made up for it.
        if job.end is not None and job.end.status and job.log.with_suffix(".json").stat().st_mtime >= latest:
            return State(name, "failed", why=job.end.reason, lines=last_lines(job.log), **about)
    for _, told in reversed(found):
        if (why := told["end"]) is not None:
            state = "stopped" if why.startswith(STOPPED) else "failed"
            return State(name, state, why=why, lines=told["lines"], **about)
        why = f"{processes.named(told['owner'])} is gone without a word: killed, or its machine was stopped"
        return State(name, "stopped", why=f"{why}; the same command continues", lines=told["lines"], **about)
    if "stopped" in states:
        return State(name, "stopped", why="its launcher is gone; the same command continues", **about)
    if any(root.glob("*/.*.work")):
        return State(name, "stopped", why="something is half made; the same command continues", **about)
    if missing := _missing(root):
        named = ", ".join(missing[:3]) + (f" and {len(missing) - 3} more" if missing[3:] else "")
        why = f"{named} {'are' if missing[1:] else 'is'} missing: the same command makes what is missing"
        return State(name, "stopped", why=why, **about)
    return State(name, "done", seconds=seconds, **about)


def _missing(root: Path) -> list[str]:
    """The titles of results that were there once, as the report tells from what it was made, and without one the
    results tell that are there."""
    study, report, known = Study(root), root / "report" / "inputs.json", dict[str, Any]()
    held = [artifact for kind in study.kinds for artifact in study.complete(kind)]
    with contextlib.suppress(OSError, ValueError, LookupError, TypeError, LowlossError):
        known |= _told(report)["made_from"]["inputs"]
    for artifact in held:
        known[artifact.title] = None
        if not report.is_file():
            with contextlib.suppress(LowlossError):
                known |= artifact.record()[1]
    return sorted(title for title in known if not (root / title / RESULT).is_file())


def _claimed(root: Path) -> bool:
    """Whether a process that has not written a record yet has claimed some of its work."""
    return any(map(holds, root.glob("*/.*.claim")))


def holds(claim: Path) -> bool:
    """Whether the process of a claim runs; where that cannot be told, whether it has touched the claim lately."""
    with contextlib.suppress(OSError, ValueError, AttributeError, RecursionError):
        runs = processes.running(_told(claim))
        return time.time() - claim.stat().st_mtime < STALE if runs is None else runs
    return False


def _alive(root: Path, file: Path, told: Mapping[str, Any]) -> bool:
    """Whether the process of a record runs; where that cannot be told, whether it has touched something lately."""
    runs = processes.running(told["owner"])
    if runs is not None:
        return runs
    places = [root / title for title in told["at"]]
    touched = [file, *(place.parent / f".{place.name}.claim" for place in places)]
    return any(time.time() - one.stat().st_mtime < STALE for one in touched if one.exists())


def _count(root: Path, kind: str | None, names: Sequence[str]) -> tuple[int, int | None]:
    """Of the artifacts that a stage makes, how many are complete, and how many there are; a report is one."""
    if kind is None:
        return int((root / "report" / "inputs.json").is_file()), 1
    return sum((root / kind / name).is_dir() for name in names), len(names) or None


def _work(told: Mapping[str, Any]) -> Work:
    bar, at = told["work"], told["at"]
    shown = f"{at[0]} and {len(at) - 1} more" if len(at) > 1 else "".join(at)
    losses = sparks([loss for _, loss in bar["losses"]])
    who = processes.named(told["owner"])
    return Work(who, shown, bar["title"], bar["done"], bar["total"], bar["note"], losses, bar["left"])


def sparks(losses: Sequence[float], width: int = 32) -> str:
    """Losses as a line of bars, the highest and the lowest as high and low as there are, by their logarithms."""
    shown = [log(max(loss, 1e-12)) for loss in losses[:: max(1, len(losses) // width)]]
    low, high = min(shown, default=0.0), max(shown, default=0.0)
    return "".join("▁▂▃▄▅▆▇█"[round(7 * (one - low) / (high - low or 1))] for one in shown) if len(shown) > 1 else ""


def _left_of(root: Path, plan: Mapping[str, Any], alive: Sequence[Mapping[str, Any]]) -> float | None:
    """About how many seconds a study takes from here, as long as what is missing takes what the like of it took; None
    if nothing tells."""
    took: dict[str, list[float]] = {}
    missing = list[str]()
    for kind, names in (what for what in plan.values() if what[0] is not None):
        for name in names:
            sort = f"{kind}/{re.sub(r'[0-9]+', '#', name)}"
            if not (root / kind / name).is_dir():
                missing += [sort] if not any(f"{kind}/{name}" in told["at"] for told in alive) else []
            elif len(took.get(sort, ())) < LINES:  # as good as all
                with contextlib.suppress(OSError, ValueError, LookupError):
                    told = _told(root / kind / name / "provenance.json")
                    took.setdefault(sort, []).append(float(told["seconds_since_last_start"]))
    total = 0.0
    for told in alive:
        if (left := told["work"]["left"]) is None:
            return None
        total += left
        for title in told["at"][:1]:
            took.setdefault(re.sub(r"[0-9]+", "#", title), [told["work"]["since"] + left])
    if not alive or not {*missing} <= took.keys():
        return None
    return (total + sum(sum(took[sort]) / len(took[sort]) for sort in missing)) / len(alive)


def _left(states: Sequence[State]) -> float | None:
    """About how many seconds all studies take, waiting ones as long as those that are done; None if nothing tells."""
    took = [one.seconds for one in states if one.seconds]
    working = [one.left for one in states if one.state == "at work"]
    waiting = sum(one.state == "waiting" for one in states)
    if not working or None in working or (waiting and not took):
        return None
    known = [left for left in working if left is not None]
    return max(max(known), (sum(known) + (waiting * sum(took) / len(took) if waiting else 0.0)) / len(working))


def last_lines(log: Path, count: int = LINES) -> list[str]:
    """The last lines of a log, empty ones left out; none where there is no log."""
    try:
        with log.open("rb") as stream:
            stream.seek(max(0, stream.seek(0, os.SEEK_END) - 400 * count))
            text = stream.read().decode(errors="replace")
    except OSError:
        return []
    return [line.rstrip() for line in text.splitlines() if line.strip()][-count:]


def as_text(found: Found) -> str:
    """What was found as lines for a terminal."""
    return "\n".join(_text(found))


def _text(found: Found) -> Iterator[str]:
    yield f"{found.folder}, {found.sentence}"
    for one in found.studies:
        if one.state in ("waiting", "done") and len(found.studies) > 1:
            continue
        stages = ", ".join(f"{s.name} {s.done}{'' if s.total is None else f'/{s.total}'}" for s in one.stages)
        left = f"; about {duration(one.left)} left" if one.left is not None else ""
        yield f"{one.state.upper()}  {one.study}{f': {stages}' if stages else ''}{left}"
        for work in one.work:
            note = f", {work.note}" if work.note else ""
            yield f"    {work.at or 'beginning'}, by {work.who}"
            left = f", about {duration(work.left)} left" if work.left is not None else ""
            yield f"      {work.title} {work.done}/{work.total}{note}{left} {work.losses}".rstrip()
        if one.why:
            yield f"    {one.why}"
            yield from (f"    | {line}" for line in one.lines[-5:])
            if one.log is not None:
                yield f"    all of it: lowloss logs {shlex.quote(one.study)}"
    for state in ("waiting", "done"):
        names = [os.path.relpath(one.study, found.folder) for one in found.of(state)]
        if names and len(found.studies) > 1:
            more = f" and {len(names) - 8} more" if len(names) > 8 else ""
            yield f"{state} ({len(names)}): {'; '.join(names[:8])}{more}"
    if found.logs:
        yield f"logs: {', '.join(map(str, found.logs))}"


def as_page(found: Found, every: float | None) -> str:
    """What was found as a page of HTML that needs no network. every: seconds after which it loads again, or None."""
    from jinja2 import Environment

    template = Path(__file__).with_name("status.html").read_text(encoding="utf-8")
    made = Environment(autoescape=True, trim_blocks=True, lstrip_blocks=True).from_string(template)
    now = time.strftime("%Y-%m-%d %H:%M:%S")
    page: str = made.render(found=found, states=STATES, every=every, now=now, duration=duration, quote=shlex.quote)
    return page


def watch(folder: Path, to: Path | None, every: float) -> Iterator[Path]:
    """Write the page again and again, until all has ended; yields it each time.

    Raises LowlossError if there is no study.
    """
    file, found = to or folder / "watch.html", gather(folder)
    try:
        while found.goes_on:
            files.write_text(file, as_page(found, every))
            yield file
            time.sleep(every)
            found = gather(folder)
    finally:  # whoever looks at the page when nobody writes it any more shall see that
        files.write_text(file, as_page(found, None))
    yield file


def logs(folder: Path, count: int | None = None) -> str:
    """The logs of a study, as text; of several studies, their list.

    Args:
        count: the last lines alone.

    Raises LowlossError if there is no log.
    """
    here = Path(os.path.abspath(folder))
    found = {root: jobs for root, jobs in swept(here).items() if any(job.log.exists() for job in jobs)}
    if len(found) > 1:
        rows = [[job.state, _shown(folder, here, root), str(job.log)] for root, jobs in found.items() for job in jobs]
        return "\n".join(aligned([("state", "study", "log"), *rows]))
    told = [job.log for jobs in found.values() for job in jobs if job.log.exists()]
    if told:
        texts = [log.read_text(encoding="utf-8", errors="replace").splitlines() for log in told]
        return "\n".join(line for log, text in zip(told, texts, strict=True) for line in (
            *([f"==> {log}"] if len(told) > 1 else []), *(text[-count:] if count else text)))  # fmt: skip
    if kept := records(here):
        return "\n".join(kept[-1][1]["lines"][-(count or 0) :])
    raise LowlossError(
        f"there is no log of {folder}: the jobs of a sweep with hydra/launcher=local or slurm keep theirs, and other "
        "commands what they told last where they failed"
    )
