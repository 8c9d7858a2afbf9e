"""What papers published, beside what the studies here gave."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from functools import cache
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from lowloss import files
from lowloss.conf import config_folder, read_table
from lowloss.errors import LowlossError

if TYPE_CHECKING:
    import pandas as pd

Row = dict[str, Any]

PUBLISHED = ("result", "experiment", "column", "unit", "value", "source")
COMPARED = ("result", "experiment", "method", "column", "unit", "published", "ours", "difference")


class Table(NamedTuple):
    """Where a study has the numbers of a published table or figure: in a CSV table, by its path in the study's folder,
    and the column whose values, say finders, are each compared with what was published."""

    file: str
    method: str


TABLES = {
    ("draxler2018", "Table B.1"): Table("report/table_b1.csv", "finder"),
    ("garipov2018", "Table 1"): Table("report/budgets.csv", "method"),
    ("garipov2018", "Table 2"): Table("report/curves.csv", "finder"),
    ("garipov2018", "Table 3"): Table("report/curves.csv", "finder"),
    ("garipov2018", "Sec. 4.3"): Table("report/budgets.csv", "method"),
    ("garipov2018", "Sec. 6.1"): Table("report/budgets.csv", "method"),
    ("garipov2018", "Code of the paper"): Table("report/curves.csv", "finder"),
    **{("li2018", f"Figure {figure}"): Table("report/minima.csv", "method") for figure in (3, 5, 6, 13)},
    **{("brea2019", of): Table("report/permutations.csv", "minimum") for of in ("Fig. 1", "Fig. 3", "Section 4.2")},
    ("fort2019", "Section 3.3"): Table("report/dimensions.csv", "place"),
    ("fort2019", "Figure 4"): Table("report/dimensions.csv", "place"),
}
"""By paper and result. A result that is not here is listed, and not compared."""

LEFT_OUT = ("line",)
"""Methods that are beside every other for contrast, and in a published table only where a row of it names them."""


def papers() -> list[str]:
    """The names of the papers whose numbers are known."""
    return sorted(file.stem for file in (config_folder() / "paper").glob("*.csv"))


def published(paper: str) -> pd.DataFrame:
    """The numbers of a paper, a row each: paper, result (a table or figure), experiment, column (the report's), unit,
    value and source. A further column `row` may say which rows of the report's table are meant, as `KEY=VALUE ...`.

    Raises LowlossError: there is no such paper, or its table is damaged.
    """
    import pandas as pd

    return pd.DataFrame(_published(paper))


def published_of(experiment: str | None) -> pd.DataFrame:
    """The numbers of all papers that belong to an experiment, as `published` gives them; most have none."""
    import pandas as pd

    rows = [row for paper in papers() for row in _published(paper) if row["experiment"] == experiment]
    return pd.DataFrame(rows, columns=None if rows else ["paper", *PUBLISHED])


def compare(study: Path, published: pd.DataFrame, line: bool = False) -> pd.DataFrame:
    """Published numbers beside those of a study: a row a number and method, in the columns COMPARED.

    Args:
        study: the folder of a study; ours is NaN where its report tells nothing, and without a report no row is left.
        published: rows of `published` or `published_of`.
        line: whether the straight line is compared too.

    Raises LowlossError: a table of the report is damaged.
    """
    import pandas as pd

    rows: list[Any] = published.to_dict("records")
    return pd.DataFrame(_compare(study, rows, () if line else LEFT_OUT), columns=list(COMPARED))


def listed(outputs: Path) -> tuple[list[Row], list[Row]]:
    """Every result of every paper, and every published number.

    Returns:
        A row a result and experiment: paper, result, experiment, command, and whether it is made, in the study
        `<outputs>/<experiment>` or in one of a sweep below it. A row a number, its columns those of `published` and,
        for each such study, `study` and those of COMPARED.
    """
    results, numbers = list[Row](), list[Row]()
    for paper in papers():
        groups: dict[tuple[str, str], list[Row]] = {}
        for row in _published(paper):
            groups.setdefault((row["result"], row["experiment"]), []).append(row)
        for (result, experiment), rows in groups.items():
            root = outputs / experiment
            studies = [root, *sorted(path for path in root.glob("*") if path.is_dir())]
            made = [{**row, "study": str(study)} for study in studies for row in _compare(study, rows, LEFT_OUT)]
            head = {"paper": paper, "result": result, "experiment": experiment}
            results.append({**head, "command": f"lowloss experiment={experiment}", "made": bool(made)})
            numbers += made or [{**row, "published": row["value"]} for row in rows]
    return results, numbers


def text_of(results: Sequence[Row], numbers: Sequence[Row]) -> str:
    """The tables of `listed` as aligned text; numbers are of the results that are made."""
    from lowloss.launch import aligned

    head, shown = ("paper", "result", "command"), ("published", "ours", "difference")
    lines = aligned([(*head, "made"), *([*(row[k] for k in head), "yes" if row["made"] else "no"] for row in results)])
    cells = [
        [row["study"], row["result"], row["method"], f"{row['column']} [{row['unit']}]",
         *(f"{row[key]:.4g}".replace("nan", "–") for key in shown)]
        for row in numbers if "study" in row
    ]  # fmt: skip
    if cells:
        lines += ["", *aligned([("study", "result", "method", "number", *shown), *cells])]
    return "\n".join(lines)


def write_csv(file: Path, numbers: Sequence[Row]) -> None:
    """Write the numbers of `listed` as a CSV table."""
    columns = ("paper", "result", "experiment", "study", *COMPARED[2:], "source")
    with files.replacing(file) as temporary, temporary.open("w", encoding="utf-8", newline="") as stream:
        writer = csv.DictWriter(stream, columns, restval="", extrasaction="ignore", lineterminator="\n")
        writer.writeheader()
        writer.writerows(numbers)


def _published(paper: str) -> list[Row]:
    file = config_folder() / "paper" / f"{paper}.csv"
    if not file.is_file():
        raise LowlossError(f"no paper is called {paper!r}: the papers are {', '.join(papers())}")
    rows: list[Row] = []
    for row in read_table(file, PUBLISHED):
        try:
            rows.append({"paper": paper, "row": "", **row, "value": float(row["value"])})
        except ValueError:
            raise LowlossError(f"{file} has the value {row['value']!r}, which is no number") from None
    return rows


def _compare(study: Path, published: Sequence[Row], left_out: Sequence[str]) -> list[Row]:
    """The rows of `compare`, with the columns of `published` too."""
    read, compared = cache(read_table), []
    for row in published:
        table = TABLES.get((row["paper"], row["result"]))
        if table is None or not (study / table.file).is_file():
            continue
        wanted = dict(part.split("=", 1) for part in (row.get("row") or "").split())
        for ours in read(study / table.file, (table.method,)):
            if wanted.get(table.method) is None and ours[table.method] in left_out:
                continue
            if any(ours.get(key) != value for key, value in wanted.items()):
                continue
            try:  # empty where there is nothing to tell, such as an epoch that did not come
                value = float(ours.get(row["column"]) or nan)
            except ValueError as error:
                raise LowlossError(f"{study / table.file} is damaged ({error}): delete it and run again") from None
            numbers = {"published": row["value"], "ours": value, "difference": value - row["value"]}
            compared.append({**row, "method": ours[table.method], **numbers})
    return compared
