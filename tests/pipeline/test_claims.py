"""Claims: one process at a time works on a result, and a dead one's place is taken."""

import json
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import pytest

from lowloss import LowlossError, claims, processes

TAKE = "import sys, os, pathlib; from lowloss import claims; claim = claims.take(pathlib.Path(sys.argv[1])); {}"


@pytest.fixture
def file(tmp_path):
    return tmp_path / "kind" / ".0003.claim"


def left_by_another_host(file, **owner):
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_text(json.dumps({"host": "elsewhere", "pid": os.getpid(), "started": "1", "token": "x", **owner}))


def test_a_folder_in_the_place_of_a_claim_is_told(file):
    file.mkdir(parents=True)
    with pytest.raises(LowlossError, match="is a folder, in the place where a process claims its work: delete it"):
        claims.take(file)


def test_a_claim_is_held_by_one(file):
    with claims.take(file) as claim:
        assert claim.held
        assert claims.living(file)
        assert claims.take(file) is None
    assert not claims.living(file)
    with claims.take(file):
        pass
    assert list(file.parent.iterdir()) == []


def test_who_is_waited_for_is_told_once(file, monkeypatch):
    told = []
    monkeypatch.setattr(claims.progress, "say", told.append)
    monkeypatch.setattr(claims, "LONG", 0.001)
    left_by_another_host(file, host="there boot 1", pid=17)
    patience = claims.Patience()
    for _ in range(4):
        patience.wait(file)
    assert told == ["waiting for process 17 on there, which is at work on kind/0003"]
    claims.Patience().wait(file.with_name("gone"))  # finished meanwhile


def test_who_waits_goes_on_when_the_other_is_done(file):
    left_by_another_host(file)
    patience, began = claims.Patience(), time.monotonic()
    patience.seconds = 1000.0
    threading.Timer(0.1, file.unlink).start()
    patience.wait(file)
    assert time.monotonic() - began < 100


def test_a_dead_process_on_this_host_is_followed_at_once(file):
    subprocess.run([sys.executable, "-c", TAKE.format("os._exit(9)"), str(file)], check=False)
    assert file.exists()
    assert not claims.living(file)
    with claims.take(file) as claim:
        assert claim.held


def test_a_living_process_is_left_alone(file):
    waiting = TAKE.format("print(claim.held, flush=True); sys.stdin.read()")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", waiting, str(file)], **pipes) as other:
        assert other.stdout.readline() == b"True\n"
        assert claims.take(file) is None
        other.kill()
        other.wait()
        with claims.take(file) as claim:
            assert claim.held


def test_a_process_with_the_number_of_a_dead_one_does_not_hold_its_claim(file):
    claim = claims.take(file)
    owner = json.loads(claim.content)
    claim.release()
    left_by_another_host(file, host=owner["host"], pid=owner["pid"], started="long ago")
    with claims.take(file) as claim:
        assert claim.held


def test_another_host_is_given_time(file):
    left_by_another_host(file)
    for age, living in ((claims.STALE - 30, True), (claims.STALE + 30, False)):
        os.utime(file, (time.time() - age,) * 2)
        assert claims.living(file) is living
    with claims.take(file) as claim:
        assert claim.held


def test_a_claim_is_touched_while_it_is_held(file, monkeypatch):
    monkeypatch.setattr(claims, "BEAT", 0.01)
    with claims.take(file):
        os.utime(file, (0, 0))
        deadline = time.monotonic() + 10
        while file.stat().st_mtime == 0 and time.monotonic() < deadline:
            time.sleep(0.01)
        assert file.stat().st_mtime > time.time() - 60


DAMAGED = {
    "list": b"[1]",
    "null": b"null",
    "empty": b"",
    "binary": bytes(range(256)),
    "words": b'{"host": "elsewhere", "pid": "abc", "started": null}',
    "deep": b"[" * 100_000,
    "number": b'{"host": "elsewhere", "pid": 1' + b"0" * 400 + b"}",
}


@pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)
def test_a_claim_that_does_not_tell_whose_it_is_is_given_time(file, content, monkeypatch):
    told = []
    monkeypatch.setattr(claims.progress, "say", told.append)
    monkeypatch.setattr(claims, "LONG", 0.001)
    file.parent.mkdir()
    file.write_bytes(content)
    assert claims.living(file)
    assert claims.take(file) is None
    patience = claims.Patience()
    for _ in range(8):
        patience.wait(file)
    assert len(told) == 1
    assert "kind/0003" in told[0]
    os.utime(file, (0, 0))
    with claims.take(file) as claim:
        assert claim.held
    assert list(file.parent.iterdir()) == []


@pytest.mark.parametrize("content", [b"", None])
def test_a_claim_of_the_future_is_taken_over_once_it_has_not_changed_for_long(file, content, monkeypatch):
    left_by_another_host(file)
    if content is not None:
        file.write_bytes(content)
    tomorrow = time.time() + 86_400
    os.utime(file, (tomorrow, tomorrow))
    now = 0.0
    monkeypatch.setattr(claims.time, "monotonic", lambda: now)
    assert claims.take(file) is None
    now += claims.STALE - 1
    os.utime(file, (tomorrow, tomorrow + 20))  # a sign of life
    assert claims.take(file) is None
    now += claims.STALE - 1
    assert claims.take(file) is None
    now += 2
    with claims.take(file) as claim:
        assert claim.held


def test_a_process_that_proc_hides_is_judged_by_its_claims_age(file, monkeypatch):
    """As another user's under hidepid: its claim's file tells when it was started, and /proc nothing."""
    with claims.take(file) as claim:
        file.write_text(json.dumps({**json.loads(claim.content), "token": "another"}))
        monkeypatch.setattr(processes, "started", lambda pid: "running")
        assert claims.living(file)
        os.utime(file, (0, 0))
        assert not claims.living(file)


def test_who_lost_a_claim_neither_keeps_nor_ends_it(file):
    claim = claims.take(file)
    left_by_another_host(file)
    assert not claim.held
    claim.release()
    assert claims.living(file)


def test_waiting_ends_with_the_claim(file):
    first = claims.take(file)
    with ThreadPoolExecutor() as pool:
        second = pool.submit(claims.wait_for, file)
        time.sleep(0.1)
        assert not second.done()
        first.release()
        second.result(timeout=30).release()


def rush(file, start, mine):
    start.wait()
    claim = claims.take(file)
    mine.put(claim is not None)
    start.wait()  # nobody gives up before all have tried


@pytest.mark.parametrize("left", ["nothing", "dead"])
def test_of_many_at_once_one_gets_it(file, left):
    fork, workers = multiprocessing.get_context("fork"), 6
    for _ in range(15):
        if left == "dead":
            left_by_another_host(file)
            os.utime(file, (0, 0))
        start, mine = fork.Barrier(workers), fork.SimpleQueue()
        processes = [fork.Process(target=rush, args=(file, start, mine)) for _ in range(workers)]
        for process in processes:
            process.start()
        for process in processes:
            process.join()
        assert [mine.get() for _ in range(workers)].count(True) == 1
        assert [path.name for path in file.parent.iterdir()] == [file.name]
        file.unlink()


def made(finished):
    """The artifacts that a command put into their places."""
    return [target for source, target in finished.renames if ".new-" in source.name]


def test_two_commands_at_once_make_each_result_once(lowloss, another, whole, tmp_path):
    with ThreadPoolExecutor() as pool:
        both = [pool.submit(runner.tiny, tmp_path) for runner in (lowloss, another)]
        first, second = (one.result() for one in both)
    assert first.status == second.status == 0, first.err + second.err
    assert lowloss.results(tmp_path / "t") == lowloss.results(whole.root)
    times = Counter([*made(first), *made(second)])
    assert set(times.values()) == {1}
    assert len(times) == 3 + 6 + 2 + 2
    # There was something to do for both of them.
    assert made(first)
    assert made(second)


def test_a_killed_command_is_followed_by_the_other(lowloss, another, whole, tmp_path):
    root = whole.copy(tmp_path, "paths/0000-0001-autoneb", "paths/0000-0002-autoneb")
    strike = ("SIGKILL", "*/phase-01/last.ckpt", 1)
    with ThreadPoolExecutor() as pool:
        killed = pool.submit(lowloss.tiny, tmp_path, "stages=[path]", strike=strike)
        other = pool.submit(another.tiny, tmp_path, "stages=[path]")
        killed, other = killed.result(), other.result()
    assert killed.status == -9
    assert other.status == 0, other.err
    assert len(made(other)) == 2
    assert lowloss.results(root) == lowloss.results(whole.root)
    assert not list(root.rglob(".*.claim*"))
