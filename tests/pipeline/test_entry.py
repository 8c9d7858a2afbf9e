"""How the command line is reached: the console script, the module, sweeps, and a wheel outside the checkout."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from lowloss.conf import read_families

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


def test_help_lists_groups_stages_and_examples(tmp_path):
    help_ = run(str(SCRIPT), "--help", folder=tmp_path)
    assert help_.returncode == 0, help_.stderr
    for part in (
        "experiment=quickstart",
        "minima, connector, path, curvature, dimension, ensemble, merge, permutation, scan, width, report",
        "lowloss -m seed=0,1,2",
    ):
        assert part in help_.stdout
    families = read_families(REPOSITORY / "conf")
    assert families
    for group in (path for path in (REPOSITORY / "conf").iterdir() if path.is_dir() and path.name != "hydra"):
        options = {option.stem for option in group.glob("*.yaml")}
        if group.name == "experiment":
            options |= {
                name for family, rows in families.items() for name in (family, *(r["experiment"] for r in rows))
            }
        # Families and published numbers are tables, and no groups.
        told = f"{group.name}: {', '.join(sorted(options))}" if options else f"{group.name}: "
        assert (told in help_.stdout) == bool(options)
    assert not list(tmp_path.iterdir())


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
    studies = [line.removeprefix("study: outputs/") for line in swept.stderr.splitlines()]
    assert len(set(studies)) == 28
    assert {"draxler2018_c10_cnn48", "draxler2018_c100_densenet100_12_bc"} <= set(studies)
    both = run(str(SCRIPT), "-m", "experiment=quickstart", "seed=0,1", "stages=[]", folder=tmp_path)
    assert both.stderr.splitlines() == [f"study: outputs/quickstart/seed={seed}" for seed in (0, 1)]


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
