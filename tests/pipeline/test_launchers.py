"""Sweeps through the launchers: processes of this machine, and a real SLURM of one node."""

import importlib.util
import os
import shlex
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lowloss import claims

# Test modules have no package, so what stands beside them is loaded by its path.
_spec = importlib.util.spec_from_file_location("slurm", Path(__file__).with_name("slurm.py"))
slurm = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(slurm)

REPOSITORY = Path(__file__).parents[2]
TINY = """
    trainer=cpu model=mlp minima.count=2 minima.epochs=2 finder=[line,bezier] finder.bezier.steps=4 path.points=5
    path.between=1 scan=[]
"""


@pytest.fixture(scope="module")
def cluster(tmp_path_factory):
    with slurm.cluster(tmp_path_factory.mktemp("slurm")) as environment:
        yield environment


def start(folder, *arguments, environment=None):
    folder.mkdir(exist_ok=True)
    command = [sys.executable, "-m", "lowloss", "-m", *TINY.split(), *arguments]
    environment = {**(environment or os.environ), "OMP_NUM_THREADS": "1", "COLUMNS": "200"}
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def finish(process, timeout=900):
    out, err = process.communicate(timeout=timeout)
    return subprocess.CompletedProcess(process.args, process.returncode, out, err)


def results(lowloss, folder):
    return lowloss.results(folder / "outputs" / "digits-mlp")


def table(err):
    """The rows of the table of failures, by study."""
    lines = err.splitlines()
    first = next(i for i, line in enumerate(lines) if line.split()[:3] == ["study", "why", "log"])
    rows = [line.split("  ") for line in lines[first + 1 :] if line.startswith("digits-mlp/")]
    return {row[0].removeprefix("digits-mlp/"): " ".join(row[1:-1]).strip() for row in rows}


SWEEP = ("seed=0,1", "model.hidden=[4],[6]", "stages=[minima,path]")


@pytest.fixture(scope="module")
def local(tmp_path_factory):
    folder = tmp_path_factory.mktemp("local")
    done = finish(start(folder, *SWEEP, "hydra/launcher=local", "hydra.launcher.parallel=2"))
    assert done.returncode == 0, done.stderr
    assert "[4/4]" in done.stderr
    return folder


def test_local_launcher_makes_what_one_process_makes(lowloss, local, tmp_path):
    for study in ("model.hidden=[4],seed=1", "model.hidden=[6],seed=0"):
        hidden, seed = study.split(",")
        once = lowloss.plain(tmp_path, *TINY.split(), hidden, seed, "stages=[minima,path]", f"study='{study}'")
        assert once.status == 0, once.err
        made = lowloss.results(local / "outputs" / "digits-mlp" / study)
        assert made == lowloss.results(tmp_path / "outputs" / study)
        assert len(made) == 2 * 3 + 2 * 4 + 2  # minima, paths, bounds
    # Hydra's own files stay out of sight, and keep nothing of what was given, which may be a secret.
    assert "model" not in (local / "outputs" / ".sweeps" / "multirun.yaml").read_text()
    assert [path.name for path in (local / "outputs").iterdir() if not path.name.startswith(".")] == ["digits-mlp"]


def test_local_launcher_loses_one_job_to_a_kill_and_one_to_an_error(lowloss, local, tmp_path):
    """And the same command then makes what is missing."""
    launcher = ("hydra/launcher=local", "hydra.launcher.parallel=2", "stages=[minima,path]")
    process = start(tmp_path, *launcher, "seed=0", "model.hidden=[4],[-6],[6]")
    slurm.until(lambda: children(process.pid), "a job runs")
    victim = next(pid for pid, line in children(process.pid).items() if "[4]" in line)
    os.kill(victim, signal.SIGKILL)
    done = finish(process)
    assert done.returncode == 1
    failed = table(done.stderr)
    assert "Error executing job" not in done.stderr
    assert failed.keys() == {"model.hidden=[4]", "model.hidden=[-6]"}
    assert failed["model.hidden=[4]"] == "killed by SIGKILL"
    assert "must be at least 1" in failed["model.hidden=[-6]"]
    assert done.stderr.splitlines()[-1] == "lowloss: 2 of 3 jobs failed; the same command runs them again"
    assert done.stderr.splitlines()[0].startswith("local: 3 jobs, logs in outputs/.sweeps/")
    assert "must be at least 1" in follow(lowloss, tmp_path, done.stderr)[-1]
    again = finish(start(tmp_path, *launcher, "seed=0", "model.hidden=[4],[6]"))
    assert again.returncode == 0, again.stderr
    for width in (4, 6):
        made = lowloss.results(tmp_path / "outputs" / "digits-mlp" / f"model.hidden=[{width}]")
        assert made == lowloss.results(local / "outputs" / "digits-mlp" / f"model.hidden=[{width}],seed=0")


def follow(lowloss, folder, err):
    """From what a sweep says at once to the log of the job with a wrong setting, in two commands; the log's lines."""
    (said,) = (line for line in err.splitlines() if "how far they are: " in line)
    asked = shlex.split(said.partition("how far they are: lowloss ")[2])
    told = lowloss.plain(folder, *asked)
    assert told.status == 0, told.err
    assert "2 failed, 1 done" in told.out.splitlines()[0]
    at = next(i for i, line in enumerate(told.out.splitlines()) if line.startswith("FAILED") and "[-6]" in line)
    shown = next(line for line in told.out.splitlines()[at:] if "lowloss logs" in line)
    logs = lowloss.plain(folder, *shlex.split(shown.partition("lowloss ")[2]))
    assert logs.status == 0, logs.err
    return logs.out.splitlines()


SEARCH = """
    experiment=optuna_digits hydra/launcher=local hydra.sweeper.n_jobs=1 stages=[minima]
    optimizer.weight_decay=0
"""


def search(tmp_path, trials, rates):
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    settings = (f"hydra.sweeper.n_trials={trials}", f"optimizer.lr=choice({rates})")
    done = finish(start(tmp_path, *SEARCH.split(), *settings))
    assert done.returncode == 1, done.stderr
    assert "Traceback" not in done.stderr
    return done.stderr.splitlines()


def test_a_search_goes_on_after_a_failed_trial(tmp_path):
    lines = search(tmp_path, 3, "0.1,-1.0")
    assert [line for line in lines if line.startswith("lowloss:")] == lines[-1:]
    jobs = [line for line in lines if line.startswith("[1/1]")]
    failed = ["FAILED" in line for line in jobs]
    assert failed[0], lines  # the sampler's seed has the wrong rate come first
    assert len(failed) == 3
    assert sum(failed) < 3
    assert lines[-1] == f"lowloss: {sum(failed)} of 3 jobs failed; the same command runs them again"
    assert "best_value" in (tmp_path / "outputs" / ".sweeps" / "optimization_results.yaml").read_text()


def test_a_search_without_a_successful_trial_ends_in_one_line(tmp_path):
    lines = search(tmp_path, 2, "-2.0,-1.0")
    assert sum("FAILED" in line for line in lines) == 2
    told = [
        line for line in lines if not line.startswith(("[1/1]", "study ", "optuna_digits/")) and "new study" not in line
    ]
    assert told.pop(0).startswith("local: 1 job, logs in ")
    assert told == ["lowloss: 2 of 2 jobs failed; the same command runs them again"]


def test_processes_share_a_study(lowloss, local, tmp_path):
    sharing = ("hydra/launcher=local", "hydra.launcher.parallel=2", "hydra.launcher.processes=2", "minima.together=1")
    done = finish(start(tmp_path, *sharing, "stages=[minima,path]", "seed=1", "model.hidden=[4]", "study=shared"))
    assert done.returncode == 0, done.stderr
    assert "[2/2]" in done.stderr
    made = lowloss.results(tmp_path / "outputs" / "shared" / "0")
    assert made == lowloss.results(local / "outputs" / "digits-mlp" / "model.hidden=[4],seed=1")
    logs = [log.read_text() for log in (tmp_path / "outputs" / ".sweeps").glob("*/shared/0-*.log")]
    assert len(logs) == 2
    # Each minimum was trained once, alone.
    assert sum(log.count("minima 1 ×") for log in logs) == 2


def children(pid):
    """The command lines of a process's children, by their ids."""
    found = {}
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        line = Path(f"/proc/{child}/cmdline").read_text().replace("\0", " ")
        if "-m lowloss" in line:
            found[int(child)] = line
    return found


FAST = ("hydra/launcher=slurm", "hydra.launcher.check_s=2", "hydra.launcher.array_parallelism=2")


def watch(process, cluster, names=None):
    """What SLURM shows while the process runs: a list of {task: (state, reason)}. names: those of tasks go there."""
    seen = []
    while process.poll() is None:
        shown = slurm.ask(cluster, "squeue", "-h", "-r", "-o", "%i %t %r %j").splitlines()
        seen.append({line.split()[0]: tuple(line.split()[1:3]) for line in shown})
        if names is not None:
            names |= {line.split()[3] for line in shown}
        time.sleep(0.2)
    return seen


def test_slurm_array_gives_the_tables_of_the_local_launcher(lowloss, cluster, local, tmp_path):
    process, names = start(tmp_path, *SWEEP, *FAST, environment=cluster), set()
    seen = watch(process, cluster, names)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    studies = {f"digits-mlp/model.hidden=[{hidden}],seed={seed}" for hidden in (4, 6) for seed in (0, 1)}
    assert names == {"digits-mlp", *studies}  # until a task runs, and then
    assert "[4/4]" in done.stderr
    assert results(lowloss, tmp_path) == results(lowloss, local)
    (array,) = {task.partition("_")[0] for tasks in seen for task in tasks}
    assert {task for tasks in seen for task in tasks} == {f"{array}_{i}" for i in range(4)}
    assert max(sum(state[0] == "R" for state in tasks.values()) for tasks in seen) == 2
    assert any(state == ("PD", "JobArrayTaskLimit") for tasks in seen for state in tasks.values())


def test_slurm_pipeline_tells_what_failed_and_keeps_the_others(lowloss, cluster, local, tmp_path):
    pipeline = "hydra.launcher.pipeline=[[minima],[path]]"
    process = start(tmp_path, *FAST, pipeline, "seed=0", "model.hidden=[4],[-6],[6]", environment=cluster)
    slurm.until(lambda: "_0" in slurm.ask(cluster, "squeue", "-h", "-r", "-t", "R", "-o", "%i"), "the first runs", 60)
    array = slurm.ask(cluster, "squeue", "-h", "-r", "-t", "R", "-o", "%i").partition("_")[0]
    slurm.ask(cluster, "scancel", f"{array}_0")
    seen = watch(process, cluster)
    done = finish(process)
    assert done.returncode == 1
    # What failed takes the stage behind it along, and no more.
    failed = table(done.stderr)
    assert failed.keys() == {f"model.hidden=[{n}] [{stage}]" for n in (4, -6) for stage in ("minima", "path")}
    assert done.stderr.splitlines()[-1] == "lowloss: 4 of 6 jobs failed; the same command runs them again"
    for reason in ("must be at least 1, got -6", "cancelled", "dependencyneversatisfied"):
        assert reason in done.stderr.lower()
    assert "must be at least 1" in follow(lowloss, tmp_path, done.stderr)[-1]
    made = lowloss.results(tmp_path / "outputs" / "digits-mlp" / "model.hidden=[6]")
    assert made == lowloss.results(local / "outputs" / "digits-mlp" / "model.hidden=[6],seed=0")
    # The path waited for its own minima.
    (behind,) = {task.partition("_")[0] for tasks in seen for task in tasks} - {array}
    assert any(tasks.get(f"{behind}_2") == ("PD", "Dependency") for tasks in seen)
    assert not any(tasks.get(f"{behind}_2", "")[:1] == ("R",) and f"{array}_2" in tasks for tasks in seen)


def test_slurm_requeues_what_runs_out_of_time(lowloss, cluster, local, tmp_path):
    launcher = ("hydra.launcher.timeout_min=1", "hydra.launcher.signal_delay_s=10")
    job = ("stages=[minima]", "minima.together=1", "model.hidden=[4]", "seed=1")
    root = tmp_path / "outputs" / "digits-mlp" / "0"
    # The second minimum is ours for as long as we live, so the job cannot get it done in time.
    with claims.take(root / "minima" / ".0001.claim"):
        process = start(tmp_path, *FAST, *launcher, *job, environment=cluster)
        slurm.until(lambda: (root / "minima" / "0000").is_dir(), "the first minimum is there", 180)
        number = slurm.ask(cluster, "squeue", "-h", "-o", "%i")
        shown = ("scontrol", "-o", "show", "job", number)
        slurm.until(lambda: "Restarts=0" not in slurm.ask(cluster, *shown), "the job is queued again", 120)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert lowloss.results(root) == {
        name: value
        for name, value in lowloss.results(local / "outputs/digits-mlp/model.hidden=[4],seed=1").items()
        if name.startswith("minima")
    }
    (log,) = (tmp_path / "outputs" / ".sweeps").glob("*/digits-mlp/0.log")
    text = log.read_text()
    assert text.count("study:") > 1
    assert "lowloss: interrupted; the same command continues" in text
    # What was complete was not made again.
    assert text.count("minima 1 ×") == 2


def test_slurm_waits_for_what_it_queues_again(lowloss, cluster, local, tmp_path):
    root = tmp_path / "outputs" / "digits-mlp" / "0"
    job = ("stages=[minima]", "minima.together=1", "model.hidden=[4]", "seed=1")
    with claims.take(root / "minima" / ".0001.claim"):
        process = start(tmp_path, *FAST, *job, environment=cluster)
        slurm.until(lambda: (root / "minima" / "0000").is_dir(), "the first minimum is there", 180)
        number = slurm.ask(cluster, "squeue", "-h", "-o", "%i")
        slurm.ask(cluster, "scontrol", "requeue", number)  # as preemption does: SIGTERM, then the queue again
        shown = ("scontrol", "-o", "show", "job", number)
        slurm.until(lambda: "Restarts=1" in slurm.ask(cluster, *shown), "the job is queued again", 120)
    done = finish(process)
    assert done.returncode == 0, done.stderr
    assert "FAILED" not in done.stderr
    assert len(list(root.glob("minima/*/result.safetensors"))) == 2


def test_a_launcher_without_a_sweep_is_refused(lowloss, tmp_path):
    made = lowloss(tmp_path, "hydra/launcher=local", "experiment=quickstart")
    assert made.status == 1
    assert "lowloss -m" in made.message


def test_what_slurm_refuses_is_told_in_one_line(cluster, tmp_path):
    done = finish(start(tmp_path, *FAST, "hydra.launcher.partition=nope", "seed=0,1", environment=cluster))
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("lowloss: SLURM does not take the jobs: ")
    assert "invalid partition" in line.lower()
    assert "sbatch:" not in line


def test_why_jobs_never_start_is_told_once(cluster, tmp_path):
    never = ("hydra.launcher.partition=short", "hydra.launcher.timeout_min=60")
    process = start(tmp_path, *FAST, *never, "seed=0,1", environment=cluster)
    shown = ("squeue", "-h", "-r", "-o", "%i %r")
    slurm.until(lambda: slurm.ask(cluster, *shown).count("PartitionTimeLimit") == 2, "both are pending", 60)
    time.sleep(7)  # SLURM is asked every two seconds
    slurm.ask(cluster, "scancel", slurm.ask(cluster, *shown).partition("_")[0])
    done = finish(process)
    assert done.returncode == 1
    assert [line for line in done.stderr.splitlines() if "wait" in line] == [
        "slurm: 2 of 2 jobs wait: PartitionTimeLimit"
    ]


def test_array_script_runs_a_line_a_task(lowloss, cluster, local, tmp_path):
    (tmp_path / "runs.txt").write_text(
        "".join(f"{' '.join(TINY.split())} model.hidden=[4] stages=[minima] seed={s} study='s {s}'\n" for s in (0, 1))
    )
    script = REPOSITORY / "scripts" / "slurm_array.sbatch"
    command = ["sbatch", "--wait", "--array=1-3%2", str(script), "runs.txt"]
    # `lowloss` is found as in an activated environment.
    activated = cluster | {"PATH": f"{Path(sys.executable).parent}:{cluster['PATH']}"}
    done = subprocess.run(command, cwd=tmp_path, env=activated, capture_output=True, text=True, timeout=900)
    assert done.returncode == 2, done.stderr  # that of the task without a line
    logs = {log.stem.rpartition("_")[2]: log.read_text() for log in tmp_path.glob("slurm-*.log")}
    assert "runs.txt has no line 3: submit with --array=1-2" in logs["3"]
    for seed in (0, 1):
        made = lowloss.results(tmp_path / "outputs" / f"s {seed}" / "minima")
        assert made == lowloss.results(local / "outputs" / "digits-mlp" / f"model.hidden=[4],seed={seed}" / "minima")
        assert made


@pytest.mark.parametrize(
    ("launcher", "value", "reason"),
    [
        ("local", "parallel=-1", "must be a whole number of at least 1, got -1"),
        ("local", "processes=0", "must be a whole number of at least 1, got 0"),
        ("local", "gpus=2.5", "must be a whole number of at least 0, got 2.5"),
        ("slurm", "requeues=x", "must be a whole number of at least 0, got 'x'"),
        ("slurm", "signal_delay_s=14400", "must be less than 60 times timeout_min, got 14400"),
        ("slurm", "check_s=-1", "must be a number of at least 0, got -1"),
        ("slurm", "setup=5", "must be a list of lines of shell, got 5"),
        ("slurm", "pipeline=[minima]", "must be a list of lists of stages like [[minima],[path]], got ['minima']"),
        ("slurm", "pipeline=[[minima],[nope]]", "has 'nope', but the stages are minima, connector, path"),
    ],
)
def test_a_wrong_setting_is_told_before_any_job_starts(lowloss, tmp_path, launcher, value, reason):
    name = value.partition("=")[0]
    message = lowloss(tmp_path, "-m", f"hydra/launcher={launcher}", f"hydra.launcher.{value}", "seed=0,1").message
    assert message.startswith(f"lowloss: hydra.launcher.{name} {reason}")
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_what_is_wrong_with_every_job_is_told_before_any_starts(lowloss, tmp_path, launcher):
    message = lowloss(tmp_path, "-m", f"hydra/launcher={launcher}", "optimizer.lr=-1", "seed=0,1").message
    assert message == "lowloss: optimizer.lr must be at least 0, got -1"
    assert not list(tmp_path.rglob("*.log"))
    assert not (tmp_path / "t").exists()


@pytest.mark.parametrize(
    ("task", "reason"),
    [("2", "line 2 of runs.txt cannot be read: close its quotes"), ("4", "has no line 4: submit with --array=1-3")],
)
def test_array_script_refuses_what_it_cannot_run(tmp_path, task, reason):
    (tmp_path / "runs.txt").write_text("seed=0\nseed=1 study='unmatched\nseed=2")
    script = REPOSITORY / "scripts" / "slurm_array.sbatch"
    ended = subprocess.run(
        ["bash", script, "runs.txt"],
        cwd=tmp_path, env={**os.environ, "SLURM_ARRAY_TASK_ID": task}, capture_output=True, text=True, timeout=60,
    )  # fmt: skip
    assert ended.returncode == 2
    assert ended.stderr.splitlines()[-1].endswith(reason)
