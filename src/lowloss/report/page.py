"""The report of a study: CSV tables, PNG figures and one self-contained HTML page."""

from __future__ import annotations

import html
from collections.abc import Callable, Iterable, Mapping
from math import isnan
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import yaml

from lowloss import files
from lowloss.papers import compare, published_of
from lowloss.report import tables
from lowloss.report.curves import curves
from lowloss.report.disconnectivity import interactive_graph, mergings
from lowloss.report.ensembles import budgets
from lowloss.report.figures import interactive_surface
from lowloss.report.gather import merged_config
from lowloss.report.markup import data_url, page
from lowloss.report.pictures import STYLE, Picture
from lowloss.study import Study

PLOTLY = {"displaylogo": False, "modeBarButtonsToRemove": ["sendChartToCloud"]}
"""Without plotly's buttons that would leave the page."""

HEADINGS = {
    "train_loss_min": "train loss, min.", "train_loss_saddle": "train loss, saddle", "factor": "factor",
    "epoch": "epoch", "epoch_first": "epoch (first)",
    "test_loss_min": "test loss, min.", "test_loss_saddle": "test loss, saddle",
    "test_error_min": "test error [%], min.", "test_error_saddle": "test error [%], saddle", "delta": "Δ [%]",
    "length_ratio": "length / distance", "barrier_train_loss": "barrier (train)", "pivots": "inner bends",
    "gradient_evaluations": "gradients",
}  # fmt: skip


B1_NOTE = (
    "As table B.1 of Draxler et al. 2018: means over the minima and over the saddles of the minimum spanning tree of "
    "each finder's paths; factor is the ratio of the two train losses; the learning curve falls below the saddle loss "
    "at epoch for the last, and at epoch (first) for the first time (–: it ends above)."
)
CURVES_NOTE = (
    "As table 2 of Garipov et al. 2018: least and highest value, mean over the length (int) and over t (mean); l2: "
    "with the finder's L2 term. Errors are in per cent."
)
PATHS_NOTE = "Errors are fractions; the columns are those of summary.csv"
BUDGETS_NOTE = "A budget is a run; fractions are in per cent but for ece, the calibration error, and disagreement."
MINIMA_NOTE = "Means over the minima, and their standard deviations over the seeds; fractions are in per cent."
OVERLAP_NOTE = "Test samples that two minima misclassify, and those that both do, over the mean of the two numbers."


def build_report(
    study: Study,
    draw: Callable[[Path], Iterable[Picture]],
    published: str | None = None,
    own: Mapping[str, pd.DataFrame] | None = None,
) -> list[Path]:
    """Write tables (CSV), report/figures/*.png and report/index.html. Returns these files.

    Args:
        draw: draws the figures of every kind of artifact into a folder.
        published: the experiment whose published numbers stand beside ours.
        own: further tables of kinds of artifacts, by name; those without rows are left out.
    """
    points, paths, ensembles = tables.minima(study), tables.summary(study), tables.ensembles(study)
    empty = pd.DataFrame(columns=tables.table_b1_columns({}))
    overview, shared = tables.table_b1(study, paths, points) if len(paths) else empty, tables.overlap(study)
    root, folder = study.root, study.root / "report"
    written = {root / "summary.csv": paths, root / "ensemble.csv": ensembles, folder / "table_b1.csv": overview,
               folder / "overlap.csv": shared, folder / "classes.csv": tables.classes(study)}  # fmt: skip
    written[folder / "budgets.csv"] = bought = budgets(study)
    written[folder / "curves.csv"] = along = curves(study)
    written[folder / "minima.csv"] = typical = tables.mean_minimum(points, tables.units(study))
    own = {name: table for name, table in (own or {}).items() if len(table)}
    written |= {folder / f"{name}.csv": table for name, table in own.items()}
    for file, table in written.items():
        files.write_text(file, table.to_csv(index=False))
    compared = compare(root, published_of(published))
    if len(compared):
        written[folder / "comparison.csv"] = compared
        files.write_text(folder / "comparison.csv", compared.to_csv(index=False))
    (folder / "figures").mkdir(exist_ok=True)
    with mpl.rc_context(STYLE):
        pictures = list(draw(folder / "figures"))

    source = ", ".join(sorted({*compared["result"]}))
    sections = [
        _table_section("Minima and saddles", overview, B1_NOTE),
        _table_section(f"Beside what was published ({source})", compared),
        *(_section(p.title, _figure(p)) for p in pictures if not p.title.startswith("Surface")),
    ]
    plots = [(f"Clusters of minima, {m.finder}, to flood by hand", interactive_graph(m)) for m in mergings(study)]
    if (surface := interactive_surface(study)) is not None:
        plots.append(("The surface, to turn by hand", surface))
    for i, (title, plot) in enumerate(plots):
        sections.append(_section(title, plot.to_html(full_html=False, include_plotlyjs=i == 0, config=PLOTLY)))
    text = yaml.safe_dump(merged_config(study), sort_keys=False)
    sections += [
        *(_table_section(name.replace("_", " ").capitalize(), table) for name, table in own.items()),
        _table_section("Every path", paths, ". ".join([PATHS_NOTE, *tables.doubts(paths.to_dict("records"))])),
        _table_section("Along every path", along, CURVES_NOTE),
        _table_section("Ensembles on the test split", ensembles),
        _table_section("Ensembles by budget", bought, BUDGETS_NOTE),
        _table_section("Minima on average", typical, MINIMA_NOTE),
        _table_section("Every minimum", points),
        _table_section("Overlap of the misclassified", shared, OVERLAP_NOTE),
        _section("Configuration", f"<pre>{html.escape(text)}</pre>"),
    ]
    counts = [f"{len(study.complete(kind))} {kind}" for kind in ("ensembles", "scans")]
    sub = f"A lowloss study: {len(points)} minima, {len(paths)} paths, {', '.join(counts)}."
    files.write_text(
        folder / "index.html", page(root.name, "lowloss", sub, "".join([_facts(paths, ensembles), *sections]))
    )
    return [*written, *(picture.file for picture in pictures), folder / "index.html"]


def _facts(paths: pd.DataFrame, ensembles: pd.DataFrame) -> str:
    facts = [
        (f"{group['barrier_train_loss'].mean():.2g}", f"barrier: {finder}, mean of {len(group)} (nats)")
        for finder, group in paths.groupby("finder", sort=False)
    ]
    for _, row in ensembles.iterrows():
        name = ensembles.columns[-1]
        shown = f"{100 * row[name]:.2f} %" if name == "test_error" else f"{row[name]:.4g}"
        members = f"{row['members']} network{'s' if row['members'] > 1 else ''}"
        facts.append((shown, f"{name.replace('_', ' ')}: {row['method']}, {members}"))
    cards = "".join(f'<div class="fact"><b>{value}</b><span>{html.escape(text)}</span></div>' for value, text in facts)
    return f'<div class="facts">{cards}</div>' if cards else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def _figure(picture: Picture) -> str:
    title, caption = html.escape(picture.title), html.escape(picture.caption)
    return f'<figure><img alt="{title}" src="{data_url(picture.file)}"><figcaption>{caption}</figcaption></figure>'


def _table_section(title: str, frame: pd.DataFrame, note: str = "") -> str:
    """A table under its title; nothing if it has no rows."""
    if frame.empty:
        return ""
    rows = [f"<th>{html.escape(HEADINGS.get(name, name.replace('_', ' ')))}</th>" for name in frame.columns]
    body = "".join(f"<tr>{''.join(map(_cell, row))}</tr>" for row in frame.itertuples(index=False))
    table = f"<table><thead><tr>{''.join(rows)}</tr></thead><tbody>{body}</tbody></table>"
    below = f'<p class="note">{html.escape(note)}</p>' if note else ""
    return _section(title, f'<div class="scroll">{table}</div>{below}')


def _cell(value: Any) -> str:
    # An empty cell of the CSV tables is a dash.
    text = str(value) if not isinstance(value, float) else "–" if isnan(value) else f"{value:.4g}"
    return f"<td>{html.escape(text)}</td>"
