"""What may happen to the files of a study: each damage takes its folder and a source of chance, and tells what it hit.

None where there is nothing to hit yet. `soak.py` injects them while a study is made; each has to be told, or harmless.
"""

from __future__ import annotations

import contextlib
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

Damage = Callable[[Path, random.Random], "Path | None"]

RESULT = "[!.]*/[!.]*/result.safetensors"


def one(root: Path, chance: random.Random, *patterns: str) -> Path | None:
    """One of the files of these names."""
    found = sorted(file for pattern in patterns for file in root.glob(pattern) if file.is_file())
    return chance.choice(found) if found else None


@contextlib.contextmanager
def written(file: Path | None) -> Iterator[bytearray]:
    """The bytes of a file, written back in place."""
    content = bytearray(file.read_bytes()) if file else bytearray()
    yield content
    if file and content:
        with file.open("r+b") as stream:
            stream.write(content)
            stream.truncate()


def flip(*patterns: str) -> Damage:
    """One bit of one of the files."""

    def damage(root: Path, chance: random.Random) -> Path | None:
        with written(file := one(root, chance, *patterns)) as content:
            if content:
                content[chance.randrange(len(content))] ^= 1 << chance.randrange(8)
        return file

    return damage


def zeros(root: Path, chance: random.Random) -> Path | None:
    """The second half of a finished result."""
    with written(file := one(root, chance, RESULT)) as content:
        content[len(content) // 2 :] = bytes(len(content) - len(content) // 2)
    return file


def cut(*patterns: str) -> Damage:
    """The second half of one of the files is missing."""

    def damage(root: Path, chance: random.Random) -> Path | None:
        with written(file := one(root, chance, *patterns)) as content:
            del content[len(content) // 2 :]
        return file

    return damage


def no_utf8(*patterns: str) -> Damage:
    """A byte that begins no character."""

    def damage(root: Path, chance: random.Random) -> Path | None:
        with written(file := one(root, chance, *patterns)) as content:
            if content:
                content[chance.randrange(len(content))] = 0xFF
        return file

    return damage


def copied_minimum(root: Path, chance: random.Random) -> Path | None:
    """A minimum is a copy of another one, perhaps under finished paths."""
    minima = sorted(path for path in root.glob("minima/[!.]*") if path.is_dir())
    if len(minima) < 2:
        return None
    place, other = chance.sample(minima, 2)
    new, old = root.parent / "copied", root.parent / "replaced"
    shutil.copytree(other, new)
    place.rename(old)
    new.rename(place)
    shutil.rmtree(old)
    return place


CLAIMS = (b"[1]", b"null", b"\xff\x00\x80", b'{"host": "elsewhere", "pid": "abc", "started": "1"}', b"")


def odd_claim(root: Path, chance: random.Random, titles: list[str] | None = None) -> Path | None:
    """Somebody who does not tell who claims a result that is missing; perhaps in the future.

    titles: of all results; by default those whose work has begun.
    """
    if titles is None:
        titles = [f"{work.parent.name}/{work.name[1:-5]}" for work in root.glob("[!.]*/.*.work")]
    missing = [root / title for title in titles if (root / title).parent.is_dir() and not (root / title).exists()]
    if not missing:
        return None
    artifact = chance.choice(missing)
    claim = artifact.parent / f".{artifact.name}.claim"
    try:
        with claim.open("xb") as stream:
            stream.write(chance.choice(CLAIMS))
    except FileExistsError:
        return None
    if chance.random() < 0.5:
        with contextlib.suppress(OSError):
            os.utime(claim, (time.time() + 1e6,) * 2)
    return claim


FINISHED: dict[str, Damage] = {
    "flip a result": flip(RESULT),
    "zeros in a result": zeros,
    "copy a minimum": copied_minimum,
    "cut the page": cut("report/index.html"),
    "cut a figure": cut("report/figures/*.*"),
    "cut the summary": cut("summary.csv"),
    "cut the record": cut("report/inputs.json"),
    "no UTF-8 in bounds": no_utf8("bounds-*.csv"),
    "no UTF-8 in a configuration": no_utf8("[!.]*/[!.]*/config.yaml"),
}
"""Of what is finished: told by `lowloss verify`."""

UNFINISHED: dict[str, Damage] = {
    "flip a checkpoint": flip("*/.*.work/**/last.ckpt"),
    "flip points": flip("*/.*.work/**/points-*.safetensors"),
    "no UTF-8 in work": no_utf8("*/.*.work/config.yaml"),
    "odd claim": odd_claim,
}
"""Of what is at work: told by whoever continues it."""
