"""Put several studies together: table B.1 and fig. 5 of Draxler et al. 2018.

python scripts/architectures.py outputs/draxler2018_* [--finder autoneb] [--to outputs/architectures]
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from lowloss.conf import options
from lowloss.errors import LowlossError
from lowloss.report.architectures import draw_architectures, overview
from lowloss.study import Study


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("studies", nargs="+", type=Path)
    parser.add_argument("--finder", default="autoneb")
    parser.add_argument("--to", default=Path("outputs/architectures"), type=Path)
    arguments = parser.parse_args()
    try:
        table = overview(
            [Study(root) for root in arguments.studies], {group: options(group) for group in ("model", "data")}
        )
        picture = draw_architectures(table, arguments.finder, arguments.to)
    except LowlossError as error:
        sys.exit(f"architectures: {error}")
    table.to_csv(arguments.to / "table_b1.csv", index=False)
    print(table.to_string(index=False, float_format="%.4g"))
    print(picture.file)


if __name__ == "__main__":
    main()
