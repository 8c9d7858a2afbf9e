"""How far studies and sweeps are: records of processes, what is gathered of them, and the two that show it."""

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from lowloss import LowlossError, processes, progress, status

_spec = importlib.util.spec_from_file_location("browser", Path(__file__).with_name("browser.py"))
browser = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(browser)

PLAN = {"minima": ["minima", ["0000", "0001", "0002"]], "report": [None, []]}


@pytest.fixture
def study(tmp_path):
    """A study of which one minimum of three is complete, and took two minutes."""
    done = tmp_path / "outputs" / "s" / "minima" / "0000"
    done.mkdir(parents=True)
    (done / "result.safetensors").touch()
    (done / "provenance.json").write_text('{"seconds_since_last_start": 120}')
    return done.parents[1]


@pytest.fixture
def record(study, monkeypatch):
    """The record of this process, at work on the second minimum."""
    monkeypatch.setattr(progress, "BEAT", 0)
    record = progress.Record(study, lambda: PLAN)
    monkeypatch.setattr(progress, "record", record)
    assert not record.file.exists()  # nothing is done yet
    progress.at("minima/0001")
    with progress.bar("minima 1 × 10 parameters", 100) as advance:
        advance(10, "")
        for step in range(20, 70, 10):
            advance(step, f"loss {100 / step**2:.3g}")
    return record


def test_what_is_at_work_is_told(study, record):
    found = status.gather(study)
    (one,) = found.studies
    assert (one.state, found.goes_on) == ("at work", True)
    assert [(stage.name, stage.done, stage.total) for stage in one.stages] == [("minima", 1, 3), ("report", 0, 1)]
    (work,) = one.work
    assert (work.at, work.done, work.total, work.note) == ("minima/0001", 60, 100, "loss 0.0278")
    assert work.who.startswith(f"process {os.getpid()} on ")
    assert (work.losses[0], work.losses[-1], len(work.losses)) == ("█", "▁", 5)
    # What is left of this one takes next to nothing, the third as long as the first.
    assert one.left == pytest.approx(120, abs=5)
    text = status.as_text(found)
    assert "1 study: 1 at work; about 2 min left" in text
    assert "minima 1 × 10 parameters 60/100, loss 0.0278, about 0 s left █" in text


def test_what_failed_is_told_with_its_last_lines(study, record):
    progress.say("study: s")
    record.end("lower the rate", ["lowloss: lower the rate"])
    (one,) = status.gather(study.parent).studies
    assert (one.state, one.why, one.lines) == ("failed", "lower the rate", ["study: s", "lowloss: lower the rate"])
    assert status.logs(study, 1) == "lowloss: lower the rate"
    # Also if it failed before anything was made.
    shutil.rmtree(study / "minima")
    assert [one.state for one in status.gather(study.parent).studies] == ["failed"]
    # Another command that ends well makes up for it, and leaves nothing.
    again = progress.Record(study, lambda: PLAN)
    again.tell(work={})
    left = study / progress.FOLDER / "1-x.new"
    left.write_text("{")  # of a disk that was full
    os.utime(left, (0, 0))
    again.end(None)
    assert not (study / progress.FOLDER).exists()
    with pytest.raises(LowlossError, match="holds no study"):
        status.gather(study)


def test_what_failed_before_anything_was_made_is_told(lowloss, tmp_path):
    (tmp_path / "my_net.py").write_text(
        "from torch import nn\n\n\nclass MyNet(nn.Linear):\n    def forward(self, x):\n        raise RuntimeError\n"
    )
    own = ("model._target_=my_net.MyNet", "+model.in_features=64", "+model.out_features=10")
    without = ("~model.hidden", "~model.batch_norm", "~model.activation")
    failed = lowloss.plain(tmp_path, "model=mlp", *own, *without, "trainer=cpu", "study=a b", "scale=tiny")
    assert failed.status == 1
    (one,) = status.gather(tmp_path / "outputs").studies
    assert (one.state, one.lines[-1]) == ("failed", failed.message)
    assert status.logs(tmp_path / "outputs" / "a b", None).endswith(failed.message)
    # What is there stays as it is.
    done = tmp_path / "outputs" / "done"
    (done / "minima" / "0000").mkdir(parents=True)
    (done / "minima" / "0000" / "result.safetensors").touch()
    progress.Record(done, lambda: PLAN).end("other settings")
    assert not (done / progress.FOLDER).exists()


def test_a_process_that_is_gone_has_stopped(study, record):
    ended = subprocess.Popen(["true"])
    gone = processes.identity(ended.pid) | {"started": "0"}
    ended.wait()
    record.tell(now=True, owner=gone)
    (one,) = status.gather(study).studies
    assert one.state == "stopped"
    assert "is gone without a word" in one.why
    # Of another host, what was touched lately counts.
    record.tell(now=True, owner=gone | {"host": "elsewhere"})
    assert status.gather(study).studies[0].state == "at work"
    os.utime(record.file, (0, 0))
    assert status.gather(study).studies[0].state == "stopped"
    (study / "minima" / ".0001.claim").touch()
    assert status.gather(study).studies[0].state == "at work"


def test_a_command_that_has_nothing_left_to_do_forgets_processes_that_are_gone(lowloss, whole, tmp_path):
    root = whole.copy(tmp_path)
    # Killed after its last artifact, before the record was taken away.
    gone = processes.identity(os.getpid()) | {"started": "0"}
    progress.Record(root, lambda: PLAN).tell(now=True, work={}, owner=gone)
    assert [one.state for one in status.gather(root).studies] == ["stopped"]
    assert lowloss.tiny(tmp_path).status == 0
    assert [one.state for one in status.gather(root).studies] == ["done"]
    assert not (root / progress.FOLDER).exists()


def test_a_study_that_has_just_begun_is_not_done(study, tmp_path):
    claim = study / "minima" / ".0001.claim"
    claim.write_text(json.dumps(processes.identity(os.getpid())))
    assert status.gather(study).studies[0].state == "at work"
    pages = status.watch(study, tmp_path / "page.html", 1)
    page = next(pages)
    assert "http-equiv" in page.read_text()
    pages.close()
    assert "no longer written" in page.read_text()
    claim.write_text(json.dumps(processes.identity(os.getpid()) | {"started": "1"}))  # of a process that is gone
    assert status.gather(study).studies[0].state == "done"
    (study / "minima" / ".0001.work").mkdir()
    (one,) = status.gather(study).studies
    assert (one.state, one.why) == ("stopped", "something is half made; the same command continues")


def test_a_finished_study_of_which_a_result_is_gone_is_not_done(whole, tmp_path):
    root = whole.copy(tmp_path)
    assert status.gather(root).studies[0].state == "done"
    shutil.rmtree(root / "paths" / "0000-0001-line")
    (one,) = status.gather(root).studies
    assert (one.state, one.why) == (
        "stopped", "paths/0000-0001-line is missing: the same command makes what is missing"
    )  # fmt: skip
    # Without a report, what is there tells from what it was made; a result without its file is none.
    shutil.rmtree(root / "report")
    assert status.gather(root).studies[0].state == "done"
    shutil.rmtree(root / "minima" / "0001")
    (root / "paths" / "0000-0001-bezier" / "result.safetensors").unlink()
    text = status.as_text(status.gather(root))
    assert "STOPPED" in text
    assert "minima/0001, paths/0000-0001-bezier are missing: the same command" in text


def test_what_strangers_left_hinders_nothing(study, record):
    (study / progress.FOLDER / "1-a.json").write_text("[")
    (study / progress.FOLDER / "1-b.json").write_text("[]")
    (study / progress.FOLDER / "1-c.json").write_text(json.dumps(record.held | {"lines": 3, "stages": 4}))
    sweep = study.parent / ".sweeps" / "s"
    sweep.mkdir(parents=True)
    (sweep / ".jobs.json").write_text("7")
    (one,) = status.gather(study.parent).studies
    assert "is unreadable" in one.why
    with pytest.raises(LowlossError, match="holds no study"):
        status.gather(study.parent / "nothing")
    with pytest.raises(LowlossError, match="there is no log"):
        status.logs(study.parent / "nothing")


def test_jobs_of_a_sweep_wait_run_and_stop(study):
    sweep = study.parent / ".sweeps" / "now"
    sweep.mkdir(parents=True)
    names = ("a", "b", "c", "d")
    jobs = [{"study": f"t/{name}", "log": f"t/{name}.log"} for name in names]
    told = {"launcher": "local", "owner": processes.identity(os.getpid()), "jobs": jobs}
    (sweep / ".jobs.json").write_text(json.dumps(told))
    (sweep / "t").mkdir()
    for name in ("a", "b", "c"):
        (sweep / "t" / f"{name}.log").write_text("study: x\n\nlowloss: too large\n")
    (sweep / "t" / "a.json").write_text('{"status": 1, "reason": "too large", "value": null, "seconds": 3.0}')
    (sweep / "t" / "b.json").write_text('{"status": 0, "seconds": 60.0}')
    found = status.gather(study.parent / "t")
    assert {Path(one.study).name: one.state for one in found.studies} == dict(
        zip(names, ("failed", "done", "at work", "waiting"), strict=True)
    )
    failed = found.of("failed")[0]
    assert (failed.why, failed.lines) == ("too large", ["study: x", "lowloss: too large"])
    assert status.logs(study.parent / "t" / "a").splitlines()[-1] == "lowloss: too large"
    assert [line.split()[0] for line in status.logs(study.parent / "t").splitlines()] == [
        "state", "failed", "done", "at"
    ]  # fmt: skip
    # Once the launcher is gone, nothing runs any more.
    (sweep / ".jobs.json").write_text(json.dumps(told | {"owner": told["owner"] | {"started": "0"}}))
    assert {one.state for one in status.gather(study.parent / "t").studies} == {"failed", "done", "stopped"}


def test_studies_of_two_sweeps_are_told_apart(study):
    for name in ("one", "two"):
        shutil.copytree(study, study.parent / name / "seed=0")
    assert "done (3): one/seed=0; s; two/seed=0" in status.as_text(status.gather(study.parent))


def test_without_a_terminal_there_is_a_line_now_and_then(monkeypatch, capsys):
    from rich.console import Console

    monkeypatch.setattr(progress, "console", Console(stderr=True, highlight=False, width=100))
    monkeypatch.setattr(progress, "shown", True)
    monkeypatch.setattr(progress, "EVERY", 0)
    with progress.bar("autoneb 0–1", 4) as advance:
        for step in range(1, 5):
            advance(step, "loss 0.5")
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(", ")[0] for line in lines[:-1]] == [f"autoneb 0–1: {step}/4" for step in (1, 2, 3)]
    assert lines[1].endswith("loss 0.5, about 0 s left")
    assert "4/4" in lines[-1]


@pytest.mark.parametrize(("seconds", "said"), [(4.6, "5 s"), (150, "2 min"), (3900, "1 h 5 min"), (200_000, "2 days")])
def test_durations(seconds, said):
    assert progress.duration(seconds) == said


def test_the_page_is_written_until_all_has_ended(study, record, tmp_path, monkeypatch):
    record.lines.append("<script>alert(1)</script>")
    file, refreshed = study / "watch.html", []
    for page in status.watch(study, None, 0.01):
        assert page == file
        refreshed.append('http-equiv="refresh"' in file.read_text())
        if len(refreshed) == 2:
            record.end("<b>it broke</b>")
    assert refreshed == [True, True, False]
    with browser.start(tmp_path / "profile") as driver:
        for width in (1280, 390):
            driver.set_window_size(width, 900)
            driver.get(file.as_uri())
            body = driver.find_element("css selector", "body").text
            assert "<b>it broke</b>" in body
            assert "<script>alert(1)</script>" in body
            assert "minima 1/3" in " ".join(body.split())
            assert driver.execute_script("return document.documentElement.scrollWidth <= window.innerWidth")
        assert [entry for entry in driver.get_log("browser") if entry["level"] == "SEVERE"] == []


def test_commands_are_told_what_is_wrong_in_a_line(tmp_path):
    for arguments in (["status", "nothing"], ["logs", "nothing"], ["watch", "nothing", "--every", "0"]):
        done = subprocess.run(
            [sys.executable, "-m", "lowloss", *arguments], cwd=tmp_path, capture_output=True, text=True, timeout=60
        )
        assert (done.returncode, len(done.stderr.splitlines())) == (1, 1), done.stderr
