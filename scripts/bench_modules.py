"""Measure a gradient step of modules of many kinds, on a GPU, against the loop that a user would write.

    python scripts/bench_modules.py --modules encoder lstm vit_tiny

Hand-written: forward, backward and SGD's step of one module, eager float32 (TF32 allowed), its minibatch of 128 on the
device. The engine takes the same step with one point and with eight, `engine=loop` with one. Networks of timm and of
transformers are measured where these are installed. Writes modules.csv to --out.
"""

from __future__ import annotations

import argparse
import copy
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import pandas as pd
import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from lowloss import Data, LowlossError, NetworkLandscape
from lowloss.landscape import Engine
from lowloss.model import CNN, VGG16, ResNet, WideResNet

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
BATCH, TOKENS, WORDS = 128, 64, 1000


class Words(nn.Module):
    """A classifier of token sequences: an embedding, layers over time, and the mean of what they give."""

    def __init__(self, layers: nn.Module) -> None:
        super().__init__()
        self.embed, self.layers, self.head = nn.Embedding(WORDS, 128), layers, nn.Linear(128, 10)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.layers(self.embed(x))
        return self.head((hidden[0] if isinstance(hidden, tuple) else hidden).mean(1))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    return Words(nn.TransformerEncoder(layer, 4, enable_nested_tensor=False))


def bert() -> nn.Module:
    from transformers import BertConfig, BertForSequenceClassification

    class Logits(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            settings = {"hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "num_labels": 10}
            sizes = {"hidden_size": 128, "num_hidden_layers": 4, "num_attention_heads": 4, "intermediate_size": 512}
            self.bert = BertForSequenceClassification(BertConfig(vocab_size=WORDS, **sizes, **settings))

        def forward(self, x: Tensor) -> Tensor:
            return self.bert(x).logits

    return Logits()


def of_timm(name: str, **options: object) -> nn.Module:
    import timm

    return timm.create_model(name, num_classes=10, **options)


def of_torchvision(name: str, **options: object) -> nn.Module:
    from torchvision import models

    return getattr(models, name)(num_classes=10, **options)


IMAGES = {"input_shape": (3, 32, 32), "num_classes": 10}
MODULES: dict[str, Callable[[], nn.Module]] = {
    "encoder": encoder,
    "lstm": lambda: Words(nn.LSTM(128, 128, 2, batch_first=True)),
    "bert": bert,
    "vit_b": partial(of_torchvision, "vit_b_16", image_size=32),
    "vit_tiny": partial(of_timm, "vit_tiny_patch16_224", img_size=32, patch_size=4),
    "convnext_atto": partial(of_timm, "convnext_atto"),
    "mobilenetv3": partial(of_timm, "mobilenetv3_small_100", drop_rate=0.0),
    "mobilenet_v2": partial(of_torchvision, "mobilenet_v2", dropout=0.0),
    "mixer": partial(of_timm, "mixer_s16_224", img_size=32, patch_size=4),
    "cnn_48x1": partial(CNN, width=48, **IMAGES),
    "resnet20": partial(ResNet, depth=20, **IMAGES),
    "vgg16_bn": partial(VGG16, batch_norm=True, **IMAGES),
    "wrn16_4": partial(WideResNet, depth=16, widen=4, **IMAGES),
}
OF_WORDS = ("encoder", "lstm", "bert")


def seconds(work: Callable[[], object], least: float = 0.5) -> float:
    """Wall-clock seconds of a call, the best of three rounds of at least so many seconds in all."""
    rounds, times = [], 3
    while len(rounds) < 3:
        torch.cuda.synchronize()
        began = time.perf_counter()
        for _ in range(times):
            work()
        torch.cuda.synchronize()
        took = time.perf_counter() - began
        if took < least / 3 and times < 1000:
            times = min(1000, int(times * max(2, least / 3 / took)))
        else:
            rounds.append(took / times)
    return min(rounds)


def by_hand(module: nn.Module, x: Tensor, y: Tensor) -> float:
    module = copy.deepcopy(module).to(DEVICE).train()
    optimizer = torch.optim.SGD(module.parameters(), lr=1e-4, momentum=0.9)

    def step() -> None:
        optimizer.zero_grad()
        cross_entropy(module(x), y).backward()
        optimizer.step()

    for _ in range(5):
        step()
    return seconds(step)


def by_engine(module: nn.Module, data: Data, engine: str, points: int) -> tuple[float, float, str]:
    """Seconds of a step of so many points, of the first three, and what ran it."""
    landscape = NetworkLandscape(module, data, engine=Engine(engine)).to(DEVICE)
    theta_KP = landscape.point(landscape.loop.module).to(DEVICE).expand(points, -1).clone().requires_grad_()
    optimizer = torch.optim.SGD([theta_KP], lr=1e-4, momentum=0.9)
    batch = landscape.batches(BATCH, list(range(points)), shared=False)[0]

    def step() -> None:
        optimizer.zero_grad()
        landscape.losses(theta_KP, batch).sum().backward()
        optimizer.step()

    torch.cuda.synchronize()
    began = time.perf_counter()
    for _ in range(3):
        step()
    torch.cuda.synchronize()
    first = time.perf_counter() - began
    for _ in range(4):
        step()
    return seconds(step), first, landscape.arithmetic


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--modules", nargs="+", choices=MODULES, default=list(MODULES))
    parser.add_argument("--points", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--out", type=Path, default=Path("outputs/bench_modules"))
    options = parser.parse_args()
    if DEVICE.type != "cuda":
        raise SystemExit("bench_modules.py needs a GPU")
    torch.backends.cuda.matmul.allow_tf32 = True
    options.out.mkdir(parents=True, exist_ok=True)
    rows = []
    for name in options.modules:
        generator = torch.Generator().manual_seed(0)
        y = torch.randint(10, (4 * BATCH,), generator=generator)
        if name in OF_WORDS:
            x = torch.randint(WORDS, (len(y), TOKENS), generator=generator)
        else:
            x = torch.randn(len(y), 3, 32, 32, generator=generator)
        data = Data(x, y, x[:BATCH], y[:BATCH], 10)
        torch.manual_seed(0)
        try:
            module = MODULES[name]()
        except ImportError as error:
            print(f"{name}: left out, {error}", flush=True)
            continue
        hand = by_hand(module, x[:BATCH].to(DEVICE), y[:BATCH].to(DEVICE))
        for engine, points in [("loop", 1), *(("auto", points) for points in options.points)]:
            try:
                took, first, how = by_engine(module, data, engine, points)
            except LowlossError as error:
                print(f"{name}, {engine}, {points}: {error}", flush=True)
                continue
            ratio = hand * points / took
            rows.append((name, engine, points, 1e3 * hand, 1e3 * took, ratio, first, how))
            told = f"{1e3 * hand:8.2f} ms by hand {1e3 * took:8.2f} ms, a point {ratio:6.2f} times as fast"
            print(f"{name:14s} {engine:5s} {points:3d} {told}, first three {first:6.1f} s; {how}", flush=True)
        columns = ["module", "engine", "points", "by_hand_ms", "step_ms", "ratio", "first_three_s", "arithmetic"]
        pd.DataFrame(rows, columns=columns).to_csv(options.out / "modules.csv", index=False)


if __name__ == "__main__":
    main()
