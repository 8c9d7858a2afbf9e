"""Results as tables and objects: of a loaded study, of what the Python API finds, and as other programs' files."""

import contextlib
import csv
import io
import json
import re
import shutil
import struct
from pathlib import Path
from xml.etree import ElementTree

import h5py
import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from lowloss import (
    FGE,
    Data,
    Line,
    LowlossError,
    MullerBrown,
    NetworkLandscape,
    export,
    fast_ensemble,
    find_path,
    load,
    plane,
    progress,
    scan,
    train_minima,
)
from lowloss.data import digits
from lowloss.model import MLP
from lowloss.points import InitialLine, MinimaLine, PathPlane, RandomLine, RandomPlane, TrajectoryPlane
from lowloss.report import pictures
from lowloss.report.pictures import FORMATS, STYLE

ROOT = Path(__file__).parents[2]


@pytest.fixture(autouse=True)
def closed():
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def study(whole):
    return load(str(whole.root))


@pytest.fixture(scope="module")
def landscape():
    data = digits()
    return NetworkLandscape(lambda: MLP(data.input_shape, 10, [16], batch_norm=True), data)


def image(figure):
    """The pixels that the report would save."""
    with mpl.rc_context(STYLE):
        figure.savefig(buffer := io.BytesIO(), format="png", **FORMATS["png"])
    return plt.imread(io.BytesIO(buffer.getvalue()))


def test_results_of_a_study_are_tables_and_objects(whole, study):
    summary = pd.read_csv(whole.root / "summary.csv")
    shared = summary.columns.intersection(study.paths.frame.columns)
    assert len(shared) > 15
    assert set(summary.columns) - set(shared) == set(summary.columns[summary.isna().all()])
    pd.testing.assert_frame_equal(study.paths.frame[shared].reset_index(drop=True), summary[shared], check_dtype=False)
    pd.testing.assert_frame_equal(study.ensembles.frame, pd.read_csv(whole.root / "ensemble.csv"))
    folder = whole.root / "paths" / "0000-0001-autoneb"
    path, kept = study.paths[folder.name], load_file(folder / "result.safetensors")
    assert path.tensors.keys() == kept.keys()
    assert all(torch.equal(path.tensors[name], tensor) for name, tensor in kept.items())
    pd.testing.assert_frame_equal(path.frame, pd.read_csv(folder / "along.csv"))
    assert path.tables == ["along.csv", "metrics.csv"]
    assert path.barrier_train_loss == study.paths.frame.loc[path.name, "barrier_train_loss"]
    assert torch.equal(path.path.points(torch.tensor([0.0, 1.0])), study.minima.theta_KP[:2])
    assert [minimum.name for minimum in study.minima] == list(study.minima.frame.index) == ["0000", "0001", "0002"]
    assert torch.equal(
        study.minima[-1].theta, load_file(whole.root / "minima" / "0002" / "result.safetensors")["theta"]
    )
    assert study.minima["0001"].frame["step"].is_monotonic_increasing
    assert study.kinds == ["minima", "paths", "ensembles", "scans"]
    for kind in study.kinds:
        assert kind in dir(study)
    assert study.config["minima"]["epochs"] == 4
    assert study.unfinished == []


def test_scans_have_csv(whole, study):
    for one in study.scans:
        grid = load_file(whole.root / "scans" / one.name / "result.safetensors")
        with (whole.root / "scans" / one.name / "scan.csv").open(newline="") as lines:
            rows = list(csv.DictReader(lines))
        assert len(rows) == grid["train_loss"].numel() == len(one.frame) == 20
        for row in rows:
            (i,), (j,) = (np.flatnonzero(grid[f"axis-{d}"] == float(row["xy"[d]])) for d in (0, 1))
            for name in ("train_loss", "train_error", "test_loss", "test_error"):
                assert float(row[name]) == float(grid[name][i, j])


def test_figures_are_those_of_the_report(whole, study):
    figures = whole.root / "report" / "figures"
    for name, axes in {
        "paths": study.paths.plot(),
        "ensembles": study.ensembles.plot(),
        "plane-0000-0001": study.scans["plane-0000-0001"].plot(),
    }.items():
        np.testing.assert_array_equal(image(axes[0].figure), plt.imread(figures / f"{name}.png"))
    own = plt.figure()
    path = study.paths["0000-0002-bezier"]
    axes = path.plot(own)
    assert axes[0].figure is own
    (line,) = axes[1].lines
    np.testing.assert_allclose(line.get_xydata(), np.stack([path.frame["arc"], 100 * path.frame["test_error"]], 1))
    surface, line, way, minima = study.scans["plane-0000-0001"].surface().data
    grid = study.scans["plane-0000-0001"].arrays
    np.testing.assert_allclose(np.array(surface.z, dtype=float), np.log10(grid["train_loss"]).T)
    np.testing.assert_allclose(surface.x, grid["axis-0"])
    assert (line.name, way.name, minima.text) == ("line", "autoneb", ("0", "1"))


def test_results_print_themselves_in_a_line_and_as_html(study):
    for shown in (study, study.paths, study.paths[0], study.minima[0], study.scans[0], study.ensembles[0]):
        assert "\n" not in repr(shown)
        assert "<table" in shown._repr_html_()
    assert repr(study).endswith("3 minima, 6 paths, 2 ensembles, 2 scans")
    assert repr(study.paths[0]).startswith("paths/0000-0001-autoneb: finder autoneb, start 0, end 1, status ")
    assert repr(study.spectra) == "0 spectra"


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda study: study.path, "a study has no path (did you mean paths?)"),
        (lambda study: study.paths["0000-0001-autonep"], "(did you mean 0000-0001-autoneb"),
        (lambda study: study.minima[3], "minima has no 3; there are 0000, 0001, 0002"),
        (lambda study: study.spectra[0], "run the study's command with stages=[curvature]"),
        (lambda study: study.spectra.plot(), "has no spectra"),
        (lambda study: study.paths[0].barier_train_loss, "did you mean barrier_train_loss"),
        (lambda study: study.paths[0].table("member.csv"), "has no table member.csv; there are along.csv, metrics.csv"),
        (lambda study: study.minima[0].trajectory, "train with minima.collect=every"),
        (lambda study: study.scans.plot(), "a figure shows one of scans: plot plane-0000-0001 or another"),
        (lambda study: study.scans[0].trajectory, "scan one (scan=[trajectory])"),
        (lambda study: load(study.root.parent), "holds no study: name the folder of a study, such as "),
        (lambda study: load(study.root / "nowhere"), "nowhere does not exist"),
        (lambda study: load(study.root / "summary.csv"), "summary.csv is no folder: name the folder of a study"),
        (lambda study: export(study.root, "sgv"), "there is no format sgv (did you mean svg?)"),
        (lambda study: export(study.root, ["sgv"]), "there is no format sgv (did you mean svg?)"),
        (lambda study: export(study.root, ["gif"]), "has nothing to export as gif: make a trajectory's plane"),
    ],
)
def test_what_there_is_not_is_told_in_a_line(study, ask, told):
    with pytest.raises(LowlossError) as caught:
        ask(study)
    assert told in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not hasattr(study.minima[0], "trajectory")


def test_damaged_and_unfinished_studies(whole, tmp_path):
    root = whole.copy(tmp_path, "scans", "ensembles")
    (root / "scans" / ".plane-0000-0001.work").mkdir(parents=True)
    file = root / "paths" / "0000-0001-autoneb" / "result.safetensors"
    held = bytearray(file.read_bytes())
    held[-5] ^= 1
    file.write_bytes(held)
    shutil.copy(root / "minima/0001/metrics.csv", root / "minima/0000/metrics.csv")
    study = load(root)
    assert study.unfinished == ["scans/plane-0000-0001"]
    assert "1 unfinished" in repr(study)
    with pytest.raises(LowlossError, match="has no scans, but scans/plane-0000-0001 has begun"):
        _ = study.scans[0]
    with pytest.raises(LowlossError, match=r"result.safetensors is unreadable.*delete"):
        _ = study.paths["0000-0001-autoneb"].tensors
    with pytest.raises(LowlossError, match=r"metrics.csv is unreadable.*delete"):
        _ = study.minima[0].frame
    assert study.paths["0000-0001-line"].tensors  # what is whole can be read
    for kept in (root / "minima").iterdir():
        shutil.rmtree(kept)
    shutil.rmtree(root / "paths")
    with pytest.raises(LowlossError, match="has no results yet: wait for the first, or run its command again"):
        load(root)
    shutil.rmtree(root / "scans")
    progress.Record(root, dict).end("no such data")  # a command that failed before anything was made
    with pytest.raises(LowlossError, match="has no results yet"):
        load(root)


def test_a_damaged_result_leaves_the_others_readable(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path)
    for name in ("minima/0001", "scans/random_plane-0000"):
        file = root / name / "result.safetensors"
        file.write_bytes(file.read_bytes()[:900])
    study, told = load(root), r"left out: .*minima/0001/result.safetensors is unreadable .*: delete \S+/0001 and run"
    with pytest.warns(UserWarning, match=told):
        assert [*study.minima.frame.index] == ["0000", "0002"]
    with pytest.warns(UserWarning, match=told):
        assert len(study.minima.plot()[0].lines) == 2
    with pytest.warns(UserWarning, match=r"left out: .*random_plane-0000"):
        assert "0002" in study._repr_html_()
    assert "minima/0001: damaged: " in repr([*study.minima])
    assert "damaged" in study.minima[1]._repr_html_()
    for one in (study.scans[0], *study.paths, *study.ensembles):  # made from it, some of them
        assert len(one.plot())
        assert len(one.frame)
    done = lowloss.plain(tmp_path, "export", "t", "--to", "h5", "vtp")
    assert "left out: " in done.message
    assert "delete t/scans/random_plane-0000" in done.message
    assert [Path(line).name for line in done.out.splitlines()] == ["plane-0000-0001.h5", "plane-0000-0001.vtp"]
    # The report is without them, says so, and the command fails, also where there is nothing to write anew.
    lowloss.tiny(tmp_path, "stages=[report]")
    done = lowloss.tiny(tmp_path, "stages=[report]")
    assert "up to date" not in done.err
    assert re.search(r"the report is without what is damaged: .*minima/0001 and run .* \(1 more by", done.message)
    page = (root / "report" / "index.html").read_text()
    assert "Left out, since damaged: minima/0001, scans/random_plane-0000." in page
    assert pd.read_csv(root / "report" / "each_minimum.csv")["minimum"].tolist() == [0, 2]
    assert pd.read_csv(root / "summary.csv").equals(pd.read_csv(whole.root / "summary.csv"))
    for name in ("minima/0001", "scans/random_plane-0000"):
        shutil.rmtree(root / name)
    done = lowloss.tiny(tmp_path)
    assert done.status == 0, done.err
    assert (root / "report" / "index.html").read_bytes() == (whole.root / "report" / "index.html").read_bytes()


def test_what_is_found_has_the_face_of_what_is_loaded(study, landscape):
    minima = train_minima(landscape, count=2, epochs=2, collect="every")
    assert type(minima) is type(study.minima)
    assert torch.equal(minima[1].theta, minima.theta_KP[1])
    assert minima.frame.columns.equals(study.minima.frame.columns)
    assert minima.frame.loc["0001", "train_loss"] == float(landscape.evaluate(minima.theta_KP[1:], "train")["loss"])
    assert minima[0].frame.columns.equals(study.minima[0].frame.columns)
    assert torch.equal(minima[0].trajectory.theta_EP[-1], minima[0].theta)

    line, loaded = find_path(landscape, *study.minima.theta_KP[:2], Line()), study.paths["0000-0001-line"]
    assert type(line) is type(loaded)
    assert repr(line) == "paths/line: finder line, start 0, end 1, status exact"  # without measuring it
    assert line.frame.columns.equals(loaded.frame.columns)
    assert line.barrier_train_loss == pytest.approx(loaded.barrier_train_loss, rel=0.01)
    assert len(line.plot()) == 2
    assert torch.equal(line.path.points(0.25), line.path.points(torch.tensor([0.25])))
    assert torch.equal(line.path.points([0, 1]), study.minima.theta_KP[:2])
    (axis,) = minima.plot()
    assert axis.lines[1].get_ydata().tolist() == minima[1].frame["train_loss"].tolist()

    walked = fast_ensemble(landscape, study.minima[0].theta, FGE(members=2, cycle_epochs=1))
    assert type(walked) is type(study.ensembles["fge-0000"])
    assert repr(walked) == "ensembles/fge: method fge"  # without evaluating it
    assert {*study.ensembles["fge-0000"].frame} - {*walked.frame} == {"iteration", "from_start"}
    assert walked.tensors["theta"].shape == walked.theta_MP.shape == study.ensembles["fge-0000"].tensors["theta"].shape
    assert len(walked.plot()) == 2

    # The study's plane through its path, and of what was found every other kind of scan.
    kept = study.scans["plane-0000-0001"]
    path = study.paths["0000-0001-autoneb"]
    again = scan(landscape, PathPlane(resolution=(4, 5)), study.minima[:2], path)
    pd.testing.assert_frame_equal(again.frame, kept.frame, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(again.arrays["path_projected"], kept.arrays["path_projected"], atol=1e-5)
    assert again.tensors.keys() == kept.tensors.keys()
    shown, of_study = ({one.name: one for one in grid.surface().data} for grid in (again, kept))
    np.testing.assert_allclose(shown["autoneb"].x, of_study["autoneb"].x, atol=1e-5)
    np.testing.assert_allclose(shown["autoneb"].customdata, of_study["autoneb"].customdata)
    few = {"resolution": (2, 3)}
    for where, ends in (
        (RandomPlane(**few, statistics="held"), minima.theta_KP[:1]),
        (MinimaLine(resolution=3), minima),
        (RandomLine(directions=2, resolution=3), minima[:1]),
        (InitialLine(resolution=3), minima[:1]),
        (TrajectoryPlane(**few), minima[:1]),
    ):
        found = scan(landscape, where, ends)
        assert isinstance(found.plot()[0].figure, mpl.figure.Figure)
        assert len(found.frame) == found.tensors["train_loss"].numel()
    curved = scan(landscape, RandomPlane(**few, statistics="held", measures=["exact", "curvature"]), minima[:1])
    assert curved.frame["hessian_converged"].all()
    assert curved.notes["hessian"]["statistics"] == "given"
    assert found.trajectory.frame["epoch"].tolist() == [0, 1, 2]
    assert len(found.trajectory.plot()[0].lines) >= 4


def one_class():
    x, y = torch.randn(8, 4), torch.zeros(8, dtype=torch.long)
    return NetworkLandscape(nn.Linear(4, 2), Data(x, y, x, y, 2))


def test_surfaces_without_a_test_split_are_drawn():
    a_P, b_P = torch.tensor([-0.558, 1.442]), torch.tensor([0.623, 0.028])
    path = find_path(MullerBrown(), a_P, b_P, Line())
    assert len(path.plot()) == 1
    corners = torch.stack([a_P, b_P, torch.zeros(2)])
    found = scan(MullerBrown(), plane(corners, ("a", "b", "origin"), (4, 5)), path=path)
    assert found.frame.columns.tolist() == ["x", "y", "train_loss"]
    assert len(found.plot()) == 2  # and the colour bar
    surface, way, _ = found.surface().data
    assert np.array(surface.z, dtype=float).shape == (5, 4)
    assert way.name == "line"


@pytest.mark.parametrize(
    ("ask", "told"),
    [
        (lambda land, theta: scan(land, RandomPlane(), theta), "RandomPlane needs 1 minima, got 2"),
        (lambda land, theta: scan(one_class(), RandomPlane(), theta[:1]), "all training labels are of class 0"),
        (lambda land, theta: scan(land, PathPlane(), theta), "PathPlane needs a path: give path="),
        (lambda land, theta: scan(land, MinimaLine(), theta[[0, 0]]), "are the same point"),
        (lambda land, theta: scan(land, TrajectoryPlane(), theta[:1]), "TrajectoryPlane needs the way to a minimum"),
        (lambda land, theta: scan(MullerBrown(), RandomPlane(), theta[:1]), "a MullerBrown has no layers"),
        (lambda land, theta: scan(land, "plane", theta), "a scan is over a Grid or by a recipe"),
    ],
)
def test_scans_that_cannot_be_are_told_in_a_line(study, landscape, ask, told):
    with pytest.raises(LowlossError, match=told):
        ask(landscape, study.minima.theta_KP[:2])


def test_exports_are_read_back(lowloss, whole, tmp_path):
    folder = tmp_path / "out"
    made = lowloss.plain(whole.outputs, "export", "t", "--to", "h5", "vtp", "stl", "glb", "--folder", str(folder))
    assert made.status == 0, made.err
    assert sorted(made.out.splitlines()) == sorted(str(file) for file in folder.iterdir())
    grid = load_file(whole.root / "scans" / "plane-0000-0001" / "result.safetensors")
    x_CR, y_CR = np.meshgrid(grid["axis-0"], grid["axis-1"])  # as the authors' plotting does
    with h5py.File(folder / "plane-0000-0001.h5") as archive:
        keys = {"xcoordinates", "ycoordinates", "train_loss", "train_acc", "test_loss", "test_acc"}
        assert set(archive) == keys
        np.testing.assert_array_equal(np.meshgrid(archive["xcoordinates"], archive["ycoordinates"]), (x_CR, y_CR))
        for split in ("train", "test"):
            np.testing.assert_array_equal(archive[f"{split}_loss"], grid[f"{split}_loss"].T)
            np.testing.assert_allclose(archive[f"{split}_acc"], 100 - 100 * grid[f"{split}_error"].T)

    piece = ElementTree.parse(folder / "plane-0000-0001.vtp").getroot().find("PolyData/Piece")
    arrays = {one.get("Name"): np.array(one.text.split(), float) for one in piece.iter("DataArray")}
    points_N3 = arrays["Points"].reshape(-1, 3)
    assert (int(piece.get("NumberOfPoints")), int(piece.get("NumberOfPolys"))) == (20, 12)
    heights = dict(zip(map(tuple, points_N3[:, :2]), points_N3[:, 2], strict=True))
    for x, y, loss in zip(x_CR.ravel(), y_CR.ravel(), grid["train_loss"].T.ravel(), strict=True):
        assert heights[x, y] == pytest.approx(np.log10(float(loss)))
    np.testing.assert_allclose(np.log10(arrays["train_loss"]), points_N3[:, 2])
    cells = arrays["connectivity"].astype(int).reshape(-1, 4)
    assert arrays["offsets"].tolist() == list(range(4, 49, 4))
    assert all(len({*cell}) == 4 for cell in cells)
    # Each cell goes once around a rectangle of the grid; together they are the plane.
    corners = points_N3[cells][:, :, :2]
    areas = np.prod(corners[:, 2] - corners[:, 0], axis=1)
    assert (areas > 0).all()
    assert areas.sum() == pytest.approx(np.ptp(x_CR) * np.ptp(y_CR))

    held = (folder / "plane-0000-0001.stl").read_bytes()
    (count,) = struct.unpack("<I", held[80:84])
    assert (count, len(held)) == (24, 84 + 24 * 50)
    floats = np.frombuffer(held[84:], np.dtype([("numbers", "<f4", 12), ("attribute", "<u2")]))["numbers"]
    triangles = floats.reshape(-1, 4, 3)[:, 1:]
    assert triangles.min() == 0
    assert triangles[..., :2].max() == pytest.approx(1)
    assert triangles[..., 2].max() == pytest.approx(0.7, abs=1e-6)
    assert (floats.reshape(-1, 4, 3)[:, 0, 2] > 0).all()  # all normals look upwards

    held = (folder / "plane-0000-0001.glb").read_bytes()
    assert struct.unpack("<4sII", held[:12]) == (b"glTF", 2, len(held))
    (size,) = struct.unpack("<I", held[12:16])
    assert (size % 4, held[16:20], held[24 + size : 28 + size]) == (0, b"JSON", b"BIN\0")
    scene, body = json.loads(held[20 : 20 + size]), held[28 + size :]
    assert scene["buffers"] == [{"byteLength": len(body)}]
    read = []
    for part, view in zip(scene["accessors"], scene["bufferViews"], strict=True):
        kind = {5126: "<f4", 5125: "<u4"}[part["componentType"]]
        of = np.frombuffer(body[view["byteOffset"] :][: view["byteLength"]], kind)
        read.append(of.reshape(part["count"], -1))
    upright_N3, colours_N3, places = read
    assert [scene["accessors"][0][of] for of in ("min", "max")] == [[*upright_N3.min(0)], [*upright_N3.max(0)]]
    # The same triangles, with y upwards; the higher, the lighter.
    np.testing.assert_array_equal(
        upright_N3[places.ravel()].reshape(-1, 3, 3)[..., [0, 2]] * (1, -1), triangles[..., :2]
    )
    np.testing.assert_array_equal(upright_N3[places.ravel()][:, 1].reshape(-1, 3), triangles[..., 2])
    assert (np.diff(colours_N3[np.argsort(upright_N3[:, 1])][:, 1]) >= 0).all()

    again = lowloss.plain(whole.outputs, "export", "t", "--to", "html")
    assert "there is no format html: choose of h5, vtp" in again.message


def test_the_notebook_runs(whole, tmp_path, monkeypatch, capsys):
    notebook = json.loads((ROOT / "scripts" / "explore_study.ipynb").read_text(encoding="utf-8"))
    assert not any(cell.get("outputs") for cell in notebook["cells"])
    shutil.copytree(whole.root, tmp_path / "outputs" / "quickstart")
    (tmp_path / "scripts").mkdir()
    monkeypatch.chdir(tmp_path / "scripts")
    names = {}
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), "explore_study.ipynb", "exec"), names)
    assert len(names["networks"]) == 5
    assert "autoneb" in names["study"].paths.plot()[0].get_legend_handles_labels()[1]
    assert (tmp_path / "outputs" / "quickstart" / "export" / "plane-0000-0001.vtp").is_file()
    assert capsys.readouterr().out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a file that is full")
def test_a_disk_that_is_full_while_a_figure_is_written_is_an_error_of_the_disk(tmp_path, monkeypatch):
    @contextlib.contextmanager
    def replacing(file):
        yield Path("/dev/full") if file.suffix == ".pdf" else file

    monkeypatch.setattr(pictures.files, "replacing", replacing)
    figure, ((axes,),) = pictures.panels(3, 2)
    axes.plot(np.random.default_rng(0).random(900))
    with pytest.raises(OSError, match="No space left"):
        pictures.save(figure, tmp_path, "line", "Line", "A line.")
