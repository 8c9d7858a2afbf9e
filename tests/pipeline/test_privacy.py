"""What is written may be shared: commands without secrets, and files with the permissions that the umask leaves."""

import os
import re
import shlex
import shutil
import stat
import tempfile
from pathlib import Path

import pytest
import torch

from lowloss import claims, files
from lowloss.study import Result, Study, pasteable

KEPT = ["model=mlp", "data.path=/a b/c.npz", "finder.autoneb.cycles=[{steps: 10, lr: 0.1}]", "model.num_tokens=5",
        "data.tokenizer=bpe", "~recipe"]  # fmt: skip


def test_a_command_can_be_pasted_as_it_was():
    assert shlex.split(pasteable(KEPT)) == ["lowloss", *KEPT]


@pytest.mark.parametrize(
    ("given", "kept"),
    [
        ("+logger.api_key=hunter2", "+logger.api_key=???"),
        ("logger.token='hunter2 and more'", "logger.token=???"),
        ("+data.hf_token=hunter2", "+data.hf_token=???"),
        ("password=hunter2", "password=???"),
        ("+logger={api_key: hunter2, project: x}", "+logger={api_key: ???, project: x}"),
        ("+logger={a: {secret: 'hunter2, x'}}", "+logger={a: {secret: ???}}"),
        ("data.path='https://me:hunter2@host/x'", "data.path='https://me:???@host/x'"),
        ("+a=[s3://k:p@ss@h:80/x,http://h:80/@y]", "+a=[s3://k:???@h:80/x,http://h:80/@y]"),
    ],
)
def test_values_of_keys_that_look_like_secrets_are_left_out(given, kept):
    assert shlex.split(pasteable(["model=mlp", given])) == ["lowloss", "model=mlp", kept]


@pytest.mark.parametrize("mask", [0o002, 0o022, 0o077])
def test_permissions_are_those_that_the_umask_leaves(tmp_path, mask):
    before = os.umask(mask)
    try:
        study = Study(tmp_path / "t")
        artifact = study.artifact("things", "a")
        artifact.commit({}, Result({"x": torch.arange(3)}, {}), 0, "none", {})
        files.write_text(study.root / "summary.csv", "x\n")
        claims.take(artifact.claim)
        found = [study.root, *study.root.rglob("*")]
    finally:
        os.umask(before)
    assert len(found) == 9
    for path in found:
        whole = 0o777 if path.is_dir() else 0o666
        assert stat.S_IMODE(path.stat().st_mode) == whole & ~mask, path


def test_hydra_is_one_that_blocks_the_worst_targets():
    project = (Path(__file__).parents[2] / "pyproject.toml").read_text()
    least = re.search(r'"hydra-core>=(\d+)\.(\d+)\.(\d+)', project)
    assert tuple(map(int, least.groups())) >= (1, 3, 8)


def as_user(user, group, work):
    """Whether `work` succeeds in a process of another user, whose group may write what he makes."""
    child = os.fork()
    if not child:
        status = 1
        try:
            os.setgroups([])
            os.setgid(group)
            os.setuid(user)
            os.umask(0o002)
            status = 0 if work() else 1
        finally:
            os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root, to be two users")
def test_two_users_share_a_folder_that_their_group_may_write():
    first, second, group = 64_101, 64_102, 64_100
    folder = Path(tempfile.mkdtemp())  # pytest's own folders are for one user
    try:
        os.chown(folder, first, group)
        folder.chmod(0o2770)
        study = Study(folder / "t")
        artifact = study.artifact("things", "a")

        def begin():
            """And be killed: the claim and the work stay."""
            files.write_text(artifact.work / "config.yaml", "{}\n")
            files.write_text(study.root / "summary.csv", "x\n")
            return claims.take(artifact.claim) is not None

        def follow():
            claim = claims.take(artifact.claim)
            files.write_text(artifact.work / "config.yaml", "{a: 1}\n")
            files.write_text(study.root / "summary.csv", "y\n")
            artifact.commit({}, Result({"x": torch.arange(3)}, {}), 0, "none", {})
            shutil.rmtree(artifact.work)
            claim.release()
            return True

        assert as_user(first, group, begin)
        assert not as_user(64_103, 64_104, artifact.claim.read_bytes)
        assert as_user(second, group, follow)
        assert as_user(first, group, lambda: artifact.load()[1] == {})
        assert sorted(path.name for path in artifact.folder.parent.iterdir()) == ["a"]
        assert (study.root / "summary.csv").stat().st_uid == second
    finally:
        shutil.rmtree(folder)
