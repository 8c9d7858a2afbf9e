"""The report of a study: CSV tables, PNG figures and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
from math import isnan
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from lowloss import files
from lowloss.report import tables
from lowloss.report.figures import draw_figures, interactive_surface
from lowloss.report.gather import merge
from lowloss.report.graph import interactive_graph, mergings
from lowloss.report.look import STYLE
from lowloss.report.style import Picture
from lowloss.runs import Study

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


def build_report(study: Study, paper: dict[str, Any] | None = None) -> list[Path]:
    """Write tables (CSV), report/figures/*.png and report/index.html. Returns these files.

    paper: a row that was published, with its `source` and, by the names of TABLE_B1, its `row`.
    """
    points, paths, ensembles = tables.minima(study), tables.summary(study), tables.ensembles(study)
    overview = tables.table_b1(study, paths, points) if len(paths) else pd.DataFrame(columns=tables.TABLE_B1)
    folder = study.root / "report"
    shared = tables.overlap(study)
    written = {
        study.root / "summary.csv": paths,
        study.root / "ensemble.csv": ensembles,
        folder / "table_b1.csv": overview,
        folder / "overlap.csv": shared,
        folder / "classes.csv": tables.classes(study),
    }
    compared = tables.beside_paper(overview, paper) if paper and len(overview) else None
    if compared is not None:
        written[folder / "comparison.csv"] = compared
    for file, table in written.items():
        files.write_text(file, table.to_csv(index=False))
    pictures = draw_figures(study, folder / "figures")

    sections = []
    if len(overview):
        note = (
            "As table B.1 of Draxler et al. 2018: means over the minima and over the saddles of the minimum spanning "
            "tree of each finder's paths; factor is the ratio of the two train losses; the learning curve falls below "
            "the saddle loss at epoch for the last, and at epoch (first) for the first time (–: it ends above)."
        )
        title = "Minima and saddles, beside the paper's" if compared is not None else "Minima and saddles"
        sections.append(_section(title, _table(overview if compared is None else compared) + _note(note)))
    for picture in pictures:
        if not picture.title.startswith("Surface"):
            sections.append(_section(picture.title, _figure(picture)))
    plots = [(f"Clusters of minima, {m.finder}, to flood by hand", interactive_graph(m)) for m in mergings(study)]
    surface = interactive_surface(study)
    if surface is not None:
        plots.append(("The surface, to turn by hand", surface))
    for i, (title, plot) in enumerate(plots):
        content = plot.to_html(full_html=False, include_plotlyjs=i == 0, config=PLOTLY)
        sections.append(_section(title, content))
    if len(paths):
        note = "Errors are fractions; the columns are those of summary.csv."
        sections.append(_section("Every path", _table(paths) + _note(note)))
    if len(ensembles):
        sections.append(_section("Ensembles on the test split", _table(ensembles)))
    if len(points):
        sections.append(_section("Every minimum", _table(points)))
    if len(shared):
        note = "Test samples that two minima misclassify, and those that both do, over the mean of the two numbers."
        sections.append(_section("Overlap of the misclassified", _table(shared) + _note(note)))
    sections.append(_section("Configuration", _configuration(study)))
    name = html.escape(study.root.name)
    page = (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name} · lowloss</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f'<link rel="icon" href="data:,"><style>{STYLE}</style></head><body><main><h1>{name}</h1>'
        f'<p class="sub">A lowloss study: {len(points)} minima, {len(paths)} paths, '
        f"{len(study.complete('ensembles'))} ensembles, {len(study.complete('scans'))} scans.</p>"
        f"{_facts(paths, ensembles)}{''.join(sections)}</main></body></html>"
    )
    files.write_text(folder / "index.html", page)
    return [*written, *(picture.file for picture in pictures), folder / "index.html"]


def _facts(paths: pd.DataFrame, ensembles: pd.DataFrame) -> str:
    facts = []
    if len(paths):
        for finder, group in paths.groupby("finder", sort=False):
            facts.append(
                (f"{group['barrier_train_loss'].mean():.2g}", f"barrier: {finder}, mean of {len(group)} (nats)")
            )
    for _, row in ensembles.iterrows():
        label = f"test error: {row['method']}, {row['members']} network{'s' if row['members'] > 1 else ''}"
        facts.append((f"{100 * row['test_error']:.2f} %", label))
    cards = "".join(f'<div class="fact"><b>{value}</b><span>{html.escape(text)}</span></div>' for value, text in facts)
    return f'<div class="facts">{cards}</div>' if cards else ""


def _section(title: str, content: str) -> str:
    return f"<section><h2>{html.escape(title)}</h2>{content}</section>"


def _note(text: str) -> str:
    return f'<p class="note">{html.escape(text)}</p>'


def _figure(picture: Picture) -> str:
    data = base64.b64encode(picture.file.read_bytes()).decode()
    return (
        f'<figure><img alt="{html.escape(picture.title)}" src="data:image/png;base64,{data}">'
        f"<figcaption>{html.escape(picture.caption)}</figcaption></figure>"
    )


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{html.escape(HEADINGS.get(name, name.replace('_', ' ')))}</th>" for name in frame.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(_cell(value))}</td>" for value in row) + "</tr>"
        for row in frame.itertuples(index=False)
    )
    return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'


def _cell(value: Any) -> str:
    if not isinstance(value, float):
        return str(value)
    return "–" if isnan(value) else f"{value:.4g}"  # an empty cell of the CSV tables


def _configuration(study: Study) -> str:
    merged: dict[str, Any] = {}
    for kind in ("minima", "paths", "ensembles", "scans"):
        for artifact in study.complete(kind):
            merged = merge(merged, yaml.safe_load((artifact.folder / "config.yaml").read_text(encoding="utf-8")))
    return f"<pre>{html.escape(yaml.safe_dump(merged, sort_keys=False))}</pre>"
