"""The README's Python code runs as it stands, and prints what the README says."""

import re
from pathlib import Path

import pytest

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def numbers(text):
    return [float(number) for number in re.findall(r"\d+\.\d+", text)]


def test_python_api(capsys):
    code, printed = re.search(r"```python\n(.*?)```\n\nprints\n\n```\n(.*?)```", README, re.DOTALL).groups()
    names = {}
    exec(compile(code, "README.md", "exec"), names)
    out = capsys.readouterr().out
    assert re.sub(r"[\d.]+", "#", out) == re.sub(r"[\d.]+", "#", printed)
    # Another processor rounds otherwise; the rate that falls to zero keeps that from growing.
    assert numbers(out) == pytest.approx(numbers(printed), abs=0.002)
    assert names["members"].shape == (4, names["landscape"].dim)
    assert names["table"]["train_loss"].shape == (9, 9)
