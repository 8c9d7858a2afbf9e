"""What the report and `lowloss merge` show of merged networks: a table, and advice in a sentence."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import inf, isfinite, sqrt
from typing import Any

import pandas as pd

from lowloss.report.pictures import Shown, Table
from lowloss.report.tables import fractions, label, scale, units
from lowloss.study import Artifact, Study

BARRIERS = {"barrier_train_loss": "barrier", "barrier_above_ends_train_loss": "above ends"}
"""The highest train loss above the linear interpolation of the ends' (Frankle et al. 2020) and above the higher end."""


def merges(study: Study) -> pd.DataFrame:
    """A row a way of merging two minima: losses, and errors as fractions."""
    found = [artifact.notes() for artifact in study.complete("merges")]
    return pd.DataFrame([{"start": n["start"], "end": n["end"], **way} for n in found for way in n["ways"]])


def found(study: Study) -> Iterator[str]:
    """The advice on every merge."""
    for artifact in study.complete("merges"):
        notes, paths = artifact.notes(), [path.notes() for path in study.complete("paths")]
        between = [path for path in paths if {path["start"], path["end"]} == {notes["start"], notes["end"]}]
        advised = advice(notes, [path for path in between if path["finder"] != "line"])
        yield f"Minima {notes['start']} and {notes['end']}: {advised}."


def shown_tables(study: Study) -> Iterator[Table]:
    note = "Means of two networks as they are, and once one of them is permuted; barriers: on the straight line."
    share = (*fractions(units(study)), "overlap")
    yield Table("report/merges.csv", merges(study), "Means of networks", note, fractions=share)


def told(artifact: Artifact, curves: Sequence[dict[str, Any]]) -> list[str]:
    """The lines of a table of what a merge gives, and at the end the advice.

    Args:
        curves: the notes of paths between the two, found by finders.
    """
    from lowloss.launch import aligned

    notes = artifact.notes()
    of, columns = notes["units"], [name for name in notes["ends"][0] if name != "way"]
    units = {name: of[name.partition("_")[2]] for name in columns}
    labels = [label(name.partition("_")[0], name.partition("_")[2], unit) for name, unit in units.items()]
    loss = of["loss"]
    cells = [["", *(f"{text} ({loss})" if loss else text for text in BARRIERS.values()), *labels]]
    for row in (*notes["ends"], *notes["ways"]):
        barriers = [f"{row[name]:.4g}" if name in row else "" for name in BARRIERS]
        cells.append([_called(row["way"]), *barriers, *(f"{scale(units[name]) * row[name]:.4g}" for name in columns)])
    for path in curves:
        cells.append([path["finder"], *(f"{path[name]:.4g}" for name in BARRIERS), *[""] * len(columns)])
    lines = [line.rstrip() for line in aligned(cells)]
    if "overlap" in notes:
        lines.append(f"of the test samples that each misclassifies, both do {100 * notes['overlap']:.3g} %")
    lines += [f"not repaired: {notes['without_repair']}"] if notes["without_repair"] else []
    lines += [f"not permuted: {line}" for line in notes["left_out"]]
    lines.append(f"weights: {artifact.folder}/{{{','.join(way['way'] for way in notes['ways'])}}}.safetensors")
    return [*lines, f"advice: {advice(notes, curves)}"]


def advice(notes: dict[str, Any], curves: Sequence[dict[str, Any]]) -> str:
    """Whether to merge, in a sentence.

    Yes, if the mean of lowest train loss is no worse on the test split than the worse end by more than a margin: of an
    error p on n samples one standard error, sqrt(p (1 - p) / n), else zero. Else a curve connects the two if it leaves
    less than half of the straight line's barrier above the higher end.
    """
    of = notes["units"]
    column = f"{'test' if 'together' in notes else 'train'}_{'error' if 'error' in of else 'loss'}"
    unit = of[column.split("_", 1)[1]]

    def shown(value: float) -> str:
        return f"{scale(unit) * value:.3g}" + (f" {'%' if unit == 'fraction' else unit}" if unit else "")

    best = min(notes["ways"], key=lambda way: way["train_loss"] if isfinite(way["train_loss"]) else inf)
    ends = [end[column] for end in notes["ends"]]
    worse, numbers = max(ends), f"{column.replace('_', ' ')} of {shown(best[column])}"
    numbers += f", the two have {' and '.join(map(shown, ends))}"
    margin = sqrt(worse * (1 - worse) / notes["samples"]) if unit == "fraction" else 0.0
    if margin:
        numbers += f" with a margin of {shown(margin)}, one standard error on {notes['samples']:,} samples"
    if best[column] <= worse + margin:
        return f"merge them, {best['way']}.safetensors has a {numbers}"
    text = f"do not merge them, the best mean ({_called(best['way'])}) has a {numbers}"
    if "together" in notes:
        text += f", and {shown(notes['together'][column])} if their predictions are averaged"
    straight = notes["ways"][0]["barrier_above_ends_train_loss"]
    low = min(curves, key=lambda path: path["saddle_train_loss"], default=None)
    if low is not None:
        left = low["barrier_above_ends_train_loss"]
        text += f"; {low['finder']} {'connects' if left < straight / 2 else 'does not connect'} them: it leaves "
        text += f"{left:.3g} of the straight line's barrier of {straight:.3g} above the higher end"
    return text


def _called(way: str) -> str:
    """A row's name: of a mean, how it was made."""
    names = {"mean": "mean", "weights": "aligned by weights", "activations": "aligned by activations"}
    names["ste"] = "aligned by loss"
    names |= {f"{by}-repaired": f"{name}, repaired" for by, name in names.items()}
    return names.get(way, way)


SHOWN = Shown("Merges", found, tables=shown_tables)
