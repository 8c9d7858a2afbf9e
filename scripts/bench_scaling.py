"""Measure how one study scales over the devices of a machine, each way that there is, and what a death costs.

    python scripts/bench_scaling.py                                # on all GPUs; without any, processes on the CPU
    python scripts/bench_scaling.py --counts 1 2 --works star band --seconds 300

Workers share a study's folder: minima in groups, the paths of a star, scans. With trainer=ddp a process a device takes
part of a band's step, of a scan, of a map of the Hessian. The processes of a count start once and warm up on small
works, which compiles; that is told apart (start-up), and what follows is steady. Images are random, of CIFAR-10's size.

Efficiency: work a second, over that of the smallest count, over the ratio of the counts; in the plot dashes mark 0.9
and 0.7. Difference: the largest from the smallest count's results. Every measurement is written at once to scaling.csv
in --out; table.md, scaling.json and scaling.png follow after each count. `faults` kills a worker among all, and a
process of a group, by the command line.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import torch
from torch import Tensor, distributed

from lowloss.files import load_tensors, save_tensors
from lowloss.group import end_processes

SHARED, SPLIT = ("minima", "star", "scans"), ("band", "scan", "hessian")
WORKS = (*SHARED, *SPLIT, "faults")
UNITS = {"minima": "minima", "star": "paths", "scans": "scans", "band": "steps", "scan": "points", "hessian": "points"}
CUDA = torch.cuda.is_available()
COLUMNS = ["work", "way", "devices", "startup_s", "wall_s", "units", "unit", "per_s", "note"]
BLOCK = 50
"""Steps of a band between two checkpoints, and two times."""
LIMITS = {
    # The engine's steps are of 16 bits there, and its evaluation is held to 1e-3 (engine/README.md).
    True: {"minima": 0.05, "star": 0.05, "scans": 1e-3, "band": 0.05, "scan": 1e-3, "hessian": 1e-3},
    False: {"minima": 0.0, "star": 0.0, "scans": 0.0, "band": 1e-4, "scan": 0.0, "hessian": 1e-5},
}
"""What the results of several devices may differ by, on GPUs and on CPUs (conf/README.md, tests/pipeline)."""


def overrides(options: argparse.Namespace, trainer: Sequence[str]) -> list[str]:
    """Of the command line, for every study here."""
    held = options.images if CUDA else 1000
    return [
        f"outputs={options.out.absolute()}", "name=scaling", f"model={options.model}", "recipe=he2016",
        *options.set,
        "data=arrays", f"data.path={(options.out / 'images.npz').absolute()}",
        "+data.augment={_target_: lowloss.data.CropFlip}", f"minima.count={2 * options.parts}", "minima.together=2",
        f"minima.epochs={options.epochs}", f"evaluation_batch={held}", "finder=[neb]", "finder.neb.pivots=10",
        f"finder.neb.steps={options.steps}", f"finder.neb.batch_size={options.batch}", "scan=[random_plane]",
        f"path.pairs=[{','.join(f'[0,{k}]' for k in range(1, options.parts + 1))}]", "path.bracket=1.0",
        f"path.points={options.points}", "path.between=1", f"scan.random_plane.resolution={[options.side] * 2}",
        *trainer,
    ]  # fmt: skip


def own(rank: int) -> list[str]:
    """The trainer of a worker: the device of its number."""
    return ["trainer=gpu", f"trainer.devices=[{rank}]"] if CUDA else ["trainer=cpu"]


def write_images(options: argparse.Namespace) -> None:
    """Random images in ten classes, each with a pattern of its own."""
    random = np.random.default_rng(0)
    pattern = random.normal(0, 24, (10, 3, options.size, options.size))
    arrays = {}
    for split, count in (("train", options.images), ("test", max(10, options.images // 10))):
        y = arrays[f"y_{split}"] = np.arange(count) % 10
        noise = random.normal(128, 48, (count, *pattern.shape[1:])).astype(np.float32)
        arrays[f"x_{split}"] = (noise + pattern[y]).clip(0, 255).astype(np.uint8)
    np.savez(options.out / "images.npz", **arrays)


class Member:
    """One of the processes of a count, which works alone in a shared study, and then in the group."""

    def __init__(self, options: argparse.Namespace) -> None:
        self.options, (self.rank, self.count, self.base) = options, options.member
        self.launched, self.meetings = float(os.environ["BENCH_LAUNCHED"]), 0
        self.meeting = options.out / f".meet-{self.count}"
        self.landscape: Any = None
        self.startup = 0.0

    def bench(self, study: str, change: Callable[[dict[str, Any]], object] = lambda config: None) -> Any:
        """What jobs of a study are made at, as the command line makes it; all have one landscape, compiled once."""
        from hydra import compose, initialize_config_dir
        from omegaconf import OmegaConf

        from lowloss.cli import _build
        from lowloss.conf import config_folder
        from lowloss.jobs.bench import Bench
        from lowloss.jobs.pipeline import stages
        from lowloss.study import Study

        with initialize_config_dir(str(config_folder().absolute()), version_base="1.3"):
            composed = compose("config", overrides(self.options, own(self.rank)))
        config: Any = OmegaConf.to_container(composed, resolve=True)
        plane = config["scan"]["random_plane"]
        config["scan"] = {f"plane{k:02d}": {**plane, "minimum": k} for k in range(self.options.parts)}
        change(config)
        made = Bench(Study(self.options.out / study), config, partial(_build, config), "lowloss", stages())
        if self.landscape is not None:
            made.__dict__["landscape"] = self.landscape
        self.landscape = made.landscape
        return made

    def meet(self, **told: Any) -> list[dict[str, Any]]:
        """Wait for all, and return what each told."""
        self.meetings += 1
        file = self.meeting / f"{self.meetings}-{self.rank}"
        file.with_suffix(".new").write_text(json.dumps(told))
        file.with_suffix(".new").replace(file)
        files = [self.meeting / f"{self.meetings}-{rank}" for rank in range(self.count)]
        while not all(file.exists() for file in files):
            time.sleep(0.002)
        return [json.loads(file.read_text()) for file in files]

    def measured(self, work: str, way: str, units: int, run: Callable[[], str | None]) -> None:
        """Measure a work of all: from when all are ready until the last has done its part."""
        self.meet()
        synchronize()
        began = time.time()
        note = run()
        synchronize()
        told = self.meet(began=began, ended=time.time())
        wall = max(one["ended"] for one in told) - min(one["began"] for one in told)
        ends = sorted(one["ended"] for one in told)
        self.write(work, way, wall, units, note or f"ends {ends[-1] - ends[0]:.2f} s apart")

    def write(self, work: str, way: str, wall: float, units: float, note: str) -> None:
        if self.rank == 0:
            row = [work, way, self.count, self.startup, wall, units, UNITS.get(work, ""), units / wall, note]
            pd.DataFrame([row], columns=COLUMNS).to_csv(
                self.options.out / "scaling.csv", mode="a", header=not (self.options.out / "scaling.csv").exists(),
                index=False,
            )  # fmt: skip
            told = f"{work} by {way} on {self.count}: {units:g} {UNITS.get(work, '')} in {wall:.2f} s; {note}"
            print(told, flush=True)

    def run(self) -> None:
        options = self.options
        imported = time.time()
        self.warm_up()
        self.meet()
        self.startup = time.time() - self.launched
        print(f"process {self.rank} of {self.count}: {imported - self.launched:.1f} s until torch was there, "
              f"{time.time() - self.launched:.1f} s until warm", flush=True)  # fmt: skip
        stage = {"minima": "minima", "star": "path", "scans": "scan"}
        for work in SHARED:
            # The minima of the smallest count are what all else starts from.
            if work in options.works or (work == "minima" and self.count == self.base):
                made = self.bench(f"{work}-{self.count}")
                if work != "minima" and self.rank == 0:
                    shutil.copytree(options.out / f"minima-{self.base}/minima", made.study.root / "minima")
                units = 2 * options.parts if work == "minima" else options.parts
                self.measured(work, "workers", units, partial(made.stages[stage[work]].run, made))
        if {*SPLIT} & {*options.works}:
            self.split()

    def warm_up(self) -> None:
        """The same kinds of work in a small study of its own, so that all is compiled."""

        def small(config: dict[str, Any]) -> None:
            config["minima"] |= {"count": 2, "epochs": 2 * 128 / self.options.images}
            config["path"]["pairs"], config["finder"]["neb"]["steps"] = [[0, 1]], 2
            config["scan"] = {"plane00": {**config["scan"]["plane00"], "resolution": [2, 2]}}

        made = self.bench(f".warm-{self.count}-{self.rank}", small)
        for name in ("minima", "path", "scan"):
            made.stages[name].run(made)
        shutil.rmtree(made.study.root)

    def split(self) -> None:
        """The works of a group, a part in each process."""
        import lightning as L

        from lowloss.measure import Exact, Extremes, Hessian
        from lowloss.points import RandomPlane
        from lowloss.training import devices
        from lowloss.training.tabulate import tabulate

        options, landscape = self.options, self.landscape
        os.environ |= {"RANK": str(self.rank), "LOCAL_RANK": str(self.rank), "WORLD_SIZE": str(self.count)}
        os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0", "LOWLOSS_STORE": str(self.meeting / "store")}
        if self.count > 1:
            devices.join()
        settings = {"accelerator": "gpu" if CUDA else "cpu", "devices": self.count}
        trainer = partial(L.Trainer, **settings, **({"strategy": "ddp"} if self.count > 1 else {}))
        minima = [options.out / f"minima-{self.base}/minima/{k:04d}/result.safetensors" for k in range(2)]
        theta_2P = torch.stack([load_tensors(file)[0]["theta"] for file in minima])
        if "band" in options.works:
            self.band(trainer, theta_2P)
        for work, side, measures in (
            ("scan", options.scan, [Exact()]),
            ("hessian", options.map, [Extremes(Hessian(samples=options.samples), 1e-12, options.products)]),
        ):
            if work in options.works:
                plane = RandomPlane(minimum=0, resolution=[side, side])
                grid = plane.grid(theta_2P[:1], None, landscape.layout, seed=0)
                warm = landscape, grid.points, 2 * self.count
                tabulate(*warm, measures, trainer, chunk=1)
                found: dict[str, Tensor] = {}

                def run(grid: Any = grid, measures: Any = measures, side: int = side, found: Any = found) -> None:
                    found |= tabulate(landscape, grid.points, side * side, measures, trainer)

                self.measured(work, "ddp", side * side, run)
                self.keep(work, found)
        devices.leave()

    def keep(self, work: str, tensors: dict[str, Tensor]) -> None:
        if self.rank == 0:
            save_tensors(self.options.out / f"{work}-{self.count}.safetensors", tensors, {})

    def band(self, trainer: Any, theta_2P: Tensor) -> None:
        """A step of a band of so many pivots, alone and with checkpoints, and its parts."""
        import lightning as L

        from lowloss.finder import NEB
        from lowloss.training import devices
        from lowloss.training.methods import find_path

        options, landscape = self.options, self.landscape

        class Band(NEB):
            """Its steps alone are measured."""

            def quality(self, *_: Any) -> dict[str, float]:
                return {}

            def status(self, *_: Any) -> str:
                return "steps_done"

        class Blocks(L.Callback):
            """When each block of steps begins, what came before being done, and when the last has ended."""

            def __init__(self) -> None:
                self.times: list[float] = []

            def on_train_batch_start(self, *_: Any) -> None:
                self.times.append(time.perf_counter())

            def on_train_end(self, *_: Any) -> None:
                self.times.append(time.perf_counter())

        def search(steps: int, folder: Path | None = None) -> tuple[Any, float]:
            """The path, and the seconds of a step, from the blocks but the first."""
            blocks = Blocks()
            finder = Band(pivots=options.pivots, batch_size=options.batch, steps=steps)
            found = find_path(
                landscape, *theta_2P, finder, trainer=partial(trainer, callbacks=[blocks]), folder=folder, block=BLOCK
            )
            return found, float(np.median(np.diff(blocks.times)[1:])) / BLOCK if steps >= 2 * BLOCK else 0.0

        began = time.time()
        search(2)
        self.meet()
        warm, steps = time.time() - began, BLOCK * options.blocks
        found, step = search(steps)
        self.meet()
        folder = options.out / f".band-{self.count}"
        _, kept = search(steps, folder)
        # The parts: the own pivots' gradients, and the sum of all.
        own_KP = devices.share(found.path.bends_BP[1:-1]).to(landscape.data.device)
        batch = landscape.batches(options.batch, [0], shared=True)[0]
        whole_MP = torch.zeros_like(found.path.bends_BP[1:-1], device=landscape.data.device)

        def gradient() -> None:
            theta_KP = own_KP.clone().requires_grad_()
            landscape.losses(theta_KP, batch).sum().backward()

        def reduce() -> None:
            if self.count > 1:
                distributed.all_reduce(whole_MP)

        times = 20 if CUDA else 1
        parts = {"own gradients": seconds(gradient, times), "their sum": seconds(reduce, times)}
        told = ", ".join(f"{name} {1e3 * value:.2f} ms" for name, value in parts.items())
        note = f"a step {1e3 * step:.2f} ms, with checkpoints {1e3 * kept:.2f}; {told}; first steps {warm:.1f} s"
        self.meet()
        self.write("band", "ddp", step * steps, steps, note)
        losses_S = torch.tensor(found.history)[:, 3]
        self.keep("band", {"bends": found.path.bends_BP, "losses": losses_S})


def synchronize() -> None:
    if CUDA:
        torch.cuda.synchronize()


def seconds(work: Callable[[], None], times: int) -> float:
    for _ in range(2):
        work()
    synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    synchronize()
    return (time.perf_counter() - began) / times


def members(options: argparse.Namespace, count: int, deadline: float) -> bool:
    """Run the works of a count; whether it went well, in time."""
    meeting = options.out / f".meet-{count}"
    shutil.rmtree(meeting, ignore_errors=True)
    meeting.mkdir()
    base = options.counts[0]
    environment = {"OMP_WAIT_POLICY": "passive", **os.environ, "OMP_NUM_THREADS": str(options.threads)}
    environment["BENCH_LAUNCHED"] = str(time.time())
    processes, files = [], [options.out / f"log-{count}-{rank}.txt" for rank in range(count)]
    for rank, file in enumerate(files):
        command = [sys.executable, __file__, *sys.argv[1:], "--member", str(rank), str(count), str(base)]
        with file.open("wb") as log:
            told = None if rank == 0 else log
            processes.append(subprocess.Popen(command, env=environment, stdout=told, stderr=told))
    try:
        while any(process.poll() is None for process in processes):
            bad = [rank for rank, process in enumerate(processes) if process.poll()]
            if bad or time.time() > deadline:
                why = f"process {bad[0]} failed" if bad else "the time is over"
                print(f"{count} devices: {why}; see {files[bad[0] if bad else 0]}", flush=True)
                return False
            time.sleep(0.05)
    finally:
        end_processes(processes)
    return not any(process.returncode for process in processes)


def differences(options: argparse.Namespace, work: str, count: int) -> float:
    """The largest difference of a work's losses, or eigenvalues relative to the largest, from the smallest count's."""
    kinds = {"minima": "minima", "star": "paths", "scans": "scans"}
    column = "hessian_max" if work == "hessian" else "losses" if work == "band" else "train_loss"
    if work in SPLIT:
        pairs = [[options.out / f"{work}-{n}.safetensors" for n in (options.counts[0], count)]]
    else:
        roots = [options.out / f"{work}-{n}" / kinds[work] for n in (options.counts[0], count)]
        pairs = [
            [root / file.parent.name / file.name for root in roots] for file in roots[0].glob("*/result.safetensors")
        ]
    largest = 0.0
    for here, there in pairs:
        values = []
        for file in (here, there):
            tensors, notes = load_tensors(file)
            values.append(np.asarray(tensors[column] if column in tensors else notes[column], dtype=float))
        scale = np.abs(values[0]).max() if work == "hessian" else 1.0
        largest = max(largest, float(np.abs(values[1] - values[0]).max() / scale))
    return largest


def summarise(options: argparse.Namespace) -> None:
    """Print the table of what was measured, and write table.md, scaling.json and scaling.png."""
    file = options.out / "scaling.csv"
    if not file.exists():
        return
    table = pd.read_csv(file).drop_duplicates(["work", "devices"], keep="last")
    lines = ["| work | way | devices | start-up, s | steady, s | a second | efficiency | difference | at most |"]
    lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
    rows, notes = [], []
    for work, part in table[table["work"].isin(UNITS)].groupby("work", sort=False):
        first = part.sort_values("devices").iloc[0]
        for _, row in part.sort_values("devices").iterrows():
            efficiency = row["per_s"] / first["per_s"] * first["devices"] / row["devices"]
            different = differences(options, work, row["devices"])
            rows.append({**row, "efficiency": efficiency, "difference": different, "at_most": LIMITS[CUDA][work]})
            lines.append(
                f"| {work} | {row['way']} | {row['devices']} | {row['startup_s']:.1f} | {row['wall_s']:.2f} "
                f"| {row['per_s']:.4g} {row['unit']} | {efficiency:.2f} | {different:.2g} | {LIMITS[CUDA][work]:g} |"
            )
            notes.append(f"- {work} on {row['devices']}: {row['note']}")
    others = [f"- {row['work']}: {row['note']}" for _, row in table[~table["work"].isin(UNITS)].iterrows()]
    told = "\n".join([*lines, "", *notes, *others, ""])
    print(f"\n{told}", flush=True)
    (options.out / "table.md").write_text(told)
    (options.out / "scaling.json").write_text(json.dumps(rows, indent=1, default=float))
    draw(pd.DataFrame(rows), options.out / "scaling.png")


def draw(table: pd.DataFrame, file: Path) -> None:
    figure, axes = plt.subplots(1, 2, figsize=(9, 3.6), sharey=True)
    for axis, way in zip(axes, ("workers", "ddp"), strict=True):
        for work, part in table[table["way"] == way].groupby("work", sort=False):
            axis.plot(part["devices"], part["efficiency"], "o-", label=work)
        axis.set(xlabel="devices", ylabel="efficiency" if way == "workers" else "", ylim=(0, 1.2))
        axis.set_title("workers that share a study" if way == "workers" else "trainer=ddp", fontsize=10)
        axis.set_xscale("log", base=2)
        axis.set_xticks(sorted(set(table["devices"])), sorted(set(table["devices"])))
        axis.axhline(0.9 if way == "workers" else 0.7, color="0.7", lw=1, ls="--")
        if axis.lines[1:]:
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(file, dpi=130)
    plt.close(figure)


def follow(until: Callable[[], Any], deadline: float, every: float = 0.02) -> Any:
    """What is awaited, once it is there. Raises TimeoutError."""
    while not (found := until()):
        if time.time() > deadline:
            raise TimeoutError("the time is over")
        time.sleep(every)
    return found


def owner(claim: Path) -> int | None:
    """The process that holds a claim, if one does."""
    try:
        return int(json.loads(claim.read_text())["pid"])
    except (OSError, ValueError, LookupError):
        return None


def faults(options: argparse.Namespace, deadline: float) -> None:
    """Kill a worker of a shared study, and a process of a group; tell what it costs and whether the rest goes on."""
    count = max(2, options.counts[-1])
    source = options.out / f"minima-{options.counts[0]}/minima"
    environment = {**os.environ, "OMP_NUM_THREADS": str(options.threads), "COLUMNS": "200"}
    running: list[subprocess.Popen[Any]] = []

    def start(study: str, trainer: Sequence[str], *more: str) -> subprocess.Popen[Any]:
        if not (options.out / study / "minima").exists():
            shutil.copytree(source, options.out / study / "minima")
        command = [sys.executable, "-m", "lowloss", *overrides(options, trainer), f"study={study}", *more]
        log = (options.out / f"log-{study}-{len(running)}.txt").open("wb")
        running.append(subprocess.Popen(command, env=environment, stdout=log, stderr=log))
        return running[-1]

    def at_work(workers: Sequence[subprocess.Popen[Any]]) -> tuple[int, Path, Path] | None:
        """Once all workers have held a path, one that has a checkpoint of its own, its claim and the checkpoint."""
        for claim in (options.out / "killed/paths").glob(".*.claim"):
            holders[owner(claim)] = claim
        if any(worker.poll() is not None for worker in workers):
            raise TimeoutError("a worker ended before it could be killed: give --steps and --parts more")
        for process, claim in holders.items():
            last = claim.with_suffix(".work") / "phase-00/last.ckpt"
            if {worker.pid for worker in workers} <= {*holders} and owner(claim) == process and last.exists():
                return process, claim, last
        return None

    holders: dict[Any, Path] = {}
    try:
        paths = min(options.parts, 2 * count)
        longer = ("stages=[path]", f"finder.neb.steps={4 * options.steps}")
        pairs = f"path.pairs=[{','.join(f'[0,{k}]' for k in range(1, paths + 1))}]"
        began = time.time()
        workers = [start("killed", own(rank), pairs, *longer) for rank in range(count)]
        lost, claim, last = follow(lambda: at_work(workers), deadline)
        since, killed = time.time() - last.stat().st_mtime, time.time()
        os.kill(lost, signal.SIGKILL)
        follow(lambda: owner(claim) not in (None, lost) or not claim.exists(), deadline)
        taken = time.time() - killed
        codes = [follow(lambda w=w: w.poll() is not None and [w.returncode], deadline)[0] for w in workers]
        note = (
            f"one of {count} workers killed {killed - began:.1f} s after the start, {since:.1f} s after its path's "
            f"last checkpoint; another took that path over after {taken:.1f} s; all {paths} paths were there "
            f"{time.time() - killed:.1f} s after the kill, exit statuses {codes}"
        )
        tell_fault(options, "worker killed", count, taken, note)

        trainer = ["trainer=ddp", f"trainer.devices={count}", f"trainer.accelerator={'gpu' if CUDA else 'cpu'}"]
        group = start("group", trainer, "path.pairs=[[0,1]]", *longer)
        checkpoint = options.out / "group/paths/.0000-0001-neb.work/phase-00/last.ckpt"
        follow(checkpoint.exists, deadline)
        (child,) = [pid for pid in children(group.pid) if b"LOCAL_RANK=1\0" in environ(pid)]
        killed = time.time()
        os.kill(child, signal.SIGKILL)
        follow(lambda: group.poll() is not None, deadline)
        ended = time.time() - killed
        said = (options.out / f"log-group-{len(running) - 1}.txt").read_text().strip().splitlines()[-1]
        again, began = start("group", trainer, "path.pairs=[[0,1]]", *longer), time.time()
        follow(lambda: again.poll() is not None, deadline)
        note = (
            f"process 1 of a group of {count} killed: the command ended with status {group.returncode} after "
            f"{ended:.1f} s and told “{said}”; run again it ended with status {again.returncode} after "
            f"{time.time() - began:.1f} s"
        )
        tell_fault(options, "process of a group killed", count, ended, note)
    except TimeoutError as error:
        print(f"faults: {error}", flush=True)
    finally:
        end_processes(running)


def tell_fault(options: argparse.Namespace, what: str, count: int, took: float, note: str) -> None:
    row = [what, "faults", count, 0.0, took, 1, "", 0.0, note]
    pd.DataFrame([row], columns=COLUMNS).to_csv(options.out / "scaling.csv", mode="a", header=False, index=False)
    print(note, flush=True)


def children(pid: int) -> Iterator[int]:
    for task in Path(f"/proc/{pid}/task").iterdir():
        yield from map(int, (task / "children").read_text().split())


def environ(pid: int) -> bytes:
    return Path(f"/proc/{pid}/environ").read_bytes()


def main() -> None:
    devices = torch.cuda.device_count() if CUDA else min(2, os.cpu_count() or 1)
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = partial(parser.add_argument, type=int)
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    add("--counts", nargs="+", default=[n for n in (1, 2, 4, 8) if n <= devices], help="of devices")
    parser.add_argument("--model", default="resnet20" if CUDA else "resnet8")
    parser.add_argument("--set", nargs="+", default=[], help="more of the command line's settings, such as engine=loop")
    add("--size", default=32, help="pixels of an image's side")
    add("--images", default=20000 if CUDA else 512, help="of training")
    add("--parts", default=16, help="paths, scans, and pairs of minima")
    add("--epochs", default=2 if CUDA else 1, help="of a minimum")
    add("--steps", default=80 if CUDA else 4, help="of a path, of 10 pivots")
    add("--points", default=41 if CUDA else 3, help="of a path, at least")
    add("--batch", default=512 if CUDA else 128, help="of a path and of the band")
    add("--side", default=7 if CUDA else 2, help="points of a scan of the workers, a side")
    add("--pivots", default=16, help="of the band")
    add("--blocks", default=4 if CUDA else 2, help=f"of {BLOCK} steps of the band, the first of which is not counted")
    add("--scan", default=24 if CUDA else 4, help="points of the group's scan, a side")
    add("--map", default=4 if CUDA else 2, help="points of the map of the Hessian, a side")
    add("--samples", default=1000 if CUDA else 64, help="of the Hessian")
    add("--products", default=8, help="of the Hessian, a point")
    add("--threads", default=max(1, len(os.sched_getaffinity(0)) // max(devices, 1)), help="of each process")
    parser.add_argument("--seconds", type=float, default=520 if CUDA else 3600, help="after which all is ended")
    parser.add_argument("--out", type=Path, default=Path("outputs/scaling"))
    add("--member", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    options.counts = sorted({*options.counts})
    if min(options.counts) < 1 or (CUDA and max(options.counts) > devices):
        parser.error(f"--counts must be of the {devices} devices that there are")
    if options.parts < 2 or options.blocks < 2:
        parser.error("--parts and --blocks must be at least 2")
    if options.images < max(options.batch, 128):
        parser.error("--images must be at least a minibatch")
    if options.member:
        Member(options).run()
        return
    deadline = time.time() + options.seconds
    if options.out.exists() and any(options.out.iterdir()) and not (options.out / "images.npz").exists():
        parser.error(f"--out: {options.out} holds something else: name another folder")
    shutil.rmtree(options.out, ignore_errors=True)
    options.out.mkdir(parents=True)
    write_images(options)
    device = torch.cuda.get_device_name() if CUDA else f"CPU, {os.cpu_count()} cores"
    print(f"{device}, {options.threads} threads a process, torch {torch.__version__}", flush=True)
    first, *more = options.counts
    # What is in between comes last, which may be cut.
    for count in (first, *more[-1:], None, *more[-2::-1]):
        began = time.time()
        if count is not None:
            members(options, count, deadline)
        elif "faults" in options.works:
            faults(options, deadline)
        print(f"{count or 'faults'}: {time.time() - began:.1f} s in all", flush=True)
        summarise(options)


if __name__ == "__main__":
    main()
