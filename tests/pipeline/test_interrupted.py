"""A run that is killed anywhere and started again gives the bytes of one that was not."""

import json
import re
import shutil
from collections import Counter
from pathlib import Path

import pytest

from lowloss.digests import seal_archive

# A stage, what is missing of its results, the place where the process is about to rename a file to when it is killed,
# and the how manieth such time.
KILLS = {
    "minima-in-training": ("minima", "minima", "*/last.ckpt", 3),
    "minima-in-evaluation": ("minima", "minima", "*/points-000001.safetensors", 1),
    "minima-between-results": ("minima", "minima", "*/minima/0001", 1),
    "path-in-the-first-cycle": ("path", "paths/0000-0001-autoneb", "*/phase-00/last.ckpt", 2),
    "path-between-cycles": ("path", "paths/0000-0001-autoneb", "*/reached.safetensors", 1),
    "path-in-the-second-cycle": ("path", "paths/0000-0001-autoneb", "*/phase-01/last.ckpt", 2),
    "path-after-the-cycles": ("path", "paths/0000-0001-autoneb", "*/reached.safetensors", 2),
    "path-in-evaluation": ("path", "paths/0000-0001-autoneb", "*/points-000016.safetensors", 1),
    "path-at-the-result": ("path", "paths/0000-0001-autoneb", "*/paths/0000-0001-autoneb", 1),
    "path-in-a-curve": ("path", "paths/0000-0001-bezier", "*/phase-00/last.ckpt", 2),
    "ensemble-in-training": ("ensemble", "ensembles/fge-0000", "*/last.ckpt", 2),
    "ensemble-at-the-result": ("ensemble", "ensembles/fge-0000", "*/ensembles/fge-0000", 1),
    "scan-in-evaluation": ("scan", "scans/random_plane-0000", "*/points-000016.safetensors", 1),
    "scan-at-the-result": ("scan", "scans/random_plane-0000", "*/scans/random_plane-0000", 1),
    "report-at-the-page": ("report", "report", "*/report/index.html", 1),
    "report-at-its-end": ("report", "report", "*/report/inputs.json", 1),
}


def work_done(renames, outputs, missing):
    """What was renamed into the work folders of these results: checkpoints, evaluated chunks, and marks of progress."""
    kind, _, name = missing.partition("/")
    prefix = f"t/{kind}/.{name}.work/" if name else f"t/{kind}/."
    places = (str(target.relative_to(outputs)) for _, target in renames)
    return Counter(place for place in places if place.startswith(prefix) and ".work/" in place)


@pytest.mark.parametrize("kill", KILLS)
def test_killed_and_started_again(lowloss, whole, tmp_path, kill):
    stage, missing, place, count = KILLS[kill]
    root = whole.copy(tmp_path, missing)
    folder = root / missing.split("/")[0]
    killed = lowloss.tiny(tmp_path, f"stages=[{stage}]", strike=("SIGKILL", place, count))
    assert killed.status == -9, killed.err
    *renamed, (_, struck) = killed.renames
    assert struck.match(place)
    assert not struck.exists() or struck.name in ("last.ckpt", "reached.safetensors")
    assert stage == "report" or list(folder.glob(".*.work"))

    again = lowloss.tiny(tmp_path, f"stages=[{stage}]")
    assert again.status == 0, again.err
    assert not list(folder.glob(".*.work"))
    shown = {name: value for name, value in lowloss.results(root).items() if "/." not in name}
    assert shown == lowloss.results(whole.root)
    assert (root / "report" / "index.html").is_file()
    # Nothing was done twice, but for what was about to be put into its place, and what is collected with it.
    while struck.name == "last.ckpt" and renamed and renamed[-1][1].name.startswith("collected-"):
        renamed.pop()
    done = work_done([*renamed, *again.renames], tmp_path, missing)
    assert done == work_done(whole.made.renames, whole.outputs, missing)
    assert done or stage == "report"


OTHERS = """
    model=mlp model.hidden=[4] data=tiny minima.count=3 minima.epochs=1 minima.batch_size=16 finder=[line] path.points=3
    path.bracket=1 path.pairs=[[0,1]] connector.m=[2] connector.resolution=2 connector.steps=4 connector.batch_size=16
    connector.samples=10 width.directions=70 width.minima=[0] dimension.dims=[1,3] dimension.repeats=1 dimension.steps=2
    dimension.batch_size=16 curvature.samples=16 curvature.products=4 curvature.trace=null curvature.density=null
    curvature.pivots=5 permutation.pairs=[[0,1]] permutation.steps=3 permutation.iterations=2 permutation.order=2
"""
STAGES = ("connector", "width", "dimension", "curvature", "permutation")
# As KILLS, of the stages that are not among the default ones.
OTHER_KILLS = {
    "connector-in-evaluation": ("connector", "connectors/m02", "*/points-000016.safetensors", 1),
    "width-between-directions": ("width", "widths/0000", "*/points-000064.safetensors", 1),
    "dimension-after-descent": ("dimension", "dimensions/initial-00", "*/round-0/points-000000.safetensors", 1),
    "curvature-between-points": ("curvature", "spectra/0000-0001-line", "*/points-000004.safetensors", 1),
    "permutation-in-the-second-order": ("permutation", "permutations", "*/order-2-0001.safetensors", 1),
}


@pytest.fixture(scope="module")
def others(lowloss, tmp_path_factory):
    outputs = tmp_path_factory.mktemp("others")
    made = lowloss(outputs, *OTHERS.split(), f"stages=[minima,path,{','.join(STAGES)}]")
    assert made.status == 0, made.err
    return outputs, made


@pytest.mark.parametrize("kill", OTHER_KILLS)
def test_other_stages_killed_and_started_again(lowloss, others, tmp_path, kill):
    (outputs, made), (stage, missing, place, count) = others, OTHER_KILLS[kill]
    shutil.copytree(outputs / "t", tmp_path / "t")
    shutil.rmtree(tmp_path / "t" / missing)
    command = (*OTHERS.split(), f"stages=[{stage}]")
    killed = lowloss(tmp_path, *command, strike=("SIGKILL", place, count))
    assert killed.status == -9, killed.err
    *renamed, (_, struck) = killed.renames
    assert struck.match(place)
    again = lowloss(tmp_path, *command)
    assert again.status == 0, again.err
    assert lowloss.results(tmp_path / "t") == lowloss.results(outputs / "t")
    done = work_done([*renamed, *again.renames], tmp_path, missing)
    assert done == work_done(made.renames, outputs, missing)
    assert renamed
    assert done


@pytest.mark.parametrize("signal", ["SIGINT", "SIGTERM"])
def test_interrupted_politely(lowloss, whole, tmp_path, signal):
    root = whole.copy(tmp_path, "minima")
    interrupted = lowloss.tiny(tmp_path, "stages=[minima]", strike=(signal, "*/last.ckpt", 2))
    assert not list((root / "minima").glob("[!.]*"))
    assert "Traceback" not in interrupted.err
    again = lowloss.tiny(tmp_path, "stages=[minima]")
    assert again.status == 0, again.err
    assert lowloss.results(root) == lowloss.results(whole.root)
    # A job script must not take the stopped run for a finished one.
    assert interrupted.status == {"SIGINT": 130, "SIGTERM": 143}[signal]
    assert interrupted.err.splitlines()[-1] == "lowloss: interrupted; the same command continues"


def test_sixty_minima_train_together_and_a_killed_command_knows_them(lowloss, tmp_path):
    """A work folder that named them all would have too long a name."""
    sixty = ("model=mlp", "model.hidden=[2]", "minima.count=60", "minima.epochs=2", "stages=[minima]")
    killed = lowloss(tmp_path, *sixty, strike=("SIGKILL", "*/last.ckpt", 2))
    assert killed.status == -9, killed.err
    (work,) = (tmp_path / "t" / "minima").glob(".rows-*.work")
    names = [f"{k:04d}" for k in range(60)]
    assert json.loads((work / "rows.json").read_text()) == names
    # What has begun goes on as it began, whatever is asked for now.
    again = lowloss(tmp_path, *sixty, "minima.together=7")
    assert again.status == 0, again.err
    assert again.err.count("minima 60 ×") == 1
    assert sorted(path.name for path in (tmp_path / "t" / "minima").glob("[!.]*")) == names


# As KILLS, and the file of which after the kill a bit is flipped, or half is cut off.
DAMAGED = {
    "checkpoint": ("minima", "minima", "*/last.ckpt", 3, "last.ckpt"),
    "evaluation": ("minima", "minima", "*/points-000001.safetensors", 1, "points-000000.safetensors"),
    "search": ("path", "paths/0000-0001-autoneb", "*/phase-01/last.ckpt", 1, "reached.safetensors"),
    "search-checkpoint": ("path", "paths/0000-0001-autoneb", "*/phase-01/last.ckpt", 2, "last.ckpt"),
}


@pytest.mark.parametrize("case", DAMAGED)
def test_damaged_work_is_named_and_its_remedy_works(lowloss, whole, tmp_path, case):
    stage, missing, place, count, name = DAMAGED[case]
    root = whole.copy(tmp_path, missing)
    assert lowloss.tiny(tmp_path, f"stages=[{stage}]", strike=("SIGKILL", place, count)).status == -9
    (file,) = root.rglob(name)
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    file.write_bytes(content if name != "reached.safetensors" else content[: len(content) // 2])
    refused = lowloss.tiny(tmp_path, f"stages=[{stage}]")
    assert str(file) in refused.message
    assert (
        str(file) in lowloss.plain(tmp_path, "verify", str(root)).out or stage == "minima"
    )  # else nothing is there yet
    shutil.rmtree(re.search(r"delete (\S+)", refused.message)[1])
    again = lowloss.tiny(tmp_path, f"stages=[{stage}]")
    assert again.status == 0, again.err
    assert lowloss.results(root) == lowloss.results(whole.root)


class Evil:
    def __init__(self, file):
        self.file = file

    def __reduce__(self):
        return Path.touch, (self.file,)


def test_no_code_is_run_from_a_checkpoint(lowloss, tmp_path):
    torch = pytest.importorskip("torch")
    assert lowloss.tiny(tmp_path, "stages=[minima]", strike=("SIGKILL", "*/last.ckpt", 3)).status == -9
    (file,) = tmp_path.rglob("last.ckpt")
    checkpoint = torch.load(file, weights_only=True)
    torch.save(checkpoint | {"evil": Evil(tmp_path / "touched")}, file)
    seal_archive(file)
    assert str(file) in lowloss.tiny(tmp_path, "stages=[minima]").message
    assert not (tmp_path / "touched").exists()


def test_damaged_minimum_is_named_and_its_remedy_works(lowloss, whole, tmp_path):
    missing = ("paths/0000-0001-line", "ensembles/independent-3")
    root = whole.copy(tmp_path, *missing)
    file = root / "minima" / "0001" / "result.safetensors"
    file.write_bytes(file.read_bytes()[:100])
    for stage in ("path", "ensemble"):
        refused = lowloss.tiny(tmp_path, f"stages=[{stage}]")
        assert str(file) in refused.message
    assert not any((root / name).exists() for name in missing)
    shutil.rmtree(re.search(r"delete (\S+)", refused.message)[1])
    again = lowloss.tiny(tmp_path)
    assert again.status == 0, again.err
    assert lowloss.results(root) == lowloss.results(whole.root)
