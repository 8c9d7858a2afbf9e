"""What the runner of jobs sees to, with jobs that compute next to nothing."""

import json
import os
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch

from lowloss import LowlossError, claims
from lowloss.jobs.base import Job
from lowloss.jobs.runner import make, make_jobs, tidy
from lowloss.study import RESULT, Result, Study


class Plain(Job):
    """Keeps a tensor; `during` is called with the work folder while it is made."""

    kind, stage = "things", "thing"

    def __init__(self, study, name, during=lambda work: None, needed=()):
        landscape = SimpleNamespace(task=SimpleNamespace(units={"loss": "nats"}), arithmetic="none")
        bench = {"several": False, "command": "lowloss", "tell_logger": lambda: None}
        super().__init__(SimpleNamespace(study=study, landscape=landscape, **bench), name)
        self.during, self.needed = during, needed

    def needs(self):
        return self.needed

    def own_settings(self):
        return {"thing": {self.name: 1}}

    def make(self, work):
        self.during(work)
        (work / "part").touch()
        return Result({"x": torch.arange(3)}, {})


class StoppedError(Exception):
    pass


def stop(work):
    (work / "part").touch()
    raise StoppedError


@pytest.fixture
def study(tmp_path):
    return Study(tmp_path / "t")


@pytest.fixture
def threads():
    now = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(now)


def test_work_continues_with_the_threads_that_it_was_begun_with(study, threads, monkeypatch):
    from lowloss import progress

    told, seen = [], []
    monkeypatch.setattr(progress, "say", told.append)
    threads(2)
    with pytest.raises(StoppedError):
        make([Plain(study, "a", stop)])
    threads(1)
    make([Plain(study, "a", lambda _: seen.append(torch.get_num_threads()))])
    assert seen == [2]
    assert torch.get_num_threads() == 1
    assert told == [".a.work was begun with 2 threads, not 1, and continues with 2"]
    # The result tells of the threads that made it.
    assert json.loads((study.artifact("things", "a").folder / "provenance.json").read_text())["threads"] == 2
    make([Plain(study, "b", lambda _: seen.append(torch.get_num_threads()))])
    assert seen == [2, 1]
    assert len(told) == 1


def test_several_devices_are_told_to_run_with_the_threads_of_before(study, threads):
    threads(2)
    with pytest.raises(StoppedError):
        make([Plain(study, "a", stop)])
    threads(1)
    job = Plain(study, "a")
    job.bench.several = True
    with pytest.raises(LowlossError, match="OMP_NUM_THREADS=2, or delete"):
        make([job])


@pytest.mark.parametrize("damage", [b"\xff", b"", b"null\n", b'{"threads": 9}\n0\n'])
def test_a_damaged_record_of_the_beginning_is_told(study, damage):
    with pytest.raises(StoppedError):
        make([Plain(study, "a", stop)])
    file = study.artifact("things", "a").work / "begun.json"
    file.write_bytes(damage)
    with pytest.raises(LowlossError, match=r"begun\.json is unreadable .*: delete .*/\.a\.work and run"):
        make([Plain(study, "a")])


def replace_by_another(artifact):
    """A whole and right result of other numbers, in the place of one."""
    other = Plain(Study(artifact.folder.parent / "elsewhere"), artifact.name)
    other.make = lambda work: Result({"x": torch.arange(4)}, {})
    make([other])
    (artifact.folder / RESULT).write_bytes((other.artifact.folder / RESULT).read_bytes())


def test_work_is_not_continued_from_another_input(study):
    first = Plain(study, "first")
    make([first])
    with pytest.raises(StoppedError):
        make([Plain(study, "a", stop, [first])])
    replace_by_another(first.artifact)
    with pytest.raises(LowlossError, match=r"was begun from another things/first .*: delete .*/\.a\.work to start"):
        make([Plain(study, "a", needed=[first])])


def test_what_was_made_from_another_input_is_noticed(study):
    first = Plain(study, "first")
    derived = Plain(study, "a", needed=[first])
    make_jobs("things", [first])
    make_jobs("things", [derived])
    assert derived.complete
    assert derived.artifact.record()[1] == {"things/first": first.artifact.digest}
    replace_by_another(first.artifact)
    with pytest.raises(LowlossError, match="a was made from another things/first than the one that is there now"):
        make_jobs("things", [derived])


def taken_over(claim):
    """A claim as it is once a process of another host has taken it over."""
    owner = {"host": "elsewhere", "pid": 1, "started": "1", "token": "x"}
    claim.write_text(json.dumps(owner))


def test_who_took_over_an_aged_claim_and_who_resumes_then_both_end_well(study):
    """The first one is suspended in the middle of its work; both are in one work folder, and the first is faster."""
    suspended, resumed = threading.Event(), threading.Event()

    def suspend(work):
        suspended.set()
        assert resumed.wait(60)

    def overtaken(work):
        (work / "mine").touch()
        resumed.set()
        first.result(60)  # which has committed the result by now
        (work / "mine").rename(work / "renamed")  # as a checkpoint is put into its place

    artifact = study.artifact("things", "a")
    with ThreadPoolExecutor() as pool:
        first = pool.submit(make_jobs, "things", [Plain(study, "a", suspend)])
        assert suspended.wait(60)
        taken_over(artifact.claim)
        os.utime(artifact.claim, (0, 0))
        with claims.take(artifact.claim) as claim:
            make([Plain(study, "a", overtaken)], [claim])
    first.result()
    assert artifact.complete
    assert [path.name for path in artifact.folder.parent.iterdir()] == ["a"]


class Row(Plain):
    """Trains with others, one of them alone here."""

    rows = True

    def renamed(self, name):
        return Row(self.bench.study, name, self.during)


def test_who_resumes_after_others_were_done_leaves_no_folder(study):
    """The other process has made both results, and removed the work folder, before the first one writes into it."""

    def overtaken(work):
        for job in others:
            taken_over(job.artifact.claim)
        make(others)
        assert not work.exists()
        work.mkdir()

    others = [Row(study, "a"), Row(study, "b")]
    group = [Row(study, "a", overtaken), Row(study, "b")]
    held = [claims.take(job.artifact.claim) for job in group]
    make(group, held)
    for claim in held:
        claim.release()
    assert [path.name for path in study.root.glob("things/*.work")] == []


def test_what_is_refused_before_anything_is_done_leaves_no_folder(study):
    def refuse(work):
        assert (work / "config.yaml").exists()
        raise LowlossError("no")

    with pytest.raises(LowlossError, match="no"):
        make([Row(study, "a", refuse)])
    assert list((study.root / "things").iterdir()) == []


def test_who_fails_after_losing_its_claim_leaves_the_work_to_the_other(study, monkeypatch):
    told = []
    monkeypatch.setattr("lowloss.progress.say", told.append)
    artifact = study.artifact("things", "a")

    def lose(work):
        taken_over(artifact.claim)
        raise OSError("the other one has removed this")

    claim = claims.take(artifact.claim)
    make([Plain(study, "a", lose)], [claim])
    claim.release()
    assert told == ["things/a is left to the process that took it over"]
    assert artifact.work.is_dir()
    assert artifact.claim.exists()


def test_what_another_process_removes_is_looked_for_again(study):
    times = []

    def removed(work):
        times.append(1)
        if len(times) < 3:
            shutil.rmtree(work)

    with claims.take(study.artifact("things", "a").claim) as claim:
        make([Plain(study, "a", removed)], [claim])
    assert len(times) == 3
    times.clear()
    with pytest.raises(FileNotFoundError):  # its own doing
        make([Plain(study, "b", removed)])


def test_nothing_is_left_beside_complete_results(study):
    folder = study.root / "things"
    make_jobs("things", [Plain(study, "a"), Plain(study, "b")])
    aged = [".a.claim-0123abcd", ".c.claim-0123abcd", ".takeover.lock"]
    for name in (*aged, ".b.claim-fresh"):
        (folder / name).touch()
    for name in aged:
        os.utime(folder / name, (0, 0))
    for name in (".a.work", ".b.new-0123abcd", ".c.work", ".rows-01.work", ".rows-02.work", ".rows-03.work"):
        (folder / name).mkdir()
        (folder / name / "part").touch()
    (folder / ".rows-01.work" / "rows.json").write_text('["a", "b"]')
    (folder / ".rows-02.work" / "rows.json").write_text('["a", "c"]')
    os.utime(folder / ".rows-03.work", (0, 0))  # nothing tells whose it is
    dead = {**json.loads(claims.take(study.artifact("things", "a").claim).content), "started": "long ago"}
    (folder / ".a.claim").write_text(json.dumps(dead))
    tidy(folder)
    # What is not complete waits, and what is a moment old may be in use.
    assert sorted(path.name for path in folder.iterdir()) == [".b.claim-fresh", ".c.work", ".rows-02.work", "a", "b"]
    (folder / ".b.work").mkdir()
    with claims.take(study.artifact("things", "b").claim):
        tidy(folder)
        assert (folder / ".b.work").exists()
