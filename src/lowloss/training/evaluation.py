"""Exact evaluation of many points through Lightning's predict loop, a chunk of points at a time.

Shapes: K points, P parameters, T points of a chunk, N samples, C classes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from itertools import zip_longest
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from lowloss.errors import LowlossError
from lowloss.files import load_tensors, save_tensors
from lowloss.landscape.base import Landscape
from lowloss.progress import Advance, bar
from lowloss.training.devices import alone, gather, rank, world
from lowloss.training.loop import TrainerFactory, default_trainer, quiet

Table = dict[str, Tensor]
"""Columns of length K: `<split>_loss` in nats and `<split>_error` as a fraction, and what `predictions` adds."""


def predictions(logits_KNC: Tensor, y_N: Tensor) -> Table:
    """What K points predict: confidence is the probability of the predicted class.

    Returns:
        test_confidence (K,), its mean;  test_class_error, test_class_confidence (K, C), over the samples of each
        class (NaN for a class without any);  test_wrong (K, N), whether a sample is misclassified.
    """
    confidence_KN, predicted_KN = logits_KNC.double().softmax(2).max(2)
    wrong_KN = predicted_KN != y_N
    member_NC = torch.nn.functional.one_hot(y_N, logits_KNC.shape[2]).double()
    size_C = member_NC.sum(0)
    return {
        "test_confidence": confidence_KN.mean(1),
        "test_class_error": wrong_KN.double() @ member_NC / size_C,
        "test_class_confidence": confidence_KN @ member_NC / size_C,
        "test_wrong": wrong_KN,
    }


class EvaluationModule(L.LightningModule):
    """predict_step evaluates the points of one chunk on all splits; with a folder, a finished chunk is kept.

    `helper` makes the next chunk's points, while the device computes this one.
    """

    def __init__(
        self,
        landscape: Landscape,
        points: Callable[[Tensor], Tensor],
        chunks: Sequence[range],
        splits: Sequence[str],
        labels_N: Tensor | None,
        advance: Advance,
        folder: Path | None,
        helper: Executor,
    ) -> None:
        super().__init__()
        self.labels_N = labels_N
        self.landscape, self.points, self.splits = landscape, points, tuple(splits)
        self.chunks, self.advance, self.folder, self.helper = chunks, advance, folder, helper

    def on_predict_start(self) -> None:
        self.landscape.to(self.device)
        self.made = self.helper.submit(self._make, 0)

    def predict_step(self, index: int, batch_index: int) -> Table:
        theta_TP, self.made = self.made.result(), self.helper.submit(self._make, index + 1)
        file = self._file(index)
        table: Table = {}
        if theta_TP is None:
            assert file is not None
            table, _ = load_tensors(file)
        else:
            for split in self.splits:
                asked = self.labels_N is not None and split == "test"
                result = self.landscape.evaluate(theta_TP, split, logits=asked)
                table[f"{split}_loss"], table[f"{split}_error"] = result.loss_K.cpu(), result.error_K.cpu()
                if self.labels_N is not None and result.logits_KNC is not None:
                    table |= predictions(result.logits_KNC.cpu(), self.labels_N)
            if file:
                save_tensors(file, table, {})
        self.advance(self.chunks[index].stop, "")
        return table

    def _file(self, index: int) -> Path | None:
        return self.folder / f"points-{self.chunks[index].start:06d}.safetensors" if self.folder else None

    @torch.no_grad()
    def _make(self, index: int) -> Tensor | None:
        """The points of a chunk; None for one that is kept, and past the end."""
        if index == len(self.chunks) or ((file := self._file(index)) and file.exists()):
            return None
        theta_TP = self.points(torch.tensor(self.chunks[index]))
        # Copied to a GPU several times faster from here.
        return theta_TP.pin_memory() if self.device.type == "cuda" and not theta_TP.is_cuda else theta_TP


def evaluate_points(
    landscape: Landscape,
    points: Callable[[Tensor], Tensor],
    count: int,
    splits: Sequence[str] | None = None,
    trainer: TrainerFactory = default_trainer,
    folder: Path | None = None,
    title: str = "evaluation",
    chunk: int = 16,
    labels_N: Tensor | None = None,
) -> Table:
    """Loss and error of `count` points over whole splits; several processes, one a device, take chunks in turn.

    Args:
        points: maps indices (T,) to points (T, P), in a thread of its own, so that no more than two chunks are held.
        splits: by default all that the landscape has.
        folder: where finished chunks are kept, and taken from.
        chunk: points of one call.
        labels_N: the test split's; with them the columns of `predictions` come too.

    Returns:
        Float64 columns (count,), two for each split. Values that are not finite are kept as they are.

    Raises:
        LowlossError: there is no point.
    """
    if count < 1:
        raise LowlossError(f"there is no point to evaluate: count is {count}")
    with bar(title, count) as advance, quiet():
        labels_N = None if labels_N is None else labels_N.cpu()
        chunks = [range(first, min(first + chunk, count)) for first in range(0, count, chunk)][rank() :: world()]
        splits = splits or landscape.splits
        mine: Any = []
        if chunks:
            with ThreadPoolExecutor(1) as helper:
                module = EvaluationModule(landscape, points, chunks, splits, labels_N, advance, folder, helper)
                mine = alone(trainer)(
                    logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False
                ).predict(module, range(len(chunks)))
        gathered = gather(mine)
        advance(count, "")
        # The processes took the chunks in turn.
        rounds = zip_longest(*gathered)
        parts = [part for turn in rounds for part in turn if part is not None]
    # A chunk that was kept has its columns in another order than one that was not.
    first = [f"{split}_{metric}" for split in splits for metric in ("loss", "error")]
    names = [*first, *sorted(set(parts[0]) - set(first))]
    return {name: torch.cat([part[name] for part in parts]) for name in names}
