"""The subcommands: `lowloss compare`, `papers` and `verify` need neither Hydra nor torch, `merge` is a study."""

from __future__ import annotations

import argparse
import difflib
import re
import signal
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path

from lowloss import progress
from lowloss.arguments import normalised, quoted
from lowloss.conf import options
from lowloss.errors import LowlossError, did_you_mean
from lowloss.overview import MORE, OVERVIEW


def run_other(arguments: Sequence[str]) -> bool:
    """Run a subcommand, or tell the version; returns whether that is all.

    One that is a study by another name puts that study's command line in place of its own.

    Raises LowlossError: there is no such subcommand, or it cannot do its work.
    """
    first, *rest = arguments or [""]
    alone = {*arguments} <= {"-m", "--multirun"}  # a sweep of nothing would be the default study
    if alone or first in {"--version", *SUBCOMMANDS} - {"merge"}:
        signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # whoever reads may stop, as head does
    if alone:
        print(OVERVIEW + "\n" + MORE, end="")
    elif first == "--version":
        from lowloss import __version__

        print(f"lowloss {__version__}")
    elif first in SUBCOMMANDS:
        if (overrides := SUBCOMMANDS[first](rest)) is not None:
            sys.argv[1:] = overrides
            return False
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
    for file in compare(folders, {group: options(group) for group in ("model", "data", "landscape")}, to):
        progress.say(f"compare: {file}")


def _papers(arguments: Sequence[str]) -> None:
    from lowloss import papers

    parser = argparse.ArgumentParser(
        "lowloss papers", description="List the results of papers, and what was published beside what was made here."
    )
    parser.add_argument("outputs", nargs="?", default="outputs", metavar="OUTPUTS", help="where the studies are")
    parser.add_argument("--csv", metavar="FILE", help="write every published number, and ours where there is one")
    given = parser.parse_args(arguments)
    if given.outputs != parser.get_default("outputs") and not Path(given.outputs).is_dir():
        raise LowlossError(f"{given.outputs} is no folder: name the one where the studies are, such as outputs")
    results, numbers = papers.listed(Path(given.outputs))
    if given.csv:
        papers.write_csv(Path(given.csv), numbers)
    print(papers.text_of(results, numbers))


def _status(arguments: Sequence[str]) -> None:
    from lowloss import status

    parser = argparse.ArgumentParser(
        "lowloss status", description="Tell how far the studies in a folder are, who works on what, and what failed."
    )
    parser.add_argument("folder", nargs="?", default="outputs", metavar="FOLDER", help="a study, a sweep, or outputs")
    given = parser.parse_args(arguments)
    print(status.as_text(status.gather(Path(given.folder))))


def _watch(arguments: Sequence[str]) -> None:
    from lowloss import status

    parser = argparse.ArgumentParser(
        "lowloss watch", description="Write what `lowloss status` tells as a page, again and again until all has ended."
    )
    parser.add_argument("folder", nargs="?", default="outputs", metavar="FOLDER", help="a study, a sweep, or outputs")
    parser.add_argument("--to", metavar="FILE", help="the page; by default watch.html in the folder")
    parser.add_argument("--every", type=float, default=5.0, metavar="SECONDS", help="by default 5")
    given = parser.parse_args(arguments)
    if not given.every >= 0.1:
        raise LowlossError(f"--every must be at least 0.1 seconds, got {given.every}")
    progress.shown = True
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    pages = status.watch(Path(given.folder), Path(given.to) if given.to else None, given.every)
    for count, page in enumerate(pages):
        if count == 0:
            progress.say(
                f"watch: {page.absolute()}, written every {given.every:g} s until all has ended; Ctrl-C ends it"
            )


def _logs(arguments: Sequence[str]) -> None:
    from lowloss import status

    parser = argparse.ArgumentParser(
        "lowloss logs", description="Print the log of a study, the last one; of a folder with several studies, a list."
    )
    parser.add_argument("study", metavar="STUDY", help="the folder of a study, there or not; or of a sweep")
    parser.add_argument("-n", type=int, metavar="LINES", help="the last lines alone")
    given = parser.parse_args(arguments)
    print(status.logs(Path(given.study), given.n))


def _export(arguments: Sequence[str]) -> None:
    parser = argparse.ArgumentParser(
        "lowloss export", description="Write a study's scans and figures as files that other programs read."
    )
    parser.add_argument("study", metavar="STUDY", help="the folder of a study")
    parser.add_argument(
        "--to", nargs="+", required=True, metavar="FORMAT",
        help="h5: the keys of Li et al. 2018's code; vtp: ParaView; stl, glb: surfaces; pdf, svg: every figure; "
        "gif, mp4: trajectories",
    )  # fmt: skip
    parser.add_argument("--folder", metavar="FOLDER", help="where to write; by default `export` in the study")
    given = parser.parse_args(arguments)
    if "" in (given.study, given.folder):
        raise LowlossError("a folder's name is empty: name the folder of a study")
    from lowloss.results.export import export

    with warnings.catch_warnings(record=True) as told:
        for file in export(given.study, given.to, given.folder):
            print(file)
    if lines := {str(one.message) for one in told}:
        raise LowlossError("; ".join(sorted(lines)))


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


MERGE = """
    minima=checkpoints finder=[bezier] finder.bezier.steps=1000 finder.bezier.lr=0.05 ensemble=[] scan=[]
    stages=[minima,path,merge]
"""
"""What a merge is, where the command line does not say otherwise."""


def _merge(arguments: Sequence[str]) -> list[str]:
    parser = argparse.ArgumentParser(
        "lowloss merge",
        usage="%(prog)s A B [GROUP=OPTION ...] [KEY=VALUE ...]",
        description="Tell whether two trained networks can be averaged, and write the averages as safetensors.",
        epilog="The model and the data are those that they were trained with, say model=resnet20 data=cifar10. "
        "finder.bezier.steps=N: steps of the curve between them (1000); finder=[]: no curve; "
        "merge.align=[weights,activations,ste]: how units are aligned; study=NAME: the folder in outputs.",
    )
    for name in ("A", "B"):
        parser.add_argument(name, help="a checkpoint: a state_dict, a Lightning checkpoint, or safetensors")
    parser.add_argument("settings", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    normalised(arguments, lambda _: True)  # tells flags that there are not
    given = parser.parse_args(arguments)
    for file in (given.A, given.B):
        if not Path(file).exists():
            raise LowlossError(f"{file} does not exist: name two checkpoints, lowloss merge A B model=MODEL data=DATA")
    names = [Path(file).resolve() for file in (given.A, given.B)]
    stems = [name.stem if names[0].stem != names[1].stem else f"{name.parent.name}-{name.stem}" for name in names]
    finders = any(setting.startswith("finder=") for setting in given.settings)
    own = [setting for setting in MERGE.split() if not (finders and setting.startswith("finder"))]
    study = re.sub(r"[^\w.-]", "_", f"merge-{stems[0]}-{stems[1]}")
    return [*own, f"minima.files=[{quoted(given.A)},{quoted(given.B)}]", f"study={study}", *given.settings]


SUBCOMMANDS: dict[str, Callable[[Sequence[str]], list[str] | None]] = {
    "compare": _compare,
    "papers": _papers,
    "status": _status,
    "watch": _watch,
    "logs": _logs,
    "export": _export,
    "verify": _verify,
    "merge": _merge,
}
"""What each does; a list is a command line of settings that is to be run in its place."""
