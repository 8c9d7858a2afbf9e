"""The report of a study: CSV tables, figures and one self-contained HTML page, that begins with what was found."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from importlib import import_module
from math import isnan
from pathlib import Path
from typing import Any

import matplotlib as mpl
import pandas as pd
import yaml

from lowloss import files
from lowloss.papers import compare, published_of
from lowloss.progress import counted
from lowloss.report import tables
from lowloss.report.gather import merged_config
from lowloss.report.markup import data_url, packed, render, to_json
from lowloss.report.pictures import STYLE, Picture, Shown, Table
from lowloss.study import Study

FIRST = ("paths", "ensembles", "minima")
"""Kinds of whose findings the page tells first; others follow in the order of their stages."""


def build_report(study: Study, kinds: Sequence[str], published: str | None = None) -> list[Path]:
    """Write tables (CSV), report/figures and report/index.html. Returns these files.

    Args:
        kinds: of artifacts; how each is shown says the module of this package of that name.
        published: the experiment whose published numbers stand beside ours.
    """
    root, folder = study.root, study.root / "report"
    (folder / "figures").mkdir(parents=True, exist_ok=True)
    written, plots = list[Path](), list[dict[str, Any]]()
    sections, found = list[dict[str, Any]](), dict[str, list[str]]()
    lead: dict[str, Picture] = {}
    for kind in kinds:
        shown: Shown = import_module(f"lowloss.report.{kind}").SHOWN
        own = [table for table in shown.tables(study) if len(table.frame.columns)]
        for table in own:
            files.write_text(root / table.file, table.frame.to_csv(index=False))
            written.append(root / table.file)
        with mpl.rc_context(STYLE):
            pictures = list(shown.draw(study, folder / "figures"))
        written += [file for picture in pictures for file in picture.files]
        found[kind] = list(shown.found(study))
        sections.append({"id": kind, "title": shown.title, "pictures": pictures, "tables": own})
        for picture in pictures:
            if picture.lead and kind not in lead:
                lead[kind] = picture
    compared = compare(root, published_of(published))
    if len(compared):
        source = ", ".join(sorted({*compared["result"]}))
        table = Table("report/comparison.csv", compared, source)
        files.write_text(root / table.file, compared.to_csv(index=False))
        written.append(root / table.file)
        sections.insert(0, {"id": "published", "title": "Beside what was published", "pictures": [], "tables": [table]})
    titles = [picture.title for picture in lead.values()]
    groups = {s["id"]: _groups(s["pictures"], plots) for s in sections}
    first = [group for one in groups.values() for group in one if group["title"] in titles]
    if not first:  # whatever figure there is
        first = next((one[:1] for one in groups.values() if one), [])
    shown_sections = []
    overview: dict[str, Any] | None = None
    for section in sections:
        figures = [group for group in groups[section["id"]] if group not in first]
        own_tables = [_table(table) for table in section["tables"] if table.title and len(table.frame)]
        if section["id"] == "paths" and own_tables:
            overview, *own_tables = own_tables
        if figures or own_tables:
            about = {"id": section["id"], "title": section["title"]}
            shown_sections.append({**about, "figures": figures, "tables": own_tables, "text": ""})
    text = yaml.safe_dump(merged_config(study), sort_keys=False)
    shown_sections.append({"id": "configuration", "title": "Configuration", "figures": [], "tables": [], "text": text})
    # The first sentence stands alone, the others are a paragraph a kind.
    every = [[*found[kind]] for kind in sorted(kinds, key=_order) if found[kind]]
    first_told = every[0].pop(0) if every else ""
    told = [first_told, *(" ".join(sentences) for sentences in every if sentences)] if every else []
    counts = [counted(len(study.complete(kind)), kind) for kind in kinds if study.complete(kind)]
    sub = f"A lowloss study: {', '.join(counts)}."
    if study.left_out:
        sub += f" Left out, since damaged: {', '.join(sorted(study.left_out))}."
    page = render(
        "report.html", name=root.name, kind="lowloss", sub=sub, found=told,
        lead=first, first=overview, sections=[{"id": "found", "title": "What was found"}, *shown_sections],
        data=packed(to_json(plots)),
    )  # fmt: skip
    files.write_text(folder / "index.html", page)
    return [*written, folder / "index.html"]


def _order(kind: str) -> int:
    return FIRST.index(kind) if kind in FIRST else len(FIRST)


def _groups(pictures: Iterable[Picture], plots: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The pictures by their titles, a panel a picture or a plot; plots are added to the list."""
    groups: dict[str, dict[str, Any]] = {}
    for picture in pictures:
        name = re.sub(r"\W+", "-", picture.title.lower())
        group = groups.setdefault(picture.title, {"id": f"figure-{name}", "title": picture.title, "panels": []})
        links = [f"figures/{file.name}" for file in picture.files]
        panel = {"tab": picture.tab, "caption": picture.caption, "files": links, "image": None}
        for tab, plot in picture.plots.items():
            group["panels"].append({**panel, "tab": tab, "plot": len(plots)})
            plots.append(plot)
        if not picture.plots:
            group["panels"].append({**panel, "image": data_url(picture.file.with_suffix(".svg"))})
    return list(groups.values())


def _table(table: Table) -> dict[str, Any]:
    """A table as the page shows it: fractions in per cent, and what is not among the main columns for later."""
    frame, columns, values = table.frame, [], []
    for name in frame.columns:
        words = {name, *name.split("_")}
        fraction, percent = (not words.isdisjoint(some) for some in (table.fractions, table.percent))
        fraction &= pd.api.types.is_numeric_dtype(frame[name])
        heading = tables.heading(name, frame.columns)
        unit = " [%]" if (fraction or percent) and "%" not in heading and "wrong" not in words else ""
        columns.append({"name": heading + unit, "key": name, "more": bool(table.main) and name not in table.main})
        values.append([_cell(100 * value if fraction else value) for value in frame[name]])
    order = [*frame.columns]
    places = sorted(
        range(len(order)), key=lambda c: table.main.index(order[c]) if order[c] in table.main else len(order)
    )
    return {
        "id": "table-" + Path(table.file).stem.replace("_", "-"), "title": table.title, "note": table.note,
        "file": str(Path(table.file).relative_to("report")) if table.file.startswith("report/") else f"../{table.file}",
        "columns": [columns[c] for c in places], "rows": list(zip(*(values[c] for c in places), strict=True)),
        "more": any(column["more"] for column in columns),
    }  # fmt: skip


def _cell(value: Any) -> tuple[str, float | None]:
    """A cell's text, and its number if it is one. An empty cell of the CSV tables is a dash."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        number = getattr(value, "item", lambda: None)()
        return (str(value), None) if not isinstance(number, (int, float)) or isinstance(number, bool) else _cell(number)
    if isinstance(value, float) and isnan(value):
        return "–", None
    return (f"{value:.4g}" if isinstance(value, float) else str(value)), float(value)
