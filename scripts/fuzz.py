"""Give the command line odd values, and count what is not answered in one line.

    python scripts/fuzz.py --count 2000 --seed 0

A tiny study is made. Then command lines of it with a setting or two changed at random (odd values of every key, keys
left out, unknown keys, sweeps, launchers' settings) are run on the complete study, each in a fork of this process,
which has imported everything. A command may fail in one line, or do what it says; it must not end with a traceback,
change a result that is there, or write outside of its folder. The exit status is 1 if one did.
"""

from __future__ import annotations

import argparse
import gc
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

STUDY = [
    *("study=t", "trainer=cpu", "model=mlp", "model.hidden=[4]", "data=tiny", "minima.count=3", "minima.epochs=1"),
    *("minima.batch_size=16", "finder=[autoneb,line]", "finder.autoneb.cycles=[{steps:2,lr:0.1}]"),
    *("finder.autoneb.evaluations=1", "finder.autoneb.batch_size=16", "path.points=4", "path.between=0"),
    *("scan.plane.resolution=[3,3]", "scan.random_plane.resolution=[3,3]", "ensemble.fge.members=1"),
    *("ensemble.fge.cycle_epochs=1", "ensemble.fge.batch_size=16"),
]
ODD = [
    *("null", "true", "abc", "''", "..", "../../x", "/", "a b", "ü", "???", "a.b.c", "every", "[]", "{}", "[1,2]"),
    *("[abc]", "[null]", "[[1,[2,[3]]]]", "[true,false]", "{a:1}", "{a:{b:[null]}}", "{_target_:null}", "{5:1}"),
    *("-1", "0", "1", "2", "-0.5", "0.5", "1e300", "-1e300", "1e-300", "inf", "-inf", "nan", "99999999999"),
    *("9" * 400, "[99999999999,99999999999]", "[-1,0]", "[nan,inf]", "${nope}", "${seed}", "${oc.env:NOPE}", "[[0,1]]"),
    *("{_target_:os.getcwd}", "{_target_:nope.Nope}", "[" * 30 + "]" * 30, "1,2", "range(0,0)"),
]
MORE = [
    *("trainer.precision=16-mixed", "trainer.max_steps=1", "trainer.barebones=true", "trainer.devices=[0]", "foo=1"),
    *("trainer.fast_dev_run=true", "finder.foo._target_=lowloss.finder.Line", "path.only.line=[[0,9]]", "minima.x=1"),
    *("scan.foo._target_=lowloss.points.RandomPlane", "hydra.launcher.parallel=abc", "path.budget.x=1", "model.x=1"),
    *("hydra.sweep.dir=null", "finder.line.x=1", "optimizer.momentun=0.5", "data.x=1", "engine.x=1", "schedule.x=1"),
]
"""Keys that are not there, to be added."""
CHOICES = [
    *("model=0.5", "model=null", "data=arrays", "data=text", "data=image_folder", "data=cifar10", "optimizer=adam"),
    *("finder=null", "finder=[]", "finder=[neb,nope]", "finder=line", "scan=[]", "scan=plane", "schedule=cosine"),
    *("minima=checkpoints", "chart=random_span", "recipe=nope", "engine=graph", "trainer=gpu", "trainer=ddp", "=3"),
    *("experiment=quickstart", "scale=tiny", "--resolve", "--nope", "logger=csv", "seed", "stages=[minima", "a=b=c"),
    *("--dry-run", "--dry-runn", "", "study=.sweeps", "study=t/minima", "model=[mlp,mlp]", "hydra/launcher=local"),
]
KEPT = ("minima", "paths", "ensembles", "scans")
LIMIT = 30.0
"""Seconds after which a command that goes on is ended: it has accepted what it was given."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: its exit status (None where it went on), all that it printed, and the seconds it took."""

    status: int | None
    text: str
    seconds: float

    @property
    def good(self) -> bool:
        """Whether it succeeded, goes on, or tells in one line what is wrong."""
        if "Traceback (most recent call last)" in self.text:
            return False
        told = [line for line in self.text.splitlines() if line.startswith("lowloss:")]
        return not self.status or (self.status == 1 and len(told) >= 1) or self.status == 2


def load() -> None:
    """Import everything that a run imports, what composes its configuration among it."""
    import hydra
    import hydra._internal.hydra

    import lowloss.imports

    lowloss.imports.light = True
    import lowloss.report.page
    import lowloss.training.methods
    import lowloss.training.tabulate
    from lowloss.conf import config_folder
    from lowloss.jobs.pipeline import stages

    stages()
    with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
        hydra.compose("config", overrides=STUDY, return_hydra_config=True)
    gc.freeze()  # a fork that looks at every object for garbage would copy them all


def run(arguments: Sequence[str], folder: Path, limit: float = LIMIT) -> Ended:
    """Run a command line in a fork of this process, in a folder; its output is kept beside it."""
    log = folder.with_suffix(".log")
    began = time.monotonic()
    child = os.fork()
    if not child:
        _be(arguments, folder, log)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended or time.monotonic() - began > limit:
            break
        time.sleep(0.01)
    if not ended:
        os.killpg(child, signal.SIGKILL)
        os.waitpid(child, 0)
    return Ended(
        os.waitstatus_to_exitcode(status) if ended else None,
        log.read_text(encoding="utf-8", errors="replace"),
        time.monotonic() - began,
    )


def _be(arguments: Sequence[str], folder: Path, log: Path) -> None:
    status = 1
    try:
        os.setpgid(0, 0)
        for descriptor, file in ((0, os.devnull), (1, str(log)), (2, str(log))):
            os.dup2(
                os.open(file, os.O_RDWR | os.O_CREAT | os.O_APPEND | (descriptor and os.O_TRUNC), 0o644), descriptor
            )
        os.chdir(folder)
        from lowloss.cli import main

        sys.argv = ["lowloss", *arguments]
        main()
        status = 0
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    finally:
        for stream in (sys.stdout, sys.stderr):
            stream.flush()
        os._exit(status)


def flat(node: Any, prefix: str = "") -> list[str]:
    """The dotted keys of a configuration, of its inner nodes too."""
    if not isinstance(node, dict):
        return []
    keys = []
    for name, value in node.items():
        keys += [f"{prefix}{name}", *flat(value, f"{prefix}{name}.")]
    return keys


def mutated(keys: Sequence[str], dice: random.Random) -> list[str]:
    """One or two changes of the study's command line."""
    changes = []
    for _ in range(dice.choice([1, 1, 1, 2])):
        kind = dice.random()
        key = dice.choice(keys)
        if kind < 0.7:
            changes.append(f"++{key}={dice.choice(ODD)}" if dice.random() < 0.2 else f"{key}={dice.choice(ODD)}")
        elif kind < 0.8:
            changes.append(f"~{key}")
        elif kind < 0.87:
            changes.append(f"+{dice.choice(MORE)}")
        elif kind < 0.93:
            changes.append(dice.choice(CHOICES))
        elif kind < 0.96:
            changes.append(f"{key}x={dice.choice(ODD)}")
        else:
            changes += ["-m", f"{key}={dice.choice(ODD)},{dice.choice(ODD)}"]
    return changes


def files(folder: Path) -> dict[str, tuple[int, int]]:
    """Every file below a folder, with its size and the time of its last change."""
    found = [path for path in folder.rglob("*") if path.is_file()]
    return {str(path.relative_to(folder)): (path.stat().st_size, path.stat().st_mtime_ns) for path in found}


def results(root: Path) -> dict[str, bytes]:
    """What no other command may change: the files of complete artifacts."""
    found = [path for kind in KEPT for path in root.glob(f"{kind}/[!.]*/**/*") if path.is_file()]
    return {str(path.relative_to(root)): path.read_bytes() for path in found}


class Fuzz:
    """The complete study, as it was made, and a copy of it for each command."""

    def __init__(self, folder: Path) -> None:
        self.pristine, self.place = folder / "pristine", folder / "place"
        self.pristine.mkdir()
        made = run(STUDY, self.pristine, limit=600)
        if made.status != 0:
            raise SystemExit(f"the study was not made:\n{made.text}")
        composed = run([*STUDY, "--cfg", "job"], self.pristine)
        self.keys = flat(yaml.safe_load(composed.text))
        self.expected = results(self.pristine / "outputs" / "t")
        self.reset()

    def reset(self) -> None:
        shutil.rmtree(self.place, ignore_errors=True)
        shutil.copytree(self.pristine, self.place)
        self.before = files(self.place)

    def try_out(self, changes: Sequence[str], limit: float = LIMIT) -> tuple[Ended, str]:
        """Run the study's command line with changes; how it ended, and what is wrong with that, if anything."""
        ended = run([*STUDY, *changes], self.place, limit)
        wrong = "" if ended.good else "traceback"
        after = files(self.place)
        # A folder that is asked for by its name may be made where that says.
        asked = any("outputs" in change or "root" in change or "dir" in change for change in changes)
        if after != self.before:
            found = results(self.place / "outputs" / "t")
            lost = [name for name, content in self.expected.items() if found.get(name) != content]
            strays = [name for name in after.keys() - self.before.keys() if not name.startswith("outputs/")]
            if lost or (strays and not asked):
                wrong = f"changed {', '.join([*lost, *strays][:3])}"
            self.reset()
        outside = [path.name for path in self.place.parent.iterdir()]
        if strange := {*outside} - {"pristine", "place", "pristine.log", "place.log"}:
            if not asked:
                wrong = f"wrote {', '.join(sorted(strange))} outside of its folder"
            for name in strange:
                shutil.rmtree(self.place.parent / name, ignore_errors=True)
        return ended, wrong


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=300, help="command lines")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds after which a command is ended")
    parser.add_argument("--show", action="store_true", help="print every command and how it ended")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    load()
    dice, counts, seconds, bad = random.Random(given.seed), Counter[str](), [0.0], []
    with tempfile.TemporaryDirectory(prefix="lowloss-fuzz-") as folder:
        fuzz = Fuzz(Path(folder))
        for _ in range(given.count):
            changes = mutated(fuzz.keys, dice)
            ended, wrong = fuzz.try_out(changes, given.limit)
            ways = {None: "ended after the limit", 0: "succeeded", 1: "refused", 2: "usage"}
            counts[ways.get(ended.status, f"status {ended.status}")] += 1
            if ended.status == 1:
                seconds.append(ended.seconds)
            last = ended.text.strip().splitlines()[-1:] or [""]
            if wrong:
                bad.append(changes)
                print(f"{wrong}: {' '.join(changes)}\n  {last[0]}", flush=True)
            elif given.show:
                print(f"{ended.seconds:5.1f} s {ended.status} {' '.join(changes)}\n  {last[0]}", flush=True)
    print(f"{given.count} command lines: {', '.join(f'{n} {way}' for way, n in counts.most_common())}")
    print(f"a refusal took {sorted(seconds)[len(seconds) // 2]:.1f} s (median), {max(seconds):.1f} s at most")
    print(f"tracebacks and changed files: {len(bad)}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
