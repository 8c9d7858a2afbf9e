"""What a sweep shows: measures of minima by each setting in which studies differ (Fort & Jastrzebski 2019, fig. 5)."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from math import nan
from pathlib import Path
from typing import Any

import pandas as pd

from lowloss import files, progress
from lowloss.errors import LowlossError
from lowloss.report.gather import merged_config
from lowloss.study import RESULT, Study, flat

QUANTITIES = (
    ("widths", "angular width (degrees)", "angle"),
    ("widths", "width as a distance", "distance"),
    ("dimensions", "threshold dimension", "high"),
    ("permutations", "highest loss on the ways", "highest"),
)
"""Kind of artifact, what is shown, and the note that has it."""

UNBOUNDED = {"dimensions": "low"}
"""By kind, the note of an artifact which found that there is no such number: no cut that was tried is large enough."""

MOST = 20
"""Settings that differ, of which there are figures."""


def draw_sweeps(roots: Sequence[Path], to: Path) -> list[Path]:
    """Write sweeps.csv and a figure a setting for studies; returns what was written.

    A row, and a point of a figure, is the mean of a quantity over all minima and seeds at a value of the setting and at
    one choice of the other settings that differ, with its standard deviation. Nothing is written where none differs.
    """
    table = sweeps(roots)
    if table.empty:
        return []
    from lowloss.report.pictures import panels, save

    files.write_text(to / "sweeps.csv", table.to_csv(index=False))
    written = [to / "sweeps.csv"]
    for setting, rows in table.groupby("setting"):
        quantities = list(rows.groupby("quantity"))
        figure, (axes,) = panels(4.5 * len(quantities), 3.6, 1, len(quantities))
        for axis, (quantity, own) in zip(axes, quantities, strict=True):
            for (_, others), line in own.groupby(["sweep", "others"]):
                axis.errorbar(line["value"], line["mean"], line["sd"], fmt="o-", capsize=3, label=others or None)
            positive = (own["value"] > 0).all() and own["value"].max() > 10 * own["value"].min()
            axis.set(xscale="log" if positive else "linear", xlabel=setting, ylabel=quantity)
            if any(own["others"]):
                axis.legend(fontsize=6)
        told = "Means over minima and seeds, with standard deviations."
        written.append(save(figure, to, f"sweep-{setting}", f"By {setting}", told).file)
    return written


def sweeps(roots: Sequence[Path]) -> pd.DataFrame:
    """A row a quantity, setting, value of it and choice of the others: mean, sd and count. Where one of the artifacts
    found no such number, as of a threshold above all dimensions that were tried, there is no mean.

    Studies are of one sweep, which its number tells, where they differ in numbers alone.
    """
    alike = dict[tuple[Any, ...], list[tuple[dict[str, float], list[tuple[str, float]]]]]()
    for root in roots:
        if own := list(_measured(Study(root))):
            config = flat(merged_config(Study(root), []))
            numbers = {key: number for key, value in config.items() if (number := _number(value)) is not None}
            rest = tuple(sorted((key, str(value)) for key, value in config.items() if key not in numbers))
            alike.setdefault((*sorted(numbers), *rest), []).append((numbers, own))
    swept = [table for found in alike.values() if len(table := _swept(found))]
    tables = [table.assign(sweep=k) for k, table in enumerate(swept, 1)]
    return pd.concat(tables) if tables else pd.DataFrame()


def _swept(found: Sequence[tuple[dict[str, float], list[tuple[str, float]]]]) -> pd.DataFrame:
    named = (key for key in found[0][0] if key != "seed" and re.fullmatch(r"[\w.]+", key))  # a stranger's may be a path
    varied = sorted(key for key in named if len({own[key] for own, _ in found}) > 1)
    if len(varied) > MOST:
        progress.say(f"compare: the studies differ in {len(varied)} settings, too many for figures of a sweep")
        return pd.DataFrame()
    rows = [
        {"quantity": quantity, "measured": value, **{key: settings[key] for key in varied}}
        for settings, own in found
        for quantity, value in own
    ]
    summed = []
    for setting in varied:
        others = [key for key in varied if key != setting]
        for key, group in pd.DataFrame(rows).groupby(["quantity", setting, *others], dropna=False):
            fixed = ", ".join(f"{name}={value:g}" for name, value in zip(others, key[2:], strict=True))
            row = {"quantity": key[0], "setting": setting, "value": key[1], "others": fixed}
            of = group["measured"]
            summed.append(row | {"mean": of.mean(skipna=False), "sd": of.std(ddof=0, skipna=False), "count": len(of)})
    return pd.DataFrame(summed)


def _measured(study: Study) -> Iterator[tuple[str, float]]:
    """The quantities of a study; what cannot be read is left out, as the comparison itself tells."""
    for kind, quantity, name in QUANTITIES:
        for artifact in study.complete(kind):
            try:
                file = artifact.folder / RESULT
                notes = files.load_notes(file, foreign=True) if file.is_file() else {}
                value, place, which = _number(notes.get(name)), notes.get("place"), _number(notes.get("which"))
            except (LowlossError, OSError, ValueError):
                continue
            if value is None and UNBOUNDED.get(kind) in notes:
                value = nan
            if value is not None:
                where = "" if place in (None, "initial") or which is None else f", {place:.20} {which:g}"
                yield quantity + where, value


def _number(value: Any) -> float | None:
    """A setting as a number; of widths of layers the first."""
    first = value[0] if isinstance(value, list) and value else value
    return float(first) if type(first) in (int, float) else None
