"""Networks trained independently: all minima of a study together."""

from __future__ import annotations

from dataclasses import dataclass

from lowloss.ensemble.base import EnsembleRecipe


@dataclass(frozen=True)
class Independent(EnsembleRecipe):
    """The minima of a study, one a run."""
