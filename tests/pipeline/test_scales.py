"""Every experiment that is shipped runs in small, from the command line on, and gives numbers. A report shows kinds of
results, whatever the network is: of a family's rows it is made for the experiment that they are rows of."""

import csv
import math
from pathlib import Path

import hydra
import pytest
from hydra.core.global_hydra import GlobalHydra
from omegaconf import OmegaConf

from lowloss import cli
from lowloss.conf import config_folder, read_families
from lowloss.files import load_tensors
from lowloss.jobs.pipeline import stages

CONF = config_folder()
ROWS = [row["experiment"] for rows in read_families(CONF).values() for row in rows]
EXPERIMENTS = [*sorted(file.stem for file in (CONF / "experiment").glob("*.yaml")), *ROWS]
# What is in small the same as another one, but for a rate, weight decay or width of an MLP, is not run; the test below
# compares their configurations.
TWINS = {
    **{f"garipov2018_fig3_k{k}": "garipov2018_c10_conv3fc3" for k in ("03", "05", "08", "10")},
    **{name: name.replace("_c100_", "_c10_") for name in EXPERIMENTS if name.startswith("draxler2018_c100_")},
    **{f"draxler2018_c10_resnet{depth}": "draxler2018_c10_resnet8" for depth in (32, 44, 56)},
    **{f"garipov2018_ensembles_c100_{n}": f"garipov2018_ensembles_c10_{n}" for n in ("preresnet110", "wrn28_10")},
    **{f"garipov2018_ensembles_{images}_vgg16": "garipov2018_ensembles" for images in ("c10", "c100")},
    "garipov2018_c100_vgg16": "garipov2018",
    "draxler2018_c10_cnn12": "draxler2018",
    "fort2019_toy_60_45": "fort2019_toy",
    **{f"brea2019_mnist_h{width}": "brea2019_mnist" for width in (10, 15, 20, 25)},
    **{f"li2018_{n}": "li2018" for n in ("resnet20", "resnet56", "resnet56_b4096", "resnet110")},
    **{f"li2018_wrn56_{k}": "li2018" for k in (2, 4, 8)},
    **{f"li2018_resnet{depth}_noshort": "li2018_resnet20_noshort" for depth in (56, 110, 158)},
    **{f"li2018_wrn56_{k}_noshort": "li2018_resnet20_noshort" for k in (2, 4, 8)},
    "li2018_resnet56_noshort_fast": "li2018_resnet20_noshort",
    **{f"li2018_vgg9_{variant}": "li2018_vgg9" for variant in ("b8192", "wd0", "wd0_b8192")},
    **{f"li2018_vgg9_adam_{variant}": "li2018_vgg9_adam" for variant in ("b8192", "wd0", "wd0_b8192")},
}
# Searches, which are sweeps and make no report of their own.
SEARCHES = {
    "optuna_digits": ("hydra_plugins.hydra_optuna_sweeper", "stages=[minima,report]", "hydra.sweeper.n_trials=2")
}
# What experiments make, by how their names begin, the longest first, where that is not minima, paths and scans.
KINDS = {
    "garipov2018_ensembles": {"minima", "ensembles"},
    "garipov2018_imagenet": {"minima", "ensembles"},
    "garipov2018_ptb": {"minima", "paths"},
    "garipov2018_c10_vgg16": {"minima", "paths", "ensembles", "scans"},
    "garipov2018": {"minima", "paths", "ensembles"},
    "fort2019_planes": {"minima", "scans"},
    "fort2019_swa": {"minima", "ensembles"},
    "frankle2020": {"minima", "paths"},
    "brea2019": {"minima", "permutations"},
    "li2018": {"minima", "spectra", "scans"},
}
# Single networks have no mean along a path, a single member has no distance, and a regression no calibration.
BOUGHT = {"curves.csv": None, "members.csv": {"distance"}, "budgets.csv": {"brier", "ece", "disagreement", "distance"}}
# What need not be there: how well a band has converged, for what is none, a learning curve that ends above the saddle,
# classes without a test sample, and a dimension from which on cuts succeed.
BANDS = {"summary.csv": {"residuum", "force", "force_at_top", "force_left", "spacing_spread"}}
CUTS = {"dimensions.csv": {"threshold", "high"}}
TEXTS = ("finder", "status", "method", "place", "class", "split", "statistics", "layer")
MAY_LACK = (
    {"table_b1.csv": {"epoch", "epoch_first"}, "classes.csv": None, "overlap.csv": {"overlap"}} | BANDS | CUTS | BOUGHT
)


def floats(value):
    """Every number in nested notes."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        return [number for part in value for number in floats(part)]
    return [value] if isinstance(value, float) else []


def numbers(file):
    """The cells of a table that have to be numbers."""
    lacking = MAY_LACK.get(file.name, set())
    with file.open(newline="") as lines:
        for row in csv.DictReader(lines):
            for name, cell in row.items():
                if lacking is not None and name not in lacking and name not in TEXTS:
                    yield float(cell)


def check(study):
    """Nothing in the study is infinite or no number, and its report, if it has one, is whole."""
    results = sorted(study.glob("*/[!.]*/result.safetensors"))
    assert len([file for file in results if file.parent.parent.name == "minima"]) >= 2
    for file in results:
        tensors, notes = load_tensors(file)
        assert all(math.isfinite(number) for number in floats(notes)), file
        for name, tensor in tensors.items():
            if "_class_" not in name:
                assert bool(tensor.isfinite().all()), (file, name)
    tables = sorted(study.rglob("*.csv"))
    report = study / "report" / "index.html"
    assert {file.name for file in tables} >= ({"summary.csv", "table_b1.csv"} if report.is_file() else {"metrics.csv"})
    assert not report.is_file() or "<h1>" in report.read_text(encoding="utf-8")
    for file in tables:
        # The bound of a pair that no tree connects is infinite.
        if not file.name.startswith("bounds-"):
            assert all(math.isfinite(number) for number in numbers(file)), file


def test_twins_are_the_same_in_small():
    cli.register_families()
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        composed = {
            name: OmegaConf.to_container(hydra.compose("config", [f"experiment={name}", "scale=tiny"]), resolve=False)
            for name in {*TWINS, *TWINS.values()}
        }
    GlobalHydra.instance().clear()
    for config in composed.values():
        del config["name"], config["optimizer"]["lr"], config["optimizer"]["weight_decay"]
        config["model"].pop("hidden", None)
    for one, other in TWINS.items():
        assert composed[one] == composed[other], one


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name not in TWINS])
def test_every_experiment_runs_in_small(lowloss, tmp_path, name):
    command = (f"experiment={name}", "scale=tiny", "trainer=cpu")
    kinds = next((kinds for prefix, kinds in KINDS.items() if name.startswith(prefix)), {"minima", "paths", "scans"})
    if name in SEARCHES:
        needed, *settings = SEARCHES[name]
        pytest.importorskip(needed)
        command, kinds = ("-m", *command, *settings), {"minima"}
    if name in ROWS:
        command = (*command, f"stages=[{','.join(one.name for one in stages().values() if one.kind in kinds)}]")
    made = lowloss.plain(tmp_path, *command)
    assert made.status == 0, made.err
    root = tmp_path / "outputs" / f"{name}-tiny"
    studies = {root} if name in ROWS else {file.parents[1] for file in root.rglob("report/index.html")}
    assert len(studies) == (2 if name in SEARCHES else 1)
    for study in studies:
        check(study)
    assert {Path(target).parent.name for source, target in made.renames if ".new-" in Path(source).name} >= kinds
    if name in SEARCHES:
        assert "best_value" in (tmp_path / "outputs" / ".sweeps" / "optimization_results.yaml").read_text()
