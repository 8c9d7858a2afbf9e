"""The Lightning loop that every trained stage shares: fixed steps, stateless minibatches, checkpoints, history.

The minibatch of a step depends on the step alone, so the checkpointed step number is the whole state of the data.
After each block of steps the losses are looked at and logged, and a checkpoint is written.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from abc import abstractmethod
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.plugins.io import TorchCheckpointIO
from torch import Tensor

from lowloss.errors import LowlossError, NonFiniteLossError
from lowloss.files import replacing, unwritable
from lowloss.landscape.base import Landscape
from lowloss.progress import Advance

TrainerFactory = Callable[..., L.Trainer]
default_trainer: TrainerFactory = partial(L.Trainer, accelerator="auto", devices=1)


class StepModule(L.LightningModule):
    """A LightningModule that takes `steps` steps of one optimizer on the landscape.

    A subclass computes a step's objective and losses in `step`, and makes the optimizer in `optimizer`.

    Args:
        landscape: moved to the module's device.
        steps: gradient steps.
        first_step: steps taken before this module, where a search goes through several.
        what: how messages call it.
        remedy: what to change when the loss is not finite.
    """

    def __init__(self, landscape: Landscape, steps: int, what: str, remedy: str, first_step: int = 0) -> None:
        super().__init__()
        self.landscape, self.steps, self.first_step = landscape, steps, first_step
        self.what, self.remedy = what, remedy
        self.history: list[list[float]] = []
        """One row a block: step, learning rate, mean loss of each row of the landscape call."""
        self._block: list[Tensor] = []

    @property
    def mean_loss(self) -> float:
        """Mean minibatch loss of the last block, over all rows."""
        _, _, *losses = self.history[-1]
        return sum(losses) / len(losses)

    @abstractmethod
    def step(self, step: int) -> tuple[Tensor, Tensor]:
        """The objective to differentiate and the losses (K,), at a step counted over the whole search."""

    @abstractmethod
    def optimizer(self) -> torch.optim.Optimizer: ...

    @abstractmethod
    def rate(self, step: int) -> float:
        """The factor on the optimizer's learning rate at a step of this module."""

    def on_fit_start(self) -> None:
        self.landscape.to(self.device)

    def training_step(self, batch: Any, batch_index: int) -> Tensor:
        objective, losses_K = self.step(self.first_step + self.global_step)
        self._block.append(losses_K.detach())
        return objective

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer()
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, self.rate)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def after_step(self) -> None:
        """Called after each step, before a checkpoint is written."""

    def end_block(self) -> None:
        """Look at the block's losses and log their mean. Raises NonFiniteLossError."""
        # One transfer a block: a GPU never waits for the host within one.
        losses_SK = torch.stack(self._block).double().cpu()
        self._block.clear()
        last = self.first_step + self.global_step
        finite_S = losses_SK.isfinite().all(1)
        rate = self.rate(self.global_step - 1) * self.trainer.optimizers[0].defaults["lr"]
        if not finite_S.all():
            bad = int((~finite_S).nonzero()[0])
            step = last - len(losses_SK) + bad + 1
            rows = ", ".join(str(k) for k in (~losses_SK[bad].isfinite()).nonzero().flatten().tolist())
            raise NonFiniteLossError(
                f"{self.what}: the loss of row {rows} is not finite at step {step} "
                f"(learning rate {rate:g}): {self.remedy}"
            )
        row = [float(last), rate, *losses_SK.mean(0).tolist()]
        self.history.append(row)
        for logger in self.loggers:
            values = {"loss": losses_SK.mean().item(), "loss_max": losses_SK.mean(0).max().item(), "lr": rate}
            logger.log_metrics({f"{self.what}/{name}": value for name, value in values.items()}, step=last)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["history"] = torch.tensor(self.history, dtype=torch.float64)

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        self.history = checkpoint["history"].tolist()


class _Blocks(Callback):
    """Ends a block every so many steps: checks the losses, then writes a checkpoint, which thus is always finite."""

    def __init__(self, block: int, checkpoint: Path | None, advance: Advance) -> None:
        self.block, self.checkpoint, self.advance = block, checkpoint, advance

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        assert isinstance(module, StepModule)
        module.after_step()
        if trainer.global_step % self.block == 0 or trainer.global_step == module.steps:
            module.end_block()
            if self.checkpoint is not None:
                trainer.save_checkpoint(self.checkpoint)
        note = f"loss {module.mean_loss:.4g}" if module.history else ""
        self.advance(module.first_step + trainer.global_step, note)


class _AtomicCheckpoints(TorchCheckpointIO):
    """Writes a checkpoint beside its place and renames it there, so that a killed process leaves no half of one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None) -> None:
        with replacing(Path(path)) as temporary:
            try:
                torch.save(checkpoint, temporary)
            except RuntimeError as error:  # torch's own, for want of space
                raise unwritable(Path(path), error) from error


def fit(
    module: StepModule,
    block: int,
    advance: Advance,
    trainer: TrainerFactory = default_trainer,
    folder: Path | None = None,
) -> None:
    """Run a module's steps; with a folder, checkpoint there after each block, and continue from there.

    Raises:
        NonFiniteLossError: a loss became NaN or infinite.
        LowlossError: the checkpoint cannot be read.
    """
    checkpoint = folder / "last.ckpt" if folder else None
    resume = checkpoint if checkpoint and checkpoint.exists() else None
    if resume:
        check_readable(resume)
    with quiet():
        trainer(
            max_steps=module.steps,
            max_epochs=-1,
            callbacks=[_Blocks(block, checkpoint, advance)],
            plugins=[_AtomicCheckpoints()],
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            log_every_n_steps=1,
            use_distributed_sampler=False,
            **({} if "logger" in getattr(trainer, "keywords", {}) else {"logger": False}),
        ).fit(module, range(module.steps), ckpt_path=resume, weights_only=True)
    advance(module.first_step + module.steps, f"loss {module.mean_loss:.4g}")
    # Lightning may leave the module on the device; results are kept on the host.
    module.cpu()


def check_optimizer(optimizer: Callable[..., torch.optim.Optimizer]) -> None:
    """Raise LowlossError if the optimizer cannot be made with its settings."""
    try:
        optimizer([torch.zeros(1, requires_grad=True)])
    except (TypeError, ValueError) as error:
        settings = getattr(optimizer, "keywords", {})
        raise LowlossError(f"optimizer: {error}, with {settings}") from error


def check_trainer(trainer: TrainerFactory) -> None:
    """Raise LowlossError if the trainer cannot be made here, say for want of a GPU."""
    try:
        with quiet():
            trainer(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    except Exception as error:  # Lightning has its own, torch and the device theirs
        raise LowlossError(f"trainer: {error} (trainer=auto takes what there is)") from error


def check_readable(checkpoint: Path) -> None:
    """Raise LowlossError if the checkpoint is damaged."""
    try:
        torch.load(checkpoint, weights_only=True, map_location="cpu")
    except Exception as error:  # torch raises half a dozen types for a damaged file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise LowlossError(
            f"the checkpoint {checkpoint} is unreadable ({reason}): delete {checkpoint.parent} to start this "
            "piece of work afresh; what is complete stays"
        ) from error


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without Lightning's hints that do not fit this use: stateless loaders need no workers and no state."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for message in (
                ".*LeafSpec.*",
                ".*does not have many workers.*",
                ".*dataloader is not resumable.*",
                ".*lr_scheduler.step.*before.*optimizer.step.*",
                ".*GPU available but not used.*",
                ".*srun. command is available.*",
            ):
                warnings.filterwarnings("ignore", message)
            yield
    finally:
        logger.setLevel(level)
