"""Tables of a study, read from its artifacts."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import isnan, nan
from typing import Any

import networkx as nx
import pandas as pd

from lowloss.runs import Study

SUMMARY = [
    "finder", "start", "end", "status", "pivots", "length_ratio", "min_train_loss", "saddle_train_loss",
    "barrier_train_loss", "min_test_loss", "saddle_test_loss", "min_test_error", "saddle_test_error",
    "gradient_evaluations",
]  # fmt: skip

TABLE_B1 = [
    "finder", "paths", "train_loss_min", "train_loss_saddle", "factor", "test_loss_min", "test_loss_saddle",
    "test_error_min", "test_error_saddle", "delta",
]  # fmt: skip


def summary(study: Study) -> pd.DataFrame:
    """A row a path: losses in nats, errors as fractions, lengths relative to the distance of the ends.

    min_*: mean of the path's two ends. saddle_*: the highest value along the path, each metric for itself.
    barrier_train_loss: the highest train loss above the linear interpolation of the end losses.
    """
    rows = [artifact.load()[1] for artifact in study.complete("paths")]
    return pd.DataFrame([{name: row[name] for name in SUMMARY} for row in rows], columns=SUMMARY)


def minima(study: Study) -> pd.DataFrame:
    """A row a minimum: exact loss (nats) and error (fraction) on both splits."""
    columns = ["train_loss", "train_error", "test_loss", "test_error"]
    rows = [
        {"minimum": int(artifact.name), **{name: notes[name] for name in columns}}
        for artifact in study.complete("minima")
        for notes in [artifact.load()[1]]
    ]
    return pd.DataFrame(rows, columns=["minimum", *columns])


def ensembles(study: Study) -> pd.DataFrame:
    """A row a method: members, error (fraction) and negative log-likelihood (nats) on the test split."""
    columns = ["method", "members", "test_error", "test_nll"]
    rows = [row for artifact in study.complete("ensembles") for row in artifact.load()[1]["rows"]]
    return pd.DataFrame(rows, columns=columns).drop_duplicates(ignore_index=True)


def table_b1(paths: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The columns of table B.1 of Draxler et al. 2018, a row a finder; see low_and_high."""
    rows = low_and_high(paths.to_dict("records"), points.to_dict("records"))
    return pd.DataFrame(rows, columns=TABLE_B1)


def low_and_high(paths: Sequence[Mapping[Any, Any]], points: Sequence[Mapping[Any, Any]]) -> list[list[Any]]:
    """The rows of table B.1 from the rows of `summary` and `minima`.

    Saddles are averaged over the minimum spanning tree of the finder's paths, by saddle train loss; minima over
    those that the tree connects. factor: saddle over minimum train loss. Errors and delta are in per cent.
    """
    levels = {row["minimum"]: row for row in points}
    graphs: dict[str, nx.Graph[int]] = {}
    for path in paths:
        graph = graphs.setdefault(path["finder"], nx.Graph())
        # A path on which the loss is not finite connects nothing.
        if not isnan(path["saddle_train_loss"]):
            graph.add_edge(path["start"], path["end"], weight=path["saddle_train_loss"], path=path)
    rows = []
    for finder, graph in graphs.items():
        tree = [data["path"] for _, _, data in nx.minimum_spanning_edges(graph)]
        ends = [levels[k] for k in graph.nodes if k in levels]
        low, high = _mean(ends, "train_loss"), _mean(tree, "saddle_train_loss")
        error_low, error_high = 100 * _mean(ends, "test_error"), 100 * _mean(tree, "saddle_test_error")
        rows.append(
            [finder, len(tree), low, high, high / low if low else nan, _mean(ends, "test_loss"),
             _mean(tree, "saddle_test_loss"), error_low, error_high, error_high - error_low]
        )  # fmt: skip
    return rows


def _mean(rows: Sequence[Mapping[Any, Any]], column: str) -> float:
    return sum(row[column] for row in rows) / len(rows) if rows else nan
