"""Every option of every group composes, and a YAML's keys are its target's arguments."""

import inspect
from pathlib import Path

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.utils import get_object, instantiate
from omegaconf import OmegaConf

import lowloss.data
import lowloss.ensemble
import lowloss.finder
import lowloss.model
import lowloss.scans
import lowloss.schedule
from lowloss.finder import AutoNEB, Phase

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted((file.parent.name, file.stem) for file in CONF.glob("*/*.yaml") if file.parent.name != "hydra")
LISTED = ("finder", "scan")
# Groups whose classes live under another name.
HOMES = {"scan": "scans", "engine": "landscape"}
# Filled in from the data.
FROM_DATA = {"input_shape", "num_classes"}


@pytest.fixture(scope="module")
def compose():
    """Composes the configuration of a command line; interpolations of Hydra's own values work."""
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):

        def composed(*overrides):
            config = hydra.compose("config", list(overrides), return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            return config

        yield composed
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def chosen(group, option):
    return f"{group}=[{option}]" if group in LISTED else f"{group}={option}"


def targets(node):
    """Every mapping with a `_target_`, at any depth."""
    if isinstance(node, dict):
        if node.get("_target_"):
            yield node
        for value in node.values():
            yield from targets(value)


def yaml_of(group, option):
    return yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))


def test_every_group_has_options():
    groups = {group for group, _ in OPTIONS}
    assert groups == {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra"}
    assert groups >= {
        "model",
        "data",
        "optimizer",
        "schedule",
        "finder",
        "ensemble",
        "scan",
        "trainer",
        "engine",
        "logger",
    }


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes(compose, group, option):
    plain = OmegaConf.to_container(compose(chosen(group, option)), resolve=False)
    OmegaConf.to_container(compose(chosen(group, option)), resolve=True)
    content = yaml_of(group, option)
    if group == "experiment":
        assert plain["study"] == content["study"] == option
    elif group == "recipe":
        for section in set(content) - {"defaults"}:
            assert plain[section].items() >= content[section].items()
    elif group in LISTED:
        assert plain[group] == {option: content}
    else:
        assert plain[group] == content


@pytest.mark.parametrize("group", LISTED)
def test_options_of_a_list_stand_side_by_side(compose, group):
    options = [option for listed, option in OPTIONS if listed == group]
    assert len(options) > 1
    assert set(compose(f"{group}=[{','.join(options)}]")[group]) == set(options)
    assert set(compose(f"{group}=[{options[-1]}]")[group]) == {options[-1]}


def test_study_is_named_after_data_and_model(compose):
    assert compose().study == "digits-cnn_12x1"
    assert compose("model=resnet20", "data=cifar10").study == "cifar10-resnet20"


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] not in ("experiment", "recipe")])
def test_keys_are_the_arguments_of_the_target(group, option):
    for node in targets(yaml_of(group, option)):
        target = get_object(node["_target_"])
        keys = set(node) - {"_target_"}
        parameters = inspect.signature(target).parameters
        named = {name for name, parameter in parameters.items() if parameter.kind != parameter.VAR_KEYWORD}
        # A target that passes keywords on, say a logger's to wandb, takes others too.
        if len(named) == len(parameters):
            assert keys <= named
        if node["_target_"].startswith("lowloss."):
            assert keys | FROM_DATA >= named
            assert node["_target_"].startswith(f"lowloss.{HOMES.get(group, group)}.")


@pytest.mark.parametrize(
    ("group", "option"), [o for o in OPTIONS if o[0] in ("finder", "ensemble", "scan", "schedule")]
)
def test_option_shows_the_defaults_of_its_target(group, option):
    node = yaml_of(group, option)
    parameters = inspect.signature(get_object(node.pop("_target_"))).parameters
    # The cycles of AutoNEB are written shorter than they are kept; they have their own test.
    shown = {key: tuple(value) if isinstance(value, list) else value for key, value in node.items() if key != "cycles"}
    assert shown == {key: parameters[key].default for key in shown}


def exported(module):
    """The concrete classes and functions that a module exports."""
    for name in getattr(module, "__all__", vars(module)):
        value = getattr(module, name)
        if getattr(value, "__module__", "").startswith(module.__name__) and not inspect.isabstract(value):
            yield value


def test_everything_that_can_be_an_option_is_one():
    wanted = {
        *(value for value in exported(lowloss.model) if inspect.isclass(value)),
        *(
            value
            for value in exported(lowloss.finder)
            if inspect.isclass(value) and issubclass(value, lowloss.finder.Finder)
        ),
        lowloss.ensemble.FGE,
        *(
            value
            for value in exported(lowloss.scans)
            if inspect.isclass(value) and issubclass(value, lowloss.scans.Plane)
        ),
        *(value for value in exported(lowloss.schedule) if inspect.isclass(value)),
        *(value for value in exported(lowloss.data) if inspect.isfunction(value)),
        lowloss.data.CropFlip,
    }
    assert len(wanted) >= 24
    offered = {get_object(node["_target_"]) for option in OPTIONS for node in targets(yaml_of(*option))}
    assert wanted <= offered


def test_autoneb_runs_the_schedule_of_the_paper(compose):
    schedule = [(1000, 0.1)] * 4 + [(2000, 0.1)] * 2 + [(1000, 0.01)] * 4 + [(1000, 0.001)] * 4
    finder = instantiate(compose("finder=[autoneb]").finder.autoneb, _convert_="all")
    assert finder.phases == AutoNEB().phases == [Phase(*phase) for phase in schedule]
    assert vars(finder) == vars(AutoNEB())
