"""A user's own networks as minima: every kind of file, the study made of them, and what is wrong with a file."""

import csv
import json
import re
import shutil
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lowloss.data import digits
from lowloss.errors import LowlossError
from lowloss.jobs.checkpoints import read_point
from lowloss.landscape import NetworkLandscape
from lowloss.model import MLP

HIDDEN = 8
NETWORK = f"minima=checkpoints model=mlp model.hidden=[{HIDDEN}] model.batch_norm=true"
STUDY = f"""
    {NETWORK} finder=[autoneb,line]
    finder.autoneb.cycles=[{{steps:10,lr:0.05,repeat:2}}] finder.autoneb.batch_size=128 finder.autoneb.evaluations=2
    path.points=7 path.between=1 path.pairs=[[1,3]] scan.plane.start=1 scan.plane.end=3 scan.plane.resolution=[4,5]
    scan.random_plane.resolution=[3,3] ensemble.fge.members=2 ensemble.fge.cycle_epochs=1
"""


def network(seed, hidden=HIDDEN):
    torch.manual_seed(seed)
    module = MLP((1, 8, 8), 10, hidden=[hidden], batch_norm=True)
    # Statistics that are no network's at its start: points take theirs from the data.
    module(torch.randn(64, 1, 8, 8))
    return module


def prefixed(module, prefix):
    return {f"{prefix}{name}": tensor for name, tensor in module.state_dict().items()}


@pytest.fixture(scope="module")
def networks():
    return [network(seed) for seed in range(5)]


@pytest.fixture(scope="module")
def files(networks, tmp_path_factory):
    """A file of every kind, each with another network."""
    folder = tmp_path_factory.mktemp("checkpoints")
    plain, parallel, lightning, tensors, hub = networks
    torch.save(plain.state_dict(), folder / "plain.pt")
    torch.save(prefixed(parallel, "module."), folder / "parallel.pth")
    held = {"state_dict": prefixed(lightning, "model."), "epoch": 3, "global_step": 40, "optimizer_states": [{"a": 1}]}
    torch.save(held, folder / "lightning.ckpt")
    save_file(tensors.state_dict(), folder / "tensors.safetensors")
    (folder / "hub").mkdir()
    (folder / "hub" / "config.json").write_text(json.dumps({"architectures": ["MLP"]}))
    save_file(hub.state_dict(), folder / "hub" / "model.safetensors", {"format": "pt"})
    return [folder / name for name in ("plain.pt", "parallel.pth", "lightning.ckpt", "tensors.safetensors", "hub")]


def named(files):
    return f"minima.files=[{','.join(map(str, files))}]"


def points(networks):
    return torch.stack([torch.cat([p.detach().flatten() for p in module.parameters()]) for module in networks])


def table(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def study(lowloss, files, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("study")
    made = lowloss(outputs, *STUDY.split(), named(files))
    assert made.status == 0, made.err
    return outputs / "t"


def notes_of(folder):
    from lowloss.files import load_notes

    return load_notes(folder / "result.safetensors")


@pytest.fixture
def one_thread():
    """As commands run in these tests: another number of threads sums in another order."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def test_every_kind_of_file_is_its_network_exactly_evaluated(study, files, networks, one_thread):
    landscape = NetworkLandscape(partial(MLP, hidden=[HIDDEN], batch_norm=True), digits(), 1000)
    theta_KP = points(networks)
    columns = landscape.evaluate(theta_KP, "train"), landscape.evaluate(theta_KP, "test")
    assert len({float(loss) for loss in columns[0]["loss"]}) == 5
    for k, file in enumerate(files):
        folder = study / "minima" / f"{k:04d}"
        assert torch.equal(load_file(folder / "result.safetensors")["theta"], theta_KP[k])
        notes = notes_of(folder)
        assert (notes["file"], notes["status"]) == (file.name, "checkpoint")
        for split, values in zip(("train", "test"), columns, strict=True):
            for name, column in values.items():
                assert notes[f"{split}_{name}"] == pytest.approx(float(column[k]), rel=1e-9), (file, split, name)
        assert not (folder / "metrics.csv").exists()


def test_paths_scan_ensemble_and_report_are_made_of_them(study, networks):
    theta_KP = points(networks)
    levels = [notes_of(study / "minima" / f"{k:04d}") for k in range(5)]
    rows = table(study / "summary.csv")
    assert [(row["finder"], row["start"], row["end"]) for row in rows] == [("autoneb", "1", "3"), ("line", "1", "3")]
    for row in rows:
        ends = (levels[1]["train_loss"] + levels[3]["train_loss"]) / 2
        assert float(row["min_train_loss"]) == pytest.approx(ends, rel=1e-6)
        assert float(row["saddle_train_loss"]) >= float(row["min_train_loss"])
        path = load_file(study / "paths" / f"0001-0003-{row['finder']}" / "result.safetensors")
        assert torch.equal(path["bends"][0], theta_KP[1])
        assert torch.equal(path["bends"][-1], theta_KP[3])
    plane = load_file(study / "scans" / "plane-0001-0003" / "result.safetensors")
    assert plane["train_loss"].shape == (4, 5)
    assert plane["train_loss"].isfinite().all()
    ensembles = table(study / "ensemble.csv")
    assert [(row["method"], row["members"]) for row in ensembles] == [
        ("single", "1"),
        ("fge", "2"),
        ("independent", "5"),
    ]
    assert float(ensembles[0]["test_loss"]) == pytest.approx(levels[0]["test_loss"], rel=1e-6)
    figures = {file.stem for file in (study / "report" / "figures").glob("*.png")}
    assert figures >= {"paths", "ensembles", "plane-0001-0003", "random_plane-0000", "coordinates-0001-0003-autoneb"}
    assert "learning" not in figures  # there is no learning curve
    assert "weights" in figures
    (row, *_) = table(study / "report" / "table_b1.csv")
    assert (row["finder"], row["epoch"], row["epoch_first"]) == ("autoneb", "", "")
    assert (study / "report" / "index.html").is_file()


def test_the_same_command_again_does_nothing(lowloss, study, files):
    again = lowloss(study.parent, *STUDY.split(), named(files))
    assert again.status == 0, again.err
    assert again.renames == []
    assert "minima: all 5 are complete" in again.err


def test_where_the_files_lie_does_not_matter_and_what_they_hold_does(lowloss, study, files, tmp_path):
    root = tmp_path / "t"
    shutil.copytree(study, root)
    moved = [tmp_path / "moved" / file.name for file in files]
    shutil.copytree(files[0].parent, tmp_path / "moved")
    again = lowloss(tmp_path, *STUDY.split(), named(moved))
    assert again.status == 0, again.err
    assert again.renames == []
    torch.save(network(7).state_dict(), moved[0])
    message = lowloss(tmp_path, *STUDY.split(), named(moved)).message
    told = r"made with minima\.files\.0000=plain\.pt sha256:\w{64}, now minima\.files\.0000=plain\.pt sha256:\w{64}"
    assert re.search(told, message), message
    assert str(root / "minima" / "0000") in message
    assert "study=NAME" in message
    # So does their order.
    assert "was made with" in lowloss(study.parent, *STUDY.split(), named([files[1], files[0], *files[2:]])).message


def test_minima_of_other_studies_and_the_line_between_them(lowloss, study, networks, tmp_path):
    """As fig. 2 of Li et al. 2018, whose two ends are trained with different batches."""
    line = "scan=[line] scan.line.resolution=3 scan.line.margin=0 stages=[minima,scan,report]"
    one, other = study / "minima" / "0001", study / "minima" / "0003" / "result.safetensors"
    made = lowloss(tmp_path, *NETWORK.split(), *line.split(), named([one, other]))
    assert made.status == 0, made.err
    for k, source in enumerate((1, 3)):
        folder = tmp_path / "t" / "minima" / f"{k:04d}"
        assert torch.equal(load_file(folder / "result.safetensors")["theta"], points(networks)[source])
        found, before = notes_of(folder), notes_of(study / "minima" / f"{source:04d}")
        assert found["file"] == f"t/minima/{source:04d}"
        assert found["train_loss"] == pytest.approx(before["train_loss"], rel=1e-9)
    scan = load_file(tmp_path / "t" / "scans" / "line-0000-0001" / "result.safetensors")
    ends = [notes_of(study / "minima" / f"{source:04d}")["train_loss"] for source in (1, 3)]
    assert scan["train_loss"][[0, -1]].tolist() == pytest.approx(ends, rel=1e-6)
    # Both histograms in one figure; how the norms grew, their own studies know.
    head = (tmp_path / "t" / "report" / "weights.csv").read_text().splitlines()[0]
    assert head == "from,to,minimum_0,minimum_1"
    # A network of as many parameters may be another; one of others does not fit.
    told = lowloss(tmp_path, *NETWORK.split(), "study=u", "model.activation=Tanh", named([one, other])).message
    assert re.search(r"minima/0001 was made with model\.activation=\w+, now model\.activation=Tanh: set model", told), (
        told
    )
    told = lowloss(tmp_path, *NETWORK.split(), "study=u", "model.hidden=[9]", named([one, other])).message
    assert re.search(r"0001 does not fit the model: it has 618 parameters, and the model 694: set model", told), told


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def spoil(state, name, value):
    state = {key: tensor.clone() for key, tensor in state.items()}
    state[name].view(-1)[0] = value
    return state


def write(folder, case):
    """A file that is wrong in one way, and the files to name."""
    good, bad = folder / "good.pt", folder / "bad.pt"
    torch.save(network(0).state_dict(), good)
    state = network(1).state_dict()
    first = next(name for name, _ in network(1).named_parameters())
    if case == "architecture":
        state = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Conv2d(1, 1, 3)).state_dict()
    elif case == "shape":
        state = network(1, hidden=9).state_dict()
    elif case == "nan":
        state = spoil(state, first, float("nan"))
    elif case == "infinite":
        state = spoil(state, first, float("inf"))
    elif case == "module":
        state = network(1)
    elif case == "code":
        state = {**state, "evil": Evil(folder / "touched")}
    elif case == "tensor":
        state = torch.zeros(3)
    if case != "missing":
        torch.save(state, bad)
    if case == "text":
        bad.write_text("hello\n")  # asks for an entry 101 that is not there
    if case == "cut":
        bad.write_bytes(bad.read_bytes()[:500])
    if case == "safetensors":
        bad = folder / "bad.safetensors"
        bad.write_bytes(b"no tensors")
    if case == "folder":
        bad = folder / "model"
        bad.mkdir()
    if case == "twice":
        return [good, bad, good]
    if case == "twice-by-another-name":
        (folder / "link.pt").symlink_to(good)
        return [good, bad, folder / "link.pt"]
    if case == "copy":
        shutil.copyfile(good, bad)
    return [good, bad]


# The first names of each side are told.
LACKS = r"bad\.pt does not fit the model: it lacks \S+weight, \S+ and \d+ more, and has 0\.weight, 0\.bias and 2 more"
SHAPE = r"bad\.pt does not fit the model: \S+weight has the shape \(9, 64\) there and \(8, 64\) in the model"
NOT_FINITE = r"bad\.pt holds NaN or infinite values in \S+weight"
NOT_READ = (
    r"bad\.pt cannot be read with weights alone \([A-Z].*\): "
    r"save its state_dict, torch\.save\(model\.state_dict\(\), FILE\)"
)
WRONG = {
    "missing": r"bad\.pt of minima\.files does not exist",
    "architecture": LACKS,
    "shape": SHAPE,
    "nan": NOT_FINITE,
    "infinite": NOT_FINITE,
    "module": NOT_READ,
    "code": NOT_READ,
    "text": NOT_READ,
    "cut": NOT_READ,
    "tensor": r"bad\.pt holds no named tensors: save a state_dict",
    "safetensors": r"bad\.safetensors cannot be read as safetensors",
    "folder": r"model is a folder without model\.safetensors, pytorch_model\.bin or result\.safetensors",
    "twice": r"minima\.files names \S+good\.pt twice: name each file once",
    "twice-by-another-name": r"minima\.files names \S+link\.pt twice, also as \S+good\.pt",
    "copy": r"good\.pt and \S+bad\.pt of minima\.files hold the same network",
}


def test_frozen_values_that_are_not_the_models_are_refused(tmp_path):
    """In files of half the precision too, where the same values are taken."""
    data, module = digits(), torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 8), torch.nn.Linear(8, 10))
    module[1].requires_grad_(False)
    landscape, file = NetworkLandscape(module, data), tmp_path / "a.pt"
    torch.save(prefixed(module.half(), "model."), file)
    assert read_point(file, landscape).equal(landscape.layout.flatten(dict(module.float().named_parameters())))
    torch.save(spoil(landscape.loop.module.state_dict(), "1.bias", 3.0), file)
    with pytest.raises(LowlossError, match=r"1\.bias of \S+a\.pt is no coordinate of the landscape"):
        read_point(file, landscape)


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_with_a_file_is_one_line_before_any_work(lowloss, tmp_path, case):
    files = write(tmp_path, case)
    message = lowloss(tmp_path, *NETWORK.split(), "scan=[]", named(files)).message
    assert re.search(WRONG[case], message), message
    # Not even the good file before it was evaluated.
    assert not list(tmp_path.glob("t/minima/[!.]*"))
    assert not (tmp_path / "touched").exists()


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ("minima.files=[]", r"minima\.files must be a list of files like \[a\.pt,b\.safetensors\], got \[\]"),
        ("minima.files=a.pt", r"minima\.files must be a list of files like \[a\.pt,b\.safetensors\], got 'a\.pt'"),
        ("minima.files=[1,2]", r"minima\.files must be a list of files"),
        ("", r"minima\.files"),
    ],
    ids=["empty", "text", "numbers", "none"],
)
def test_what_is_no_list_of_files_is_refused(lowloss, tmp_path, arguments, told):
    message = lowloss(tmp_path, *NETWORK.split(), "scan=[]", *arguments.split()).message
    assert re.search(told, message), message


def test_a_minimum_that_is_not_among_the_files_is_refused(lowloss, files, tmp_path):
    message = lowloss(tmp_path, *STUDY.split(), named(files[:2])).message
    assert re.search(r"names \[1,3\], but the minima are 0 … 1: name more files in minima\.files", message), message
    message = lowloss(tmp_path, *NETWORK.split(), "scan=[]", "ensemble.fge.minimum=4", named(files[:2])).message
    assert "ensemble.fge.minimum=4, but the minima are 0 … 1: name more files in minima.files" in message


def test_an_experiment_takes_networks_that_are_trained(lowloss, files, tmp_path):
    """What it says of the training of its own minima, as quickstart of their number, is left out."""
    asked = [*NETWORK.split(), "experiment=quickstart", "study=t", "stages=[minima]", named(files[:2])]
    made = lowloss(tmp_path, *asked)
    assert made.status == 0, made.err
    assert sorted(folder.name for folder in (tmp_path / "t/minima").iterdir()) == ["0000", "0001"]
    message = lowloss(tmp_path, *asked, "minima.epochs=3").message
    assert "minima has no epochs; it has files" in message
