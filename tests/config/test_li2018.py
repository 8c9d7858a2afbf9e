"""The experiments of Li et al. 2018: the settings that the paper states, and what is the same in small."""

import itertools
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lowloss import cli
from lowloss.conf import read_families

CONF = Path(__file__).parents[2] / "conf"


@pytest.fixture(scope="module")
def compose():
    cli.register_families()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):

        def composed(*overrides):
            config = hydra.compose("config", list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            return OmegaConf.to_container(config, resolve=False)

        yield composed
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


@pytest.mark.parametrize("name", ["li2018_resnet20", "li2018_vgg9"])
def test_training_is_that_of_section_6(compose, name):
    config = compose(f"experiment={name}")
    assert (config["minima"]["epochs"], config["minima"]["batch_size"]) == (300, 128)
    assert config["optimizer"]["nesterov"] is True
    assert config["optimizer"]["weight_decay"] == 5e-4
    schedule = instantiate(config["schedule"], _convert_="all")
    rates = [config["optimizer"]["lr"] * schedule(epoch / 300) for epoch in (0, 149, 151, 224, 226, 274, 276, 299)]
    assert rates == pytest.approx([0.1, 0.1, 0.01, 0.01, 1e-3, 1e-3, 1e-4, 1e-4])
    # The authors' code holds the centre's statistics; appendix B takes every epoch.
    assert config["scan"]["random_plane"]["statistics"] == "held"
    assert config["minima"]["collect"] == "every"


def test_what_differs_between_networks_and_ways_of_training(compose):
    told = {}
    for row in read_families(CONF)["li2018_networks"]:
        config = compose(f"experiment={row['experiment']}")
        optimizer, model = config["optimizer"], config["model"]
        told[row["experiment"].removeprefix("li2018_")] = [
            optimizer["_target_"].rpartition(".")[2], optimizer["lr"], optimizer["weight_decay"],
            config["minima"]["batch_size"], model.get("depth"), model.get("width"), model.get("shortcuts"),
        ]  # fmt: skip
    sgd = ["SGD", 0.1, 5e-4, 128]
    assert told.pop("densenet121")[:4] == sgd
    for decay, batch in itertools.product((5e-4, 0.0), (128, 8192)):
        suffix = ("_wd0" if decay == 0 else "") + ("_b8192" if batch == 8192 else "")
        assert told.pop(f"vgg9{suffix}")[:4] == ["SGD", 0.1, decay, batch]
        assert told.pop(f"vgg9_adam{suffix}")[:4] == ["Adam", 1e-3, decay, batch]
    assert told.pop("resnet56_b4096") == ["SGD", 0.1, 5e-4, 4096, 56, 16, "projection"]
    assert told.pop("resnet56_noshort_fast") == [*sgd, 56, 16, "none"]
    depths = {f"resnet{depth}": (depth, 16) for depth in (20, 56, 110, 158)}
    depths |= {f"wrn56_{k}": (56, 16 * k) for k in (2, 4, 8)}
    for name, found in told.items():
        network = name.removesuffix("_noshort")
        lr = 0.01 if name.endswith("_noshort") and name != "resnet20_noshort" else 0.1
        shortcuts = "none" if name.endswith("_noshort") else "projection"
        assert found == ["SGD", lr, 5e-4, 128, *depths[network], shortcuts], name
    assert told.keys() == {*depths, *(f"{name}_noshort" for name in depths)} - {"resnet158"}


def test_the_base_is_the_experiment_of_resnet20(compose):
    base, named = compose("experiment=li2018"), compose("experiment=li2018_resnet20")
    for config in (base, named):
        del config["hydra"], config["name"]
    assert base == named
