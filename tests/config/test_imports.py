"""Imports point one way, the heavy ones wait until they are needed, and the public names are what they say."""

import ast
import os
import re
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import lowloss

SOURCE = Path(lowloss.__file__).parent
MODULES = {
    ".".join(("lowloss", *file.relative_to(SOURCE).with_suffix("").parts)).removesuffix(".__init__"): file
    for file in SOURCE.rglob("*.py")
}
HEAVY = {"torch", "torchvision", "lightning", "hydra", "omegaconf", "wandb", "pandas", "matplotlib", "sklearn"}

SMALL = {"checking", "errors", "seeding"}
# What each part of the package may import of the others.
MAY = {
    "arguments": {"errors"},
    "errors": set(),
    "imports": set(),
    "seeding": set(),
    "processes": set(),
    "progress": {"processes"},
    "spanning": set(),
    "digests": set(),
    "files": {"digests", "errors"},
    "checking": {"errors"},
    "declared": {"checking"},
    "settings": {"checking", "conf", "errors"},
    "conf": {"errors"},
    "overview": {"conf"},
    "telling": {"conf", "errors", "files", "group"},
    "schedule": {"checking", "errors"},
    "model": {"checking", "errors"},
    "data": SMALL,
    "landscape": {*SMALL, "data.base", "data.task"},
    "points": {*SMALL, "landscape.layout"},
    "finder": {*SMALL, "landscape", "data.base", "points.path", "schedule"},
    "ensemble": {*SMALL, "landscape", "data.base", "data.task"},
    "symmetry": {*SMALL, "data.base", "landscape"},
    "measure": {*SMALL, "landscape"},
    "training": {
        *SMALL,
        "data.base",
        "digests",
        "data.task",
        "files",
        "imports",
        "progress",
        "landscape",
        "symmetry",
        "finder",
        "ensemble",
        "measure",
        "points",
        "schedule",
    },
    "claims": {"errors", "files", "processes", "progress"},
    "study": {"digests", "errors", "files"},
    "launch": {"errors", "files", "group", "processes", "progress"},
    "papers": {"conf", "errors", "files", "launch"},
    # A module of the report shows the kind of artifact of its name; the stages name the kinds.
    "report": {
        *("errors", "files", "launch", "papers", "processes", "progress", "status", "study", "spanning", "points.path")
    },
    "logger": {"claims", "errors", "files", "progress", "study"},
    "group": {"errors"},
    "jobs": {
        *SMALL,
        "claims",
        "data.base",
        "digests",
        "files",
        "imports",
        "launch",
        "progress",
        "spanning",
        "study",
        "ensemble",
        "finder",
        "landscape",
        "measure",
        "points",
        "symmetry",
        "training",
        "report",
    },
    "results": {
        "conf",
        "ensemble",
        "errors",
        "files",
        "finder",
        "jobs",
        "landscape",
        "measure",
        "points",
        "progress",
        "report",
        "study",
        "training",
    },
    "verify": {"digests", "errors", "study"},
    "status": {"claims", "errors", "files", "launch", "processes", "progress", "study"},
    "subcommands": {
        "arguments",
        "conf",
        "errors",
        "overview",
        "papers",
        "progress",
        "report",
        "results",
        "status",
        "verify",
    },
    "cli": {
        "arguments",
        "checking",
        "declared",
        "conf",
        "errors",
        "files",
        "group",
        "imports",
        "jobs",
        "launch",
        "overview",
        "progress",
        "settings",
        "study",
        "subcommands",
        "telling",
    },
    "__main__": {"cli"},
}


def part_of(module):
    return module.split(".")[1]


def imported(module):
    """The dotted names that a module imports anywhere, within functions and for type checking too."""
    for node in ast.walk(ast.parse(MODULES[module].read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{module} imports relatively"
            # Of `from lowloss import files`, files is the module.
            submodules = {f"{node.module}.{alias.name}" for alias in node.names} & MODULES.keys()
            yield from submodules or {node.module}


@pytest.mark.parametrize("module", sorted(set(MODULES) - {"lowloss"}))
def test_imports_point_one_way(module):
    part = part_of(module)
    inside = [name for name in imported(module) if name.startswith("lowloss.")]
    for name in inside:
        allowed = {f"lowloss.{other}" for other in MAY[part] | {part}}
        assert any(name == other or name.startswith(f"{other}.") for other in allowed), f"{module} imports {name}"


def test_parts_have_no_cycle():
    seen, left = set(), dict(MAY)
    while ready := {part for part, needs in left.items() if {need.split(".")[0] for need in needs} <= seen}:
        seen |= ready
        left = {part: needs for part, needs in left.items() if part not in seen}
    assert not left
    assert seen == {part_of(module) for module in MODULES if module != "lowloss"}


def users(*packages):
    return {module for module in MODULES if any(name.split(".")[0] in packages for name in imported(module))}


def test_frameworks_stay_in_their_places():
    assert users("hydra", "omegaconf") == {"lowloss.cli", "lowloss.telling"}
    lightning = users("lightning", "lightning_fabric", "pytorch_lightning")
    assert {part_of(module) for module in lightning} == {"training", "logger"}
    assert users("torchmetrics", "lightning_utilities") == {"lowloss.imports"}
    assert users("wandb") == {"lowloss.logger"}


@pytest.mark.parametrize(
    ("program", "late"),
    [
        ("import lowloss; dir(lowloss)", HEAVY),
        (
            "import sys; sys.argv[1:] = ['--help']; import lowloss.cli; lowloss.cli.main()",
            HEAVY,
        ),
    ],
    ids=["import", "help"],
)
def test_heavy_imports_wait(program, late):
    check = f"import atexit, sys; atexit.register(lambda: print('early:', sorted({late!r} & sys.modules.keys())))"
    done = subprocess.run([sys.executable, "-c", f"{check}; {program}"], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "early: []"


PROBE = """
import sys
import torch

def optimizer(parameters, **settings):
    print("imported:", *sorted({"matplotlib", "pandas", "scipy", "sklearn", "torchvision"} & sys.modules.keys()))
    return torch.optim.SGD(parameters, **settings)
"""

# As the real one does when it is imported, it asks what else is installed, and remembers the answer.
TRANSFORMERS = """
import importlib.util
vision = importlib.util.find_spec("torchvision") is not None
print("transformers")
"""


def test_training_starts_without_what_only_reports_and_other_data_need(tmp_path):
    """And whatever torchmetrics was told, others find every package."""
    (tmp_path / "probe.py").write_text(PROBE)
    (tmp_path / "transformers.py").write_text(TRANSFORMERS)
    (tmp_path / "transformers-4.50.0.dist-info").mkdir()
    (tmp_path / "transformers-4.50.0.dist-info" / "METADATA").write_text("Name: transformers\nVersion: 4.50.0\n")
    program = (
        "import sys, lowloss.cli; lowloss.cli.main(); "
        "from importlib.metadata import version; version('matplotlib'); "
        "from lightning_utilities.core.imports import RequirementCache, package_available; "
        "assert all(package_available(name) for name in ('matplotlib', 'scipy', 'torchvision')); "
        "from torchmetrics.utilities.imports import _MATPLOTLIB_AVAILABLE, _TRANSFORMERS_GREATER_EQUAL_4_4; "
        "assert not _MATPLOTLIB_AVAILABLE and not _TRANSFORMERS_GREATER_EQUAL_4_4; "  # its imports of them were skipped
        "import transformers; assert transformers.vision"
    )
    command = ["model=mlp", "trainer=cpu", "minima.count=1", "minima.epochs=1", "stages=[minima]"]
    done = subprocess.run(
        [sys.executable, "-c", program, *command, "optimizer._target_=probe.optimizer"],
        cwd=tmp_path, env={**os.environ, "PYTHONPATH": str(tmp_path)}, capture_output=True, text=True, timeout=300,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    # It is made once to look at its settings, and once to train.
    assert done.stdout.splitlines() == ["imported:"] * 2 + ["transformers"]


def test_only_the_command_line_hides_packages():
    program = "import lowloss.training.methods, torchmetrics.utilities.plot as p; print(p._MATPLOTLIB_AVAILABLE)"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=300)
    assert done.stdout.strip() == "Requirement 'matplotlib' met", done.stderr


def test_public_names_are_their_homes_objects():
    assert sorted(lowloss.__all__) == sorted(name for names in lowloss._HOMES.values() for name in names)
    assert len(set(lowloss.__all__)) == len(lowloss.__all__)
    assert set(lowloss.__all__) <= set(dir(lowloss))
    for home, names in lowloss._HOMES.items():
        for name in names:
            assert getattr(lowloss, name) is getattr(import_module(home), name)
    with pytest.raises(AttributeError, match="nothing_of_the_kind"):
        _ = lowloss.nothing_of_the_kind


def test_type_checkers_see_the_same_names():
    tree = ast.parse(MODULES["lowloss"].read_text(encoding="utf-8"))
    (guard,) = (node for node in tree.body if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING")
    seen = {node.module: tuple(alias.name for alias in node.names) for node in guard.body}
    assert {home: sorted(names) for home, names in seen.items()} == {
        home: sorted(names) for home, names in lowloss._HOMES.items()
    }


def test_no_object_goes_between_processes():
    """Which torch.distributed would pickle: messages are JSON and tensors."""
    words = {word for file in MODULES.values() for word in re.findall(r"\w+", file.read_text(encoding="utf-8"))}
    assert "broadcast" in words
    assert {word for word in words if word.endswith(("_object", "_object_list"))} == {"get_object"}  # Hydra's
