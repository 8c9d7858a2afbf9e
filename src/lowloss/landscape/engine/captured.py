"""Steps of any module, captured: each point's passes as the plain loop takes them, K points in one CUDA graph.

A step of a small network is hundreds of short kernels, and the host takes longer to start them than the device to run
them. A graph starts them all at once, and points on streams of their own fill a device that one of them would not.
Nothing is folded or compiled, so the numbers are the loop's; what the loop decides on the host (a loss that looks at
numbers, random numbers of Python) cannot be captured, and runs there.

Shapes: K points, P parameters, B samples of a minibatch.
"""

from __future__ import annotations

import logging
from collections import Counter
from contextlib import nullcontext
from functools import partial
from typing import Any

import torch
from torch import Tensor

from lowloss.data.base import Batch
from lowloss.errors import LowlossError, reason
from lowloss.landscape.engine.capture import Step, Steps
from lowloss.landscape.engine.copies import Place
from lowloss.landscape.engine.loop import Loop

WORTH = 2
"""Steps of a kind that the loop takes before its next is captured, which costs about three."""

BRANCHES = 16
"""Points of one graph; their activations are in memory together."""

AGREEMENT = 1e-3
"""Relative difference from the loop's losses and gradients up to which a captured step is trusted: atomic additions and
other algorithms round otherwise."""

log = logging.getLogger("lowloss")


class Captured:
    """As the plain loop, of which it takes the step, on a GPU.

    Points that draw random numbers run one after the other, each replay seeded, so that they draw what the loop draws.
    """

    def __init__(self, loop: Loop) -> None:
        self.loop, self.usable, self.used = loop, True, False
        self._steps = Steps()
        self._seen: Counter[tuple[Any, ...]] = Counter()
        self._branches, self._draws, self._unchecked = BRANCHES, False, 0
        self._branch_streams: list[torch.cuda.Stream] = []
        self._places = [Place()]

    def losses(self, theta_KP: Tensor, batch: Batch, gradients: bool) -> tuple[Tensor, Tensor | None]:
        """As Loop.losses."""
        loop, theta_KP = self.loop, theta_KP.detach()
        kind = tuple(batch.x.shape), batch.x.dtype, batch.shared, gradients
        if not (self.usable and theta_KP.is_cuda and len(theta_KP)) or batch.carry or loop.foreign or loop.holds:
            return loop.losses(theta_KP, batch, gradients)
        self._seen[kind] += 1
        if self._seen[kind] <= WORTH:
            return loop.losses(theta_KP, batch, gradients)
        try:
            found = self._replayed(theta_KP, batch, kind)
            self.used = True
            if self._unchecked:
                self._check(found, loop.losses(theta_KP, batch, gradients))
                self._unchecked -= 1
            return found
        except torch.OutOfMemoryError:
            self._branches = self._branches // 2
            reasons = "its points do not fit the memory" if self._branches == 0 else ""
        except Exception as error:  # whatever a module does that cannot be captured
            reasons = reason(error)
        self._steps.clear()
        torch.cuda.empty_cache()
        if reasons:
            self.usable = False
            name = type(loop.module).__name__
            log.warning("engine: %s is not captured, and takes its steps eagerly: %s", name, reasons)
        return self.losses(theta_KP, batch, gradients)

    def _replayed(self, theta_KP: Tensor, batch: Batch, kind: tuple[Any, ...]) -> tuple[Tensor, Tensor | None]:
        losses, gradients, first = list[Tensor](), list[Tensor](), 0
        while first < len(theta_KP):
            end = min(len(theta_KP), first + (1 if self._draws else self._branches))
            inputs = (theta_KP[first:end], *((t if batch.shared else t[first:end]) for t in (batch.x, batch.y)))
            step = self._steps.get((end - first, *kind))
            if step is None:
                step = self._captured(inputs, kind)
                if self._draws and end - first > 1:
                    continue
            with self.loop.random_seed(batch.row(first)[2]) if self._draws else nullcontext():
                losses_k, gradients_kP = step(*inputs)
            losses.append(losses_k)
            if gradients_kP is not None:
                gradients.append(gradients_kP)
            first = end
        if len(losses) == 1:
            return losses[0], gradients[0] if gradients else None
        return torch.cat(losses), torch.cat(gradients) if gradients else None

    def _captured(self, inputs: tuple[Tensor, ...], kind: tuple[Any, ...]) -> Step:
        self.loop.train()
        generators = torch.default_generator, torch.cuda.default_generators[inputs[0].device.index]
        before = [generator.get_state() for generator in generators]
        *_, shared, gradients = kind
        work = partial(self._passes, shared=shared, gradients=gradients)
        step = self._steps.capture((len(inputs[0]), *kind), work, inputs, gradients)
        drawn = [not torch.equal(g.get_state(), state) for g, state in zip(generators, before, strict=True)]
        for generator, state in zip(generators, before, strict=True):
            generator.set_state(state)
        if drawn[0]:
            raise LowlossError("it draws random numbers on the host")
        self._draws |= drawn[1]
        self._unchecked = 2  # the second replay has other inputs than were captured
        return step

    def _passes(
        self, theta_KP: Tensor, x: Tensor, y: Tensor, shared: bool, gradients: bool
    ) -> tuple[Tensor, Tensor | None]:
        """Every point's passes, each on a stream of its own."""
        losses_K = theta_KP.new_empty(len(theta_KP))
        gradients_KP = torch.empty_like(theta_KP) if gradients else None
        current = torch.cuda.current_stream(theta_KP.device)
        branches = self._streams(theta_KP.device, len(theta_KP)) if len(theta_KP) > 1 else [current]
        for branch in branches:
            branch.wait_stream(current)
        for k, branch in enumerate(branches):
            x_B, y_B = (x, y) if shared else (x[k], y[k])
            with torch.cuda.stream(branch):
                parameters, scratch = self.loop.copies(theta_KP[k], self._places[k])
                gradient_P = None if gradients_KP is None else gradients_KP[k]
                self.loop.step(parameters, x_B, y_B, scratch, losses_K[k], gradient_P)
        for branch in branches:
            current.wait_stream(branch)
        return losses_K, gradients_KP

    def _streams(self, device: torch.device, count: int) -> list[torch.cuda.Stream]:
        while len(self._branch_streams) < count:
            self._branch_streams.append(torch.cuda.Stream(device))
            self._places.append(Place())
        return self._branch_streams[:count]

    def _check(self, ours: tuple[Tensor, Tensor | None], exact: tuple[Tensor, Tensor | None]) -> None:
        """Raise LowlossError where a captured step is another than the loop's."""
        for found, expected in zip(ours, exact, strict=True):
            if found is not None and expected is not None and expected.isfinite().all():
                apart = float((found - expected).norm() / expected.norm().clamp_min(1e-12))
                if not apart <= AGREEMENT:
                    raise LowlossError(f"a captured step is {apart:.2g} (relative) from its own")
