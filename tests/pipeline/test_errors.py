"""What a user can get wrong: one line that names the cause and the remedy, before any work is done or overwritten."""

import re
import shlex

import numpy as np
import pytest

MODELS = ["cnn_12x1", "mlp", "resnet20", "wrn28_10"]
STAGES = "minima, connector, path, curvature, dimension, ensemble, merge, permutation, scan, width, report"
# A short study, should something wrong be accepted after all.
SHORT = """
    model=mlp minima.count=2 minima.epochs=1 finder.autoneb.cycles=[{steps:2,lr:0.1,repeat:2}] path.points=5
    path.between=1 ensemble.fge.members=1 ensemble.fge.cycle_epochs=1 scan.plane.resolution=[3,3]
    scan.random_plane.resolution=[3,3]
"""

# Arguments, and patterns that the message has to match.
WRONG = {
    "option": ("model=nope", "model/nope", *MODELS),
    "finder": ("finder=[line,nope]", "nope", "autoneb", "polychain"),
    "key": ("minima.cuont=3", "minima.cuont", r"\bcount\b", r"\bepochs\b", r"\bbatch_size\b"),
    "choice": ("finder.autoneb.tangent=foo", "finder.autoneb", "foo", "higher, improved"),
    "depth": ("model=resnet20 model.depth=21", "model", "21", r"6n \+ 2"),
    "rates": ("ensemble.fge.lr_min=1", "ensemble", "lr_min < lr_max", r"\b1\b"),
    "milestones": ("schedule.milestones=[2]", "schedule.milestones", r"\[2\]"),
    "cycles": ("finder.autoneb.cycles=[{steps:10}]", "finder.autoneb", "steps, lr"),
    "cycles-of-words": ("finder.autoneb.cycles=foo", "finder.autoneb", "steps: NUMBER, lr: RATE, repeat: TIMES", "foo"),
    "no-cycles": ("finder.autoneb.cycles=[]", "finder.autoneb", "at least one"),
    "no-repeats": ("finder.autoneb.cycles=[{steps:10,lr:0.1,repeat:0}]", "finder.autoneb", "repeat", r"\b0\b"),
    "momentum": ("finder.autoneb.momentum=1.5", "finder.autoneb", "momentum", "1.5"),
    "threshold": ("finder.autoneb.threshold=-1", "finder.autoneb", "threshold", "-1"),
    "unknown-key": ("+finder.autoneb.treshold=1", "finder.autoneb", "treshold", r"\bthreshold\b", r"\bpivots\b"),
    "unknown-key-of-a-line": ("finder=[autoneb,line] +finder.line.steps=1", "finder.line has no steps; it has no keys"),
    "no-evaluations": ("finder.autoneb.evaluations=0", "evaluations"),
    "normalization": ("scan.random_plane.normalization=foo", "scan.random_plane", "foo", "filter, layer, none"),
    "resolution": ("scan.plane.resolution=[3]", r"scan\.plane", "resolution"),
    "flat-resolution": ("scan.random_plane.resolution=[1,5]", r"scan\.random_plane", "resolution"),
    "stage": ("stages=[minma]", "minma", STAGES),
    "stage-without-brackets": ("stages=minima", r"stages=\[minima\]|\[minima, path"),
    "pair": ("path.pairs=[[0,7]]", "path.pairs", r"\[0, ?7\]", "minima.count"),
    "pairs": ("path.pairs=foo", "path.pairs", "star, all", "foo"),
    "pair-of-a-finder": ("+path.only.autoneb=[[0,9]]", "path.only", r"\[0, ?9\]"),
    "pair-of-words": ("path.pairs=[[0,x]]", "path.pairs", "x"),
    "start-of-ensemble": ("ensemble.fge.minimum=9", "ensemble.fge.minimum", "minima.count"),
    "end-of-plane": ("scan.plane.end=7", r"scan\.plane", "7"),
    "path-of-plane": ("scan.plane.path=bezier", "scan.plane.path", "bezier", "autoneb"),
    "plane-without-its-path": ("path.pairs=[[1,2]] minima.count=3", r"scan\.plane", "path.pairs"),
    "epochs-of-words": ("minima.epochs=abc", "minima.epochs", "abc"),
    "negative-epochs": ("minima.epochs=-1", "minima.epochs", "-1"),
    "count-of-words": ("minima.count=abc", "minima.count", "abc"),
    "batch-of-none": ("minima.batch_size=0", "batch_size", r"\b0\b"),
    "rate-of-words": ("optimizer.lr=abc", "optimizer.lr must be float, got 'abc'"),
    "rate-of-nothing": ("optimizer=adam optimizer.lr=null", "optimizer.lr must be float, got None"),
    "decay-of-words": ("optimizer.weight_decay=abc", "optimizer.weight_decay must be float, got 'abc'"),
    "points-of-words": ("path.points=abc", "path.points", "abc"),
    "seed-of-words": ("seed=abc", "seed", "abc"),
    "evaluation-of-none": ("evaluation_batch=0", "evaluation_batch", r"\b0\b"),
    "objective-of-nothing": ("objective=nope", "objective=nope", "saddle_train_loss"),
    "together-of-none": ("minima.together=0", "minima.together", r"\b0\b"),
    "devices": ("trainer.devices=2", "trainer.devices=2", "trainer=ddp"),
    "devices-of-none": ("trainer.devices=0", "trainer.devices", r"\b0\b"),
    "target": ("model._target_=lowloss.model.Nope", "model", "Nope"),
    "arrays-without-path": ("data=arrays", "data.path"),
    "decay-of-a-connector": (
        "stages=[minima,connector] connector.m=[1] +connector.optimizer.weight_decay=0.1",
        r"connector.optimizer.weight_decay=0.1 of Adam would act on .* a chart, .*set it to 0, and connector.weight",
    ),
    "decay-of-a-cut": (
        "stages=[minima,dimension] dimension.optimizer._target_=torch.optim.AdamW dimension.dims=[3]",
        r"dimension.optimizer.weight_decay=0.01 of AdamW would act on .* a chart, .*set it to 0",
    ),
    "column-of-a-cut": (
        "stages=[minima,dimension] dimension.column=foo_error dimension.dims=[3]",
        "dimension.column=foo_error, but there are train_loss, train_error, test_loss, test_error: choose one of them",
    ),
    "trivial-with-batchnorm": ("finder=[autoneb,trivial] model.batch_norm=true", "weights and biases alone"),
    "trivial-with-tanh": ("finder=[autoneb,trivial] model.activation=Tanh", "needs ReLU networks"),
    "no-connector": ("stages=[minima,connector] connector.m=[]", "connector.m must be a list that is not empty"),
    "no-dimension": ("stages=[minima,dimension] dimension.dims=[]", "dimension.dims must be a list that is not empty"),
    "cuts-through-what-is-not-made": (
        "stages=[minima,dimension] dimension.at=[connector] connector.m=[1] dimension.dims=[3]",
        r"connectors.m01 is missing: make it with `lowloss .*stages=\[connector\]`",
    ),
    "grammar": ("model.hidden=[8", r"\[8"),
}


def nothing_made(outputs):
    """Whether no artifact is there; an outputs folder may hold work that was begun."""
    return not [path for path in outputs.glob("t/*/*") if path.is_dir() and not path.name.startswith(".")]


@pytest.mark.parametrize("case", WRONG)
def test_wrong_value_is_refused_before_any_work(lowloss, tmp_path, case):
    arguments, *patterns = WRONG[case]
    message = lowloss(tmp_path, *SHORT.split(), *arguments.split()).message
    for pattern in patterns:
        assert re.search(pattern, message), message
    assert nothing_made(tmp_path)


COLLECT = "minima.collect must be null, every or a list of epochs, got "
# What only training takes, and thus would tell late.
LATE = {
    "collect-of-words": ("minima.collect=foo", f"{COLLECT}'foo'"),
    "collect-before-the-start": ("minima.collect=[0,-1]", f"{COLLECT}[0, -1]"),
    "decay-under-a-chart": ("chart=span chart.dim=2", "optimizer.weight_decay=0.0001 would act on the coordinates"),
}


@pytest.mark.parametrize("case", LATE)
def test_what_training_would_refuse_is_refused_before_anything_is_begun(lowloss, tmp_path, case):
    arguments, told = LATE[case]
    assert told in lowloss(tmp_path, *SHORT.split(), *arguments.split()).message
    assert not list(tmp_path.glob("t/*"))


def test_the_error_is_all_that_is_told(lowloss, tmp_path):
    refused = lowloss(tmp_path, "stages=[minma]")
    assert refused.out == ""
    assert [line for line in refused.err.splitlines() if not line.startswith("study:")] == [refused.message]


def test_a_corrected_command_is_not_held_to_the_wrong_one(lowloss, tmp_path):
    assert "model" in lowloss.tiny(tmp_path, "stages=[minima]", "model.hidden=[-3]").message
    made = lowloss.tiny(tmp_path, "stages=[minima]")
    assert made.status == 0, made.err
    assert "tangent" in lowloss.tiny(tmp_path, "stages=[path]", "finder.autoneb.tangent=foo").message
    made = lowloss.tiny(tmp_path, "stages=[path]")
    assert made.status == 0, made.err


def test_gpu_that_is_not_there(lowloss, tmp_path):
    refused = lowloss(tmp_path, "trainer=gpu", "minima.epochs=1", environment={"CUDA_VISIBLE_DEVICES": ""})
    assert "trainer" in refused.message
    assert nothing_made(tmp_path)


def test_a_part_of_the_configuration_that_was_taken_out_is_named(lowloss, tmp_path):
    message = lowloss(tmp_path, "~engine").message
    assert "the configuration has no engine" in message
    assert nothing_made(tmp_path)


@pytest.mark.parametrize("name", ["mnist", "fashion_mnist", "cifar10", "cifar100"])
def test_data_that_are_not_there(lowloss, tmp_path, name):
    message = lowloss(tmp_path, f"data={name}", f"data.root={tmp_path / 'nowhere'}").message
    for part in (name.replace("_", "").upper(), str(tmp_path / "nowhere"), "data.root", "data.download=true"):
        assert part in message.replace("FashionMNIST", "FASHIONMNIST")
    assert nothing_made(tmp_path)
    assert not list(tmp_path.rglob("minima"))


def arrays(folder):
    """Files that are no data set: what is wrong with each, and the file."""
    random = np.random.default_rng(0)
    split = {"x_train": random.normal(size=(20, 3)), "x_test": random.normal(size=(20, 3))}
    labels = {"y_train": random.integers(0, 2, 20), "y_test": random.integers(0, 2, 20)}
    np.savez(folder / "whole.npz", **split, **labels)
    (folder / "truncated.npz").write_bytes((folder / "whole.npz").read_bytes()[:700])
    (folder / "text.npz").write_text("x,y\n")
    np.savez(folder / "lacking.npz", **split)
    np.savez(folder / "objects.npz", **labels, x_train=np.array([{}]), x_test=np.array([{}]))
    np.savez(folder / "uneven.npz", **labels | {"y_train": labels["y_train"][:5]}, **split)
    np.savez(folder / "words.npz", **labels | {"y_train": np.array(["a"] * 20)}, **split)
    np.savez(folder / "negative.npz", **labels | {"y_train": labels["y_train"] - 1}, **split)


@pytest.mark.parametrize(
    ("name", "pattern"),
    [
        ("missing", "data.path"),
        ("truncated", r"numpy\.savez"),
        ("text", r"numpy\.savez"),
        ("lacking", "y_train, y_test"),
        ("objects", r"numpy\.savez"),
        ("words", r"numpy\.unique"),
        ("uneven", r"y \(5,\)"),
        ("negative", "labels must lie in 0"),
    ],
)
def test_arrays_that_are_no_data(lowloss, tmp_path, name, pattern):
    arrays(tmp_path)
    file = tmp_path / f"{name}.npz"
    message = lowloss(tmp_path, "stages=[minima]", "minima.epochs=1", "data=arrays", f"data.path={file}").message
    assert re.search(pattern, message), message
    if name not in ("uneven", "negative"):
        assert str(file) in message
    assert nothing_made(tmp_path)


def test_missing_artifacts_are_named_with_the_command_that_makes_them(lowloss, tmp_path):
    commands = []
    for stage, missing, needed in (
        ("report", "t", "report"),
        ("scan", "t/paths/0000-0001-autoneb", "path"),
        ("ensemble", "t/minima/0000", "minima"),
        ("path", "t/minima/0000", "minima"),
    ):
        message = lowloss(tmp_path, *SHORT.split(), f"stages=[{stage}]").message
        assert f"{tmp_path / missing} " in message
        command = shlex.split(re.search(r"make it with `(.*)`", message)[1])
        assert command[0] == "lowloss"
        assert (command[-1] == f"stages=[{needed}]") == (stage != "report")
        commands.append(command[1:])
    for command in (commands[3], commands[1]):
        assert lowloss(tmp_path, *command).status == 0
    assert lowloss(tmp_path, *SHORT.split(), "stages=[scan]").status == 0


def state(root):
    return {path: path.stat().st_mtime_ns for path in root.rglob("*")}


@pytest.mark.parametrize(
    ("change", "before", "now"),
    [
        ("minima.epochs=5", "minima.epochs=4", "minima.epochs=5"),
        ("optimizer=adam", "optimizer._target_=torch.optim.SGD", "optimizer._target_=torch.optim.Adam"),
        ("seed=3", "seed=0", "seed=3"),
        # BatchNorm's statistics are means over the chunks of an evaluation.
        ("evaluation_batch=100", "evaluation_batch=1000", "evaluation_batch=100"),
        ("finder.autoneb.pivots=4", "finder.autoneb.pivots=3", "finder.autoneb.pivots=4"),
        ("ensemble.fge.members=3", "ensemble.fge.members=2", "ensemble.fge.members=3"),
        ("scan.plane.margin=0.5", "scan.plane.margin=0.25", "scan.plane.margin=0.5"),
    ],
)
def test_a_study_is_not_mixed_with_another_configuration(lowloss, whole, change, before, now):
    untouched = state(whole.root)
    message = lowloss.tiny(whole.outputs, change).message
    assert re.search(rf"made with .*{before}, now {now}", message), message
    assert str(whole.root) in message
    assert "study=" in message
    assert state(whole.root) == untouched


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ("finder.autoneb.tangent=foo", "finder.autoneb: tangent must be one of higher, improved"),
        ("finder.autoneb.momentum=2", "finder.autoneb: momentum must be"),
        ("ensemble.fge.lr_min=1", "ensemble.fge: the rates must be 0 < lr_min < lr_max"),
        ("ensemble.fge.momentum=2", "ensemble.fge: momentum must be at least 0 and less than 1, got 2"),
        ("ensemble.fge.cycle_epochs=-1", "ensemble.fge: cycle_epochs must be more than 0 and finite, got -1"),
        ("optimizer.lr=abc", "optimizer.lr must be float"),
        ("scan.random_plane.measures=2", "scan.random_plane.measures must be a list, got 2"),
    ],
)
def test_a_value_that_makes_no_sense_is_told_as_such_beside_results(lowloss, whole, change, told):
    untouched = state(whole.root)
    assert told in lowloss.tiny(whole.outputs, change).message
    assert state(whole.root) == untouched


def test_finders_are_checked_before_minima_are_trained(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path, "minima/0001")
    assert "momentum must be" in lowloss.tiny(tmp_path, "finder.autoneb.momentum=2").message
    assert not (root / "minima" / "0001").exists()


def test_what_changes_no_result_may_change(lowloss, whole):
    untouched = state(whole.root)
    again = lowloss.tiny(whole.outputs, "stages=[minima]", "path.points=99", "logger=csv", "trainer=auto")
    assert again.status == 0, again.err
    assert state(whole.root) == untouched


def test_interrupted_work_is_not_continued_with_another_configuration(lowloss, tmp_path):
    assert lowloss.tiny(tmp_path, "stages=[minima]", strike=("SIGKILL", "*/last.ckpt", 3)).status == -9
    (checkpoint,) = tmp_path.rglob("last.ckpt")
    before = checkpoint.read_bytes()
    message = lowloss.tiny(tmp_path, "stages=[minima]", "optimizer.lr=0.2").message
    assert "optimizer.lr=0.1, now optimizer.lr=0.2" in message
    assert checkpoint.read_bytes() == before


def test_a_loss_that_is_not_finite_stops_the_run(lowloss, tmp_path):
    message = lowloss.tiny(tmp_path, "optimizer.lr=1e9", "model.batch_norm=false").message
    # The first step uses finite initial weights, and the second block is never reached.
    assert 2 <= int(re.search(r"not finite at step (\d+)", message)[1]) <= 11
    assert "lower optimizer.lr" in message
    assert nothing_made(tmp_path)
    assert not list(tmp_path.rglob("last.ckpt"))
    made = lowloss.tiny(tmp_path, "stages=[minima]", "model.batch_norm=false")
    assert made.status == 0, made.err


def test_a_path_that_is_not_finite_stops_the_run(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path, "paths")
    message = lowloss.tiny(tmp_path, "finder.autoneb.cycles=[{steps:60,lr:1e30}]").message
    assert re.search(r"autoneb 0.1: .* not finite at step \d+", message), message
    assert "lower" in message
    assert not list(root.glob("paths/[!.]*"))
    assert not list(root.rglob("last.ckpt"))
