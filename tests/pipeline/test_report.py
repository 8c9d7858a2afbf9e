"""The page of a study in a real browser: what it says first, its plots and its controls."""

import csv
import importlib.util
import re
from math import nan
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure

from lowloss.report import planes, scans
from lowloss.report.looks import BASELINES, LOOKS, NAMED, look, looks
from lowloss.report.paths import ABOVE, BARRIER, apart, beside_the_line, lowest
from lowloss.report.tables import heading

# Test modules have no package, so what stands beside them is loaded by its path.
_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

READY = "document.querySelectorAll('.lead .plot .main-svg').length > 1"


@pytest.fixture(scope="module")
def driver(tmp_path_factory):
    with browser.start(tmp_path_factory.mktemp("profile")) as started:
        yield started


@pytest.fixture
def page(driver, whole):
    browser.show(driver, whole.root / "report" / "index.html", READY)
    yield driver
    browser.check(driver)


def find(page, selector):
    return page.find_elements("css selector", selector)


def click(page, box):
    page.execute_script("arguments[0].click()", box)


def column(page, table, name):
    names = [cell.text.replace("\n", " ") for cell in find(page, f"#{table} th")]
    return [cell.text for cell in find(page, f"#{table} tbody td:nth-child({names.index(name) + 1})")]


def test_the_first_sentence_is_what_the_table_below_says(page):
    rows = zip(*(column(page, "table-summary", name) for name in ("finder", "start", "end", "barrier")), strict=True)
    barriers = {}
    for finder, start, end, barrier in rows:
        barriers.setdefault(finder, {})[start, end] = float(barrier)
    straight = barriers.pop("line")
    pairs = {finder: [pair for pair in own if pair in straight] for finder, own in barriers.items()}
    means = {
        finder: [sum(one[pair] for pair in pairs[finder]) / len(pairs[finder]) for one in (own, straight)]
        for finder, own in barriers.items()
    }
    lowest = min(means, key=lambda finder: means[finder][0] / means[finder][1])
    told = find(page, "#found p.found")[0].text
    if 0 < means[lowest][0] < means[lowest][1]:
        form = r"is ([\d,.]+) times lower than the straight line's: (\S+) against (\S+) nats"
        times, low, high = re.search(form, told).groups()
        assert float(times.replace(",", "")) == pytest.approx(means[lowest][1] / means[lowest][0], rel=0.06)
    else:
        low, high = re.search(r"barrier is (\S+), the straight line's (\S+) nats", told).groups()
    assert told.startswith({"autoneb": "AutoNEB's", "bezier": "The Bezier curve's"}[lowest])
    assert [float(low), float(high)] == pytest.approx(means[lowest], rel=0.06)
    assert len(pairs[lowest]) == 1 or f"over the {len(pairs[lowest])} pairs that both have" in told
    best = next(shown.text for shown in find(page, "#found p") if " ensemble of " in shown.text)
    errors = column(page, "table-ensemble", "test error [%]")
    assert float(re.search(r"test error of (\S+) %", best)[1]) == pytest.approx(min(map(float, errors[1:])), rel=0.06)


@pytest.mark.parametrize(
    ("column", "said"),
    [
        ("saddle_train_loss", "train loss at the saddle"),
        ("saddle_test_error", "highest test error"),  # wherever it is on the path
        ("test_error_at_saddle", "test error at the saddle"),
        ("test_error_saddle", "highest test error"),
        ("min_test_error", "test error of the ends"),
        ("test_error_min", "test error of the minima"),
        ("optimizer.lr", "optimizer.lr"),
    ],
)
def test_a_column_says_what_it_has(column, said):
    assert heading(column) == said


def test_the_lowest_value_along_a_path_is_no_minimum():
    assert heading("test_error_min", ["test_error_min", "test_error_max"]) == "lowest test error"


def test_barriers_are_compared_over_the_pairs_that_both_have():
    rows = [
        # finder, start, end, barrier, barrier above the higher end
        ("line", 0, 1, 0.2, 0.1), ("line", 0, 2, 0.4, 0.3), ("line", 1, 2, 9.0, 8.0), ("line", 3, 4, 0.0, 0.0),
        ("autoneb", 0, 1, 0.01, 0.01), ("autoneb", 0, 2, 0.02, 0.16), ("autoneb", 1, 3, 5.0, 5.0),
        ("bezier", 1, 2, 3.0, 4.5), ("bezier", 0, 2, nan, nan), ("bezier", 3, 4, 0.0, 0.001),
    ]  # fmt: skip
    paths = pd.DataFrame(rows, columns=["finder", "start", "end", BARRIER, ABOVE])

    def told(*finders):
        some = paths[paths["finder"].isin(finders)]
        found = lowest(some)
        return [*([beside_the_line(found, "nats")] if found is not None else []), *apart(some)]

    # AutoNEB and the line on 0–1 and 0–2: 0.015 and 0.3. Each beside the half of the line's, 0.01 < 0.05, 0.16 > 0.15,
    # 4.5 > 4; 1–3 has no line, and the line on 3–4 no barrier.
    assert told("line", "autoneb", "bezier") == [
        "AutoNEB's barrier is 20 times lower than the straight line's: 0.015 against 0.3 nats, means over the 2 pairs "
        "that both have.",
        "2 of 4 pairs stay apart: their lowest path keeps more than half of the straight line's barrier above the "
        "higher end.",
    ]
    # The Bezier curve on 1–2 and 3–4: 1.5 and 4.5.
    assert told("line", "bezier")[0] == (
        "The Bezier curve's barrier is 3 times lower than the straight line's: 1.5 against 4.5 nats, means over the 2 "
        "pairs that both have."
    )
    assert told("line", "bezier")[1].startswith("1 of 2 pairs stays apart: ")
    assert told("line", "autoneb")[1].startswith("1 of 2 pairs stays apart: its lowest path keeps more than half ")
    assert told("autoneb") == ["AutoNEB's barrier is 1.7 nats, the mean of 3 paths."]
    paths = paths[paths["end"] == 1]
    assert told("line", "autoneb") == [
        "AutoNEB's barrier is 20 times lower than the straight line's: 0.01 against 0.2 nats, between minima 0 and 1."
    ]
    paths = paths.assign(**{ABOVE: 0.1})
    assert told("line", "autoneb")[1].startswith("Minima 0 and 1 stay apart: their lowest path keeps more than half ")
    paths = paths.assign(**{BARRIER: nan, ABOVE: nan})
    assert told("line", "autoneb") == []


def test_errors_are_in_one_unit_and_what_matters_fits_the_screen(page, whole):
    with (whole.root / "summary.csv").open(newline="") as lines:
        saddles = [100 * float(row["saddle_test_error"]) for row in csv.DictReader(lines)]
    assert [float(text) for text in column(page, "table-summary", "highest test error [%]")] == pytest.approx(
        saddles, rel=1e-3
    )
    for width in (1280, 390):
        metrics = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
        page.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        try:
            browser.show(page, whole.root / "report" / "index.html", READY)
            assert page.execute_script("return document.documentElement.scrollWidth") <= width
            for name in ("table-table-b1", "table-summary", "table-ensemble"):
                box = find(page, f"#{name} .scroll")[0]
                wide = page.execute_script("return arguments[0].scrollWidth > arguments[0].clientWidth", box)
                assert not wide or width == 390, name
        finally:
            page.execute_cdp_cmd("Emulation.clearDeviceMetricsOverride", {})


def test_a_path_is_shown_on_the_plane_and_back(page):
    ring = "return (d => [d.x[0], d.y[0]])(document.querySelector('[data-plot=\"{}\"]').data.at(-1))"
    paths, plane = (box.get_attribute("data-plot") for box in find(page, ".lead .plot")[::2][:2])
    hover = """
        const [plot, name, pointNumber] = arguments, box = document.querySelector(`[data-plot="${plot}"]`);
        const data = box.data.find((one) => one.meta && one.meta.path === name);
        box.emit("plotly_hover", { points: [{ data, pointNumber }] });
        return [data.x[pointNumber], data.y[pointNumber]];
    """
    name = page.execute_script(
        "return document.querySelector(`[data-plot=\"${arguments[0]}\"]`).data.map((one) => one.meta && one.meta.path)"
        ".filter((one) => one && !one.endsWith('line'))[0]", plane,
    )  # fmt: skip
    for here, there in ((paths, plane), (plane, paths)):
        at = page.execute_script(hover, here, name, 7)
        assert page.execute_script(ring.format(here)) == pytest.approx(at)
        other = page.execute_script(hover, there, name, 7)
        assert page.execute_script(ring.format(there)) == pytest.approx(other)


SORTS = """
const wrong = [];
for (const table of document.querySelectorAll(".table")) for (const button of table.querySelectorAll("th button")) {
  for (const sign of [1, -1]) {
    button.click();
    const cells = [...table.querySelectorAll("tbody tr")].map((row) => row.cells[button.parentElement.cellIndex]);
    const numbers = cells.map((cell) => cell.dataset.value).filter((text) => text !== undefined).map(Number);
    const held = numbers.length ? numbers : cells.map((cell) => cell.textContent);
    const order = (a, b) => sign * (numbers.length ? a - b : a.localeCompare(b));
    const sorted = held.every((one, k) => !k || order(one, held[k - 1]) >= 0);
    const told = button.parentElement.ariaSort === (sign > 0 ? "ascending" : "descending");
    if (!sorted || !told) wrong.push(button.textContent);
  }
}
return wrong;
"""


def test_every_control_does_what_it_says(page):
    assert page.execute_script(SORTS) == []
    (more,) = find(page, "#table-summary .columns")
    before = len([cell for cell in find(page, "#table-summary th") if cell.is_displayed()])
    click(page, more)
    assert len([cell for cell in find(page, "#table-summary th") if cell.is_displayed()]) == 24 > before
    for figure in find(page, ".tabs"):
        tabs, panels = (figure.find_elements("css selector", f"[role={role}]") for role in ("tab", "tabpanel"))
        for k, tab in enumerate(tabs):
            click(page, tab)
            assert [panel.is_displayed() for panel in panels] == [k == j for j in range(len(panels))]
    for link in find(page, "#contents a"):
        assert find(page, link.get_attribute("href")[link.get_attribute("href").index("#") :])
    # All plots are drawn before the page is printed: the surfaces carry minima and path, and their axes have names.
    page.execute_async_script("all().then(arguments[0])")
    scenes = page.execute_script("""
        const names = ({ scene }) => ["xaxis", "yaxis", "zaxis"].map((axis) => scene[axis].title.text);
        return [...document.querySelectorAll(".plot")].filter((box) => box.layout.scene)
          .map((box) => [box.data.map((one) => one.type), ...names(box.layout)]);
    """)
    assert [types.count("scatter3d") for types, *_ in scenes] == [4, 1]  # with the ring that shows where the pointer is
    assert all(name for _, *names in scenes for name in names)


def test_the_page_is_small_and_soon_there(driver, whole):
    file = whole.root / "report" / "index.html"
    assert file.stat().st_size < 4e6
    assert min(browser.show(driver, file, READY) for _ in range(2)) < 10


MACHADO = [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]]
"""Deuteranopia in linear RGB (Machado et al. 2009, severity 1)."""
XYZ = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]


def lab(colour, matrix):
    """CIELAB of an sRGB colour that is seen through a matrix."""
    import numpy as np

    rgb = np.array([int(colour[k : k + 2], 16) / 255 for k in (1, 3, 5)])
    linear = np.clip(np.array(matrix) @ np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4), 0, 1)
    x, y, z = np.cbrt(np.maximum(np.array(XYZ) @ linear / [0.95047, 1, 1.08883], 1e-9))
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


@pytest.mark.parametrize("matrix", [MACHADO, [[1, 0, 0], [0, 1, 0], [0, 0, 1]]], ids=["deuteranopia", "all cones"])
def test_looks_are_told_apart(matrix):
    every = [look(BASELINES[0]), *LOOKS]
    seen = [lab(one.colour, matrix) for one in every]
    for k, one in enumerate(every):
        for other, place in zip(every[:k], seen, strict=False):
            away = float(((seen[k] - place) ** 2).sum() ** 0.5)
            assert away >= 20 or (one.style != other.style and one.marker != other.marker), (one, other, away)
    assert len({*LOOKS}) == len(LOOKS) == 25
    assert len({look(name) for name in NAMED}) == len(NAMED)


def test_a_look_follows_from_the_name():
    names = [f"seed={k}" for k in range(12)]
    given = looks([*names, "bezier", "line"])
    assert len({*given.values()}) == len(given)
    assert given == looks(["line", *reversed(names), "bezier"])
    assert {name: given[name] for name in ("bezier", "line")} == {name: look(name) for name in ("bezier", "line")}
    assert [look(c) for c in range(10)] == LOOKS[:10]


@pytest.mark.parametrize("height", [1.0, 2.5, 0.4, 10.0])
@pytest.mark.parametrize("place", [(0.97, 0.5), (0.75, 0.97), (0.5, 0.5), (0.02, 0.02)])
def test_labels_of_minima_stay_on_the_plane(height, place):
    grid = {"axis-0": np.linspace(0, 1, 5), "axis-1": np.linspace(0, height, 5)}
    grid |= {"anchors": np.array([[place[0], place[1] * height]]), "train_loss": np.arange(1.0, 26).reshape(5, 5)}
    notes = {
        "anchor_names": ["minimum 1, epoch 5"],
        "settings": {"_target_": "", "directions": "pca"},
        "units": {"loss": "nats", "error": "fraction"},
    }
    figure = scans.plane_figure(grid, notes)
    figure.canvas.draw()
    axis = figure.axes[0]
    (label,) = (text for text in axis.texts if text.get_text() == "1, epoch 5")
    (x0, y0), (x1, y1) = axis.transAxes.inverted().transform(label.get_window_extent())
    assert -0.01 < x0 < x1 < 1.01, (x0, x1)
    assert -0.01 < y0 < y1 < 1.01, (y0, y1)


def test_a_plane_of_zeros_has_a_linear_scale():
    grid = {"axis-0": np.arange(3.0), "axis-1": np.arange(3.0), "anchors": np.zeros((0, 2))}
    notes, losses = {"anchor_names": []}, {scale: np.full((3, 3), scale) for scale in (0.0, 0.01)}
    for value, z, told in ((0.0, 0, "train loss"), (0.01, -2, "log10 train loss")):
        filled = grid | {"train_loss": losses[value]}
        for plot in (
            planes.contours_plot(filled, notes, [], "train_loss", "loss", 1),
            planes.surface(filled, notes, []),
        ):
            assert np.all(np.array(plot["data"][0]["z"]) == z)
        assert planes.surface(filled, notes, [])["layout"]["scene"]["zaxis"]["title"] == told
        figure = Figure()
        scans.contours(figure, figure.add_subplot(), filled, losses[value], "loss", logarithmic=True)
        figure.canvas.draw()
