"""The experiments of table B.1: the paper's settings, and numbers that agree with each other."""

from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lowloss.finder import AutoNEB
from lowloss.report.tables import TABLE_B1

EXPERIMENTS = Path(__file__).parents[2] / "conf" / "experiment"
ROWS = sorted(file.stem for file in EXPERIMENTS.glob("draxler2018_c1*.yaml"))
SWEEP = "draxler2018_table_b1"


@pytest.fixture(scope="module")
def compose():
    with hydra.initialize_config_dir(str(EXPERIMENTS.parent), version_base="1.3"):

        def composed(*overrides):
            config = hydra.compose("config", list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            plain = OmegaConf.to_container(config, resolve=False)
            return {key: value for key, value in plain.items() if key != "hydra"}, plain["hydra"]

        yield composed
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def half(text):
    """Half of the last digit of a printed number."""
    return 0.5 * 10 ** -len(text.partition(".")[2])


def test_there_is_one_for_every_row_and_the_sweep_runs_them_all(compose):
    assert len(ROWS) == 2 * 14
    _, settings = compose(f"experiment={SWEEP}")
    assert settings["mode"].name == "MULTIRUN"
    ((key, swept),) = settings["sweeper"]["params"].items()
    assert key == "+experiment@_global_"
    assert sorted(name.strip() for name in swept.split(",")) == ROWS


@pytest.mark.parametrize("name", ROWS)
def test_a_row_of_the_sweep_is_the_experiment(compose, name):
    alone, _ = compose(f"experiment={name}")
    swept, _ = compose(f"+experiment@_global_={name}", f"experiment={SWEEP}")
    assert swept == alone


@pytest.mark.parametrize("name", ROWS)
def test_settings_are_the_papers(compose, name):
    config, _ = compose(f"experiment={name}")
    dense, deep = "densenet" in name, name.endswith(("resnet44", "resnet56"))
    training = {"count": 10, "epochs": 266 if dense else 136, "batch_size": 64 if dense else 128}
    assert config["minima"] == {**training, "together": None}
    optimizer = {key: value for key, value in config["optimizer"].items() if key != "_target_"}
    assert optimizer == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": dense}
    assert config["schedule"]["milestones"] == [0.5, 0.75]
    assert config["data"]["_target_"] == f"lowloss.data.{'cifar100' if '_c100_' in name else 'cifar10'}"
    assert config["data"]["augment"]["_target_"] == "lowloss.data.CropFlip"
    finder = {key: value for key, value in config["finder"]["autoneb"].items() if key != "_target_"}
    assert finder["batch_size"] == (256 if dense or deep else 512)
    assert sum(phase.steps for phase in AutoNEB(**finder).phases) == 16_000
    assert config["path"]["pairs"] == "explore"
    words = name.split("_", 2)[2].replace("cnn", "cnn_")
    model = f"{words}x1" if words.startswith("cnn") and "x" not in words else words
    expected = yaml.safe_load((EXPERIMENTS.parent / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    assert config["model"] == expected


@pytest.mark.parametrize("name", ROWS)
def test_the_published_numbers_agree_with_each_other(name):
    # As printed, so that their rounding is known.
    content = yaml.load((EXPERIMENTS / f"{name}.yaml").read_text(encoding="utf-8"), yaml.BaseLoader)
    row = content["paper"]["row"]
    assert set(row) == set(TABLE_B1) - {"finder", "paths", "epoch"}
    value = {key: float(text) for key, text in row.items()}
    # The printed difference is that of the unrounded errors.
    difference = value["test_error_saddle"] - value["test_error_min"]
    assert abs(value["delta"] - difference) <= 3 * half(row["delta"]) + 1e-9
    low, high = value["train_loss_min"], value["train_loss_saddle"]
    slack = half(row["train_loss_min"])
    bounds = (high - slack) / (low + slack), (high + slack) / (low - slack)
    assert bounds[0] - half(row["factor"]) <= value["factor"] <= bounds[1] + half(row["factor"])
    assert 0 < value["epoch_first"] <= (266 if "densenet" in name else 136)
