"""A Slurm cluster of two nodes on this machine, with memory limits that are kept.

`.ci/engines` installs the programs. Each cluster has a folder, ports and a munge key of its own, so
several can run side by side, and none touches a Slurm that this machine belongs to. All of it
listens on loopback alone.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..evidence import alive

_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"])
_PROGRAMS = ("slurmctld", "slurmd", "munged", "srun", "salloc", "sbatch", "squeue", "scontrol")
#: The controllers of cgroups, version 1, that slurmd wants.
_CGROUPS = ("memory", "freezer", "cpuset")
#: What each node says it has. More CPUs than there are, so that many small jobs fit.
CPUS, MEMORY, GPUS = 8, 4000, 2
NODES = ("n1", "n2")

#: Ends the daemons once the process that started them is gone, however that ended. $1: the folder.
_WATCHER = """
cat >/dev/null
pids=$(cat "$1"/slurmd-*.pid "$1"/slurmctld.pid "$1"/munged.pid 2>/dev/null)
kill $pids 2>/dev/null
for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    grep -qs '^State:.[^Z]' $(printf '/proc/%s/status ' $pids) || break
    sleep 0.2
done
kill -9 $pids 2>/dev/null
rm -rf "$1"
"""


def what_is_missing() -> str:
    """What must be installed before there can be a cluster, in words; empty if nothing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm cluster of the tests needs Linux and root: sudo make test-engines"
    wanted = [name for name in _PROGRAMS if shutil.which(name, path=_PATH) is None]
    return f"no {', '.join(wanted)} here: .ci/engines (or: apt install slurm-wlm munge)" if wanted else ""


def cgroups_work() -> bool:
    """Whether limits can be kept by the kernel: cgroups of version 1 that we may make."""
    for controller in _CGROUPS:
        probe = f"/sys/fs/cgroup/{controller}/entangle-probe-{os.getpid()}"
        try:
            os.mkdir(probe)
            os.rmdir(probe)
        except OSError:
            return False
    return True


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.bind(("127.0.0.1", 0))
            found.append(sock.getsockname()[1])
    return found


class SlurmCluster:
    """Two nodes, `n1` and `n2`, in one partition `main`, which has them all.

    `by_kernel` says who keeps memory limits: cgroups, or Slurm itself, which looks each second.
    """

    def __init__(self, folder: Path, by_kernel: bool | None = None) -> None:
        self.folder = folder
        self.by_kernel = cgroups_work() if by_kernel is None else by_kernel
        self.conf = folder / "slurm.conf"
        self._environment = {"PATH": _PATH, "LANG": "C.UTF-8", "SLURM_CONF": str(self.conf)}
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start munged, the controller and the nodes; wait until both are idle."""
        folder = self.folder
        for name in ("state", "log", *(f"spool-{node}" for node in NODES)):
            (folder / name).mkdir(parents=True)
        key = folder / "munge.key"
        key.write_bytes(os.urandom(1024))
        key.chmod(0o400)
        self._configure()
        self._watcher = subprocess.Popen(
            ["sh", "-c", _WATCHER, "slurm-watcher", str(folder)], stdin=subprocess.PIPE, start_new_session=True
        )
        self.run(
            "munged",
            "--force",
            f"--key-file={key}",
            f"--socket={folder}/munge.sock",
            f"--pid-file={folder}/munged.pid",
            f"--log-file={folder}/log/munged.log",
            f"--seed-file={folder}/munge.seed",
            "--num-threads=2",
        )
        self.start_controller()
        for node in NODES:
            self.start_node(node)
        until = time.monotonic() + 60
        while self.state_of_nodes() != ["idle"] * len(NODES):
            if time.monotonic() > until:
                raise RuntimeError(f"the nodes of Slurm are {self.state_of_nodes()} after a minute: {self.logs()}")
            time.sleep(0.1)

    def _configure(self) -> None:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        controller, *ports = _free_ports(1 + len(NODES))
        keeping = (
            "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\nJobAcctGatherType=jobacct_gather/none"
            if self.by_kernel
            else "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/linux\n"
            "JobAcctGatherFrequency=task=1\nJobAcctGatherParams=OverMemoryKill"
        )
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory={MEMORY} Gres=gpu:{GPUS}"
            for node, port in zip(NODES, ports, strict=True)
        )
        self.conf.write_text(
            f"""ClusterName=entangle
SlurmctldHost={host}(127.0.0.1)
AuthType=auth/munge
AuthInfo=socket={folder}/munge.sock
CredType=cred/munge
SlurmUser=root
SlurmdUser=root
SlurmctldPort={controller}
SlurmdParameters=config_overrides
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmdSpoolDir={folder}/spool-%n
StateSaveLocation={folder}/state
SlurmctldLogFile={folder}/log/slurmctld.log
SlurmdLogFile={folder}/log/slurmd-%n.log
{keeping}
MpiDefault=none
ReturnToService=2
SchedulerType=sched/backfill
SchedulerParameters=sched_interval=1,bf_interval=1,batch_sched_delay=0,sched_min_interval=1000
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
DefMemPerCPU=100
OverTimeLimit=0
KillWait=2
AccountingStorageType=accounting_storage/none
JobCompType=jobcomp/none
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP
"""
        )
        devices = ("/dev/zero", "/dev/full")
        (folder / "gres.conf").write_text("".join(f"NodeName={node} Name=gpu File={file}\n" for node in NODES for file in devices[:GPUS]))
        if self.by_kernel:
            (folder / "cgroup.conf").write_text(
                "CgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\nCgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nConstrainSwapSpace=no\n"
                "ConstrainCores=no\nConstrainDevices=no\n"
            )

    def run(self, *command: str, check: bool = True) -> str:
        """Run a program of Slurm with this cluster's configuration; gives what it prints."""
        program = shutil.which(command[0], path=_PATH) or command[0]
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, env=self._environment, timeout=60, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()} {self.logs()}")
        return done.stdout

    def start_controller(self) -> None:
        """Start slurmctld."""
        self.run("slurmctld", "-f", str(self.conf))

    def stop_controller(self) -> None:
        """End slurmctld, and wait until it is gone. Jobs that run go on."""
        self._end(self.folder / "slurmctld.pid", signal.SIGTERM)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self.run("slurmd", "-f", str(self.conf), "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill the slurmd of a node. Its steps go on."""
        self._end(self.folder / f"slurmd-{node}.pid", signal.SIGKILL)

    def _end(self, file: Path, number: signal.Signals) -> None:
        pid = int(file.read_text())
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, number)
        until = time.monotonic() + 30
        while alive(pid):
            if time.monotonic() > until:
                raise RuntimeError(f"{file.stem} ({pid}) does not end: {self.logs()}")
            time.sleep(0.05)
        file.unlink(missing_ok=True)

    def state_of_nodes(self) -> list[str]:
        """What `sinfo` says of each node."""
        return self.run("sinfo", "--noheader", "--Node", "--format=%T", check=False).split()

    def jobs(self) -> list[str]:
        """The numbers of the jobs that wait or run."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def logs(self) -> str:
        """The tails of all logs."""
        tails = []
        for log in sorted((self.folder / "log").glob("*.log")):
            with contextlib.suppress(OSError):
                tails.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(tails)

    def stop(self) -> None:
        """End all of it, and remove its folder."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--user=root", check=False)
            until = time.monotonic() + 10
            while self.jobs() and time.monotonic() < until:
                time.sleep(0.1)
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
            self._watcher.wait(30)
        if self.by_kernel:
            _remove_cgroups()


def _remove_cgroups() -> None:
    """Remove the cgroups of our nodes, which slurmd leaves behind."""
    for controller in os.listdir("/sys/fs/cgroup"):
        for node in NODES:
            top = f"/sys/fs/cgroup/{controller}/slurm_{node}"
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


@contextlib.contextmanager
def slurm_cluster(by_kernel: bool | None = None) -> Iterator[SlurmCluster]:
    """A cluster that ends with this block. SLURM_CONF names it meanwhile."""
    # Not among what the tests look through: its processes are there before a test and after it.
    folder = Path(tempfile.mkdtemp(prefix="entangle-slurm-"))
    cluster = SlurmCluster(folder, by_kernel)
    earlier = os.environ.get("SLURM_CONF")
    try:
        cluster.start()
        os.environ["SLURM_CONF"] = str(cluster.conf)
        yield cluster
    finally:
        if earlier is None:
            os.environ.pop("SLURM_CONF", None)
        else:
            os.environ["SLURM_CONF"] = earlier
        cluster.stop()
        shutil.rmtree(folder, ignore_errors=True)
