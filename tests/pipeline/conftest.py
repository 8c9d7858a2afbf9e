"""A tiny study, and a server that runs command lines at once instead of after ten seconds of imports."""

import contextlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

import pytest

TINY = """
    model=mlp model.hidden=[16] model.batch_norm=true minima.count=3 minima.epochs=4 finder=[autoneb,line,bezier]
    finder.autoneb.cycles=[{steps:60,lr:0.05,repeat:2}] finder.autoneb.batch_size=128 finder.autoneb.evaluations=2
    finder.autoneb.threshold=0.01 finder.bezier.steps=60 path.points=20 path.between=1 scan.plane.resolution=[4,5]
    scan.random_plane.resolution=[5,4] ensemble.fge.members=2 ensemble.fge.cycle_epochs=1
"""


@dataclass(frozen=True)
class Finished:
    """What a command left: its exit status, its output, and the files it renamed into their places, in order."""

    status: int
    out: str
    err: str
    renames: list[tuple[Path, Path]]

    @property
    def message(self) -> str:
        """The error in one line, after making sure that it is one."""
        assert "Traceback" not in self.err, self.err.splitlines()[-1]
        assert self.status == 1, f"status {self.status}: {self.err}"
        lines = self.err.splitlines()
        assert [line for line in lines if line.startswith("lowloss:")] == lines[-1:], self.err
        return lines[-1]


def fixed(outputs):
    return "study=t", f"outputs={outputs}", "trainer=cpu"


class Runner:
    """Runs `lowloss` command lines on one CPU thread, one at a time."""

    def __init__(self, process, folder):
        self.process, self.folder = process, folder

    def __call__(self, outputs, *arguments, strike=None, environment=None, user=None) -> Finished:
        """Run in the folder `outputs`, with the study "t" there. strike: (signal, pattern, n), see server.py."""
        flags = [argument for argument in arguments if argument.startswith("-")]
        rest = [argument for argument in arguments if not argument.startswith("-")]
        return self.plain(outputs, *flags, *fixed(outputs), *rest, strike=strike, environment=environment, user=user)

    def plain(self, folder, *arguments, strike=None, environment=None, user=None) -> Finished:
        """Run exactly these arguments in a folder; user: [user, group] to run as."""
        files = {name: str(self.folder / name) for name in ("out", "err", "renames")}
        job = {
            "arguments": arguments,
            "folder": str(folder),
            "environment": environment or {},
            "strike": strike,
            "user": user,
            **files,
        }
        self.process.stdin.write(json.dumps(job) + "\n")
        self.process.stdin.flush()
        status = int(self.process.stdout.readline())
        out, err, renames = (Path(file).read_text() for file in files.values())
        pairs = [tuple(map(Path, line.split("\t"))) for line in renames.splitlines()]
        return Finished(status, out, err, pairs)

    def tiny(self, outputs, *arguments, **options) -> Finished:
        """Run a tiny study of all stages."""
        return self(outputs, *TINY.split(), *arguments, **options)

    @staticmethod
    def arguments(outputs) -> list[str]:
        """The command line of the tiny study."""
        return [*fixed(outputs), *TINY.split()]

    @staticmethod
    def results(root) -> dict[str, bytes]:
        """What is the same whenever a study is made: the bytes of all results, tables and configurations."""
        kept = (path for path in root.rglob("*") if path.suffix in (".safetensors", ".csv", ".yaml"))
        return {str(path.relative_to(root)): path.read_bytes() for path in sorted(kept)}


@contextlib.contextmanager
def serving(folder):
    server = Path(__file__).with_name("server.py")
    with subprocess.Popen(
        [sys.executable, str(server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "60"},
    ) as process:
        assert process.stdout.readline() == "ready\n"
        yield Runner(process, folder)


@pytest.fixture(scope="session")
def lowloss(tmp_path_factory):
    with serving(tmp_path_factory.mktemp("server")) as runner:
        yield runner


@pytest.fixture(scope="session")
def another(tmp_path_factory):
    """A second runner, to run two command lines at once."""
    with serving(tmp_path_factory.mktemp("another")) as runner:
        yield runner


@dataclass(frozen=True)
class Whole:
    """The tiny study, made by one uninterrupted command; tests leave it as it is."""

    outputs: Path
    made: Finished

    @property
    def root(self) -> Path:
        return self.outputs / "t"

    def copy(self, outputs, *without) -> Path:
        """A copy of the study in another outputs folder, without some of its folders."""
        root = outputs / "t"
        shutil.copytree(self.root, root)
        for name in without:
            shutil.rmtree(root / name)
        return root


@pytest.fixture(scope="session")
def whole(lowloss, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("whole")
    made = lowloss.tiny(outputs)
    assert made.status == 0, made.err
    return Whole(outputs, made)
