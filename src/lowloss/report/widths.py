"""What the report shows of the widths of minima (Fort & Jastrzebski 2019, fig. 5).

Shapes: K directions.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lowloss.report.looks import look
from lowloss.report.pictures import Picture, Shown, Table, panels, save
from lowloss.study import Source, Study


def widths(study: Study) -> pd.DataFrame:
    """A row a minimum: mean and standard deviation of angle (degrees) and distance over the directions, and the share
    of them along which the threshold was passed; elsewhere the longest distance counts."""
    notes = [artifact.notes() for artifact in study.complete("widths")]
    return pd.DataFrame([{key: value for key, value in row.items() if key != "units"} for row in notes])


def widths_figure(artifacts: Sequence[Source], figure: Figure | None = None) -> tuple[Figure, str]:
    """The distribution of the angle over directions, a curve a minimum; and the caption."""
    figure, ((left, right),) = panels(9.5, 3.6, 1, 2, figure)
    for artifact in artifacts:
        columns = artifact.table("directions.csv", ["angle", "distance"])
        k = artifact.notes()["minimum"]
        left.ecdf(np.degrees(columns["angle"]), label=f"minimum {k}", linewidth=1.2, **look(k).line)
        right.ecdf(columns["distance"], linewidth=1.2, **look(k).line)
    left.set(xlabel="angle (degrees)", ylabel="share of the directions below", title="Angular width")
    right.set(xlabel="distance", title="Distance")
    if len(artifacts) <= 10:
        left.legend(fontsize=8)
    notes = artifacts[0].notes()
    return figure, (
        f"How far one moves from a minimum along {notes['directions']} random directions until the train loss passes "
        f"{notes['threshold']:.3g} (of minimum {notes['minimum']}), as fig. 5 of Fort & Jastrzebski 2019."
    )


def found(study: Study) -> Iterator[str]:
    """How far the minima reach along random directions."""
    table = widths(study)
    if len(table):
        least = "at least " if (table["crossed"] < 1).any() else ""
        yield f"Along random directions the minima are {least}{table['angle'].mean():.2g} degrees wide on average."


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    if artifacts := study.complete("widths"):
        figure, caption = widths_figure(artifacts)
        yield save(figure, folder, "widths", "Width of the minima", caption)


def shown_tables(study: Study) -> Iterator[Table]:
    note = "Angles in degrees; crossed: the share of the directions along which the train loss passes the threshold."
    yield Table("report/widths.csv", widths(study), "Widths of minima", note, fractions=("crossed",))


SHOWN = Shown("Widths", found, draw, shown_tables)
