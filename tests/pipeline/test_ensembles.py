"""The family of ensembles from the command line: members, budgets and what is told before any training."""

import csv

import pytest
import torch

from lowloss import NetworkLandscape
from lowloss.data import tiny
from lowloss.ensemble.curve import fitted_factor
from lowloss.files import load_tensors
from lowloss.model import MLP

FAMILY = """
    model=mlp model.hidden=[8] data=tiny minima.count=3 minima.epochs=4 minima.batch_size=16 minima.collect=[2,3]
    scan=[] finder=[polychain] finder.polychain.steps=6 finder.polychain.batch_size=16 path.pairs=[[0,1]] path.points=5
    ensemble=[independent,snapshot,fge,swa,curve] ensemble.fge.members=2 ensemble.fge.cycle_epochs=2
    ensemble.fge.batch_size=12 ensemble.fge.runs=2 ensemble.fge.starts=[2,3] ensemble.fge.budget=9
    ensemble.snapshot.epochs=3 ensemble.snapshot.cycles=3 ensemble.snapshot.batch_size=16 ensemble.snapshot.runs=2
    ensemble.swa.members=3 ensemble.swa.batch_size=16 ensemble.swa.start=3 ensemble.curve.points=3
"""
RANDOM = "{_target_:lowloss.ensemble.Curve,start:0,end:1,path:random,points:3,weight_decay:5.0e-4}"
EARLY = "{_target_:lowloss.points.MinimaPlane,start:0,end:1,third:2,epoch:1}"


def rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.fixture(scope="module")
def family(lowloss, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("family")
    made = lowloss(outputs, *FAMILY.split(), f"+ensemble.random_segment={RANDOM}")
    assert made.status == 0, made.err
    return outputs


def test_every_kind_tells_its_members_and_what_they_cost(family):
    root = family / "t"
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
    methods = {"independent", "snapshot", "fge", "swa", "curve", "curve-by-loss", "random_segment"}
    assert {method for method, _ in budgets} == methods
    # Three steps an epoch of sixteen samples, four of twelve; members in mid-cycle, the first walk from epoch 2.
    assert tensors["iteration"].tolist() == [4, 12] * 4
    starts = [load_tensors(root / "minima" / name / "trajectory" / f"000{i}.safetensors")[0]["theta"]
              for name in ("0000", "0001") for i in (0, 1)]  # fmt: skip
    expected = [float((tensors["theta"][m] - starts[m // 2]).double().norm()) for m in range(8)]
    assert tensors["from_start"].tolist() == pytest.approx(expected, rel=1e-6)
    # From 0.05 at the ends of a cycle of eight iterations to 0.0005 in its middle.
    falling = [0.05 + (0.0005 - 0.05) * i / 4 for i in range(1, 5)]
    rising = [0.0005 + (0.05 - 0.0005) * i / 4 for i in range(1, 5)]
    assert tensors["lr"].tolist() == pytest.approx([*falling, *rising, *falling])


def test_averaged_weights_are_beside_averaged_predictions(family):
    tensors, _ = load_tensors(family / "t" / "ensembles" / "swa-0000" / "result.safetensors")
    for metric in ("loss", "error"):
        # Of one network weights and predictions are the same.
        assert tensors[metric][0] == pytest.approx(float(tensors[f"{metric}_alone"][0]))
        assert tensors[f"predictions_{metric}"][0] == pytest.approx(float(tensors[f"{metric}_alone"][0]))
        assert len(tensors[f"predictions_{metric}"]) == 3
    # The mean of probabilities has a lower loss than the mean of the losses.
    assert tensors["predictions_loss"][-1] < tensors["loss_alone"].mean()
    (row,) = rows(family / "t" / "report" / "averages.csv")
    assert (row["method"], float(row["lr_max"]), row["members"]) == ("swa", 0.05, "3")
    advantage = 100 * float(tensors["error"][-1] - tensors["predictions_error"][-1])
    assert float(row["advantage_error"]) == pytest.approx(advantage)


def test_two_networks_along_a_random_segment(family):
    root = family / "t"
    segment, notes = load_tensors(root / "ensembles" / "random_segment-0000-0001-random" / "result.safetensors")
    assert notes["ways"] == ["random_segment"]
    thetas = [load_tensors(root / "minima" / f"000{k}" / "result.safetensors")[0]["theta"] for k in (0, 1)]
    length = float((thetas[1] - thetas[0]).norm())
    assert segment["distance"].tolist() == pytest.approx([length / 2] * 2, rel=1e-4)
    # The first end with itself is that network alone.
    assert segment["random_segment.pair_loss"][0] == pytest.approx(float(segment["random_segment.loss_alone"][0]))
    alone, _ = load_tensors(root / "minima" / "0000" / "result.safetensors")
    assert float(segment["random_segment.error_alone"][0]) == pytest.approx(float(alone["test_wrong"].double().mean()))
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    for title in ("Along the curves 0–1", "Two networks along the curves 0–1", "Walk fge-0000"):
        assert title in page


def test_a_curves_first_point_is_its_start(family, lowloss, tmp_path):
    back = ["ensemble.curve.start=1", "ensemble.curve.end=0"]
    assert lowloss(tmp_path, *FAMILY.split(), *back).status == 0
    there, here = (
        load_tensors(outputs / "t" / "ensembles" / f"curve-{ends}-polychain" / "result.safetensors")[0]
        for outputs, ends in ((family, "0000-0001"), (tmp_path, "0001-0000"))
    )
    assert here["t"].tolist() == [1, 0.5, 0]
    for name in ("curve.loss_alone", "curve-by-loss.factor", "train_loss_l2", "distance"):
        torch.testing.assert_close(here[name], there[name].flip(0))
    # The first end with itself is that network alone, and each pair has the same two ends.
    assert here["curve.pair_loss"][0] == pytest.approx(float(here["curve.loss_alone"][0]))
    assert here["curve.pair_loss"][-1] == pytest.approx(float(there["curve.pair_loss"][-1]))


def test_temperatures_are_fitted_to_samples_that_no_minimum_saw(lowloss, tmp_path):
    alone = ["ensemble=[curve]", "ensemble.curve.points=3", "held_out=10"]
    some = [setting for setting in FAMILY.split() if not setting.startswith("ensemble")]
    assert lowloss(tmp_path, *some, *alone).status == 0
    root = tmp_path / "t"
    found, _ = load_tensors(root / "ensembles" / "curve-0000-0001-polychain" / "result.safetensors")
    data = tiny(samples=48).holding_out(10)
    landscape = NetworkLandscape(MLP(data.input_shape, data.num_classes, hidden=[8]), data)
    minimum, _ = load_tensors(root / "minima" / "0000" / "result.safetensors")
    factor = fitted_factor(landscape, minimum["theta"])
    assert float(found["curve-fitted.factor"][0]) == pytest.approx(factor, rel=1e-5)
    exact = landscape.evaluate(minimum["theta"][None], "valid")
    told = rows(root / "report" / "each_minimum.csv")[0]["valid_loss"]
    assert float(told) == pytest.approx(float(exact["loss"]), rel=1e-6)
    changed = lowloss(tmp_path, *some, *alone[:2], "held_out=11")
    assert "held_out=10, now held_out=11" in changed.message


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ("held_out=48", "held_out=48 leaves none of"),
        ("ensemble.fge.budget=2", "ensemble.fge.budget=2 epochs is less than the 3 of the training before"),
        ("ensemble.fge.budget=8", "ensemble.fge.budget=8 epochs is less than the 9 that a run takes"),
        # Of four iterations an epoch a cycle takes six, not 5.2.
        (
            "ensemble.fge.cycle_epochs=1.3 ensemble.fge.budget=7",
            "ensemble.fge.budget=7 epochs is less than the 7.5 that a run takes",
        ),
        (
            "ensemble.fge.starts=[1]",
            "ensemble.fge starts from epoch 1, which minima.collect=[2, 3] in 4 epochs does not",
        ),
        ("ensemble.fge.starts=[2,2]", "ensemble.fge starts from epoch 2 twice: name it once"),
        ("ensemble.fge.runs=4", "ensemble.fge.minimum + runs - 1=3, but the minima are 0 … 2: raise minima.count"),
        ("ensemble.snapshot.cycles=4", "ensemble.snapshot: cycles=4 does not divide epochs=3"),
        ("ensemble.swa.start=7", "ensemble.swa starts from epoch 7"),
        (f"+scan.early={EARLY}", "scan.early starts from epoch 1, which minima.collect=[2, 3] in 4 epochs does not"),
        ("ensemble.curve.path=bezier", "ensemble.curve.path=bezier, but finder has polychain"),
        ("ensemble.curve.end=2", "ensemble.curve needs the path [0,2] by polychain"),
        ("ensemble.curve.end=0", "ensemble.curve.start and ensemble.curve.end are both 0: name two minima"),
        ("ensemble.curve.end=0 ensemble.curve.path=random", "ensemble.curve.end are both 0: name two minima"),
        ("~ensemble.curve.points", "the configuration has no ensemble.curve.points: do not take it out"),
        ("~ensemble.curve.weight_decay", "the configuration has no ensemble.curve.weight_decay: do not take it out"),
        ("ensemble.swa._target_=lowloss.finder.Line", "ensemble.swa._target_ must be a recipe of FGE"),
    ],
)
def test_what_cannot_be_is_told_before_any_training(lowloss, tmp_path, settings, told):
    assert told in lowloss(tmp_path, *FAMILY.split(), *settings.split()).message
    assert not list(tmp_path.rglob("*.ckpt"))
    assert not list(tmp_path.rglob("result.safetensors"))
