"""How figures look, and what is known of one on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib as mpl
from matplotlib.figure import Figure

from lowloss import files

COLOURS = {
    "line": "#8a8f98",
    "autoneb": "#1f5fbf",
    "neb": "#7a4fbf",
    "bezier": "#d9822b",
    "polychain": "#2a9d6f",
    "polychain_arc": "#14705a",
    "tunnel": "#00838f",
}
OTHER = "#b03a5b"
"""The colour of finders that have none of their own."""

LENGTH = "fraction of the path's length"
"""The axis along a path."""

STYLE: Any = {
    "figure.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e8eb", "axes.axisbelow": True, "font.size": 10, "axes.titlesize": 11,
    "axes.titleweight": "bold", "axes.edgecolor": "#8a8f98", "legend.frameon": False, "svg.fonttype": "none",
    "savefig.format": "png",
}  # fmt: skip


@dataclass(frozen=True)
class Picture:
    """A figure on disk and what it shows."""

    file: Path
    title: str
    caption: str


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, figure: Figure | None = None, **options: Any
) -> tuple[Figure, Any]:
    """A figure of a size in inches, a new one or an empty one that is given, and its rows of axes."""
    figure = Figure() if figure is None else figure
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, folder: Path, name: str, title: str, caption: str) -> Picture:
    """Write the figure into the folder as `<name>.png`, or in another format that matplotlib is set to."""
    form = str(mpl.rcParams["savefig.format"])
    file, undated = folder / f"{name}.{form}", {"png": "Software", "svg": "Date", "pdf": "CreationDate"}
    with files.replacing(file) as temporary:  # the one that is there may be another user's
        figure.savefig(temporary, format=form, dpi=160, bbox_inches="tight", metadata={undated[form]: None})
    return Picture(file, title, caption)
