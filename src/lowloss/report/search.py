"""Figures of path searches: snapshots over the cycles, learning curves, coordinates, and classes along a path.

Shapes: T points along a path, B bends (ends included), P parameters, C classes.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import yaml

from lowloss.report import tables
from lowloss.report.looks import PALETTE, look
from lowloss.report.pictures import LENGTH, Picture, panels, save
from lowloss.study import Artifact, Study

SHOWN = 10
"""Coordinates in one panel, and classes that get a colour of their own."""


def draw_searches(study: Study, folder: Path) -> list[Picture]:
    """Every figure of the searches; of each finder that searches, its first path serves as the example."""
    pictures = []
    examples: dict[str, Artifact] = {}
    for artifact in study.complete("paths"):
        notes = artifact.notes()
        if notes["status"] != "exact":
            examples.setdefault(notes["finder"], artifact)
    for finder, artifact in examples.items():
        tensors, notes = artifact.load()
        title = f"{finder} {notes['start']}–{notes['end']}"
        if any(tensor.numel() for name, tensor in tensors.items() if name.startswith("snapshot-")):
            pictures.append(_snapshots(artifact, tensors, title, folder))
        pictures.append(_coordinates(artifact, tensors, notes, title, folder))
        if "test_class_error" in tensors:
            pictures.append(_classes(artifact, tensors, title, folder))
    if examples and not tables.learning_curve(study, tables.minima(study)["minimum"].tolist()).empty:
        pictures.append(_learning(study, list(examples), folder))
    return pictures


def _snapshots(artifact: Artifact, tensors: dict[str, Any], title: str, folder: Path) -> Picture:
    """Fig. 4 of Draxler et al. 2018: the loss along the band after each cycle."""
    snapshots = [tensors[name].numpy() for name in sorted(tensors) if name.startswith("snapshot-")]
    settings = yaml.safe_load((artifact.folder / "config.yaml").read_text(encoding="utf-8"))["finder"]
    (between,) = (finder.get("evaluations") for finder in settings.values())
    rates = artifact.table("metrics.csv", ["phase", "lr"]).astype({"phase": int}).groupby("phase")["lr"].first()
    columns = min(5, len(snapshots))
    rows = -(-len(snapshots) // columns)
    figure, axes = panels(3 * columns, 2.8 * rows, rows, columns, sharey=True)
    for axis in axes.flat[len(snapshots) :]:
        axis.remove()
    for i, (axis, (t_T, loss_T)) in enumerate(zip(axes.flat, snapshots, strict=False)):
        axis.plot(t_T, loss_T, color=PALETTE[0], linewidth=1.2)
        if between:
            axis.plot(t_T[:: between + 1], loss_T[:: between + 1], "o", color=PALETTE[1], markersize=4)
        axis.set(title=f"cycle {i + 1}, lr {rates[i]:g}", xlabel="t", xlim=(0, 1))
    for axis in axes[:, 0]:
        axis.update_datalim([(0, 0)])  # so that what is highest has a margin
        axis.autoscale_view()
        axis.set(ylabel="minibatch loss", ylim=(0, None))
    caption = (
        f"As fig. 4 of Draxler et al. 2018, {title}: the loss on one minibatch in training mode where AutoNEB looked "
        "after a cycle; dots are the pivots of that cycle."
    )
    return save(figure, folder, f"snapshots-{artifact.name}", "The band over the cycles", caption, tab=title)


def _coordinates(
    artifact: Artifact, tensors: dict[str, Any], notes: dict[str, Any], title: str, folder: Path
) -> Picture:
    """Fig. 7 of Draxler et al. 2018: how far coordinates are from the straight line along the path."""
    from lowloss.points.path import path_from_tensors

    path = path_from_tensors(notes["kind"], tensors)
    bends_BP, t_T = path.bends_BP.double().numpy(), tensors["t"]
    weights_TB = path.coefficients(t_T).numpy()
    # A curve is linear in its bends: where they deviate, it does.
    position_B = tensors["knots"].numpy() if "knots" in tensors else np.linspace(0, 1, len(bends_BP))
    deviation_P = np.abs(bends_BP - bends_BP[0] - position_B[:, None] * (bends_BP[-1] - bends_BP[0])).max(0)
    farthest = np.argsort(deviation_P)[::-1][:SHOWN]
    random = np.random.default_rng(0).choice(len(deviation_P), min(SHOWN, len(deviation_P)), replace=False)
    figure, (axes,) = panels(10, 4, 1, 2)
    for axis, chosen, name in zip(axes, (farthest, random), ("deviate most", "were drawn at random"), strict=True):
        along_TK = weights_TB @ bends_BP[:, chosen]
        straight_TK = np.outer(1 - t_T, bends_BP[0, chosen]) + np.outer(t_T, bends_BP[-1, chosen])
        axis.plot(tensors["arc"], np.abs(along_TK) - np.abs(straight_TK), color=PALETTE[0], linewidth=1)
        axis.set(xlim=(0, 1), xlabel=LENGTH, title=f"The {len(chosen)} coordinates that {name}")
        loss = axis.twinx()
        loss.plot(tensors["arc"], tensors["train_loss"], color=PALETTE[1], linewidth=1.6)
        loss.update_datalim([(0, 0)])
        loss.set(ylim=(0, None))
        loss.grid(False)
    axes[0].set(ylabel="|θ| − |θ| on the straight line")
    loss.set(ylabel="train loss")
    caption = (
        f"As fig. 7 of Draxler et al. 2018, {title}: blue: |θ| minus that of the straight line (negative is closer to "
        "the origin); orange: the train loss."
    )
    return save(figure, folder, f"coordinates-{artifact.name}", "Coordinates along a path", caption, tab=title)


def _classes(artifact: Artifact, tensors: dict[str, Any], title: str, folder: Path) -> Picture:
    figure, (axes,) = panels(10, 3.6, 1, 2)
    arc_T, labels = tensors["arc"], {"error": "test error (%)", "confidence": "mean confidence (%)"}
    # Colours for those whose error changes most, the same in both panels; the others in grey.
    order = np.argsort(np.nan_to_num(np.ptp(tensors["test_class_error"].numpy(), axis=0), nan=-1))[::-1]
    for axis, (metric, label) in zip(axes, labels.items(), strict=True):
        by_class_TC = 100 * tensors[f"test_class_{metric}"].numpy()
        for rank, c in enumerate(order):
            line = look(int(c)).line if rank < SHOWN else {"color": "#d5d9de"}
            axis.plot(arc_T, by_class_TC[:, c], linewidth=1.2, label=str(c), zorder=3 - rank / 1000, **line)
        axis.plot(arc_T, 100 * tensors[f"test_{metric}"], color="black", linewidth=2, label="all", zorder=4)
        axis.set(xlim=(0, 1), xlabel=LENGTH, ylabel=label)
    handles, names = axes[0].get_legend_handles_labels()
    axes[1].legend(handles[:SHOWN] + handles[-1:], names[:SHOWN] + names[-1:], fontsize=7, loc="center left",
                   bbox_to_anchor=(1, 0.5))  # fmt: skip
    caption = f"Test error and confidence (probability of the predicted class) of each class along {title}."
    return save(figure, folder, f"classes-{artifact.name}", "Classes along a path", caption, tab=title)


def _learning(study: Study, finders: list[str], folder: Path) -> Picture:
    """Fig. 6 of Draxler et al. 2018: how late in training the loss falls below the saddles."""
    trees = tables.spanning_trees(tables.summary(study))
    minima = sorted({int(k) for finder in finders for end in ("start", "end") for k in trees[finder][end]})
    curve = tables.learning_curve(study, minima)
    figure, ((axis,),) = panels(7, 4)
    axis.plot(curve.index, curve, color="black", label=f"minibatch train loss, mean of {len(minima)} minima")
    for finder in finders:
        level, own = trees[finder]["saddle_train_loss"].mean(), look(finder)
        last, _ = tables.falls_below(curve, level)
        when = "" if np.isnan(last) else f", epoch {last:.0f}"
        axis.axhline(level, **own.line, label=f"{finder}: mean saddle{when}")
        if not np.isnan(last):
            axis.axvline(last, color=own.colour, linewidth=0.8)
    axis.set(xlabel="epoch", ylabel="train loss", yscale="log", xlim=(0, None))
    axis.legend()
    caption = (
        "As fig. 6 of Draxler et al. 2018. The learning curve is the minibatch loss in training mode, augmentation "
        "included; saddles are exact, on the un-augmented data."
    )
    return save(figure, folder, "learning", "The saddles in the learning curve", caption)
