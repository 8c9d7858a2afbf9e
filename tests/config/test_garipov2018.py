"""The experiments of Garipov et al. 2018: the paper's settings, and its numbers whole."""

from pathlib import Path

import hydra
import pandas as pd
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lowloss import cli, papers
from lowloss.conf import read_families

CONF = Path(__file__).parents[2] / "conf"
FAMILIES = read_families(CONF)
EPOCH = 390  # steps of 128 of 50,000 images


@pytest.fixture(scope="module")
def compose():
    cli.register_families()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):

        def composed(name, *more):
            config = hydra.compose("config", [f"experiment={name}", *more], return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            return OmegaConf.to_container(config, resolve=False)

        yield composed
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize("name", [row["experiment"] for row in FAMILIES["garipov2018_table1"]])
def test_budgets_of_table_1(compose, name):
    config = compose(name)
    resnet, wide = name.endswith("resnet110"), name.endswith("wrn28_10")
    budget, fge, snapshot = config["minima"]["epochs"], config["ensemble"]["fge"], config["ensemble"]["snapshot"]
    assert budget == snapshot["epochs"] == fge["budget"] == (150 if resnet else 200)
    assert config["minima"]["count"] == fge["runs"] == snapshot["runs"] == 3
    assert fge["starts"] == config["minima"]["collect"] == ([125] if resnet else [120, 156])
    assert len(fge["starts"]) * fge["members"] == (6 if resnet else 12 if wide else 22)
    assert (fge["lr_max"], fge["lr_min"]) == (0.05 if resnet or wide else 0.01, 5e-4)
    assert config["optimizer"]["lr"] == snapshot["lr"] == (0.1 if resnet or wide else 0.05)
    assert snapshot["cycles"] == (4 if resnet else 5)
    decays = [part["weight_decay"] for part in (config["optimizer"], fge, snapshot)]
    assert decays == [3e-4 if resnet else 5e-4] * 3
    assert config["data"]["_target_"] == f"lowloss.data.{'cifar100' if '_c100_' in name else 'cifar10'}"
    # Appendix A.5: with whole cycles 147 epochs, and 200 for both others.
    spent = max(fge["starts"]) + len(fge["starts"]) * (fge["members"] - 0.5) * fge["cycle_epochs"]
    assert spent == (147 if resnet else 200 if wide else 198)


@pytest.mark.parametrize("name", [row["experiment"] for row in FAMILIES["garipov2018_table2"]])
def test_curves_of_table_2(compose, name):
    config = compose(name)
    slow = name.endswith(("vgg16", "conv3fc3", "fc"))
    for finder in ("bezier", "polychain"):
        found = config["finder"][finder]
        assert (found["bends"], found["batch_size"]) == (1, 128)
        assert (found["steps"], found["lr"]) == ((600 * EPOCH, 0.015) if slow else (200 * EPOCH, 0.03))
        assert found["weight_decay"] == config["optimizer"]["weight_decay"]
    assert config["path"]["points"] == 121
    assert config["schedule"]["_target_"] == "lowloss.schedule.Plateau"


def test_the_scales_of_figure_3(compose):
    rows = [row["experiment"] for row in FAMILIES["garipov2018_figure3"]]
    assert [compose(name)["model"]["scale"] for name in rows] == [0.3, 0.5, 0.8, 1.0]


def test_imagenet_takes_five_epochs(compose):
    fge = compose("garipov2018_imagenet_fge")["ensemble"]["fge"]
    assert (fge["members"] - 0.5) * fge["cycle_epochs"] == 5
    assert fge["include_start"]
    assert (fge["lr_max"], fge["lr_min"]) == (1e-3, 1e-5)


def test_the_tables_are_whole():
    table = papers.published("garipov2018")
    counts = table.groupby("result").size()
    # Three methods, budgets and networks twice; rows of 6, 9, 10 and 10 numbers for seven networks; three rows of six.
    assert dict(counts[["Table 1", "Table 2", "Table 3"]]) == {"Table 1": 54, "Table 2": 7 * 35, "Table 3": 18}
    one = table[table["result"] == "Table 1"]
    # Every row's sum of six, as the paper prints them.
    fge = one[one["row"].str.startswith("method=fge")].groupby("experiment")["value"].sum()
    assert fge["garipov2018_ensembles_c100_vgg16"] == pytest.approx(25.74 + 24.11 + 23.54)
    assert fge["garipov2018_ensembles_c10_wrn28_10"] == pytest.approx(3.64 + 3.38 + 3.52)
    assert set(one["column"]) == {"test_error"}


def test_a_row_that_names_the_segment_is_compared_with_it(tmp_path):
    (tmp_path / "report").mkdir()
    (tmp_path / "report" / "curves.csv").write_text("finder,test_error_max\nline,80.0\nbezier,7.0\n")
    head = {"paper": "garipov2018", "result": "Table 2", "experiment": "e", "unit": "%", "column": "test_error_max"}
    published = pd.DataFrame(
        [{**head, "row": f"finder={one}", "value": 1.0, "source": "paper"} for one in ("line", "bezier")]
    )
    compared = papers.compare(tmp_path, published)
    assert list(zip(compared["method"], compared["ours"], strict=True)) == [("line", 80.0), ("bezier", 7.0)]
