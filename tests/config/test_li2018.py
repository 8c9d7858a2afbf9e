"""The experiments of Li et al. 2018: the settings that the paper states, and what is the same in small."""

from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import OmegaConf

from lowloss import cli

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


def test_the_base_is_the_experiment_of_resnet20(compose):
    base, named = compose("experiment=li2018"), compose("experiment=li2018_resnet20")
    for config in (base, named):
        del config["hydra"], config["name"]
    assert base == named
