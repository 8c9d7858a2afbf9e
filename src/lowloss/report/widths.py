"""The widths of minima (Fort & Jastrzebski 2019, fig. 5).

Shapes: K directions.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from lowloss.report.pictures import Picture, panels, save
from lowloss.study import Artifact, Study


def widths(study: Study) -> pd.DataFrame:
    """A row a minimum: mean and standard deviation of angle (degrees) and distance over the directions, and the share
    of them along which the threshold was passed; elsewhere the longest distance counts."""
    notes = [artifact.notes() for artifact in study.complete("widths")]
    return pd.DataFrame([{key: value for key, value in row.items() if key != "units"} for row in notes])


def draw_widths(artifacts: list[Artifact], folder: Path) -> Picture:
    """The distribution of the angle over directions, a curve a minimum."""
    figure, ((left, right),) = panels(9.5, 3.6, 1, 2)
    for artifact in artifacts:
        columns = artifact.table("directions.csv", ["angle", "distance"])
        left.ecdf(np.degrees(columns["angle"]), label=f"minimum {artifact.notes()['minimum']}", linewidth=1.2)
        right.ecdf(columns["distance"], linewidth=1.2)
    left.set(xlabel="angle (degrees)", ylabel="share of the directions below", title="Angular width")
    right.set(xlabel="distance", title="Distance")
    if len(artifacts) <= 10:
        left.legend(fontsize=8)
    notes = artifacts[0].notes()
    caption = (
        f"How far one moves from a minimum along {notes['directions']} random directions until the train loss passes "
        f"{notes['threshold']:.3g} (of minimum {notes['minimum']}), as fig. 5 of Fort & Jastrzebski 2019."
    )
    return save(figure, folder, "widths", "Width of the minima", caption)
