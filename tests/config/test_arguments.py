"""Command lines as people write them: flags anywhere, ~, and paths that Hydra's grammar does not take."""

from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lowloss import LowlossError
from lowloss.arguments import normalised


def parses(override: str) -> bool:
    try:
        return bool(OverridesParser.create().parse_overrides([override]))
    except HydraException:
        return False


def value(override: str) -> object:
    (parsed,) = OverridesParser.create().parse_overrides(normalised([override], parses))
    return parsed.value()


@pytest.mark.parametrize("written", ["~/data", "'~/data'", '"~/data"'])
def test_home_is_expanded(written: str) -> None:
    assert value(f"data.root={written}") == str(Path.home() / "data")


@pytest.mark.parametrize(
    "path", ["a=b.npz", "my data ü.npz", "runs (2)/x.npz", "C:\\data\\x.npz", "it's.npz", "a,b=c/x"]
)
def test_paths_are_taken_as_they_are(path: str) -> None:
    assert value(f"data.path={path}") == path


@pytest.mark.parametrize(
    "override",
    ["seed=3", "seed=1,2", "finder=[a,b]", "finder.autoneb.cycles=[{steps:2,lr:0.1}]", "~recipe", "+data.x=null",
     "seed=range(0,3)", "experiment@_global_=a,b", "study='a b'"],
)  # fmt: skip
def test_what_hydra_reads_is_left_alone(override: str) -> None:
    assert normalised([override], parses) == [override]


@pytest.mark.parametrize("override", ["finder=[autoneb", "optimizer={lr:0.1", "seed", "=3"])
def test_what_is_broken_stays_so(override: str) -> None:
    assert normalised([override], parses) == [override]


def test_flags_may_stand_anywhere() -> None:
    arguments = ["model=mlp", "-m", "seed=0,1", "--config-dir", "mine", "--cfg", "job", "~recipe"]
    flags = ["-m", "--config-dir", "mine", "--cfg", "job"]
    assert normalised(arguments, parses) == [*flags, "model=mlp", "seed=0,1", "~recipe"]


@pytest.mark.parametrize("word", ["", " ", "\n"])
def test_a_blank_word_is_told(word):
    with pytest.raises(LowlossError, match="an argument is empty or blank: settings are KEY=VALUE"):
        normalised(["seed=0", word], lambda _: True)


def test_short_flags_may_stand_together_and_long_ones_have_values():
    assert normalised(["-mh", "--config-dir=x", "--cfg", "job"], lambda _: True) == [
        "-mh", "--config-dir=x", "--cfg", "job",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--model", "mlp"], "there is no --model: settings are KEY=VALUE, here model=mlp"),
        (["--data.root=x"], "there is no --data.root: settings are KEY=VALUE, here data.root=x"),
        (["--seeds", "data=digits"], "there is no --seeds"),
    ],
)
def test_settings_written_as_flags_are_told_as_they_are_written_here(words, told):
    with pytest.raises(LowlossError, match=f"^{told}; the flags are --help, "):
        normalised(words, lambda _: True)
