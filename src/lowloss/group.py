"""A command as a group of processes of this machine, one a device; `torchrun` makes such a group too.

The environment tells a process its place, by the names that torchrun uses. The first process does the work and tells
the story; the others do their part of it (Run.serve). When one ends, so do all.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from lowloss.errors import LowlossError

PARENT = "LOWLOSS_PARENT"
"""Environment variable by which a process that `run_group` started knows whose it is."""

TRACE = "LOWLOSS_TRACE"
"""Environment variable with the file for an unexpected error of the first process: it may follow from another's end."""

STORE = "LOWLOSS_STORE"
"""Environment variable with the file, in a private folder, by which the processes of a group find one another."""

STOPPED = 143
"""Exit status of a process that was asked to stop."""

GRACE, END, LOST = 3.0, 20.0, 5.0
"""Seconds that a process waits before it tells what may be but the end of another one; and that processes have, all
together, to stop when they are asked to, or when one is lost, for which the others may wait within NCCL for ever."""


class ToldError(LowlossError):
    """An error that another process has told the user."""


@cache
def place() -> tuple[int, int] | None:
    """This process's place in its group and the group's size; None where it is in none."""
    # Remembered, since Lightning removes a name from the environment.
    if "LOCAL_RANK" not in os.environ or "WORLD_SIZE" not in os.environ:
        return None
    return int(os.environ["LOCAL_RANK"]), int(os.environ["WORLD_SIZE"])


def run_group(arguments: Sequence[str], count: int) -> None:
    """Run a command line of `lowloss` (without the name) as `count` processes.

    Raises:
        ToldError: a process failed, and told why.
        LowlossError: a process was killed.
        SystemExit: a process was asked to stop.
    """
    threads = max(1, len(os.sched_getaffinity(0)) // count)
    shared = {
        **{name: value for name, value in os.environ.items() if not name.startswith(RANKS)},
        "OMP_NUM_THREADS": os.environ.get("OMP_NUM_THREADS", str(threads)),
        "WORLD_SIZE": str(count),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": "0",  # Lightning asks for them; they meet in a file
        PARENT: str(os.getpid()),
    }
    command = [sys.executable, "-m", "lowloss", *arguments]
    processes: list[subprocess.Popen[bytes]] = []
    with tempfile.TemporaryDirectory() as folder:
        logs = [Path(folder) / str(rank) for rank in range(count)]
        shared |= {TRACE: str(logs[0]), STORE: str(Path(folder) / "store")}
        try:
            for rank, log in enumerate(logs):
                environment = {**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
                with log.open("wb") as stream:
                    # What the first one tells is for the user at once, what others tell only if they fail.
                    told = None if rank == 0 else stream
                    processes.append(subprocess.Popen(command, env=environment, stdout=told, stderr=told))
            failed = _first_failure(processes)
            if failed is not None:
                end_processes(processes, LOST)
        finally:
            end_processes(processes)
        if failed is None:
            return
        status = processes[failed].returncode
        if status < 0:
            raise LowlossError(
                f"the process of device {failed} was killed by {signal.Signals(-status).name}; "
                "the same command continues"
            )
        if status == STOPPED:
            sys.exit(status)
        sys.stderr.write(logs[failed].read_text(encoding="utf-8", errors="replace"))
        raise ToldError


RANKS = ("SLURM_NTASKS", "SLURM_PROCID", "SLURM_LOCALID", "SLURM_NODEID", "SLURM_JOB_NAME", "TORCHELASTIC_")
"""What would have a process take another group's place for its own."""


def follow_parent() -> None:
    """End this process, as by a request to stop, when the one that started its group is gone."""
    parent = os.environ.get(PARENT)

    def watch() -> None:
        while os.getppid() == int(parent or 0):
            time.sleep(1)
        os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=watch, daemon=True).start()


def _first_failure(processes: Sequence[subprocess.Popen[bytes]]) -> int | None:
    """The place of the process that failed first, or None once all have ended well."""
    while True:
        states = [process.poll() for process in processes]
        for rank, status in enumerate(states):
            if status:
                return rank
        if None not in states:
            return None
        time.sleep(0.05)


def end_processes(processes: Sequence[subprocess.Popen[bytes]], seconds: float = END) -> None:
    """Ask processes to stop, and kill those that have not in time."""
    for process in processes:
        process.terminate()
    until = time.monotonic() + seconds
    for process in processes:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(max(0.0, until - time.monotonic()))
        process.kill()
        process.wait()
