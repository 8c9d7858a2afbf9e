"""Which process it is that works on something, as others recognise it, and whether it still runs; and work that several
processes share."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import socket
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

T = TypeVar("T")
R = TypeVar("R")


def identity(pid: int) -> dict[str, object]:
    """A process as others can recognise it: processes of two containers may have one number, and so may two of one
    host, the one after the other."""
    try:
        space = os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        space = boot = ""
    return {"host": f"{socket.gethostname()} {boot} {space}", "pid": pid, "started": started(pid)}


def running(owner: Mapping[str, object]) -> bool | None:
    """Whether the process of an identity runs; None where that cannot be told from here."""
    pid, told = owner.get("pid"), owner.get("started")
    if type(pid) is int and 0 < pid < 2**31:
        here = identity(pid)
        if owner.get("host") == here["host"] and here["started"] is None:
            return False
        if owner.get("host") == here["host"] and "running" not in (here["started"], told):
            return told == here["started"]
    return None


def named(owner: Mapping[str, object]) -> str:
    """A process as people call it."""
    return f"process {owner.get('pid')} on {str(owner.get('host')).partition(' ')[0]}"


def started(pid: int) -> str | None:
    """When a process of this host started, "running" where that is not told; None if there is none (any more)."""
    try:
        # The command's name, in parentheses, may hold anything; state and start time are the 3rd and 22nd field.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except (OSError, IndexError):
        pass  # there is no such process, or no /proc, or it hides the processes of other users
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"


@contextlib.contextmanager
def sharing(work: Callable[[T], R], tasks: Sequence[T], least: int) -> Iterator[Iterator[R]]:
    """Do tasks in this process and in forks of it, together as many as it may use processors; yields what they give, in
    their order. `work` raises no error.

    A process has at least so many tasks. There is no fork beside other threads, which may hold a lock at that time.
    What a killed fork leaves, or cannot send, is done here.
    """
    alone = threading.active_count() > 1 or multiprocessing.current_process().daemon
    count = 1 if alone else max(1, min(len(os.sched_getaffinity(0)), len(tasks) // least))
    context, forks, ends = multiprocessing.get_context("fork"), list[Any](), list[Any]()
    try:
        for k in range(1, count):
            end, other = context.Pipe(duplex=False)
            ends.append(end)
            forks.append(context.Process(target=_send, args=(work, tasks[k::count], other, ends), daemon=True))
            forks[-1].start()
            other.close()
        yield (_receive(ends[i % count - 1], work, task) if i % count else work(task) for i, task in enumerate(tasks))
    finally:
        for end, fork in zip(ends, forks, strict=True):
            end.close()
            fork.terminate()
            fork.join()


def _send(work: Callable[[T], R], tasks: Sequence[T], to: Any, ends: Sequence[Any]) -> None:
    """Do a fork's tasks, as long as somebody waits for them."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # of the whole command, which ends its forks
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    for end in ends:  # or nobody would ever be known to wait no more
        end.close()
    with contextlib.suppress(BrokenPipeError):
        for task in tasks:
            try:
                to.send([work(task)])
            except BrokenPipeError:
                raise
            except Exception:  # what cannot be pickled, as too deep a nesting
                to.send([])


def _receive(end: Any, work: Callable[[T], R], task: T) -> R:
    sent: list[R] = []
    with contextlib.suppress(EOFError, OSError):
        sent = end.recv()
    return sent[0] if sent else work(task)
