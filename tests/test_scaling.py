"""The measurement of scaling runs, here as little of it as there can be, on two processes."""

import json
import subprocess
import sys
from pathlib import Path

import pandas as pd

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_scaling.py"
LITTLE = """
    --counts 1 2 --works star band --model mlp --set model.hidden=[4] model.batch_norm=true --size 8 --images 128
    --parts 2 --batch 64 --pivots 3 --blocks 2 --points 3 --steps 2
"""


def test_two_processes_do_what_one_does(tmp_path):
    command = [sys.executable, SCRIPT, *LITTLE.split(), "--threads", "1", "--out", tmp_path / "scaling"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    measured = pd.read_csv(tmp_path / "scaling/scaling.csv")
    # The minima of one process are what the others start from.
    assert [*zip(measured["work"], measured["devices"], strict=True)] == [
        *((work, 1) for work in ("minima", "star", "band")),
        *((work, 2) for work in ("star", "band")),
    ]  # fmt: skip
    assert (measured[["startup_s", "wall_s", "per_s"]] > 0).all(axis=None)
    rows = json.loads((tmp_path / "scaling/scaling.json").read_text())
    assert len(rows) == len(measured)
    for row in rows:
        assert row["difference"] <= row["at_most"], row
    assert len(list((tmp_path / "scaling/star-2/paths").glob("*/result.safetensors"))) == 2
    assert (tmp_path / "scaling/table.md").read_text() in done.stdout
    assert (tmp_path / "scaling/scaling.png").stat().st_size > 10_000


def test_a_folder_with_something_else_is_left_alone(tmp_path):
    (tmp_path / "mine").touch()
    done = subprocess.run([sys.executable, SCRIPT, "--out", tmp_path], capture_output=True, text=True, timeout=100)
    assert done.returncode == 2
    assert "holds something else: name another folder" in done.stderr.splitlines()[-1]
    assert (tmp_path / "mine").exists()
