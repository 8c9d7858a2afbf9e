"""The script that disturbs a study: what it says and leaves when it is stopped, and each of its damages by itself."""

import os
import random
import re
import shutil
import signal
import subprocess
import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pytest

from lowloss import claims
from lowloss.verify import verify

SCRIPT = Path(__file__).parents[2] / "scripts" / "soak.py"


def test_soak_tells_its_phases_and_cleans_up_when_it_is_stopped(tmp_path):
    command = [sys.executable, str(SCRIPT), "--seconds", "600", "--workers", "1"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout.readline() == "importing\n"
            assert process.stdout.readline() == "the undisturbed study\n"
            assert list(tmp_path.iterdir())
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 143
        finally:
            process.kill()
    # Neither a folder nor a disk.
    assert not [path for path in tmp_path.iterdir() if path.name.startswith("lowloss-soak")]
    assert str(tmp_path) not in Path("/proc/mounts").read_text()


def test_soak_ends_when_its_time_is_up(tmp_path):
    command = [sys.executable, str(SCRIPT), "--seconds", "0"]
    environment = {**os.environ, "TMPDIR": str(tmp_path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=240)
    assert done.returncode == 1
    assert "raise --seconds" in done.stdout


_spec = spec_from_file_location("damages", SCRIPT.with_name("damages.py"))
damages = module_from_spec(_spec)
_spec.loader.exec_module(damages)


def mended(root, line):
    """What a line of `verify` or an error says has to go."""
    found = re.search(r"delete (\S+?)(?:[:,]| and run| to start|$)", line)
    if found:
        place = Path(line.split()[0] if found[1] == "it" else found[1])
        assert place.is_relative_to(root)
        shutil.rmtree(place) if place.is_dir() else place.unlink(missing_ok=True)


def test_every_damage_of_a_finished_study_is_told_and_its_remedy_works(lowloss, whole, tmp_path):
    root, chance = whole.copy(tmp_path), random.Random(0)
    # All but the record of the report, without which nothing is known of its files.
    hit = [damage(root, chance) for name, damage in damages.FINISHED.items() if name != "cut the record"]
    _, found = verify(root)
    for place in hit:  # of a result any file, since a damage may hit what another one has hit
        of = root.joinpath(*place.relative_to(root).parts[:2])
        assert any(line.startswith((f"{of} ", f"{of}/")) for line in found), (place, found)
    record = damages.FINISHED["cut the record"](root, chance)
    assert any(line.startswith(f"{record} ") for line in verify(root)[1])
    while found:
        for line in found:
            mended(root, line)
        # Without those that were made from what was replaced nothing is left to tell.
        while (done := lowloss.tiny(tmp_path)).status:
            mended(root, done.message)
        _, found = verify(root)
    assert lowloss.results(root) == lowloss.results(whole.root)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", damages.FINISHED)
def test_a_damage_changes_the_file_that_it_tells(name, seed, whole, tmp_path):
    root = whole.copy(tmp_path)
    place = damages.FINISHED[name](root, random.Random(seed))
    for file in (file for file in whole.root.rglob("*") if file.is_file()):
        twin = root / file.relative_to(whole.root)
        assert (twin.read_bytes() == file.read_bytes()) or twin == place or place in twin.parents
    changed = place / "digests.json" if place.is_dir() else place
    assert changed.read_bytes() != (whole.root / changed.relative_to(root)).read_bytes()


def test_work_with_a_damaged_configuration_is_told_and_its_remedy_works(lowloss, whole, tmp_path):
    """test_interrupted.py has the flipped bits of checkpoints and points."""
    root = whole.copy(tmp_path, "paths/0000-0001-autoneb")
    assert lowloss.tiny(tmp_path, "stages=[path]", strike=("SIGKILL", "*/phase-01/last.ckpt", 2)).status == -9
    file = damages.UNFINISHED["no UTF-8 in work"](root, random.Random(0))
    refused = lowloss.tiny(tmp_path, "stages=[path]")
    assert str(file) in refused.message
    mended(root, refused.message)
    assert lowloss.tiny(tmp_path, "stages=[path]").status == 0
    assert lowloss.results(root) == lowloss.results(whole.root)


def test_a_claim_of_nobody_is_given_up(lowloss, whole, tmp_path, monkeypatch):
    missing = "scans/random_plane-0000"
    root = whole.copy(tmp_path, missing)
    monkeypatch.setattr(claims, "STALE", 0.2)
    for k in range(8):
        claim = damages.odd_claim(root, random.Random(k), [missing])
        with claims.wait_for(claim) as taken:
            assert taken.held
        assert not claim.exists()
