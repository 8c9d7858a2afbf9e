"""Print a study's tables as Markdown and copy its figures, for the README.

python scripts/readme_tables.py outputs/quickstart .readme
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import pandas as pd


def markdown(table: pd.DataFrame) -> str:
    """A Markdown table with four significant digits."""

    def cell(value: object) -> str:
        if not isinstance(value, float):
            return str(value)
        return "–" if pd.isna(value) else f"{value:.4g}"

    rows = [list(table.columns), ["---"] * len(table.columns)]
    rows += [[cell(value) for value in row] for row in table.itertuples(index=False)]
    return "\n".join("| " + " | ".join(row) + " |" for row in rows)


def main(study: str, figures: str) -> None:
    root, folder = Path(study), Path(figures)
    folder.mkdir(parents=True, exist_ok=True)
    for file in ("report/table_b1.csv", "ensemble.csv"):
        print(f"{file}\n\n{markdown(pd.read_csv(root / file))}\n")
    for picture in sorted((root / "report" / "figures").glob("*.png")):
        shutil.copy(picture, folder / f"{root.name}-{picture.name}")


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(*sys.argv[1:])
