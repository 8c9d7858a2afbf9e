"""A real one-node SLURM without systemd, cgroups or accounting, in a folder of its own; for root only."""

import contextlib
import os
import pwd
import shutil
import signal
import socket
import subprocess
import time

import pytest

PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scontrol", "scancel")

CONFIGURATION = """
ClusterName=lowloss
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge/socket,cred_expire=5
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU
SchedulerParameters=sched_interval=1,sched_min_interval=0,batch_sched_delay=0,bf_interval=1,requeue_setup_env_fail
MpiDefault=none
ReturnToService=2
KillWait=3
OverTimeLimit=0
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory=1000 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
PartitionName=short Nodes={host} MaxTime=5 State=UP
"""


def missing():
    """Why there can be no SLURM here, or None."""
    if os.name != "posix" or os.geteuid():
        return "a SLURM of its own needs root"
    lacking = [name for name in PROGRAMS if not shutil.which(name)]
    if lacking:
        return f"{', '.join(lacking)} missing: apt-get install slurmctld slurmd slurm-client munge"
    return None


def free_ports(count):
    with contextlib.ExitStack() as stack:
        sockets = [stack.enter_context(socket.socket()) for _ in range(count)]
        for one in sockets:
            one.bind(("127.0.0.1", 0))
        return [one.getsockname()[1] for one in sockets]


@contextlib.contextmanager
def cluster(folder, cpus=2):
    """Bring SLURM up; yields the environment in which its commands find it; takes it down at the end."""
    reason = missing()
    if reason:
        pytest.skip(f"no SLURM here: {reason}")
    for name in ("munge", "state", "spool"):
        (folder / name).mkdir()
    folder.chmod(0o755)
    key = folder / "munge" / "key"
    key.write_bytes(os.urandom(1024))
    key.chmod(0o400)
    host = socket.gethostname().split(".")[0]
    file = folder / "slurm.conf"
    file.write_text(CONFIGURATION.format(folder=folder, host=host, cpus=cpus, ports=free_ports(2)))
    environment = {**os.environ, "SLURM_CONF": str(file)}
    started = []

    def start(*command):
        with open(folder / f"{command[0]}.out", "wb") as out:
            started.append(subprocess.Popen(command, env=environment, stdout=out, stderr=out, start_new_session=True))

    try:
        start(
            "munged", "--foreground", "--force", f"--key-file={key}", f"--socket={folder}/munge/socket",
            f"--pid-file={folder}/munge/pid", f"--log-file={folder}/munge/log", f"--seed-file={folder}/munge/seed",
        )  # fmt: skip
        until(lambda: (folder / "munge" / "socket").exists(), "munged is up")
        start("slurmctld", "-D", "-c", "-f", str(file))
        start("slurmd", "-D", "-N", host, "-f", str(file))
        until(lambda: "idle" in ask(environment, "sinfo", "-h", "-o", "%T"), "the node is idle")
        yield environment
    finally:
        with contextlib.suppress(subprocess.SubprocessError):
            subprocess.run(["scancel", "--full", "--user", pwd.getpwuid(0).pw_name], env=environment, timeout=10)
            until(lambda: not ask(environment, "squeue", "-h"), "no job is left", 15)
        for process in reversed(started):
            process.send_signal(signal.SIGTERM)
        for process in started:
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(10)
            process.kill()


def ask(environment, *command):
    return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=30).stdout.strip()


def until(holds, what, seconds=30):
    deadline = time.monotonic() + seconds
    while not holds():
        if time.monotonic() > deadline:
            raise subprocess.SubprocessError(f"after {seconds} s not: {what}")
        time.sleep(0.1)
