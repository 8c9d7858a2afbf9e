"""A study that is loaded: `study.minima`, `study.paths` and every other kind that the stages declare."""

from __future__ import annotations

import html
from functools import cached_property, partial
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lowloss.errors import LowlossError, nearest
from lowloss.progress import FOLDER, counted
from lowloss.results.base import NoAttributeError, OneResult, Results, left_out, those
from lowloss.results.kinds import KINDS, EnsembleResult, Minima, PathResult, ScanResult, SpectrumResult
from lowloss.study import Config, Study

if TYPE_CHECKING:
    import pandas as pd


class StudyResults:
    """A study's complete results; each kind of them is an attribute, `study.minima` or `study.paths`.

    Attributes:
        root: its folder.
        study: its artifacts.
    """

    minima: Minima
    paths: Results[PathResult]
    scans: Results[ScanResult]
    ensembles: Results[EnsembleResult]
    spectra: Results[SpectrumResult]

    def __init__(self, study: Study) -> None:
        self.study, self.root = study, study.root

    @property
    def kinds(self) -> list[str]:
        """The kinds of results that there are."""
        return [kind for kind in _stages() if self.study.complete(kind)]

    @property
    def unfinished(self) -> list[str]:
        """What has begun and is not complete."""
        return [f"{work.parent.name}/{work.name[1:-5]}" for work in sorted(self.root.glob("*/.*.work"))]

    @cached_property
    def config(self) -> Config:
        """The configuration, merged from that of its results."""
        from lowloss.report.gather import merged_config

        return merged_config(self.study)

    def __getattr__(self, kind: str) -> Any:
        if kind.startswith("_"):
            raise AttributeError(kind)
        stages = _stages()
        if kind not in stages:
            raise NoAttributeError(f"a study has no {kind}{nearest(kind, stages)}; {those([*stages])}")
        stage, study = stages[kind], self.study
        found = [KINDS.get(kind, OneResult)(kind, artifact) for artifact in study.complete(kind)]
        begun = "".join(f", but {title} has begun" for title in self.unfinished if title.startswith(f"{kind}/"))
        none = f"{self.root} has no {kind}{begun}: run the study's command with stages=[{stage.name}]"
        collection: Any = Minima if kind == "minima" else Results
        results = collection(kind, found, partial(self._frame, kind), none)
        setattr(self, kind, results)
        return results

    def _frame(self, kind: str) -> pd.DataFrame | None:
        """The report's table of a kind, if it has one of its name."""
        from lowloss.report.tables import ensembles

        if kind in ("minima", "paths", "scans"):
            return None

        def read(study: Study) -> pd.DataFrame | None:
            if kind == "ensembles":
                return ensembles(study)
            tables = import_module(f"lowloss.report.{kind}").SHOWN.tables(study)
            return next((table.frame for table in tables if Path(table.file).stem == kind), None)

        frame, damaged = self.study.read(read)
        left_out(damaged)
        return frame

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *_stages()]

    def __repr__(self) -> str:
        counts = ", ".join(counted(len(self.study.complete(kind)), kind) for kind in self.kinds)
        begun = f"; {len(self.unfinished)} unfinished" if self.unfinished else ""
        return f"study {self.root}: {counts}{begun}"

    def _repr_html_(self) -> str:
        tables = "".join(getattr(self, kind)._repr_html_() for kind in self.kinds)
        return f"<p><b>{html.escape(repr(self))}</b></p>{tables}"


def _stages() -> dict[str, Any]:
    """The stages that make results, by the kinds of these."""
    from lowloss.jobs.pipeline import stages

    return {stage.kind: stage for stage in stages().values() if stage.kind is not None}


def load(folder: str | Path) -> StudyResults:
    """The results of a study, such as "outputs/quickstart".

    Raises LowlossError: the folder holds no study, or one without results yet.
    """
    root = Path(folder).expanduser()
    study = Study(root)
    if not study.kinds:
        begun = any(root.glob("*/.*.work")) or any((root / FOLDER).glob("*.json"))
        below = sorted({str(file.parents[2]) for file in root.glob("*/*/[!.]*/result.safetensors")})
        missing = "holds no study" if root.is_dir() else "is no folder" if root.exists() else "does not exist"
        what = "has no results yet" if begun else missing
        remedy = "wait for the first, or run its command again" if begun else "name the folder of a study"
        raise LowlossError(f"{root} {what}: {remedy}{f', such as {below[0]}' if below else ''}")
    return StudyResults(study)
