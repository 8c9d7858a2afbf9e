"""Ways through lowloss as users go them, from their own files to a page: by a folder of configuration, with networks
that were trained elsewhere, and in a notebook. Sweeps with a failing job are followed in test_launchers."""

import re

import matplotlib.pyplot as plt
import pandas as pd
import pytest
import torch

from lowloss import load

CODE = """
import torch
from torch import nn

from lowloss import Data


class MyNet(nn.Module):
    def __init__(self, num_classes, width=6):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(2, width), nn.Tanh(), nn.Linear(width, num_classes))

    def forward(self, x):
        return self.body(x)


def my_data(samples=120):
    x = torch.randn(2 * samples, 2, generator=torch.Generator().manual_seed(0))
    y = (x[:, 0] * x[:, 1] > 0).long()
    return Data(x[:samples], y[:samples], x[samples:], y[samples:])
"""
CONF = {"model/my_net.yaml": "_target_: my_code.MyNet\nwidth: 8\n", "data/my_data.yaml": "_target_: my_code.my_data\n"}
SMALL = """
    trainer=cpu minima.count=2 minima.epochs=4 minima.batch_size=30 finder=[bezier,line] finder.bezier.steps=40
    finder.bezier.batch_size=60 path.points=9 path.between=1 scan=[plane] scan.plane.path=bezier
    scan.plane.resolution=[4,5] ensemble=[independent]
"""


@pytest.fixture
def mine(tmp_path):
    """A folder with a network, data, and a configuration of both."""
    (tmp_path / "my_code.py").write_text(CODE)
    for name, text in CONF.items():
        file = tmp_path / "my_conf" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text)
    return tmp_path


def first_sentence(root):
    page = (root / "report" / "index.html").read_text(encoding="utf-8")
    return re.search(r'<p class="found">(.*?)</p>', page)[1]


def test_own_network_and_data_by_a_folder_of_configuration(lowloss, mine):
    done = lowloss.plain(mine, "--config-dir=my_conf", "data=my_data", "model=my_net", *SMALL.split())
    assert done.status == 0, done.err
    root = mine / "outputs" / "my_data-my_net"
    assert "barrier is" in first_sentence(root)
    assert load(root).minima[0].theta.shape == (2 * 8 + 8 + 8 * 2 + 2,)
    # The same without a folder: it is called by what makes it.
    named = lowloss.plain(mine, "data=my_data", "--config-dir=my_conf", "model=mlp", "model._target_=my_code.MyNet",
                          "~model.hidden", "~model.batch_norm", "~model.activation", "--dry-run")  # fmt: skip
    assert named.err.splitlines()[0] == "study: outputs/my_data-MyNet, 32 parameters, nothing is made"


def test_two_checkpoints_from_elsewhere_to_a_page(lowloss, mine):
    names = {}
    exec(CODE, names)
    for seed, file in enumerate(("a.pt", "b.pt")):
        torch.manual_seed(seed)
        torch.save(names["MyNet"](2, width=8).state_dict(), mine / file)
    given = ("minima=checkpoints", "minima.files=[a.pt,b.pt]", "study=elsewhere")
    small = [setting for setting in SMALL.split() if not setting.startswith("minima.")]
    done = lowloss.plain(mine, "--config-dir=my_conf", "data=my_data", "model=my_net", *given, *small)
    assert done.status == 0, done.err
    root = mine / "outputs" / "elsewhere"
    barriers = pd.read_csv(root / "summary.csv").set_index("finder")["barrier_train_loss"]
    told = re.search(r"barrier is .*?([\d.e-]+)(?:,| against) .*?([\d.e-]+) nats", first_sentence(root)).groups()
    assert [float(one) for one in told] == pytest.approx([barriers["bezier"], barriers["line"]], rel=0.06)
    assert load(root).minima.frame["file"].tolist() == ["a.pt", "b.pt"]


def test_own_network_and_data_in_a_notebook(mine, monkeypatch):
    monkeypatch.chdir(mine)
    cells = [
        CODE,
        "import lowloss\nfrom lowloss.points import PathPlane\n"
        "landscape = lowloss.NetworkLandscape(lambda: MyNet(2), my_data())",
        "minima = lowloss.train_minima(landscape, count=2, epochs=4, batch_size=30)\nminima",
        "curve = lowloss.BezierCurve(steps=40, batch_size=60)\n"
        "path = lowloss.find_path(landscape, *minima.theta_KP, curve)\npath",
        "plane = lowloss.scan(landscape, PathPlane(resolution=(4, 5)), minima, path)\nplane",
    ]
    names = {}
    for cell in cells:
        exec(cell, names)
        if re.fullmatch(r"\w+", last := cell.splitlines()[-1]):
            assert "<table" in names[last]._repr_html_()
            assert "\n" not in repr(names[last])
    assert names["path"].frame["train_loss"].max() == pytest.approx(names["path"].saddle_train_loss)
    for shown in (names["minima"], names["path"], names["plane"]):
        assert len(shown.plot())
    plt.close("all")
    assert names["plane"].surface().data[0].type == "surface"
    assert not (mine / "outputs").exists()
