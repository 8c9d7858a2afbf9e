"""Claims: which process works on a result, where several share a folder.

A claim is a file made atomically with its content: host, process and a token. A thread touches it while its owner
works. It is given up when the work ends, and taken over when its owner is gone: at once where the owner's process
ran on this host and no longer does, otherwise after STALE seconds without a touch.

The file system's own clock judges a claim's age, so the hosts' clocks may differ. A claim that does not tell whose it
is, or is of the future, is judged by what is seen of it here: that it does not change for STALE seconds.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import random
import threading
import time
import uuid
from collections.abc import Iterator
from pathlib import Path

from lowloss import files, processes, progress
from lowloss.errors import LowlossError

BEAT = 20.0
"""Seconds between two touches."""
STALE = 300.0
"""Seconds without a touch after which another host's claim counts as given up."""
LOCK = ".takeover.lock"
LONG, LOOK = 5.0, 0.25
"""Seconds between two looks at what another process works on, and at whether its claim is still there, at most."""


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
    if file.is_dir():
        raise LowlossError(f"{file} is a folder, in the place where a process claims its work: delete it")
    content = json.dumps({**processes.identity(os.getpid()), "token": uuid.uuid4().hex})
    with _written(file, content) as mine:
        if _link(mine, file):
            return Claim(file, content)
        if not _stale(file, mine):
            return None
        # Only under the lock is another's claim removed, so that two who saw it stale cannot both take it.
        with _locked(file.parent / LOCK):
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
    """Waits a little longer each time, but not after the claim is given up; tells once for whom."""

    def __init__(self) -> None:
        self.seconds, self.told = 0.05, False

    def wait(self, file: Path) -> None:
        """Wait for whoever holds a claim on the file."""
        if self.seconds == LONG and not self.told and (owner := _owner(file)) is not None:  # not given up meanwhile
            what = f"{file.parent.name}/{file.name.removeprefix('.').removesuffix('.claim')}"
            if owner:
                progress.say(f"waiting for {processes.named(owner)}, which is at work on {what}")
            else:
                progress.say(f"{file} does not tell who is at work on {what}: waiting {STALE:.0f} s for it to change")
            self.told = True
        until = time.monotonic() + self.seconds
        while (left := until - time.monotonic()) > 0:
            time.sleep(min(left, LOOK) * random.uniform(0.5, 1.0))  # never quite as long as others do
            if not file.exists():
                break
        self.seconds = min(2 * self.seconds, LONG)


def living(file: Path) -> bool:
    """Whether a living process, perhaps this one, holds a claim on the file."""
    if not file.exists():
        return False
    with _written(file, "") as now:
        return file.exists() and not _stale(file, now)


def _stale(file: Path, now: Path) -> bool:
    """Whether the claim's owner is gone; `now` was just written, so its time is the file system's present."""
    owner = _owner(file)
    try:
        status = file.stat()
    except FileNotFoundError:
        owner = None
    if owner is None:  # given up meanwhile: nothing to take over
        return False
    if (runs := processes.running(owner)) is not None:
        return not runs
    state, seen = (status.st_ino, status.st_mtime_ns, status.st_size), time.monotonic()
    if _seen.get(file, (None,))[0] != state:
        _seen[file] = state, seen
    age = now.stat().st_mtime - status.st_mtime
    return max(age, seen - _seen[file][1]) > STALE


_seen: dict[Path, tuple[tuple[int, int, int], float]] = {}
"""Claims of other hosts, or of nobody: how each was when it was looked at first, and the time then."""


def _owner(file: Path) -> dict[str, object] | None:
    """What a claim tells of its owner, nothing where it cannot be read; None if there is no claim."""
    content = _read(file)
    try:
        owner = None if content is None else json.loads(content)
    except (ValueError, RecursionError):
        owner = {}
    return owner if isinstance(owner, dict) or content is None else {}


def tidy(folder: Path) -> None:
    """Remove what processes that were killed while they took a claim have left in a folder."""
    left = [*folder.glob(".*.claim-*")]
    if left:
        with _written(folder / ".tidy.claim", "") as now:
            for file in left:
                with contextlib.suppress(OSError):
                    if now.stat().st_mtime - file.stat().st_mtime > STALE:
                        file.unlink()
    if (folder / LOCK).exists():
        with contextlib.suppress(OSError), _locked(folder / LOCK):
            pass


@contextlib.contextmanager
def _written(file: Path, content: str) -> Iterator[Path]:
    """A file with this content beside `file`, gone at the end."""
    written = files.create(file.parent, f"{file.name}-")
    try:
        written.write_text(content)
        yield written
    finally:
        written.unlink(missing_ok=True)


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
    """While this process alone holds the lock, whose file is gone at the end."""
    while True:
        try:
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT, 0o666)
        except PermissionError:  # another user's
            descriptor = os.open(file, os.O_RDONLY)
        # A file system without locks leaves a window of microseconds in which two may take over one claim.
        with contextlib.suppress(OSError):
            fcntl.flock(descriptor, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(descriptor), os.stat(file)):
                break
        os.close(descriptor)  # whoever held it has removed it
    try:
        yield
    finally:
        file.unlink(missing_ok=True)
        os.close(descriptor)


def _read(file: Path) -> str | None:
    try:
        return file.read_text(errors="replace")
    except FileNotFoundError:
        return None
    except OSError:  # another user's, who does not let it be read
        return ""
