"""The comparison of many studies: one CSV table and one HTML page, which links to the studies' own pages."""

from __future__ import annotations

import math
import os
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import pandas as pd

from lowloss import files
from lowloss.errors import LowlossError
from lowloss.progress import counted
from lowloss.report import tables
from lowloss.report.gather import Options, Record, called, common_folder, gather, metrics
from lowloss.report.looks import looks
from lowloss.report.markup import packed, render, to_json
from lowloss.report.sweeps import draw_sweeps
from lowloss.study import Config, flat

FOUND = ("finder", "barrier_train_loss", "min_test_error", "saddle_test_error", "status")
"""Columns that are shown at first, next to the study, where a narrow window has room too."""

MORE = ("saddle_train_loss", "start", "end", "saddle_test_loss")
"""And after those that tell the studies apart."""

GROUPS = ("model", "data")

TOLD_APART = 3
"""Of the settings in which studies differ, so many are shown at first."""

NUMBERS, LEAST = 130_000, 10
"""Of curves and of planes, each, that a page holds; the more there are the fewer points has each, and an axis of a
plane, but not fewer than so many."""

LONGEST = 300
"""Characters of a cell."""


def compare(folders: Sequence[Path], options: Options, to: Path | None = None) -> list[Path]:
    """Write table.csv, index.html and what sweeps show for all studies at or under the folders; tell what is left out.

    Args:
        options: those of the groups, to name what studies were made with.
        to: where; by default `compare` in the studies' common folder.

    Returns:
        The page, and the table and figures of sweeps.

    Raises LowlossError: a folder holds no study, or `to` is no folder.
    """
    if to is not None and to.exists() and not to.is_dir():
        raise LowlossError(f"--to {to} is a file: name a folder, which is made if it is not there")
    records, table = gather([folder.resolve() for folder in folders], options)
    common = common_folder([record.root for record in records])
    to = (to or common / "compare").resolve()
    rows = [[*map(_harmless, row)] for row in table.itertuples(index=False)]
    cells = pd.DataFrame(rows, columns=[*map(_harmless, table)], dtype=object).to_csv(index=False)
    for name, text in (("table.csv", cells), ("index.html", _page(records, table, options, common, to))):
        # A folder's name may be no text.
        files.write_text(to / name, text.encode(errors="replace").decode())
    return [to / "index.html", *draw_sweeps([record.root for record in records], to)]


def _harmless(cell: Any) -> Any:
    """A cell that no spreadsheet takes for a formula."""
    return f"'{cell}" if isinstance(cell, str) and cell.startswith(("=", "+", "-", "@", "\t", "\r", "\n")) else cell


def _page(records: list[Record], table: pd.DataFrame, options: Options, common: Path, to: Path) -> str:
    # A row a path or a job that is not done; a study that has neither has one row too.
    owned = [
        (index, path)
        for index, record in enumerate(records)
        for path in [*record.paths, *([{}] * (len(record.undone) or (not record.paths)))]
    ]
    labels = {name: shown for record in records for name, shown in metrics(record.units).items()}
    shares = {name.partition("_")[2] for name, (_, factor) in labels.items() if factor != 1}
    columns = [str(name) for name in table.columns]
    split = columns.index("minima")
    kept = [name for name in columns[:split] if name not in ("data", "parameters")]
    points = min(201, max(LEAST, NUMBERS // max(1, sum(len(record.paths) for record in records) * len(labels))))
    keys = {name: {*map(_key, table[name])} for name in ("finder", *columns[:split]) if name in columns}
    settings = [flat(record.config) for record in records]
    shared = {key: value for key, value in settings[0].items() if all(own.get(key, own) == value for own in settings)}
    data = {
        "columns": columns,
        "headings": {name: tables.heading(name) for name in columns},
        "main": [name for name in ("study", *FOUND, *kept[1 : 2 + TOLD_APART], *MORE) if name in columns],
        "percent": [name for name in columns if any(name.endswith(f"_{metric}") for metric in shares)],
        "rows": [[_cell(value) for value in row] for row in table.itertuples(index=False)],
        "owners": [index for index, _ in owned],
        "undone": [row for row, text in enumerate(table.get("status", [])) if ": " in str(text)],
        "studies": _studies(records, shared, common, to),
        "shared": shared,
        "overview": _overview(records, options),
        "metrics": labels,
        "looks": {name: {key: one.plotly for key, one in looks(found).items()} for name, found in keys.items()},
        "paths": [_along(path["along"], points) if path else None for _, path in owned],
    }
    counts = {"studies": len(records), "paths": sum(len(record.paths) for record in records)}
    if undone := sum(len(record.undone) for record in records):
        counts["jobs not done"] = undone
    sub = ", ".join(counted(count, what) for what, count in counts.items())
    held = packed(to_json(data, exact=True))
    return render("compare.html", name=common.name, kind="lowloss compare", sub=sub, data=held)


def _key(value: Any) -> str:
    """A value as the page's script calls it."""
    cell = _cell(value)
    if isinstance(cell, bool) or cell is None:
        return "null" if cell is None else str(cell).lower()
    return str(int(cell)) if isinstance(cell, float) and cell.is_integer() else str(cell)


def _studies(records: list[Record], shared: Config, common: Path, to: Path) -> list[dict[str, Any]]:
    studies, left = list[dict[str, Any]](), NUMBERS
    side = max(LEAST, math.isqrt(NUMBERS // max(1, sum(len(record.planes) for record in records))))
    for record in records:
        here, report = os.path.relpath(record.root, to), "report/index.html"
        planes = {}
        for name, plane in record.planes.items():
            rows, columns = (slice(None, None, -(-len(plane[axis]) // side)) for axis in ("y", "x"))
            left -= plane["z"][rows, columns].size
            if left >= 0:
                planes[name] = {"x": plane["x"][columns], "y": plane["y"][rows], "z": plane["z"][rows, columns]}
        settings = flat(record.config)
        study = {
            "name": str(record.root.relative_to(common)),
            "config": {key: value for key, value in settings.items() if key not in shared},
            "configs": [[os.path.dirname(file), _link(here, file)] for file in record.configs],
            "report": _link(here, report) if os.path.isfile(record.root / report) else None,
            "pictures": [[name.removesuffix(".png"), _link(here, f"report/figures/{name}")] for name in record.figures],
            "planes": planes,
        }
        studies.append(study)
    return studies


def _overview(records: list[Record], options: Options) -> list[dict[str, Any]]:
    """A row a study and finder: the levels of its minima and saddles, the smaller architectures first."""
    rows = []
    for index, record in enumerate(records):
        model, names = record.config.get("model"), {group: called(record.config, group, options) for group in GROUPS}
        family = model.get("_target_") if isinstance(model, dict) else None
        for row in record.low_and_high:
            rows.append({**row, **names, "study": index, "order": (str(family), record.parameters or 0)})
    return sorted(rows, key=lambda row: row.pop("order"))


def _link(folder: str, file: str) -> str:
    return f"{_quoted(folder)}/{_quoted(file)}"


@cache
def _quoted(text: str) -> str:
    return quote(os.fsencode(text))


def _cell(value: Any) -> Any:
    """A value that JSON has, and a screen: nothing for what is not finite."""
    value = value.item() if hasattr(value, "item") else value
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if value is None or isinstance(value, (bool, int, float)):
        return value
    return text if len(text := str(value)) <= LONGEST else f"{text[:LONGEST]}…"


def _along(columns: dict[str, Any], points: int) -> dict[str, Any]:
    """Columns of a path; of more points than that, by linear interpolation at so many equal steps of its length."""
    arc = columns["arc"]
    if len(arc) <= points:
        return columns
    at, shown = np.linspace(0, 1, points), dict[str, Any](points=points)
    for name, values in columns.items():
        if name != "arc":
            shown[name] = np.interp(at, arc, values).astype(np.float32)
    return shown
