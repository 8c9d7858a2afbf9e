"""What the loggers write, read back: W&B offline, CSV and TensorBoard; each study of a sweep has its own folder."""

import contextlib
import csv
import json
import os
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowloss.files import load_notes
from lowloss.logger import Wandb
from lowloss.study import Study

WANDB = Path(sys.executable).with_name("wandb")


def environment(home, **extra):
    """Without W&B's own variables, and with a home that holds no key."""
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_BASE_URL"):
        assert not os.environ.get(name), f"{name} is set: unset it for the tests"
    return {"HOME": str(home), **extra}


def records(folder):
    """The records of a W&B run's log."""
    (file,) = folder.glob("*.wandb")
    command = [str(WANDB), "leet", "inspect", "--json", str(file)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def inside(records, kind):
    return [record[kind] for record in records if kind in record]


def history(records):
    """The logged values, a dictionary a step."""
    return [entry["item"] for entry in inside(records, "history")]


def runs_of(root):
    """The runs' records by their stage, in the order in which they were begun."""
    found = {}
    for folder in sorted((root / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_ctime_ns):
        read = records(folder)
        found.setdefault(inside(read, "run")[0]["job_type"], []).append(read)
    return found


@pytest.fixture(scope="module")
def logged(lowloss, whole, tmp_path_factory):
    """The tiny study's training repeated with W&B, as a job of a sweep."""
    outputs = tmp_path_factory.mktemp("logged")
    (outputs / "sweep").mkdir()
    root = whole.copy(outputs, "minima", "paths/0000-0001-autoneb", "ensembles", "scans/random_plane-0000", "report")
    root.rename(outputs / "sweep" / "t")
    made = lowloss.tiny(
        outputs, "study=sweep/t", "logger=wandb", "objective=saddle_train_loss", environment=environment(outputs)
    )
    assert made.status == 0, made.err
    sent = f"wandb: offline, since there is no key; send later with `wandb sync {outputs}/sweep/t/wandb/offline-run-*`"
    assert made.err.splitlines().count(sent) == 1
    return outputs / "sweep" / "t", runs_of(outputs / "sweep" / "t")


def test_a_stage_is_a_run_with_group_tags_and_configuration(logged):
    _, runs = logged
    assert list(runs) == ["minima", "path", "ensemble", "scan", "report", "objective"]
    for stage, (read,) in runs.items():
        (run,) = inside(read, "run")[:1]
        assert run["run_group"] == "sweep"
        assert run["display_name"] == f"t {stage}"
        assert {*run["tags"]} == {"mlp", "digits", "autoneb", "line", "bezier"}
        config = run["config"]["update"]
        assert config["model"] == {
            "_target_": "lowloss.model.MLP",
            "hidden": [16],
            "batch_norm": True,
            "activation": "ReLU",
        }
        assert config["optimizer"]["lr"] == 0.1
    assert len({inside(read, "run")[0]["run_id"] for (read,) in runs.values()}) == len(runs)


def test_losses_and_rates_are_logged_by_step(logged):
    root, runs = logged
    rows = [row for row in history(runs["minima"][0]) if "minima/loss" in row]
    with open(root / "minima" / "0000" / "metrics.csv") as lines:
        steps = [int(line.split(",")[0]) for line in lines.read().splitlines()[1:]]
    assert [row["step"] for row in rows] == steps
    assert [row["minima/lr"] for row in rows] == pytest.approx([0.1, 0.1, 0.01, 0.001])
    assert all(0 < row["minima/loss"] <= row["minima/loss_max"] for row in rows)
    assert any("path/autoneb/0-1/loss" in row for row in history(runs["path"][0]))
    assert any("ensemble/fge/loss" in row for row in history(runs["ensemble"][0]))
    keys = {key for (read,) in runs.values() for row in history(read) for key in row if not key.startswith("_")}
    assert all(re.fullmatch(r"[\w./-]+", key) and key.isascii() for key in keys), keys


def summary(read):
    """What a run can be sorted by."""
    return {key: value for entry in inside(read, "summary") for key, value in entry["update"].items()}


def test_runs_sort_by_barriers_saddles_and_errors(logged):
    root, runs = logged
    with open(root / "summary.csv") as lines:
        paths = list(csv.DictReader(lines))
    told = summary(runs["path"][0])
    for finder in ("autoneb", "line", "bezier"):
        own = [path for path in paths if path["finder"] == finder]
        for column in ("barrier_train_loss", "saddle_train_loss", "saddle_test_error"):
            mean = sum(float(path[column]) for path in own) / len(own)
            assert told[f"path/{finder}/{column}"] == pytest.approx(mean, rel=1e-6)
    notes = load_notes(root / "minima" / "0000" / "result.safetensors")
    assert 0 < summary(runs["minima"][0])["minima/test_error"] < 1
    for stage, key in (("ensemble", "ensemble/fge/test_error"), ("scan", "scan/plane/max_train_loss")):
        assert summary(runs[stage][0])[key] > 0
    told = {key for (read,) in runs.values() for key in summary(read)}
    assert all(re.fullmatch(r"[\w./-]+", key) and key.isascii() for key in told), told
    real = {f"minima/{name}" for name, value in notes.items() if isinstance(value, float)}
    assert real <= {*summary(runs["minima"][0])}


def test_a_stage_of_lines_alone_leaves_a_run(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path, "paths/0000-0001-line")
    made = lowloss.tiny(tmp_path, "stages=[path]", "logger=wandb", environment=environment(tmp_path))
    assert made.status == 0, made.err
    ((read,),) = runs_of(root).values()
    assert "path/line/saddle_train_loss" in summary(read)
    # What has nothing to do leaves none.
    again = lowloss.tiny(tmp_path, "stages=[path]", "logger=wandb", environment=environment(tmp_path))
    assert again.status == 0, again.err
    assert len(runs_of(root)["path"]) == 1


def test_results_are_artifacts_with_what_they_were_made_from(logged):
    root, runs = logged
    both = ["sweep-t-minima", "sweep-t-path"]
    expected = {"minima": [], "path": both[:1], "ensemble": both[:1], "scan": both}
    for stage, made_from in expected.items():
        artifacts = [a for a in inside(runs[stage][0], "artifact") if a["type"] == stage]
        (artifact,) = artifacts
        assert artifact["name"] == f"sweep-t-{stage}"
        assert json.loads(artifact["metadata"]) == {"made_from": made_from}
        kind = {"path": "paths", "ensemble": "ensembles", "scan": "scans"}.get(stage, stage)
        held = {entry["path"] for entry in artifact["manifest"]["contents"]}
        assert held == {str(file.relative_to(root / kind)) for file in (root / kind).glob("[!.]*/*")}


def test_figures_tables_and_objective_are_logged(logged):
    root, runs = logged
    (row,) = history(runs["report"][0])
    tables = {"table_b1", "summary", "ensemble", *(f"along/{path.name}" for path in (root / "paths").glob("[!.]*"))}
    figures = {file.stem for file in (root / "report" / "figures").iterdir()}
    kinds = {name.removesuffix("._type"): kind for name, kind in row.items() if name.endswith("._type")}
    assert kinds == dict.fromkeys(tables, "table-file") | dict.fromkeys(figures, "image-file")
    with open(root / "summary.csv") as lines:
        head, *paths = [line.rstrip("\n").split(",") for line in lines]
    mean = sum(float(path[head.index("saddle_train_loss")]) for path in paths) / len(paths)
    summaries = [entry["update"] for entry in inside(runs["objective"][0], "summary")]
    assert [update["objective"] for update in summaries if "objective" in update] == [pytest.approx(mean)]


def test_what_is_continued_goes_on_in_the_same_run(lowloss, tmp_path):
    command = ("stages=[minima]", "logger=wandb")
    killed = lowloss.tiny(tmp_path, *command, strike=("SIGKILL", "*/last.ckpt", 3), environment=environment(tmp_path))
    assert killed.status == -9
    again = lowloss.tiny(tmp_path, *command, environment=environment(tmp_path))
    assert again.status == 0, again.err
    folders = sorted((tmp_path / "t" / "wandb").glob("offline-run-*"), key=lambda path: path.stat().st_ctime_ns)
    assert len(folders) == 2
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 1
    second = records(folders[1])
    assert inside(second, "run")[0]["run_id"] == folders[0].name.rpartition("-")[2]
    steps = [row["step"] for row in history(second) if "minima/loss" in row]
    assert len(steps) == 2  # the third of four epochs was not kept, so it and the fourth are done


def test_a_run_is_a_stage_of_one_study(tmp_path):
    def run_id(outputs="outputs", stage="minima", lr=0.1, root="data"):
        logger = Wandb()
        data = {"_target_": "lowloss.data.cifar10", "root": root}
        config = {"study": "t", "seed": 0, "model": {}, "data": data, "optimizer": {"lr": lr}}
        logger.begin(stage, None, [], Study(tmp_path / outputs / "t"), config)
        return logger.version

    assert run_id() == run_id() == run_id(root="elsewhere")
    assert len({run_id(), run_id("others"), run_id(stage="path"), run_id(lr=0.2)}) == 4


def test_a_key_without_a_network_hangs_nothing(lowloss, tmp_path):
    # Port 9 discards; here nothing listens.
    server = {"WANDB_API_KEY": "0" * 40, "WANDB_BASE_URL": "http://127.0.0.1:9"}
    began = time.monotonic()
    made = lowloss.tiny(tmp_path, "stages=[minima]", "logger=wandb", environment=environment(tmp_path, **server))
    assert made.status == 0, made.err
    assert "does not answer" in made.err
    assert time.monotonic() - began < 60
    assert runs_of(tmp_path / "t").keys() == {"minima"}


def test_each_study_of_a_sweep_has_its_own_logs(lowloss, tmp_path):
    made = lowloss.tiny(tmp_path, "-m", "seed=0,1", "stages=[minima]", "logger=csv")
    assert made.status == 0, made.err
    for seed in (0, 1):
        (log,) = (tmp_path / "t" / f"seed={seed}" / "logs").rglob("metrics.csv")
        assert len(log.read_text().splitlines()) == 1 + 4 + 1  # the head, the epochs, and the means at the end


def test_tensorboard(lowloss, tmp_path):
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    made = lowloss.tiny(tmp_path, "stages=[minima]", "logger=tensorboard")
    assert made.status == 0, made.err
    # A file each time that Lightning ends a fit, all in one folder.
    (folder,) = {file.parent for file in (tmp_path / "t" / "logs").rglob("events.out.tfevents.*")}
    read = EventAccumulator(str(folder)).Reload()
    assert [event.step for event in read.Scalars("minima/loss")] == [11, 22, 33, 44]
    assert len(read.Scalars("minima/test_error")) == 1
    shutil.rmtree(folder)


def test_mlflow(lowloss, tmp_path):
    """Its own store, a file of SQLite, read without it."""
    pytest.importorskip("mlflow")
    made = lowloss.tiny(tmp_path, "stages=[minima]", "logger=mlflow")
    assert made.status == 0, made.err
    with contextlib.closing(sqlite3.connect(tmp_path / "mlflow.db")) as store:
        curve = [step for (step,) in store.execute("select step from metrics where key = 'minima/loss' order by step")]
        last = dict(store.execute("select key, value from latest_metrics"))
        told = dict(store.execute("select key, value from params"))
        ((name,),) = store.execute("select name from runs")
    assert (name, curve, told["optimizer/lr"]) == ("t", [11, 22, 33, 44], "0.1")
    notes = [load_notes(file) for file in (tmp_path / "t").glob("minima/*/result.safetensors")]
    assert last["minima/test_error"] == pytest.approx(sum(one["test_error"] for one in notes) / len(notes))


def test_every_stage_leaves_a_run(lowloss, tmp_path):
    stages = "minima,connector,path,curvature,dimension,ensemble,merge,permutation,scan,width,report"
    settings = (
        "model=mlp", "model.hidden=[4]", "scale=tiny", "trainer=cpu", "finder=[line]", "ensemble=[independent]",
        "scan=[line]", "dimension.at=[initial]", f"stages=[{stages}]", "logger=wandb", "study=t",
    )  # fmt: skip
    made = lowloss.plain(tmp_path, *settings, environment=environment(tmp_path))
    assert made.status == 0, made.err
    runs = runs_of(tmp_path / "outputs" / "t")
    assert {*runs} == {*stages.split(",")}
    for stage, (read,) in runs.items():
        told = {key: value for key, value in summary(read).items() if not key.startswith("_")}
        assert stage == "report" or any(key.startswith(f"{stage}/") for key in told), (stage, told)
        assert [entry.get("exit_code", 0) for entry in inside(read, "exit")] == [0]
