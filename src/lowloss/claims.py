"""Claims: which process works on a result, where several share a folder.

A claim is a file made atomically with its content: host, process and a token. A thread touches it while its owner
works. It is given up when the work ends, and taken over when its owner is gone: at once where the owner's process
ran on this host and no longer does, otherwise after STALE seconds without a touch.

The file system's own clock judges a claim's age, so the hosts' clocks may differ.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lowloss import progress

BEAT = 20.0
"""Seconds between two touches."""
STALE = 300.0
"""Seconds without a touch after which another host's claim counts as given up."""
LONG = 5.0
"""Seconds between two looks at what another process works on, at most."""


class Claim:
    """A claim that this process holds on `file`; as a context it is given up at its end."""

    def __init__(self, file: Path, content: str) -> None:
        self.file, self.content = file, content
        self._done = threading.Event()
        self._thread = threading.Thread(target=self._beat, daemon=True)
        self._thread.start()

    @property
    def held(self) -> bool:
        """Whether the claim is still ours: a process that was suspended for long may have lost it."""
        return _read(self.file) == self.content

    def release(self) -> None:
        self._done.set()
        self._thread.join()
        if self.held:
            self.file.unlink(missing_ok=True)

    def __enter__(self) -> Claim:
        return self

    def __exit__(self, *_: object) -> None:
        self.release()

    def _beat(self) -> None:
        while not self._done.wait(BEAT):
            with contextlib.suppress(OSError):
                if self.held:
                    os.utime(self.file)


def take(file: Path) -> Claim | None:
    """Claim a file; None if a living process holds it."""
    file.parent.mkdir(parents=True, exist_ok=True)
    content = json.dumps({**_identity(os.getpid()), "token": uuid.uuid4().hex})
    with _written(file, content) as mine:
        if _link(mine, file):
            return Claim(file, content)
        if not _stale(file, mine):
            return None
        # Only under the lock is another's claim removed, so that two who saw it stale cannot both take it.
        with _locked(file.parent / ".takeover.lock"):
            if _stale(file, mine):
                file.unlink(missing_ok=True)
            return Claim(file, content) if _link(mine, file) else None


def wait_for(file: Path) -> Claim:
    """Claim a file, waiting for the processes that hold it."""
    patience = Patience()
    while (claim := take(file)) is None:
        patience.wait(file)
    return claim


class Patience:
    """Waits a little longer each time, and never quite as long as others do; tells once for whom."""

    def __init__(self) -> None:
        self.seconds, self.told = 0.05, False

    def wait(self, file: Path) -> None:
        """Wait for whoever holds a claim on the file."""
        if self.seconds == LONG and not self.told:
            with contextlib.suppress(ValueError, KeyError, OSError):  # given up meanwhile
                owner = json.loads(_read(file) or "{}")
                what = f"{file.parent.name}/{file.name.removeprefix('.').removesuffix('.claim')}"
                host, _, _ = str(owner["host"]).partition(" ")
                progress.say(f"waiting for process {owner['pid']} on {host}, which is at work on {what}")
                self.told = True
        time.sleep(self.seconds * random.uniform(0.5, 1.0))
        self.seconds = min(2 * self.seconds, LONG)


def living(file: Path) -> bool:
    """Whether a living process, perhaps this one, holds a claim on the file."""
    if not file.exists():
        return False
    with _written(file, "") as now:
        return file.exists() and not _stale(file, now)


def _stale(file: Path, now: Path) -> bool:
    """Whether the claim's owner is gone; `now` was just written, so its time is the file system's present."""
    content = _read(file)
    try:
        age = now.stat().st_mtime - file.stat().st_mtime
        owner = json.loads(content or "{}")
    except FileNotFoundError:  # given up meanwhile: nothing to take over
        return False
    except ValueError:
        owner = {}
    here = _identity(int(owner.get("pid", 0)))
    if owner.get("host") == here["host"]:
        return owner.get("started") != here["started"]
    return age > STALE


def _identity(pid: int) -> dict[str, object]:
    """A process as others can recognise it: processes of two containers may have one number, and so may two of one
    host, the one after the other."""
    try:
        space = os.readlink("/proc/self/ns/pid")
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        space = boot = ""
    return {"host": f"{socket.gethostname()} {boot} {space}", "pid": pid, "started": _started(pid)}


def _started(pid: int) -> str | None:
    """When a process of this host started; None if there is none (any more)."""
    try:
        # The command's name, in parentheses, may hold anything; state and start time are the 3rd and 22nd field.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return None if fields[0] in "ZX" else fields[19]
    except FileNotFoundError:
        if Path("/proc/self/stat").exists():
            return None
    except (OSError, IndexError):
        pass
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return None
    except PermissionError:
        pass
    return "running"


@contextlib.contextmanager
def _written(file: Path, content: str) -> Iterator[Path]:
    """A file with this content beside `file`, gone at the end."""
    handle, name = tempfile.mkstemp(dir=file.parent, prefix=f"{file.name}-")
    try:
        with os.fdopen(handle, "w") as stream:
            stream.write(content)
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _link(source: Path, target: Path) -> bool:
    """Make the target with the source's content; whether it was not there."""
    try:
        try:
            os.link(source, target)
        except FileExistsError:
            raise
        except OSError:  # a file system without hard links: there the content comes a moment later
            with target.open("x") as stream:
                stream.write(source.read_text())
    except FileExistsError:
        return False
    return True


@contextlib.contextmanager
def _locked(file: Path) -> Iterator[None]:
    with file.open("w") as stream:
        # A file system without locks leaves a window of microseconds in which two may take over one claim.
        with contextlib.suppress(OSError):
            fcntl.flock(stream, fcntl.LOCK_EX)
        yield


def _read(file: Path) -> str | None:
    try:
        return file.read_text()
    except FileNotFoundError:
        return None
