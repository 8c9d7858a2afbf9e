"""Which process it is that works on something, as others recognise it, and whether it still runs."""

from __future__ import annotations

import os
import socket
from collections.abc import Mapping
from pathlib import Path


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
