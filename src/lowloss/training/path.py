"""Driving a finder: the phases of a path search as Lightning fits.

Shapes: B bends (ends included), M = B - 2 free bends, P parameters, T sampled points.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path as Folder

import torch
from torch import Tensor, nn

from lowloss.errors import LowlossError
from lowloss.files import load_tensors, save_tensors
from lowloss.finder.base import Finder, Outcome, Phase
from lowloss.finder.path import Path, path_from_tensors
from lowloss.landscape.base import BatchSource, Landscape
from lowloss.progress import bar
from lowloss.seeding import derive
from lowloss.training.devices import rank, shared
from lowloss.training.loop import StepModule, TrainerFactory, default_trainer, fit


class PathModule(StepModule):
    """One phase: SGD on the free bends, along the gradient that the finder makes of its objective's."""

    def __init__(
        self,
        landscape: Landscape,
        finder: Finder,
        path: Path,
        batches: BatchSource,
        phase: Phase,
        first_step: int,
        seed: int,
        what: str,
    ) -> None:
        super().__init__(landscape, phase.steps, what, "lower the finder's lr", first_step)
        self.finder, self.phase, self.batches, self.seed = finder, phase, batches, seed
        self.template = path
        self.free_MP = nn.Parameter(path.bends_BP[1:-1].clone())
        self.register_buffer("ends_2P", path.bends_BP[[0, -1]].clone(), persistent=False)

    @property
    def path(self) -> Path:
        """The path as it is now, differentiable in the free bends."""
        assert isinstance(self.ends_2P, Tensor)
        return self.template.with_bends(torch.cat([self.ends_2P[:1], self.free_MP, self.ends_2P[1:]]))

    def step(self, step: int) -> tuple[Tensor, Tensor]:
        with torch.no_grad():
            self.free_MP.copy_(self.finder.prepare(self.path).bends_BP[1:-1])
        seed = derive(self.seed, "step", step)
        objective, self.losses_K = self.finder.objective(self.path, self.landscape, self.batches[step], seed)
        return objective, self.losses_K

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        # Here gradients of several processes are summed already, so a projection sees the whole minibatch's.
        assert self.free_MP.grad is not None
        with torch.no_grad():
            self.free_MP.grad.copy_(self.finder.nudge(self.path, self.free_MP.grad, self.losses_K))

    def optimizer(self) -> torch.optim.Optimizer:
        return torch.optim.SGD([self.free_MP], lr=self.phase.lr, momentum=self.finder.momentum)

    def rate(self, step: int) -> float:
        return self.finder.schedule(step / self.steps)


@dataclass(frozen=True)
class FoundPath(Outcome):
    """An Outcome with the story of the search.

    history: a row a block: phase, step, learning rate, mean and maximum over the sampled points of the losses.
    snapshots: after each phase, t and losses (2, T) on one minibatch, where the finder looked (AutoNEB).
    """

    history: list[list[float]]
    snapshots: list[Tensor]


class _Profiler:
    """Losses along a path on one minibatch, in training mode; keeps the last answer as the snapshot."""

    def __init__(self, landscape: Landscape, batches: BatchSource) -> None:
        self.landscape, self.batches, self.phase = landscape, batches, 0
        self.snapshot = torch.empty(2, 0, dtype=torch.float64)

    @torch.no_grad()
    def __call__(self, path: Path, t_T: Tensor) -> Tensor:
        batch = self.batches[self.phase]
        # A few points at a time: a large network's whole path would not fit.
        losses_T = torch.cat([self.landscape.losses(path.points(t), batch).cpu() for t in t_T.split(16)])
        self.snapshot = torch.stack([t_T.double(), losses_T.double()])
        return losses_T


@dataclass
class _Search:
    """What a search has reached after a number of whole phases; saved, it is where the search continues."""

    path: Path
    phases: int
    evaluations: int
    history: list[list[float]]
    snapshots: list[Tensor]

    def save(self, file: Folder) -> None:
        tensors = {f"snapshot-{i:03d}": snapshot for i, snapshot in enumerate(self.snapshots)}
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64)
        notes = {"kind": self.path.kind, "phases": self.phases, "evaluations": self.evaluations}
        save_tensors(file, {**tensors, **self.path.tensors()}, notes)

    @classmethod
    def load(cls, file: Folder) -> _Search:
        tensors, notes = load_tensors(file)
        snapshots = [tensors[name] for name in sorted(tensors) if name.startswith("snapshot-")]
        path = path_from_tensors(notes["kind"], tensors)
        return cls(path, notes["phases"], notes["evaluations"], tensors["history"].tolist(), snapshots)


def find_path(
    landscape: Landscape,
    a_P: Tensor,
    b_P: Tensor,
    finder: Finder,
    seed: int = 0,
    trainer: TrainerFactory = default_trainer,
    folder: Folder | None = None,
    block: int = 50,
    title: str = "path",
) -> FoundPath:
    """Search a path from a to b.

    Args:
        a_P, b_P: the ends (P,), kept as they are.
        finder: the recipe.
        seed: of the minibatches and of sampled t.
        trainer: makes the Lightning trainer; with several devices each process takes a part of every minibatch.
        folder: where to checkpoint each block of steps and each phase, and to continue from.
        block: steps between checkpoints.
        title: how the progress bar and messages call the search.

    Raises:
        LowlossError: the ends are the same point, or a checkpoint cannot be read.
        NonFiniteLossError: a loss became NaN or infinite.
    """
    if torch.equal(a_P, b_P):
        raise LowlossError("the two ends of the path are the same point: choose two different minima")
    landscape = shared(landscape)
    batches = landscape.batches(finder.batch_size, [derive(seed, "batches")], shared=True)
    profile_batches = landscape.batches(finder.profile_batch, [derive(seed, "profile")], shared=True)
    profile = _Profiler(landscape, profile_batches)
    reached = folder / "reached.safetensors" if folder else None
    search = _Search(finder.start(a_P, b_P), 0, 0, [], [])
    if reached and reached.exists():
        search = _Search.load(reached)
    total = sum(phase.steps for phase in finder.phases)
    with bar(title, total) as advance:
        for i, phase in enumerate(finder.phases):
            if i < search.phases:
                continue
            profile.phase = i
            if i > 0:
                search.path = finder.refine(search.path, profile)
                search.snapshots.append(profile.snapshot)
            first = sum(earlier.steps for earlier in finder.phases[:i])
            module = PathModule(landscape, finder, search.path, batches, phase, first, seed, title)
            checkpoints = folder / f"phase-{i:02d}" if folder else None
            fit(module, block, advance, trainer, checkpoints)
            search.path = module.path.with_bends(module.path.bends_BP.detach())
            search.phases = i + 1
            search.evaluations += phase.steps * finder.evaluations_per_step(search.path)
            for step, rate, *losses in module.history:
                search.history.append([i, step, rate, sum(losses) / len(losses), max(losses)])
            if reached and checkpoints and rank() == 0:
                search.save(reached)
                shutil.rmtree(checkpoints)
        profile.phase = len(finder.phases)
        status = finder.status(search.path, profile)
        snapshots = [*search.snapshots, profile.snapshot]
        advance(total, status)
    return FoundPath(search.path, status, search.evaluations, search.history, snapshots)
