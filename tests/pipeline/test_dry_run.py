"""What --dry-run tells is what a run takes, and nothing is made."""

import csv
import re

from lowloss.files import load_notes

COMMAND = (
    *("experiment=quickstart", "scale=tiny", "trainer=cpu", "finder=[neb,bezier,line]", "path.only={}"),
    *("scan=[plane]", "scan.plane.path=neb", "stages=[minima,path,scan,report]"),
)


def told(text):
    """By stage: jobs to make, gradients and points."""
    found = {}
    for line in text.splitlines():
        (name, _, rest), numbers = line.partition(": "), {}
        for pattern in (r"([\d,]+) to make", r"([\d,]+) gradient", r"([\d,]+) points"):
            match = re.search(pattern, rest)
            numbers[pattern.split()[-1]] = int(match[1].replace(",", "")) if match else 0
        found[name] = tuple(numbers.values())
    return found


def test_it_tells_what_a_run_takes(lowloss, tmp_path):
    asked = lowloss.plain(tmp_path, *COMMAND, "--dry-run")
    assert asked.status == 0, asked.err
    assert not list(tmp_path.rglob("*/*"))
    made = lowloss.plain(tmp_path, *COMMAND)
    assert made.status == 0, made.err
    root = tmp_path / "outputs" / "quickstart-tiny"
    minima = [load_notes(file) for file in root.glob("minima/*/result.safetensors")]
    with (root / "summary.csv").open(newline="") as lines:
        paths = list(csv.DictReader(lines))
    samples = [len(file.read_text().splitlines()) - 1 for file in root.glob("paths/*/along.csv")]
    before = told(asked.err)
    assert before["minima"] == (3, sum(notes["steps"] for notes in minima), 3)
    assert before["path"] == (len(paths), sum(int(row["gradient_evaluations"]) for row in paths), sum(samples))
    assert before["scan"] == (1, 0, 9)
    after = told(lowloss.plain(tmp_path, *COMMAND, "--dry-run").err)
    assert [after[stage][0] for stage in ("minima", "path", "scan")] == [0, 0, 0]


def test_it_refuses_what_a_run_would_refuse(lowloss, tmp_path):
    for argument in ("optimizer.lr=-1", "path.pairs=[[0,9]]", "hydra/launcher=local"):
        done = lowloss.plain(tmp_path, *COMMAND, argument, "--dry-run")
        assert (done.status, len(done.err.splitlines())) == (1, 1), done.err
