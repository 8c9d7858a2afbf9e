"""Run what the papers' experiments do at their sizes on a part of a GPU's memory, and tell the peak of each.

    python scripts/bench_memory.py --gib 24
    python scripts/bench_memory.py --works "evaluate resnet20" "curvature resnet56"

--gib: the memory of the smaller card, of which a context and the driver take a GiB. Data are random, of the originals'
sizes. An evaluation and a step of the graph engine come with their checks against float32, and are run once more
without. Peaks are torch's allocated and reserved memory. Writes memory.json to --out after each work, and exits with 1
where a work does not fit, or an evaluation of 50,000 images takes more than 8 GiB.
"""

from __future__ import annotations

import argparse
import gc
import json
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lowloss import Data, LanguageModel, LowlossError, NetworkLandscape
from lowloss.data.base import Carry
from lowloss.landscape import Engine
from lowloss.measure import Extremes, Hessian
from lowloss.model import CNN, LSTM, DenseNet, ResNet, WideResNet

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
CONTEXT = 1.0
"""GiB of a card that are not torch's."""

EVALUATION = 8.0
"""GiB that evaluating 50,000 images may take."""


def images(make: Callable[..., nn.Module], count: int, batch: int, size: int = 32, **options: Any) -> NetworkLandscape:
    """A landscape of random images, `batch` of them evaluated at once where statistics are averaged."""
    generator = torch.Generator().manual_seed(0)
    x, classes = torch.randn(count, 3, size, size, generator=generator), options.pop("classes", 10)
    y = torch.randint(classes, (count,), generator=generator)
    if options.pop("shaped", True):
        options |= {"input_shape": (3, size, size)}
    data = Data(x, y, x[: min(count, 10_000)], y[: min(count, 10_000)], classes)
    torch.manual_seed(0)
    return NetworkLandscape(partial(make, num_classes=classes, **options), data, batch, Engine()).to(DEVICE)


def points(landscape: NetworkLandscape, count: int) -> torch.Tensor:
    return torch.stack([landscape.initial(k) for k in range(count)]).to(DEVICE)


def evaluate(landscape: NetworkLandscape, count: int) -> None:
    theta_KP = points(landscape, count)
    for split in ("train", "test"):
        landscape.evaluate(theta_KP, split)


def step(landscape: NetworkLandscape, count: int, batch: int) -> None:
    """Gradient steps of so many points, each with a minibatch, momentum included."""
    theta_KP = points(landscape, count).requires_grad_()
    optimizer = torch.optim.SGD([theta_KP], lr=1e-3, momentum=0.9)
    batches = landscape.batches(batch, list(range(count)), shared=False)
    for index in range(3):
        optimizer.zero_grad()
        landscape.losses(theta_KP, batches[index]).sum().backward()
        optimizer.step()


def curvature(landscape: NetworkLandscape, count: int) -> None:
    Extremes(Hessian("train", 2500), products=4)(landscape, points(landscape, count))


def resnet50(batch: int) -> NetworkLandscape:
    from torchvision.models import resnet50 as make

    return images(make, 3 * batch, 250, 224, classes=1000, shaped=False)


def text() -> NetworkLandscape:
    """Penn Treebank's sizes: 20 streams, 35 steps, 10,000 words."""
    tokens = torch.randint(10_000, (20 * 40, 35), generator=torch.Generator().manual_seed(0))
    data = Data(tokens, tokens, tokens[:400], tokens[:400], task=LanguageModel(10_000), streams=20)
    make = partial(LSTM, num_classes=10_000, width=1500, layers=2, dropout=0.65)
    return NetworkLandscape(make, data).to(DEVICE)


def carried(landscape: NetworkLandscape, count: int) -> None:
    """Steps with the states handed on, and an evaluation."""
    theta_KP, carry = points(landscape, count).requires_grad_(), Carry(count)
    batches = landscape.batches(20, [0], shared=True)
    for index in range(3):
        landscape.losses(theta_KP, batches[index]._replace(carry=carry)).sum().backward()
    landscape.evaluate(theta_KP.detach())


Make, Work = Callable[[], NetworkLandscape], Callable[[NetworkLandscape], None]
WORKS: dict[str, tuple[Make, Work, float | None]] = {
    "evaluate resnet20": (partial(images, ResNet, 50_000, 50_000, depth=20), partial(evaluate, count=2), EVALUATION),
    "evaluate resnet56": (partial(images, ResNet, 50_000, 2500, depth=56), partial(evaluate, count=2), None),
    "curvature resnet20": (partial(images, ResNet, 10_000, 2500, depth=20), partial(curvature, count=2), None),
    "curvature resnet56": (partial(images, ResNet, 10_000, 2500, depth=56), partial(curvature, count=1), None),
    "curvature resnet110": (partial(images, ResNet, 10_000, 2500, depth=110), partial(curvature, count=1), None),
    "text lstm_large": (text, partial(carried, count=1), None),
    "minimum wrn28_10": (partial(images, WideResNet, 10_000, 2500), partial(step, count=1, batch=128), None),
    "evaluate wrn28_10": (partial(images, WideResNet, 10_000, 2500), partial(evaluate, count=1), None),
    "step resnet50": (partial(resnet50, 256), partial(step, count=1, batch=256), None),
    "band densenet40": (partial(images, DenseNet, 10_000, 2500), partial(step, count=10, batch=512), None),
    "band resnet56": (partial(images, ResNet, 10_000, 2500, depth=56), partial(step, count=10, batch=512), None),
    "tiny": (partial(images, CNN, 64, 16, 8), partial(step, count=2, batch=8), None),
}
"""How a landscape is made, what is done with it, and how many GiB that may take."""


def measured(name: str) -> dict[str, Any]:
    make, work, bound = WORKS[name]
    row: dict[str, Any] = {"work": name}
    landscape = make()
    for first in (True, False):
        if CUDA:
            torch.cuda.synchronize()
            torch.cuda.reset_peak_memory_stats()
        landscape._statistics = None  # as of other points
        began, error = time.perf_counter(), ""
        try:
            work(landscape)
            if CUDA:
                torch.cuda.synchronize()
        except (LowlossError, torch.OutOfMemoryError) as reason:
            error = str(reason).splitlines()[0]
        suffix = "" if first else " again"
        row[f"seconds{suffix}"] = round(time.perf_counter() - began, 2)
        if CUDA:
            row[f"GiB{suffix}"] = round(torch.cuda.max_memory_allocated() / 2**30, 2)
            row[f"reserved{suffix}"] = round(torch.cuda.max_memory_reserved() / 2**30, 2)
        if error:
            return row | {"error": error}
    engine = landscape.engine
    at_once = getattr(engine, "_points_at_once", 1 << 30)
    row |= {"arithmetic": landscape.arithmetic, "points at once": "all" if at_once == 1 << 30 else at_once}
    if bound is not None and CUDA and row["GiB"] > bound:
        row["error"] = f"more than {bound:g} GiB"
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gib", type=float, default=24, help="of the card")
    parser.add_argument("--works", nargs="+", choices=WORKS, default=[name for name in WORKS if name != "tiny"])
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_memory"))
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    if CUDA:
        whole = torch.cuda.get_device_properties(DEVICE).total_memory / 2**30
        torch.cuda.set_per_process_memory_fraction(min(1.0, (options.gib - CONTEXT) / whole))
        name = torch.cuda.get_device_name()
        print(f"{options.gib - CONTEXT:g} of {whole:.1f} GiB of an {name}, torch {torch.__version__}", flush=True)
    rows = []
    for name in options.works:
        rows.append(measured(name))
        print(", ".join(f"{key} {value}" for key, value in rows[-1].items()), flush=True)
        (options.out / "memory.json").write_text(json.dumps(rows, indent=1))
        gc.collect()
        torch._dynamo.reset()
        if CUDA:
            torch.cuda.empty_cache()
    raise SystemExit(any("error" in row for row in rows))


if __name__ == "__main__":
    main()
