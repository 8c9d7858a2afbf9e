"""Hydra's launchers of `lowloss`: the jobs of a sweep as processes of this machine, or as a SLURM job array.

Hydra imports every plugin when it starts, so nothing heavy is imported here.
"""

from __future__ import annotations

import datetime
import os
import shlex
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra._internal.core_plugins.basic_launcher import BasicLauncher
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn, JobStatus
from hydra.plugins.launcher import Launcher
from omegaconf import OmegaConf


class PlainSweeper(BasicSweeper):
    """Hydra's own, whose record of the sweep tells nothing: what is given may be a secret."""

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)
        self._whole, self.config = config, OmegaConf.create({"hydra": {"sweep": {"dir": config.hydra.sweep.dir}}})

    def validate_batch_is_legal(self, batch: Any) -> None:
        self.config = self._whole
        super().validate_batch_is_legal(batch)


# In the place of Hydra's, so that other sweepers can be chosen as ever.
ConfigStore.instance().store(
    "basic",
    {"_target_": f"{__name__}.PlainSweeper", "max_batch_size": None, "params": None},
    "hydra/sweeper",
    provider="hydra",
)


class _Launcher(Launcher):
    """Turns the overrides of a batch into jobs, has them run, and ends with a table of those that failed."""

    threads: int
    word: str

    def setup(self, *, hydra_context: Any, task_function: Any, config: Any) -> None:
        self.config, self.loader = config, hydra_context.config_loader

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lowloss import progress
        from lowloss.cli import ended_well
        from lowloss.launch import failures

        self.check()
        progress.shown = True
        stamp = datetime.datetime.now().strftime("%Y%m%d-%H%M%S")
        self.folder = Path(str(self.config.hydra.sweep.dir)) / f"{stamp}-{os.getpid()}-{initial_job_idx}"
        groups = [self._jobs(job_overrides, initial_job_idx, *group) for group in self.groups()]
        self.first = initial_job_idx
        ended = self.run(groups)
        if lines := failures(ended):
            progress.say("\n".join(lines))
        ended_well.extend(end.status == 0 for _, end in ended)
        returns = []
        for i, overrides in enumerate(job_overrides):
            ends = [end for _, end in ended[i :: len(job_overrides)]]
            # Also a job that failed counts as completed, without a value: Hydra would end a search at the first one,
            # and tell in lines of its own what the table has told.
            returned = JobReturn(overrides=list(overrides), status=JobStatus.COMPLETED)
            returned.return_value = ends[-1].value if ends and not any(end.status for end in ends) else None
            returns.append(returned)
        return returns

    def announce(self, groups: Sequence[Sequence[Any]]) -> None:
        """Write down the jobs that are about to run, and say once a command where that leads."""
        from lowloss import progress
        from lowloss.launch import list_jobs

        jobs = [job for group in groups for job in group]
        list_jobs(self.folder, jobs, self.word)
        place = os.path.commonpath([job.study for job in groups[0]])
        at, many = shlex.quote(str(Path(str(self.config.outputs)) / place)), "job" if len(jobs) == 1 else "jobs"
        if self.first == 0:
            said = f"{self.word}: {len(jobs)} {many}, logs in {self.folder}"
            progress.say(f"{said}; how far they are: lowloss status {at}")

    def check(self) -> None:
        """Raises LowlossError for a setting that no job can run with."""
        raise NotImplementedError

    def groups(self) -> list[tuple[str, list[str]]]:
        """Each job is there once a group: the label of the group, and its stages if not those of the configuration."""
        return [("", [])]

    def run(self, groups: list[list[Any]]) -> list[Any]:
        """Run the groups of jobs; returns (job, end) of all, a group after the other."""
        raise NotImplementedError

    def _jobs(self, job_overrides: Sequence[Sequence[str]], first: int, label: str, stages: list[str]) -> list[Any]:
        from hydra.core.hydra_config import HydraConfig
        from hydra.core.singleton import Singleton

        from lowloss.arguments import quoted
        from lowloss.cli import job_bench
        from lowloss.conf import config_flags
        from lowloss.errors import LowlossError
        from lowloss.launch import Job, study_name

        before, threads = Singleton.get_state(), os.environ.get("OMP_NUM_THREADS", str(self.threads))
        jobs: list[Any] = []
        wrong: list[LowlossError] = []
        try:
            for number, overrides in enumerate(job_overrides, start=first):
                config = self.loader.load_sweep_config(self.config, list(overrides))
                HydraConfig.instance().set_config(config)
                # What is wrong with every job is told before any starts; a search goes on after a wrong one.
                if len(wrong) == len(jobs) and str(config.hydra.sweeper._target_).endswith(PlainSweeper.__name__):
                    try:
                        job_bench(config, ()).check()
                    except LowlossError as error:
                        wrong.append(error)
                name = study_name(config, config.hydra.sweeper, list(overrides), number)
                chosen = [f"stages=[{','.join(stages)}]"] if stages else []
                arguments = (*config_flags(), *overrides, *chosen, f"study={quoted(name)}")
                # By the study, and where two jobs are of one, as a search may have them, by a number too.
                inside = [part for part in Path(name).parts if part not in ("/", "..")]
                log = self.folder.absolute().joinpath(*inside[:-1], f"{inside[-1]}{label}.log")
                if any(job.log == log for job in jobs):
                    log = log.with_name(f"{inside[-1]}-{number:03d}{label}.log")
                shown = f"{name} [{label[1:]}]" if label else name
                jobs.append(Job(shown, name, arguments, log, {"OMP_NUM_THREADS": threads}))
        finally:
            Singleton.set_state(before)
        if wrong and len(wrong) == len(jobs):
            raise wrong[0]
        return jobs


OPTIONAL = ("parallel", "gpus_per_node", "mem_gb")


def _check_numbers(settings: dict[str, Any], least: dict[str, int], kind: type = int) -> None:
    """Raises LowlossError for a value that is no number, or too small."""
    from lowloss.errors import check_number

    for name, smallest in least.items():
        if settings[name] is not None or name not in OPTIONAL:
            check_number(f"hydra.launcher.{name}", settings[name], kind, smallest)


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, str)


class LocalLauncher(_Launcher):
    """Processes on this machine.

    Args:
        parallel: processes at a time; by default as many as there are cores for their threads.
        processes: for each job; they share its study, each result made by one of them.
        threads: of each process, unless OMP_NUM_THREADS is set.
        gpus: of this machine; each process sees one of them, in turn. 0 leaves the choice to `trainer`.
    """

    word = "local"

    def __init__(self, parallel: int | None = None, processes: int = 1, threads: int = 1, gpus: int = 0) -> None:
        self.parallel, self.processes, self.threads, self.gpus = parallel, processes, threads, gpus

    def check(self) -> None:
        _check_numbers(vars(self), {"parallel": 1, "processes": 1, "threads": 1, "gpus": 0})

    def groups(self) -> list[tuple[str, list[str]]]:
        return [(f"-{i}" if self.processes > 1 else "", []) for i in range(self.processes)]

    def run(self, groups: list[list[Any]]) -> list[Any]:
        from lowloss.launch import run_here

        self.announce(groups)
        # The processes of a job start together.
        jobs = [job for same in zip(*groups, strict=True) for job in same]
        parallel = self.parallel or max(1, len(os.sched_getaffinity(0)) // self.threads)
        ends = dict(zip(jobs, run_here(jobs, parallel, self.gpus), strict=True))
        return [(job, ends[job]) for group in groups for job in group]


class SlurmLauncher(_Launcher):
    """A SLURM job array, through submitit.

    Args:
        partition, account, qos, constraint, gpus_per_node, cpus_per_task, mem_gb: as sbatch's.
        timeout_min: time limit of a task.
        array_parallelism: tasks at a time.
        requeues: how often a task that ran out of time, or was preempted, is queued again and continues.
        signal_delay_s: how long before the time limit a task is stopped, to be queued again.
        setup: lines of shell before a task, say `module load …`.
        additional_parameters: more options of sbatch.
        pipeline: rounds of stages, each an array of its own whose task starts when the same task of the round
            before has succeeded; null for one array with the configured stages.
        wait: whether the command stays until the jobs have ended, and tells what failed.
        check_s: how often SLURM is asked whether jobs are gone.
    """

    word = "slurm"

    def __init__(
        self,
        partition: str | None = None,
        account: str | None = None,
        qos: str | None = None,
        constraint: str | None = None,
        gpus_per_node: int | None = None,
        cpus_per_task: int = 1,
        mem_gb: float | None = None,
        timeout_min: int = 240,
        array_parallelism: int = 16,
        requeues: int = 20,
        signal_delay_s: int = 90,
        setup: Sequence[str] | None = None,
        additional_parameters: dict[str, Any] | None = None,
        pipeline: Sequence[Sequence[str]] | None = None,
        wait: bool = True,
        check_s: float = 30,
    ) -> None:
        self.settings = {name: value for name, value in locals().items() if name != "self"}
        self.pipeline, self.wait, self.check_s, self.threads = pipeline, wait, check_s, cpus_per_task

    def check(self) -> None:
        from lowloss.errors import LowlossError
        from lowloss.jobs.pipeline import stages as known_stages

        ones = ("cpus_per_task", "timeout_min", "array_parallelism")
        zeros = ("gpus_per_node", "requeues", "signal_delay_s")
        _check_numbers(self.settings, dict.fromkeys(ones, 1) | dict.fromkeys(zeros, 0))
        _check_numbers(self.settings, {"mem_gb": 0, "check_s": 0}, float)
        if self.settings["signal_delay_s"] >= 60 * self.settings["timeout_min"]:
            raise LowlossError(
                "hydra.launcher.signal_delay_s must be less than 60 times timeout_min, "
                f"got {self.settings['signal_delay_s']} at timeout_min={self.settings['timeout_min']}"
            )
        lines, rounds = self.settings["setup"], self.pipeline
        if lines is not None and not (_is_list(lines) and all(isinstance(line, str) for line in lines)):
            raise LowlossError(f"hydra.launcher.setup must be a list of lines of shell, got {lines!r}")
        if rounds is None:
            return
        if not (_is_list(rounds) and rounds and all(_is_list(stages) and stages for stages in rounds)):
            raise LowlossError(
                f"hydra.launcher.pipeline must be a list of lists of stages like [[minima],[path]], got {rounds}"
            )
        for stage in (stage for stages in rounds for stage in stages):
            if stage not in known_stages():
                known = ", ".join(known_stages())
                raise LowlossError(f"hydra.launcher.pipeline has {stage!r}, but the stages are {known}")

    def parameters(self) -> dict[str, Any]:
        """submitit's names of the settings."""
        given, same = self.settings, ("partition", "account", "qos", "constraint", "gpus_per_node", "cpus_per_task")
        return {name: given[name] for name in (*same, "array_parallelism", "signal_delay_s")} | {
            "mem": f"{given['mem_gb']}GB" if given["mem_gb"] else None,
            "time": given["timeout_min"],
            "setup": list(given["setup"] or []) or None,
            "additional_parameters": dict(given["additional_parameters"] or {}),
            "job_name": self.name,
        }

    def groups(self) -> list[tuple[str, list[str]]]:
        if self.pipeline is None:
            return [("", [])]
        return [("-" + "-".join(stages), list(stages)) for stages in self.pipeline]

    def run(self, groups: list[list[Any]]) -> list[Any]:
        from lowloss import progress
        from lowloss.launch import submit, wait_for_slurm

        numbers: dict[str, Any] = {}
        requeues, array = self.settings["requeues"], None
        # Each task is renamed to its own study when it runs.
        self.name = os.path.commonpath([job.study for jobs in groups for job in jobs]) or "lowloss"
        for jobs in groups:
            after, array = array, submit(jobs, self.folder / "submitit", requeues, array, self.parameters())
            numbers |= {f"{array}_{i}" if len(jobs) > 1 else array: job for i, job in enumerate(jobs)}
            behind = f", each after the same of {after}" if after else ""
            progress.say(f"slurm: {array} has {len(jobs)} jobs{behind}; scancel {array} ends them")
        self.announce(groups)
        if not self.wait:
            return []
        ends = wait_for_slurm(numbers, self.check_s)
        return [(job, ends[number]) for number, job in numbers.items()]


class InTurnLauncher(BasicLauncher):
    """The jobs of a sweep in this process, one after the other."""

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        from lowloss import progress

        progress.shown = True
        if (count := len(job_overrides)) > 1:
            progress.say(f"{count} jobs, one after the other; hydra/launcher=local makes each a process with a log")
        returns: Sequence[JobReturn] = super().launch(job_overrides, initial_job_idx)
        return returns
