"""The stage curvature and maps of curvature, from the command line to the report."""

import csv
from html import unescape

import h5py
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from scipy.sparse.linalg import LinearOperator, eigsh

from lowloss import NetworkLandscape, export, load
from lowloss.data import digits
from lowloss.files import load_tensors
from lowloss.model import MLP
from lowloss.report.spectra import pits
from lowloss.seeding import derive

SETTINGS = ("curvature.samples=60", "curvature.tolerance=1e-5", "curvature.density.steps=12", "curvature.pivots=2",
            "curvature.layers=true")  # fmt: skip
PLANE = ("scan.random_plane.measures=[exact,curvature]", "scan.random_plane.resolution=[3,3]")


@pytest.fixture(scope="module")
def curved(lowloss, whole, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("curved")
    root = whole.copy(outputs, "report", "scans", "paths/0000-0002-autoneb", "minima/0002")
    made = lowloss.tiny(outputs, *ASKED)
    assert made.status == 0, made.err
    return outputs, root


ASKED = (
    *SETTINGS, *PLANE, "scan.random_plane.statistics=held", "stages=[curvature,scan,report]", "finder=[autoneb,bezier]",
    "minima.count=2",
)  # fmt: skip


def rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_spectra_are_loaded_drawn_and_exported(curved, tmp_path):
    _, root = curved
    study = load(root)
    assert study.spectra.frame["hessian_max"].tolist() == [
        float(r["hessian_max"]) for r in rows(root / "report/spectra.csv")
    ]
    path = study.spectra["0000-0001-autoneb"]
    assert len(path.frame) == len(path.tensors["t"])
    largest, smallest = path.plot()
    np.testing.assert_allclose(largest.lines[0].get_xydata(), path.frame[["t", "hessian_max"]])
    np.testing.assert_allclose(smallest.lines[0].get_xydata(), path.frame[["t", "hessian_min"]])
    (density,) = study.spectra["0000"].plot()
    assert density.get_legend_handles_labels()[1] == ["minimum 0"]
    plt.close("all")
    made = {file.name: file for file in export(root, ["h5"], tmp_path)}
    with h5py.File(made["random_plane-0000.h5"]) as archive:
        np.testing.assert_array_equal(archive["min_eig"], study.scans["random_plane-0000"].arrays["hessian_min"].T)
        assert "max_eig" in archive
        converged = study.scans["random_plane-0000"].arrays["hessian_converged"].T
        np.testing.assert_array_equal(archive["converged_eig"], converged)


def test_spectra_of_minima_and_paths_against_scipys_lanczos(curved):
    _, root = curved
    names = sorted(path.name for path in (root / "spectra").iterdir())
    assert names == ["0000", "0000-0001-autoneb", "0000-0001-bezier", "0001"]
    data = digits()
    land = NetworkLandscape(lambda: MLP(data.input_shape, 10, [16], batch_norm=True), data)
    batch = land.subset("train", 60, derive(derive(0, "curvature"), "hessian"))
    path, along = (
        load_tensors(root / kind / "0000-0001-autoneb" / "result.safetensors")[0] for kind in ("spectra", "paths")
    )
    # The ends, the highest point, and two of the inner pivots.
    assert {0.0, 1.0, along["t"][along["train_loss"].argmax()].item()} <= {*path["t"].tolist()}
    assert {*path["t"].tolist()} - {along["t"][along["train_loss"].argmax()].item()} <= {*along["knots"].tolist()}
    assert len(path["t"]) in (4, 5)
    for k in (0, 1):
        (row,) = rows(root / "spectra" / f"000{k}" / "spectra.csv")
        theta_1P = load_tensors(root / "minima" / f"000{k}" / "result.safetensors")[0]["theta"][None]
        operator = LinearOperator(
            (land.dim, land.dim),
            lambda v: land.product(theta_1P, torch.from_numpy(v).float()[None], batch)[0].double().numpy(),  # noqa: B023
        )
        low, high = np.sort(eigsh(operator, 1, which="SA", tol=1e-5, v0=np.ones(land.dim))[0])[0], 0.0
        high = eigsh(operator, 1, which="LA", tol=1e-5, v0=np.ones(land.dim))[0][0]
        assert float(row["hessian_max"]) == pytest.approx(high, rel=1e-4)
        assert float(row["hessian_min"]) == pytest.approx(low, abs=1e-4 * high)
        told = {name: row[name] for name in ("finder", "status", "split", "samples", "statistics", "start")}
        assert told == {
            "finder": "minimum", "status": "converged", "split": "train", "samples": "60", "statistics": "held",
            "start": str(k),
        }  # fmt: skip
        # A path's ends are the minima.
        assert path["hessian_max"][-k].item() == pytest.approx(high, rel=1e-4)
        minimum = rows(root / "report" / "spectra.csv")[0 if k == 0 else -1]
        assert minimum["hessian_max"] == row["hessian_max"]
    weights = path["hessian_weights"].sum(1).numpy()
    np.testing.assert_allclose(weights, 1, rtol=1e-6)


def test_layers_are_told_at_every_point(curved):
    _, root = curved
    table = rows(root / "report" / "curvature_layers.csv")
    data = digits()
    layout = NetworkLandscape(lambda: MLP(data.input_shape, 10, [16], batch_norm=True), data).layout
    assert [row["layer"] for row in table][: len(layout.blocks())] == [*layout.blocks()]
    whole = rows(root / "report" / "spectra.csv")
    assert len(table) == len(whole) * len(layout.blocks())
    for place, point in enumerate(whole):
        own = table[place * len(layout.blocks()) : (place + 1) * len(layout.blocks())]
        assert {(row["finder"], row["start"], row["t"]) for row in own} == {
            (point["finder"], point["start"], point["t"])
        }
        assert sum(int(row["parameters"]) for row in own) == layout.dim
        # Eigenvalues of blocks interlace, within what has converged.
        low, high = float(point["hessian_min"]), float(point["hessian_max"])
        assert all(float(row["hessian_max"]) <= high * (1 + 1e-3) for row in own)
        assert all(float(row["hessian_min"]) >= low - 1e-3 * high for row in own)


def test_a_map_at_the_centres_statistics(curved):
    _, root = curved
    grid, notes = load_tensors(root / "scans" / "random_plane-0000" / "result.safetensors")
    assert notes["hessian"] == {"of": "mean loss", "split": "train", "samples": 60, "statistics": "given"}
    spectrum, _ = load_tensors(root / "spectra" / "0000" / "result.safetensors")
    # Its centre is the minimum, whose own statistics they are.
    for name in ("hessian_max", "hessian_min"):
        torch.testing.assert_close(grid[name][1, 1], spectrum[name][0], rtol=1e-4, atol=1e-4)
    ratio = (grid["hessian_min"] / grid["hessian_max"]).abs()
    torch.testing.assert_close(grid["hessian_ratio"], ratio)
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    for part in ("Curvature on random_plane-0000", "Density of the Hessian", "Curvature along the paths"):
        assert part in page
    # What the plane shows of the curvature at its centre is told beside what the Hessian has.
    shown, hessian = (" and ".join(f"{c:.3g}" for c in notes["centre"][of]) for of in ("shown", "hessian"))
    told = (f"has the curvatures {shown} along", f"the Hessian's are {hessian}", "the minimum's initial point had")
    assert all(part in unescape(page) for part in told)


def test_several_eigenvalues_on_a_map_of_more_samples_than_there_are(lowloss, tmp_path):
    some = ("curvature.count=2", "curvature.samples=9999", "curvature.tolerance=1e-5", "curvature.pivots=null")
    stages = ("~scan.plane", "minima.count=2", "stages=[minima,curvature,scan,report]")
    made = lowloss.tiny(tmp_path, *PLANE, *some, *stages)
    assert made.status == 0, made.err
    grid, notes = load_tensors(tmp_path / "t/scans/random_plane-0000/result.safetensors")
    for name in ("highest", "lowest"):
        assert grid[f"hessian_{name}"].shape == (3, 3, 2)
    torch.testing.assert_close(grid["hessian_highest"][..., 0], grid["hessian_max"])
    assert (grid["hessian_highest"][..., 1] < grid["hessian_max"]).all()
    (row, *_) = rows(tmp_path / "t/scans/random_plane-0000/scan.csv")
    assert "hessian_max" in row
    assert "hessian_highest" not in row
    # All that the split has, of which as many are told.
    row, _ = rows(tmp_path / "t/report/spectra.csv")
    told = len(digits().y_train)
    assert (row["samples"], notes["hessian"]["samples"]) == (str(told), told)


@pytest.mark.parametrize(
    "asked", [("stages=[minima,curvature]",), (*PLANE, "finder=[]", "scan=[random_plane]", "stages=[minima,scan]")]
)
def test_a_loss_without_a_second_derivative_is_told_before_training(lowloss, tmp_path, asked):
    (tmp_path / "once.py").write_text(ONCE)
    model = ("model=mlp", "model._target_=once.Once", "~model.hidden", "~model.batch_norm", "~model.activation")
    made = lowloss.plain(tmp_path, *model, *asked, "study=t", "outputs=.", "trainer=cpu")
    assert "the loss of Once has no second derivative (it has a function that is once_differentiable)" in made.message
    assert not list(tmp_path.glob("t/minima/0*"))


ONCE = """
import torch
from torch import nn
from torch.autograd.function import once_differentiable

class Tanh(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x.tanh())
        return x.tanh()
    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        (y,) = ctx.saved_tensors
        return gradient * (1 - y.square())

class Once(nn.Module):
    def __init__(self, num_classes):
        super().__init__()
        self.a, self.b = nn.Linear(64, 4), nn.Linear(4, num_classes)
    def forward(self, x):
        return self.b(Tanh.apply(self.a(x.flatten(1))))
"""


def test_again_it_does_nothing_and_other_settings_are_refused(lowloss, curved):
    outputs, _ = curved
    again = lowloss.tiny(outputs, *ASKED)
    assert again.status == 0, again.err
    assert "curvature: all 4 are complete" in again.err
    assert again.renames == []
    other = lowloss.tiny(outputs, *ASKED, "curvature.samples=61")
    assert "curvature.samples=60, now curvature.samples=61" in other.message
    # What concerns paths alone leaves minima alone.
    fewer = lowloss.tiny(outputs, *ASKED, "curvature.pivots=null", "stages=[curvature]")
    assert "curvature: all 2 are complete" in fewer.err


@pytest.mark.parametrize(
    ("setting", "told"),
    [
        ("curvature.split=validation", "curvature.split=validation, but these data have train, test"),
        ("curvature.statistics=running", "curvature.statistics must be"),
        ("curvature.tolerance=0", "curvature.tolerance must be more than 0"),
        ("curvature.trace=3", "curvature.trace must be at least 6"),
        ("curvature.density.steps=0", "curvature.density.steps must be at least 1"),
        ("scan.plane.measures=[curvature]", "measures must be exact and may be exact, curvature"),
    ],
)
def test_bad_settings_are_told_before_training(lowloss, tmp_path, setting, told):
    made = lowloss.tiny(tmp_path, "stages=[minima,curvature]", setting)
    assert told in made.message
    assert not list(tmp_path.glob("t/minima/0*"))


def test_points_lower_than_their_eight_neighbours() -> None:
    loss = np.ones((5, 6))
    loss[1, 1] = loss[3, 4] = 0.5
    loss[0, 4] = 0.1  # at the rim
    loss[3, 1] = loss[3, 2] = 0.2  # neither is lower than the other
    assert pits(loss) == 2


def test_curvature_at_minima_needs_no_paths(lowloss, tmp_path):
    made = lowloss.tiny(tmp_path, "stages=[minima,curvature]", "minima.count=2", *SETTINGS[:3])
    assert made.status == 0, made.err
    assert sorted(file.name for file in (tmp_path / "t/spectra").iterdir()) == ["0000", "0001"]
