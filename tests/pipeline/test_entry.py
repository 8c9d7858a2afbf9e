"""How the command line is reached: the console script, the module, sweeps, and a wheel outside the checkout."""

import os
import re
import signal
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lowloss.conf import read_families
from lowloss.files import load_notes
from lowloss.overview import GROUPS
from lowloss.subcommands import SUBCOMMANDS

REPOSITORY = Path(__file__).parents[2]
SCRIPT = Path(sysconfig.get_path("scripts")) / "lowloss"


def run(*command, folder, **environment):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", **environment}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=300)


@pytest.mark.parametrize("entry", [[str(SCRIPT)], [sys.executable, "-m", "lowloss"]], ids=["script", "module"])
def test_entry_answers_for_a_finished_study(lowloss, whole, entry):
    # The study folder is given as it was, from another folder.
    arguments = lowloss.arguments(whole.outputs)
    again = run(*entry, *arguments, folder=whole.outputs.parent)
    assert again.returncode == 0, again.stderr
    assert "minima: all 3 are complete" in again.stderr
    assert "report: up to date" in again.stderr


def test_a_finished_study_is_answered_without_torch(lowloss, whole):
    program = (
        "import sys; from lowloss.cli import main; main(); "
        "print([name for name in ('torch', 'lightning', 'pandas', 'wandb') if name in sys.modules])"
    )
    done = run(sys.executable, "-c", program, *lowloss.arguments(whole.outputs), folder=whole.outputs)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "[]"


def test_waiting_threads_leave_the_processors_to_other_workers(tmp_path):
    program = (
        "import atexit, os, sys; from lowloss.cli import main; assert 'torch' not in sys.modules; "
        "atexit.register(lambda: print(os.environ['OMP_WAIT_POLICY'])); sys.argv[1:] = ['--help']; main()"
    )
    for given in ({}, {"OMP_WAIT_POLICY": "active"}):
        done = run(sys.executable, "-c", program, folder=tmp_path, **given)
        assert done.stdout.splitlines()[-1] == given.get("OMP_WAIT_POLICY", "passive"), done.stderr


def test_alone_it_prints_an_overview_and_makes_nothing(lowloss, tmp_path):
    alone = lowloss.plain(tmp_path)
    assert (alone.status, alone.err) == (0, "")
    assert "lowloss experiment=quickstart" in alone.out
    for name in SUBCOMMANDS:
        assert f"\n  lowloss {name} " in alone.out
    for flag in ("-m", "--multirun"):
        assert lowloss.plain(tmp_path, flag).out == alone.out
    for word in ("", " "):
        assert "an argument is empty or blank" in lowloss.plain(tmp_path, word).message
    assert not list(tmp_path.iterdir())


def test_help_lays_out_groups_with_their_options(lowloss, tmp_path):
    own = tmp_path / "own" / "model"
    own.mkdir(parents=True)
    (own / "my_net.yaml").write_text("_target_: my_net.MyNet\n")
    help_ = lowloss.plain(tmp_path, "model=mlp", "--help", "--config-dir", "own")
    assert help_.status == 0, help_.err
    stages = "minima, connector, path, curvature, dimension, ensemble, merge, permutation, scan, width and report"
    assert stages in " ".join(help_.out.split())
    assert max(map(len, help_.out.splitlines())) <= 120
    families = read_families(REPOSITORY / "conf")
    assert families
    # A group's line, which says what it chooses, and below it its options.
    blocks = re.findall(r"^  (\w+) +(\S.*)\n((?: {14}.*\n?)+)", help_.out.partition("Groups")[2], re.MULTILINE)
    told = {group: (line, {*re.split(r",\s+", names.strip())}) for group, line, names in blocks}
    assert {group for group, (line, _) in told.items() if line != "your own"} == {*GROUPS}
    for group in (path for path in (REPOSITORY / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        options = {option.stem for option in group.glob("*.yaml")}
        if group.name == "experiment":
            options |= {*families, *(row["experiment"] for rows in families.values() for row in rows)}
        if group.name == "model":
            options |= {"my_net"}
        # Families and published numbers are tables, and no groups.
        assert told.get(group.name, ("", set()))[1] == options
    assert [path.name for path in tmp_path.iterdir()] == ["own"]


def test_a_network_in_the_current_folder_is_found(lowloss, tmp_path):
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n\n\nclass MyNet(nn.Sequential):\n    def __init__(self, input_shape, num_classes):\n"
        "        super().__init__(nn.Flatten(), nn.Linear(64, num_classes))\n"
    )
    without = ("~model.hidden", "~model.batch_norm", "~model.activation")
    found = lowloss.plain(tmp_path, "model=mlp", "model._target_=my_net.MyNet", *without, "trainer=cpu", "--dry-run")
    assert found.status == 0, found.err
    assert "650 parameters" in found.err


def test_presets_for_debugging(lowloss, tmp_path):
    made = lowloss.plain(
        tmp_path, "experiment=quickstart", "model=mlp", "trainer=cpu", "debug=one_step", "ensemble=[fge,snapshot,swa]"
    )
    assert made.status == 0, made.err
    root = tmp_path / "outputs" / "quickstart-one_step"
    assert load_notes(root / "minima" / "0000" / "result.safetensors")["steps"] == 1
    for finder in ("autoneb", "bezier", "polychain"):
        assert len((root / "paths" / f"0000-0001-{finder}" / "metrics.csv").read_text().splitlines()) == 2
    assert (root / "report" / "index.html").is_file()
    learnt = lowloss.plain(tmp_path, "model=mlp", "trainer=cpu", "debug=overfit")
    assert learnt.status == 0, learnt.err
    notes = load_notes(tmp_path / "outputs" / "digits-mlp-overfit" / "minima" / "0000" / "result.safetensors")
    assert (notes["train_error"], notes["steps"]) == (0.0, 300)
    assert notes["train_loss"] < 0.05
    assert notes["test_error"] > 0.1  # of so few samples
    timed = lowloss.plain(tmp_path, "model=mlp", "trainer=cpu", "debug=profile")
    assert timed.status == 0, timed.err
    told = [file.read_text() for file in (tmp_path / "outputs" / "digits-mlp-profile" / "profile").iterdir()]
    assert any("run_training_epoch" in text for text in told), told
    assert "profile: outputs/digits-mlp-profile/profile" in timed.err.splitlines()


def test_whoever_reads_may_stop(whole):
    """As head does: without a traceback, and with the signal's status."""
    for arguments in (["papers"], ["--help"], [], ["status", str(whole.root)]):
        reader, writer = os.pipe()
        os.close(reader)
        command = [sys.executable, "-m", "lowloss", *arguments]
        done = subprocess.run(command, cwd=whole.outputs, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300)
        os.close(writer)
        assert (done.returncode, done.stderr) == (-signal.SIGPIPE, "")


def test_swept_studies_are_those_of_their_names(lowloss, tmp_path):
    command = ("-m", "study=one,two", "model=mlp", "data=tiny", "minima.count=1", "minima.epochs=1", "trainer=cpu")
    swept = lowloss.plain(tmp_path, *command, "stages=[minima]")
    assert swept.status == 0, swept.err
    assert [(tmp_path / "outputs" / name / "minima" / "0000").is_dir() for name in ("one", "two")] == [True, True]


def test_sweep_makes_a_study_a_job(lowloss, tmp_path):
    # Many settings, one of them a path: neither may spoil the folders' names.
    command = ("-m", "seed=0,1", "stages=[minima]", f"+trainer.default_root_dir={tmp_path}")
    swept = lowloss.tiny(tmp_path, *command)
    assert swept.status == 0, swept.err
    studies = sorted((tmp_path / "t").iterdir())
    results = [(study / "minima" / "0002" / "result.safetensors").read_bytes() for study in studies]
    assert len(results) == len(set(results)) == 2
    # What was swept tells the studies apart.
    assert [f"seed={seed}" in study.name for seed, study in enumerate(studies)] == [True, True]
    # The same command again finds the same studies.
    again = lowloss.tiny(tmp_path, *command)
    assert again.err.count("all 3 are complete") == 2


def test_swept_experiments_are_the_studies_of_their_names(tmp_path):
    swept = run(str(SCRIPT), "experiment=draxler2018_table_b1", "stages=[]", folder=tmp_path)
    assert swept.returncode == 0, swept.stderr
    studies = [line.removeprefix("study: outputs/") for line in swept.stderr.splitlines()[1:]]
    assert len(set(studies)) == 28
    assert {"draxler2018_c10_cnn48", "draxler2018_c100_densenet100_12_bc"} <= set(studies)
    both = run(str(SCRIPT), "-m", "experiment=quickstart", "seed=0,1", "stages=[]", folder=tmp_path)
    first, *rest = both.stderr.splitlines()
    assert first.startswith("2 jobs, one after the other")
    assert rest == [f"study: outputs/quickstart/seed={seed}" for seed in (0, 1)]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    built = run(sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(REPOSITORY), folder=folder)
    assert built.returncode == 0, built.stdout + built.stderr
    (file,) = folder.glob("*.whl")
    return file


def test_wheel_works_outside_the_checkout(wheel, tmp_path):
    site = tmp_path / "site"
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(site)
    conf = {path.relative_to(REPOSITORY / "conf") for path in (REPOSITORY / "conf").rglob("*.*")}
    assert {path.suffix for path in conf} >= {".yaml", ".csv"}
    assert {path.relative_to(site / "lowloss/conf") for path in (site / "lowloss/conf").rglob("*.*")} == conf
    assert not list(site.rglob("tests")) + list(site.rglob("__pycache__"))
    (entry_points,) = site.glob("*.dist-info/entry_points.txt")
    assert "lowloss = lowloss.cli:main" in entry_points.read_text()

    work = tmp_path / "work"
    work.mkdir()
    lowloss = (sys.executable, "-m", "lowloss")
    help_ = run(*lowloss, "--info", "searchpath", folder=work, PYTHONPATH=str(site))
    assert str(site / "lowloss" / "conf") in help_.stdout
    made = run(
        *lowloss, "model=mlp", "trainer=cpu", "minima.count=1", "minima.epochs=1", "stages=[minima]",
        folder=work, PYTHONPATH=str(site),
    )  # fmt: skip
    assert made.returncode == 0, made.stderr
    assert (work / "outputs/digits-mlp/minima/0000/result.safetensors").is_file()
