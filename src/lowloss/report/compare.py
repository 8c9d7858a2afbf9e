"""The comparison of many studies: one CSV table and one self-contained HTML page."""

from __future__ import annotations

import base64
import html
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pandas as pd

from lowloss import files
from lowloss.errors import LowlossError
from lowloss.report.gather import ALONG, Options, Record, common_folder, gather, option_name
from lowloss.report.look import STYLE

FIGURES_LIMIT = 24_000_000
"""Bytes of figures that the page holds itself; it links to those beyond."""

PAGE_STYLE = """
main { max-width: 1360px; }
nav { display: flex; gap: 8px; flex-wrap: wrap; align-items: center; margin: 0 0 12px; }
nav label { color: var(--soft); font-size: 14px; margin-left: 10px; }
button, select, input { font: inherit; font-size: 14px; border: 1px solid var(--line); border-radius: 7px;
  padding: 4px 10px; background: #fff; color: var(--ink); }
button { cursor: pointer; } button[aria-pressed=true] { background: var(--accent); color: #fff; }
#table { max-height: 560px; overflow: auto; }
#table th { cursor: pointer; position: sticky; top: 0; background: #fff; }
#table th[aria-sort=ascending]::after { content: " ▲"; } #table th[aria-sort=descending]::after { content: " ▼"; }
#table tr.filters th { top: 36px; cursor: default; } #table input { width: 100%; min-width: 64px; padding: 2px 6px; }
#table tbody tr { cursor: pointer; } #table tbody tr:hover, tr.chosen { background: #eef3fb; }
#plot { height: 520px; } #chosen-plot { height: 340px; }
#pictures { display: grid; grid-template-columns: repeat(auto-fit, minmax(420px, 1fr)); gap: 14px; }
"""

HINT = (
    "A click on a heading sorts; a filter is a part of a text, or for numbers a comparison such as <0.1 or >=2. "
    "The plots show what the filters leave. A click on a row or a path shows its study."
)


def compare(folders: Sequence[Path], options: Options, to: Path | None = None) -> tuple[Path, list[str]]:
    """Write table.csv and index.html for all studies at or under the folders.

    Args:
        options: the options of the groups `model` and `data`, to name what studies were made with.
        to: where; by default `compare` in the studies' common folder.

    Returns:
        The page, and a line for each artifact that could not be read.

    Raises:
        LowlossError: a folder holds no study, or `to` is no folder.
    """
    if to is not None and to.exists() and not to.is_dir():
        raise LowlossError(f"--to {to} is a file: name a folder, which is made if it is not there")
    records, table = gather([folder.resolve() for folder in folders], options)
    common = common_folder([record.root for record in records])
    to = (to or common / "compare").resolve()
    for name, text in (
        ("table.csv", table.to_csv(index=False)),
        ("index.html", _page(records, table, options, common, to)),
    ):
        # A folder's name may be no text.
        files.write_text(to / name, text.encode(errors="replace").decode())
    return to / "index.html", [line for record in records for line in record.damaged]


def _page(records: list[Record], table: pd.DataFrame, options: Options, common: Path, to: Path) -> str:
    from plotly.offline import get_plotlyjs

    owners = [index for index, record in enumerate(records) for _ in record.paths or [{}]]
    paths = [_along(path["along"]) if path else "null" for record in records for path in record.paths or [{}]]
    data = {
        "columns": list(table.columns),
        "rows": [[_plain(value) for value in row] for row in table.itertuples(index=False)],
        "owners": owners,
        "studies": _studies(records, common, to),
        "overview": _overview(records, options),
    }
    held = json.dumps(data, allow_nan=False, separators=(",", ":"))
    # No text of a study may end the script element, or begin another.
    held = f'{held[:-1]},"paths":[{",".join(paths)}]}}'.replace("<", "\\u003c")
    script = Path(__file__).with_name("compare.js").read_text(encoding="utf-8")
    name = html.escape(common.name)
    body = (
        f'<h1>{name}</h1><p class="sub">{len(records)} lowloss studies, {sum(len(r.paths) for r in records)} paths'
        '</p><section><nav id="plots"><button data-plot="paths">Along the paths</button>'
        '<button data-plot="architectures">Minima and saddles</button>'
        '<label>of <select id="metric"></select></label><label>coloured by <select id="colour"></select></label>'
        '<label><input type="checkbox" id="log" checked> logarithmic</label></nav>'
        '<div id="plot"></div><p class="note" id="caption"></p></section>'
        '<section><nav><b id="count"></b><button id="all" hidden>show all</button></nav><div id="table"></div>'
        f'<p class="note">{html.escape(HINT)}</p></section><section id="chosen" hidden></section>'
    )
    return (
        f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{name} · lowloss compare</title>'
        '<meta name="viewport" content="width=device-width, initial-scale=1"><link rel="icon" href="data:,">'
        f"<style>{STYLE}{PAGE_STYLE}</style></head><body><main>{body}</main><script>{get_plotlyjs()}</script>"
        f'<script type="application/json" id="data">{held}</script><script>{script}</script></body></html>'
    )


def _studies(records: list[Record], common: Path, to: Path) -> list[dict[str, Any]]:
    left = FIGURES_LIMIT
    studies = []
    for record in records:
        pictures = []
        for file in record.figures:
            left -= file.stat().st_size
            embedded = left >= 0
            source = "data:image/png;base64," + base64.b64encode(file.read_bytes()).decode() if embedded else None
            pictures.append([file.stem, source or _link(file, to)])
        configs = sorted(record.root.glob("*/[!.]*/config.yaml"))
        report = record.root / "report" / "index.html"
        studies.append(
            {
                "name": str(record.root.relative_to(common)),
                "config": record.config,
                "configs": [[f"{c.parent.parent.name}/{c.parent.name}", _link(c, to)] for c in configs],
                "report": _link(report, to) if report.is_file() else None,
                "pictures": pictures,
            }
        )
    return studies


def _overview(records: list[Record], options: Options) -> list[dict[str, Any]]:
    """A row a study and finder: the levels of its minima and saddles, the smaller architectures first."""
    rows = []
    for index, record in enumerate(records):
        node = record.config.get("model", {})
        for row in record.low_and_high:
            levels = {key: _plain(value) for key, value in row.items()}
            data = option_name(record.config.get("data", {}), options.get("data", {}))
            names = {"model": option_name(node, options.get("model", {})), "data": data}
            family = str(node.get("_target_"))
            rows.append({**levels, **names, "study": index, "order": [family, record.parameters or 0]})
    return sorted(rows, key=lambda row: row.pop("order"))


def _link(file: Path, to: Path) -> str:
    return quote(os.fsencode(os.path.relpath(file, to)))


def _plain(value: Any) -> Any:
    """A value that JSON has: nothing for what is not finite."""
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _along(columns: dict[str, list[float]]) -> str:
    """Columns as JSON. Five digits are more than a screen shows, and a third of the page."""
    texts = {
        name: ",".join([f"{value:.5g}" if math.isfinite(value) else "null" for value in columns[name]])
        for name in ALONG
    }
    return "{" + ",".join(f'"{name}":[{text}]' for name, text in texts.items()) + "}"
