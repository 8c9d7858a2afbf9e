"""Two users of one group share a study, by whole commands."""

import os
import shutil
import tempfile
from pathlib import Path

import pytest

FIRST, SECOND, STRANGER, GROUP = 64_101, 64_102, 64_103, 64_100
STUDY = (
    "model=mlp", "model.hidden=[8]", "minima.count=3", "minima.epochs=3", "finder=[line,bezier]",
    "finder.bezier.steps=40", "path.points=5", "path.between=0", "scan=[]", "ensemble=[independent]",
)  # fmt: skip


@pytest.fixture
def shared():
    """A folder that the group may write; pytest's own are for one user."""
    folder = Path(tempfile.mkdtemp())
    os.chown(folder, FIRST, GROUP)
    folder.chmod(0o2770)
    yield folder
    shutil.rmtree(folder)


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_two_users_go_on_with_each_others_work(lowloss, shared):
    killed = lowloss(shared, *STUDY, user=[FIRST, GROUP], strike=["SIGKILL", "*/paths/0000-0002-line", 1])
    assert killed.status == -9, killed.err
    root = shared / "t"
    assert {path.stat().st_uid for path in root.rglob("*")} == {FIRST}
    assert list(root.glob("paths/.*.claim"))
    done = lowloss(shared, *STUDY, user=[SECOND, GROUP])
    assert done.status == 0, done.err
    owners = {path.name: path.stat().st_uid for path in (root / "minima").iterdir()}
    assert owners == dict.fromkeys(("0000", "0001", "0002"), FIRST)
    assert (root / "paths" / "0000-0002-line").stat().st_uid == SECOND
    assert (root / "report" / "index.html").stat().st_uid == SECOND
    assert not list(root.rglob(".*"))
    # The first one again, on what the second one made: another path makes the report anew.
    more = lowloss(shared, *STUDY, "path.pairs=all", user=[FIRST, GROUP])
    assert more.status == 0, more.err
    assert (root / "paths" / "0001-0002-line").stat().st_uid == FIRST
    assert (root / "report" / "index.html").stat().st_uid == FIRST
    assert all(path.stat().st_gid == GROUP for path in root.rglob("*"))


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_a_stranger_is_told_in_a_line_what_he_may_not_write(lowloss, shared):
    shared.chmod(0o2775)
    made = lowloss(shared, *STUDY, "stages=[minima]", user=[FIRST, GROUP])
    assert made.status == 0, made.err
    message = lowloss(shared, *STUDY, user=[STRANGER, STRANGER]).message
    assert "Permission denied" in message
    assert str(shared / "t") in message
