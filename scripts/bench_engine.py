"""Measure the engine against a plain loop, and both against the device's limits.

    python scripts/bench_engine.py                              a quick look on whatever device there is
    python scripts/bench_engine.py --models resnet20 resnet110 --images 50000 --scan 51

The plain loop is what the field's code does: one point at a time, float32, eager, minibatches from a DataLoader with
workers. The engine is measured through the API, the Lightning loop, augmentation and optimizer included. Data are
random images of CIFAR-10's size. Writes bench.csv, growth.csv and bench.png to --out.

floor: seconds that the work's operations and activations need at the rates of a large matrix product and a large copy
measured in the same run; each convolution or linear layer reads its input and writes its output once (once more for
each of its two gradients, the first layer having one) and all else is free. Fraction: floor / measured. A work is
measured several times, and the fastest counts; compilation, and what happens once a run, are left out.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable, Iterator
from functools import partial
from itertools import chain, count, repeat
from pathlib import Path

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt
import pandas as pd
import torch
from matplotlib.ticker import EngFormatter
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.data import DataLoader, TensorDataset
from torch.utils.flop_counter import FlopCounterMode
from torchvision import transforms

from lowloss import (
    NEB,
    BezierCurve,
    Data,
    Exact,
    Grid,
    LowlossError,
    NetworkLandscape,
    find_path,
    tabulate,
    train_minima,
)
from lowloss.data import CropFlip
from lowloss.landscape import Engine
from lowloss.landscape.engine.loop import KINDS
from lowloss.model import CNN, MLP, VGG16, DenseNet, ResNet, WideResNet

MODELS = {
    "mlp": MLP,
    "cnn_12x1": CNN,
    "cnn_48x1": partial(CNN, width=48),
    "resnet8": partial(ResNet, depth=8),
    "resnet20": partial(ResNet, depth=20),
    "resnet56": partial(ResNet, depth=56),
    "resnet110": partial(ResNet, depth=110),
    "vgg16_bn": partial(VGG16, batch_norm=True),
    "densenet40_12": partial(DenseNet, depth=40, growth=12),
    "wrn28_10": partial(WideResNet, depth=28, widen=10),
}
WORKS = ("train", "train one", "band", "curve", "evaluate", "scan")
CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
INPUT = (3, 32, 32)


def seconds(work: Callable[[], object], times: int = 1) -> float:
    """Wall-clock seconds of one call, the device's work included."""
    if CUDA:
        torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(times):
        work()
    if CUDA:
        torch.cuda.synchronize()
    return (time.perf_counter() - began) / times


def ceilings() -> tuple[float, float]:
    """Operations a second of a bfloat16 matrix product, and bytes a second of a copy (read and written)."""
    side, count = (8192, 1 << 30) if CUDA else (1024, 1 << 26)
    a, b = (torch.randn(side, side, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source, target = (torch.empty(count, dtype=torch.uint8, device=DEVICE) for _ in range(2))
    a @ b, target.copy_(source)
    return 2 * side**3 / seconds(lambda: a @ b, 10), 2 * count / seconds(lambda: target.copy_(source), 10)


def cost(module: nn.Module, bytes_each: int) -> dict[bool, tuple[float, float]]:
    """Operations and activation bytes of one sample: of its forward pass (False), and of that and gradients (True)."""
    moved: list[int] = []

    def count(part: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        moved.append(bytes_each * (inputs[0].numel() + output.numel()))

    hooks = [m.register_forward_hook(count) for m in module.modules() if isinstance(m, (nn.Conv2d, nn.Linear))]
    found = {}
    for gradients in (False, True):
        moved.clear()
        with FlopCounterMode(display=False) as flops, torch.set_grad_enabled(gradients):
            outputs = module.eval()(torch.randn(1, *INPUT))
            if gradients:
                outputs.sum().backward()
        # Two gradients a layer, but the image needs none.
        found[gradients] = float(flops.get_total_flops()), float(3 * sum(moved) - moved[0] if gradients else sum(moved))
    for hook in hooks:
        hook.remove()
    module.zero_grad()
    return found


class Plain:
    """One point at a time, float32, eager, minibatches from a DataLoader."""

    def __init__(self, module: nn.Module, data: Data, workers: int) -> None:
        self.module = copy.deepcopy(module).to(DEVICE)
        self.optimizer = torch.optim.SGD(self.module.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)
        self.data, self.workers = data, workers
        self.normalises = any(isinstance(part, _BatchNorm) for part in module.modules())
        self.augment = transforms.Compose([transforms.RandomCrop(32, padding=4), transforms.RandomHorizontalFlip()])

    def loader(self, batch: int, augmented: bool) -> DataLoader:
        x, y = self.data.x_train.cpu(), self.data.y_train.cpu()
        augment = self.augment

        class Images(TensorDataset):
            def __getitem__(self, index: int) -> tuple[Tensor, Tensor]:
                return (augment(x[index]) if augmented else x[index]), y[index]

        options = {"num_workers": self.workers, "pin_memory": CUDA, "persistent_workers": self.workers > 0}
        return DataLoader(Images(x, y), batch, shuffle=augmented, drop_last=augmented, **options)

    def step(self, x: Tensor, y: Tensor, update: bool = True) -> None:
        self.optimizer.zero_grad()
        cross_entropy(self.module(x), y).backward()
        if update:
            self.optimizer.step()

    def a_step(self, batch: int, steps: int, work: Callable[[Tensor, Tensor], None]) -> float:
        """Seconds a minibatch of the work, the loader included and its start left out."""
        self.module.train()
        loader = self.loader(batch, augmented=True)
        batches = chain.from_iterable(repeat(loader))
        for _ in range(3):
            work(*(part.to(DEVICE, non_blocking=True) for part in next(batches)))
        return seconds(lambda: work(*(part.to(DEVICE, non_blocking=True) for part in next(batches))), steps)

    def train(self, batch: int, steps: int) -> float:
        return self.a_step(batch, steps, self.step)

    def band(self, pivots: int, batch: int, steps: int) -> float:
        def work(x: Tensor, y: Tensor) -> None:
            for _ in range(pivots):
                self.step(x, y, update=False)
            with torch.no_grad():
                for _ in range(2):
                    cross_entropy(self.module(x), y)

        return self.a_step(batch, steps, work)

    def curve(self, batch: int, steps: int) -> float:
        """A curve step as the field writes it: every layer mixes its three bends, and autograd goes through that."""
        bends = [{n: p.detach().clone().requires_grad_() for n, p in self.module.named_parameters()} for _ in range(3)]
        optimizer = torch.optim.SGD([p for bend in bends for p in bend.values()], lr=0.01, momentum=0.9)

        def work(x: Tensor, y: Tensor) -> None:
            t = float(torch.rand(()))
            weights = (1 - t) ** 2, 2 * t * (1 - t), t**2
            mixed = {n: sum(w * bend[n] for w, bend in zip(weights, bends, strict=True)) for n in bends[0]}
            optimizer.zero_grad()
            loss = cross_entropy(torch.func.functional_call(self.module, mixed, (x,)), y)
            loss = loss + 0.5 * 5e-4 * sum(p.square().sum() for p in mixed.values())
            loss.backward()
            optimizer.step()

        return self.a_step(batch, steps, work)

    @torch.no_grad()
    def evaluate(self) -> float:
        """Seconds a point: a pass for BatchNorm's statistics, if it has any, then one for the loss."""
        loader = self.loader(128, augmented=False)
        next(iter(loader))

        def work() -> None:
            for training in (True, False) if self.normalises else (False,):
                self.module.train(training)
                total = torch.zeros((), device=DEVICE)
                for x, y in loader:
                    total += cross_entropy(self.module(x.to(DEVICE, non_blocking=True)), y.to(DEVICE), reduction="sum")

        return seconds(work)


def engine_rows(
    name: str, landscape: NetworkLandscape, works: list[str], points: int, steps: int, resolution: int
) -> dict[str, tuple[float, float]]:
    """Seconds a step or a point of each work, and the peak memory in GiB."""
    found: dict[str, tuple[float, float]] = {}
    minima = torch.stack([landscape.initial(k) for k in range(points)])
    origin_P, directions_2P = minima[0], torch.stack([minima[0] * 0.01, minima[0].roll(1) * 0.01])
    per_epoch = landscape.batches(128, [0], shared=True).steps_per_epoch
    finders = {"band": partial(NEB, pivots=points, batch_size=512), "curve": BezierCurve}

    def measure(work: str, run: Callable[[int], object], times: int) -> None:
        print(f"{name}: {work} …", flush=True)
        if CUDA:
            # From before the capture: replays allocate nothing that would be counted.
            torch.cuda.reset_peak_memory_stats()
        run(1)  # compiles
        if not landscape.engine.usable:
            raise SystemExit(f"{name}: {work} runs on the plain loop: see the line above")
        short = min(seconds(partial(run, 1)) for _ in range(3))
        while (whole := seconds(partial(run, 1 + times))) < 2 * short + 0.5:
            times *= 4  # what happens once a run would drown the steps
        whole = min(whole, seconds(partial(run, 1 + times)))
        peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else float("nan")
        # The difference leaves out what happens once a run.
        found[work] = (whole - short) / times, peak

    def evaluate(runs: Iterator[int], n: int) -> None:
        # No two alike, of one run or of two, whose statistics would be known.
        run = next(runs)
        shifted = lambda i: minima[i % points] * (1 + 1e-4 * i[:, None] + 1e-6 * run)  # noqa: E731
        tabulate(landscape, shifted, n, [Exact(["train"])])

    for work in works:
        if work == "train":
            measure(work, lambda n: train_minima(landscape, count=points, epochs=n / per_epoch), steps)
        elif work == "train one":
            measure(work, lambda n: train_minima(landscape, count=1, epochs=n / per_epoch), steps)
        elif work in finders:
            measure(
                work, lambda n, f=finders[work]: find_path(landscape, minima[0], minima[-1] * 1.1, f(steps=n)), steps
            )
        elif work == "evaluate":
            measure(work, partial(evaluate, count()), 16 * points if CUDA else 4 * points)
        elif work == "scan":
            axis = torch.linspace(-1, 1, resolution, dtype=torch.float64)
            grid = Grid(origin_P, directions_2P, (axis, axis), torch.zeros(1, 2), ("o",))
            one = Grid(origin_P, directions_2P, (axis[:1], axis[:1]), torch.zeros(1, 2), ("o",))
            tabulate(landscape, one.points, 1, [Exact(["train"])])
            print(f"{name}: scan …", flush=True)
            if CUDA:
                torch.cuda.reset_peak_memory_stats()
            total = seconds(partial(tabulate, landscape, grid.points, resolution**2, [Exact(["train"])]))
            peak = torch.cuda.max_memory_allocated() / 2**30 if CUDA else float("nan")
            found[work] = total / resolution**2, peak
            print(f"{name}: {resolution} × {resolution} points in {total:.1f} s", flush=True)
    return found


def bench(args: argparse.Namespace, flops: float, bandwidth: float) -> pd.DataFrame:
    rows = []
    for name in args.models:
        data = random_data(args.images)
        factory = partial(MODELS[name], input_shape=INPUT, num_classes=10)
        landscape = NetworkLandscape(
            factory, data, args.evaluation_batch or (args.images if CUDA else 128), Engine(args.engine)
        )
        module = factory()
        costs = cost(module, 2 if CUDA else 4)
        # BatchNorm's statistics take a sweep of their own, but for the whole split at once on a GPU.
        whole = CUDA and landscape.evaluation_batch >= args.images
        sweeps = 2 if landscape.loop.batch_norms and not whole else 1
        measured = engine_rows(name, landscape, args.works, args.points, args.steps, args.scan)
        print(f"{name}: {landscape.arithmetic}", flush=True)
        plain = Plain(module, data, args.workers)
        images = {
            "train": 128 * args.points,
            "train one": 128,
            "band": 512 * args.points,
            "curve": 128,
            "evaluate": args.images,
            "scan": args.images,
        }
        slow: dict[str, float] = {}
        if {"train", "train one"} & measured.keys():
            slow["train one"] = plain.train(128, args.plain_steps)
            slow["train"] = slow["train one"] * args.points
        if "band" in measured:
            slow["band"] = plain.band(args.points, 512, 3)
        if "curve" in measured:
            slow["curve"] = plain.curve(128, args.plain_steps)
        if {"evaluate", "scan"} & measured.keys():
            slow["evaluate"] = slow["scan"] = plain.evaluate()
        for work, (fast, peak) in measured.items():
            steps = work in ("train", "train one", "band", "curve")
            operations, moved = costs[steps]
            floor = images[work] * (1 if steps else sweeps) * max(operations / flops, moved / bandwidth)
            rows.append(
                {
                    "model": name,
                    "work": work,
                    "engine": landscape.arithmetic,
                    "plain ms": slow[work] * 1e3,
                    "engine ms": fast * 1e3,
                    "ratio": slow[work] / fast,
                    "engine thousand images/s": images[work] / fast / 1e3,
                    "fraction of floor": floor / fast,
                    "peak GiB": peak,
                }
            )
        # Each model when it is done: a bench of many takes long.
        table = pd.DataFrame(rows)
        table.to_csv(args.out / "bench.csv", index=False)
        lines = table[table["model"] == name].drop(columns="engine")
        print(lines.to_string(index=False, float_format=lambda value: f"{value:.3g}"), flush=True)
    return table


def random_data(images: int) -> Data:
    x, y = torch.randn(images, *INPUT), torch.randint(10, (images,))
    return Data(x, y, x[:100], y[:100], 10, CropFlip())


def growth(args: argparse.Namespace) -> pd.DataFrame:
    """Milliseconds of a gradient step as points, batch and parameters grow, and of an evaluation as images do."""
    rows = []

    def landscape(width: int, images: int = 2048) -> NetworkLandscape:
        factory = partial(ResNet, depth=args.growth_depth, width=width)
        return NetworkLandscape(factory, random_data(images), images, Engine(args.engine)).to(DEVICE)

    def gradient(land: NetworkLandscape, points: int, batch: int) -> float:
        theta_KP = torch.stack([land.initial(0)] * points).to(DEVICE)
        minibatch = land.batches(batch, list(range(points)), shared=False)[0]
        land.engine.losses(theta_KP, minibatch, True)
        return seconds(lambda: land.engine.losses(theta_KP, minibatch, True), 10 if CUDA else 1) * 1e3

    land = landscape(16)
    rows += [
        ("K points", points, gradient(land, points, 128)) for points in ((1, 2, 4, 8, 16, 32) if CUDA else (1, 2, 4))
    ]
    rows += [("B samples", batch, gradient(land, 4, batch)) for batch in (128, 256, 512)]
    for width in (8, 16, 32, 64) if CUDA else (4, 8, 16):
        wide = landscape(width)
        rows.append(("P parameters", wide.dim, gradient(wide, 4, 128)))
    for images in (5000, 10000, 20000, 40000):
        many = landscape(16, images if CUDA else images // 20)
        theta_KP = many.initial(0)[None].to(DEVICE)
        many.evaluate(theta_KP)
        rows.append(("N images", len(many.data.y_train), seconds(partial(many.evaluate, theta_KP * 1.01)) * 1e3))
    return pd.DataFrame(rows, columns=["grows", "value", "ms"])


def draw(table: pd.DataFrame, grown: pd.DataFrame, file: Path) -> None:
    figure, axes = plt.subplots(1, 1 + grown["grows"].nunique(), figsize=(4 + 3 * grown["grows"].nunique(), 3.2))
    first, *others = [axes] if grown.empty else list(axes)
    labels = table["model"] + " " + table["work"]
    first.bar_label(first.barh(labels, table["ratio"]), fmt="%.3g", padding=2)
    first.set(xlabel="plain loop / engine")
    first.margins(x=0.2)
    first.invert_yaxis()
    for axis, (name, part) in zip(others, grown.groupby("grows", sort=False), strict=True):
        axis.loglog(part["value"], part["ms"], "o-")
        axis.minorticks_off()
        axis.set_xticks(part["value"], [EngFormatter(places=0, sep="")(value) for value in part["value"]])
        # All of them would overlap where the cost hardly grows.
        ends = [part["ms"].min(), part["ms"].max()]
        axis.set_yticks(ends, [f"{ms:,.3g}" for ms in ends])
        axis.set(xlabel=name, ylabel="ms")
    figure.tight_layout()
    figure.savefig(file, dpi=130)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--models", nargs="+", choices=MODELS, default=["resnet20"] if CUDA else ["cnn_12x1", "resnet8"]
    )
    parser.add_argument("--works", nargs="+", choices=WORKS, default=list(WORKS))
    parser.add_argument("--engine", choices=KINDS, default="auto")
    parser.add_argument("--images", type=int, default=50000 if CUDA else 1024, help="training images")
    parser.add_argument("--points", type=int, default=10 if CUDA else 3, help="minima and pivots at once")
    parser.add_argument("--steps", type=int, default=200 if CUDA else 3)
    parser.add_argument("--plain-steps", type=int, default=40 if CUDA else 3)
    parser.add_argument("--scan", type=int, default=9 if CUDA else 2, help="points a side")
    parser.add_argument("--evaluation-batch", type=int, help="by default all training images on a GPU, else 128")
    parser.add_argument("--workers", type=int, default=8 if CUDA else 0, help="of the plain loop's DataLoader")
    parser.add_argument("--growth-depth", type=int, default=20 if CUDA else 8, help="0 leaves the growth out")
    parser.add_argument("--out", type=Path, default=Path("outputs/bench"))
    args = parser.parse_args()
    if args.images < 512:
        parser.error("--images: a band's minibatch is 512")
    for name in ("points", "steps", "plain_steps", "scan"):
        if getattr(args, name) < 1:
            parser.error(f"--{name.replace('_', '-')} must be at least 1")
    if args.workers < 0:
        parser.error("--workers must be at least 0")
    if args.evaluation_batch is not None and args.evaluation_batch < 2:
        parser.error("--evaluation-batch must be at least 2: BatchNorm has nothing to normalise in one sample")
    try:
        if args.growth_depth:
            ResNet(INPUT, 10, args.growth_depth)
    except ValueError as error:
        parser.error(f"--growth-depth is a ResNet's, or 0: {error}")
    try:
        Engine(args.engine).graph_dtypes(DEVICE)
        args.out.mkdir(parents=True, exist_ok=True)
    except (LowlossError, OSError) as error:
        parser.error(str(error))
    flops, bandwidth = ceilings()
    device = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
    print(f"{device}: {flops / 1e12:.3g} TFLOP/s, {bandwidth / 1e12:.3g} TB/s, torch {torch.__version__}", flush=True)
    table = bench(args, flops, bandwidth)
    grown = growth(args) if args.growth_depth else pd.DataFrame({"grows": [], "value": [], "ms": []})
    grown.to_csv(args.out / "growth.csv", index=False)
    draw(table, grown, args.out / "bench.png")


if __name__ == "__main__":
    main()
