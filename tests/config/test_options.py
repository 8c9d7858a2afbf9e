"""Every option of every group composes, and a YAML's keys are its target's arguments."""

import contextlib
import functools
import inspect
from collections.abc import Callable
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
import lowloss.points
import lowloss.schedule
from lowloss import cli
from lowloss.checking import Arguments, check_arguments
from lowloss.conf import group_options, read_families
from lowloss.declared import declared
from lowloss.finder import AutoNEB, Phase
from lowloss.settings import check_settings

CONF = Path(__file__).parents[2] / "conf"
OPTIONS = sorted(
    (file.parent.name, file.stem) for file in CONF.glob("*/*.yaml") if file.parent.name not in ("hydra", "small")
)
EXPERIMENTS = [option for group, option in OPTIONS if group == "experiment"]
# Of each family the first row and the last.
ROWS = [rows[i]["experiment"] for rows in read_families(CONF).values() for i in (0, -1)]
# Folders of tables.
TABLES = {"family", "paper"}
# Groups whose options set keys of others.
SPREAD = ("experiment", "recipe", "scale", "debug")
LISTED = ("finder", "scan", "ensemble")
# Groups whose classes live under another name.
HOMES = {"scan": "points", "engine": "landscape", "chart": "landscape", "optimizer": "training"}
# Filled in from the data, or by whoever trains.
FROM_DATA = {"input_shape", "num_classes", "params"}


@pytest.fixture(scope="module")
def compose():
    """Composes the configuration of a command line; interpolations of Hydra's own values work."""
    cli.register_families()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):

        @functools.cache
        def made(*overrides):
            return hydra.compose("config", list(overrides), return_hydra_config=True)

        def composed(*overrides):
            config = made(*overrides)
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


def flat(node, prefix=""):
    """The values of nested mappings by dotted keys, lists as texts."""
    if not isinstance(node, dict):
        return {prefix: str(node)}
    return {key: value for name in node for key, value in flat(node[name], f"{prefix}.{name}").items()}


def yaml_of(group, option):
    return yaml.safe_load((CONF / group / f"{option}.yaml").read_text(encoding="utf-8"))


def test_every_group_has_options():
    groups = {group for group, _ in OPTIONS}
    assert groups == {path.name for path in CONF.iterdir() if path.is_dir()} - {"hydra", "small", *TABLES}
    assert groups >= {
        "model",
        "data",
        "optimizer",
        "schedule",
        "minima",
        "finder",
        "ensemble",
        "scan",
        "trainer",
        "engine",
        "chart",
        "logger",
        "scale",
        "debug",
    }


@pytest.mark.parametrize(("group", "option"), OPTIONS)
def test_option_composes(compose, group, option):
    config = compose(chosen(group, option))
    plain = OmegaConf.to_container(config, resolve=False)
    OmegaConf.to_container(config, resolve=True)
    content = yaml_of(group, option)
    if group == "experiment":
        # The study's name follows from it, so that another scale has a study of its own.
        assert plain["name"] == content["name"] == option
        assert "study" not in content
    elif group in SPREAD:
        assert flat(plain).items() >= flat({key: content[key] for key in set(content) - {"defaults"}}).items()
    elif group in LISTED:
        assert plain[group] == {option: content}
    else:
        assert plain[group] == content


@pytest.mark.parametrize("name", sorted(file.stem for file in (CONF / "small").glob("*.yaml")))
def test_what_a_scale_changes_of_a_network_composes_with_it_and_not_otherwise(compose, name):
    scale, model = name.split("_", 1)
    changed = flat(yaml_of("small", name)).items()
    small, plain = (
        flat(OmegaConf.to_container(compose(f"model={model}", *scales), resolve=False))
        for scales in ((f"scale={scale}",), ())
    )
    assert small.items() >= changed
    assert not plain.items() >= changed


@pytest.mark.parametrize("group", LISTED)
def test_options_of_a_list_stand_side_by_side(compose, group):
    options = [option for listed, option in OPTIONS if listed == group]
    assert len(options) > 1
    assert set(compose(f"{group}=[{','.join(options)}]")[group]) == set(options)
    assert set(compose(f"{group}=[{options[-1]}]")[group]) == {options[-1]}


def test_study_is_named_after_data_and_model(compose):
    assert compose().study == "digits-cnn_12x1"
    assert compose("model=resnet20", "data=cifar10").study == "cifar10-resnet20"


@pytest.mark.parametrize("name", [*EXPERIMENTS, *ROWS])
def test_every_experiment_can_be_tiny(compose, name):
    config, full = (compose(f"experiment={name}", *scale) for scale in (["scale=tiny"], []))
    assert config.study == f"{full.study}-tiny" == f"{name}-tiny"
    # What a scale changes of a network, and of a text what its recipe does.
    file = CONF / "small" / f"tiny_{full.hydra.runtime.choices.model}.yaml"
    small = yaml.safe_load(file.read_text(encoding="utf-8")) if file.is_file() else {}
    tiny = yaml_of("data", "tiny")
    kept = {key: full.data[key] for key in ("steps", "streams", "carry") if key in full.data}
    assert config.data == OmegaConf.create(tiny | kept | small.get("data", {}))
    assert config.trainer == OmegaConf.create(yaml_of("trainer", "auto"))
    assert config.minima.items() >= {"count": 3, "epochs": 2, "batch_size": 16}.items()
    assert config.path.budget.pairs == 2
    assert config.published is None
    for group in ("model", "optimizer", "schedule"):
        assert config[group] == OmegaConf.merge(full[group], small.get(group, {}))
    assert config.evaluation_batch == full.evaluation_batch
    for finder in config.finder.values():
        if "_target_" in finder and "batch_size" in finder:
            assert finder.batch_size == 16
            assert finder.get("steps", 2) == 2


def test_students_of_a_teacher_learn_a_regression_in_small_too(compose):
    assert compose("experiment=brea2019_teacher_student", "scale=tiny").data.outputs == 1


def test_the_command_line_wins_over_the_scale(compose):
    given = ("data=cifar10", "trainer=cpu", "minima.count=5", "study=mine")
    config = compose("experiment=draxler2018", "scale=tiny", *given)
    assert (config.data._target_, config.trainer.accelerator) == ("lowloss.data.cifar10", "cpu")
    assert (config.minima.count, config.minima.epochs, config.study) == (5, 2, "mine")


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] not in SPREAD])
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


@pytest.mark.parametrize(("group", "option"), [o for o in OPTIONS if o[0] not in SPREAD])
def test_option_has_what_its_target_asks_for(group, option):
    for node in targets(yaml_of(group, option)):
        set_here = {key: value for key, value in node.items() if value != "???" and "${" not in str(value)}
        check_arguments(group, get_object(node["_target_"]), set_here)


@pytest.mark.parametrize("name", [*EXPERIMENTS, *ROWS])
@pytest.mark.parametrize("scale", [(), ("scale=tiny",)], ids=["full", "tiny"])
def test_every_experiment_has_settings_that_make_sense(compose, name, scale):
    plain = OmegaConf.to_container(compose(f"experiment={name}", *scale), resolve=True)
    check_settings(plain, group_options("finder"))
    for group in LISTED:
        for key, node in plain[group].items():
            if "_target_" in node:
                check_arguments(f"{group}.{key}", get_object(node["_target_"]), node)


def test_every_constructor_of_ours_describes_its_arguments():
    """What has no annotation is not compared with anything."""
    for group, option in OPTIONS:
        for node in targets(yaml_of(group, option)):
            if node["_target_"].startswith("lowloss."):
                target = get_object(node["_target_"])
                for name, parameter in inspect.signature(target).parameters.items():
                    assert parameter.annotation is not inspect.Parameter.empty, f"{node['_target_']}: {name}"


def test_what_the_source_declares_is_what_is_imported():
    read = 0
    for target in {node["_target_"] for option in OPTIONS for node in targets(yaml_of(*option))}:
        with contextlib.suppress(ImportError):  # of others, and functions that are made by functions
            found, imported = declared(target), Arguments.of(get_object(target))
            assert [*found.names] == [name for name in imported.names if name != "kwargs"]
            for name, hint in found.hints.items():
                assert hint == imported.hints[name] or (name, hint) == ("augment", Callable | None)
            read += 1
    assert read > 40


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
        *(
            value
            for value in exported(lowloss.ensemble)
            if inspect.isclass(value) and value is not lowloss.ensemble.EnsembleRecipe
        ),
        *(
            value
            for value in exported(lowloss.points)
            if inspect.isclass(value) and issubclass(value, lowloss.points.Plane)
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
