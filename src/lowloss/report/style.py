"""How figures look, and what is known of one on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure

COLOURS = {
    "line": "#8a8f98",
    "autoneb": "#1f5fbf",
    "neb": "#7a4fbf",
    "bezier": "#d9822b",
    "polychain": "#2a9d6f",
}
STYLE: Any = {
    "figure.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e8eb", "axes.axisbelow": True, "font.size": 10, "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.edgecolor": "#8a8f98", "legend.frameon": False, "svg.fonttype": "none",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure on disk and what it shows."""

    file: Path
    title: str
    caption: str


def save(figure: Figure, folder: Path, name: str) -> Path:
    file = folder / f"{name}.png"
    figure.savefig(file, dpi=160, bbox_inches="tight", metadata={"Software": None})
    return file
