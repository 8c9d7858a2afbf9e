"""A process a device, here two on the CPU: the study of one device, one message for a fault, and the same command
continues."""

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.numpy import load_file

from lowloss.group import end_processes
from lowloss.training.devices import share

TWO = ("trainer=ddp", "trainer.accelerator=cpu")
# Without BatchNorm, whose bands are another test's.
SHORT = """
    model=mlp model.hidden=[8] minima.count=3 minima.epochs=2 finder=[autoneb] ensemble.fge.members=1
    finder.autoneb.cycles=[{steps:55,lr:0.05,repeat:2}] finder.autoneb.batch_size=127 finder.autoneb.evaluations=2
    finder.autoneb.threshold=0.01 path.points=20 path.between=3 path.pairs=[[0,1]] scan=[random_plane]
    scan.random_plane.resolution=[5,4] ensemble.fge.cycle_epochs=1
"""
STAGES = "stages=[minima,path,ensemble,scan]"
ONE_PATH = ("stages=[minima,path]",)


def start(folder, *arguments, entry=(sys.executable, "-m", "lowloss")):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "COLUMNS": "60"}
    return subprocess.Popen(
        [*entry, "study=t", f"outputs={folder}", *SHORT.split(), *TWO, *arguments],
        cwd=folder, env=environment, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def finish(process):
    """The exit status and what was told, the progress left out."""
    _, err = process.communicate(timeout=300)
    return process.returncode, err


@pytest.fixture(scope="module")
def one(lowloss, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("one")
    made = lowloss(outputs, *SHORT.split(), STAGES)
    assert made.status == 0, made.err
    return outputs / "t"


@pytest.fixture(scope="module")
def two(tmp_path_factory):
    outputs = tmp_path_factory.mktemp("two")
    status, err = finish(start(outputs, STAGES))
    assert status == 0, err
    # One process tells the story.
    assert [err.count(line) for line in ("study: ", "autoneb 0–1  ", "fge 1 members", "scan random_plane")] == [1] * 4
    return outputs / "t"


def result(root, name):
    return load_file(root / name / "result.safetensors")


def same_to_float32(one, two, name, rtol=1e-4, atol=1e-5):
    here, there = result(one, name), result(two, name)
    assert here.keys() == there.keys()
    for key in here:
        np.testing.assert_allclose(there[key], here[key], rtol, atol, err_msg=f"{name} {key}")


def test_minima_are_the_same_bits(one, two):
    for k in range(3):
        for file in ("result.safetensors", "metrics.csv"):
            assert (two / f"minima/000{k}" / file).read_bytes() == (one / f"minima/000{k}" / file).read_bytes()


def test_scan_is_the_same_table(one, two):
    file = "scans/random_plane-0000/result.safetensors"
    assert (two / file).read_bytes() == (one / file).read_bytes()


def test_path_and_ensemble_are_the_same_to_float32(one, two):
    # 127 samples are no two equal slices.
    for name in ("paths/0000-0001-autoneb", "ensembles/fge-0000"):
        same_to_float32(one, two, name)
    path = result(two, "paths/0000-0001-autoneb")
    assert len(path["bends"]) > 5, "no pivot was inserted"
    assert not list(two.rglob(".*"))


WATCHED = """
import atexit, os, pathlib
from lowloss.cli import main

def tell():
    names = [file.read_text() for file in pathlib.Path("/proc/self/task").glob("*/comm")]
    os.write(2, b"threads left: %d;" % sum("gloo" in name for name in names))  # at once, as two processes tell it

atexit.register(tell)
main()
"""


def test_networks_with_batch_norm_split_the_points_of_a_band(lowloss, tmp_path):
    cycles = "finder.autoneb.cycles=[{steps:6,lr:0.05,repeat:2}]"
    arguments = ("model.batch_norm=true", "minima.count=2", cycles, "stages=[minima,path]")
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    made = lowloss(tmp_path / "one", *SHORT.split(), *arguments)
    assert made.status == 0, made.err
    # torchrun starts the processes here.
    (tmp_path / "watched.py").write_text(WATCHED)
    torchrun = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", str(tmp_path / "watched.py"))
    status, err = finish(start(tmp_path / "two", *arguments, entry=torchrun))
    assert status == 0, err
    # Threads of the group that outlive the interpreter abort the process, now and then.
    assert err.count("threads left: 0;") == 2
    same_to_float32(tmp_path / "one" / "t", tmp_path / "two" / "t", "paths/0000-0001-autoneb")


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="needs two GPUs")
@pytest.mark.parametrize("settings", ["engine=loop", "engine=loop model.batch_norm=true", "engine=graph"])
def test_two_gpus_make_the_study_of_one(settings, tmp_path):
    gpu = ("trainer.accelerator=gpu", STAGES, *settings.split())
    for devices in (1, 2):
        (tmp_path / str(devices)).mkdir()
        status, err = finish(start(tmp_path / str(devices), *gpu, f"trainer.devices={devices}"))
        assert status == 0, err
        assert "plain loop" not in err
    one, two = tmp_path / "1" / "t", tmp_path / "2" / "t"
    names = ("minima/0000", "paths/0000-0001-autoneb", "ensembles/fge-0000")
    if settings == "engine=graph":  # 16 bits: sums of other lengths round otherwise
        for name in names:
            losses = [pd.read_csv(root / name / "metrics.csv").filter(like="loss") for root in (one, two)]
            np.testing.assert_allclose(*losses, rtol=0.05, atol=0.05, err_msg=name)
    else:
        for name in (*names, "scans/random_plane-0000"):
            same_to_float32(one, two, name, rtol=1e-3, atol=1e-4)


def children(process):
    found = subprocess.run(["ps", "-o", "pid=", "--ppid", str(process.pid)], capture_output=True, text=True)
    return [int(line) for line in found.stdout.split()]


def listening(processes):
    """The addresses at which these processes listen, as /proc tells them."""
    sockets = set()
    for pid in processes:
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with contextlib.suppress(OSError):
                sockets.add(os.readlink(descriptor))
    found = set()
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and f"socket:[{fields[9]}]" in sockets:
                found.add(fields[1].partition(":")[0])
    return found


@pytest.fixture(scope="module")
def killed(tmp_path_factory):
    """Where a command was whose second process was killed, the first one, where it had listened, and how it ended."""
    outputs = tmp_path_factory.mktemp("killed")
    process, heard = start(outputs, *ONE_PATH), set()
    checkpoint = outputs / "t/paths/.0000-0001-autoneb.work/phase-00/last.ckpt"
    while not checkpoint.exists() and process.poll() is None:
        with contextlib.suppress(OSError):
            heard |= listening([process.pid, *children(process)])
        time.sleep(0.002)
    first, second = children(process)
    os.kill(second, signal.SIGKILL)
    return outputs, first, heard, *finish(process)


def test_nothing_listens_to_other_hosts(killed):
    _, _, heard, *_ = killed
    assert heard  # gloo's
    assert heard <= {"0100007F", "00000000000000000000000001000000"}


def test_a_killed_process_ends_the_command_which_then_continues(killed, two):
    outputs, first, _, status, err = killed
    assert status == 1, err
    (told,) = re.findall(r"lowloss: .*", err)
    assert told == "lowloss: the process of device 1 was killed by SIGKILL; the same command continues"
    assert "Traceback" not in err
    with pytest.raises(ProcessLookupError):
        os.kill(first, 0)
    status, err = finish(start(outputs, *ONE_PATH))
    assert status == 0, err
    file = "paths/0000-0001-autoneb/result.safetensors"
    assert (outputs / "t" / file).read_bytes() == (two / file).read_bytes()


class Stuck:
    """A process that does not stop when it is asked to."""

    def __init__(self, waits):
        self.waits, self.killed = waits, False

    def terminate(self):
        pass

    def kill(self):
        self.killed = True

    def wait(self, timeout=None):
        if timeout is not None:
            self.waits.append(timeout)
            time.sleep(timeout)
            raise subprocess.TimeoutExpired("stuck", timeout)


def test_processes_that_do_not_stop_are_given_time_all_together():
    waits = []
    stuck = [Stuck(waits) for _ in range(3)]
    end_processes(stuck, 0.2)
    assert sum(waits) <= 0.2
    assert all(process.killed for process in stuck)


@pytest.mark.parametrize("count", [2, 3, 4, 8])
def test_the_ends_of_a_band_go_where_there_are_fewer_pivots(count, monkeypatch):
    monkeypatch.setattr("lowloss.training.devices.world", lambda: count)
    own, ends = [], []
    for place in range(count):
        monkeypatch.setattr("lowloss.training.devices.rank", lambda place=place: place)
        own.append(list(share(range(10))))
        ends.append(list(share(range(2), mirrored=True)))
    assert [pivot for mine in own for pivot in mine] == [*range(10)]
    assert sorted(end for mine in ends for end in mine) == [0, 1]
    if count > 2:  # with two each takes five, and an end
        most = max(map(len, own))
        assert all(len(mine) < most for mine, end in zip(own, ends, strict=True) if end)


def test_what_every_process_finds_wrong_is_told_once_and_a_sweep_goes_on(tmp_path):
    arguments = ("optimizer.lr=1e30,0.1", "stages=[minima]", "minima.count=2")
    status, err = finish(start(tmp_path, *arguments, entry=(sys.executable, "-m", "lowloss", "-m")))
    assert status == 1, err
    told = re.findall(r"lowloss: .*", err)
    assert "is not finite" in told[0]
    assert told[1:] == ["lowloss: 1 of 2 jobs failed; the same command runs them again"]
    assert re.search(r"^study +why\nt/optimizer\.lr=1e\+30 +\S+", err, re.M), err
    assert len(list(tmp_path.glob("t/optimizer.lr=0.1/minima/*/result.safetensors"))) == 2
