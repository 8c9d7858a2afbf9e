"""Before anything imports Triton: where there is no GPU, its interpreter runs the kernels."""

import os
from pathlib import Path

import pytest

if not Path("/dev/nvidiactl").exists():
    os.environ["TRITON_INTERPRET"] = "1"


@pytest.fixture(autouse=True)
def own_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """A command line that a test runs in this process leaves no word to those that others start from it."""
    monkeypatch.setenv("LOWLOSS_SWEPT", "")
