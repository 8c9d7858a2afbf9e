"""Print a study's tables as Markdown and copy some of its figures, for the READMEs.

python scripts/readme_tables.py STUDY FOLDER FIGURE ...
python scripts/readme_tables.py outputs/quickstart .readme paths plane-0000-0001
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd

FILES = ("report/table_b1.csv", "ensemble.csv", "report/comparison.csv")


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table with four significant digits."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return "–" if pd.isna(value) else f"{value:.4g}"

    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [[cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(study: str, folder: str, *figures: str) -> None:
    root = Path(study)
    for file in FILES:
        if (root / file).is_file():
            print(f"{file}\n\n{markdown(pd.read_csv(root / file))}\n")
    Path(folder).mkdir(parents=True, exist_ok=True)
    for figure in figures:
        shutil.copy(root / "report" / "figures" / f"{figure}.png", Path(folder) / f"{root.name}-{figure}.png")


if __name__ == "__main__":
    if len(sys.argv) < 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
