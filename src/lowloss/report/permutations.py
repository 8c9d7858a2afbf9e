"""Figures of permutation paths."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from lowloss.report import tables
from lowloss.report.looks import look
from lowloss.report.pictures import Picture, Shown, panels, save
from lowloss.study import Artifact, Study


def draw_permutations(artifact: Artifact, folder: Path) -> Picture:
    """The loss by the distance of the two neurons, as in figs 1 and 3 of Brea et al. 2019, and the metric along t."""
    notes = artifact.notes()
    metric = f"train_{list(notes['units'])[-1]}"
    along = artifact.table("along.csv", ["l", "m", "t", "distance", "loss", metric])
    figure, ((left, right),) = panels(10, 3.6, 1, 2)
    for place, ((first, second), way) in enumerate(along.groupby(["l", "m"])):
        half = way[(way["t"] <= 0.25) & (way["distance"] > 0)]
        left.plot(half["distance"], half["loss"], linewidth=1.4, label=f"{first} and {second}", **look(place).line)
        right.plot(way["t"], way[metric], linewidth=1.4, **look(place).line)
    left.set(xscale="log", xlabel="distance of the two neurons", ylabel="loss of the descent")
    right.set(xlabel="t along the way", ylabel=metric.replace("_", " "), xlim=(0, 1))
    left.set_title(f"Neurons of {notes['layer']}")
    if along.groupby(["l", "m"]).ngroups <= 10:
        left.legend(fontsize=7)
    shares = ", ".join(f"{100 * share:.0f} % {name}" for name, share in notes["shares"].items())
    told = f"To the permutation point (right: at t = 1/2) and back with the two exchanged. Ways: {shares}."
    return save(figure, folder, f"permutations-{artifact.name}", f"Permutations from minimum {notes['minimum']}", told)


def found(study: Study) -> Iterator[str]:
    """How high the ways to permutation points climb."""
    for artifact in study.complete("permutations"):
        notes = artifact.notes()
        unit = notes["units"]["loss"]
        yield (
            f"Exchanging two neurons of {notes['layer']} at minimum {notes['minimum']} climbs to a loss of at most "
            f"{tables.quantity(notes['highest'], unit)}."
        )


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    for artifact in study.complete("permutations"):
        yield draw_permutations(artifact, folder)


SHOWN = Shown("Permutations", found, draw)
