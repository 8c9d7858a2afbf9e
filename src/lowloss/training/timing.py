"""How long a landscape's gradients and exact evaluations take on this machine, by timing some of them."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import cache, cached_property
from math import inf

import torch

from lowloss.landscape import NetworkLandscape

LONG = 0.3
"""Seconds of a call whose time is taken as proportional to its samples."""


class Timing:
    """Seconds of calls of the plain loop at one point.

    Args:
        gpu: whether a GPU may be used, where there is one.
    """

    def __init__(self, landscape: NetworkLandscape, gpu: bool) -> None:
        device = torch.device("cuda" if gpu and torch.cuda.is_available() else "cpu")
        self.landscape, self.on_gpu = landscape.to(device), device.type == "cuda"
        if not self.on_gpu:
            _ = landscape.engine  # which sets the precision of the loop's steps
        self.theta_P = landscape.point(landscape.loop.module).detach().to(device)
        threads = torch.get_num_threads()
        self.machine = (
            torch.cuda.get_device_name() if self.on_gpu else f"the CPU with {threads} thread{'s'[threads == 1 :]}"
        )
        self.gradient = cache(self._gradient)

    def _gradient(self, samples: int | None) -> float:
        """Seconds of a loss and its gradient on a minibatch; None for the whole training split."""
        loop, theta_1P = self.landscape.loop, self.theta_P[None]
        return self._timed(samples, lambda n: loop.losses(theta_1P, self.landscape.subset("train", n, 0), True))

    @cached_property
    def evaluation(self) -> float:
        """Seconds of the exact metrics of a point on every split, BatchNorm's statistics among them."""
        loop, sizes = self.landscape.loop, [len(self.landscape.data.split(name)[1]) for name in self.landscape.splits]
        passed = sum(sizes) + (sizes[0] if loop.batch_norms else 0)
        most = min(self.landscape.evaluation_batch, sizes[0])

        def run(n: int) -> None:
            x = self.landscape.subset("train", n, 0).x
            for _ in loop.outputs(self.theta_P, loop.fresh_buffers(), x, n):
                pass

        return self._timed(most, run) * passed / most

    def _timed(self, samples: int | None, call: Callable[[int], object]) -> float:
        whole = len(self.landscape.data.y_train)
        wanted = whole if samples is None else min(samples, whole)
        n = min(16, wanted)
        while True:
            seconds, tries, first = inf, 0, time.perf_counter()
            # The first call waits for what later ones have, and any may wait for other processes.
            while tries < 3 or time.perf_counter() - first < LONG / 3:
                began, tries = time.perf_counter(), tries + 1
                call(n)
                if self.on_gpu:
                    torch.cuda.synchronize()
                seconds = min(seconds, time.perf_counter() - began)
            if n == wanted or seconds > LONG:
                return seconds * wanted / n
            n = min(8 * n, wanted)
