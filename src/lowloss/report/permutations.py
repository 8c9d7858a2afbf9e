"""Figures of permutation paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pandas as pd
from matplotlib.figure import Figure

from lowloss.report import tables
from lowloss.report.looks import look
from lowloss.report.pictures import Picture, Shown, Table, panels, save
from lowloss.study import Source, Study

EXTREMES = (
    *("gradient", "negative", "vanishing", "across_negative", "across_vanishing"),
    *("flatness", "plateau_change"),
)

CLASSES = {
    "rising": "rising",
    "saddle": "saddle before the point",
    "falling": "minimum at the point",
    "flat": "flat",
}
"""Of ways by column, see `symmetry.permutation.shape`."""

MAIN = (
    *("minimum", "layer", "neurons", "pairs"),
    *("loss_highest", "barrier_highest", "between_highest", "gradient_highest"),
)


def permutations(study: Study) -> pd.DataFrame:
    """A row a minimum: of its pairs the lowest and highest of what the permutation points are, the barrier on the ways
    and the train metric of the whole network at its worst there, and the shares of the classes of ways."""
    artifacts, rows = study.complete("permutations"), []
    for artifact in artifacts:
        tensors, notes = artifact.load()
        names = [name for name in EXTREMES if name in tensors]
        metric, unit = list(notes["units"].items())[-1]
        row = {name: notes[name] for name in ("minimum", "layer", "neurons", "next_layer", "steps", "to")}
        row |= {"teachers": len(artifacts), "pairs": len(notes["pairs"])}
        columns = {"loss": tensors["loss"][:, -1], "barrier": tensors["loss"].amax(1) - tensors["loss"][:, 0]}
        columns["between"] = tensors["between"].amax(1)
        columns |= {name: tensors[name] for name in names}
        columns[f"train_{metric}"] = tables.scale(unit) * tensors[f"train_{metric}"].amax(1)
        for name, column_R in columns.items():
            row |= {f"{name}_lowest": float(column_R.min()), f"{name}_highest": float(column_R.max())}
        row["share_of_saddles"] = notes["share_of_saddles"]
        rows.append(row | {column: notes["shares"].get(name, 0.0) for column, name in CLASSES.items()})
    return pd.DataFrame(rows)


def permutations_figure(artifact: Source, figure: Figure | None = None) -> tuple[Figure, str]:
    """The loss by the distance of the two neurons, as in figs 1 and 3 of Brea et al. 2019, and the metric along t; and
    the caption."""
    notes = artifact.notes()
    last, unit = [*notes["units"].items()][-1]
    metric = f"train_{last}"
    along = artifact.table("along.csv", ["l", "m", "t", "distance", "loss", metric])
    figure, ((left, right),) = panels(10, 3.6, 1, 2, figure)
    for place, ((first, second), way) in enumerate(along.astype({"l": int, "m": int}).groupby(["l", "m"])):
        half = way[(way["t"] <= 0.25) & (way["distance"] > 0)]
        left.plot(half["distance"], half["loss"], linewidth=1.4, label=f"{first} and {second}", **look(place).line)
        right.plot(way["t"], tables.scale(unit) * way[metric], linewidth=1.4, **look(place).line)
    left.set(xscale="log", xlabel="distance of the two neurons", ylabel="loss of the descent")
    right.set(xlabel="t along the way", ylabel=tables.label("train", last, unit), xlim=(0, 1))
    left.set_title(f"Neurons of {notes['layer']}")
    if along.groupby(["l", "m"]).ngroups <= 10:
        left.legend(fontsize=7)
    shares = ", ".join(f"{100 * share:.0f} % {name}" for name, share in notes["shares"].items())
    return figure, f"To the permutation point (right: at t = 1/2) and back with the two exchanged. Ways: {shares}."


def found(study: Study) -> Iterator[str]:
    """How high the ways to permutation points climb."""
    for artifact in study.complete("permutations"):
        notes = artifact.notes()
        # A student's loss is the normalised squared error of the teacher's outputs.
        loss = "student's loss" if notes["teacher"] else "loss"
        unit = "" if notes["teacher"] else notes["units"]["loss"]
        high, between = (tables.quantity(notes[name], unit) for name in ("highest", "between"))
        yield (
            f"Exchanging neurons of {notes['layer']} at minimum {notes['minimum']} takes a {loss} of at most {high} "
            f"where descents end, and {between} was seen on the way from one to the next."
        )


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    for artifact in study.complete("permutations"):
        figure, caption = permutations_figure(artifact)
        title = f"Permutations from minimum {artifact.notes()['minimum']}"
        yield save(figure, folder, f"permutations-{artifact.name}", title, caption)


def shown_tables(study: Study) -> Iterator[Table]:
    table = permutations(study)
    words = tables.fractions(tables.units(study)) if len(table) else ()
    note = (
        "The lowest and highest of the pairs; barriers are of the ends of the descents, between is the highest loss "
        "that was seen on the way from one to the next; rising, saddle, falling, flat: the shares of the ways that "
        "rise to the point, have a saddle before it, have a minimum there, and along which the loss does not "
        "change."
    )
    main = (*MAIN, *(f"train_{metric}_highest" for metric in words), *CLASSES)
    shares = (*CLASSES, "share")
    yield Table("report/permutations.csv", table, "Permutation points", note, main, fractions=shares, percent=words)


SHOWN = Shown("Permutations", found, draw, shown_tables)
