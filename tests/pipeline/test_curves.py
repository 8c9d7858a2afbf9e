"""The table of paths, against the points of along.csv."""

import csv
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from lowloss import LowlossError, NetworkLandscape
from lowloss.data import CropFlip, digits
from lowloss.data.base import AUGMENTED
from lowloss.files import load_tensors
from lowloss.jobs.paths import STAGE
from lowloss.model import MLP


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


def test_the_loss_over_augmented_images_along_a_path(lowloss, tmp_path):
    """The column is that of the landscape, at the ends of the line too, and its L2 term and levels are added up."""
    few = "model=mlp model.hidden=[6] minima.count=2 minima.epochs=1 finder=[line] path.points=3 path.bracket=1"
    crops = "+data.augment._target_=lowloss.data.CropFlip", "+data.augment.padding=1", "path.augmented=true"
    made = lowloss(tmp_path, *few.split(), "stages=[minima,path,report]", *crops)
    assert made.status == 0, made.err
    root = tmp_path / "t"
    tensors, _ = load_tensors(root / "paths" / "0000-0001-line" / "result.safetensors")
    data = digits(augment=CropFlip(padding=1))
    landscape = NetworkLandscape(lambda: MLP(data.input_shape, 10, [6]), data)
    theta_TP = torch.lerp(*tensors["bends"][:, None].double(), tensors["t"][:, None]).float()
    expected = landscape.evaluate(theta_TP, AUGMENTED)["loss"]
    found = tensors["train_loss_augmented"]
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)
    assert (found - tensors["train_loss"]).abs().min() > 1e-4
    with (root / "summary.csv").open(newline="") as lines:
        (row,) = csv.DictReader(lines)
    assert float(row["saddle_train_loss_augmented"]) == pytest.approx(float(expected.max()), rel=1e-4)
    assert float(row["min_train_loss_augmented"]) == pytest.approx(float(expected[[0, -1]].mean()), rel=1e-4)
    with (root / "report" / "curves.csv").open(newline="") as lines:
        single, line = csv.DictReader(lines)
    regularised = expected + tensors["l2"]
    assert float(line["train_loss_augmented_l2_max"]) == pytest.approx(float(regularised.max()), rel=1e-4)
    assert float(single["train_loss_augmented_l2_min"]) == pytest.approx(float(regularised[[0, -1]].min()), rel=1e-4)


def test_images_that_are_read_when_asked_for_are_refused():
    bench = SimpleNamespace(config={"path": {"augmented": True}}, finders={})
    STAGE.check_network(bench, SimpleNamespace(data=SimpleNamespace(requested=False)))
    with pytest.raises(LowlossError, match=r"path\.augmented=true keeps all augmented images.*set it to false"):
        STAGE.check_network(bench, SimpleNamespace(data=SimpleNamespace(requested=True)))
