"""Figures of permutation paths."""

from __future__ import annotations

from pathlib import Path

from lowloss.report.pictures import Picture, panels, save
from lowloss.study import Artifact


def draw_permutations(artifact: Artifact, folder: Path) -> Picture:
    """The loss by the distance of the two neurons, as in figs 1 and 3 of Brea et al. 2019, and the metric along t."""
    notes = artifact.notes()
    metric = f"train_{list(notes['units'])[-1]}"
    along = artifact.table("along.csv", ["l", "m", "t", "distance", "loss", metric])
    figure, ((left, right),) = panels(10, 3.6, 1, 2)
    for (first, second), way in along.groupby(["l", "m"]):
        half = way[(way["t"] <= 0.25) & (way["distance"] > 0)]
        left.plot(half["distance"], half["loss"], linewidth=1.4, label=f"{first} and {second}")
        right.plot(way["t"], way[metric], linewidth=1.4)
    left.set(xscale="log", xlabel="distance of the two neurons", ylabel="loss of the descent")
    right.set(xlabel="t along the way", ylabel=metric.replace("_", " "), xlim=(0, 1))
    left.set_title(f"Neurons of {notes['layer']}")
    if along.groupby(["l", "m"]).ngroups <= 10:
        left.legend(fontsize=7)
    shares = ", ".join(f"{100 * share:.0f} % {name}" for name, share in notes["shares"].items())
    told = f"To the permutation point (right: at t = 1/2) and back with the two exchanged. Ways: {shares}."
    return save(figure, folder, f"permutations-{artifact.name}", f"Permutations from minimum {notes['minimum']}", told)
