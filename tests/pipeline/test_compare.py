"""`lowloss compare`: what it gathers, and its page in a real browser."""

import base64
import contextlib
import csv
import gzip
import importlib.util
import json
import multiprocessing
import os
import re
import shutil
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest
import yaml
from safetensors.numpy import load_file, save_file

from lowloss import files, processes
from lowloss.conf import option, options
from lowloss.report import gather
from lowloss.report.compare import compare
from lowloss.report.gather import called
from lowloss.report.looks import look as looks_of
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


def data_of(page):
    return json.loads(gzip.decompress(base64.b64decode(page.partition('id="data">')[2].partition("</script>")[0])))


def names_by_width(rows):
    return {row["model.hidden"]: row["model"] for row in rows}


def test_table_has_a_row_a_path_and_what_the_studies_differ_in(sweep, compared):
    rows = rows_of(compared)
    assert len(rows) == 4 * 2 * 2
    # Not an option, but near one; what they differ in has columns.
    assert {re.fullmatch(r"\w+ [0-9a-f]{4}", row["model"])[0] for row in rows} == {*names_by_width(rows).values()}
    assert set(names_by_width(rows)) == {"[8]", "[16]"}
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


def test_a_landscape_by_a_formula_is_called_by_its_option():
    every, wedge = {group: options(group) for group in ("model", "data", "landscape")}, option("landscape", "wedge")
    assert [called({"landscape": wedge}, group, every) for group in ("model", "data")] == ["wedge", ""]
    assert called({"landscape": {**wedge, "n": 3}}, "model", every).startswith("wedge ")


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
    shutil.rmtree(tmp_path / "compare")
    for file in root.glob("*/*/result.safetensors"):
        file.write_bytes(b"no tensors")
    assert "no study there can be read: `lowloss verify" in lowloss.plain(tmp_path, "compare", ".").message
    assert not (tmp_path / "compare").exists()


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
    assert "<!--<script>" in data_of(page)["studies"][0]["name"]


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


def test_what_is_not_done_has_a_row(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path / "outputs")
    (root / "paths" / ".0001-0002-bezier.work").mkdir()
    begun = tmp_path / "outputs" / "begun" / "minima"
    (begun / ".0000.work").mkdir(parents=True)
    (begun / ".0000.claim").write_text("{}")
    (begun / ".0001.work").mkdir()  # of a process that was killed just now
    (begun / ".0001.claim").write_text(json.dumps(processes.identity(os.getpid()) | {"started": "1"}))
    sweep = tmp_path / "outputs" / ".sweeps" / "1"
    sweep.mkdir(parents=True)
    ended = [("begun", 0, ""), ("t", 1, "loss is\nNaN"), ("none", 1, "no data")]
    jobs = [{"study": study, "log": f"{study}.log"} for study in ("begun", "t", "none", "later")]
    (sweep / ".jobs.json").write_text(json.dumps({"launcher": "slurm", "owner": {}, "jobs": jobs}))
    for study, status, reason in ended:
        (sweep / f"{study}.json").write_text(json.dumps({"status": status, "reason": reason}))
    done = lowloss.plain(tmp_path, "compare", "outputs")
    assert done.status == 0, done.err
    rows = [row for row in rows_of(tmp_path / "outputs" / "compare") if ": " in row["status"]]
    assert {(row["study"], row["status"]) for row in rows} == {
        ("begun", "running: minima/0000"), ("begun", "stopped: minima/0001"),
        ("t", "stopped: paths/0001-0002-bezier"), ("t", "failed: loss is NaN"),
        ("none", "failed: no data"), ("later", "waiting: not begun"),
    }  # fmt: skip
    assert {row["model"] for row in rows if row["study"] != "t"} == {""}
    # Empty cells leave integers what they are.
    paths = [row for row in rows_of(tmp_path / "outputs" / "compare") if row["finder"]]
    assert {row["start"] for row in paths} == {"0"}
    assert all(row["parameters"].isdecimal() for row in paths)
    shutil.rmtree(root)
    assert "no study there has results yet" in lowloss.plain(tmp_path, "compare", "outputs").message


@pytest.fixture
def processors(monkeypatch):
    """Three, whatever the machine has, and no threads of pytest's."""
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1, 2})
    monkeypatch.setattr(threading, "active_count", lambda: 1)


@pytest.fixture
def many(whole, tmp_path):
    """Five studies, of which the second is damaged."""
    for k in range(5):
        shutil.copytree(whole.root, tmp_path / "many" / f"{k}", copy_function=os.link)
    (damaged := tmp_path / "many" / "1" / "paths" / "0000-0001-line" / "along.csv").unlink()
    damaged.write_text("none")
    return tmp_path / "many"


def test_several_processes_make_the_same_page(many, tmp_path, processors, monkeypatch):
    read, told, pages = gather.read_study, [], []

    def reading(*task):
        with (tmp_path / "readers").open("a") as file:
            file.write(f"{os.getpid()}\n")
        return read(*task)

    monkeypatch.setattr(gather, "read_study", reading)
    monkeypatch.setattr(gather.progress, "say", told.append)
    for few, count in ((100, 1), (1, 3)):
        monkeypatch.setattr(gather, "FEW", few)
        folder = compare([many], {}, tmp_path / "to")[0].parent
        pages.append([(folder / name).read_bytes() for name in ("index.html", "table.csv")])
        readers = (tmp_path / "readers").read_text().split()
        assert (len(readers), len({*readers})) == (5, count)
        (tmp_path / "readers").unlink()
    assert pages[0] == pages[1]
    assert len(told) == 2
    assert told[0] == told[1]
    assert "many/1/paths/0000-0001-line/along.csv is unreadable" in told[0]


def test_what_a_killed_process_leaves_is_done_by_another(processors):
    own = os.getpid()

    def work(task):
        if task == 7 and os.getpid() != own:
            os.kill(os.getpid(), signal.SIGKILL)
        unsent = (lambda: None) if task == 5 and os.getpid() != own else None
        return task, os.getpid() == own, unsent

    with processes.sharing(work, range(12), 4) as found:
        assert [*found] == [(task, task % 3 == 0 or task in (5, 7, 10), None) for task in range(12)]
    with contextlib.suppress(KeyboardInterrupt), processes.sharing(time.sleep, [0, 600, 600], 1) as found:
        next(found)
        raise KeyboardInterrupt
    assert not multiprocessing.active_children()


def test_planes_of_many_studies_have_fewer_points(many, tmp_path, monkeypatch):
    whole, thin = [], []
    for numbers, planes in ((10_000, whole), (39, thin)):
        monkeypatch.setattr("lowloss.report.compare.NUMBERS", numbers)
        monkeypatch.setattr("lowloss.report.compare.LEAST", 2)
        data = data_of(compare([many], {}, tmp_path / "to")[0].read_text(encoding="utf-8"))
        planes += [plane for study in data["studies"] for plane in study["planes"].values()]
    assert (len(whole), len(thin)) == (10, 9)  # of four numbers each
    for plane, few in zip(whole, thin, strict=False):
        x, y = (-(-len(plane[axis]) // 2) for axis in "xy")
        assert few == {"x": plane["x"][::x], "y": plane["y"][::y], "z": [row[::x] for row in plane["z"][::y]]}


def test_an_interrupt_is_no_traceback(lowloss, whole, tmp_path):
    done = lowloss.plain(tmp_path, "compare", str(whole.root), "--to", "to", strike=("SIGINT", "*/table.csv", 1))
    assert (done.status, "Traceback" in done.err) == (130, False)


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


def show(driver, folder, address=""):
    browser.show(driver, folder / "index.html", "typeof rows !== 'undefined' && rows.length > 0", address)


@pytest.fixture
def page(driver, compared):
    show(driver, compared)
    yield driver
    browser.check(driver)


def find(page, selector):
    return page.find_elements("css selector", selector)


def column(page, name):
    names = [cell.text for cell in find(page, "#table thead tr:first-child th")]
    return [cell.text for cell in find(page, f"#table tbody td:nth-child({names.index(name) + 1})")]


def heading(page, name):
    return next(cell for cell in find(page, "#table thead button") if cell.text == name)


def filter_for(page, name):
    return next(box for box in find(page, "#table input") if box.get_attribute("aria-label") == f"filter {name}")


def plotted(page, what="name"):
    return page.execute_script(f"return document.getElementById('plot').data.map((trace) => trace.{what})")


def test_page_sorts(page):
    for ascending in (True, False):
        page.execute_script("arguments[0].click()", heading(page, "train loss at the saddle"))
        values = [float(text) for text in column(page, "train loss at the saddle")]
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
    find(page, "#clear")[0].click()
    assert find(page, "#count")[0].text == "16 of 16 rows"


def test_the_address_keeps_what_is_shown_and_a_csv_holds_it(page, compared):
    filter_for(page, "finder").send_keys("line")
    page.execute_script("arguments[0].click()", heading(page, "train loss at the saddle"))
    find(page, "#columns summary")[0].click()
    find(page, "[aria-label='column minima']")[0].click()
    shown = [
        column(page, name) for name in ("finder", "train loss at the saddle", "minima", "test error of the ends [%]")
    ]
    csv_lines = list(csv.reader(page.execute_script("return csv()").splitlines()))
    assert [[line[csv_lines[0].index(name)] for line in csv_lines[1:]] for name in ("finder", "minima")] == shown[::2]
    errors = [float(row["min_test_error"]) for row in rows_of(compared) if row["finder"] == "line"]
    assert sorted(map(float, shown[3])) == pytest.approx(sorted(100 * error for error in errors), rel=1e-3)
    address = page.current_url.partition("#")[2]
    show(page, compared, address)
    assert [
        column(page, name) for name in ("finder", "train loss at the saddle", "minima", "test error of the ends [%]")
    ] == shown
    assert plotted(page) == ["line"]
    show(page, compared, "nonsense")
    assert find(page, "#count")[0].text == "16 of 16 rows"


def test_a_finder_keeps_its_look_whatever_is_filtered(page):
    looks = dict(zip(plotted(page), plotted(page, "line.color"), strict=True))
    filter_for(page, "finder").send_keys("bezier")
    assert plotted(page, "line.color") == [looks["bezier"]]
    assert looks == {name: looks_of(name).colour for name in ("bezier", "line")}


def test_seeds_are_means_and_bands(page, compared):
    find(page, "#bands")[0].click()
    low, high, middle = (plotted(page, "y")[k] for k in (3, 4, 5))
    assert plotted(page)[5] == "line, mean of 8"
    assert all(a <= b * (1 + 1e-6) and b <= c * (1 + 1e-6) for a, b, c in zip(low, middle, high, strict=True))
    assert plotted(page)[2] == "bezier, mean of 8"


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
    names = [names_by_width(rows_of(compared))[width] for width in ("[8]", "[16]")]
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


def test_planes_stand_side_by_side_in_one_scale(lowloss, driver, whole, tmp_path):
    for name in ("a", "b"):
        whole.copy(tmp_path / name)
    assert lowloss.plain(tmp_path, "compare", ".").status == 0
    show(driver, tmp_path / "compare")
    find(driver, "[data-plot=planes]")[0].click()
    assert plotted(driver, "type") == ["heatmap"] * 2
    assert plotted(driver, "coloraxis") == ["coloraxis"] * 2
    loss_RC = load_file(whole.root / "scans" / "plane-0000-0001" / "result.safetensors")["train_loss"]
    for z_CR in plotted(driver, "z"):
        np.testing.assert_allclose(np.array(z_CR).T, np.log10(loss_RC), atol=1e-4)
    browser.check(driver)


@pytest.mark.parametrize("width", [1280, 390])
def test_many_studies_scroll_in_a_page_of_one_width(lowloss, driver, sweep, tmp_path, width):
    one = next(iter(sweep.glob("*seed=0*")))
    for k in range(150):
        for folder in ("minima/0000", "paths/0000-0001-line", "paths/0000-0001-bezier"):
            shutil.copytree(one / folder, tmp_path / "many" / f"seed={k}" / folder, copy_function=os.link)
    assert lowloss.plain(tmp_path, "compare", "many").status == 0
    assert (tmp_path / "many" / "compare" / "index.html").stat().st_size < 2.6e6
    driver.execute_cdp_cmd(
        "Emulation.setDeviceMetricsOverride", {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    )
    try:
        show(driver, tmp_path / "many" / "compare")
        assert find(driver, "#count")[0].text == "300 of 300 rows"
        assert driver.execute_script("return document.documentElement.scrollWidth") <= width
        assert len(find(driver, "#table tbody td:first-child")) < 60
        driver.execute_script("document.querySelector('#table').scrollIntoView({ behavior: 'instant' })")
        for place in (0.5, 1):
            driver.execute_script(
                "t = document.getElementById('table'); t.scrollTop = arguments[0] * t.scrollHeight", place
            )
            first = driver.execute_async_script("""
                const done = arguments[0], box = document.querySelector("#table").getBoundingClientRect();
                const at = () => done(document.elementFromPoint(box.left + 20, box.bottom - 40).textContent);
                requestAnimationFrame(() => requestAnimationFrame(at));
            """)
            assert first.startswith("seed="), (place, first)
        # What was found is in view.
        rights = driver.execute_script("""
            const heads = [...document.querySelectorAll("#table thead tr:first-child th")];
            return Object.fromEntries(heads.map((th) => [th.textContent.trim(), th.getBoundingClientRect().right]));
        """)
        for name in ("finder", "barrier", *(["status"] if width > 1000 else [])):
            assert rights[name] <= width, rights
        # The first column stays where it is.
        left = "return document.querySelector('#table tbody td').getBoundingClientRect().left"
        before = driver.execute_script(left)
        driver.execute_script("document.getElementById('table').scrollLeft = 400")
        assert driver.execute_script(left) == before
        browser.check(driver)
    finally:
        driver.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_page_shows_a_study_on_click(page, sweep):
    assert not find(page, "#chosen img")
    first = find(page, "#table tbody tr:not([aria-hidden])")[0]
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
    # Another network's studies are of no sweep with these.
    other = tmp_path / "other" / "widths" / "0000"
    other.mkdir(parents=True)
    files.save_tensors(other / "result.safetensors", {}, {"minimum": 0, "angle": 5.0})
    other.joinpath("config.yaml").write_text("seed: 0\nmodel: another\noptimizer:\n  lr: 0.2\n  momentum: 0.9\n")
    written = draw_sweeps(sorted(tmp_path.iterdir()), tmp_path)
    assert [file.name for file in written] == ["sweeps.csv", "sweep-optimizer.lr.png"]
    with (tmp_path / "sweeps.csv").open(newline="") as lines:
        low, high = csv.DictReader(lines)
    assert (low["quantity"], low["setting"]) == ("angular width (degrees)", "optimizer.lr")
    for row, rate, mean, sd in ((low, 0.1, 13, 5**0.5), (high, 0.4, 25, 5)):
        assert (float(row["value"]), float(row["mean"]), row["count"]) == (rate, mean, "4")
        assert float(row["sd"]) == pytest.approx(sd)
    # Where nothing differs nothing is written.
    assert draw_sweeps([tmp_path / "lr=0.1,seed=0"], tmp_path / "none") == []


def test_a_sweep_has_no_mean_threshold_where_no_cut_is_large_enough_and_distances_too(tmp_path):
    high = {(0.1, 0): 20, (0.1, 1): 30, (0.4, 0): 20, (0.4, 1): None}
    for (rate, seed), found in high.items():
        notes = {"place": "initial", "which": 0.0, "low": 10, **({} if found is None else {"high": found})}
        kinds = {"dimensions/initial-00": notes, "widths/0000": {"angle": 1.0, "distance": 10 * rate}}
        for name, of in kinds.items():
            folder = tmp_path / f"lr={rate},seed={seed}" / name
            folder.mkdir(parents=True)
            files.save_tensors(folder / "result.safetensors", {}, of)
            folder.joinpath("config.yaml").write_text(f"seed: {seed}\noptimizer:\n  lr: {rate}\n")
    assert len(draw_sweeps(sorted(tmp_path.iterdir()), tmp_path)) == 2
    with (tmp_path / "sweeps.csv").open(newline="") as lines:
        found = {(row["quantity"], row["value"]): (row["mean"], row["count"]) for row in csv.DictReader(lines)}
    assert found["threshold dimension", "0.1"] == ("25.0", "2")
    assert found["threshold dimension", "0.4"] == ("", "2")
    assert [found["width as a distance", rate] for rate in ("0.1", "0.4")] == [("1.0", "2"), ("4.0", "2")]
