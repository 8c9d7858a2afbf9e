"""The table of paths, against the points of along.csv."""

import csv

import numpy as np
import pytest

from lowloss.files import load_tensors


def test_min_int_max_and_mean_of_every_path(whole):
    with (whole.root / "report" / "curves.csv").open(newline="") as lines:
        rows = {(row["finder"], row["start"], row["end"]): row for row in csv.DictReader(lines)}
    assert ("single", "0", "1") in rows
    for finder, decay in (("bezier", 5e-4), ("line", 1e-4), ("autoneb", 1e-4)):
        folder = whole.root / "paths" / f"0000-0001-{finder}"
        with (folder / "along.csv").open(newline="") as lines:
            along = list(csv.DictReader(lines))
        column = {name: np.array([float(row[name]) for row in along]) for name in along[0]}
        tensors, _ = load_tensors(folder / "result.safetensors")
        bends, row = tensors["bends"].double().numpy(), rows[finder, "0", "1"]
        # The L2 term at the ends, from the minima themselves.
        assert column["l2"][[0, -1]] == pytest.approx([decay / 2 * (bends[end] ** 2).sum() for end in (0, -1)])
        values = column["train_loss"] + column["l2"]
        assert float(row["train_loss_l2_min"]) == pytest.approx(values.min())
        assert float(row["train_loss_l2_max"]) == pytest.approx(values.max())
        assert float(row["train_loss_l2_int"]) == pytest.approx(np.trapezoid(values, column["arc"]))
        assert float(row["train_loss_l2_mean"]) == pytest.approx(np.trapezoid(values, column["t"]))
        assert float(row["test_error_int"]) == pytest.approx(100 * np.trapezoid(column["test_error"], column["arc"]))
    ends = 100 * column["test_error"][[0, -1]]
    single = rows["single", "0", "1"]
    assert [float(single[f"test_error_{level}"]) for level in ("min", "max")] == pytest.approx([ends.min(), ends.max()])
    assert single["length_ratio"] == single["test_error_int"] == ""
