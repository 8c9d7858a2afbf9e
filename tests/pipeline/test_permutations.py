"""Ways to permutation points as a study makes them: which pairs are led together, and ways at no loss."""

import pandas as pd
import torch

from lowloss.model import MLP


def test_equal_neurons_are_passed_over_and_ways_at_no_loss_are_flat(lowloss, tmp_path):
    torch.manual_seed(0)
    module = MLP((1, 8, 8), 10, hidden=[6])
    with torch.no_grad():
        module.layers[1].weight[3] = module.layers[1].weight[0]
        module.layers[1].bias[3] = module.layers[1].bias[0]
        # Another one that is scaled alone, which is undone at no loss.
        module.layers[1].weight[4] = 1.5 * module.layers[1].weight[1]
        module.layers[1].bias[4] = 1.5 * module.layers[1].bias[1]
    torch.save(module.state_dict(), tmp_path / "a.pt")
    settings = ("model=mlp", "model.hidden=[6]", "data=tiny", "minima=checkpoints", "minima.files=[a.pt]", "scan=[]")
    settings = (*settings, "permutation.steps=4", "permutation.iterations=400", "trainer=cpu", "study=ways")
    made = lowloss.plain(tmp_path, *settings, "finder=[]", "stages=[minima,permutation,report]")
    assert made.status == 0, made.err
    told = (
        "permutation: of minimum 0 the neurons 0 and 3 of layers.1 are equal: the most similar that are not are 1 and 4"
    )
    assert told in made.err
    study = tmp_path / "outputs" / "ways"
    points = pd.read_csv(study / "permutations" / "0000-last" / "points.csv")
    assert points[["l", "m", "class"]].to_numpy().tolist() == [[1, 4, "flat"]]
    (row,) = pd.read_csv(study / "report" / "permutations.csv").to_dict("records")
    assert points["between"].tolist() == [row["between_lowest"]] == [row["between_highest"]]
    assert [row[name] for name in ("rising", "saddle", "falling", "flat")] == [0, 0, 0, 1]


def test_a_pair_is_named_once(lowloss, tmp_path):
    settings = ("model=mlp", "data=tiny", "minima.count=1", "minima.epochs=1", "finder=[]", "scan=[]")
    pairs = "permutation.pairs=[[0,1],[2,3],[1,0]]"
    made = lowloss.plain(tmp_path, *settings, pairs, "stages=[minima,permutation]", "permutation.iterations=1")
    assert made.status == 1
    assert made.err.splitlines()[-1] == "lowloss: permutation.pairs names 0 and 1 twice: name each pair once"
    assert not (tmp_path / "outputs").exists()
