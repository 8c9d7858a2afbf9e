"""Descent: rows of a matrix follow an objective, in Lightning's loop.

Minima, paths and ensembles are an objective, a start and a recipe. The minibatch of a step depends on the step alone,
so the checkpointed step number is the whole state of the data. After each block of steps the losses are looked at and
logged, and a checkpoint is written if the last one was not just now.

Shapes: R rows that descend, Q coordinates of a row, K points whose losses are told, S steps of a block.
"""

import contextlib
import logging
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor, nn

from lowloss.digests import check_archive, seal_archive
from lowloss.errors import LowlossError, NonFiniteLossError, reason
from lowloss.files import load_tensors, replacing, save_tensors, unwritable
from lowloss.landscape.base import BatchSource, Landscape
from lowloss.landscape.wrappers import check_optimizer_decay
from lowloss.progress import Advance
from lowloss.training.devices import TrainerFactory

default_trainer: TrainerFactory = partial(L.Trainer, accelerator="auto", devices=1)

OptimizerFactory = Callable[[Iterable[Tensor]], torch.optim.Optimizer]

PAUSE = 20.0
"""Between two checkpoints, in times of what the first took to write: large networks would write all the time."""

BARE = {"enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False}
"""Settings of every trainer: these things are done here."""

HINTS = (
    ".*(LeafSpec|does not have many workers|dataloader is not resumable|lr_scheduler.step.*before.*optimizer.step"
    "|GPU available but not used|srun. command is available|AccumulateGrad node's stream)"
)
"""Warnings that do not fit this use: stateless loaders need no workers and no state, and Lightning makes its DDP on a
stream of its own."""


class Objective:
    """What rows descend on; here each row on the landscape's loss at its own point, on the minibatch of the step."""

    def __init__(self, landscape: Landscape, batches: BatchSource) -> None:
        self.landscape, self.batches = landscape, batches

    def prepare(self, x_RQ: Tensor) -> Tensor:
        """The rows to go on from, called before each step."""
        return x_RQ

    def losses(self, x_RQ: Tensor, step: int) -> tuple[Tensor, Tensor]:
        """The scalar to differentiate in x, and the losses (K,) that it is made of."""
        losses_R = self.landscape.losses(x_RQ, self.batches[step])
        return losses_R.sum(), losses_R

    def nudge(self, x_RQ: Tensor, gradient_RQ: Tensor, losses_K: Tensor) -> Tensor:
        """The gradient that the optimizer follows, from the scalar's."""
        return gradient_RQ

    def kept(self, x_RQ: Tensor) -> Tensor:
        """What is collected of the rows (R, ...)."""
        return x_RQ


@dataclass(frozen=True)
class Recipe:
    """How rows descend.

    steps: at most.  optimizer: makes any elementwise torch optimizer for the matrix.
    rate: the factor on its learning rate at a step, from 0 on.
    collect: whether the rows are kept after so many steps, from 0 (the start) on.
    gradient_norm: a row whose gradient is no longer than this stays where it is, and has converged.
    """

    steps: int
    optimizer: OptimizerFactory
    rate: Callable[[int], float]
    collect: Callable[[int], bool] = lambda _: False
    gradient_norm: float | None = None


class Collected:
    """The rows that were kept, each written once: in files of a folder, or without one in memory."""

    def __init__(self, folder: Path | None) -> None:
        self.folder, self.steps = folder, list[int]()
        self._held: list[Tensor] = []

    def add(self, step: int, x_RQ: Tensor) -> None:
        self.steps.append(step)
        if self.folder is None:
            self._held.append(x_RQ.cpu().clone())
            return
        for row, x_Q in enumerate(x_RQ.cpu()):
            save_tensors(self.file(step, row), {"theta": x_Q}, {"step": step})

    def file(self, step: int, row: int) -> Path:
        assert self.folder is not None
        return self.folder / f"collected-{step:08d}-{row:04d}.safetensors"

    def row(self, row: int) -> Tensor:
        """What was kept of a row (T, Q), in the order of the steps."""
        if self.folder is None:
            return torch.stack([x_RQ[row] for x_RQ in self._held])
        return torch.stack([load_tensors(self.file(step, row))[0]["theta"] for step in self.steps])


class Descent(L.LightningModule):
    """Takes a recipe's steps with a matrix of rows; after each block of steps it checks the losses.

    Args:
        what, remedy: how messages call it, and what they advise when a loss is not finite.
        first_step: steps taken before, where a search goes through several descents.
        folder: where collected rows are kept.
    """

    converged_R: Tensor
    gradient_norm_R: Tensor
    # What `fit` sets: the steps of a block, what is written at ends of some, and so is always finite, and who is told.
    block: int
    checkpoint: Path | None
    advance: Advance

    def __init__(
        self,
        objective: Objective,
        start_RQ: Tensor,
        recipe: Recipe,
        what: str,
        remedy: str,
        first_step: int = 0,
        folder: Path | None = None,
    ) -> None:
        super().__init__()
        self.objective, self.recipe, self.steps, self.first_step = objective, recipe, recipe.steps, first_step
        self.what, self.remedy = what, remedy
        self.x_RQ = nn.Parameter(start_RQ.clone())
        self.register_buffer("converged_R", torch.zeros(len(start_RQ), dtype=torch.bool))
        self.register_buffer("gradient_norm_R", torch.full((len(start_RQ),), torch.nan, dtype=torch.float64))
        self.collected = Collected(folder)
        self.history: list[list[float]] = []
        """One row a block: step, learning rate, mean loss of each of the K points."""
        self._block: list[Tensor] = []
        self._due = 0.0
        self.automatic_optimization = False

    @property
    def mean_loss(self) -> float:
        """Mean minibatch loss of the last block, over all points."""
        _, _, *losses = self.history[-1]
        return sum(losses) / len(losses)

    def on_fit_start(self) -> None:
        self.objective.landscape.to(self.device)

    def on_train_start(self) -> None:
        # Only here has a run that continues its step.
        if self.global_step == 0 and self.recipe.collect(0):
            self._collect()
        self.trainer.should_stop |= bool(self.converged_R.all())

    def training_step(self, batch: Any, batch_index: int) -> None:
        """A block of steps in one call, since Lightning takes longer between its calls than a GPU for a small step."""
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        while True:
            self._take_step(optimizer)
            schedule.step()  # type: ignore[union-attr]
            if self.recipe.collect(self.global_step):
                self._collect()
            if self.global_step % self.block == 0 or self.global_step == self.steps:
                return
            self._tell()

    def _take_step(self, optimizer: Any) -> None:
        prepared_RQ = self.objective.prepare(self.x_RQ.detach())
        with torch.no_grad():
            if prepared_RQ.data_ptr() != self.x_RQ.data_ptr():
                self.x_RQ.copy_(prepared_RQ)
        scalar, losses_K = self.objective.losses(self.x_RQ, self.first_step + self.global_step)
        self._block.append(losses_K.detach())
        optimizer.zero_grad()
        self.manual_backward(scalar)
        # Here gradients of several processes are summed already, so a projection sees the whole minibatch's.
        gradient_RQ = self.x_RQ.grad
        assert gradient_RQ is not None
        with torch.no_grad():
            nudged_RQ = self.objective.nudge(self.x_RQ, gradient_RQ, losses_K.detach())
            if nudged_RQ is not gradient_RQ:
                gradient_RQ.copy_(nudged_RQ)
            if self.recipe.gradient_norm is None:
                optimizer.step()
                return
            norm_R = gradient_RQ.double().norm(dim=1)
            self.gradient_norm_R = torch.where(self.converged_R, self.gradient_norm_R, norm_R)
            self.converged_R = self.converged_R | (norm_R <= self.recipe.gradient_norm)
            before_RQ = self.x_RQ.detach().clone()
            optimizer.step()
            # Rows that have converged are put back.
            self.x_RQ.copy_(torch.where(self.converged_R[:, None], before_RQ, self.x_RQ))

    def configure_optimizers(self) -> Any:
        optimizer = self.recipe.optimizer([self.x_RQ])
        check_optimizer_decay(self.objective.landscape, optimizer)
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.recipe.rate)
        return [optimizer], [{"scheduler": scheduler, "interval": "step"}]

    def on_train_batch_end(self, outputs: Any, batch: Any, batch_idx: int) -> None:
        self._end_block()
        # The processes of several devices write together, so they decide together.
        due = time.monotonic() >= self._due
        if self.checkpoint is not None and self.trainer.strategy.reduce_boolean_decision(due, all=False):
            began = time.monotonic()
            self.trainer.save_checkpoint(self.checkpoint)
            ended = time.monotonic()
            self._due = ended + PAUSE * (ended - began)
        self._tell()

    def _tell(self) -> None:
        self.advance(self.first_step + self.global_step, f"loss {self.mean_loss:.4g}" if self.history else "")

    def _collect(self) -> None:
        self.collected.add(self.global_step, self.objective.kept(self.x_RQ.detach()))

    def _end_block(self) -> None:
        """Look at the block's losses and log their mean. Raises NonFiniteLossError."""
        # One transfer a block: a GPU never waits for the host within one.
        losses_SK = torch.stack(self._block).double().cpu()
        self._block.clear()
        last = self.first_step + self.global_step
        finite_S = losses_SK.isfinite().all(1)
        rate = self.recipe.rate(self.global_step - 1) * self.trainer.optimizers[0].defaults["lr"]
        if not finite_S.all():
            bad = int((~finite_S).nonzero()[0])
            step = last - len(losses_SK) + bad + 1
            rows = ", ".join(map(str, (~losses_SK[bad].isfinite()).nonzero().flatten().tolist()))
            raise NonFiniteLossError(
                f"{self.what}: the loss of row {rows} is not finite at step {step} "
                f"(learning rate {rate:g}): {self.remedy}"
            )
        self.history.append([float(last), rate, *losses_SK.mean(0).tolist()])
        values = {"loss": losses_SK.mean().item(), "loss_max": losses_SK.mean(0).max().item(), "lr": rate}
        key = re.sub(r"[^\w.-]+", "/", self.what.replace("–", "-"))  # as path/bezier/0-1/loss
        for logger in self.loggers:
            logger.log_metrics({f"{key}/{name}": value for name, value in values.items()}, step=last)
        self.trainer.should_stop |= bool(self.converged_R.all())

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = torch.tensor(self.history, dtype=torch.float64)
        checkpoint["collected"] = list(self.collected.steps)
        if hasattr(self.objective.batches, "state_dict"):
            checkpoint["batches"] = self.objective.batches.state_dict()

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"].tolist()
        self.collected.steps = list(checkpoint["collected"])
        if "batches" in checkpoint:
            self.objective.batches.load_state_dict(checkpoint["batches"])  # type: ignore[attr-defined]


class _AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it there, so that a killed process leaves no half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
                seal_archive(temporary)
            except RuntimeError as error:  # torch's own, for want of space
                raise unwritable(Path(path), error) from error


def fit(
    module: Descent, block: int, advance: Advance, trainer: TrainerFactory = default_trainer, folder: Path | None = None
) -> None:
    """Run a module's steps; with a folder, checkpoint there at ends of blocks, and continue from there.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
        LowlossError: the checkpoint cannot be read.
    """
    module.block, module.advance, module.checkpoint = block, advance, folder / "last.ckpt" if folder else None
    resume = module.checkpoint if module.checkpoint and module.checkpoint.exists() else None
    if resume:
        _check_readable(resume)
    with quiet():
        trainer(
            max_steps=module.steps,
            max_epochs=-1,
            plugins=[_AtomicCheckpoints()],
            log_every_n_steps=1,
            use_distributed_sampler=False,
            logger=getattr(trainer, "keywords", {}).get("logger", False),
            **BARE,
        ).fit(module, range(module.steps), ckpt_path=resume, weights_only=True)
    if module.global_step < module.steps and not bool(module.converged_R.all()):
        raise LowlossError(
            f"{module.what}: the trainer ended after {module.global_step} of {module.steps} steps: "
            "give it no settings that end training early"
        )
    advance(module.first_step + module.steps, f"loss {module.mean_loss:.4g}")
    # Lightning may leave the module on the device; results are kept on the host.
    module.cpu()


def check_optimizer(optimizer: Callable[..., torch.optim.Optimizer]) -> torch.optim.Optimizer:
    """The optimizer of a lone parameter. Raises LowlossError if it cannot be made with its settings."""
    try:
        made = optimizer([torch.zeros(1, requires_grad=True)])
    except (TypeError, ValueError) as error:
        raise LowlossError(f"optimizer: {error}, with {getattr(optimizer, 'keywords', {})}") from error
    if not isinstance(made, torch.optim.Optimizer):
        raise LowlossError(f"optimizer must make a torch optimizer, got {type(made).__name__}: set optimizer._target_")
    if type(made).__name__ in ("LBFGS", "Adafactor", "Muon", "SparseAdam"):
        raise LowlossError(f"optimizer: {type(made).__name__} treats the rows of a matrix together: take another one")
    if not made.defaults.get("momentum", 0) < 1:
        raise LowlossError(f"optimizer.momentum must be less than 1, got {made.defaults['momentum']}")
    return made


def check_trainer(trainer: TrainerFactory) -> None:
    """Raise LowlossError if the trainer cannot be made here, say for want of a GPU."""
    try:
        with quiet():
            trainer(logger=False, **BARE)
    except Exception as error:  # Lightning has its own, torch and the device theirs
        raise LowlossError(f"trainer: {error} (trainer=auto takes what there is)") from error


def _check_readable(checkpoint: Path) -> None:
    """Raise LowlossError if the checkpoint is damaged."""
    try:
        check_archive(checkpoint)
        torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises half a dozen types for a damaged file
        raise LowlossError(
            f"the checkpoint {checkpoint} is unreadable ({reason(error)}): delete {checkpoint.parent} to start this "
            "piece of work afresh; what is complete stays"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hints."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", HINTS)
            yield
    finally:
        logger.setLevel(level)
