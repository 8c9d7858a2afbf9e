"""The experiments of table B.1: the paper's settings, and nothing else that differs from their base."""

from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

from lowloss import cli
from lowloss.finder import AutoNEB

CONF = Path(__file__).parents[2] / "conf"
SWEEP = "draxler2018_table_b1"
CNN = [f"cnn{name}" for name in ("12", "24", "36", "48", "96", "48x2", "48x3")]
RESNET = [f"resnet{depth}" for depth in (8, 20, 32, 44, 56)]
NETWORKS = [*CNN, *RESNET, "densenet40_12", "densenet100_12_bc"]
ROWS = [f"draxler2018_{data}_{network}" for data in ("c10", "c100") for network in NETWORKS]


@pytest.fixture(scope="module")
def compose():
    cli.register_families()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):

        def composed(*overrides):
            config = hydra.compose("config", list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            plain = OmegaConf.to_container(config, resolve=False)
            settings = plain.pop("hydra")
            return plain | {"study": config.study, "published": config.published}, settings

        yield composed
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.fixture(scope="module")
def base(compose):
    return compose("experiment=draxler2018")[0]


def test_the_sweep_runs_every_row(compose):
    config, settings = compose(f"experiment={SWEEP}")
    assert config["study"] == SWEEP
    assert settings["mode"].name == "MULTIRUN"
    ((key, swept),) = settings["sweeper"]["params"].items()
    assert key == "experiment@_global_"
    assert swept.split(",") == ROWS


@pytest.mark.parametrize("scale", [(), ("scale=tiny",)], ids=["full", "tiny"])
@pytest.mark.parametrize("name", [ROWS[0], ROWS[-1]])
def test_a_row_of_the_sweep_is_the_experiment(compose, name, scale):
    alone, _ = compose(f"experiment={name}", *scale)
    swept, _ = compose(f"experiment={SWEEP}", f"experiment@_global_={name}", *scale)
    assert swept == alone


@pytest.mark.parametrize("name", ROWS)
def test_settings_are_the_papers(compose, base, name):
    config, _ = compose(f"experiment={name}")
    dense, deep = "densenet" in name, name.endswith(("resnet44", "resnet56"))
    assert config["name"] == config["study"] == config["published"] == name
    training = {"count": 10, "epochs": 266 if dense else 136, "batch_size": 64 if dense else 128}
    assert config["minima"] == {**training, **dict.fromkeys(("together", "collect", "gradient_norm", "branch"))}
    optimizer = {key: value for key, value in config["optimizer"].items() if key != "_target_"}
    assert optimizer == {"lr": 0.1, "momentum": 0.9, "weight_decay": 1e-4, "nesterov": dense}
    assert config["schedule"]["milestones"] == [0.5, 0.75]
    assert config["data"]["_target_"] == f"lowloss.data.{'cifar100' if '_c100_' in name else 'cifar10'}"
    assert config["data"]["augment"]["_target_"] == "lowloss.data.CropFlip"
    finder = {key: value for key, value in config["finder"]["autoneb"].items() if key != "_target_"}
    assert finder["batch_size"] == (256 if dense or deep else 512)
    assert sum(phase.steps for phase in AutoNEB(**finder).phases) == 16_000
    words = name.split("_", 2)[2].replace("cnn", "cnn_")
    model = f"{words}x1" if words.startswith("cnn") and "x" not in words else words
    assert config["model"] == yaml.safe_load((CONF / "model" / f"{model}.yaml").read_text(encoding="utf-8"))
    # All else is the base's.
    differing = {key for key in base if {**config, "finder": None}[key] != {**base, "finder": None}[key]}
    assert differing <= {"name", "study", "published", "model", "data", "optimizer", "minima"}
    own = {key for key, value in config["finder"]["autoneb"].items() if value != base["finder"]["autoneb"][key]}
    assert own <= {"batch_size"}
    assert config["finder"]["line"] == base["finder"]["line"]


def test_the_base_is_the_papers(base):
    assert base["path"] == {
        "pairs": "explore", "budget": {"pairs": 18, "steps": None, "hours": None}, "only": {"line": [[0, 1]]},
        "points": 61, "between": 9, "bracket": 0.001, "align": None, "augmented": False,
    }  # fmt: skip
    assert base["stages"] == ["minima", "path", "scan", "report"]
    assert base["evaluation_batch"] == 2500
    assert base["trainer"]["accelerator"] == "gpu"
