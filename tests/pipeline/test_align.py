"""Paths between aligned ends: a network and its permuted copy are the same point, and the report says what it was."""

import torch

from lowloss.data import tiny
from lowloss.files import load_notes
from lowloss.landscape import NetworkLandscape
from lowloss.model import MLP
from lowloss.symmetry import derive_symmetries


def test_ends_are_aligned_before_any_finder(lowloss, tmp_path):
    data = tiny()
    torch.manual_seed(0)
    landscape = NetworkLandscape(MLP(data.input_shape, 10, hidden=[12]), data)
    a_P = landscape.initial(0)
    symmetries = derive_symmetries(landscape.loop.module, data.x_train[:2])
    b_P = symmetries.permuted(a_P, symmetries.random(0))
    b_P[-1] += 1.0  # so that the two are not the same network
    for name, theta_P in (("a", a_P), ("b", b_P)):
        torch.save(landscape.layout.views(theta_P), tmp_path / f"{name}.pt")
    files = "minima.files=[a.pt,b.pt]"
    settings = ("model=mlp", "model.hidden=[12]", "data=tiny", "minima=checkpoints", files, "finder=[line]", "scan=[]")
    settings = (*settings, "path.points=5", "stages=[minima,path,report]", "trainer=cpu", "study=aligned")
    made = lowloss.plain(tmp_path, *settings, "path.align=weights")
    assert made.status == 0, made.err
    study = tmp_path / "outputs" / "aligned"
    notes = load_notes(study / "paths" / "0000-0001-line" / "result.safetensors")
    assert notes["align"] == "weights"
    assert notes["align_left_out"] == []
    assert notes["line_barrier_train_loss_before"] > 1e-3
    # Along one output's bias the loss is convex.
    assert notes["line_barrier_train_loss_after"] == notes["barrier_train_loss"] <= 1e-9
    assert (study / "report" / "index.html").is_file()
    other = lowloss.plain(tmp_path, *settings)
    assert other.status == 1
    assert "path.align=weights, now path.align=nothing" in other.err
    wrong = lowloss.plain(tmp_path, *settings, "path.align=wieghts")
    assert wrong.err.strip() == "lowloss: path.align must be null, weights, activations or ste, got 'wieghts'"
