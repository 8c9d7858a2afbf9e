"""The published numbers: complete, in the right units, found again in a study, and listed without heavy imports."""

import csv
import json
import subprocess
import sys
from math import isnan

import pandas as pd
import pytest

from lowloss import papers
from lowloss.conf import config_folder, read_families
from lowloss.errors import LowlossError
from lowloss.subcommands import run_other

UNITS = {
    "train_loss_min": "nats", "train_loss_saddle": "nats", "factor": "ratio", "epoch_first": "epochs",
    "test_loss_min": "nats", "test_loss_saddle": "nats", "test_error_min": "%", "test_error_saddle": "%",
    "delta": "points",
}  # fmt: skip
TABLE_B1 = """finder,paths,train_loss_min,train_loss_saddle,factor,epoch,epoch_first,test_loss_min,delta
autoneb,9,0.5,0.6,1.2,100,,0.7,2.5
line,1,0.5,2.0,4.0,3,3,0.7,40
"""


def rows_of(experiment):
    """The row of the table as it is printed, by column, so that the rounding is known."""
    with (config_folder() / "paper" / "draxler2018.csv").open(encoding="utf-8", newline="") as lines:
        return {row["column"]: row["value"] for row in csv.DictReader(lines) if row["experiment"] == experiment}


TABLE = [row["experiment"] for row in read_families(config_folder())["draxler2018_table_b1"]]


@pytest.mark.parametrize("paper", papers.papers())
def test_every_published_number_belongs_to_an_experiment(paper):
    table = papers.published(paper)
    assert len(table)
    families = read_families(config_folder())
    known = {row["experiment"] for rows in families.values() for row in rows} | families.keys()
    known |= {file.stem for file in (config_folder() / "experiment").glob("*.yaml")}
    assert set(table["experiment"]) <= known
    assert not table.duplicated(["result", "experiment", "column", "row", "source"]).any()


def test_draxlers_table_is_whole():
    table = papers.published("draxler2018")
    assert list(table["experiment"].unique()) == TABLE
    assert set(table["result"]) == {"Table B.1"}
    assert set(table["source"]) == {"paper"}
    for _, row in table.groupby("experiment"):
        assert dict(zip(row["column"], row["unit"], strict=True)) == UNITS
    # The sums of the printed columns, from the paper's own text.
    sums = [11.8902, 15.1577, 68.4, 3002, 29.22, 30.16, 714.8, 758.0, 42.7]
    assert [table.loc[table["column"] == column, "value"].sum() for column in UNITS] == pytest.approx(sums)


def half(text):
    """Half of the last digit of a printed number."""
    return 0.5 * 10 ** -len(text.partition(".")[2])


@pytest.mark.parametrize("name", TABLE)
def test_the_published_numbers_agree_with_each_other(name):
    row = rows_of(name)
    value = {key: float(text) for key, text in row.items()}
    # The printed difference is that of the unrounded errors.
    difference = value["test_error_saddle"] - value["test_error_min"]
    assert abs(value["delta"] - difference) <= 3 * half(row["delta"]) + 1e-9
    low, high = value["train_loss_min"], value["train_loss_saddle"]
    slack = half(row["train_loss_min"])
    bounds = (high - slack) / (low + slack), (high + slack) / (low - slack)
    assert bounds[0] - half(row["factor"]) <= value["factor"] <= bounds[1] + half(row["factor"])
    assert 0 < value["epoch_first"] <= (266 if "densenet" in name else 136)


@pytest.fixture
def study(tmp_path):
    file = tmp_path / "outputs" / "draxler2018_c10_cnn12" / "report" / "table_b1.csv"
    file.parent.mkdir(parents=True)
    file.write_text(TABLE_B1)
    return file.parents[1]


def test_a_study_is_compared_finder_by_finder(study):
    published = papers.published_of("draxler2018_c10_cnn12")
    compared = papers.compare(study, published)
    assert tuple(compared.columns) == papers.COMPARED
    assert set(compared["method"]) == {"autoneb"}
    assert list(compared["column"]) == list(UNITS)
    rows = compared.set_index("column")
    assert dict(rows.loc["train_loss_saddle", ["unit", "published", "ours"]]) == {
        "unit": "nats", "published": 0.6381, "ours": 0.6,
    }  # fmt: skip
    assert rows.loc["train_loss_saddle", "difference"] == pytest.approx(-0.0381)
    assert rows.loc["delta", "difference"] == pytest.approx(0.3)
    # Neither an epoch that did not come nor a column that is not there has a number.
    assert isnan(rows.loc["epoch_first", "ours"])
    assert isnan(rows.loc["test_error_min", "difference"])
    both = papers.compare(study, published, line=True)
    assert list(both["method"]) == ["autoneb", "line"] * len(UNITS)


def test_rows_of_other_tables_are_picked_by_what_the_paper_says(study, monkeypatch):
    monkeypatch.setitem(papers.TABLES, ("someone", "Table 1"), papers.Table("ensemble.csv", "method"))
    (study / "ensemble.csv").write_text("method,budget,test_error\nfge,1,0.3\nfge,2,0.2\nsingle,2,0.4\n")
    head = {"paper": "someone", "result": "Table 1", "experiment": "e", "unit": "%", "column": "test_error"}
    published = pd.DataFrame([{**head, "row": "method=fge budget=2", "value": 0.25, "source": "paper"}])
    (row,) = papers.compare(study, published).to_dict("records")
    assert (row["method"], row["ours"]) == ("fge", 0.2)
    assert row["difference"] == pytest.approx(-0.05)
    unlisted = published.assign(result="Table 2")
    assert papers.compare(study, unlisted).empty


def test_what_nobody_published_has_no_rows(study):
    for experiment in ("quickstart", None):
        table = papers.published_of(experiment)
        assert table.empty
        assert papers.compare(study, table).empty


def test_damage_is_told(study, monkeypatch, tmp_path):
    published = papers.published_of("draxler2018_c10_cnn12")
    (study / "report" / "table_b1.csv").write_text("finder,train_loss_min\nautoneb,much\n")
    with pytest.raises(LowlossError, match=r"table_b1\.csv is damaged \(.*much"):
        papers.compare(study, published)
    with pytest.raises(LowlossError, match=r"no paper is called 'nobody': the papers are .*draxler2018"):
        papers.published("nobody")
    (tmp_path / "paper").mkdir()
    (tmp_path / "paper" / "bad.csv").write_text(",".join(papers.PUBLISHED) + "\nTable 1,e,c,%,12.x,paper\n")
    monkeypatch.setattr(papers, "config_folder", lambda: tmp_path)
    with pytest.raises(LowlossError, match=r"bad\.csv has the value '12\.x', which is no number"):
        papers.published("bad")


def test_the_command_lists_all_results_and_compares_those_made(study):
    (study / "seed=1" / "report").mkdir(parents=True)
    (study / "seed=1" / "report" / "table_b1.csv").write_text(TABLE_B1.replace("0.6,", "0.7,"))
    program = (
        "import json, sys; from lowloss.cli import main; main(); "
        "print(json.dumps([name for name in ('torch', 'lightning', 'hydra', 'pandas') if name in sys.modules]))"
    )
    outputs = study.parent
    command = [sys.executable, "-c", program, "papers", str(outputs), "--csv", str(outputs / "numbers.csv")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    *lines, imported = done.stdout.splitlines()
    assert json.loads(imported) == []
    listed = [line.split() for line in lines if "lowloss experiment=draxler2018_" in line]
    assert [words[-2] for words in listed] == [f"experiment={name}" for name in TABLE]
    assert [words[-1] for words in listed] == ["yes" if name == study.name else "no" for name in TABLE]
    saddles = [line.split()[-3:] for line in lines if "train_loss_saddle [nats]" in line]
    assert saddles == [["0.6381", "0.6", "-0.0381"], ["0.6381", "0.7", "0.0619"]]
    numbers = pd.read_csv(outputs / "numbers.csv")
    made = numbers[numbers["experiment"] == study.name]
    assert set(made["study"]) == {str(study), str(study / "seed=1")}
    others = numbers[(numbers["paper"] == "draxler2018") & (numbers["experiment"] != study.name)]
    assert len(others) == 27 * len(UNITS)
    assert others["ours"].isna().all()
    assert others["published"].notna().all()


def test_a_folder_of_studies_that_is_not_there_is_told(tmp_path):
    with pytest.raises(LowlossError, match="nope is no folder: name the one where the studies are"):
        run_other(["papers", str(tmp_path / "nope")])
