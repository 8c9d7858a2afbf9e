"""The report: tables, figures and the HTML page, from what is complete."""

import csv
import json
from functools import partial
from pathlib import Path

from lowloss import __version__, files, progress
from lowloss.claims import wait_for
from lowloss.digests import digest
from lowloss.errors import LowlossError
from lowloss.jobs.base import Bench, Config, Stage
from lowloss.study import Study


class ReportStage(Stage):
    """Writes the report of a study, each kind of artifact shown by the module of its name."""

    name = "report"

    def run(self, bench: Bench) -> None:
        _, damaged = bench.study.read(partial(self._write, bench))
        if damaged:
            more = f" ({len(damaged) - 1} more by `lowloss verify {bench.study.root}`)" if damaged[1:] else ""
            raise LowlossError(f"the report is without what is damaged: {damaged[0]}{more}")

    def _write(self, bench: Bench, study: Study) -> None:
        root, told = study.root, "" if study.left_out else "up to date, "
        written = _up_to_date(bench, study)
        if not written:
            from lowloss.report.page import build_report

            told = ""
            with wait_for(root / ".report.claim"):
                written = _up_to_date(bench, study)
                if not written:
                    # Looked at before it is made: what is completed meanwhile makes it out of date.
                    made_from = _inputs(bench, study)
                    kinds = [stage.kind for stage in bench.stages.values() if stage.kind]
                    made = build_report(study, kinds, bench.config["published"])
                    written = {str(file.relative_to(root)): digest(file) for file in made}
                    record = json.dumps({"made_from": made_from, "written": written})
                    files.write_text(root / "report" / "inputs.json", record)
                    if hasattr(bench.logger, "log_report"):
                        bench.tell_logger().log_report()
        progress.say(f"report: {told}{root / 'report' / 'index.html'}")
        if "report/comparison.csv" in written:
            _say_comparison(root / "report" / "comparison.csv")


def _say_comparison(file: Path) -> None:
    """Our numbers beside those that a paper published."""
    from lowloss.launch import aligned

    texts, numbers = ("result", "method", "column", "unit"), ("published", "ours", "difference")
    cells = [[*texts, *numbers]]
    with file.open(newline="", encoding="utf-8") as lines:
        for row in csv.DictReader(lines):
            rounded = [f"{float(row[name]):.4g}" if row[name] else "–" for name in numbers]
            cells.append([*(row[name] for name in texts), *rounded])
    for line in aligned(cells):
        progress.say(f"  {line}")


def _inputs(bench: Bench, study: Study) -> Config:
    """What a report is made from. Raises LowlossError if there is nothing, or what it was made from was replaced."""
    artifacts = [one for kind in study.kinds for one in study.complete(kind)]
    for artifact in artifacts:
        artifact.check_inputs(study.left_out)
    inputs = {one.title: one.digest for one in artifacts}
    if not inputs:
        raise LowlossError(f"{study.root} holds nothing to report: make it with `{bench.whole}`")
    return {"lowloss": __version__, "published": bench.config["published"], "inputs": inputs}


def _up_to_date(bench: Bench, study: Study) -> dict[str, str]:
    """The files of the report with their digests, if all are as they were written from what there is; else nothing."""
    root, made_from = study.root, _inputs(bench, study)
    record = root / "report" / "inputs.json"
    try:
        before = json.loads(record.read_text(encoding="utf-8")) if record.is_file() else {}
        written: dict[str, str] = before["written"]
        whole = all((root / name).is_file() and digest(root / name) == told for name, told in written.items())
        if whole and before["made_from"] == made_from:
            return written
    except (OSError, ValueError, LookupError, TypeError, AttributeError, RecursionError):
        pass  # there is no record, or it is damaged
    return {}


STAGE = ReportStage()
