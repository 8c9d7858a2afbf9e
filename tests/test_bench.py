"""The benchmark runs as `make bench` starts it, here as little of it as there can be."""

import runpy
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch

SCRIPT = Path(__file__).parents[1] / "scripts" / "bench_engine.py"
LITTLE = "--images 512 --points 2 --steps 2 --plain-steps 2 --scan 2 --workers 0 --growth-depth 0"


def test_a_row_for_each_work(tmp_path):
    works = ["train", "train one", "band", "curve", "evaluate", "scan"]
    command = [sys.executable, SCRIPT, "--models", "mlp", "--works", *works, *LITTLE.split(), "--out", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    table = pd.read_csv(tmp_path / "bench.csv")
    assert list(table["work"]) == works
    np.testing.assert_allclose(table["ratio"], table["plain ms"] / table["engine ms"])
    assert (table[["plain ms", "engine ms", "fraction of floor"]] > 0).all(axis=None)
    assert (tmp_path / "bench.png").stat().st_size > 10_000


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["--growth-depth", "7"], "--growth-depth is a ResNet's"),
        (["--workers", "-1"], "--workers must be at least 0"),
        (["--evaluation-batch", "0"], "--evaluation-batch must be at least 2"),
        (["--out", SCRIPT], "File exists"),
        pytest.param(
            ["--engine", "graph"],
            "engine=graph needs a GPU",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU"),
        ),
    ],
)
def test_bad_arguments_are_refused_before_anything_is_measured(arguments, told, tmp_path, monkeypatch, capsys):
    command = [str(SCRIPT), *LITTLE.split(), "--out", str(tmp_path / "bench"), *map(str, arguments)]
    monkeypatch.setattr(sys, "argv", command)
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    printed = capsys.readouterr()
    assert ended.value.code == 2
    assert told in printed.err.splitlines()[-1]
    assert not printed.out
    assert not any(tmp_path.glob("bench/*"))
