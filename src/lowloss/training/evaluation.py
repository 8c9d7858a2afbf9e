"""Exact evaluation of many points through Lightning's predict loop, a chunk of points at a time.

Shapes: K points, P parameters, T points of a chunk.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lowloss.files import load_tensors, save_tensors
from lowloss.landscape.base import Landscape
from lowloss.progress import Advance, bar
from lowloss.training.loop import TrainerFactory, default_trainer, quiet

Table = dict[str, Tensor]
"""Columns of length K: `<split>_loss` in nats and `<split>_error` as a fraction."""


METRICS = ("loss", "error")


class EvaluationModule(L.LightningModule):
    """predict_step evaluates the points of one chunk on all splits; with a folder, a finished chunk is kept."""

    def __init__(
        self,
        landscape: Landscape,
        points: Callable[[Tensor], Tensor],
        count: int,
        chunk: int,
        splits: Sequence[str],
        advance: Advance,
        folder: Path | None,
    ) -> None:
        super().__init__()
        self.landscape, self.points, self.splits = landscape, points, tuple(splits)
        self.count, self.chunk = count, chunk
        self.advance, self.folder = advance, folder

    def on_predict_start(self) -> None:
        self.landscape.to(self.device)

    def predict_step(self, first: int, batch_index: int) -> Table:
        end = min(first + self.chunk, self.count)
        file = self.folder / f"points-{first:06d}.safetensors" if self.folder else None
        table: Table = {}
        if file and file.exists():
            kept, _ = load_tensors(file)
            table = {f"{split}_{metric}": kept[f"{split}_{metric}"] for split in self.splits for metric in METRICS}
        else:
            theta_TP = self.points(torch.arange(first, end))
            for split in self.splits:
                result = self.landscape.evaluate(theta_TP, split)
                table[f"{split}_loss"], table[f"{split}_error"] = result.loss_K.cpu(), result.error_K.cpu()
            if file:
                save_tensors(file, table, {})
        self.advance(end, "")
        return table


def evaluate_points(
    landscape: Landscape,
    points: Callable[[Tensor], Tensor],
    count: int,
    splits: Sequence[str] | None = None,
    trainer: TrainerFactory = default_trainer,
    folder: Path | None = None,
    title: str = "evaluation",
    chunk: int = 16,
) -> Table:
    """Loss and error of `count` points over whole splits.

    Args:
        points: maps indices (T,) to points (T, P), so that no more than a chunk is ever held.
        splits: by default all that the landscape has.
        folder: where finished chunks are kept, and taken from.
        chunk: points of one call.

    Returns:
        Float64 columns (count,), two for each split. Values that are not finite are kept as they are.
    """
    with bar(title, count) as advance, quiet():
        module = EvaluationModule(landscape, points, count, chunk, splits or landscape.splits, advance, folder)
        parts: Any = trainer(
            logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
        ).predict(module, range(0, count, chunk))
    return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
