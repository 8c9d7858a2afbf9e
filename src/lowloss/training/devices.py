"""Several processes, one a device: what each of them does of a piece of work, and how the parts come together.

Every process makes the same calls in the same order. Outside of a group of processes everything here is the identity.

Shapes: K points, P parameters, B samples of a minibatch, W processes.
"""

from __future__ import annotations

import datetime
import os
import socket
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import lightning as L
import torch
from torch import Tensor, distributed

from lowloss.data.base import Batch
from lowloss.landscape.base import Landscape
from lowloss.training.messages import decode, encode

T = TypeVar("T")

TrainerFactory = Callable[..., L.Trainer]

PATIENCE = datetime.timedelta(days=30)
"""How long a process waits for the first one, which may have to wait for other commands on the study."""


def join() -> None:
    """Join the group that the environment describes, on CPU and GPUs; its processes are of one machine, and listen to
    nothing from outside. They meet in a file, or where torchrun says."""
    if not distributed.is_initialized():
        names = [name for _, name in socket.if_nameindex()]
        loopback = next((name for name in ("lo", "lo0") if name in names), None)
        for library in ("GLOO", "NCCL") if loopback else ():
            os.environ.setdefault(f"{library}_SOCKET_IFNAME", str(loopback))
        backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
        settings: dict[str, Any] = {}
        if (file := os.environ.get("LOWLOSS_STORE")) is not None:
            count = int(os.environ["WORLD_SIZE"])
            settings = {"store": distributed.FileStore(file, count), "rank": int(os.environ["RANK"])}
            settings["world_size"] = count
        distributed.init_process_group(backend, timeout=PATIENCE, **settings)
        if torch.cuda.device_count() >= world():
            torch.cuda.set_device(rank())


def leave() -> None:
    """Leave it, once all is done: its threads must not outlive the interpreter, which would abort the process."""
    if distributed.is_initialized():
        distributed.destroy_process_group()


def world() -> int:
    """The number of processes W."""
    return distributed.get_world_size() if distributed.is_initialized() else 1


def rank() -> int:
    """Which of them this is."""
    return distributed.get_rank() if distributed.is_initialized() else 0


def announce(message: Any = None) -> Any:
    """What the first process announces, in every process."""
    return _sent(message, 0)


def gather(part: T) -> list[T]:
    """The parts of all processes, in their order."""
    if world() == 1:
        return [part]
    return [_sent(part, source) for source in range(world())]


def _sent(message: Any, source: int) -> Any:
    """What one process has, in every process: sizes, JSON and the bytes of tensors, one after the other."""
    text, payload_N = encode(message) if rank() == source else (b"", torch.empty(0, dtype=torch.uint8))
    sizes_2 = torch.tensor([len(text), len(payload_N)])
    distributed.broadcast(sizes_2, source)
    text_N = torch.empty(int(sizes_2[0]), dtype=torch.uint8)
    if rank() == source:
        text_N = torch.frombuffer(bytearray(text), dtype=torch.uint8)
    else:
        payload_N = torch.empty(int(sizes_2[1]), dtype=torch.uint8)
    for part_N in (text_N, payload_N):
        if len(part_N):
            distributed.broadcast(part_N, source)
    return decode(text_N.numpy().tobytes(), payload_N)


def mean(part: Tensor) -> Tensor:
    """The mean of all processes' tensors, as DDP takes it of gradients."""
    if world() > 1:
        distributed.all_reduce(part)
    return part / world()


def share(items: Sequence[T], mirrored: bool = False) -> Sequence[T]:
    """This process's items: near-equal runs of neighbours, one a process, perhaps none.

    mirrored: whether the first process takes the last run, so that two works give one more to different processes.
    """
    place = world() - 1 - rank() if mirrored else rank()
    return items[len(items) * place // world() : len(items) * (place + 1) // world()]


def alone(trainer: TrainerFactory) -> TrainerFactory:
    """The trainer for what this process does by itself, on its own device."""
    if world() == 1:
        return trainer
    settings = getattr(trainer, "keywords", {})
    devices, accelerator = settings.get("devices"), settings.get("accelerator", "auto")
    on_gpu = accelerator in ("gpu", "cuda") or (accelerator == "auto" and torch.cuda.is_available())
    own = [devices[rank()] if isinstance(devices, list) else rank()] if on_gpu else 1
    return partial(trainer, devices=own, strategy="auto")


class _Total(torch.autograd.Function):
    """The sum over all processes; its gradient is that of the own part, since DDP averages gradients itself."""

    @staticmethod
    def forward(ctx: Any, part_K: Tensor) -> Tensor:
        total_K = part_K.detach().clone()
        distributed.all_reduce(total_K)
        return total_K

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> Tensor:
        return upstream[0] * world()


class SharedLandscape:
    """A landscape whose losses are computed by all processes, each a part of them.

    Each takes a slice of the minibatch. Where BatchNorm or dropout need it whole, or there are fewer samples than
    processes, each takes some of the points instead; a single point is then one process's work. The losses are the
    same bits in every process. Their gradient is W times that of the own part, so that the mean over the processes,
    which Lightning's DDP takes, is the whole gradient.
    """

    def __init__(self, landscape: Landscape) -> None:
        self.landscape = landscape

    def __getattr__(self, name: str) -> Any:
        return getattr(self.landscape, name)

    def losses(self, theta_KP: Tensor, batch: Batch | None) -> Tensor:
        if batch is None or self.landscape.couples_samples or batch.samples < world():
            # A band's ends, which are but evaluated, go where there are fewer pivots.
            mine = share(range(len(theta_KP)), mirrored=not torch.is_grad_enabled())
            theta_KP = theta_KP if batch is None else theta_KP.to(batch.y.device)
            if len(mine):
                first, end = mine[0], mine[-1] + 1
                own_K = self.landscape.losses(theta_KP[first:end], batch)
                part_K = torch.nn.functional.pad(own_K, (first, len(theta_KP) - end))
            else:
                part_K = theta_KP[:, 0] * 0  # no loss and no gradient, yet differentiable
        else:
            mine = share(range(batch.samples))
            part = batch.part(mine[0], mine[-1] + 1)
            part_K = self.landscape.losses(theta_KP, part) * (len(mine) / batch.samples)
        total_K: Tensor = _Total.apply(part_K)
        return total_K

    def to(self, device: torch.device) -> SharedLandscape:
        self.landscape.to(device)
        return self


def shared(landscape: Landscape) -> Landscape:
    """The landscape with its losses computed by all processes, where there are several."""
    return cast(Landscape, SharedLandscape(landscape)) if world() > 1 else landscape
