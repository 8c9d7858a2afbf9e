"""Merging two networks: known answers, numbers by plain torch, and what is wrong with the command line."""

import re
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch.nn.functional import cross_entropy

from lowloss.data import digits
from lowloss.files import load_notes
from lowloss.landscape import NetworkLandscape
from lowloss.model import MLP
from lowloss.report.merges import advice
from lowloss.symmetry import derive_symmetries

HIDDEN = 20
DATA = digits()
QUICK = ("finder.bezier.steps=40", "path.points=21", "path.between=0", "trainer.accelerator=cpu")
MODEL = ("model=mlp", f"model.hidden=[{HIDDEN}]")


def network(seed, hidden=HIDDEN, **settings):
    torch.manual_seed(seed)
    return MLP((1, 8, 8), 10, hidden=[hidden], **settings)


def trained(seed):
    module = network(seed)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.2, momentum=0.9)
    for _ in range(60):
        optimizer.zero_grad()
        cross_entropy(module(DATA.x_train), DATA.y_train).backward()
        optimizer.step()
    return module


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("networks")
    for seed, name in enumerate(("a.pt", "b.pt")):
        torch.save(trained(seed).state_dict(), folder / name)
    torch.save(network(3, hidden=7).state_dict(), folder / "narrow.pt")
    torch.save(network(4, batch_norm=True).state_dict(), folder / "normalised.pt")
    return folder


@pytest.fixture(scope="module")
def merged(lowloss, files):
    made = lowloss.plain(files, "merge", "a.pt", "b.pt", *MODEL, *QUICK)
    assert made.status == 0, made.err
    return made


def looked(state, split="test"):
    """The loss, and which samples are misclassified, by plain torch in float64."""
    module, (x, y) = network(0).double(), DATA.split(split)
    module.load_state_dict(state)
    with torch.no_grad():
        outputs = module(x.double())
    return cross_entropy(outputs, y).item(), outputs.argmax(1) != y, outputs.softmax(1)


def barriers(state_a, state_b, count=201):
    """The highest train loss on the straight line above the interpolated ends', and above the higher end."""
    t_T = torch.linspace(0, 1, count, dtype=torch.float64)
    line = [{name: (1 - t) * state_a[name].double() + t * state_b[name] for name in state_a} for t in t_T]
    loss_T = torch.tensor([looked(state, "train")[0] for state in line], dtype=torch.float64)
    above_T = loss_T - (1 - t_T) * loss_T[0] - t_T * loss_T[-1]
    return above_T.max().item(), (loss_T.max() - loss_T[[0, -1]].max()).item()


def test_numbers_are_those_of_plain_torch(merged, files):
    folder = files / "outputs" / "merge-a-b" / "merges" / "0000-0001"
    notes = load_notes(folder / "result.safetensors")
    ways = {row["way"]: row for row in notes["ways"]}
    assert list(ways) == [
        f"{way}{mended}" for way in ("mean", "weights", "activations") for mended in ("", "-repaired")
    ]
    ends = [torch.load(files / name) for name in ("a.pt", "b.pt")]
    for row, state in zip(notes["ends"], ends, strict=True):
        loss, wrong, _ = looked(state)
        assert (row["test_loss"], row["test_error"]) == (pytest.approx(loss, rel=1e-5), wrong.double().mean().item())
    for way, row in ways.items():
        state = load_file(folder / f"{way}.safetensors")
        for split in ("train", "test"):
            loss, wrong, _ = looked(state, split)
            assert row[f"{split}_loss"] == pytest.approx(loss, rel=1e-5), way
            assert row[f"{split}_error"] == pytest.approx(wrong.double().mean().item()), way
    mean = load_file(folder / "mean.safetensors")
    for name, tensor in mean.items():
        assert torch.allclose(tensor, (ends[0][name] + ends[1][name]) / 2, atol=1e-6)
    for way in ("mean", "weights", "activations"):
        state = load_file(folder / f"{way}.safetensors")
        # Its second end is on the other side of the mean, and is the network b with its units in another order.
        other = {name: 2 * state[name] - ends[0][name] for name in state}
        assert looked(other)[0] == pytest.approx(looked(ends[1])[0], rel=1e-4)
        found = ways[way]["barrier_train_loss"], ways[way]["barrier_above_ends_train_loss"]
        assert found == pytest.approx(barriers(ends[0], other), rel=2e-3), way
    # The statistics of REPAIR differ from the mean's, and alignment lowers the barrier.
    assert ways["weights-repaired"]["train_loss"] != ways["weights"]["train_loss"]
    assert ways["weights"]["barrier_train_loss"] < 0.5 * ways["mean"]["barrier_train_loss"]
    (_, wrong_a, p_a), (_, wrong_b, p_b) = (looked(state) for state in ends)
    shared = 2 * (wrong_a & wrong_b).sum().item() / (wrong_a.sum() + wrong_b.sum()).item()
    assert notes["overlap"] == pytest.approx(shared)
    together = ((p_a + p_b).argmax(1) != DATA.y_test).double().mean().item()
    assert notes["together"]["test_error"] == pytest.approx(together)


def test_the_command_ends_with_a_table_and_advice(merged, files, lowloss):
    lines = merged.err.splitlines()
    root = files / "outputs" / "merge-a-b"
    notes = load_notes(root / "merges" / "0000-0001" / "result.safetensors")
    bezier = load_notes(root / "paths" / "0000-0001-bezier" / "result.safetensors")
    table = {re.split(r"  +", line)[0]: re.split(r"  +", line)[1:] for line in lines}
    assert table["mean"][0] == f"{notes['ways'][0]['barrier_train_loss']:.4g}"
    assert table["mean"][-1] == f"{100 * notes['ways'][0]['test_error']:.4g}"
    assert table["bezier"][0] == f"{bezier['barrier_train_loss']:.4g}"
    best = min(notes["ways"], key=lambda row: row["train_loss"])
    worse = max(row["test_error"] for row in notes["ends"])
    margin = (worse * (1 - worse) / len(DATA.y_test)) ** 0.5
    says = "merge them" if best["test_error"] <= worse + margin else "do not merge them"
    told = (
        rf"test error of {100 * best['test_error']:.3g} %, .* with a margin of {100 * margin:.3g} %, one standard error"
    )
    assert re.match(rf"advice: {says}, .* {told} on 360 samples", lines[-1])
    # The same command finds everything complete, and says the same.
    again = lowloss.plain(files, "merge", "a.pt", "b.pt", *MODEL, *QUICK)
    assert again.status == 0
    assert not again.renames
    assert again.err.splitlines()[-8:] == lines[-8:]


def test_advice_has_a_margin():
    notes = {"units": {"loss": "nats", "error": "fraction"}, "samples": 100, "together": {"test_error": 0.1}}
    notes["ends"] = [{"way": "a", "test_error": 0.1}, {"way": "b", "test_error": 0.2}]
    for error, says in ((0.2399, "merge them"), (0.2401, "do not merge them")):
        way = {"way": "mean", "train_loss": 1.0, "test_error": error, "barrier_above_ends_train_loss": 0.0}
        assert advice({**notes, "ways": [way]}, []).startswith(f"{says}, ")


def test_a_permuted_copy_merges_into_the_network_itself(lowloss, tmp_path):
    landscape = NetworkLandscape(network(0, batch_norm=True), DATA)
    noise_P = 0.05 * torch.randn(landscape.dim, generator=torch.Generator().manual_seed(1))
    a_P = landscape.initial(0) + noise_P  # a normalisation's parameters are no more alike
    symmetries = derive_symmetries(landscape.loop.module, landscape.data.x_train[:2])
    for name, theta_P in (("a", a_P), ("b", symmetries.permuted(a_P, symmetries.random(2)))):
        torch.save(landscape.module(theta_P).state_dict(), tmp_path / f"{name}.pt")
    settings = (*MODEL, "model.batch_norm=true", "finder=[]", *QUICK[1:])
    made = lowloss.plain(tmp_path, "merge", "a.pt", "b.pt", *settings)
    assert made.status == 0, made.err
    folder = tmp_path / "outputs" / "merge-a-b" / "merges" / "0000-0001"
    notes = load_notes(folder / "result.safetensors")
    ways = {row["way"]: row for row in notes["ways"]}
    assert list(ways) == ["mean", "weights", "activations"]
    assert "not repaired: a network with BatchNorm needs no REPAIR" in made.err
    assert ways["mean"]["barrier_train_loss"] > 1e-3
    wanted, fresh = torch.load(tmp_path / "a.pt"), network(9, batch_norm=True)
    for way in ("weights", "activations"):
        assert abs(ways[way]["barrier_train_loss"]) < 1e-6
        state = load_file(folder / f"{way}.safetensors")
        fresh.load_state_dict(state)  # strict: BatchNorm's statistics are there
        for name, tensor in state.items():
            if "running" in name:  # with another number of threads
                torch.testing.assert_close(tensor, wanted[name], rtol=1e-5, atol=1e-6)
            else:
                assert torch.equal(tensor, wanted[name]), name
    assert "advice: merge them, " in made.err


WRONG = {
    ("a.pt", "none.pt", *MODEL): r"none\.pt does not exist: name two checkpoints, .*",
    ("a.pt", *MODEL): r"model=mlp does not exist: name two checkpoints, .*",
    (
        "a.pt",
        "narrow.pt",
        *MODEL,
    ): r"narrow\.pt does not fit the model: layers\.1\.weight has the shape \(7, 64\) there "
    r"and \(20, 64\) in the model, which a\.pt fits: merge networks of one architecture",
    ("normalised.pt", "a.pt", *MODEL, "model.batch_norm=true"): r"a\.pt does not fit the model: it lacks .*, which "
    r"normalised\.pt fits: merge networks of one architecture",
    ("a.pt", "b.pt", "model=resnet8"): r"a\.pt does not fit the model: it lacks .* set model and its options .*",
    ("a.pt", "a.pt", *MODEL): r"minima\.files names a\.pt twice: name each file once",
    ("a.pt", "b.pt", "--model", "mlp"): "there is no --model: settings are KEY=VALUE, here model=mlp; .*",
    ("--model=mlp", "a.pt", "b.pt"): "there is no --model: settings are KEY=VALUE, here model=mlp; .*",
    ("a.pt", "b.pt", *MODEL, "stages=[report]"): r"outputs/wrong holds nothing to report: make it with `lowloss .* "
    r"study=wrong 'stages=\[minima,path,merge\]'`",
    ("a.pt", "b.pt", *MODEL, "merge.align=[weight]"): "merge.align must be a list of some of weights, activations, .*",
}


@pytest.mark.parametrize("arguments", WRONG, ids=" ".join)
def test_bad_input_is_told_in_a_line(lowloss, files, arguments):
    wrong = lowloss.plain(files, "merge", *arguments, "study=wrong", "trainer=cpu")
    assert re.fullmatch(f"lowloss: {WRONG[arguments]}", wrong.message)
    assert not list(Path(files, "outputs", "wrong").glob("[!.]*/[0-9]*"))


def test_what_was_killed_continues_with_the_same_bits(lowloss, merged, files, tmp_path):
    for name in ("a.pt", "b.pt"):
        shutil.copy(files / name, tmp_path / name)
    command = ("merge", "a.pt", "b.pt", *MODEL, *QUICK)
    killed = lowloss.plain(tmp_path, *command, strike=("SIGKILL", "*/.0000-0001.work/line-activations/*", 1))
    assert killed.status == -9
    done = lowloss.plain(tmp_path, *command)
    assert done.status == 0, done.err
    # The alignment by weights and the line to it were kept.
    again = [str(target) for _, target in done.renames]
    assert not [target for target in again if "aligned-weights" in target or "line-weights" in target]
    assert [target for target in again if "line-activations" in target]
    here, there = (lowloss.results(folder / "outputs" / "merge-a-b") for folder in (tmp_path, files))
    assert here == there
