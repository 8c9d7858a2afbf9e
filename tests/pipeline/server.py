"""Runs command lines in forked children of one process that has imported everything, so that each starts at once.

Reads a job a line from standard input, JSON with

    arguments     of the command line `lowloss`
    folder        to run in
    environment   to add
    out, err      files for the standard streams
    renames       file for a line a rename: source and destination, with a tab in between
    user          null or [user, group]: the command runs as these, after it ran as the server elsewhere,
                  and so has imported what another user might not be allowed to read
    strike        null or [signal, pattern, n]: the process sends itself the signal just before it renames something
                  to a place that matches the pattern, the n-th time that it does

says "ready" once it is, and answers a line each with the exit status, which is negative for a signal.
"""

import atexit
import fnmatch
import gc
import io
import json
import os
import signal
import sys
import tempfile

import hydra

# Everything that a run imports.
import lightning  # noqa: F401
import matplotlib.figure
import pandas  # noqa: F401
import plotly.graph_objects  # noqa: F401
import sklearn.datasets
import sklearn.model_selection  # noqa: F401
import torchvision  # noqa: F401
from hydra.core.global_hydra import GlobalHydra

import lowloss.report.page
import lowloss.training.methods
import lowloss.training.tabulate
from lowloss.cli import main
from lowloss.conf import config_folder
from lowloss.jobs.pipeline import stages


def run(job):
    for descriptor, file in ((0, os.devnull), (1, job["out"]), (2, job["err"])):
        os.dup2(os.open(file, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o644), descriptor)
    os.chdir(job["folder"])
    os.environ.update(job["environment"])
    sys.argv = ["lowloss", *job["arguments"]]
    status, hook = 0, watch(job)
    try:
        if job["user"]:
            with tempfile.TemporaryDirectory() as folder:
                sys.argv = [one if not one.startswith("outputs=") else f"outputs={folder}" for one in sys.argv]
                main()
            become(*job["user"])
            sys.argv = ["lowloss", *job["arguments"]]
        sys.addaudithook(hook)
        main()
    except SystemExit as exit:
        status = exit.code or 0
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    if isinstance(status, str):
        print(status, file=sys.stderr)
        status = 1
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        stream.flush()
    # The interpreter's own farewell to so many modules takes seconds.
    os._exit(status)


def become(user, group):
    """What this process makes from now on is that user's; his group may write it."""
    GlobalHydra.instance().clear()
    os.setgroups([])
    os.setgid(group)
    os.setuid(user)
    os.umask(0o002)


def watch(job):
    renames = open(job["renames"], "w", buffering=1)  # noqa: SIM115
    name, pattern, count = job["strike"] or (None, "", 0)
    seen = 0

    def hook(event, arguments):
        nonlocal seen
        if event != "os.rename":
            return
        source, target = (os.path.join(job["folder"], os.fsdecode(path)) for path in arguments[:2])
        if target.endswith(".pyc"):  # Python's own, of modules that are imported for the first time
            return
        renames.write(f"{source}\t{target}\n")
        if name and fnmatch.fnmatch(target, pattern):
            seen += 1
            if seen == count:
                os.kill(os.getpid(), signal.Signals[name])

    return hook


# Strikes count the checkpoints of blocks, so each has one.
lowloss.training.descent.PAUSE = 0.0
stages()
with hydra.initialize_config_dir(str(config_folder()), version_base="1.3"):
    hydra.compose("config", return_hydra_config=True)
GlobalHydra.instance().clear()
figure = matplotlib.figure.Figure()
figure.subplots().set_title("fonts")
for kind in ("png", "svg", "pdf"):
    figure.savefig(io.BytesIO(), format=kind)
gc.collect()
gc.freeze()  # a child that looks at every object for garbage would copy them all
# A shell starts what runs in the background with this ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
print("ready", flush=True)
for line in sys.stdin:
    child = os.fork()
    if not child:
        run(json.loads(line))
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
