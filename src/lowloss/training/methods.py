"""Minima and paths: each an objective, a start and a recipe for `Descent`.

Shapes: K minima, M free bends of a path, P parameters, T sampled points, E collected epochs.
"""

from __future__ import annotations

import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from math import ceil
from pathlib import Path as Folder

import torch
from torch import Tensor

from lowloss.checking import Positive, check_value, described
from lowloss.data.base import Batch
from lowloss.errors import LowlossError, check_collect
from lowloss.files import load_tensors, save_tensors
from lowloss.finder.base import Finder
from lowloss.landscape.base import BatchSource, Landscape
from lowloss.landscape.wrappers import Charted, RandomSpan
from lowloss.points.path import Path, path_from_tensors
from lowloss.progress import bar
from lowloss.schedule import Constant
from lowloss.seeding import derive
from lowloss.training.branching import Following, Parting
from lowloss.training.descent import Collected, Descent, Objective, OptimizerFactory, Recipe, default_trainer, fit
from lowloss.training.devices import TrainerFactory, alone, gather, mean, rank, share, shared

default_optimizer: OptimizerFactory = partial(torch.optim.SGD, lr=0.1, momentum=0.9, weight_decay=1e-4)


@dataclass(frozen=True)
class Minima:
    """Trained points.

    theta_KP: one a row.  z_KQ: their coordinates, where they were trained in those of a chart.
    history: a row a block of steps: step, learning rate, then the K mean minibatch losses.
    status: of each, "steps_done", or "converged" where the gradient fell below the norm that was asked for.
    gradient_norms: of each at its last step, NaN where no norm was asked for.
    trajectories: what was collected of each.
    """

    theta_KP: Tensor
    z_KQ: Tensor | None
    history: list[list[float]]
    status: list[str]
    gradient_norms: list[float]
    trajectories: list[Trajectory]


@dataclass(frozen=True)
class Trajectory:
    """A row on its way: the epochs at which it was collected, and where it was then."""

    epochs: list[float]
    collected: Collected
    row: int

    @property
    def theta_EP(self) -> Tensor:
        return self.collected.row(self.row)

    @property
    def files(self) -> list[Folder]:
        """Of the collected points, in the order of the epochs."""
        return [self.collected.file(step, self.row) for step in self.collected.steps]


@described
def train_minima(
    landscape: Landscape,
    count: int = 2,
    epochs: Positive = 100,
    batch_size: int | None = 128,
    optimizer: OptimizerFactory = default_optimizer,
    schedule: Callable[[float], float] | None = None,
    seed: int = 0,
    indices: Sequence[int] | None = None,
    collect: str | Sequence[float] | None = None,
    gradient_norm: float | None = None,
    branch: Sequence[float] | None = None,
    chart: RandomSpan | None = None,
    trainer: TrainerFactory = default_trainer,
    folder: Folder | None = None,
) -> Minima:
    """Train independent minima together, as rows of one matrix; each is the same whatever trains beside it.

    With several devices each process trains some of the rows by itself, without a word to the others until the end.

    Args:
        batch_size: samples a minibatch, a row each; None takes the whole training set at every step.
        optimizer: makes any elementwise torch optimizer for the matrix.
        schedule: factor on the learning rate as a function of the finished fraction; constant by default.
        indices: which k to train; by default 0 … count - 1.
        collect: "every" epoch, or a list of epochs (0 is the initial point), at which the rows are kept.
        gradient_norm: a row has converged, and stays, where its gradient is no longer than this; for whole batches.
        branch: epochs at which minima part from minimum 0, for instability analysis: minimum k + 1 is it until epoch
            branch[k], and then sees minibatches in another order. Those beyond are independent.
        chart: makes the coordinates in which each row trains from its initial point; None for all parameters.
        folder: where to checkpoint each epoch, and to continue from.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
        LowlossError: no minimum is asked for, an argument is of another kind, or weight decay would act on the
            coordinates of a chart.
    """
    rows = list(range(count)) if indices is None else list(indices)
    if not rows:
        raise LowlossError(f"there is no minimum to train: set count to at least 1, got {count}")
    check_value("epochs", epochs, Positive)
    check_collect("collect", collect)
    mine = share(rows)
    if folder is not None and len(mine) < len(rows):
        folder = folder / f"rows-{mine[0]}-{mine[-1]}" if mine else folder
    part = None
    if mine:
        of, seeds = partial(landscape.batches, batch_size, shared=False), [derive(seed, "batches", k) for k in mine]
        batches, leaders = of(seeds), [0 if 1 <= k <= len(branch or ()) else k for k in mine]
        per_epoch = batches.steps_per_epoch
        start_KP = torch.stack([landscape.initial(derive(seed, "initial", k)) for k in leaders])
        steps, factor = max(1, round(epochs * per_epoch)), schedule or Constant()
        every = {*range(0, steps, per_epoch), steps}
        wanted = every if collect == "every" else {min(steps, round(float(e) * per_epoch)) for e in collect or ()}
        recipe = Recipe(steps, optimizer, lambda step: factor(step / steps), wanted.__contains__, gradient_norm)
        charted, objective = None, Objective(landscape, batches)
        if branch and leaders != mine:
            first = derive(seed, "batches", 0)
            parts = {row: round(branch[k - 1] * per_epoch) for row, k in enumerate(mine) if leaders[row] != k}
            batches = Parting(of, [first if row in parts else own for row, own in enumerate(seeds)], seeds, parts)
            objective = Following(landscape, batches, mine.index(0) if 0 in mine else None, parts)
        if chart is not None:
            charted = chart.over(landscape, start_KP)
            start_KP, objective = start_KP.new_zeros(len(mine), charted.dim), _InChart(charted, batches)
        module = Descent(objective, start_KP, recipe, "minima", "lower optimizer.lr", folder=folder)
        with bar(f"minima {len(mine)} × {module.x_RQ.shape[1]:,} parameters", steps) as advance:
            fit(module, per_epoch, advance, alone(trainer), folder)
        part = _minima(module, per_epoch, charted)
    found = [part for part in gather(part) if part is not None]
    # A row's history ends where its process's rows had all converged.
    longest = max((part.history for part in found), key=len)
    history = [
        [*entry[:2], *(loss for part in found for loss in part.history[min(i, len(part.history) - 1)][2:])]
        for i, entry in enumerate(longest)
    ]
    return Minima(
        torch.cat([part.theta_KP for part in found]),
        torch.cat([part.z_KQ for part in found if part.z_KQ is not None]) if chart is not None else None,
        history,
        [status for part in found for status in part.status],
        [norm for part in found for norm in part.gradient_norms],
        [trajectory for part in found for trajectory in part.trajectories],
    )


class _InChart(Objective):
    """Coordinates of points descend, the points are collected."""

    landscape: Charted

    def kept(self, x_RQ: Tensor) -> Tensor:
        return self.landscape.chart.points(x_RQ)


def _minima(module: Descent, per_epoch: int, charted: Charted | None) -> Minima:
    rows = range(len(module.x_RQ))
    status = ["converged" if done else "steps_done" for done in module.converged_R.tolist()]
    epochs = [step / per_epoch for step in module.collected.steps]
    trajectories = [Trajectory(epochs, module.collected, row) for row in rows] if epochs else []
    theta_KP, z_KQ = module.x_RQ.detach(), None
    if charted is not None:
        theta_KP, z_KQ = charted.to(theta_KP.device).chart.points(theta_KP), theta_KP
    return Minima(theta_KP, z_KQ, module.history, status, module.gradient_norm_R.tolist(), trajectories)


class Search(Objective):
    """The free bends of a path, whose ends stay, on what a finder makes of their losses.

    seed: of what the finder draws at each step.
    """

    def __init__(self, landscape: Landscape, batches: BatchSource, finder: Finder, path: Path, seed: int) -> None:
        super().__init__(landscape, batches)
        self.finder, self.template, self.seed = finder, path, seed
        self.ends_2P = path.bends_BP[[0, -1]].clone()

    def path(self, free_MP: Tensor) -> Path:
        """The path through these bends, differentiable in them."""
        self.ends_2P = self.ends_2P.to(free_MP.device)
        return self.template.with_bends(torch.cat([self.ends_2P[:1], free_MP, self.ends_2P[1:]]))

    def prepare(self, x_RQ: Tensor) -> Tensor:
        return self.finder.prepare(self.path(x_RQ)).bends_BP[1:-1]

    def losses(self, x_RQ: Tensor, step: int) -> tuple[Tensor, Tensor]:
        seed = derive(self.seed, "step", step)
        return self.finder.objective(self.path(x_RQ), self.landscape, self.batches[step], seed)

    def nudge(self, x_RQ: Tensor, gradient_RQ: Tensor, losses_K: Tensor) -> Tensor:
        return self.finder.nudge(self.path(x_RQ), gradient_RQ, losses_K)

    def gradient(self, steps: Sequence[int]) -> tuple[Tensor, Tensor]:
        """The gradient in the free bends (M, P) and the losses (K,), means over the minibatches of some steps."""
        batch, x_RQ = self.batches[steps[0]], self.template.bends_BP[1:-1].detach()
        x_RQ = (x_RQ if batch is None else x_RQ.to(batch.y.device)).requires_grad_()
        gradient_RQ, losses_K = torch.zeros_like(x_RQ), torch.zeros(())
        for step in steps:
            loss, some_K = self.losses(x_RQ, step)
            gradient_RQ += torch.autograd.grad(loss, x_RQ)[0] / len(steps)
            losses_K = losses_K.to(some_K) + some_K / len(steps)
        return mean(gradient_RQ).to(self.template.bends_BP), losses_K.to(self.template.bends_BP.device)


@dataclass
class FoundPath:
    """A path and the story of its search; saved, it is where the search continues.

    phases: whole ones that were taken.
    gradient_evaluations: gradients of single points in the search; neither forward passes nor those gradients that
        tell its quality at the end are counted.
    history: a row a block: phase, step, learning rate, mean and maximum over the sampled points of the losses.
    snapshots: after each phase, t and losses (2, T) on one minibatch, where the finder looked (AutoNEB).
    status: how it ended, as the finder tells; see Finder.status.  quality: how well, see the finder's `quality`.
    """

    path: Path
    phases: int = 0
    gradient_evaluations: int = 0
    history: list[list[float]] = field(default_factory=list)
    snapshots: list[Tensor] = field(default_factory=list)
    status: str = ""
    quality: dict[str, float] = field(default_factory=dict)

    def save(self, file: Folder) -> None:
        tensors = {f"snapshot-{i:03d}": snapshot for i, snapshot in enumerate(self.snapshots)}
        tensors["history"] = torch.tensor(self.history, dtype=torch.float64)
        notes = {"kind": self.path.kind, "phases": self.phases, "evaluations": self.gradient_evaluations}
        save_tensors(file, {**tensors, **self.path.tensors()}, notes)

    @classmethod
    def load(cls, file: Folder) -> FoundPath:
        tensors, notes = load_tensors(file)
        snapshots = [tensors[name] for name in sorted(tensors) if name.startswith("snapshot-")]
        path = path_from_tensors(notes["kind"], tensors)
        return cls(path, notes["phases"], notes["evaluations"], tensors["history"].tolist(), snapshots)


class _Profiler:
    """Losses along a path on one minibatch, in training mode; keeps the last answer as the snapshot."""

    def __init__(self, landscape: Landscape, batches: BatchSource) -> None:
        self.landscape, self.batches, self.phase = landscape, batches, 0
        self.path: Path | None = None
        self.snapshot = torch.empty(2, 0, dtype=torch.float64)

    @property
    def batch(self) -> Batch | None:
        return self.batches[self.phase]

    @torch.no_grad()
    def __call__(self, path: Path, t_T: Tensor) -> Tensor:
        if path is not self.path or not torch.equal(t_T.double(), self.snapshot[0]):
            # A few points at a time: a large network's whole path would not fit.
            losses_T = torch.cat([self.landscape.losses(path.points(t), self.batch).cpu() for t in t_T.split(16)])
            self.path, self.losses_T, self.snapshot = path, losses_T, torch.stack([t_T.double(), losses_T.double()])
        return self.losses_T


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
        seed: of the minibatches and of sampled t.
        trainer: makes the Lightning trainer; with several devices each process takes a part of every minibatch.
        folder: where to checkpoint each `block` of steps and each phase, and to continue from.
        title: how the progress bar and messages call the search.

    Raises:
        LowlossError: the ends are the same point, no points of the landscape, or a checkpoint cannot be read.
        NonFiniteLossError: a loss became NaN or infinite.
    """
    for end_P in (a_P, b_P):
        if not isinstance(end_P, Tensor) or end_P.shape != (landscape.dim,) or not end_P.isfinite().all():
            told = f"{end_P.dtype} {tuple(end_P.shape)}" if isinstance(end_P, Tensor) else type(end_P).__name__
            raise LowlossError(f"an end of a path is a tensor of {landscape.dim} finite numbers, got {told}")
    if torch.equal(a_P, b_P):
        raise LowlossError("the two ends of the path are the same point: choose two different minima")
    landscape = shared(landscape)
    batches = landscape.batches(finder.batch_size, [derive(seed, "batches")], shared=True)
    profile = _Profiler(landscape, landscape.batches(finder.profile_batch, [derive(seed, "profile")], shared=True))
    file = folder / "reached.safetensors" if folder else None
    found = FoundPath.load(file) if file and file.exists() else FoundPath(finder.begin(landscape, a_P, b_P))
    total = sum(phase.steps for phase in finder.phases)
    with bar(title, total) as advance:
        for i, phase in enumerate(finder.phases):
            if i < found.phases:
                continue
            profile.phase = i
            if i > 0:
                found.path = finder.refine(found.path, profile, phase)
                found.snapshots.append(profile.snapshot)
            first, steps = sum(earlier.steps for earlier in finder.phases[:i]), phase.steps
            optimizer = partial(torch.optim.SGD, lr=phase.lr, momentum=finder.momentum)
            recipe = Recipe(steps, optimizer, lambda step, steps=steps: finder.schedule(step / steps))  # type: ignore[misc]
            search = Search(landscape, batches, finder, found.path, seed)
            module = Descent(search, found.path.bends_BP[1:-1], recipe, title, "lower the finder's lr", first)
            checkpoints = folder / f"phase-{i:02d}" if folder else None
            fit(module, block, advance, trainer, checkpoints)
            found.path, found.phases = search.path(module.x_RQ.detach()), i + 1
            found.gradient_evaluations += steps * finder.evaluations_per_step(found.path)
            for step, rate, *losses in module.history:
                found.history.append([i, step, rate, sum(losses) / len(losses), max(losses)])
            if file and checkpoints and rank() == 0:
                found.save(file)
                shutil.rmtree(checkpoints)
        profile.phase = len(finder.phases)

        def gradient(path: Path) -> tuple[Tensor, Tensor]:
            count = min(ceil(finder.profile_batch / finder.batch_size), batches.steps_per_epoch)
            return Search(landscape, batches, finder, path, seed).gradient(range(total, total + count))

        found.quality = finder.quality(found.path, profile, gradient)
        found.status = finder.status(found.quality)
        found.snapshots.append(profile.snapshot)
        advance(total, found.status)
    return found
