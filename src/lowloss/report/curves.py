"""The properties of paths, as in table 2 of Garipov et al. 2018."""

from __future__ import annotations

from typing import Any

import pandas as pd
from scipy.integrate import trapezoid

from lowloss.report import tables
from lowloss.study import Study


def curves(study: Study) -> pd.DataFrame:
    """A row a path, and before it a row `single` of its two ends: length ratio, and of each metric min, int, max, mean.

    int: the mean over the path's length, by the trapezoidal rule over the sampled points; of the train loss with the L2
    term (train_loss_l2) it is loss (1) of the paper; over augmented images (train_loss_augmented_l2) the loss is what
    the authors' code reports.  mean: that over t, loss (3).  Fractions are in per cent.
    """
    units = tables.units(study)
    rows, singles = list[dict[str, Any]](), set[tuple[int, int]]()
    for artifact in study.complete("paths"):
        tensors, notes = artifact.load()
        if "l2" not in tensors:
            continue
        columns = {"train_loss_l2": tensors["train_loss"] + tensors["l2"]}
        if "train_loss_augmented" in tensors:
            columns["train_loss_augmented_l2"] = tensors["train_loss_augmented"] + tensors["l2"]
        splits = [name.removesuffix("_loss") for name in tensors if name.endswith("_loss") and name != "train_loss"]
        for split in ("train", *splits):
            columns |= {f"{split}_{m}": tables.scale(unit) * tensors[f"{split}_{m}"] for m, unit in units.items()}
        arc_T, t_T = tensors["arc"].numpy(), tensors["t"].numpy()
        pair = {"start": notes["start"], "end": notes["end"]}
        single: dict[str, Any] = {"finder": "single", **pair}
        row: dict[str, Any] = {"finder": notes["finder"], **pair, "length_ratio": notes["length_ratio"]}
        for name, column in columns.items():
            values_T = column.double().numpy()
            row |= {f"{name}_min": values_T.min(), f"{name}_int": float(trapezoid(values_T, arc_T))}
            row |= {f"{name}_max": values_T.max(), f"{name}_mean": float(trapezoid(values_T, t_T))}
            single |= {f"{name}_min": values_T[[0, -1]].min(), f"{name}_max": values_T[[0, -1]].max()}
        if (notes["start"], notes["end"]) not in singles:
            singles.add((notes["start"], notes["end"]))
            rows.append(single)
        rows.append(row)
    head = ["finder", "start", "end", "length_ratio"]
    return pd.DataFrame(rows, columns=None if rows else head)
