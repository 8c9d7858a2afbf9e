"""Tables of a study, read from its artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import combinations
from math import isnan, nan
from typing import Any

import networkx as nx
import pandas as pd

from lowloss.runs import Artifact, Study

SUMMARY = [
    "finder", "start", "end", "status", "pivots", "length_ratio", "min_train_loss", "saddle_train_loss",
    "barrier_train_loss", "min_test_loss", "saddle_test_loss", "min_test_error", "saddle_test_error",
    "gradient_evaluations",
]  # fmt: skip

LEVELS = ["train_loss", "train_error", "test_loss", "test_error"]

TABLE_B1 = [
    "finder", "paths", "train_loss_min", "train_loss_saddle", "factor", "epoch", "epoch_first",
    "test_loss_min", "test_loss_saddle", "test_error_min", "test_error_saddle", "delta",
]  # fmt: skip


def summary(study: Study) -> pd.DataFrame:
    """A row a path: losses in nats, errors as fractions, lengths relative to the distance of the ends.

    min_*: mean of the path's two ends. saddle_*: the highest value along the path, each metric for itself.
    barrier_train_loss: the highest train loss above the linear interpolation of the end losses.
    """
    rows = [artifact.notes() for artifact in study.complete("paths")]
    return pd.DataFrame([{name: row[name] for name in SUMMARY} for row in rows], columns=SUMMARY)


def minima(study: Study) -> pd.DataFrame:
    """A row a minimum: exact loss (nats) and error (fraction) on both splits."""
    rows = [minimum_row(artifact, artifact.notes()) for artifact in study.complete("minima")]
    return pd.DataFrame(rows, columns=["minimum", *LEVELS])


def minimum_row(artifact: Artifact, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Index and levels of a minimum."""
    return {"minimum": int(artifact.name), **{name: notes[name] for name in LEVELS}}


def ensembles(study: Study) -> pd.DataFrame:
    """A row a method: members, error (fraction) and negative log-likelihood (nats) on the test split."""
    columns = ["method", "members", "test_error", "test_nll"]
    rows = [row for artifact in study.complete("ensembles") for row in artifact.load()[1]["rows"]]
    return pd.DataFrame(rows, columns=columns).drop_duplicates(ignore_index=True)


def beside_paper(overview: pd.DataFrame, paper: dict[str, Any]) -> pd.DataFrame:
    """The row that a paper published, then ours."""
    published = {"finder": paper["source"], **paper["row"]}
    ours = overview.assign(finder="here, " + overview["finder"]).to_dict("records")
    return pd.DataFrame([published, *ours], columns=TABLE_B1)


def spanning_trees(paths: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The paths of each finder's minimum spanning tree, by saddle train loss."""
    return {
        str(finder): group.iloc[spanning_tree(group.to_dict("records"))]
        for finder, group in paths.groupby("finder", sort=False)
    }


def spanning_tree(paths: Sequence[Mapping[Any, Any]]) -> list[int]:
    """The places of those of a finder's paths that make the minimum spanning tree, by saddle train loss."""
    graph: nx.Graph[int] = nx.Graph()
    for place, path in enumerate(paths):
        # A path on which the loss is not a number connects nothing.
        if not isnan(path["saddle_train_loss"]):
            graph.add_edge(path["start"], path["end"], weight=path["saddle_train_loss"], place=place)
    return [data["place"] for _, _, data in nx.minimum_spanning_edges(graph)]


def table_b1(study: Study, paths: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The columns of table B.1 of Draxler et al. 2018, a row a finder.

    Saddles are averaged over the finder's minimum spanning tree; minima over those that it connects. factor: saddle
    over minimum train loss. epoch and epoch_first: where the learning curve (the minima's mean) falls below the
    saddle loss for the last and for the first time; empty if it ends above. Errors and delta are in per cent.
    """
    rows = []
    for finder, tree in spanning_trees(paths).items():
        ends = points[points["minimum"].isin([*tree["start"], *tree["end"]])]
        low, high = ends["train_loss"].mean(), tree["saddle_train_loss"].mean()
        error_low, error_high = 100 * ends["test_error"].mean(), 100 * tree["saddle_test_error"].mean()
        curve = learning_curve(study, list(ends["minimum"]))
        rows.append(
            [finder, len(tree), low, high, high / low, *falls_below(curve, high), ends["test_loss"].mean(),
             tree["saddle_test_loss"].mean(), error_low, error_high, error_high - error_low]
        )  # fmt: skip
    return pd.DataFrame(rows, columns=TABLE_B1)


def learning_curve(study: Study, minima: list[int]) -> pd.Series[float]:
    """The mean minibatch train loss of these minima in each epoch, as it was in training; the index is the epoch."""
    curves = []
    for k in minima:
        history = study.artifact("minima", f"{k:04d}").table("metrics.csv", ["step", "train_loss"])
        curves.append(history.set_index(history["step"] / history["step"].iloc[0])["train_loss"])
    return pd.concat(curves, axis=1).mean(axis=1) if curves else pd.Series(dtype=float)


def falls_below(curve: pd.Series[float], level: float) -> tuple[float, float]:
    """The epochs after which a curve is below the level for good, and for the first time; NaN if it ends above."""
    above = curve >= level
    if above.empty or above.iloc[-1]:
        return nan, nan
    last = above.index[above][-1] if above.any() else 0.0
    return float(curve.index[curve.index > last][0]), float(curve.index[~above][0])


def overlap(study: Study) -> pd.DataFrame:
    """A row a pair of minima: test samples that each misclassifies, that both do, and these over their mean number."""
    loaded = {int(artifact.name): artifact.load()[0] for artifact in study.complete("minima")}
    # Minima of an older version do not tell.
    wrong = {k: tensors["test_wrong"] for k, tensors in loaded.items() if "test_wrong" in tensors}
    rows = []
    for i, j in combinations(wrong, 2):
        alone, shared = [int(wrong[k].sum()) for k in (i, j)], int((wrong[i] & wrong[j]).sum())
        rows.append([i, j, *alone, shared, 2 * shared / sum(alone) if sum(alone) else nan])
    return pd.DataFrame(rows, columns=["start", "end", "wrong_start", "wrong_end", "wrong_both", "overlap"])


def classes(study: Study) -> pd.DataFrame:
    """A row a path and class: test error and confidence (fractions) at the ends (their mean), at the point of highest
    train loss, and the highest error on the way."""
    rows = []
    for artifact in study.complete("paths"):
        tensors, notes = artifact.load()
        if "test_class_error" not in tensors:  # made by an older version
            continue
        saddle = int(tensors["train_loss"].argmax())
        error_TC, confidence_TC = tensors["test_class_error"], tensors["test_class_confidence"]
        for c in range(error_TC.shape[1]):
            levels = [
                level
                for column_T in (error_TC[:, c], confidence_TC[:, c])
                for level in (float(column_T[[0, -1]].mean()), float(column_T[saddle]))
            ]
            rows.append([notes["finder"], notes["start"], notes["end"], c, *levels, float(error_TC[:, c].max())])
    columns = [
        "finder", "start", "end", "class", "error_ends", "error_saddle", "confidence_ends", "confidence_saddle",
        "error_highest",
    ]  # fmt: skip
    return pd.DataFrame(rows, columns=columns)
