"""What the report shows of minima."""

from __future__ import annotations

from collections.abc import Iterator

from lowloss.report import tables
from lowloss.report.pictures import Shown, Table
from lowloss.study import Study


def found(study: Study) -> Iterator[str]:
    """What the minima are like, and how far apart."""
    points, units = tables.minima(study), tables.units(study)
    if points.empty:
        return
    told = [
        f"{split} {metric} of {tables.quantity(points[f'{split}_{metric}'].astype(float).mean(), units[metric])}"
        for split, metric in (("train", "loss"), ("test", [*units][-1]))
    ]
    every = f"The {len(points)} minima have" if len(points) > 1 else "The minimum has"
    yield f"{every} a {' and a '.join(told)}{' on average' if len(points) > 1 else ''}."


def shown_tables(study: Study) -> Iterator[Table]:
    points, units = tables.minima(study), tables.units(study)
    note = "Means over the minima, and their standard deviations over the seeds."
    share = tables.fractions(units)
    typical = tables.mean_minimum(points, units)
    yield Table("report/minima.csv", typical, "Minima on average", note, percent=share)
    yield Table("report/each_minimum.csv", points, "Every minimum", fractions=share)
    note = "Test samples that two minima misclassify, and those that both do, over the mean of the two numbers."
    overlap = tables.overlap(study)
    yield Table("report/overlap.csv", overlap, "Overlap of the misclassified", note, fractions=("overlap",))


SHOWN = Shown("Minima", found, tables=shown_tables)
