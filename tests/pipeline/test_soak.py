"""The script that disturbs a study: what it says, and what it leaves when it is stopped."""

import os
import signal
import subprocess
import sys
from pathlib import Path

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
