"""A whole study: what it holds, that it is made once, and that a seed fixes it whatever way it is made."""

import csv
import json
import re
from html.parser import HTMLParser
from itertools import product

import numpy as np
import pytest
from safetensors.numpy import load_file

from lowloss import LowlossError
from lowloss.conf import options as options_of
from lowloss.digests import digest
from lowloss.report.architectures import draw_architectures, overview
from lowloss.study import Study

STAGES = ("minima", "path", "ensemble", "scan", "report")
SUMMARY = """
    finder start end status pivots length_ratio saddle_arc saddle_bracket min_train_loss saddle_train_loss
    barrier_train_loss barrier_above_ends_train_loss min_test_loss saddle_test_loss test_loss_at_saddle min_test_error
    saddle_test_error test_error_at_saddle residuum force force_at_top force_left spacing_spread gradient_evaluations
"""
BANDS = ("residuum", "force", "force_at_top", "force_left", "spacing_spread")


def table(file):
    with open(file, newline="") as lines:
        reader = csv.DictReader(lines)
        return list(reader), reader.fieldnames


def test_summary_has_a_row_a_path(whole):
    rows, columns = table(whole.root / "summary.csv")
    assert columns == SUMMARY.split()
    expected = {(finder, "0", end) for finder, end in product(("autoneb", "line", "bezier"), ("1", "2"))}
    assert {(row["finder"], row["start"], row["end"]) for row in rows} == expected
    assert len(rows) == len(expected)
    for row in rows:
        assert float(row["length_ratio"]) > 1 - 1e-6
        for metric in ("train_loss", "test_loss", "test_error"):
            assert 0 <= float(row[f"min_{metric}"]) <= float(row[f"saddle_{metric}"])
        outcome = row["status"], row["pivots"], row["gradient_evaluations"]
        assert float(row["saddle_bracket"]) <= 1e-3
        assert 0 <= float(row["saddle_arc"]) <= 1
        assert float(row["barrier_above_ends_train_loss"]) <= float(row["barrier_train_loss"])
        assert float(row["test_loss_at_saddle"]) <= float(row["saddle_test_loss"])
        assert ("" in {row[name] for name in BANDS}) == (row["finder"] != "autoneb")
        if row["finder"] == "line":
            assert outcome == ("exact", "0", "0")
        elif row["finder"] == "bezier":
            assert outcome == ("steps_done", "1", "60")
        else:
            assert row["status"] in ("converged", "unrelaxed", "undersampled")
            # 60 steps with three pivots, then 60 with those that were inserted.
            assert int(row["gradient_evaluations"]) == 60 * (3 + int(row["pivots"]))
            assert int(row["pivots"]) > 3


def test_every_result_tells_how_it_was_computed(whole):
    told = [json.loads(file.read_text()) for file in whole.root.rglob("provenance.json")]
    assert len(told) > 8
    assert {one["engine"] for one in told} == {"loop, steps in float32, evaluation in float32"}


def test_ensemble_table_compares_the_three_methods(whole):
    rows, columns = table(whole.root / "ensemble.csv")
    assert columns == ["method", "members", "test_loss", "test_error"]
    assert [(row["method"], row["members"]) for row in rows] == [("single", "1"), ("fge", "2"), ("independent", "3")]
    assert all(0 <= float(row["test_error"]) <= 1 and float(row["test_loss"]) > 0 for row in rows)


def test_table_b1_is_what_the_spanning_star_gives(whole):
    rows, columns = table(whole.root / "report" / "table_b1.csv")
    assert columns[:7] == ["finder", "paths", "train_loss_min", "train_loss_saddle", "factor", "epoch", "epoch_first"]
    summary, _ = table(whole.root / "summary.csv")
    for row in rows:
        saddles = [float(path["saddle_train_loss"]) for path in summary if path["finder"] == row["finder"]]
        assert float(row["train_loss_saddle"]) == pytest.approx(sum(saddles) / 2)
        assert row["paths"] == "2"
        curves = [table(whole.root / "minima" / f"000{k}" / "metrics.csv")[0] for k in range(3)]
        curve = [sum(float(epoch["train_loss"]) for epoch in epochs) / 3 for epochs in zip(*curves, strict=True)]
        below = [loss < float(row["train_loss_saddle"]) for loss in curve]
        expected = str(float(len(below) - below[::-1].index(False) + 1)) if below[-1] and not all(below) else None
        assert row["epoch"] == (expected or ("1.0" if below[-1] else ""))


def test_a_class_has_one_look_in_a_figure(whole, tmp_path, monkeypatch):
    from lowloss.report import search

    figures = []
    monkeypatch.setattr(search, "save", lambda figure, *_, **__: figures.append(figure))
    monkeypatch.setattr(search, "SHOWN", 4)
    artifact = next(path for path in Study(whole.root).complete("paths") if path.name.endswith("autoneb"))
    search._classes(artifact, artifact.load()[0], "a path", tmp_path)
    error, confidence = (
        {line.get_label(): (line.get_color(), line.get_linestyle()) for line in axis.lines} for axis in figures[0].axes
    )
    assert error == confidence
    assert len(set(error.values())) == 4 + 2  # the others, and all together


def test_misclassified_samples_and_classes_are_counted(whole):
    minima = [load_file(whole.root / "minima" / f"000{k}" / "result.safetensors") for k in range(3)]
    rows, _ = table(whole.root / "report" / "overlap.csv")
    assert [(row["start"], row["end"]) for row in rows] == [("0", "1"), ("0", "2"), ("1", "2")]
    for row in rows:
        one, other = (minima[int(row[end])]["test_wrong"] for end in ("start", "end"))
        assert int(row["wrong_both"]) == (one & other).sum()
        assert float(row["overlap"]) == pytest.approx(2 * (one & other).sum() / (one.sum() + other.sum()))
    rows, _ = table(whole.root / "report" / "classes.csv")
    assert len(rows) == 6 * 10
    assert all(0 <= float(row[name]) <= 1 for row in rows for name in list(row)[4:])
    path = load_file(whole.root / "paths" / "0000-0001-autoneb" / "result.safetensors")
    # The ends of a path predict what the minima do.
    for end, k in ((0, 0), (-1, 1)):
        np.testing.assert_allclose(path["test_class_error"][end], minima[k]["test_class_error"])
        assert path["test_error"][end] == pytest.approx(minima[k]["test_wrong"].mean())


def test_published_numbers_stand_beside_ours(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path)
    assert not (root / "report" / "comparison.csv").exists()
    made = lowloss.tiny(tmp_path, "stages=[report]", "published=draxler2018_c10_cnn12")
    assert made.status == 0, made.err
    rows, columns = table(root / "report" / "comparison.csv")
    assert columns == ["result", "experiment", "method", "column", "unit", "published", "ours", "difference"]
    ours = {row["finder"]: row for row in table(root / "report" / "table_b1.csv")[0]}
    # The line is there for contrast only.
    assert {row["method"] for row in rows} == {"autoneb", "bezier"}
    assert {(row["result"], row["experiment"]) for row in rows} == {("Table B.1", "draxler2018_c10_cnn12")}
    published = {row["column"]: (row["unit"], row["published"]) for row in rows}
    assert published["train_loss_min"] == ("nats", "0.5428")
    assert published["epoch_first"] == ("epochs", "78.0")
    for row in rows:
        assert row["ours"] == ours[row["method"]][row["column"]]
        if row["ours"]:
            assert float(row["difference"]) == pytest.approx(float(row["ours"]) - float(row["published"]))
    lines = [line.split() for line in made.err.splitlines() if " train_loss_min " in line]
    rounded = [(row["method"], f"{float(row['ours']):.4g}") for row in rows if row["column"] == "train_loss_min"]
    assert [(line[2], line[6]) for line in lines] == rounded
    assert [line[3:6] for line in lines] == [["train_loss_min", "nats", "0.5428"]] * 2
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    assert "<h2>Beside what was published</h2>" in page
    assert "<h3>Table B.1</h3>" in page


def test_minima_on_average_are_compared_with_published_errors(lowloss, whole, tmp_path):
    (row,), _ = table(whole.root / "report" / "minima.csv")
    wrong = [load_file(file)["test_wrong"] for file in sorted(whole.root.glob("minima/0*/result.safetensors"))]
    error = [100 * float(one.mean()) for one in wrong]
    assert (row["method"], row["minima"]) == ("single", "3")
    assert float(row["test_error"]) == pytest.approx(np.mean(error))
    assert float(row["test_error_std"]) == pytest.approx(np.std(error, ddof=1))
    root = whole.copy(tmp_path)
    made = lowloss.tiny(tmp_path, "stages=[report]", "published=li2018_resnet20")
    assert made.status == 0, made.err
    (compared,), _ = table(root / "report" / "comparison.csv")
    assert compared["method"] == "single"
    assert float(compared["published"]) == 7.37
    assert float(compared["ours"]) == pytest.approx(np.mean(error))


def test_settings_of_a_finder_that_is_not_chosen_are_left_out(lowloss, whole):
    again = lowloss.tiny(whole.outputs, "stages=[path]", "finder=[autoneb,bezier]", "+finder.neb.steps=3")
    assert again.status == 0, again.err
    assert "path: all 4 are complete" in again.err


def test_each_pair_is_connected_once_in_whatever_order_it_is_named(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path, "paths/0000-0001-bezier", "paths/0000-0002-bezier", "scans")
    turned = ("stages=[path,scan]", "path.pairs=[[1,0],[0,1],[1,0]]", "scan.plane.start=1", "scan.plane.end=0")
    made = lowloss.tiny(tmp_path, *turned, "finder=[autoneb,bezier]")
    assert made.status == 0, made.err
    names = ["0000-0001-autoneb", "0000-0001-bezier", "0000-0001-line", "0000-0002-autoneb", "0000-0002-line"]
    assert sorted(path.name for path in (root / "paths").iterdir()) == names
    (name,) = [name for name in lowloss.results(root) if name.endswith("0000-0001-bezier/result.safetensors")]
    assert lowloss.results(root)[name] == lowloss.results(whole.root)[name]


def test_an_epoch_that_there_is_not_is_a_dash_on_the_page(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path, "report")
    for file in root.glob("minima/*/metrics.csv"):
        # A learning curve that ends above every saddle.
        head, *rows = file.read_text().splitlines()
        before = digest(file)
        file.write_text("\n".join([head, *(row.rpartition(",")[0] + ",99" for row in rows), ""]))
        record = file.with_name("digests.json")
        record.write_text(record.read_text().replace(before, digest(file)))
    made = lowloss.tiny(tmp_path, "stages=[report]")
    assert made.status == 0, made.err
    rows, _ = table(root / "report" / "table_b1.csv")
    assert {(row["epoch"], row["epoch_first"]) for row in rows} == {("", "")}
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    (section,) = [part for part in page.split('<div class="table"') if part.startswith(' id="table-table-b1"')]
    assert section.count("<td>–</td><td>–</td>") == len(rows)
    assert "<td>nan</td>" not in page


def test_studies_are_put_together(whole, tmp_path):
    options = {
        "model": {"wide": {"_target_": "lowloss.model.MLP", "hidden": [16], "batch_norm": True, "activation": "ReLU"}}
    }
    assert set(overview([Study(whole.root)], options)["model"]) == {"wide"}
    table = overview([Study(whole.root), Study(whole.root)], {"data": options_of("data")})
    (name,) = {*table["model"]}  # no option, but a digest
    assert len(table) == 6
    assert re.fullmatch(r"MLP [0-9a-f]{4}", name)
    assert list(table["data"]) == ["digits"] * 6
    picture = draw_architectures(table, "autoneb", tmp_path / "figures")
    assert picture.file.read_bytes().startswith(b"\x89PNG")
    with pytest.raises(LowlossError, match="the finders are autoneb, bezier, line"):
        draw_architectures(table, "neb", tmp_path)
    with pytest.raises(LowlossError, match="none of these studies has a path"):
        overview([Study(tmp_path)], {})


class Resources(HTMLParser):
    """What the browser would fetch; the text of scripts is not looked at."""

    def __init__(self, page):
        super().__init__()
        self.found, self.tags = [], []
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.found += [value for name, value in attrs if name in ("src", "href", "srcset", "data", "action")]


def test_page_is_self_contained_and_shows_the_figures(whole):
    figures = sorted(path.name for path in (whole.root / "report" / "figures").iterdir())
    names = [
        "ensembles",
        "ensemble-costs",
        "paths",
        "learning",
        "plane-0000-0001",
        "random_plane-0000",
    ]
    names += [f"disconnectivity-{finder}" for finder in ("autoneb", "bezier", "line")]
    searches = ("classes", "coordinates")
    names += [f"{figure}-0000-0001-{finder}" for figure in searches for finder in ("autoneb", "bezier")]
    names += ["snapshots-0000-0001-autoneb", "cosines", "labels", "walk-fge-0000"]
    names += ["surface-plane-0000-0001", "surface-random_plane-0000"]
    assert figures == sorted(f"{name}.{end}" for name in names for end in ("pdf", "png", "svg"))
    begins = {".png": b"\x89PNG\r\n\x1a\n", ".svg": b"<?xml", ".pdf": b"%PDF"}
    for name in figures:
        file = whole.root / "report" / "figures" / name
        assert file.read_bytes().startswith(begins[file.suffix])
    page = Resources((whole.root / "report" / "index.html").read_text(encoding="utf-8"))
    # Paths, graphs, planes and surfaces are drawn by the page; no figure is there twice.
    assert page.tags.count("img") == len(names) - 1 - 3 - 2 * 2
    links = {link for link in page.found if not link.startswith(("data:", "#"))}
    assert {f"figures/{name}" for name in figures} <= links
    assert all((whole.root / "report" / link).is_file() for link in links), links


def test_the_same_command_again_does_nothing(lowloss, whole):
    def state():
        return {path: (path.stat().st_mtime_ns, path.is_file() and path.read_bytes()) for path in root.rglob("*")}

    root = whole.root
    before = state()
    again = lowloss.tiny(whole.outputs)
    assert again.status == 0, again.err
    assert state() == before
    assert again.renames == []
    told = (
        "study: ",
        "minima: all 3 are",
        "path: all 6 are",
        "ensemble: all 2 are",
        "scan: all 2 are",
        "report: up to",
    )
    for line, part in zip(again.err.splitlines(), told, strict=True):
        assert line.startswith(part)


def test_nothing_is_left_over(whole):
    assert not [path for path in whole.outputs.rglob("*") if path.name.startswith(".")]
    assert [path.name for path in whole.outputs.iterdir()] == ["t"]


def test_every_file_is_renamed_from_beside_its_place(whole):
    # Moved from another folder, say /tmp, it may cross file systems: a killed copy is half a file.
    moved = [(source, target) for source, target in whole.made.renames if source.parent != target.parent]
    assert not moved


def test_stages_one_by_one_make_the_same_study(lowloss, whole, tmp_path):
    folders = ("minima", "paths", "ensembles", "scans", "report")
    for i, stage in enumerate(STAGES):
        made = lowloss.tiny(tmp_path, f"stages=[{stage}]")
        assert made.status == 0, made.err
        assert sorted(path.name for path in (tmp_path / "t").iterdir() if path.is_dir()) == sorted(folders[: i + 1])
    assert lowloss.results(tmp_path / "t") == lowloss.results(whole.root)


def test_another_seed_makes_other_minima(lowloss, whole, tmp_path):
    assert lowloss.tiny(tmp_path, "stages=[minima]", "seed=1").status == 0
    files = [*whole.root.glob("minima/*/result.safetensors"), *tmp_path.glob("t/minima/*/result.safetensors")]
    points = [file.read_bytes() for file in files]
    assert len(points) == len(set(points)) == 6


@pytest.mark.parametrize("missing", [("0001",), ("0000", "0002")])
def test_a_minimum_does_not_depend_on_those_beside_it(lowloss, whole, tmp_path, missing):
    root = whole.copy(tmp_path, *(f"minima/{name}" for name in missing))
    made = lowloss.tiny(tmp_path, "stages=[minima]")
    assert made.status == 0, made.err
    assert lowloss.results(root) == lowloss.results(whole.root)


def test_own_arrays_and_csv_logger(lowloss, tmp_path):
    random = np.random.default_rng(0)
    y_train, y_test = random.integers(0, 3, 120), random.integers(0, 3, 60)
    file = tmp_path / "own.npz"
    np.savez(
        file,
        x_train=random.normal(size=(120, 4)) + y_train[:, None],
        y_train=y_train,
        x_test=random.normal(size=(60, 4)) + y_test[:, None],
        y_test=y_test,
    )
    made = lowloss.tiny(tmp_path, "stages=[minima,report]", "data=arrays", f"data.path={file}", "logger=csv")
    assert made.status == 0, made.err
    assert len(list((tmp_path / "t" / "minima").glob("*/result.safetensors"))) == 3
    (log,) = (tmp_path / "t" / "logs").rglob("metrics.csv")
    rows, columns = table(log)
    assert "minima/loss" in columns
    assert [row["step"] for row in rows if row["minima/loss"]] == ["1", "2", "3", "4"]
    assert rows[-1]["minima/test_error"]


def cut(text):
    return text[: len(text) // 2].rstrip("\n")


@pytest.mark.parametrize("name", ["paths/0000-0002-autoneb/along.csv", "minima/0001/metrics.csv"])
@pytest.mark.parametrize(
    "damage",
    [lambda text: "", cut, lambda text: text.splitlines()[0] + "\n", lambda text: "a,b\n1,2\n",
     lambda text: text.replace("0.", "x.")],
    ids=["empty", "cut", "no-row", "other-columns", "no-numbers"],
)  # fmt: skip
def test_a_damaged_table_is_named_with_the_remedy(lowloss, whole, tmp_path, name, damage):
    root = whole.copy(tmp_path, "report")
    file = root / name
    file.write_text(damage(file.read_text()))
    message = lowloss.tiny(tmp_path, "stages=[report]").message
    assert re.search(rf"{file} is unreadable \(.+\): delete {file.parent} and run the same command again", message)


def test_what_is_gone_from_a_report_is_made_again(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path)
    for name in ("summary.csv", "report/figures/paths.png"):
        (root / name).unlink()
        again = lowloss.tiny(tmp_path, "stages=[report]")
        assert again.status == 0, again.err
        assert (root / name).read_bytes() == (whole.root / name).read_bytes()
    assert "up to date" in lowloss.tiny(tmp_path, "stages=[report]").err


def test_a_finder_that_is_not_the_lowest_is_named(whole):
    rows, _ = table(whole.root / "summary.csv")
    saddle = {(row["finder"], row["end"]): float(row["saddle_train_loss"]) for row in rows}
    higher = {end: saddle["bezier", end] - saddle["autoneb", end] for end in "12"}
    assert min(higher.values()) > 0.1
    end = max(higher, key=higher.__getitem__)
    told = [line for line in whole.made.err.splitlines() if "is not the lowest" in line]
    assert told == [
        f"path: bezier is not the lowest on 2 of 2 pairs, at most so on 0–{end}: {saddle['bezier', end]:.4g}, "
        f"by autoneb {saddle['autoneb', end]:.4g}"
    ]
    assert told[0].removeprefix("path: ") in (whole.root / "report" / "index.html").read_text()
    for status in ("unrelaxed", "undersampled"):
        count = sum(row["finder"] == "autoneb" and row["status"] == status for row in rows)
        assert (f"path: autoneb is {status} on {count} of 2 pairs" in whole.made.err) == bool(count)


def test_the_barrier_of_a_surface_is_no_lower_than_that_of_its_vertices(lowloss, tmp_path):
    """Beyond m = 2 samples are drawn, and may miss the highest vertex."""
    made = lowloss(
        tmp_path, "study=t", "landscape=wedge", "landscape.dim=12", "landscape.n=8", "stages=[minima,connector]",
        "minima.count=5", "minima.epochs=2", "minima.batch_size=1", "finder=[]", "scan=[]", "ensemble=[]",
        "optimizer.weight_decay=0", "optimizer.lr=0.05", "connector.m=[2,3,4]", "connector.samples=1",
        "connector.steps=1", "connector.batch_size=1", "trainer=cpu",
    )  # fmt: skip
    assert made.status == 0, made.err
    connectors = Study(tmp_path / "t").complete("connectors")
    assert len(connectors) == 3
    for artifact in connectors:  # the middle, through which cuts lead, is one of the points that were optimised
        tensors = artifact.load()[0]
        assert (tensors["vertices"] - tensors["middle"]).norm(dim=1).min() <= 1e-6
    for notes in (artifact.notes() for artifact in connectors):
        assert notes["barrier_surface_train_loss"] >= notes["barrier_vertex_train_loss"] > 0
        assert notes["barrier_linear_train_loss"] >= 0
