"""Measures tabulated at many points, through Lightning's predict loop, a chunk of points at a time.

Shapes: K points, P parameters, T points of a chunk.
"""

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
from lowloss.landscape.base import Columns, Landscape
from lowloss.measure.exact import Exact
from lowloss.progress import Advance, bar
from lowloss.training.descent import BARE, default_trainer, quiet
from lowloss.training.devices import TrainerFactory, alone, gather, rank, world

SHARES = 16
"""Chunks of each of several processes, where there are points enough: the one that takes one more delays all."""

Measure = Callable[[Landscape, Tensor], Columns]
"""What is measured of points (T, P), which lie on the landscape's device: columns with T first."""


class Tabulation(L.LightningModule):
    """Measures chunks of points, and keeps them in the folder; `helper` makes the next one's during this one."""

    def __init__(
        self,
        landscape: Landscape,
        points: Callable[[Tensor], Tensor],
        blocks: Sequence[range],
        chunks: Sequence[range],
        measures: Sequence[Measure],
        advance: Advance,
        folder: Path | None,
        helper: Executor,
    ) -> None:
        super().__init__()
        self.landscape, self.points, self.measures = landscape, points, measures
        self.blocks, self.block, self.made_KP = blocks, range(0), torch.empty(0)
        self.chunks, self.advance, self.folder, self.helper = chunks, advance, folder, helper

    def on_predict_start(self) -> None:
        self.landscape.to(self.device)
        self.made = self.helper.submit(self._make, 0)

    def predict_step(self, index: int, batch_index: int) -> Columns:
        theta_TP, self.made = self.made.result(), self.helper.submit(self._make, index + 1)
        file = self._file(index)
        columns: Columns = {}
        if theta_TP is None:
            assert file is not None
            columns, _ = load_tensors(file)
        else:
            theta_TP = theta_TP.to(self.device, non_blocking=True)
            for measure in self.measures:
                columns |= {name: column.cpu() for name, column in measure(self.landscape, theta_TP).items()}
            if file:
                save_tensors(file, columns, {})
        self.advance(self.chunks[index].stop, "")
        return columns

    def _file(self, index: int) -> Path | None:
        return self.folder / f"points-{self.chunks[index].start:06d}.safetensors" if self.folder else None

    @torch.no_grad()
    def _make(self, index: int) -> Tensor | None:
        """The points of a chunk; None for one that is kept, and past the end."""
        if index == len(self.chunks) or ((file := self._file(index)) and file.exists()):
            return None
        chunk = self.chunks[index]
        # Of points that are made beside others, the last bits may depend on those: they are the same for one process.
        if chunk.start not in self.block:
            (self.block,) = (block for block in self.blocks if chunk.start in block)
            self.made_KP = self.points(torch.tensor(self.block))
        theta_TP = self.made_KP[chunk.start - self.block.start : chunk.stop - self.block.start]
        # Copied to a GPU several times faster from here.
        return theta_TP.pin_memory() if self.device.type == "cuda" and not theta_TP.is_cuda else theta_TP


def tabulate(
    landscape: Landscape,
    points: Tensor | Callable[[Tensor], Tensor],
    count: int | None = None,
    measures: Sequence[Measure] | None = None,
    trainer: TrainerFactory = default_trainer,
    folder: Path | None = None,
    title: str = "points",
    chunk: int | None = None,
) -> Columns:
    """Measure points; several processes, one a device, take chunks of them in turn.

    Args:
        points: a matrix (K, P); or what maps indices (T,) to points (T, P), called in a thread of its own, so that no
            more than two chunks are held.
        count: K, where `points` is a function.
        measures: by default the exact metrics on every split.
        folder: where finished chunks are kept, and taken from.
        chunk: points of one call; by default 16, or fewer where several processes would have unequal shares.

    Returns:
        The measures' columns with K first: the metrics of the splits in their order, then the others by name. Values
        that are not finite are kept as they are.

    Raises LowlossError if there is no point.
    """
    if isinstance(points, Tensor):
        count, points = len(points), points.__getitem__
    if not count or count < 1:
        raise LowlossError(f"there is no point to evaluate: count is {count}")
    length = chunk or 16
    blocks = [range(count)[first : first + length] for first in range(0, count, length)]
    if chunk is None and world() > 1:
        # A power of two, so that each is of one block.
        length = min(16, 1 << (max(1, count // (SHARES * world())).bit_length() - 1))
        folder = folder / f"of-{length}" if folder and length < 16 else folder
    with bar(title, count) as advance, quiet():
        chunks = [range(count)[first : first + length] for first in range(0, count, length)][rank() :: world()]
        mine: Any = []
        if chunks:
            with ThreadPoolExecutor(1) as helper:
                module = Tabulation(landscape, points, blocks, chunks, measures or [Exact()], advance, folder, helper)
                # Without gradients, but not in inference mode, in which a measure could not take any.
                runs = alone(trainer)(logger=False, inference_mode=False, **BARE)
                mine = runs.predict(module, range(len(chunks)))
        gathered = gather(mine)
        advance(count, "")
        # The processes took the chunks in turn.
        parts = [part for turn in zip_longest(*gathered) for part in turn if part is not None]
    # A chunk that was kept has its columns in another order than one that was not.
    metrics = [f"{split}_{name}" for split in landscape.splits for name in landscape.task.units]
    names = [*(name for name in metrics if name in parts[0]), *sorted(parts[0].keys() - {*metrics})]
    return {name: torch.cat([part[name] for part in parts]) for name in names}
