"""Scans along lines and of trajectories, from the command line to the report."""

import csv
import re
from itertools import pairwise
from xml.etree import ElementTree

import h5py
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from lowloss import LowlossError, NetworkLandscape, export, load
from lowloss.data import digits
from lowloss.files import load_tensors
from lowloss.model import MLP
from lowloss.points.directions import random_directions
from lowloss.seeding import derive

STUDY = """
    model=mlp model.hidden=[16] model.batch_norm=true minima.count=2 minima.epochs=3 finder=[] ensemble=[]
    stages=[minima,scan,report]
"""
LINES = """
    scan=[line,initial_line,random_line] scan.line.resolution=5 scan.initial_line.resolution=4
    scan.random_line.resolution=3 scan.random_line.directions=2
"""


@pytest.fixture(scope="module")
def landscape():
    data = digits()
    return NetworkLandscape(lambda: MLP(data.input_shape, 10, [16], batch_norm=True), data)


@pytest.fixture(scope="module")
def scanned(lowloss, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("lines")
    made = lowloss(outputs, *STUDY.split(), *LINES.split())
    assert made.status == 0, made.err
    return outputs / "t"


def theta(root, k):
    return load_tensors(root / "minima" / f"{k:04d}" / "result.safetensors")[0]["theta"]


def check(grid, landscape, name, expected_KP):
    """The losses and errors of a scan are those of these points on both splits."""
    for split in ("train", "test"):
        for metric, column in landscape.evaluate(expected_KP, split).items():
            found = grid[f"{split}_{metric}"].flatten()
            torch.testing.assert_close(found, column, rtol=1e-4, atol=1e-6, msg=lambda m: f"{name} {m}")


def test_lines_between_minima_and_from_the_initial_point(scanned, landscape):
    a_P, b_P = theta(scanned, 0), theta(scanned, 1)
    line, notes = load_tensors(scanned / "scans" / "line-0000-0001" / "result.safetensors")
    t = [-0.5, 0.0, 0.5, 1.0, 1.5]
    assert line["axis-0"].tolist() == t
    check(line, landscape, "line", torch.stack([(1 - s) * a_P + s * b_P for s in t]))
    assert notes["anchor_names"] == ["minimum 0", "minimum 1"]
    initial, notes = load_tensors(scanned / "scans" / "initial_line-0000" / "result.safetensors")
    start_P = landscape.initial(derive(0, "initial", 0))
    t = [-0.25, 0.25, 0.75, 1.25]
    assert initial["axis-0"].tolist() == t
    check(initial, landscape, "initial", torch.stack([(1 - s) * start_P + s * a_P for s in t]))
    assert notes["anchor_names"] == ["initial point", "minimum 0"]


def test_random_lines_through_a_minimum(scanned, landscape):
    grid, _ = load_tensors(scanned / "scans" / "random_line-0000" / "result.safetensors")
    assert grid["train_loss"].shape == (2, 3)
    directions_DP, theta_P = grid["directions"], theta(scanned, 0)
    own, drawn = (landscape.layout.views(point) for point in (theta_P, directions_DP[1]))
    for name, weight in own.items():
        if weight.dim() > 1:
            torch.testing.assert_close(drawn[name].norm(dim=1), weight.norm(dim=1))
        else:
            assert not drawn[name].any()
    expected = [theta_P + s * direction_P for direction_P in directions_DP for s in (-1, 0, 1)]
    check(grid, landscape, "random", torch.stack(expected))


def test_figures_of_lines(scanned):
    page = (scanned / "report" / "index.html").read_text(encoding="utf-8")
    for part in ("Line line-0000-0001", "Line initial_line-0000", "Lines random_line-0000", "2 random directions"):
        assert part in page
    assert not (scanned / "report" / "figures" / "surface-line-0000-0001.png").exists()


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (("scan=[line]", "scan.line.end=0"), "scan.line needs different minima, got 0, 0: change scan.line.end"),
        (
            ("landscape=wedge", "scan=[random_line]"),
            "scan.random_line: normalization=filter gives directions of zero norm",
        ),
        (("scan=[random_line]", "scan.random_line.directions=0"), "scan.random_line.directions must be at least 1"),
        (("scan=[plane]",), "scan.plane.path=autoneb, but finder has none: add it there, or change scan.plane"),
        (
            ("finder=[line]", "scan=[plane]", "scan.plane.path=line"),
            "scan.plane.path=line, but a straight line spans no plane: set it to another finder, or scan=[line]",
        ),
        (
            ("data=arrays", "data.path={}/single.npz", "scan=[random_plane]"),
            "all training labels are of class 1, so there is nothing to scan: give data of at least two classes",
        ),
    ],
)
def test_scans_with_nothing_to_see_are_told_before_training(lowloss, tmp_path, settings, told):
    x, y = np.eye(4, dtype=np.float32), np.ones(4, dtype=np.int64)
    np.savez(tmp_path / "single.npz", x_train=x, y_train=y, x_test=x, y_test=1 - y)
    made = lowloss(tmp_path, *STUDY.split(), *(setting.format(tmp_path) for setting in settings))
    assert told in made.message
    assert not list(tmp_path.glob("t/minima/0*"))


def test_minima_that_part_from_the_first_have_its_initial_point(lowloss, tmp_path, landscape):
    part = ("minima.collect=[0]", "minima.branch=[1]", "scan=[initial_line,random_plane]")
    where = ("scan.initial_line.minimum=1", "scan.random_plane.minimum=1")
    few = ("scan.initial_line.resolution=3", "scan.random_plane.resolution=[2,2]", "stages=[minima,scan]")
    made = lowloss(tmp_path, *STUDY.split(), *part, *where, *few)
    assert made.status == 0, made.err
    began_P = load_tensors(tmp_path / "t/minima/0001/trajectory/0000.safetensors")[0]["theta"]
    grid, _ = load_tensors(tmp_path / "t/scans/initial_line-0001/result.safetensors")
    assert torch.equal(grid["origin"], began_P)
    plane, notes = load_tensors(tmp_path / "t/scans/random_plane-0001/result.safetensors")
    expected = landscape.evaluate(began_P[None], "train")["loss"].item()
    assert notes["initial_train_loss"] == pytest.approx(expected, rel=1e-4)
    # Whether the plane is like others: along its own directions, and along five more of the same lengths.
    others_DP = random_directions(
        plane["origin"], landscape.layout, derive(0, "scan", "random_plane", "spread"), 5, "filter"
    )
    assert plane["spread_x"].tolist() == [-1, -0.5, 0.5, 1]
    for direction_P, loss_X in zip([*plane["directions"], *others_DP], plane["spread_train_loss"], strict=True):
        points_KP = torch.stack([plane["origin"] + float(x) * direction_P for x in plane["spread_x"]])
        torch.testing.assert_close(loss_X, landscape.evaluate(points_KP)["loss"], rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("centred", [False, True])
def test_random_directions_tell_their_own_shares_of_a_trajectory(lowloss, tmp_path, centred):
    few = ("minima.count=1", "minima.collect=every", "scan=[trajectory]", "scan.trajectory.resolution=[2,2]")
    how = ("scan.trajectory.directions=random", f"scan.trajectory.centred={centred}")
    made = lowloss(tmp_path, *STUDY.split(), *few, *how)
    assert made.status == 0, made.err
    kept = sorted((tmp_path / "t/minima/0000/trajectory").iterdir())
    theta_EP = torch.stack([load_tensors(file)[0]["theta"] for file in kept]).double()
    rows_EP = theta_EP - theta_EP.mean(0) if centred else theta_EP - theta_EP[-1]
    (scan,) = load(tmp_path / "t").scans
    along_ED = rows_EP @ scan.tensors["directions"].double().T
    expected = along_ED.square().sum(0) / rows_EP.square().sum()
    assert expected.sum() < 0.1
    np.testing.assert_allclose(scan.notes["captured"], expected, rtol=1e-4)
    (exported,) = export(tmp_path / "t", ["h5"], tmp_path)
    with h5py.File(exported) as archive:
        np.testing.assert_allclose(archive["explained_variance_ratio_"], expected, rtol=1e-4)
    page = (tmp_path / "t/report/index.html").read_text(encoding="utf-8")
    assert f"those of the plane {expected[0]:.2g}, {expected[1]:.2g}" in page


@pytest.fixture(scope="module")
def followed(lowloss, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("trajectory")
    few = ("minima.count=1", "minima.collect=every", "scan=[trajectory]", "scan.trajectory.resolution=[3,4]")
    made = lowloss(outputs, *STUDY.split(), *few, "scan.trajectory.statistics=held")
    assert made.status == 0, made.err
    return outputs / "t"


def test_a_trajectory_on_its_plane(followed, landscape):
    folder = followed / "scans" / "trajectory-0000"
    grid, notes = load_tensors(folder / "result.safetensors")
    kept = sorted((followed / "minima" / "0000" / "trajectory").iterdir())
    theta_EP = torch.stack([load_tensors(file)[0]["theta"] for file in kept])
    assert torch.equal(theta_EP[-1], theta(followed, 0))
    with (folder / "trajectory.csv").open(newline="") as lines:
        rows = list(csv.DictReader(lines))
    assert [float(row["epoch"]) for row in rows] == [0, 1, 2, 3]
    # A tenth of the rate after half and after three quarters of training, which the second and third epoch end with.
    assert [float(row["lr"]) for row in rows] == pytest.approx([0.1, 0.01, 0.001, 0.001])
    # An SVD of the rows, and the coordinates by hand.
    left, value, right = np.linalg.svd((theta_EP - theta_EP[-1]).double().numpy(), full_matrices=False)
    np.testing.assert_allclose(notes["variance"], value**2 / (value**2).sum(), atol=1e-9)
    np.testing.assert_allclose(notes["captured"], notes["variance"][:2], atol=1e-6)
    np.testing.assert_allclose(np.abs(grid["directions"].numpy() @ right[:2].T), np.eye(2), atol=1e-5)
    found = np.array([[float(row["x"]), float(row["y"])] for row in rows])
    np.testing.assert_allclose(np.abs(found), np.abs(left[:, :2] * value[:2]), atol=1e-4)
    distance = [float(row["distance"]) for row in rows]
    np.testing.assert_allclose(distance, np.linalg.norm(left[:, 2:] * value[2:], axis=1), atol=1e-4)
    # What training had, and what the plane shows with the minimum's statistics.
    statistics = [landscape.statistics(theta_EP[-1])] * 4
    projected_EP = theta_EP[-1] + torch.from_numpy(found).float() @ grid["directions"]
    for split in ("train", "test"):
        real, shown = (
            landscape.evaluate(theta_EP, split),
            landscape.evaluate(projected_EP, split, statistics=statistics),
        )
        for metric in ("loss", "error"):
            for name, column in ((f"{split}_{metric}", real), (f"{split}_{metric}_projected", shown)):
                values = [float(row[name]) for row in rows]
                torch.testing.assert_close(torch.tensor(values).double(), column[metric], rtol=1e-4, atol=2e-3)
    for d, (h, curvature) in enumerate(zip(notes["centre"]["spacing"], notes["centre"]["shown"], strict=True)):
        assert h == pytest.approx(float(grid[f"axis-{d}"].diff()[0]))
        around_KP = torch.stack([theta_EP[-1] + s * h * grid["directions"][d] for s in (-1, 0, 1)])
        low, here, high = landscape.evaluate(around_KP, statistics=statistics[:3])["loss"].tolist()
        assert curvature == pytest.approx((low - 2 * here + high) / h**2, rel=1e-3)
    page = (followed / "report" / "index.html").read_text(encoding="utf-8")
    for part in (
        "Plane trajectory-0000", "Trajectory and plane trajectory-0000", "shares", "Diamonds", "has the curvatures",
    ):  # fmt: skip
        assert part in page


def test_norms_over_training_and_the_histogram_of_the_weights(followed, scanned):
    kept = sorted((followed / "minima" / "0000" / "trajectory").iterdir())
    theta_EP = torch.stack([load_tensors(file)[0]["theta"] for file in kept]).double().numpy()
    report = followed / "report"
    norms = pd.read_csv(report / "norms.csv")
    assert norms["epoch"].tolist() == [0, 1, 2, 3]
    np.testing.assert_allclose(norms["norm"], np.sqrt((theta_EP**2).sum(1)))
    assert pd.read_csv(report / "each_minimum.csv")["norm"].tolist() == pytest.approx(norms["norm"].tolist()[-1:])
    bins = pd.read_csv(report / "weights.csv")
    inner = bins.iloc[:-1]
    counts = [
        ((theta_EP[-1] >= low) & (theta_EP[-1] < high)).sum()
        for low, high in zip(inner["from"], inner["to"], strict=True)
    ]
    assert np.abs(inner["minimum_0"] - counts).sum() <= 2  # an edge may be written as another number
    assert bins["minimum_0"].sum() == theta_EP.shape[1]
    assert (report / "figures" / "weights.png").is_file()
    # Where nothing was kept on the way there are the norms at the end alone.
    ends = [np.linalg.norm(theta(scanned, k).double()) for k in (0, 1)]
    np.testing.assert_allclose(pd.read_csv(scanned / "report" / "each_minimum.csv")["norm"], ends)
    assert not list((scanned / "report").glob("**/weights.*"))
    assert not (scanned / "report" / "norms.csv").exists()


def test_a_trajectory_is_loaded_and_exported(followed, tmp_path):
    study = load(followed)
    (found,), (minimum,) = study.scans, study.minima
    kept = sorted((followed / "minima" / "0000" / "trajectory").iterdir())
    assert torch.equal(minimum.trajectory.theta_EP, torch.stack([load_tensors(file)[0]["theta"] for file in kept]))
    assert minimum.trajectory.epochs == [0, 1, 2, 3]
    rows = pd.read_csv(followed / "scans" / "trajectory-0000" / "trajectory.csv")
    pd.testing.assert_frame_equal(found.trajectory.frame, rows)
    (axis,) = found.trajectory.plot()
    shown = {line.get_label(): line.get_xydata() for line in axis.lines}
    np.testing.assert_allclose(shown["train, trajectory"], rows[["epoch", "train_loss"]])
    np.testing.assert_allclose(shown["test, projection"], rows[["epoch", "test_loss_projected"]])
    plt.close("all")
    animation, scanned_file = export(followed, ["gif", "h5"], tmp_path)
    with Image.open(animation) as image:
        assert (image.format, image.n_frames) == ("GIF", 4)
        seen = []
        for frame in range(4):
            image.seek(frame)
            seen.append(np.asarray(image.convert("L"), dtype=float))
        assert all((one != other).any() for one, other in pairwise(seen))
    # A program in the place of ffmpeg gets the same frames, four pictures of one size, for eight seconds.
    program = tmp_path / "ffmpeg"
    program.write_text('#!/bin/sh\nfor last; do :; done\necho "$@" >"$last"\nwc -c >>"$last"\n')
    program.chmod(0o755)
    with mpl.rc_context({"animation.ffmpeg_path": str(program)}):
        (film,) = export(followed, ["mp4"], tmp_path)
    told, count = film.read_text().splitlines()
    width, height = map(int, re.search(r"-s (\d+)x(\d+)", told).groups())
    assert int(count) == 4 * 4 * width * height
    assert "-framerate 0.5 " in told
    with (
        mpl.rc_context({"animation.ffmpeg_path": "nowhere"}),
        pytest.raises(LowlossError, match="mp4 needs the program ffmpeg: install it"),
    ):
        export(followed, ["gif", "mp4"], tmp_path / "none")
    assert not (tmp_path / "none").exists()
    with h5py.File(scanned_file) as archive:
        assert archive["train_loss"].shape == (4, 3)  # rows of ycoordinates
        np.testing.assert_allclose(archive["proj_xcoord"], rows["x"])
        np.testing.assert_allclose(archive["proj_ycoord"], rows["y"])
        np.testing.assert_allclose(archive["explained_variance_ratio_"], found.notes["variance"])


def test_lines_are_exported_as_the_authors_plotting_takes_them_and_as_figures(scanned, tmp_path):
    files = {file.name: file for file in export(scanned, ["h5", "pdf", "svg"], tmp_path)}
    drawn = {file.stem for file in (scanned / "report" / "figures").iterdir()}
    assert {"line-0000-0001", "random_line-0000"} < drawn
    for form in ("pdf", "svg"):
        assert {file.removesuffix(f".{form}") for file in files if file.endswith(form)} == drawn
    for name in drawn:
        held = files[f"{name}.pdf"].read_bytes()
        assert held.startswith(b"%PDF-")
        assert held.rstrip().endswith(b"%%EOF")
        assert ElementTree.parse(files[f"{name}.svg"]).getroot().tag == "{http://www.w3.org/2000/svg}svg"
    random = load(scanned).scans["random_line-0000"]
    assert len(files) == 4 + 2 * len(drawn)
    assert random.frame["direction"].tolist() == [0, 0, 0, 1, 1, 1]
    for d in (0, 1):
        with h5py.File(files[f"random_line-0000_{d + 1}.h5"]) as archive:
            assert set(archive) == {"xcoordinates", "train_loss", "train_acc", "test_loss", "test_acc"}
            own = random.frame[random.frame["direction"] == d]
            np.testing.assert_allclose(archive["xcoordinates"], own["x"])
            np.testing.assert_allclose(archive["test_loss"], own["test_loss"])
            np.testing.assert_allclose(archive["train_acc"], 100 - 100 * own["train_error"])
    with h5py.File(files["line-0000-0001.h5"]) as archive:
        assert archive["xcoordinates"][:].tolist() == [-0.5, 0, 0.5, 1, 1.5]


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            (),
            "scan.trajectory needs a trajectory of at least 3 points, the minimum among them, but minima.collect=null",
        ),
        (("minima.collect=[0,7]",), "minima.collect=[0, 7] with minima.epochs=3 makes 2: set minima.collect=every"),
        (("minima.collect=every", "scan.trajectory.directions=none"), "directions must be one of pca, random"),
    ],
)
def test_short_trajectories_are_told_before_training(lowloss, tmp_path, settings, told):
    made = lowloss(tmp_path, *STUDY.split(), "scan=[trajectory]", *settings)
    assert told in made.message
    assert not list(tmp_path.glob("t/minima/0*"))
