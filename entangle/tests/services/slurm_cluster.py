"""A Slurm cluster of two nodes on this machine, which enforces memory limits.

`.ci/engines` installs the programs. Each cluster has a directory, ports and a munge key of its own.
So several clusters can run side by side, and none affects a Slurm that this machine belongs to.
Everything listens on loopback only.
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
_ACCOUNTING = ("slurmdbd", "mariadbd", "mariadb-install-db", "my_print_defaults", "sacct", "sacctmgr")
#: The cgroup controllers (version 1) that slurmd needs.
_CGROUPS = ("memory", "freezer", "cpuset")
#: What each node claims to have. More CPUs than this machine has, so that many small jobs fit.
CPUS, MEMORY, GPUS = 8, 4000, 2
NODES = ("n1", "n2")

#: Kills the daemons when the process that started them ends, in whichever way. $1: the directory.
_WATCHER = """
cat >/dev/null
pids=$(cat "$1"/slurmd-*.pid "$1"/slurmctld.pid "$1"/munged.pid "$1"/slurmdbd.pid "$1"/mariadb.pid 2>/dev/null)
kill $pids 2>/dev/null
for round in 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15 16 17 18 19 20; do
    grep -qs '^State:.[^Z]' $(printf '/proc/%s/status ' $pids) || break
    sleep 0.2
done
kill -9 $pids 2>/dev/null
rm -rf "$1"
"""


def what_is_missing(accounting: bool = False) -> str:
    """Why there can be no cluster here; an empty string if nothing is missing."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "a Slurm cluster of the tests needs Linux and root: sudo make test-engines"
    wanted = [name for name in (*_PROGRAMS, *(_ACCOUNTING if accounting else ())) if shutil.which(name, path=_PATH) is None]
    packages = "slurm-wlm munge slurmdbd mariadb-server-core mariadb-client-core" if accounting else "slurm-wlm munge"
    return f"no {', '.join(wanted)} here: .ci/engines (or: apt install {packages})" if wanted else ""


def cgroups_work() -> bool:
    """Whether the kernel can enforce limits: version 1 cgroups that this user may create."""
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
    """Two nodes, `n1` and `n2`. Each partition has both: `main`, `high`, and `low`, whose jobs are
    preempted by those of `high`.

    `by_kernel` says whether cgroups enforce memory limits, or Slurm itself, which checks once a
    second. With `accounting`, jobs are kept in a database and belong to an account: `main` without
    limits, `few` with up to three jobs, or `one`, whose jobs run one at a time.
    """

    def __init__(self, folder: Path, by_kernel: bool | None = None, nodes: tuple[str, ...] = NODES, accounting: bool = False) -> None:
        self.folder, self.nodes, self.accounting = folder, nodes, accounting
        self.by_kernel = cgroups_work() if by_kernel is None else by_kernel
        self.conf = folder / "slurm.conf"
        self._environment = {"PATH": _PATH, "LANG": "C.UTF-8", "SLURM_CONF": str(self.conf)}
        self._watcher: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start munged, the controller and the nodes. Wait until both nodes are idle."""
        folder = self.folder
        for name in ("state", "log", *(f"spool-{node}" for node in self.nodes)):
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
        if self.accounting:
            self._start_accounting()
        self.start_controller()
        for node in self.nodes:
            self.start_node(node)
        until = time.monotonic() + 60
        while set(self.state_of_nodes()) != {"idle"}:
            if time.monotonic() > until:
                raise RuntimeError(f"the nodes of Slurm are {self.state_of_nodes()} after a minute: {self.logs()}")
            time.sleep(0.1)

    def _configure(self) -> None:
        folder, host = self.folder, socket.gethostname().partition(".")[0]
        controller, self._dbd, self._database, *ports = _free_ports(3 + len(self.nodes))
        accounting = (
            f"AccountingStorageType=accounting_storage/slurmdbd\nAccountingStorageHost=127.0.0.1\nAccountingStoragePort={self._dbd}\n"
            f"AccountingStoragePass={folder}/munge.sock\n"
            "AccountingStorageEnforce=associations,limits\nMaxArraySize=8"
            if self.accounting
            else "AccountingStorageType=accounting_storage/none"
        )
        keeping = (
            "ProctrackType=proctrack/cgroup\nTaskPlugin=task/cgroup\nJobAcctGatherType=jobacct_gather/none"
            if self.by_kernel
            else "ProctrackType=proctrack/linuxproc\nTaskPlugin=task/none\nJobAcctGatherType=jobacct_gather/linux\n"
            "JobAcctGatherFrequency=task=1\nJobAcctGatherParams=OverMemoryKill"
        )
        nodes = "\n".join(
            f"NodeName={node} NodeHostname={host} NodeAddr=127.0.0.1 Port={port} CPUs={CPUS} RealMemory={MEMORY} Gres=gpu:{GPUS}"
            for node, port in zip(self.nodes, ports, strict=True)
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
{accounting}
PreemptType=preempt/partition_prio
PreemptMode=CANCEL
JobCompType=jobcomp/none
MinJobAge=3600
GresTypes=gpu
{nodes}
PartitionName=main Nodes=ALL Default=YES MaxTime=INFINITE State=UP PreemptMode=OFF
PartitionName=low Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=1
PartitionName=high Nodes=ALL MaxTime=INFINITE State=UP PriorityTier=2
"""
        )
        devices = ("/dev/zero", "/dev/full")
        (folder / "gres.conf").write_text(
            "".join(f"NodeName={node} Name=gpu File={file}\n" for node in self.nodes for file in devices[:GPUS])
        )
        if self.by_kernel:
            (folder / "cgroup.conf").write_text(
                "CgroupMountpoint=/sys/fs/cgroup\nCgroupAutomount=no\nCgroupPlugin=cgroup/v1\nConstrainRAMSpace=yes\nConstrainSwapSpace=no\n"
                "ConstrainCores=no\nConstrainDevices=no\n"
            )

    def _start_accounting(self) -> None:
        """Start a database and slurmdbd, and create the accounts."""
        folder, password = self.folder, os.urandom(16).hex()
        socket_file = f"{folder}/mariadb.sock"
        self.run("mariadb-install-db", "--no-defaults", f"--datadir={folder}/database", "--user=root", "--skip-test-db")
        first = folder / "first.sql"
        first.write_text(
            f"create database accounting;\ncreate user slurm@'127.0.0.1' identified by '{password}';\n"
            "grant all on accounting.* to slurm@'127.0.0.1';\n"
        )
        options = ("--innodb-flush-log-at-trx-commit=0", "--innodb-buffer-pool-size=64M", f"--init-file={first}")
        places = (f"--datadir={folder}/database", f"--socket={socket_file}", f"--pid-file={folder}/mariadb.pid")
        listening = ("--bind-address=127.0.0.1", f"--port={self._database}", "--skip-name-resolve", "--user=root")
        log = folder / "log" / "mariadb.log"
        self.run("sh", "-c", '"$@" >"$0" 2>&1 </dev/null &', str(log), "mariadbd", "--no-defaults", *places, *listening, *options)
        conf = folder / "slurmdbd.conf"
        conf.write_text(
            f"AuthType=auth/munge\nAuthInfo=socket={folder}/munge.sock\nDbdHost=localhost\nDbdAddr=127.0.0.1\nDbdPort={self._dbd}\n"
            f"SlurmUser=root\nPidFile={folder}/slurmdbd.pid\nLogFile={folder}/log/slurmdbd.log\n"
            f"StorageType=accounting_storage/mysql\nStorageHost=127.0.0.1\nStoragePort={self._database}\nStorageUser=slurm\n"
            f"StoragePass={password}\nStorageLoc=accounting\n"
        )
        conf.chmod(0o600)
        until = time.monotonic() + 60
        while not log.exists() or "ready for connections" not in log.read_text(errors="replace"):
            if time.monotonic() > until:
                raise RuntimeError(f"MariaDB does not start: {self.logs()}")
            time.sleep(0.05)
        self.run("slurmdbd")  # slurmdbd waits for its database
        while not self.run("sacctmgr", "--noheader", "show", "user", check=False):
            if time.monotonic() > until:
                raise RuntimeError(f"slurmdbd does not answer: {self.logs()}")
            time.sleep(0.1)
        self.run("sacctmgr", "-i", "add", "cluster", "entangle")
        for account, limits in (("main", ()), ("few", ("MaxSubmitJobs=3",)), ("one", ("MaxJobs=1",))):
            self.run("sacctmgr", "-i", "add", "account", account, "cluster=entangle")
            self.run("sacctmgr", "-i", "add", "user", "root", f"account={account}", "cluster=entangle", *limits)
        self.run("sacctmgr", "-i", "modify", "user", "root", "set", "defaultaccount=main")

    def run(self, *command: str, check: bool = True) -> str:
        """Run a program of Slurm with this cluster's configuration. Return its stdout."""
        program = shutil.which(command[0], path=_PATH) or command[0]
        done = subprocess.run([program, *command[1:]], capture_output=True, text=True, env=self._environment, timeout=60, check=False)
        if check and done.returncode:
            raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip() or done.stdout.strip()} {self.logs()}")
        return done.stdout

    def start_controller(self) -> None:
        """Start slurmctld."""
        self.run("slurmctld", "-f", str(self.conf))

    def stop_controller(self) -> None:
        """Stop slurmctld, and wait until it has ended. Running jobs continue."""
        self._end(self.folder / "slurmctld.pid", signal.SIGTERM)

    def start_node(self, node: str) -> None:
        """Start the slurmd of a node."""
        self.run("slurmd", "-f", str(self.conf), "-N", node)

    def kill_node(self, node: str) -> None:
        """Kill the slurmd of a node. Its job steps continue."""
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
        """The states of the nodes by `sinfo`, which prints a line for each partition of a node."""
        lines = self.run("sinfo", "--noheader", "--Node", "--format=%N %T", check=False).splitlines()
        return list(dict(line.split() for line in lines if line.strip()).values())

    def jobs(self) -> list[str]:
        """The ids of pending and running jobs."""
        return self.run("squeue", "--noheader", "--format=%i").split()

    def logs(self) -> str:
        """The tails of all logs."""
        tails = []
        for log in sorted((self.folder / "log").glob("*.log")):
            with contextlib.suppress(OSError):
                tails.append(f"--- {log.name}\n" + "\n".join(log.read_text(errors="replace").splitlines()[-15:]))
        return "\n".join(tails)

    def stop(self) -> None:
        """Stop everything, and remove the directory."""
        with contextlib.suppress(RuntimeError, subprocess.TimeoutExpired):
            self.run("scancel", "--user=root", check=False)
            until = time.monotonic() + 10
            while self.jobs() and time.monotonic() < until:
                time.sleep(0.1)
        if self._watcher is not None and self._watcher.stdin is not None:
            self._watcher.stdin.close()
            self._watcher.wait(30)
        if self.by_kernel:
            _remove_cgroups(self.nodes)


def _remove_cgroups(nodes: tuple[str, ...]) -> None:
    """Remove the cgroups of our nodes: slurmd does not."""
    for controller in os.listdir("/sys/fs/cgroup"):
        for node in nodes:
            top = f"/sys/fs/cgroup/{controller}/slurm_{node}"
            for folder, _, _ in os.walk(top, topdown=False):
                with contextlib.suppress(OSError):
                    os.rmdir(folder)


@contextlib.contextmanager
def slurm_cluster(by_kernel: bool | None = None, nodes: tuple[str, ...] = NODES, accounting: bool = False) -> Iterator[SlurmCluster]:
    """A cluster for the time of the block. SLURM_CONF names its configuration meanwhile."""
    # Not in a directory that the leak check searches: these processes outlive single tests.
    folder = Path(tempfile.mkdtemp(prefix="entangle-slurm-"))
    cluster = SlurmCluster(folder, by_kernel, nodes, accounting)
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
