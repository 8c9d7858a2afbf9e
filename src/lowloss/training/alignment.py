"""Alignment as a piece of work: on the trainer's device, and done once.

Shapes: P parameters.
"""

from pathlib import Path

from torch import Tensor

from lowloss.files import load_tensors, save_tensors
from lowloss.landscape.network import NetworkLandscape
from lowloss.symmetry import align
from lowloss.training.descent import BARE, default_trainer, quiet
from lowloss.training.devices import TrainerFactory, alone, rank


def aligned(
    landscape: NetworkLandscape,
    a_P: Tensor,
    b_P: Tensor,
    by: str,
    seed: int = 0,
    trainer: TrainerFactory = default_trainer,
    folder: Path | None = None,
) -> tuple[Tensor, list[str]]:
    """The point (P,) of network b aligned with a, see `align`, and what could not be permuted, a line each.

    Args:
        folder: where the result is kept, and taken from.
    """
    file = folder / f"aligned-{by}.safetensors" if folder else None
    if file and file.exists():
        tensors, notes = load_tensors(file)
        return tensors["theta"], notes["left_out"]
    with quiet():
        landscape.to(alone(trainer)(logger=False, **BARE).strategy.root_device)
    found_P, symmetries = align(landscape, a_P, b_P, by, seed)
    found_P, left_out = found_P.cpu(), list(symmetries.notes)
    if file and rank() == 0:
        save_tensors(file, {"theta": found_P}, {"left_out": left_out})
    return found_P, left_out
