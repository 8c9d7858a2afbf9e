"""`lowloss compare`: what it gathers, and its page in a real browser."""

import csv
import importlib.util
import json
import os
import shutil
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lowloss import files
from lowloss.report import gather
from lowloss.report.sweeps import draw_sweeps

# Test modules have no package, so what stands beside them is loaded by its path.
_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

SWEEP = """
    -m seed=0,1 model=mlp model.hidden=[8],[16] model.batch_norm=true stages=[minima,path,report] finder=[line,bezier]
    minima.count=3 minima.epochs=1 finder.bezier.steps=4 path.points=20 path.between=1 scan=[]
"""


@pytest.fixture(scope="module")
def sweep(lowloss, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("sweep")
    made = lowloss(outputs, *SWEEP.split())
    assert made.status == 0, made.err
    return outputs / "t"


@pytest.fixture(scope="module")
def compared(lowloss, sweep, tmp_path_factory):
    to = tmp_path_factory.mktemp("compared")
    done = lowloss.plain(to, "compare", str(sweep), "--to", str(to))
    assert done.status == 0, done.err
    return to


def rows_of(folder):
    with open(folder / "table.csv", newline="") as lines:
        return list(csv.DictReader(lines))


def test_table_has_a_row_a_path_and_what_the_studies_differ_in(sweep, compared):
    rows = rows_of(compared)
    assert len(rows) == 4 * 2 * 2
    assert {row["model"] for row in rows} == {
        f"MLP(hidden=[{width}], batch_norm=True, activation=ReLU)" for width in (8, 16)
    }
    assert {row["data"] for row in rows} == {"digits"}
    assert {row["seed"] for row in rows} == {"0", "1"}
    # What all studies share tells none apart.
    assert not [name for name in rows[0] if name.startswith(("optimizer", "minima."))]
    for row in rows:
        with open(sweep / row["study"] / "summary.csv", newline="") as lines:
            summary = [line for line in csv.DictReader(lines) if line.items() <= row.items()]
        assert len(summary) == 1


def test_models_are_called_by_their_option_where_they_have_one(lowloss, whole, tmp_path):
    options = {"wide": {"_target_": "lowloss.model.MLP", "hidden": [16], "batch_norm": True, "activation": "ReLU"}}
    _, table = gather.gather([whole.root], {"model": options})
    assert set(table["model"]) == {"wide"}
    assert set(table["parameters"]) == {64 * 16 + 2 * 16 + 16 * 10 + 10}  # BatchNorm stands for a bias
    assert table["fge_test_error"].between(0, 1).all()


def test_configurations_are_read_whole(whole):
    record = gather.read_study(whole.root)
    merged = {}
    for file in whole.root.glob("*/*/config.yaml"):
        merged = gather.merge(merged, yaml.safe_load(file.read_text()))
    assert record.config == merged
    assert not record.damaged


def test_what_is_damaged_is_told_and_the_rest_is_compared(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path)
    damaged = root / "paths" / "0000-0001-line"
    (damaged / "result.safetensors").write_bytes(b"no tensors")
    shutil.rmtree(root / "report")
    done = lowloss.plain(tmp_path, "compare", str(tmp_path))
    assert done.status == 0, done.err
    assert f"left out: {damaged / 'result.safetensors'} is unreadable" in done.err
    assert len(rows_of(tmp_path / "compare")) == 6 - 1
    assert (tmp_path / "compare" / "index.html").is_file()


def test_a_stray_folder_an_old_result_and_odd_names_spoil_nothing(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path)
    shutil.copytree(root / "minima" / "0000", root / "minima" / "0000-copy")
    tensors = load_file(root / "paths" / "0000-0001-line" / "result.safetensors")
    save_file(tensors, root / "paths" / "0000-0001-line" / "result.safetensors", {"notes": "{}"})
    (root / "report" / "figures" / "gone.png").symlink_to("nowhere.png")
    os.rename(os.fsencode(root), os.fsencode(root.parent) + b"/<!--<script>\xff")
    done = lowloss.plain(tmp_path, "compare", str(tmp_path))
    assert done.status == 0, done.err
    left_out = [line for line in done.err.splitlines() if "is no result of this version" in line]
    assert len(left_out) == 2, done.err
    assert len(rows_of(tmp_path / "compare")) == 6 - 1
    page = (tmp_path / "compare" / "index.html").read_text(encoding="utf-8")
    data = page.partition('id="data">')[2].partition("</script>")[0]
    assert "<" not in data
    assert "<!--<script>" in json.loads(data)["studies"][0]["name"]


def test_links_are_followed_and_every_study_is_compared_once(lowloss, whole, tmp_path):
    (tmp_path / "elsewhere").mkdir()
    root = whole.copy(tmp_path / "elsewhere")
    sweep = tmp_path / "sweep"
    (sweep / "deeper").mkdir(parents=True)
    (sweep / "linked").symlink_to(root)
    (sweep / "deeper" / "again").symlink_to(root.parent)
    (sweep / "deeper" / "circle").symlink_to(sweep)
    done = lowloss.plain(tmp_path, "compare", "sweep")
    assert done.status == 0, done.err
    rows = rows_of(sweep / "deeper" / "again" / "compare")
    assert len(rows) == 6
    assert {row["study"] for row in rows} == {"t"}


def test_a_study_without_results_is_left_out(lowloss, whole, tmp_path):
    whole.copy(tmp_path)
    (tmp_path / "begun" / "minima" / ".0000.work").mkdir(parents=True)
    done = lowloss.plain(tmp_path, "compare", ".")
    assert done.status == 0, done.err
    assert f"left out: {tmp_path / 'begun'} has no results yet" in done.err
    assert {row["study"] for row in rows_of(tmp_path / "compare")} == {"t"}
    assert "no study there has results yet" in lowloss.plain(tmp_path, "compare", "begun").message


def test_what_is_no_folder_to_write_to_is_refused(lowloss, whole, tmp_path):
    (tmp_path / "file").write_text("kept")
    message = lowloss.plain(tmp_path, "compare", str(whole.root), "--to", "file").message
    assert "--to file is a file" in message
    assert (tmp_path / "file").read_text() == "kept"
    for arguments in ([""], [str(whole.root), "--to", ""]):
        assert "a folder's name is empty" in lowloss.plain(tmp_path, "compare", *arguments).message
    assert not (tmp_path / "compare").exists()


@pytest.mark.parametrize(("folder", "reason"), [("nowhere", "does not exist"), (".", "holds no study")])
def test_a_folder_without_studies_is_refused(lowloss, tmp_path, folder, reason):
    message = lowloss.plain(tmp_path, "compare", folder).message
    assert reason in message
    assert not (tmp_path / "compare").exists()


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser.start(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(driver, compared):
    driver.get("data:,")
    driver.get_log("browser"), driver.get_log("performance")
    driver.get((compared / "index.html").as_uri())
    yield driver
    # Whatever a test did, nothing went wrong and nothing but files was asked for.
    assert driver.get_log("browser") == []
    events = [json.loads(entry["message"])["message"] for entry in driver.get_log("performance")]
    asked = {e["params"]["request"]["url"] for e in events if e["method"] == "Network.requestWillBeSent"}
    assert {url.partition(":")[0] for url in asked} <= {"file", "data"}


def find(page, selector):
    return page.find_elements("css selector", selector)


def column(page, name):
    names = [cell.text for cell in find(page, "#table thead tr:first-child th")]
    return [cell.text for cell in find(page, f"#table tbody td:nth-child({names.index(name) + 1})")]


def heading(page, name):
    return next(cell for cell in find(page, "#table thead tr:first-child th") if cell.text == name)


def filter_for(page, name):
    return next(box for box in find(page, "#table input") if box.get_attribute("aria-label") == f"filter {name}")


def plotted(page, what="name"):
    return page.execute_script(f"return document.getElementById('plot').data.map((trace) => trace.{what})")


def test_page_sorts(page):
    for ascending in (True, False):
        page.execute_script("arguments[0].click()", heading(page, "saddle train loss"))
        values = [float(text) for text in column(page, "saddle train loss")]
        assert values == sorted(values, reverse=not ascending)
        assert len(set(values)) > 4
    page.execute_script("arguments[0].click()", heading(page, "finder"))
    assert column(page, "finder") == ["bezier"] * 8 + ["line"] * 8


def test_page_filters_the_table_and_the_plot(page):
    assert plotted(page) == ["bezier", "line"]
    filter_for(page, "finder").send_keys("LIN")
    assert column(page, "finder") == ["line"] * 8
    assert plotted(page) == ["line"]
    filter_for(page, "seed").send_keys(">0")
    assert column(page, "seed") == ["1"] * 4
    assert find(page, "#count")[0].text == "4 of 16 rows"
    filter_for(page, "finder").send_keys("zzz")
    assert column(page, "finder") == plotted(page) == []


def test_page_overlays_the_paths_as_they_are_on_disk(page, sweep, compared):
    row = next(row for row in rows_of(compared) if row["finder"] == "line")
    file = sweep / row["study"] / "paths" / "0000-0001-line" / "along.csv"
    along = np.genfromtxt(file, delimiter=",", names=True)
    (trace,) = [t for t in page.execute_script(
        "return document.getElementById('plot').data.map((t) => ({name: t.name, x: [...t.x], y: [...t.y]}))"
    ) if t["name"] == "line"]  # fmt: skip
    assert trace["y"][: len(along)] == pytest.approx(along["train_loss"], rel=1e-4)
    assert trace["x"][: len(along)] == pytest.approx(along["arc"], rel=1e-4)
    assert trace["y"][len(along)] is None  # a gap between two paths
    assert trace["y"].count(None) == 8


def test_page_switches_plots_and_metrics(page, compared):
    find(page, "[data-plot=architectures]")[0].click()
    assert plotted(page) == [f"digits, {f}: {what}" for f in ("bezier", "line") for what in ("minima", "saddles")]
    # The smaller network first.
    names = ["MLP(hidden=[8], batch_norm=True, activation=ReLU)", "MLP(hidden=[16], batch_norm=True, activation=ReLU)"]
    assert plotted(page, "x") == [names] * 4
    minima, saddles = plotted(page, "y")[2:]
    assert all(low < high for low, high in zip(minima, saddles, strict=True))
    rows = [row for row in rows_of(compared) if row["finder"] == "line"]
    for name, high in zip(names, saddles, strict=True):
        # A star of two paths is its own spanning tree, so the mean is over all.
        assert high == pytest.approx(np.mean([float(r["saddle_train_loss"]) for r in rows if r["model"] == name]))
    page.execute_script("m = document.getElementById('metric'); m.value = 'test_error'; m.onchange; "
                        "m.dispatchEvent(new Event('change'))")  # fmt: skip
    errors = plotted(page, "y")[3]
    for name, high in zip(names, errors, strict=True):
        assert high == pytest.approx(100 * np.mean([float(r["saddle_test_error"]) for r in rows if r["model"] == name]))
    find(page, "[data-plot=paths]")[0].click()
    assert plotted(page) == ["bezier", "line"]


def test_page_shows_a_study_on_click(page, sweep):
    assert not find(page, "#chosen img")
    first = find(page, "#table tbody tr")[0]
    study = first.find_elements("css selector", "td")[0].text
    page.execute_script("arguments[0].click()", first)
    assert find(page, "#chosen h2")[0].text == study
    images = find(page, "#chosen img")
    deadline = time.monotonic() + 20
    while not all(page.execute_script("return arguments[0].naturalWidth > 100", image) for image in images):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    figures = sorted(file.stem for file in (sweep / study / "report" / "figures").glob("*.png"))
    assert [image.get_attribute("alt") for image in images] == figures
    assert "paths" in figures
    assert page.execute_script("return document.getElementById('chosen-plot').data.length") == 4
    links = {link.text: link.get_attribute("href") for link in find(page, "#chosen a")}
    assert links["minima/0000/config.yaml"] == (sweep / study / "minima/0000/config.yaml").as_uri()
    assert len(links) == 1 + 3 + 4
    for href in links.values():
        assert Path(href.removeprefix("file://").replace("%3D", "=").replace("%2C", ",").replace("%5B", "[")
                    .replace("%5D", "]")).is_file()  # fmt: skip


def test_a_sweep_has_means_and_deviations_by_what_differs(tmp_path):
    angles = {(0.1, 0): [10, 12], (0.1, 1): [14, 16], (0.4, 0): [20, 20], (0.4, 1): [30, 30]}
    for (rate, seed), found in angles.items():
        for k, angle in enumerate(found):
            folder = tmp_path / f"lr={rate},seed={seed}" / "widths" / f"{k:04d}"
            folder.mkdir(parents=True)
            files.save_tensors(folder / "result.safetensors", {}, {"minimum": k, "angle": float(angle)})
            folder.joinpath("config.yaml").write_text(f"seed: {seed}\noptimizer:\n  lr: {rate}\n  momentum: 0.9\n")
    written = draw_sweeps([tmp_path], tmp_path)
    assert [file.name for file in written] == ["sweeps.csv", "sweep-optimizer.lr.png"]
    with (tmp_path / "sweeps.csv").open(newline="") as lines:
        low, high = csv.DictReader(lines)
    assert (low["quantity"], low["setting"]) == ("angular width (degrees)", "optimizer.lr")
    for row, rate, mean, sd in ((low, 0.1, 13, 5**0.5), (high, 0.4, 25, 5)):
        assert (float(row["value"]), float(row["mean"]), row["count"]) == (rate, mean, "4")
        assert float(row["sd"]) == pytest.approx(sd)
    # Where nothing differs nothing is written.
    assert draw_sweeps([tmp_path / "lr=0.1,seed=0"], tmp_path / "none") == []
