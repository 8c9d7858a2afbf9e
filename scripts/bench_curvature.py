"""Measure the extreme eigenvalues of Hessians against curvlinops 3 and hessian-eigenthings 1.0.

    python scripts/bench_curvature.py --data-root data

A ResNet-20 is trained for a moment. Then, all at the same parameters and the same held BatchNorm statistics, on the
same images in the same parts, in the arithmetic that torch has by default (TF32 in convolutions):

product   one product of the Hessian over --map-images images, with TF32 and without, and how far those of the tools are
          from ours without
point     the lowest and the highest eigenvalue over all images at one point
plane     the same over --map-images images at the points of a plane through it, --side of them a side; the others at
          some of these
map       what a 25 × 25 map of |lowest / highest| takes at the plane's rate, and how far the ends of subsets of so many
          images are from those of all

The others take what costs them least. curvlinops gives a linear operator, on which its own `approximate_boundaries`
calls SciPy's eigsh for both ends, as here; eigsh takes a tolerance relative to each eigenvalue, which is loosened to
what ours is, relative to the highest. hessian-eigenthings does not look whether it has converged: it is told to take as
many products as ours took, and both ends are taken from one run, where its own call gives one. What takes longer than
--limit is cut. Data are CIFAR-10 in --data-root, or random images with a pattern of each class. Writes curvature.json
to --out after each row.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowloss import Data, NetworkLandscape
from lowloss.data import cifar10
from lowloss.landscape import Engine
from lowloss.measure import Extremes, Hessian
from lowloss.model import CNN, ResNet
from lowloss.points.directions import random_directions

CUDA = torch.cuda.is_available()
DEVICE = torch.device("cuda" if CUDA else "cpu")
MODELS = {"resnet20": partial(ResNet, depth=20), "resnet8": partial(ResNet, depth=8, width=4), "cnn": CNN}
TOOLS = ("lowloss", "curvlinops", "hessian-eigenthings")
Product = Callable[[Tensor], Tensor]


class CutError(Exception):
    """A tool took too long."""


def now() -> float:
    if CUDA:
        torch.cuda.synchronize()
    return time.perf_counter()


class Watched:
    """Parts of the data that end what goes through them when the time is up."""

    def __init__(self, parts: list[tuple[Tensor, Tensor]], limit: float) -> None:
        self.parts, self.limit, self.began = parts, limit, now()

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        for part in self.parts:
            if time.perf_counter() - self.began > self.limit:
                raise CutError
            yield part

    def __len__(self) -> int:
        return sum(len(y) for _, y in self.parts)


class Counted:
    def __init__(self, product: Product) -> None:
        self.product, self.calls = product, 0

    def __call__(self, v_P: Tensor) -> Tensor:
        self.calls += 1
        return self.product(v_P)


def of_curvlinops(module: nn.Module, parts: Watched) -> Product:
    from curvlinops import HessianLinearOperator

    parameters = [p for p in module.parameters() if p.requires_grad]
    operator = HessianLinearOperator(
        module, nn.CrossEntropyLoss(), parameters, parts, check_deterministic=False, num_data=len(parts)
    )
    return lambda v_P: operator @ v_P


def by_curvlinops(product: Counted, dim: int, tolerance: float, known: dict[str, float]) -> tuple[float, float]:
    from scipy.sparse.linalg import LinearOperator, eigsh

    def times(v: Any) -> Any:
        return product(torch.from_numpy(v.reshape(-1)).to(DEVICE, torch.float32)).cpu().numpy()

    # As its approximate_boundaries, but for the tolerance and the precision of the vectors.
    loosened = tolerance * max(1.0, abs(known["max"] / known["min"]))
    start = np.random.default_rng(0).standard_normal(dim).astype(np.float32)
    operator = LinearOperator((dim, dim), matvec=times, dtype=np.dtype(np.float32))
    lowest, highest = eigsh(operator, k=2, which="BE", tol=loosened, v0=start, return_eigenvectors=False)
    return float(lowest), float(highest)


def of_eigenthings(module: nn.Module, parts: Watched) -> Product:
    from hessian_eigenthings import HessianOperator, supervised_loss

    product: Product = HessianOperator(module, parts, supervised_loss(cross_entropy)).matvec
    return product


def by_eigenthings(product: Counted, dim: int, tolerance: float, known: dict[str, float]) -> tuple[float, float]:
    from hessian_eigenthings import LambdaOperator, lanczos

    operator = LambdaOperator(product, dim, device=DEVICE, dtype=torch.float32)
    steps = int(known["products"])
    values = lanczos(operator, k=steps, max_iter=steps, which="LA", reorthogonalize=True, seed=0).eigenvalues
    return float(values.min()), float(values.max())


PEERS: dict[str, tuple[Callable[[nn.Module, Watched], Product], Callable[..., tuple[float, float]]]] = {
    "curvlinops": (of_curvlinops, by_curvlinops),
    "hessian-eigenthings": (of_eigenthings, by_eigenthings),
}


class Bench:
    def __init__(self, options: argparse.Namespace) -> None:
        self.options, self.rows = options, list[dict[str, Any]]()
        data, self.about = load(options)
        torch.manual_seed(0)
        factory = partial(MODELS[options.model], input_shape=tuple(data.x_train[:1].shape[1:]), num_classes=10)
        self.landscape = NetworkLandscape(factory, data, options.batch, Engine("loop")).to(DEVICE)
        began = now()
        self.theta_P = trained(self.landscape, options.steps)
        metrics = {name: float(column[0]) for name, column in self.landscape.evaluate(self.theta_P[None]).items()}
        print(f"{options.steps} steps in {now() - began:.1f} s: {metrics}", flush=True)
        device = torch.cuda.get_device_name() if CUDA else f"CPU, {torch.get_num_threads()} threads"
        self.about |= {"device": device, "torch": torch.__version__, "parameters": self.landscape.dim} | metrics
        self.tools = ["lowloss"]
        for name in options.tools:
            if name in PEERS:
                try:
                    self.peer(name, self.theta_P, Watched(self.data(8), 60))
                    self.tools.append(name)
                except ImportError as error:
                    print(f"{name} is left out: {error}", flush=True)

    def data(self, samples: int | None) -> list[tuple[Tensor, Tensor]]:
        """The images of the training split, or of the subset that a Hessian of so many takes, in parts."""
        if samples is None:
            x_N, y_N = self.landscape.data.split("train")
        else:
            x_N, y_N, _ = self.batch(samples).row(0)
        size = min(self.options.batch, len(y_N))
        return [(x_N[first : first + size], y_N[first : first + size]) for first in range(0, len(y_N), size)]

    def batch(self, samples: int, seed: int = 0) -> Any:
        from lowloss.seeding import derive

        return self.landscape.subset("train", samples, derive(seed, "hessian"))

    def peer(self, tool: str, theta_P: Tensor, parts: Watched) -> Product:
        module = self.landscape.module(theta_P).to(DEVICE).eval()
        return PEERS[tool][0](module, parts)

    def row(self, **columns: Any) -> None:
        if CUDA:
            columns["peak GiB"] = torch.cuda.max_memory_allocated() / 2**30
            torch.cuda.reset_peak_memory_stats()
        self.rows.append(columns)
        line = ", ".join(f"{k} {v:.4g}" if isinstance(v, float) else f"{k} {v}" for k, v in columns.items())
        print(line, flush=True)
        self.options.out.mkdir(parents=True, exist_ok=True)
        (self.options.out / "curvature.json").write_text(json.dumps({"about": self.about, "rows": self.rows}, indent=1))

    def products(self) -> None:
        """Also what first calls take, which no later row does."""
        landscape, batch = self.landscape, self.batch(self.options.map_images)
        v_P = torch.randn(landscape.dim, generator=torch.Generator().manual_seed(0)).to(DEVICE)
        reference_P: Tensor | None = None
        for tf32 in (False, True):
            with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=False, allow_tf32=tf32):
                for tool in self.tools:
                    product: Product = lambda v_P: landscape.product(self.theta_P[None], v_P[None], batch)[0]  # noqa: E731
                    if tool != "lowloss":
                        parts = Watched(self.data(self.options.map_images), self.options.limit)
                        product = self.peer(tool, self.theta_P, parts)
                    common: dict[str, Any] = {"row": "product", "tool": tool, "images": len(batch.y), "tf32": tf32}
                    try:
                        found_P = product(v_P)
                        began, times = now(), 0
                        while times < 1 or (now() - began < 0.3 and times < 100):
                            product(v_P)
                            times += 1
                    except (CutError, RuntimeError) as error:
                        self.row(**common, cut=True, ms=1e3 * self.options.limit, error=told(error))
                        continue
                    reference_P = found_P if reference_P is None else reference_P
                    apart = float((found_P - reference_P).norm() / reference_P.norm())
                    self.row(**common, ms=1e3 * (now() - began) / times, apart=apart)

    def ours(self, theta_KP: Tensor, samples: int | None, seed: int = 0) -> dict[str, Tensor]:
        measure = Extremes(Hessian("train", samples, seed), tolerance=self.options.tolerance, vectors=samples is None)
        return measure(self.landscape, theta_KP)

    def other(
        self, tool: str, theta_P: Tensor, parts: list[tuple[Tensor, Tensor]], known: dict[str, float]
    ) -> dict[str, Any]:
        watched = Watched(parts, self.options.limit)
        product = Counted(self.peer(tool, theta_P, watched))
        columns: dict[str, Any] = {"cut": False, "min": float("nan"), "max": float("nan")}
        watched.began = now()
        try:
            columns["min"], columns["max"] = PEERS[tool][1](product, self.landscape.dim, self.options.tolerance, known)
        except (CutError, RuntimeError) as error:
            columns |= {"cut": True, "error": told(error)}
        columns |= {"seconds": now() - watched.began, "products": product.calls}
        ends = abs(columns["min"] - known["min"]), abs(columns["max"] - known["max"])
        return columns | {"apart": max(ends) / known["max"]}

    def point(self) -> None:
        theta_1P, landscape = self.theta_P[None], self.landscape
        landscape.statistics(self.theta_P)
        for _ in range(self.options.repeats):
            began = now()
            found = self.ours(theta_1P, None)
            took = now() - began
            known = row_of(found, 0)
            self.known = known
            self.row(row="point", tool="lowloss", images=len(landscape.data.y_train), seconds=took, **known)
            for tool in self.tools[1:]:
                columns = self.other(tool, self.theta_P, self.data(None), known)
                self.row(row="point", tool=tool, images=len(landscape.data.y_train), **columns)
        # What the residuals are without TF32.
        with torch.backends.cudnn.flags(enabled=True, benchmark=False, deterministic=True, allow_tf32=False):
            for end in ("min", "max"):
                v_P = found[f"hessian_vector_{end}"][0].to(DEVICE)
                product_P = landscape.product(theta_1P, v_P[None], "train")[0]
                quotient = float(v_P @ product_P)
                residual = float((product_P - known[end] * v_P).norm()) / known["max"]
                self.row(row="float32", tool="lowloss", end=end, quotient=quotient, residual=residual)

    def plane(self) -> None:
        options, landscape, side = self.options, self.landscape, self.options.side
        directions_2P = random_directions(self.theta_P, landscape.layout, 1, 2, "filter").to(DEVICE)
        steps = torch.linspace(-0.5, 0.5, side)
        points_KP = torch.stack(
            [self.theta_P + a * directions_2P[0] + b * directions_2P[1] for a in steps for b in steps]
        )
        began = now()
        with landscape.loop.exact():
            list(landscape._statistics_at(landscape.loop, points_KP, None))
        statistics = (now() - began) / len(points_KP)
        began, found = now(), list[dict[str, float]]()
        for part_KP in points_KP.split(16):
            columns = self.ours(part_KP, options.map_images)
            found += [row_of(columns, k) for k in range(len(part_KP))]
            if now() - began > options.limit:
                break
        each = (now() - began) / len(found)
        mean = sum(one["products"] for one in found) / len(found)
        common: dict[str, Any] = {"row": "plane", "images": options.map_images}
        self.row(
            **common,
            tool="lowloss",
            points=len(found),
            seconds=each,
            products=mean,
            converged=sum(bool(one["converged"]) for one in found),
            statistics=statistics,
            ratios=[round(one["ratio"], 5) for one in found],
        )
        chosen = [len(found) // 2 + side // 2, 0, len(found) - 1][: options.peer_points]
        for tool in self.tools[1:]:
            for k in chosen:
                columns = self.other(tool, points_KP[k], self.data(options.map_images), found[k])
                self.row(**common, tool=tool, points=1, **columns)
        errors = []
        if options.map_images < len(landscape.data.y_train):
            for seed in range(1, 5):
                errors.append(row_of(self.ours(self.theta_P[None], options.map_images, seed), 0))
        columns = {f"subset {k}": [round(one[k], 5) for one in errors] for k in ("min", "max", "ratio")}
        whole = {f"whole {k}": getattr(self, "known", {}).get(k) for k in ("min", "max", "ratio")}
        minutes = {"minutes": 625 * (each + statistics) / 60, "minutes, statistics held": 625 * each / 60}
        self.row(row="map", tool="lowloss", images=options.map_images, **minutes, **columns, **whole)

    def table(self) -> str:
        def text(row: dict[str, Any]) -> str:
            given = row.get("ms", row.get("seconds"))
            unit = "ms" if "ms" in row else "s"
            return "" if given is None else f"{'> ' if row.get('cut') else ''}{given:.3g} {unit}"

        def cell(value: Any) -> str:
            return "" if value is None or value != value else f"{value:.4g}" if isinstance(value, float) else str(value)

        def total(row: dict[str, Any]) -> float:
            return float(row.get("ms", row.get("seconds", float("nan"))))

        lines = [
            "| work | tool | time | times ours | products | λmin | λmax | apart from ours / λmax |",
            "| --- | --- | --- | --- | --- | --- | --- | --- |",
        ]
        ours: dict[tuple[Any, ...], float] = {}
        for row in self.rows:
            if row["row"] in ("product", "point", "plane"):
                name = f"{row['row']}, {row['images']:,} images" + (", TF32" if row.get("tf32") else "")
                if row["tool"] == "lowloss":
                    ours[name,] = total(row)
                ratio = f"{'> ' if row.get('cut') else ''}{total(row) / ours[name,]:.2f}"
                rest = (cell(row.get(key)) for key in ("products", "min", "max", "apart"))
                lines.append(f"| {name} | {row['tool']} | {text(row)} | {ratio} | {' | '.join(rest)} |")
        return "\n".join(lines)


def told(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def row_of(found: dict[str, Tensor], k: int) -> dict[str, float]:
    names = ("min", "max", "ratio", "residual_min", "residual_max", "converged", "products")
    return {name: float(found[f"hessian_{name}"][k]) for name in names}


def load(options: argparse.Namespace) -> tuple[Data, dict[str, Any]]:
    if options.data_root is not None:
        whole = cifar10(options.data_root)
        x, y = whole.x_train[: options.images], whole.y_train[: options.images]
        return Data(x, y, x[:100], y[:100], 10), {"data": "CIFAR-10", "images": len(y)}
    generator = torch.Generator().manual_seed(0)
    patterns, size = torch.randn(10, 3, options.pixels, options.pixels, generator=generator), options.pixels
    y = torch.randint(10, (options.images,), generator=generator)
    x = torch.randn(options.images, 3, size, size, generator=generator) + 0.1 * patterns[y]
    y = torch.where(torch.rand(len(y), generator=generator) < 0.1, torch.randint(10, (len(y),), generator=generator), y)
    return Data(x, y, x[:100], y[:100], 10), {"data": "random images, a pattern of each class", "images": len(y)}


def trained(landscape: NetworkLandscape, steps: int) -> Tensor:
    """A point after some steps of SGD."""
    theta_1P = landscape.initial(0)[None].to(DEVICE).requires_grad_()
    optimizer = torch.optim.SGD([theta_1P], lr=0.05, momentum=0.9, weight_decay=5e-4)
    batches = landscape.batches(128, [0], shared=True)
    for step in range(steps):
        optimizer.zero_grad()
        landscape.losses(theta_1P, batches[step]).sum().backward()
        optimizer.step()
    return theta_1P.detach()[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data-root", help="where CIFAR-10 lies; without it images are random")
    parser.add_argument("--model", choices=MODELS, default="resnet20")
    parser.add_argument("--images", type=int, default=50000)
    parser.add_argument("--pixels", type=int, default=32, help="of random images, a side")
    parser.add_argument("--map-images", type=int, default=2500)
    parser.add_argument("--side", type=int, default=8, help="points of the plane a side")
    parser.add_argument("--peer-points", type=int, default=2, help="of the plane, up to 3")
    parser.add_argument("--batch", type=int, default=2500, help="images of a part, for all tools")
    parser.add_argument("--steps", type=int, default=500, help="of training")
    parser.add_argument("--tolerance", type=float, default=1e-3, help="residual over the highest eigenvalue")
    parser.add_argument("--limit", type=float, default=90, help="seconds after which a tool is cut")
    parser.add_argument("--repeats", type=int, default=1, help="of the one point, the tools taking turns")
    parser.add_argument(
        "--works", nargs="+", choices=("product", "point", "plane"), default=["product", "point", "plane"]
    )
    parser.add_argument("--tools", nargs="+", choices=TOOLS, default=list(TOOLS))
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_curvature"))
    bench = Bench(parser.parse_args())
    works = {"product": bench.products, "point": bench.point, "plane": bench.plane}
    for work in bench.options.works:
        works[work]()
        print(bench.table(), flush=True)


if __name__ == "__main__":
    main()
