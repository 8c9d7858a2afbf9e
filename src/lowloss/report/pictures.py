"""How figures look, what is known of one on disk, and what a kind of artifact shows in the report."""

from __future__ import annotations

import io
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from matplotlib.figure import Figure

from lowloss import files
from lowloss.study import Study

if TYPE_CHECKING:
    import pandas as pd

LENGTH = "fraction of the path's length"
"""The axis along a path."""

STYLE: Any = {
    "figure.facecolor": "white", "axes.spines.top": False, "axes.spines.right": False, "axes.grid": True,
    "grid.color": "#e6e8eb", "axes.axisbelow": True, "font.size": 10, "axes.titlesize": 11, "axes.titleweight": "bold",
    "axes.edgecolor": "#8a8f98", "legend.frameon": False, "svg.fonttype": "none", "svg.hashsalt": "lowloss",
}  # fmt: skip

FORMATS: dict[str, dict[str, Any]] = {
    "png": {"dpi": 160, "bbox_inches": "tight", "metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None}},
    "pdf": {"metadata": {"CreationDate": None}},
}
"""In which a figure is written, the same bytes each time."""


@dataclass(frozen=True)
class Picture:
    """A figure on disk and what it shows.

    file: the PNG; an SVG and a PDF lie beside it.
    title and tab: pictures of one title share a place on the page, a tab each.
    plots: what the page draws instead of the file, by tab: the data and the layout of a plotly figure.
    lead: whether the page begins with it; the first of each title does.
    """

    file: Path
    title: str
    caption: str
    tab: str = ""
    plots: dict[str, dict[str, Any]] = field(default_factory=dict)
    lead: bool = False

    @property
    def files(self) -> list[Path]:
        return [self.file.with_suffix(f".{name}") for name in FORMATS]


@dataclass(frozen=True)
class Table:
    """A table of the report.

    file: its CSV, relative to the study.
    title: on the page; without one it is a file alone.
    main: the columns that the page shows at first; by default all.
    fractions: words of columns, or columns, that are fractions in the CSV; the page shows them in per cent.
    percent: words of columns that are in per cent in the CSV too.
    """

    file: str
    frame: pd.DataFrame
    title: str = ""
    note: str = ""
    main: tuple[str, ...] = ()
    fractions: tuple[str, ...] = ()
    percent: tuple[str, ...] = ()


@dataclass(frozen=True)
class Shown:
    """How the report shows a kind of artifact, declared as SHOWN in the module of its name.

    found: sentences of what was found.  draw: writes figures into a folder.
    """

    title: str
    found: Callable[[Study], Iterable[str]] = lambda _: ()
    draw: Callable[[Study, Path], Iterable[Picture]] = lambda *_: ()
    tables: Callable[[Study], Iterable[Table]] = lambda _: ()


def panels(
    width: float, height: float, rows: int = 1, columns: int = 1, figure: Figure | None = None, **options: Any
) -> tuple[Figure, Any]:
    """A figure of a size in inches, a new one or an empty one that is given, and its rows of axes."""
    figure = Figure() if figure is None else figure
    figure.set_size_inches(width, height)
    figure.set_layout_engine("constrained")
    return figure, figure.subplots(rows, columns, squeeze=False, **options)


def save(figure: Figure, folder: Path, name: str, title: str, caption: str, **options: Any) -> Picture:
    """Write the figure into the folder as `<name>.png`, .svg and .pdf; options: of the Picture."""
    picture = Picture(folder / f"{name}.png", title, caption, **options)
    for file in picture.files:
        drawn = io.BytesIO()  # where a disk is full not all that matplotlib raises is an OSError
        figure.savefig(drawn, format=file.suffix[1:], **FORMATS[file.suffix[1:]])
        with files.replacing(file) as temporary:  # the one that is there may be another user's
            temporary.write_bytes(drawn.getbuffer())
        figure.set_layout_engine("none")  # it is laid out once
    return picture
