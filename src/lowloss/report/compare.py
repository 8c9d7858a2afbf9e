"""The comparison of many studies: one CSV table and one self-contained HTML page."""

from __future__ import annotations

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
from lowloss.report.gather import Options, Record, common_folder, gather, metrics, option_name
from lowloss.report.markup import beside, data_url, page

FIGURES_LIMIT = 24_000_000
"""Bytes of figures that the page holds itself; it links to those beyond."""


def compare(folders: Sequence[Path], options: Options, to: Path | None = None) -> Path:
    """Write table.csv and index.html for all studies at or under the folders, and tell what is left out.

    Args:
        options: the options of the groups `model` and `data`, to name what studies were made with.
        to: where; by default `compare` in the studies' common folder.

    Returns:
        The page.

    Raises LowlossError: a folder holds no study, or `to` is no folder.
    """
    if to is not None and to.exists() and not to.is_dir():
        raise LowlossError(f"--to {to} is a file: name a folder, which is made if it is not there")
    records, table = gather([folder.resolve() for folder in folders], options)
    common = common_folder([record.root for record in records])
    to = (to or common / "compare").resolve()
    cells = table.rename(columns=_harmless).map(_harmless).to_csv(index=False)
    for name, text in (("table.csv", cells), ("index.html", _page(records, table, options, common, to))):
        # A folder's name may be no text.
        files.write_text(to / name, text.encode(errors="replace").decode())
    return to / "index.html"


def _harmless(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


def _page(records: list[Record], table: pd.DataFrame, options: Options, common: Path, to: Path) -> str:
    from plotly.offline import get_plotlyjs

    # A study without paths has one row too.
    owned = [(index, path) for index, record in enumerate(records) for path in record.paths or [{}]]
    data = {
        "columns": list(table.columns),
        "rows": [[_plain(value) for value in row] for row in table.itertuples(index=False)],
        "owners": [index for index, _ in owned],
        "studies": _studies(records, common, to),
        "overview": _overview(records, options),
        "metrics": {name: shown for record in records for name, shown in metrics(record.units).items()},
    }
    held = json.dumps(data, allow_nan=False, separators=(",", ":"))
    paths = ",".join(_along(path["along"]) if path else "null" for _, path in owned)
    # No text of a study may end the script element, or begin another.
    held = f'{held[:-1]},"paths":[{paths}]}}'.replace("<", "\\u003c")
    scripts = (
        f'<script>{get_plotlyjs()}</script><script type="application/json" id="data">{held}</script>'
        f"<script>{beside('compare.js')}</script>"
    )
    sub = f"{len(records)} lowloss studies, {sum(len(record.paths) for record in records)} paths"
    return page(common.name, "lowloss compare", sub, beside("compare.html"), beside("compare.css"), scripts)


def _studies(records: list[Record], common: Path, to: Path) -> list[dict[str, Any]]:
    left, studies = FIGURES_LIMIT, []
    for record in records:
        pictures = []
        for file in record.figures:
            embedded = file.stat().st_size <= left and os.access(file, os.R_OK)
            left -= file.stat().st_size if embedded else 0
            pictures.append([file.stem, data_url(file) if embedded else _link(file, to)])
        configs = sorted(record.root.glob("*/[!.]*/config.yaml"))
        report = record.root / "report" / "index.html"
        study = {
            "name": str(record.root.relative_to(common)),
            # JSON has no infinite numbers.
            "config": json.loads(json.dumps(record.config), parse_constant=str),
            "configs": [[f"{c.parent.parent.name}/{c.parent.name}", _link(c, to)] for c in configs],
            "report": _link(report, to) if report.is_file() else None,
            "pictures": pictures,
        }
        studies.append(study)
    return studies


def _overview(records: list[Record], options: Options) -> list[dict[str, Any]]:
    """A row a study and finder: the levels of its minima and saddles, the smaller architectures first."""
    rows = []
    for index, record in enumerate(records):
        nodes = {group: record.config.get(group, {}) for group in ("model", "data")}
        names = {group: option_name(node, options.get(group, {})) for group, node in nodes.items()}
        family = nodes["model"].get("_target_") if isinstance(nodes["model"], dict) else None
        for row in record.low_and_high:
            levels = {key: _plain(value) for key, value in row.items()}
            rows.append({**levels, **names, "study": index, "order": (str(family), record.parameters or 0)})
    return sorted(rows, key=lambda row: row.pop("order"))


def _link(file: Path, to: Path) -> str:
    return quote(os.fsencode(os.path.relpath(file, to)))


def _plain(value: Any) -> Any:
    """A value that JSON has: nothing for what is not finite."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def _along(columns: dict[str, list[float]]) -> str:
    """Columns as JSON. Five digits are more than a screen shows, and a third of the page."""
    texts = []
    for name, values in columns.items():
        cells = ",".join([f"{value:.5g}" if math.isfinite(value) else "null" for value in values])
        texts.append(f"{json.dumps(name)}:[{cells}]")
    return f"{{{','.join(texts)}}}"
