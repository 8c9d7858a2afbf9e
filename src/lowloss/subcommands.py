"""The subcommands `lowloss compare`, `papers` and `verify`, which need neither Hydra nor torch."""

from __future__ import annotations

import argparse
import difflib
import re
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from lowloss import progress
from lowloss.conf import options
from lowloss.errors import LowlossError, did_you_mean


def run_other(arguments: Sequence[str]) -> bool:
    """Run a subcommand, or tell the version; returns whether the command line asks for one.

    Raises LowlossError: there is no such subcommand, or it cannot do its work.
    """
    first, *rest = arguments or [""]
    if first == "--version":
        from lowloss import __version__

        print(f"lowloss {__version__}")
    elif first in SUBCOMMANDS:
        SUBCOMMANDS[first](rest)
    elif re.fullmatch(r"\w+", first):
        known = {name: name for name in SUBCOMMANDS} | {name: f"experiment={name}" for name in options("experiment")}
        near = [known[name] for name in difflib.get_close_matches(first, known, 1)]
        raise LowlossError(
            f"there is no command {first}{did_you_mean(near)}; the commands are {', '.join(SUBCOMMANDS)}, "
            "settings are KEY=VALUE, and lowloss --help lists them"
        )
    else:
        return False
    return True


def _compare(arguments: Sequence[str]) -> None:
    from lowloss.report.compare import compare

    parser = argparse.ArgumentParser(
        "lowloss compare", description="Gather studies into one table (CSV) and one HTML page that needs no network."
    )
    parser.add_argument("folders", nargs="+", metavar="FOLDER", help="a study, or a folder that holds some")
    parser.add_argument("--to", metavar="FOLDER", help="where to write; by default `compare` beside them")
    given = parser.parse_args(arguments)
    progress.shown = True
    if "" in (*given.folders, given.to):  # most often a variable of the shell that is not set
        raise LowlossError("a folder's name is empty: name the folder of a study or of a sweep")
    folders, to = [Path(folder) for folder in given.folders], Path(given.to) if given.to else None
    page = compare(folders, {group: options(group) for group in ("model", "data")}, to)
    progress.say(f"compare: {page}")


def _papers(arguments: Sequence[str]) -> None:
    from lowloss import papers

    parser = argparse.ArgumentParser(
        "lowloss papers", description="List the results of papers, and what was published beside what was made here."
    )
    parser.add_argument("outputs", nargs="?", default="outputs", metavar="OUTPUTS", help="where the studies are")
    parser.add_argument("--csv", metavar="FILE", help="write every published number, and ours where there is one")
    given = parser.parse_args(arguments)
    results, numbers = papers.listed(Path(given.outputs))
    if given.csv:
        papers.write_csv(Path(given.csv), numbers)
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads the list may stop, as head does
    print(papers.text_of(results, numbers))


def _verify(arguments: Sequence[str]) -> None:
    from lowloss.verify import verify

    parser = argparse.ArgumentParser(
        "lowloss verify", description="Compare everything in studies with its digests; a line a finding, and status 1."
    )
    parser.add_argument("studies", nargs="+", metavar="STUDY", help="the folder of a study")
    given, ended_well = parser.parse_args(arguments), True
    for study in given.studies:
        count, found = verify(Path(study))
        for line in found:
            print(" ".join(line.split()))
        print(f"{study}: {count} results, {f'{len(found)} findings' if found else 'all as they were written'}")
        ended_well &= not found
    if not ended_well:
        sys.exit(1)


SUBCOMMANDS: dict[str, Callable[[Sequence[str]], None]] = {"compare": _compare, "papers": _papers, "verify": _verify}
