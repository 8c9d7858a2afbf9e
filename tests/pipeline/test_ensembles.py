"""The family of ensembles from the command line: members, budgets and what is told before any training."""

import csv

import pytest
import torch

from lowloss.files import load_tensors

FAMILY = """
    model=mlp model.hidden=[8] data=tiny minima.count=3 minima.epochs=4 minima.batch_size=16 minima.collect=[2,3]
    scan=[] finder=[polychain] finder.polychain.steps=6 finder.polychain.batch_size=16 path.pairs=[[0,1]] path.points=5
    ensemble=[independent,snapshot,fge,swa,curve] ensemble.fge.members=2 ensemble.fge.cycle_epochs=2
    ensemble.fge.batch_size=12 ensemble.fge.runs=2 ensemble.fge.starts=[2,3] ensemble.fge.budget=9
    ensemble.snapshot.epochs=3 ensemble.snapshot.cycles=3 ensemble.snapshot.batch_size=16 ensemble.snapshot.runs=2
    ensemble.swa.members=3 ensemble.swa.batch_size=16 ensemble.swa.start=3 ensemble.curve.points=3
"""


def rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


def test_every_kind_tells_its_members_and_what_they_cost(lowloss, tmp_path):
    made = lowloss(tmp_path, *FAMILY.split())
    assert made.status == 0, made.err
    root = tmp_path / "t"
    told = {
        folder.name: [(int(row["run"]), float(row["epochs"])) for row in rows(folder / "members.csv")]
        for folder in (root / "ensembles").glob("[!.]*")
    }
    # Two runs of two checkpoints: three epochs of training, and twice two members after one and three epochs.
    first = [3 + 1, 3 + 3, 3 + 3 + 1, 3 + 3 + 3]
    assert told["fge-0000"] == [*((1, e) for e in first), *((2, 9 + e) for e in first)]
    assert told["snapshot"] == [(1, 1), (1, 2), (1, 3), (2, 4), (2, 5), (2, 6)]
    assert told["swa-0000"] == [(1, 4), (1, 5), (1, 6)]
    assert told["independent-3"] == [(1, 4), (2, 8), (3, 12)]
    # The minima, and six steps of three an epoch.
    assert told["curve-0000-0001-polychain"] == [(1, 10)] * 3
    tensors, _ = load_tensors(root / "ensembles" / "fge-0000" / "result.safetensors")
    at_three, _ = load_tensors(root / "minima" / "0000" / "trajectory" / "0001.safetensors")
    # The walk from epoch 3 begins there, and not where the other begins.
    assert (tensors["theta"][2] - at_three["theta"]).norm() < (tensors["theta"][0] - at_three["theta"]).norm()
    steps = (tensors["theta"][1:] - tensors["theta"][:-1]).double().norm(dim=1)
    torch.testing.assert_close(tensors["distance"], steps)
    budgets = {(row["method"], row["budget"]): row for row in rows(root / "report" / "budgets.csv")}
    assert float(budgets["fge", "2"]["epochs"]) == 18
    assert float(budgets["fge", "1"]["members"]) == 4
    within = [steps[i] for i in (0, 1, 2, 4, 5, 6)]
    assert float(budgets["fge", "2"]["distance"]) == pytest.approx(float(torch.stack(within).mean()))
    assert float(budgets["fge", "2"]["test_error"]) == pytest.approx(100 * float(tensors["error"][-1]))
    assert {method for method, _ in budgets} == {"independent", "snapshot", "fge", "swa", "curve", "curve-by-loss"}


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("ensemble.fge.budget=2", "ensemble.fge.budget=2 epochs is less than the 3 of the training before"),
        ("ensemble.fge.budget=8", "ensemble.fge.budget=8 epochs is less than the 9 that a run takes"),
        (
            "ensemble.fge.starts=[1]",
            "ensemble.fge starts from epoch 1, which minima.collect=[2, 3] in 4 epochs does not",
        ),
        ("ensemble.fge.runs=4", "ensemble.fge.minimum + runs - 1=3, but the minima are 0 … 2: raise minima.count"),
        ("ensemble.snapshot.cycles=4", "ensemble.snapshot: cycles=4 does not divide epochs=3"),
        ("ensemble.swa.start=7", "ensemble.swa starts from epoch 7"),
        ("ensemble.curve.path=bezier", "ensemble.curve.path=bezier, but finder has polychain"),
        ("ensemble.curve.end=2", "ensemble.curve needs the path [0,2] by polychain"),
        ("ensemble.swa._target_=lowloss.finder.Line", "ensemble.swa._target_ must be a recipe of FGE"),
    ],
)
def test_what_cannot_be_is_told_before_any_training(lowloss, tmp_path, settings, told):
    assert told in lowloss(tmp_path, *FAMILY.split(), settings).message
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("result.safetensors"))
