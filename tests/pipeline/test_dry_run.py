"""What --dry-run tells is what a run takes, and nothing is made."""

import csv
import re
from functools import partial
from importlib import import_module
from time import process_time
from types import SimpleNamespace

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest
import torch
from safetensors import safe_open

from lowloss import NetworkLandscape, load, tabulate, train_minima
from lowloss.data import digits
from lowloss.files import load_notes, size
from lowloss.model import CNN
from lowloss.report.pictures import FORMATS, STYLE
from lowloss.training import timing

COMMAND = (
    *("experiment=quickstart", "scale=tiny", "trainer=cpu", "finder=[neb,bezier,line]", "path.only={}"),
    *("scan=[plane]", "scan.plane.path=neb", "stages=[minima,path,scan,report]"),
)


def told(text):
    """By stage: jobs to make, gradients and points."""
    found = {}
    for line in text.splitlines():
        (name, _, rest), numbers = line.partition(": "), {}
        for pattern in (r"([\d,]+) to make", r"([\d,]+) gradient", r"([\d,]+) points"):
            match = re.search(pattern, rest)
            numbers[pattern.split()[-1]] = int(match[1].replace(",", "")) if match else 0
        found[name] = tuple(numbers.values())
    return found


def test_it_tells_what_a_run_takes(lowloss, tmp_path):
    asked = lowloss.plain(tmp_path, *COMMAND, "--dry-run")
    assert asked.status == 0, asked.err
    assert not list(tmp_path.rglob("*/*"))
    made = lowloss.plain(tmp_path, *COMMAND)
    assert made.status == 0, made.err
    root = tmp_path / "outputs" / "quickstart-tiny"
    minima = [load_notes(file) for file in root.glob("minima/*/result.safetensors")]
    with (root / "summary.csv").open(newline="") as lines:
        paths = list(csv.DictReader(lines))
    samples = [len(file.read_text().splitlines()) - 1 for file in root.glob("paths/*/along.csv")]
    before = told(asked.err)
    assert before["minima"] == (3, sum(notes["steps"] for notes in minima), 3)
    assert before["path"] == (len(paths), sum(int(row["gradient_evaluations"]) for row in paths), sum(samples))
    assert before["scan"] == (1, 0, 9)
    assert len(re.findall(r"^(?:minima|path|scan): .*; about \d+ (?:s|min); .* kept$", asked.err, re.M)) == 3
    assert re.search(r"^time: about \d+ (?:s|min) on the CPU with 1 thread; roughly", asked.err, re.M)
    after = told(lowloss.plain(tmp_path, *COMMAND, "--dry-run").err)
    assert [after[stage][0] for stage in ("minima", "path", "scan")] == [0, 0, 0]


def test_it_tells_the_time_of_as_many_gradients_and_evaluations(monkeypatch):
    # Of the processor, so that other processes do not count.
    monkeypatch.setattr(timing, "time", SimpleNamespace(perf_counter=process_time))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        landscape = NetworkLandscape(partial(CNN, width=12, depth=1, hidden=256), digits())
        told = timing.Timing(landscape, gpu=False)
        began = process_time()
        theta_1P = train_minima(landscape, count=1, epochs=20, batch_size=128).theta_KP
        trained = process_time()
        tabulate(landscape, theta_1P.expand(100, -1))
        tabulated = process_time()
        steps = landscape.batches(128, [0], shared=False).steps_per_epoch * 20
        assert 1 / 3 < told.gradient(128) * steps / (trained - began) < 3
        assert 1 / 3 < told.evaluation * 100 / (tabulated - trained) < 3
        assert told.gradient(None) == pytest.approx(told.gradient(1437), rel=0.9)
        assert told.machine == "the CPU with 1 thread"
    finally:
        torch.set_num_threads(threads)


def test_it_tells_where_there_is_no_gpu(lowloss, tmp_path):
    asked = lowloss.plain(tmp_path, *COMMAND, "trainer=gpu", "--dry-run")
    assert asked.status == 0, asked.err
    assert told(asked.err)["minima"][0] == 3


def test_it_refuses_what_a_run_would_refuse(lowloss, tmp_path):
    for argument in ("optimizer.lr=-1", "path.pairs=[[0,9]]", "hydra/launcher=local"):
        done = lowloss.plain(tmp_path, *COMMAND, argument, "--dry-run")
        assert (done.status, len(done.err.splitlines())) == (1, 1), done.err


# Every kind of job besides, of a network whose neurons can be exchanged.
OTHERS = (
    *("experiment=quickstart", "scale=tiny", "trainer=cpu", "model=mlp", "model.hidden=[8,8]", "minima.count=3"),
    *("minima.collect=[1]", "finder=[line]", "path.only={}", "ensemble=[fge,independent,snapshot,swa,curve]"),
    *("ensemble.fge.runs=2", "ensemble.fge.starts=[1]", "ensemble.curve.path=line", "scan=[random_plane]"),
    *("scan.random_plane.measures=[exact,curvature]", "permutation.steps=4", "permutation.iterations=5"),
    *("connector.m=[1,2]", "dimension.rounds=3"),
    "stages=[minima,path,ensemble,connector,dimension,width,curvature,permutation,scan]",
)


@pytest.fixture(scope="module")
def others(lowloss, tmp_path_factory):
    """What is told before a run, and the study."""
    folder = tmp_path_factory.mktemp("others")
    asked = lowloss.plain(folder, *OTHERS, "--dry-run")
    assert asked.status == 0, asked.err
    made = lowloss.plain(folder, *OTHERS)
    assert made.status == 0, made.err
    (root,) = (folder / "outputs").iterdir()
    return asked.err, root


def rows(root, pattern):
    for file in sorted(root.glob(pattern)):
        with file.open(newline="") as lines:
            yield list(csv.DictReader(lines))


def shapes(root, kind):
    """Of all tensors of a kind: name and shape."""
    for file in sorted(root.glob(f"{kind}/*/result.safetensors")):
        with safe_open(file, "np") as archive:
            yield {name: tuple(archive.get_slice(name).get_shape()) for name in archive.keys()}  # noqa: SIM118


def test_every_kind_draws_the_figures_of_the_report(others, tmp_path):
    study = load(others[1])
    curves = [one for one in study.ensembles if "ways" in one.notes]
    plots = {
        "widths": {"widths": study.widths},
        "dimensions": {"dimensions": study.dimensions},
        "connectors": {f"connector-{one.name}": one for one in study.connectors},
        "permutations": {f"permutations-{one.name}": one for one in study.permutations},
        "ensembles": {"ensembles": study.ensembles, "pairs-0000-0001": curves[0]},
    }
    for kind, drawn in plots.items():
        with mpl.rc_context(STYLE):
            made = import_module(f"lowloss.report.{kind}").SHOWN.draw(study.study, tmp_path)
            files = {picture.file.stem: picture.file for picture in made}
        assert {*drawn} <= {*files}
        for name, one in drawn.items():
            with mpl.rc_context(STYLE):
                one.plot(plt.figure())[0].figure.savefig(tmp_path / "own.png", **FORMATS["png"])
            np.testing.assert_array_equal(plt.imread(tmp_path / "own.png"), plt.imread(files[name]), name)
            plt.close("all")
    assert len(study.widths[0].plot()) == len(study.dimensions[0].plot()) == 2
    plt.close("all")
    for kind in ("permutations", "widths", "dimensions"):
        assert len(getattr(study, kind)[0].frame)


def kept(text, stage):
    return re.search(rf"^{stage}: .*; ([^;]+) kept$", text, re.M)[1]


def test_costs_of_ensembles_and_connectors(others):
    text, root = others
    parameters = int(re.search(r"([\d,]+) parameters", text)[1].replace(",", ""))
    walks = {"fge-0000": 2, "snapshot": 1, "swa-0000": 1}
    steps = {name: int(next(rows(root, f"ensembles/{name}/metrics.csv"))[-1]["step"]) for name in walks}
    members = {name: len(next(rows(root, f"ensembles/{name}/members.csv"))) for name in walks}
    points = len(next(rows(root, "ensembles/curve-*/members.csv")))
    # FGE's and SWA's first network, SWA's means, the three minima, and the curve's points, at most ten times each.
    evaluated = sum(members.values()) + 2 + members["swa-0000"] + 3 + 10 * points
    gradients = sum(walks[name] * steps[name] for name in walks)
    assert told(text)["ensemble"] == (5, gradients, evaluated)
    count = sum(shape["theta"][0] for shape in shapes(root, "ensembles") if "theta" in shape)
    assert kept(text, "ensemble") == size(4 * parameters * count)
    found = [*shapes(root, "connectors")]
    vertices = [shape["vertices"][0] for shape in found]
    samples = [shape["weights"][0] for shape in found]
    taken = [int(table[-1]["step"]) for table in rows(root, "connectors/*/metrics.csv")]
    gradients = sum(s * (v - m - 1) for s, v, m in zip(taken, vertices, (1, 2), strict=True))
    # The surface, the plane and the vertices, whose ensemble and the minima's are told of too; and the middle.
    evaluated = sum(2 * s + v + 1 + v + m + 1 for s, v, m in zip(samples, vertices, (1, 2), strict=True))
    assert told(text)["connector"] == (2, gradients, evaluated)
    assert kept(text, "connector") == size(4 * parameters * sum(v + 1 for v in vertices))


def test_a_search_takes_no_more_than_was_told(others):
    text, root = others
    runs = sum(len(table) for table in rows(root, "dimensions/*/runs.csv"))
    jobs, gradients, evaluated = told(text)["dimension"]
    assert jobs == len([*root.glob("dimensions/*")])
    assert 0 < runs <= evaluated
    assert gradients % evaluated == 0  # so many steps each
    spectra = [row for table in rows(root, "spectra/*/spectra.csv") for row in table]
    jobs, gradients, evaluated = told(text)["curvature"]
    assert jobs == len([*rows(root, "spectra/*/spectra.csv")])
    assert len(spectra) <= evaluated
    assert 0 < 2 * sum(int(row["hessian_products"]) for row in spectra) < gradients
    (plane,) = shapes(root, "scans")
    jobs, gradients, evaluated = told(text)["scan"]
    assert (jobs, evaluated) == (1, plane["train_loss"][0] * plane["train_loss"][1])
    assert gradients > 0
    for stage, bound in (("dimension", "at most"), ("curvature", "at most"), ("width", "about")):
        assert re.search(rf"^{stage}: .*complete; {bound} ", text, re.M)
    assert "unknown" not in text


def test_permutations_keep_their_bends(others):
    text, root = others
    found = [*shapes(root, "permutations")]
    jobs, _, evaluated = told(text)["permutation"]
    assert jobs == len(found)
    assert evaluated == sum(shape["bends"][0] * shape["bends"][1] for shape in found)
    numbers = sum(shape["bends"][0] * shape["bends"][1] * shape["bends"][2] for shape in found)
    assert kept(text, "permutation") == size(8 * numbers)  # in float64
