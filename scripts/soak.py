"""Disturb a study in the making, then see that nothing of it is lost or wrong.

    python scripts/soak.py --seconds 300 --seed 0

Eight processes run one command on one study folder. Meanwhile, at random: a process is killed, the disk is full, the
newest checkpoint is cut in half, nothing can be written, or one of the damages of damages.py is done: flipped bits,
zeros, cut and odd files, another minimum's copy, claims of nobody. Whenever the study is complete, `verify` has to tell
what is damaged in it; once it tells nothing, the study is compared with one made undisturbed, and begun anew. At the
end the faults cease, and the same command has to complete what is there; where a message names something to delete,
that is done, and counted. The undisturbed study and the faults together take --seconds; to complete what is there then
may take five times as long as the undisturbed study did, and a minute.

As root the study lies on a small disk in memory of its own; otherwise the disk is never full.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from damages import FINISHED, UNFINISHED, odd_claim

COMMAND = [
    *("study=soak", "trainer=cpu", "model=mlp", "model.hidden=[16]", "model.batch_norm=true", "minima.count=4"),
    *("minima.epochs=8", "finder=[autoneb,bezier]", "finder.autoneb.cycles=[{steps:60,lr:0.05,repeat:2}]"),
    *("finder.autoneb.batch_size=128", "finder.autoneb.evaluations=2", "finder.bezier.steps=200", "path.pairs=all"),
    *("path.points=20", "path.between=1", "scan.plane.resolution=[8,8]", "scan.random_plane.resolution=[8,8]"),
    *("ensemble.fge.members=3", "ensemble.fge.cycle_epochs=1"),
]
DISK = 48  # megabytes
PAUSE = 2.0
"""Seconds that a fault lasts."""
STALE = 5.0
"""Seconds after which nobody's claim is given up here."""


def start(outputs: Path, log: Path, running: dict[int, Path]) -> int:
    """Run the command in a fork of this process, which has imported everything; returns the child's id, noted too."""
    log.touch()  # a child may be killed before it has opened it
    # What a signal raises within fork's own hooks is lost, and right after it the child would be forgotten.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    child = os.fork()
    if child:
        running[child] = log
    signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGTERM})
    if child:
        return child
    status = 1
    try:
        from lowloss.cli import main

        for descriptor, file in ((0, os.devnull), (1, str(log)), (2, str(log))):
            os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o644), descriptor)
        sys.argv = ["lowloss", *COMMAND, f"outputs={outputs}"]
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 1
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        os._exit(status)


def results(root: Path) -> dict[str, bytes]:
    """What is the same whenever the study is made: the bytes of all results, tables and configurations."""
    kept = [path for path in root.rglob("*") if path.suffix in (".safetensors", ".csv", ".yaml")]
    return {
        str(path.relative_to(root)): path.read_bytes()
        for path in kept
        if not any(part.startswith(".") for part in path.relative_to(root).parts)
    }


class Soak:
    def __init__(self, folder: Path, disk: bool, workers: int, seed: int) -> None:
        self.folder, self.disk, self.workers = folder, disk, workers
        self.outputs = folder / "outputs"
        self.random = random.Random(seed)
        self.running: dict[int, Path] = {}
        self.started = 0
        self.faults: Counter[str] = Counter()
        self.counts: Counter[str] = Counter()
        self.unclear: list[str] = []
        self.complete = False
        self.titles: list[str] = []
        """Of all results, once the undisturbed study is made."""

    @property
    def root(self) -> Path:
        return self.outputs / "soak"

    def keep_running(self) -> None:
        """Note what has ended, and start as many processes as there should be."""
        for child in list(self.running):
            ended, status = os.waitpid(child, os.WNOHANG)
            if ended:
                self.note(self.running.pop(child), os.waitstatus_to_exitcode(status))
        while len(self.running) < self.workers and not self.complete:
            log = self.folder / "logs" / f"{self.started:05d}.log"
            start(self.outputs, log, self.running)
            self.started += 1

    def note(self, log: Path, status: int) -> None:
        text = log.read_text(errors="replace")
        if status == 0:
            self.complete = True
        elif status > 0:
            told = [line for line in text.splitlines() if line.startswith("lowloss:")]
            if len(told) == 1 and "Traceback" not in text:
                self.counts["told in one line"] += 1
                self.mend(told[0])
            else:
                self.unclear.append(f"{log}: status {status}, {text.strip().splitlines()[-1:]}")

    def mend(self, message: str) -> None:
        """Delete the damaged folder or file that a message names."""
        found = re.search(r"delete (\S+?)(?:[:,]| and run| to start)", message)
        place = Path(found[1] if found else "")
        if found and found[1] == "it":
            place = Path(message.split()[0])
        if str(place).startswith(f"{self.root}/"):
            with contextlib.suppress(OSError):
                shutil.rmtree(place) if place.is_dir() else place.unlink()
            self.counts["damaged work deleted as told"] += 1

    def verified(self) -> bool:
        """Whether `verify` finds nothing in the complete study; what it finds is mended as it says."""
        from lowloss.verify import verify

        try:
            _, found = verify(self.root)
        except Exception:
            self.unclear.append(f"verify: {traceback.format_exc().splitlines()[-1]}")
            return False
        for line in found:
            self.counts["told by verify"] += 1
            self.mend(line)
        return not found

    def kill(self) -> bool:
        if not self.running:
            return False
        os.kill(self.random.choice(sorted(self.running)), signal.SIGKILL)
        return True

    def truncate(self) -> bool:
        files = [*self.root.rglob("last.ckpt"), *self.root.rglob("reached.safetensors")]
        with contextlib.suppress(OSError, ValueError):
            newest = max(files, key=lambda file: file.stat().st_mtime_ns)
            os.truncate(newest, newest.stat().st_size // 2)
            # It is found when the work is continued.
            return self.kill()
        return False

    def fill(self) -> bool:
        if not self.disk:
            return False
        ballast = self.outputs / "ballast"
        with contextlib.suppress(OSError), ballast.open("wb", buffering=0) as stream:
            while True:
                stream.write(b"\0" * (1 << 16))
        self.let(PAUSE)
        ballast.unlink()
        return True

    def forbid(self) -> bool:
        """Root may write anywhere, so there the whole disk is made read-only."""
        if self.disk:
            if subprocess.run(["mount", "-o", "remount,ro", str(self.outputs)], capture_output=True).returncode:
                return False  # a file is open for writing
            self.let(PAUSE)
            subprocess.run(["mount", "-o", "remount,rw", str(self.outputs)], check=True)
            return True
        folders = [path for path in (self.root, *self.root.glob("*")) if path.is_dir()]
        for folder in folders:
            folder.chmod(0o555)
        self.let(PAUSE)
        for folder in folders:
            folder.chmod(0o755)
        return True

    def let(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            self.keep_running()
            time.sleep(0.1)

    def disturb(self) -> None:
        damages = {**FINISHED, **UNFINISHED, "odd claim": partial(odd_claim, titles=self.titles)}
        own = ["kill", "truncate", "fill", "forbid"]
        name = self.random.choice([*3 * own, *damages])
        with contextlib.suppress(OSError):  # what it hits is replaced meanwhile, or the disk is full
            done = getattr(self, name)() if name in own else damages[name](self.root, self.random)
            self.faults[name] += bool(done)
            if done and name in UNFINISHED and name != "odd claim":
                self.kill()  # it is found when the work is continued

    def stop(self) -> None:
        for child in self.running:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
        self.running.clear()

    def compare(self, expected: dict[str, bytes]) -> None:
        found = results(self.root)
        self.counts["studies completed"] += 1
        self.counts["results compared"] += len(expected)
        self.counts["results lost"] += len(expected.keys() - found.keys())
        differing = [name for name in expected.keys() & found.keys() if expected[name] != found[name]]
        self.counts["results differing"] += len(differing) + len(found.keys() - expected.keys())


@contextlib.contextmanager
def disk(folder: Path) -> Iterator[bool]:
    """A small disk in memory at the folder, where this process may mount one."""
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", f"size={DISK}m", "lowloss-soak", str(folder)]
    mounted = os.geteuid() == 0 and subprocess.run(command, capture_output=True).returncode == 0
    try:
        yield mounted
    finally:
        if mounted:
            subprocess.run(["umount", "--lazy", str(folder)], check=False)


def run_until_complete(outputs: Path, soak: Soak, tries: int, seconds: float) -> bool:
    """Run the command, and again where it failed; whether it succeeded in time."""
    end = time.monotonic() + seconds
    for _ in range(tries):
        log = soak.folder / "logs" / f"{soak.started:05d}.log"
        soak.started += 1
        child = start(outputs, log, soak.running)
        ended = 0
        while not ended and time.monotonic() < end:
            time.sleep(0.05)
            ended, status = os.waitpid(child, os.WNOHANG)
        if not ended:
            soak.stop()
            return False
        soak.note(soak.running.pop(child), os.waitstatus_to_exitcode(status))
        if status == 0:
            return True
    return False


def finish(soak: Soak, seconds: float) -> bool:
    """Complete the study, until `verify` finds nothing any more; whether that succeeded."""
    return any(run_until_complete(soak.outputs, soak, 60, seconds) and soak.verified() for _ in range(10))


def say(line: str) -> None:
    print(line, flush=True)


def interrupt(*_: object) -> None:
    sys.exit(143)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=300, help="importing and the undisturbed study included")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=8)
    given = parser.parse_args()
    began = time.monotonic()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    say("importing")
    # Everything that a run imports, once.
    import lowloss.imports

    lowloss.imports.light = True
    import lowloss.report.page
    import lowloss.training.methods
    import lowloss.training.tabulate
    from lowloss import claims
    from lowloss.jobs.pipeline import stages

    stages()
    claims.STALE, claims.BEAT = STALE, STALE / 4

    # By an exception, so that the disk is unmounted.
    signal.signal(signal.SIGTERM, interrupt)
    folder = Path(tempfile.mkdtemp(prefix="lowloss-soak-"))
    (folder / "logs").mkdir()
    kept = False
    try:
        with disk(folder / "outputs") as mounted:
            soak = Soak(folder, mounted, given.workers, given.seed)
            try:
                good = torment(soak, began + given.seconds)
            finally:
                soak.stop()
        kept = not good
    finally:
        if not kept:
            shutil.rmtree(folder, ignore_errors=True)
    if kept:
        say(f"logs in {folder / 'logs'}")
    return 0 if good else 1


def torment(soak: Soak, end: float) -> bool:
    """Disturb the study until the end, complete and compare it; whether all went well."""
    say("the undisturbed study")
    began = time.monotonic()
    if not run_until_complete(soak.folder / "undisturbed", soak, tries=1, seconds=end - began):
        say(f"failed, or was not made in {time.monotonic() - began:.0f} s: see its log, or raise --seconds")
        return False
    took = time.monotonic() - began
    expected = results(soak.folder / "undisturbed" / "soak")
    soak.complete = False
    undisturbed = soak.folder / "undisturbed" / "soak"
    soak.titles = sorted({str(file.parent.relative_to(undisturbed)) for file in undisturbed.glob("*/*/digests.json")})
    say(f"took {took:.0f} s; faults for {max(0.0, end - time.monotonic()):.0f} s")
    patience = 60 + 5 * took
    while time.monotonic() < end:
        soak.let(min(soak.random.uniform(0.5, 3.0), end - time.monotonic()))
        if soak.complete:
            soak.stop()
            finished = finish(soak, patience)
            soak.compare(expected)
            say(f"completed and compared: {soak.counts['studies completed']}, after {sum(soak.faults.values())} faults")
            if not finished:
                break
            shutil.rmtree(soak.root)
            soak.complete = False
        else:
            soak.disturb()
    soak.stop()
    say("the faults have ceased; completing what is there")
    finished = finish(soak, patience)
    soak.compare(expected)
    say(f"{soak.workers} processes at a time, {soak.started} started")
    say(f"faults injected: {sum(soak.faults.values())} ({', '.join(f'{k} {n}' for k, n in soak.faults.items())})")
    for name in ("studies completed", "results compared", "results lost", "results differing", "told in one line",
                 "told by verify", "damaged work deleted as told"):  # fmt: skip
        say(f"{name}: {soak.counts[name]}")
    say(f"failures not told in one line: {len(soak.unclear)}")
    for line in soak.unclear[:10]:
        say(f"  {line}")
    say(f"the same command {'completed' if finished else 'did not complete'} what was there")
    return finished and not soak.counts["results lost"] and not soak.counts["results differing"] and not soak.unclear


if __name__ == "__main__":
    sys.exit(main())
