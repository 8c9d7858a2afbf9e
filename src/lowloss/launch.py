"""Running the jobs of a sweep as processes of their own, on this machine or through SLURM.

A job is a command line of `lowloss`, so it claims, resumes and fails as that does. What it prints goes to its log,
and how it ended into a file beside: whoever waits looks for that file, and asks SLURM only whether a job is gone.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lowloss import files, processes, progress
from lowloss.group import RANKS, end_processes

VALUE = "LOWLOSS_VALUE"
"""Environment variable with the file for the value of a job's objective."""


LONGEST = 140
"""Bytes of the name of a job of a sweep, of its folder and logs, beyond which it is cut and told apart by a digest."""

SWEPT = "LOWLOSS_SWEPT"
"""Environment variable with the keys that a sweep varies; a launcher's processes inherit it."""


def study_name(config: Any, sweeper: Any, overrides: Sequence[str], number: int) -> str:
    """The study of a job of a sweep, in a folder named by what is swept; experiments and studies have names already."""
    swept = {key.lstrip("+~") for key in (*os.environ.get(SWEPT, "").split(), *(sweeper.get("params") or ()))}
    chosen = {o: key for o in overrides if (key := o.split("=")[0].lstrip("+~")) in swept}
    named = [o.replace("/", "_") for o, key in chosen.items() if key.split("@")[0] not in ("experiment", "study")]
    if chosen and not named:
        return str(config.study)
    name = ",".join(sorted(named)) or str(number)
    if len(name.encode()) > LONGEST:  # a file system takes no more than 255, with what a log adds
        name = f"{name[:100]}…{hashlib.blake2b(name.encode(), digest_size=6).hexdigest()}"
    return f"{config.study}/{name}"


@dataclass(frozen=True)
class End:
    """How a job ended: status 0, or why it failed, and after how many seconds. value: of its objective, if any."""

    status: int
    reason: str = ""
    value: float | None = None
    seconds: float | None = None


@dataclass(frozen=True)
class Job:
    """A command line of `lowloss` (without the name), called `name`, for a study; `log` ends in .log."""

    name: str
    study: str
    arguments: tuple[str, ...]
    log: Path
    environment: Mapping[str, str] = field(default_factory=dict, hash=False)

    @property
    def command(self) -> list[str]:
        return [sys.executable, "-m", "lowloss", *self.arguments]

    @property
    def end_file(self) -> Path:
        return self.log.with_suffix(".json")

    @property
    def end(self) -> End | None:
        """How it ended; None while it has not."""
        if not self.end_file.exists():
            return None
        return End(**json.loads(self.end_file.read_text(encoding="utf-8")))

    def start(self, **extra: str) -> subprocess.Popen[bytes]:
        self.log.parent.mkdir(parents=True, exist_ok=True)
        environment = {**os.environ, **self.environment, **extra, VALUE: str(self._value_file)}
        with self.log.open("ab") as log:
            return subprocess.Popen(
                self.command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT, env=environment
            )

    def finish(self, status: int, seconds: float) -> End:
        """Write down how the process ended. status: its exit status, negative for a signal."""
        value = json.loads(self._value_file.read_text()) if status == 0 and self._value_file.exists() else None
        return self.ended(End(status, "" if status == 0 else self._reason(status), value, round(seconds, 1)))

    def ended(self, end: End) -> End:
        """Write down how it ended."""
        # Without room for it, whoever waits elsewhere finds the job gone.
        with contextlib.suppress(OSError):
            files.write_text(self.end_file, json.dumps(vars(end)))
        return end

    @property
    def _value_file(self) -> Path:
        return self.log.with_suffix(".value")

    def _reason(self, status: int) -> str:
        if status < 0:
            return f"killed by {signal.Signals(-status).name}"
        with contextlib.suppress(OSError):
            lines = [line.strip() for line in self.log.read_text(encoding="utf-8", errors="replace").splitlines()]
            told = [line.removeprefix("lowloss: ") for line in lines if line.startswith("lowloss: ")]
            return (told or [line for line in lines if line] or [""])[-1]
        return f"exit status {status}"


SWEEPS, JOBS = ".sweeps", ".jobs.json"
"""Of the outputs the folder for what launchers leave; and in a sweep's its jobs, who started them, and their logs."""


def list_jobs(folder: Path, jobs: Sequence[Job], launcher: str) -> None:
    """Write down the jobs of a sweep, for `lowloss status` and `lowloss logs`. launcher: local or slurm."""
    listed = [{"study": job.study, "log": str(job.log.relative_to(folder.absolute()))} for job in jobs]
    told = {"launcher": launcher, "owner": processes.identity(os.getpid()), "jobs": listed}
    files.write_text(folder / JOBS, json.dumps(told, indent=1) + "\n")


def run_here(jobs: Sequence[Job], parallel: int, gpus: int = 0) -> list[End]:
    """Run jobs as processes of this machine, `parallel` at a time; with gpus, each sees one, in turn.

    A job that fails or is killed leaves the others alone. On an interrupt all are stopped.
    """
    waiting, ends = list(enumerate(jobs)), dict[int, End]()
    running: dict[int, tuple[int, subprocess.Popen[bytes], float]] = {}
    try:
        while waiting or running:
            while waiting and len(running) < parallel:
                number, job = waiting.pop(0)
                slot = min(set(range(parallel)) - set(running))
                seen = {"CUDA_VISIBLE_DEVICES": str(slot % gpus)} if gpus else {}
                running[slot] = number, job.start(**seen), time.monotonic()
            for slot, (number, process, began) in list(running.items()):
                if process.poll() is None:
                    continue
                del running[slot]
                ends[number] = jobs[number].finish(process.returncode, time.monotonic() - began)
                _tell(jobs[number], ends[number], len(ends), len(jobs))
            time.sleep(0.1)
    finally:
        end_processes([process for _, process, _ in running.values()])
    return [ends[number] for number in range(len(jobs))]


def _tell(job: Job, end: End, done: int, count: int) -> None:
    took = f" in {progress.duration(end.seconds)}" if end.seconds is not None else ""
    progress.say(f"[{done}/{count}] {job.name}: {f'FAILED{took}, {end.reason}' if end.status else f'done{took}'}")


class SlurmTask:
    """What submitit runs in an array task: the job's process. Preempted or out of time, the task is queued again."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def __call__(self) -> None:
        # The process stands for itself: it must not take the task's ranks for its own.
        for name in [name for name in os.environ if name.startswith(RANKS)]:
            del os.environ[name]
        with contextlib.suppress(OSError):  # as squeue shows it, where SLURM lets a task name itself
            array, task = (os.environ.get(f"SLURM_ARRAY_{part}_ID") for part in ("JOB", "TASK"))
            own = f"{array}_{task}" if array else os.environ.get("SLURM_JOB_ID")  # an array's own id is all tasks'
            update = ["scontrol", "update", f"JobId={own}", f"JobName={self.job.study}"]
            subprocess.run(update, capture_output=True)
        began, status = time.monotonic(), self.job.start().wait()
        if status in (128 + signal.SIGTERM, -signal.SIGTERM):
            # SLURM stops it, to queue it again or for good: how it ends is SLURM's to tell.
            raise RuntimeError("stopped by SIGTERM")
        end = self.job.finish(status, time.monotonic() - began)
        if end.status:
            # SLURM has to see the failure too: what depends on this task must not start.
            raise RuntimeError(end.reason)

    def checkpoint(self) -> Any:
        """Called by submitit on preemption or before the time limit: the same again, which continues."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)


def submit(jobs: Sequence[Job], folder: Path, requeues: int, after: str | None, parameters: Mapping[str, Any]) -> str:
    """Submit jobs as one array; returns its SLURM id.

    Args:
        folder: for submitit's files.
        requeues: how often a task that ran out of time is queued again.
        after: id of an array whose corresponding tasks must have succeeded before.
        parameters: of submitit's SlurmExecutor.

    Raises LowlossError: submitit or SLURM is not there, or SLURM rejects the jobs.
    """
    from lowloss.errors import LowlossError

    try:
        import submitit
    except ImportError as error:
        raise LowlossError("hydra/launcher=slurm needs submitit: pip install 'lowloss[slurm]'") from error
    given = {key: value for key, value in parameters.items() if value is not None}
    if after:
        extra = {"dependency": f"{'aftercorr' if len(jobs) > 1 else 'afterok'}:{after}", "kill_on_invalid_dep": "yes"}
        given["additional_parameters"] = {**given.get("additional_parameters", {}), **extra}
    try:
        executor = submitit.SlurmExecutor(folder=folder, max_num_timeout=requeues)
        executor.update_parameters(**given)
        # submitit prints what sbatch says to standard error, and raises it too.
        with contextlib.redirect_stderr(io.StringIO()), executor.batch():
            submitted = [executor.submit(SlurmTask(job)) for job in jobs]
    except (RuntimeError, ValueError, OSError, submitit.core.utils.FailedJobError) as error:
        said = [line.removeprefix("sbatch: error: ").strip() for line in str(error).splitlines() if line.strip()]
        raise LowlossError(f"SLURM does not take the jobs: {'; '.join(said)}") from error
    return str(submitted[0].job_id).partition("_")[0]


def wait_for_slurm(jobs: Mapping[str, Job], check_s: float) -> dict[str, End]:
    """Wait for the jobs, by SLURM id. One that SLURM no longer has and that left no end has failed.

    Why jobs are not started is told whenever it changes: a job that can never start waits for ever.
    """
    ends: dict[str, End] = {}
    missed: set[str] = set()
    asked, told = time.monotonic(), set[str]()
    while len(ends) < len(jobs):
        here = None
        if time.monotonic() - asked > check_s:
            here, asked = _queued({number.partition("_")[0] for number in jobs}), time.monotonic()
            pending = Counter(reason for reason in (here or {}).values() if reason and reason not in OWN_REASONS)
            if here is not None and set(pending) != told:
                told = set(pending)
                for reason, count in pending.items():
                    progress.say(f"slurm: {count} of {len(jobs)} jobs wait: {reason}")
        for number, job in jobs.items():
            if number in ends:
                continue
            end = job.end
            if end is None and here is not None and number not in here:
                # Once more, since an end may reach this machine late over a shared file system.
                if number in missed:
                    end = job.ended(End(1, _fate(number)))
                missed.add(number)
            if end is not None:
                ends[number] = end
                _tell(job, end, len(ends), len(jobs))
        time.sleep(0.2)
    return ends


OWN_REASONS = ("None", "Dependency", "JobArrayTaskLimit", "BeginTime")
"""Why a job is pending, where that is as it was asked for, or was queued again."""


def _queued(arrays: set[str]) -> dict[str, str] | None:
    """These arrays' tasks by id, each with why it is pending ("" if it runs); None where SLURM does not answer."""
    command = ["squeue", "--noheader", "--array", "--format=%i|%t|%r", "--me"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        return None
    rows = (line.strip().split("|", 2) for line in done.stdout.splitlines() if line.strip())
    return {task: reason if state == "PD" else "" for task, state, reason in rows if task.partition("_")[0] in arrays}


def _fate(number: str) -> str:
    """What SLURM says of a job that is gone."""
    done = subprocess.run(["scontrol", "--oneliner", "show", "job", number], capture_output=True, text=True)
    known = dict(part.partition("=")[::2] for part in done.stdout.split() if "=" in part)
    state, reason = known.get("JobState", "gone"), known.get("Reason", "None")
    return f"SLURM: {state.lower()}" + ("" if reason in ("None", "") else f" ({reason})")


def failures(ended: Sequence[tuple[Job, End]]) -> list[str]:
    """A table of the jobs that failed, and why; nothing if none did."""
    rows = [(job.name, " ".join(end.reason.split()), str(job.log)) for job, end in ended if end.status]
    return aligned([("study", "why", "log"), *rows]) if rows else []


def aligned(rows: Sequence[Sequence[str]]) -> list[str]:
    """The lines of a table, its columns as wide as their widest cell, the last one as it is."""
    widths = [max(map(len, column)) for column in list(zip(*rows, strict=True))[:-1]]
    return ["  ".join([*(cell.ljust(width) for cell, width in zip(row, widths, strict=False)), row[-1]])
            for row in rows]  # fmt: skip
