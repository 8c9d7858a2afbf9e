"""What the report shows of minima: their levels, the norms of their weights over training, and histograms of these.

Shapes: P parameters, B edges of bins.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pandas as pd
from matplotlib.figure import Figure

from lowloss import files
from lowloss.report import tables
from lowloss.report.looks import looks
from lowloss.report.pictures import Picture, Shown, Table, panels, save
from lowloss.study import Artifact, Source, Study

BINS = 100

MOST = 6
"""Minima in one figure at most."""


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


def norms(artifact: Artifact) -> pd.DataFrame:
    """The norm of all parameters of a minimum at the epochs at which it was kept, and at the end, a row each; of a
    minimum from a file, whose epochs nobody knows, the one at the end."""
    return _norms(artifact, artifact.digest)


@cache
def _norms(artifact: Artifact, _: str) -> pd.DataFrame:
    tensors, notes = artifact.load()
    kept = [*notes.get("trajectory_epochs", [])]
    found = [
        float(files.load_tensors(artifact.folder / "trajectory" / f"{e:04d}.safetensors")[0]["theta"].double().norm())
        for e in range(len(kept))
    ]
    end = float("nan")
    if "steps" in notes:
        end = notes["steps"] / artifact.table("metrics.csv", ["step"])["step"].iloc[0]
    if end not in kept:
        kept, found = [*kept, end], [*found, float(tensors["theta"].double().norm())]
    return pd.DataFrame({"minimum": int(artifact.name), "epoch": kept, "norm": found})


def histogram(artifacts: list[Artifact]) -> pd.DataFrame:
    """How many parameters of each minimum lie in common bins, a row a bin, a column a minimum."""
    theta = {int(artifact.name): artifact.load()[0]["theta"].double().numpy() for artifact in artifacts}
    edges = np.histogram_bin_edges([f(theta_P) for theta_P in theta.values() for f in (np.min, np.max)], BINS)
    counts = {f"minimum_{k}": np.histogram(theta_P, edges)[0] for k, theta_P in theta.items()}
    return pd.DataFrame({"from": edges[:-1], "to": edges[1:], **counts})


def _weighed(study: Study) -> list[Artifact]:
    """The minima whose weights are shown: those with a trajectory, and those from files."""
    every = [(artifact, artifact.notes()) for artifact in study.complete("minima")]
    return [one for one, notes in every if "trajectory_epochs" in notes or notes.get("status") == "checkpoint"]


def draw(study: Study, folder: Path) -> Iterator[Picture]:
    """The weights of minima as fig. 2 of Li et al. 2018 has them."""
    shown = _weighed(study)[:MOST]
    if not shown:
        return
    own = looks(f"minimum {int(artifact.name)}" for artifact in shown)
    curves = [curve for curve in map(norms, shown) if len(curve) > 1]
    figure, (axes,) = panels(5.5 * (1 + bool(curves)), 3.8, 1, 1 + bool(curves))
    table = histogram(shown)
    edges_B = [*table["from"], table["to"].iloc[-1]]
    for name, look in own.items():
        axes[0].stairs(table[name.replace(" ", "_")], edges_B, label=name, **look.line)
    axes[0].set(yscale="log", xlabel="weight", ylabel="how many", title="Weights at the end")
    axes[0].legend()
    for curve in curves:
        look = own[f"minimum {curve['minimum'].iloc[0]}"]
        axes[1].plot(curve["epoch"], curve["norm"], marker=look.marker, markersize=3, **look.line)
    if curves:
        axes[1].set(xlabel="epoch", ylabel="norm", title="Norm of the weights in training")
    caption = "All trainable parameters, biases and those of BatchNorm among them, as fig. 2 of Li et al. 2018."
    named = [f"minimum {int(one.name)} is {told['file']}" for one in shown if "file" in (told := one.notes())]
    if named:
        caption += f" Here {', '.join(named)}."
    yield save(figure, folder, "weights", "Weights", caption)


def learning_figure(minima: Sequence[Source], figure: Figure | None = None) -> Figure:
    """The minibatches' train loss of minima by the epoch."""
    figure, ((axis,),) = panels(6, 3.6, figure=figure)
    for name, look in looks(f"minimum {int(one.name)}" for one in minima).items():
        (one,) = (one for one in minima if name == f"minimum {int(one.name)}")
        history = one.table("metrics.csv", ["step", "train_loss"])
        axis.plot(history["step"] / history["step"].iloc[0], history["train_loss"], label=name, **look.line)
    unit = minima[0].notes()["units"]["loss"]
    axis.set(xlabel="epoch", ylabel=tables.label("minibatch train", "loss", unit), yscale="log", xlim=(0, None))
    axis.legend()
    return figure


def shown_tables(study: Study) -> Iterator[Table]:
    points, units = tables.minima(study), tables.units(study)
    note = "Means over the minima, and their standard deviations over the seeds."
    share = tables.fractions(units)
    typical = tables.mean_minimum(points, units)
    yield Table("report/minima.csv", typical, "Minima on average", note, percent=share)
    curves = [norms(artifact) for artifact in study.complete("minima")]
    ends = [curve["norm"].iloc[-1] for curve in curves]
    yield Table("report/each_minimum.csv", points.assign(norm=ends), "Every minimum", fractions=share)
    note = "Test samples that two minima misclassify, and those that both do, over the mean of the two numbers."
    overlap = tables.overlap(study)
    yield Table("report/overlap.csv", overlap, "Overlap of the misclassified", note, fractions=("overlap",))
    if any(len(curve) > 1 for curve in curves):
        yield Table("report/norms.csv", pd.concat(curves, ignore_index=True))
    if shown := _weighed(study):
        yield Table("report/weights.csv", histogram(shown))


SHOWN = Shown("Minima", found, draw, shown_tables)
