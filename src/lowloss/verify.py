"""Whether everything in a study is as it was written: results, unfinished work, bounds and the report."""

from __future__ import annotations

import contextlib
import csv
import json
from collections.abc import Iterator
from math import inf
from pathlib import Path

from lowloss.digests import check_archive, check_regular, check_seal, check_tensors, digest
from lowloss.errors import LowlossError, reason
from lowloss.study import DIGESTS, RESULT, Artifact, Study


def verify(root: Path) -> tuple[int, list[str]]:
    """The number of results of a study, and a line for each finding, with its remedy.

    Raises LowlossError if there is no result.
    """
    study, names = Study(root), (RESULT, DIGESTS)
    kinds = {file.parent.parent.name for name in names for file in root.glob(f"*/[!.]*/{name}")}
    artifacts = [artifact for kind in sorted(kinds) for artifact in study.complete(kind)]
    if not artifacts:
        raise LowlossError(f"{root} holds no results: name the folder of a study, such as outputs/quickstart")
    found = [line for artifact in artifacts for line in _artifact(artifact)]
    found += _work(root)
    found += [line for file in sorted(root.glob("bounds-*.csv")) for line in _bounds(study, file)]
    found += _report(root, artifacts)
    return len(artifacts), found


def _artifact(artifact: Artifact) -> Iterator[str]:
    yield from artifact.damages()
    with contextlib.suppress(LowlossError):  # told already
        artifact.record()
        try:
            artifact.check_inputs()
        except LowlossError as error:
            if RESULT not in str(error):  # else told with the source
                yield str(error)


def _work(root: Path) -> Iterator[str]:
    """What is damaged in work that waits to be continued; what is replaced or removed meanwhile is left out."""
    for file in sorted(file for work in root.glob("*/.*.work") for file in work.rglob("*")):
        check = {".safetensors": lambda file: check_tensors(file, whole=True), ".ckpt": check_archive}.get(file.suffix)
        try:
            if check is not None and not file.name.startswith("."):
                check(file)
        except FileNotFoundError:
            continue
        except (OSError, ValueError) as error:
            work = root / file.relative_to(root).parts[0] / file.relative_to(root).parts[1]
            yield f"{file} is damaged ({reason(error)}): delete {work} to start this piece of work afresh"


def _bounds(study: Study, file: Path) -> Iterator[str]:
    """A table of bounds has to follow from its own saddles, and these have to be the paths'."""
    finder, anew = file.stem.removeprefix("bounds-"), "run the same command with stages=[path], which writes it anew"
    try:
        check_seal(file)
    except (OSError, ValueError) as error:
        yield f"{file} is damaged ({reason(error)}): {anew}"
        return
    try:
        rows = list(csv.DictReader(file.read_text(encoding="utf-8").splitlines()))
        bounds = {(int(row["start"]), int(row["end"])): float(row["bound"]) for row in rows}
        saddles = {(int(row["start"]), int(row["end"])): float(row["saddle"]) for row in rows if row["saddle"]}
        known = _minimax(saddles)
        right = bounds == {pair: known.get(pair, inf) for pair in bounds}
        for (start, end), saddle in saddles.items():
            path = study.artifact("paths", f"{start:04d}-{end:04d}-{finder}")
            right &= not path.complete or saddle in (inf, path.notes()["saddle_train_loss"])
    except LowlossError:
        return  # a path's own damage
    except (OSError, ValueError, LookupError, TypeError):
        right = False
    if not right:
        yield f"{file} is not what the paths give: delete it and {anew}"


def _minimax(saddles: dict[tuple[int, int], float]) -> dict[tuple[int, int], float]:
    """The lowest highest saddle on the way between two minima, where there is a way: Kruskal's algorithm."""
    clusters = {k: {k} for pair in saddles for k in pair}
    bounds: dict[tuple[int, int], float] = {}
    for (i, j), saddle in sorted(saddles.items(), key=lambda item: item[1]):
        if clusters[i] is not clusters[j] and saddle < inf:
            bounds |= {(min(a, b), max(a, b)): saddle for a in clusters[i] for b in clusters[j]}
            joined = clusters[i] | clusters[j]
            clusters |= dict.fromkeys(joined, joined)
    return bounds


def _report(root: Path, artifacts: list[Artifact]) -> Iterator[str]:
    record = root / "report" / "inputs.json"
    remedy = "run the same command with stages=[report]"
    if not record.parent.is_dir():
        return
    try:
        check_regular(record)
        told = json.loads(record.read_text(encoding="utf-8"))
        written, inputs = dict(told["written"]), dict(told["made_from"]["inputs"])
    except (OSError, ValueError, LookupError, TypeError, RecursionError) as error:
        yield f"{record} is damaged ({reason(error)}): {remedy}"
        return
    for name, known in written.items():
        try:
            if digest(root / name) != known:
                yield f"{root / name} is another than when it was written: {remedy}"
        except (OSError, ValueError) as error:
            yield f"{root / name} is damaged ({reason(error)}): {remedy}"
    try:
        if {artifact.title: artifact.digest for artifact in artifacts} != inputs:
            yield f"{record.parent} was made from other results than there are: {remedy}"
    except LowlossError:
        pass  # told with the result
