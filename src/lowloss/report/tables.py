"""Tables of a study, read from its artifacts."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations, product
from math import isnan, nan
from typing import Any

import numpy as np
import pandas as pd

from lowloss.spanning import spanning_tree
from lowloss.study import Artifact, Study

Units = Mapping[str, str]
"""Of a task's metrics, by their names, the loss first."""

AUGMENTED = ("min_train_loss_augmented", "saddle_train_loss_augmented")
"""Columns of summary.csv where paths were measured on augmented images too."""

CLASSIFICATION: Units = {"loss": "nats", "error": "fraction"}
"""What a study without results is taken to be about."""


def units(study: Study) -> Units:
    """Of the study's metrics."""
    first = next((artifact for kind in study.kinds for artifact in study.complete(kind)), None)
    return (first.notes().get("units") if first else None) or CLASSIFICATION


def scale(unit: str) -> float:
    """By what a value is multiplied to be shown: fractions are shown in per cent."""
    return 100.0 if unit == "fraction" else 1.0


def quantity(value: float, unit: str, digits: int = 2) -> str:
    """A value in a sentence, with its unit."""
    shown = f"{scale(unit) * value:.{digits}g}"
    return f"{shown} %" if unit == "fraction" else f"{shown} {unit}".strip()


def fractions(of: Units) -> tuple[str, ...]:
    """The metrics that are fractions."""
    return tuple(metric for metric, unit in of.items() if unit == "fraction")


def label(split: str, metric: str, unit: str) -> str:
    """A metric of a split as axes call it, with its unit."""
    shown = "%" if unit == "fraction" else unit
    return f"{split} {metric} ({shown})" if shown else f"{split} {metric}"


HEADINGS = {
    "barrier_train_loss": "barrier", "barrier_above_ends_train_loss": "barrier above ends", "delta": "Δ error [%]",
    "pivots": "inner bends", "gradient_evaluations": "gradients", "length_ratio": "length / distance",
    "epoch_first": "epoch (first)", "saddle_train_loss": "train loss at the saddle",
    "train_loss_saddle": "train loss at the saddle",
}  # fmt: skip
"""Columns in words, where these are others."""

LEVELS = {
    r"min_(train|test)_(\w+)": r"\1 \2 of the ends",
    r"saddle_(train|test)_(\w+)": r"highest \1 \2",
    r"(train|test)_(\w+)_at_saddle": r"\1 \2 at the saddle",
    r"(train|test)_(\w+)_saddle": r"highest \1 \2",
    r"(train|test)_(\w+)_max": r"highest \1 \2",
    r"(train|test)_(\w+)_int": r"\1 \2, mean over the length",
    r"(train|test)_(\w+)_mean": r"\1 \2, mean over t",
}
"""Columns of paths in words: of the train loss the highest value is the saddle's, the others' may lie elsewhere."""


def heading(column: str, beside: Iterable[str] = ()) -> str:
    """A column in words. beside: the others of its table."""
    named = HEADINGS.get(column, column)
    for pattern, words in LEVELS.items():
        named = re.sub(f"^{pattern}$", words, named)
    if found := re.fullmatch(r"((?:train|test)_\w+)_min", named):
        named = f"lowest {found[1]}" if f"{found[1]}_max" in beside else f"{found[1]} of the minima"
    return named.replace("_", " ")


def summary_columns(of: Units) -> list[str]:
    """The columns of summary.csv."""
    head = ["finder", "start", "end", "status", "pivots", "length_ratio", "saddle_arc", "saddle_bracket"]
    train = [f"{level}_train_loss" for level in ("min", "saddle", "barrier", "barrier_above_ends")]
    tests = [name for m in of for name in (f"min_test_{m}", f"saddle_test_{m}", f"test_{m}_at_saddle")]
    bands = ["residuum", "force", "force_at_top", "force_left", "spacing_spread"]
    return [*head, *train, *tests, *bands, "gradient_evaluations"]


def table_b1_columns(of: Units) -> list[str]:
    """The columns of table_b1.csv."""
    tests = [f"test_{metric}_{level}" for metric in of for level in ("min", "saddle")]
    head = ["finder", "paths", "train_loss_min", "train_loss_saddle", "factor", "epoch", "epoch_first"]
    return [*head, *tests, *(["delta"] if "error" in of else []), "barrier_train_loss"]


def summary(study: Study) -> pd.DataFrame:
    """A row a path: losses, errors as fractions, lengths relative to the distance of the ends.

    The columns are those of `training.along.levels`, and of bands those of `NEB.quality`.
    """
    rows, columns = [artifact.notes() for artifact in study.complete("paths")], summary_columns(units(study))
    columns += [name for name in AUGMENTED if any(name in row for row in rows)]
    return pd.DataFrame([{name: row.get(name, nan) for name in columns} for row in rows], columns=columns)


REMEDIES = {
    "undersampled": "give them pivots, or cycles",
    "unrelaxed": "give them steps, or pivots, or let the highest one climb",
}
"""By the status of a band that has not converged."""


def doubts(paths: Sequence[Mapping[Any, Any]]) -> list[str]:
    """A line for each finder and reason for which its saddles may be too high: bands that have not converged, and paths
    clearly above others of the same pairs, since a search that ended need not be the lowest.

    A path is, where its saddle is higher than another's by more than a tenth of what it rises above its higher end.
    """
    lines, lowest = [], dict[tuple[int, int], Mapping[Any, Any]]()
    for path in sorted(paths, key=lambda path: -path["saddle_train_loss"]):
        lowest[path["start"], path["end"]] = path
    for finder in dict.fromkeys(path["finder"] for path in paths):
        own = [path for path in paths if path["finder"] == finder and path["status"] != "exact"]
        for status, remedy in REMEDIES.items():
            if count := sum(path["status"] == status for path in own):
                lines.append(f"{finder} is {status} on {count} of {len(own)} pairs: {remedy}")
        found = []
        for path in own:
            low = lowest[path["start"], path["end"]]
            above = path["saddle_train_loss"] - low["saddle_train_loss"]
            if above > 0.1 * path["barrier_above_ends_train_loss"]:
                found.append((above, path, low))
        if found:
            _, path, low = max(found, key=lambda one: one[0])
            lines.append(
                f"{finder} is not the lowest on {len(found)} of {len(own)} pairs, at most so on {path['start']}–"
                f"{path['end']}: {path['saddle_train_loss']:.4g}, by {low['finder']} {low['saddle_train_loss']:.4g}"
            )
    return lines


def minima(study: Study) -> pd.DataFrame:
    """A row a minimum: the exact metrics on every split."""
    rows = [minimum_row(artifact, artifact.notes()) for artifact in study.complete("minima")]
    names = [f"{split}_{metric}" for split in ("train", "test") for metric in units(study)]
    return pd.DataFrame(rows, columns=None if rows else ["minimum", *names])


def mean_minimum(points: pd.DataFrame, of: Units) -> pd.DataFrame:
    """One row of the rows of `minima`: how many, the mean of each metric, and the standard deviation over the seeds,
    NaN for one minimum. Fractions are in per cent."""
    row: dict[str, Any] = {"method": "single", "minima": len(points)}
    for split, (metric, unit) in product(("train", "test"), of.items()):
        values = scale(unit) * points[f"{split}_{metric}"].astype(float)
        row |= {f"{split}_{metric}": values.mean(), f"{split}_{metric}_std": values.std()}
    return pd.DataFrame([row] if len(points) else [], columns=[*row])


def minimum_row(artifact: Artifact, notes: Mapping[str, Any]) -> dict[str, Any]:
    """Index and levels of a minimum."""
    metrics = notes.get("units") or CLASSIFICATION
    levels = {name: value for name, value in notes.items() if name.partition("_")[2] in metrics}
    return {"minimum": int(artifact.name), **{f"train_{m}": notes[f"train_{m}"] for m in metrics}, **levels}


def ensembles(study: Study) -> pd.DataFrame:
    """A row a method: members, and the task's metrics on the test split."""
    columns = ["method", "members", *(f"test_{metric}" for metric in units(study))]
    rows = [row for artifact in study.complete("ensembles") for row in artifact.load()[1]["rows"]]
    return pd.DataFrame(rows, columns=columns).drop_duplicates(ignore_index=True)


def spanning_trees(paths: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """The paths of each finder's minimum spanning tree, by saddle train loss."""
    groups = paths.groupby("finder", sort=False)
    return {str(finder): group.iloc[tree_places(group.to_dict("records"))] for finder, group in groups}


def tree_places(paths: Sequence[Mapping[Any, Any]]) -> list[int]:
    """The places of those of a finder's paths that make the minimum spanning tree, the lowest saddle first.

    A path on which the loss is not a number connects nothing.
    """
    if len(paths) == 1:
        return [] if isnan(paths[0]["saddle_train_loss"]) else [0]
    places = {(min(p["start"], p["end"]), max(p["start"], p["end"])): place for place, p in enumerate(paths)}
    named = sorted({k for pair in places for k in pair})
    order = {k: i for i, k in enumerate(named)}
    losses = {(order[i], order[j]): paths[place]["saddle_train_loss"] for (i, j), place in places.items()}
    tree = spanning_tree(len(named), {pair: loss for pair, loss in losses.items() if not isnan(loss)})
    return [places[named[i], named[j]] for i, j in reversed(tree)]


def low_and_high(paths: Sequence[Mapping[str, Any]], points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """For each finder the mean levels of minima and saddles, as in table B.1 of Draxler et al. 2018, as they are.

    Saddles are averaged over the minimum spanning tree of the finder's paths, by saddle train loss; minima over those
    that the tree connects, which are `ends`.
    """
    levels = {row["minimum"]: row for row in points}
    rows = []
    for finder in dict.fromkeys(path["finder"] for path in paths):
        own = [path for path in paths if path["finder"] == finder]
        tree = [own[place] for place in tree_places(own)]
        ends = sorted({k for path in tree for k in (path["start"], path["end"])} & {*levels})
        row: dict[str, Any] = {"finder": finder, "paths": len(tree), "ends": ends}
        for name in own[0]:
            metric = name.removeprefix("saddle_")
            if metric != name and "_" in metric:
                row[f"{metric}_min"] = _mean([levels[k][metric] for k in ends if metric in levels[k]])
                row[f"{metric}_saddle"] = _mean([path[name] for path in tree if name in path])
        row["barrier_train_loss"] = _mean([path["barrier_train_loss"] for path in tree if "barrier_train_loss" in path])
        rows.append(row)
    return rows


def _mean(values: Sequence[float]) -> float:
    return float(np.mean(values)) if values else nan


def table_b1(study: Study, paths: pd.DataFrame, points: pd.DataFrame) -> pd.DataFrame:
    """The columns of table B.1 of Draxler et al. 2018, a row a finder, from `low_and_high`.

    factor: saddle over minimum train loss. epoch and epoch_first: where the learning curve (the minima's mean) falls
    below the saddle loss for the last and for the first time; empty if it ends above. test_<metric>_saddle: the highest
    value on the path, which need not be at its saddle. Fractions and delta, the difference of the test errors, are in
    per cent.
    """
    of, rows = units(study), []
    for found in low_and_high(paths.to_dict("records"), points.to_dict("records")):  # type: ignore[arg-type]
        row, high = dict(found), found["train_loss_saddle"]
        for metric, unit in of.items():
            for level in ("min", "saddle"):
                row[f"test_{metric}_{level}"] *= scale(unit)
        row["factor"] = high / row["train_loss_min"] if row["train_loss_min"] else nan
        row["epoch"], row["epoch_first"] = falls_below(learning_curve(study, row["ends"]), high)
        if "error" in of:
            row["delta"] = row["test_error_saddle"] - row["test_error_min"]
        rows.append(row)
    return pd.DataFrame(rows, columns=table_b1_columns(of))


def learning_curve(study: Study, minima: list[int]) -> pd.Series[float]:
    """The mean minibatch train loss of these minima in each epoch, as it was in training; the index is the epoch."""
    artifacts = [artifact for artifact in study.complete("minima") if int(artifact.name) in minima]
    if not minima or len(artifacts) < len(minima) or not all("metrics.csv" in a.record()[0] for a in artifacts):
        return pd.Series(dtype=float)  # trained elsewhere, removed since, or damaged
    found = [artifact.table("metrics.csv", ["step", "train_loss"]) for artifact in artifacts]
    curves = [history.set_index(history["step"] / history["step"].iloc[0])["train_loss"] for history in found]
    return pd.concat(curves, axis=1).mean(axis=1)


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
        if "test_class_error" not in tensors:
            continue
        head, saddle = [notes[name] for name in ("finder", "start", "end")], int(tensors["train_loss"].argmax())
        for c, columns in enumerate(
            zip(tensors["test_class_error"].T, tensors["test_class_confidence"].T, strict=True)
        ):
            levels = [float(level) for column_T in columns for level in (column_T[[0, -1]].mean(), column_T[saddle])]
            rows.append([*head, c, *levels, float(columns[0].max())])
    levels_of = [f"{metric}_{level}" for metric in ("error", "confidence") for level in ("ends", "saddle")]
    return pd.DataFrame(rows, columns=["finder", "start", "end", "class", *levels_of, "error_highest"])
