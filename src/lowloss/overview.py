"""What `lowloss` tells of itself: alone a short overview, with --help every group of its configuration."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable
from pathlib import Path

from lowloss.conf import read_families

OVERVIEW = """\
lowloss: minima, paths, ensembles and scans of the loss landscapes of neural networks

  lowloss experiment=quickstart               the main job on 8 × 8 digits, in minutes
  lowloss model=mlp data=digits seed=1        a study of a network on data; KEY=VALUE sets any setting
  lowloss ... --dry-run                       what it would make, and at which cost; nothing is made
  lowloss -m ... seed=0,1,2                   a sweep; with hydra/launcher=local or slurm as processes of their own

  lowloss status FOLDER                       how far studies are, who works on what, and what failed
  lowloss watch FOLDER                        the same as a page that is written every few seconds
  lowloss logs STUDY                          the log of a job of a sweep
  lowloss compare FOLDER ...                  many studies in one table and page
  lowloss export STUDY --to h5 vtp svg ...    scans and figures as files that other programs read
  lowloss merge A B model=... data=...        whether two trained networks can be averaged
  lowloss papers                              the results of papers, published and made here
  lowloss verify STUDY                        every file against its digest
"""
"""What is printed where nothing is asked for."""

MORE = """\
lowloss --help lists all groups and their options. Running a command again continues what was interrupted.
"""

HELP = """\
Stages, each with stages=[...]: minima, connector, path, curvature, dimension, ensemble, merge, permutation, scan, width
and report.
The composed configuration of a command: add --cfg job. One's own options: add --config-dir FOLDER.

Groups, each chosen with GROUP=OPTION; finder, ensemble and scan take several, as finder=[autoneb,line]:
"""

GROUPS = {
    "experiment": "a whole experiment; the names of tables run all of their rows",
    "model": "the network",
    "data": "what it is trained on",
    "minima": "where minima come from: training here, or files of your own",
    "finder": "how a path between two minima is found",
    "ensemble": "which networks are averaged in their outputs or weights",
    "scan": "which lines and planes are looked at",
    "optimizer": "what minima are trained with",
    "schedule": "how the learning rate goes",
    "recipe": "how a paper trains: settings of several groups at once",
    "scale": "how large an experiment is run; tiny takes seconds",
    "debug": "one step of everything, overfitting a few samples, or a profile",
    "trainer": "processor, one GPU or several devices",
    "engine": "how many points are evaluated at once; numbers are the same",
    "logger": "where curves, figures and results are sent",
    "chart": "coordinates in which minima are trained",
    "landscape": "a formula in place of a network on data",
    "small": "what a scale changes of a network; taken by itself",
}
"""The groups in the order in which they are listed, and what each chooses."""


def help_text(folders: Iterable[Path]) -> str:
    """The overview, and the groups and their options in these folders, with the rows of their families.

    Raises LowlossError: the table of a family is damaged.
    """
    options: dict[str, set[str]] = {name: set() for name in GROUPS}
    for folder in folders:
        for file in folder.glob("*/*.yaml"):
            options.setdefault(file.parent.name, set()).add(file.stem)
        families = read_families(folder)
        options["experiment"] |= {*families, *(row["experiment"] for rows in families.values() for row in rows)}
    width, lines = min(shutil.get_terminal_size().columns, 120), [OVERVIEW, HELP]
    for name in [*sorted(options.keys() - GROUPS.keys()), *GROUPS]:
        lines.append(f"  {name:<12}{GROUPS.get(name, 'your own')}")
        names, by = ", ".join(sorted(options[name])), 14 * " "
        lines += textwrap.wrap(names, width, initial_indent=by, subsequent_indent=by, break_on_hyphens=False)
    return "\n".join(lines)
