"""Every wrong value is refused before anything is made, in one line that names the key and says what would be right."""

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from lowloss import LowlossError, cli
from lowloss.training.descent import Descent, Objective, Recipe, fit

SCRIPT = Path(__file__).parents[2] / "scripts" / "fuzz.py"
# A short study, should something wrong be accepted after all.
SHORT = """
    study=t trainer=cpu model=mlp model.hidden=[4] data=tiny minima.count=2 minima.epochs=1 minima.batch_size=16
    stages=[minima]
"""
TRAINER = "accelerator, devices, strategy, benchmark, deterministic, default_root_dir, profiler"
ALL = "stages=[minima,path,scan]"

# What was a traceback.
CRASHED = {
    "scan.plane.start=abc": r"scan\.plane\.start must be int, got 'abc'",
    f"scan.plane.start=abc {ALL}": r"scan\.plane\.start must be int, got 'abc'",
    "scan.plane.start=null": r"scan\.plane\.start must be int, got None",
    "scan.plane.start=[1,2]": r"scan\.plane\.start must be int, got \[1, 2\]",
    f"scan.random_plane.minimum=abc {ALL}": r"scan\.random_plane\.minimum must be int, got 'abc'",
    "scan.plane.path=[]": r"scan\.plane\.path must be str, got \[\]",
    "scan.plane=0": r"scan\.plane must be a group, got 0",
    "finder.autoneb=true": r"finder\.autoneb must be a group, got True",
    "outputs=null": "outputs must be str, got None",
    "outputs=[a]": r"outputs must be str, got \['a'\]",
    "outputs=''": "outputs must be a text that is not empty",
    "stages=[[minima]]": r"stages has \['minima'\], but the stages are minima",
    "published=5": "published must be null or str, got 5",
    "paper=5": "paper=5, but paper has nothing to choose: leave it out",
    "path.only=5": r"path\.only must be a group, got 5",
    "minima.epochs=inf": r"minima\.epochs must be a finite number, got inf",
    "minima.epochs=1e300": r"minima\.epochs must be at most 10000000, got 1e\+300",
    "data=digits data.augment=5": r"data\.augment must be callable, got 5",
    "data=arrays data.path=null": r"data\.path must be str, got None",
    "model=0.5": r"model=0\.5, but model takes the name of an option, of cnn_12x1",
    "model=[[0,1]]": "model takes the name of one option",
    "schedule=[1,2]": "schedule takes the name of one option",
    "~path.pairs": r"the configuration has no path\.pairs",
    "~trainer": "the configuration has no trainer",
    "~trainer.devices": r"trainer\.devices must be a number of devices",
    "~stages": "the configuration has no stages",
    "~study": "the configuration has no study",
    "=3": "=3 names no key: settings are KEY=VALUE",
    "-m seed=0,1 --cfg job": "Only one of --run, --multirun, --cfg",
    "--resolve": "--resolve flag can only be used .* --cfg",
    "model._target_=torch.nn.Linear": r"model: Linear.*unexpected keyword argument 'hidden'",
    "ensemble=null": "ensemble=null, but ensemble takes the name of an option, of curve, fge",
    "engine=null": "engine=null, but engine takes the name of an option, of auto, graph, loop",
    "engine._target_=lowloss.finder.Line ~engine.kind ~engine.precision": "engine must make .*Engine, got Line",
    "schedule._target_=lowloss.finder.Line ~schedule.milestones ~schedule.factor": "schedule must make .*, got Line",
    f"model.hidden={'[' * 2000}{']' * 2000}": "recursion",
    f"minima.count={'9' * 5000}": "4300 digits",
    "schedule.milestones=abc": r"schedule\.milestones must be a list, got 'abc'",
    "minima.count={_target_:os.getcwd} ensemble.fge.starts=''": r"minima\.count must be int, got \{'_target_'",
    "seed={_target_:os.getcwd}": r"seed must be int, got \{'_target_'",
    "evaluation_batch={_target_:null}": r"evaluation_batch must be int, got \{'_target_'",
    f"scan.plane.margin={{_target_:os.getcwd}} {ALL}": r"scan\.plane\.margin must be float, got \{'_target_'",
    "model.hidden={_target_:os.getcwd}": r"model\.hidden must be a list: Error merging override",
    "finder.autoneb=[abc]": r"finder\.autoneb must be a group: Error merging override",
    "optimizer.lr={_target_:os.getcwd}": r"optimizer\.lr must be float, got \{'_target_'",
    "logger=csv logger.name=[a]": r"logger\.name must be null or str, got \['a'\]",
}
# What was told only after training.
LATE = {
    f"path.pairs=explore path.budget.steps=1 {ALL}": r"path\.budget\.steps=1, .*a path by autoneb takes 16000",
    f"+scan.foo._target_=lowloss.points.RandomPlane {ALL}": r"scan\.foo has neither minimum nor start and end",
    "objective=nope": "objective=nope is none of",
    "objective=test_nope": "objective=test_nope ends with none of train_loss, train_error, test_loss, test_error",
    "objective=saddle_train_loss": "objective=saddle_train_loss comes from path, which stages leaves out",
    "scan.random_plane.extent=nan": r"scan\.random_plane\.extent must be a finite number, got nan",
}
# What was taken without a word.
TAKEN = {
    "optimizer.momentum=2": r"optimizer\.momentum must be less than 1, got 2",
    "optimizer._target_=torch.optim.LBFGS ~optimizer.momentum ~optimizer.weight_decay ~optimizer.nesterov": "LBFGS",
    "path.budget.pairs=0.5 stages=[minima,path]": r"path\.budget\.pairs must be null or a positive whole number",
    "trainer.accelerator=[]": r"trainer\.accelerator must be str, got \[\]",
    "model.hidden=[0]": r"model\.hidden\[0\] must be at least 1, got 0",
    "model.hidden=[200000,200000]": r"a point of 40,0\d\d,.* takes 480 GB to train, and this machine has",
    "model.hidden=5": r"model\.hidden must be a list, got 5",
    "model.batch_norm=1": r"model\.batch_norm must be bool, got 1",
    "scan.plane.margin=1e30": r"scan\.plane\.margin must be at most 1000, got 1e\+30",
    "scan.random_plane.extent=0": r"scan\.random_plane\.extent must be more than 0, got 0",
    "finder.autoneb.cycles=[{steps:10,lr:true}]": r"finder\.autoneb: a cycle's steps .* its lr a number",
    "finder.autoneb.cycles=[{steps:true,lr:0.1}]": r"finder\.autoneb: a cycle's steps .* whole numbers",
    "finder.autoneb.cycles=[{steps:1,lr:0.1,repeat:99999999999}]": r"finder\.autoneb: a cycle's",
    "scan.plane.path=abc": r"scan\.plane\.path asks for the finder abc",
    "scan.plane.path=autonep": r"the finder autonep \(did you mean autoneb\?\)",
    "+path.only.autonep=star": r"path\.only\.autonep asks for the finder autonep \(did you mean autoneb\?\)",
    "path.only=../../x": r"path\.only must be a group",
    "-m seed=range(0,0)": r"seed=range\(0,0\) has 0 values",
    "-m seed=range(0,1000000000000)": "can be swept",
    "study=..": r"study=\.\. does not lie in outputs",
    "study=../../x": "does not lie in outputs",
    "study=a/../../x": "does not lie in outputs",
    "study=/tmp/x": "does not lie in outputs",
    "study=.": "does not lie in outputs",
    "study=.sweeps": r"study=\.sweeps, but \.sweeps is a folder that belongs to other things",
    "study=base/minima": "study=base/minima, but minima is a folder that belongs",
    f"study={'x' * 300}": r"study='xxx.* has a part of more than 200 bytes: take a shorter name",
    "-m seed=0,1,0": "seed=0,1,0 has 0 twice, which is one study: name it once",
    "study=null": "study must be int or str, got None",
    "minima.count=99999999999": r"minima\.count must be at most 10000",
    "minima.count=2000 path.pairs=all stages=[minima,path]": "path.pairs=all is for at most 1000 minima",
    "minima.count=true": r"minima\.count must be int, got True",
    "scan.plane.resolution=[100000,100000]": r"scan\.plane: resolution must be fewer than 2\^31 grid points",
    "trainer=ddp trainer.devices=99999999999": r"trainer\.devices must be .*, got 99999999999",
}
# Keys of the trainer that change what is computed.
NUMBERS = ["gradient_clip_val=0.1", "precision=16-mixed", "max_time=00:00:00:01", "max_epochs=1", "max_steps=1",
           "limit_train_batches=1", "accumulate_grad_batches=2", "overfit_batches=1", "fast_dev_run=true",
           "barebones=true"]  # fmt: skip
TYPED = {
    "+minima.epoch=3": r"minima has no epoch \(did you mean epochs\?\)",
    "+path.point=3": r"path has no point \(did you mean points\?\)",
    "+finder.autoneb.pivot=3": r"finder\.autoneb has no pivot \(did you mean pivots\?\)",
    "+model.hiden=[3]": r"model has no hiden \(did you mean hidden\?\)",
    "--dry-runn": r"there is no --dry-runn \(did you mean --dry-run or --run\?\); the flags are --help",
    "model=[mlp,mlp]": r"model=\[mlp,mlp\], but model takes the name of one option, of cnn_12x1",
    "minima.epoch=3": r"'minima\.epoch' \(did you mean epochs\?\)",
}


@pytest.fixture
def refused(monkeypatch, capsys, tmp_path):
    """Runs a command line and returns the last line that it tells, after making sure that it made nothing."""
    monkeypatch.chdir(tmp_path)

    def run(arguments):
        for name in ("ended_well", "failed"):
            monkeypatch.setattr(cli, name, [])
        monkeypatch.delenv(cli.SWEPT, raising=False)
        monkeypatch.setenv("HYDRA_FULL_ERROR", "1")
        monkeypatch.setattr(sys, "argv", ["lowloss", *SHORT.split(), *arguments.split()])
        with pytest.raises(SystemExit) as raised:
            cli.main()
        assert raised.value.code == 1
        told = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lowloss:")]
        if "-m" not in arguments:
            assert len(told) in (1, 2), told  # the second counts the jobs that failed
        assert not list(tmp_path.glob("**/[!.]*/0000"))
        assert not list(tmp_path.parent.glob("minima"))
        return told[0]

    yield run
    monkeypatch.delenv(cli.SWEPT, raising=False)


@pytest.mark.parametrize("arguments", [*CRASHED, *LATE, *TAKEN, *TYPED])
def test_wrong_value_is_refused(refused, arguments):
    message = refused(arguments)
    wanted = {**CRASHED, **LATE, **TAKEN, **TYPED}[arguments]
    assert re.search(wanted, message), message


@pytest.mark.parametrize("setting", NUMBERS)
def test_trainers_settings_that_change_numbers_are_refused(refused, setting):
    message = refused(f"+trainer.{setting}")
    key = setting.split("=")[0]
    assert message == f"lowloss: trainer.{key} is for the stages to set; yours are {TRAINER}"


def test_what_cannot_fit_on_the_disk_is_refused(refused, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 2000}))
    assert re.search("2 minima of 310 parameters and .* grid points .* lower minima.count", refused(""))


def test_ensembles_and_paths_that_cannot_fit_are_refused_too(refused, monkeypatch):
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("Usage", (), {"free": 10**6}))
    message = refused("stages=[minima,ensemble] ensemble=[fge] ensemble.fge.members=1000")
    # Of 310 parameters, 4 bytes each: two minima, and a thousand members.
    told = r"what is missing keeps 1\.24 MB \(minima 2\.48 kB, ensemble 1\.24 MB\), and .* has 1 MB: take fewer"
    assert re.search(told, message), message


@pytest.mark.parametrize(
    "arguments",
    [
        *("minima.count=abc", f"scan.plane.start=abc {ALL}", "+trainer.precision=16-mixed", "~trainer"),
        *("optimizer.lr=abc", "finder.autoneb.momentum=abc", "optimizer.momentum=2", "model.hidden=[0]"),
        *("data=arrays data.path=missing.npz", "data=digits data.std=[-1]", "data=digits data.augment=5"),
        *("finder.autoneb.max_insertions=99999", f"scan.plane.margin=-1 {ALL}", "finder.autoneb.momentun=0.9"),
    ],
)
def test_what_can_be_told_at_once_is_told_without_torch(arguments, tmp_path):
    program = (
        "import atexit, sys; from lowloss.cli import main; "
        "atexit.register(lambda: print([name for name in ('torch', 'lightning', 'pandas') if name in sys.modules])); "
        "main()"
    )
    command = [sys.executable, "-c", program, *SHORT.split(), *arguments.split()]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=100)
    assert done.returncode == 1
    assert ast.literal_eval(done.stdout) == []
    assert done.stderr.count("lowloss:") in (1, 2)


class Bowl:
    """|x|² of each row."""

    def losses(self, x_RQ, batch):
        return x_RQ.square().sum(1)

    def to(self, device):
        return self


def test_fewer_steps_than_planned_are_never_complete():
    def stopped(**settings):
        return default(**{**settings, "max_steps": 3})

    from lowloss.training.descent import default_trainer as default

    recipe = Recipe(10, lambda rows: torch.optim.SGD(rows, lr=0.1), lambda _: 1.0)
    module = Descent(Objective(Bowl(), range(10)), torch.ones(2, 3), recipe, "bowl", "lower it")
    with pytest.raises(LowlossError, match="bowl: the trainer ended after 3 of 10 steps"):
        fit(module, 1, lambda *_: None, stopped)


def test_odd_command_lines_are_answered_and_change_nothing():
    command = [sys.executable, str(SCRIPT), "--count", "60", "--seed", "7", "--limit", "15"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "tracebacks and changed files: 0" in done.stdout
    assert int(re.search(r"(\d+) refused", done.stdout)[1]) > 30
