"""Instability analysis from the command line: the table has what the paths have, and bad epochs are told."""

import csv

import pytest

SETTINGS = """
    model=mlp model.hidden=[6] data=tiny minima.count=3 minima.epochs=3 minima.batch_size=16 finder=[line] scan=[]
    path.points=5 path.bracket=1 stages=[minima,path,report]
"""


def read(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_the_report_has_the_barrier_by_the_epoch(lowloss, tmp_path):
    made = lowloss(tmp_path, *SETTINGS.split(), "minima.branch=[0,1.5]")
    assert made.status == 0, made.err
    rows = read(tmp_path / "t" / "report" / "instability.csv")
    assert [(row["finder"], float(row["epoch"]), row["end"]) for row in rows] == [("line", 0, "1"), ("line", 1.5, "2")]
    for row in rows:
        along = read(tmp_path / "t" / "paths" / f"0000-000{row['end']}-line" / "along.csv")
        for column, scale in (("train_loss", 1), ("test_error", 100)):
            values = [scale * float(point[column]) for point in along]
            wanted = max(values) - (values[0] + values[-1]) / 2
            assert float(row[column]) == pytest.approx(wanted, abs=1e-9)
    assert (tmp_path / "t" / "report" / "figures" / "instability.png").is_file()
    wrong = {
        "minima.branch=every": "minima.branch must be null or a list of epochs, got 'every'",
        "minima.branch=[3]": "minima.branch has 3, but training ends after 3 epochs: lower it",
        "minima.branch=[0]": "minima.branch has an epoch for 1 of the 2 minima that part from the first: name one for "
        "each, or set minima.count=2",
    }
    for setting, message in wrong.items():
        assert lowloss(tmp_path, *SETTINGS.split(), "study=wrong", setting).message == f"lowloss: {message}"
