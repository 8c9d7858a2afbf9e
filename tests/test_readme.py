"""The READMEs' code runs as it stands and prints what they say, and every command line in them composes.

A README's Python blocks, and its shell blocks under <!-- tested -->, run one after the other, in one namespace and
folder. Under <!-- printed, within BOUND --> is what the block before prints: other processors round otherwise.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import hydra
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException

from lowloss import cli
from lowloss.arguments import normalised
from lowloss.conf import read_families
from lowloss.jobs.pipeline import stages
from lowloss.subcommands import SUBCOMMANDS

ROOT = Path(__file__).parents[1]
FOLDERS = ("conf", "scripts", "src", "tests")
READMES = [ROOT / "README.md", *(file for folder in FOLDERS for file in sorted((ROOT / folder).rglob("README.md")))]
BLOCK = re.compile(
    r"(?:<!-- (?P<mark>[^>]*) -->\n)?^```(?P<language>\w*)\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
NUMBER = r"\d+(?:\.\d+)?"


def blocks(readme):
    return [(m["mark"] or "", m["language"], m["code"]) for m in BLOCK.finditer(readme.read_text(encoding="utf-8"))]


def name(readme):
    return str(readme.relative_to(ROOT))


RUNNING = [readme for readme in READMES if any(code[1] == "python" or code[0] == "tested" for code in blocks(readme))]


def shell(code, folder):
    """Run a block in bash, with the commands of this environment."""
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        ["bash", "-euo", "pipefail", "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.mark.parametrize("readme", RUNNING, ids=name)
def test_code_runs_and_prints_what_is_said(readme, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    names, out = {"__name__": "readme"}, ""
    for mark, language, code in blocks(readme):
        if language == "python":
            exec(compile(code, name(readme), "exec"), names)
            out = capsys.readouterr().out
        elif mark == "tested":
            out = shell(code, tmp_path)
        elif mark.startswith("printed"):
            assert re.sub(NUMBER, "#", out).split() == re.sub(NUMBER, "#", code).split()
            numbers, expected = ([float(number) for number in re.findall(NUMBER, text)] for text in (out, code))
            assert numbers == pytest.approx(expected, abs=float(mark.removeprefix("printed, within ")))
    torch.set_num_threads(threads)


def commands(readme):
    """The arguments of every `lowloss` command line in a README's blocks."""
    for _, language, code in blocks(readme):
        for line in code.replace("\\\n", " ").splitlines():
            if language in ("", "sh") and re.match(r"\s*lowloss ", line):
                yield shlex.split(line, comments=True)[1:]


@pytest.fixture(scope="module")
def compose():
    cli.register_families()
    with hydra.initialize_config_dir(str(ROOT / "conf"), version_base="1.3"):

        def composed(overrides):
            config = hydra.compose("config", overrides, return_hydra_config=True)
            HydraConfig.instance().set_config(config)
            return config

        yield composed
    GlobalHydra.instance().clear()
    HydraConfig.instance().cfg = None


def parses(override):
    try:
        return bool(OverridesParser.create().parse_overrides([override]))
    except HydraException:
        return False


LINES = {shlex.join(arguments): arguments for readme in READMES for arguments in commands(readme)}


def first_of_sweep(override, families):
    """The override with the first of the values that a sweep varies; of a family its first experiment."""
    key, equals, value = override.partition("=")
    first = value if value.startswith(("[", "{", "'")) else value.split(",")[0]
    return key + equals + (families[first][0]["experiment"] if first in families else first)


@pytest.mark.parametrize("line", LINES)
def test_every_command_line_composes(compose, line):
    if LINES[line][0] in SUBCOMMANDS:
        return
    words = [word for word in LINES[line] if not word.startswith("--config-dir") and "my_" not in word and word != "…"]
    overrides = [part for part in normalised(words, parses) if "=" in part or part.startswith("~")]
    families = read_families(ROOT / "conf")
    config = compose([first_of_sweep(override, families) for override in overrides])
    assert set(config["stages"]) <= stages().keys()
