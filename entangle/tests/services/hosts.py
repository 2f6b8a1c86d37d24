"""Three hosts with an ssh server each, on this machine.

As root on Linux, each is a network namespace with its own host name and `/dev/shm`, and with its
own cable to a common switch. The cable can be cut. Otherwise, each is an address of the loopback
interface, with its own port.

::

    test process ── 198.18.N.1 ──┐
                                 ├── switch (a namespace with a bridge)
    alpha ── 198.18.N.2 ─────────┤
    bravo ── 198.18.N.3 ─────────┤      cut("alpha"): the port of alpha goes down, as if unplugged
    carol ── 198.18.N.4 ─────────┘
"""

from __future__ import annotations

import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..evidence import alive, wait_until

NAMES = ("alpha", "bravo", "carol")
_PATH = os.pathsep.join([os.environ.get("PATH", os.defpath), "/usr/sbin", "/sbin", "/usr/local/sbin"])
#: The prefix of our namespaces' names. The pid of the test process follows, so that namespaces of
#: dead processes can be recognised.
_MARK = "entangle-tests-"
_networks = itertools.count()


def program(name: str) -> str | None:
    """The path of a program; system programs are not on every user's PATH."""
    return shutil.which(name, path=_PATH)


def what_is_missing() -> str:
    """Why there can be no hosts here; an empty string if nothing is missing."""
    wanted = [name for name in ("sshd", "ssh", "ssh-keygen") if program(name) is None]
    return f"no {', '.join(wanted)} here: make services (or: apt install openssh-server openssh-client)" if wanted else ""


def can_have_namespaces() -> bool:
    """Whether this user may make network namespaces."""
    return sys.platform == "linux" and os.geteuid() == 0 and program("ip") is not None and _try("ip", "netns", "list")


def this_python() -> str:
    """The interpreter below our virtual environment: the same Python without our packages."""
    return os.path.realpath(getattr(sys, "_base_executable", None) or sys.executable)


def _do(*command: str) -> str:
    found = program(command[0])
    done = subprocess.run([found or command[0], *command[1:]], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)}: {done.stderr.strip()}")
    return done.stdout


def _try(*command: str) -> bool:
    try:
        _do(*command)
    except (RuntimeError, OSError):
        return False
    return True


class Host:
    """A host: its address, its port, its ssh server, and the faults it can have."""

    def __init__(self, name: str, address: str, port: int, folder: Path, namespace: str = "", switch: str = "", settings: str = "") -> None:
        self.name, self.address, self.port, self.folder = name, address, port, folder
        self.namespace, self._switch = namespace, switch
        self.settings = settings
        self.host_key = folder / f"{name}.host_key"
        self._server: subprocess.Popen[bytes] | None = None

    @property
    def server(self) -> int:
        """The pid of the ssh server."""
        assert self._server is not None
        return self._server.pid

    def start(self) -> None:
        """Start the ssh server and wait until it greets."""
        configuration = self.folder / f"{self.name}.sshd_config"
        configuration.write_text(
            f"""ListenAddress {self.address}
Port {self.port}
HostKey {self.host_key}
AuthorizedKeysFile {self.folder}/authorized_keys
PidFile none
UsePAM no
StrictModes no
PasswordAuthentication no
KbdInteractiveAuthentication no
PermitRootLogin prohibit-password
PrintMotd no
{self.settings}
"""
        )
        sshd = program("sshd")
        assert sshd is not None
        # The server dies with this process, however it ends. sshd must be started by its full path.
        command = [*self._deadly(), sshd, "-D", "-e", "-f", str(configuration)]
        if self.namespace:
            # A `/dev/shm` of its own, and under /mnt a small disk.
            mounts = "mount -t tmpfs -o size=64m tmpfs /dev/shm && mount -t tmpfs -o size=8m tmpfs /mnt"
            script = f'{mounts} && hostname {self.name} && exec "$@"'
            command = ["ip", "netns", "exec", self.namespace, "unshare", "--uts", "sh", "-c", script, "sh", *command]
        with open(self.folder / f"{self.name}.log", "ab") as log:
            self._server = subprocess.Popen(
                [program(command[0]) or command[0], *command[1:]],
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={"PATH": _PATH, "LANG": "C.UTF-8"},
                start_new_session=True,
            )
        wait_until(self._greets, 20, f"the ssh server of {self.name}: {self.log()}")

    def _deadly(self) -> list[str]:
        setpriv = program("setpriv")
        return [setpriv, "--pdeathsig", "KILL"] if setpriv else []

    def _greets(self) -> bool:
        assert self._server is not None
        if self._server.poll() is not None:
            raise AssertionError(f"the ssh server of {self.name} has ended: {self.log()}")
        try:
            with socket.create_connection((self.address, self.port), 5) as connection:
                return connection.recv(4) == b"SSH-"
        except OSError:
            return False

    def log(self) -> str:
        """The end of the server's log."""
        with suppress(OSError):
            return (self.folder / f"{self.name}.log").read_text(errors="replace")[-2000:]
        return ""

    def handshakes(self) -> int:
        """How many logins there have been since the host was made."""
        return (self.folder / f"{self.name}.log").read_text(errors="replace").count("Accepted publickey")

    def processes(self) -> list[int]:
        """The pids of everything that logins have started: the server's descendants, without the
        server itself."""
        if self._server is None:
            return []
        found, edge = [], [self._server.pid]
        parents = _parents()
        while edge:
            parent = edge.pop()
            children = [pid for pid, above in parents.items() if above == parent]
            found += children
            edge += children
        return [pid for pid in found if alive(pid)]

    def kill_server(self, *, sessions: bool = False) -> None:
        """Kill the server; with `sessions`, also its processes for the open logins, as if the
        machine had crashed."""
        assert self._server is not None
        carriers = [pid for pid in self.processes() if b"sshd" in _command(pid)] if sessions else []
        for pid in [self._server.pid, *carriers]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait()

    def stop(self) -> None:
        """Stop the server and its sessions."""
        if self._server is None:
            return
        for pid in [self._server.pid, *self.processes()]:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._server.wait()
        self._server = None

    def cut(self) -> None:
        """Cut the cable: packets are lost, and no side is notified."""
        assert self._switch, "cables can be cut only where hosts are network namespaces"
        _do("ip", "-n", self._switch, "link", "set", self.name, "down")

    def mend(self) -> None:
        """Repair the cable."""
        _do("ip", "-n", self._switch, "link", "set", self.name, "up")

    def inside(self, path: str) -> Path:
        """A path of this host as seen from here: its `/dev/shm` is another one than ours."""
        return Path(f"/proc/{self.server}/root{path}") if self.namespace else Path(path)


def _parents() -> dict[int, int]:
    found = {}
    for name in os.listdir("/proc"):
        if name.isdigit():
            with suppress(OSError, IndexError, ValueError):
                found[int(name)] = int(Path(f"/proc/{name}/stat").read_bytes().rpartition(b")")[2].split()[1])
    return found


def _command(pid: int) -> bytes:
    with suppress(OSError):
        return Path(f"/proc/{pid}/cmdline").read_bytes()
    return b""


class Hosts:
    """The three hosts, the user's key, and the files of a user's `~/.ssh`."""

    def __init__(self, folder: Path, hosts: Sequence[Host]) -> None:
        self.folder, self.hosts = folder, {host.name: host for host in hosts}
        self.key = folder / "key"
        self.known_hosts = folder / "known_hosts"
        self.user = _user()

    def __getitem__(self, name: str) -> Host:
        return self.hosts[name]

    @property
    def namespaces(self) -> bool:
        """Whether the hosts are network namespaces, whose cables can be cut."""
        return bool(next(iter(self.hosts.values())).namespace)

    def options(self, name: str, **others: Any) -> dict[str, Any]:
        """The options of `@ssh` for a host."""
        host = self.hosts[name]
        found: dict[str, Any] = {
            "user": self.user,
            "host": host.address,
            "key": str(self.key),
            "known_hosts": str(self.known_hosts),
            "python": this_python(),
        }
        if host.port != 22:
            found["port"] = host.port
        return {**found, **others}

    def client_configuration(self) -> Path:
        """Write a `~/.ssh/config` that defines the hosts' names."""
        path = self.folder / "ssh_config"
        parts = [f"IdentityFile {self.key}\nUserKnownHostsFile {self.known_hosts}\nGlobalKnownHostsFile /dev/null\nUser {self.user}\n"]
        parts += [f"Host {host.name}\n  HostName {host.address}\n  Port {host.port}\n" for host in self.hosts.values()]
        path.write_text("".join(reversed(parts)).replace("IdentityFile", "Host *\n  IdentityFile", 1))
        return path


def _user() -> str:
    import pwd

    return pwd.getpwuid(os.geteuid()).pw_name


def make_key(path: Path) -> None:
    """Make a key pair at `path` and `path`.pub, without a passphrase."""
    for old in (path, path.with_name(path.name + ".pub")):
        old.unlink(missing_ok=True)
    _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "entangle-tests", "-f", str(path))


def _known_hosts_line(host: Host) -> str:
    where = host.address if host.port == 22 else f"[{host.address}]:{host.port}"
    kind, key = host.host_key.with_name(host.host_key.name + ".pub").read_text().split()[:2]
    return f"{where} {kind} {key}\n"


def write_known_hosts(hosts: Hosts) -> None:
    """Write the key of each host to known_hosts."""
    hosts.known_hosts.write_text("".join(_known_hosts_line(host) for host in hosts.hosts.values()))


@contextmanager
def three_hosts(folder: Path, settings: str = "") -> Iterator[Hosts]:
    """Three hosts with running ssh servers, for the time of the block. `settings` are additional
    lines of sshd_config."""
    folder.chmod(0o700)
    if os.geteuid() == 0:
        # The server chroots there; normally the init system creates it.
        os.makedirs("/run/sshd", mode=0o755, exist_ok=True)
    owner = os.getpid()
    with _network() as network:
        made = []
        for number, name in enumerate(NAMES):
            namespace, switch, address, port = network(number, name)
            made.append(Host(name, address, port, folder, namespace, switch, settings))
        hosts = Hosts(folder, made)
        make_key(hosts.key)
        shutil.copy(f"{hosts.key}.pub", folder / "authorized_keys")
        for host in made:
            make_key(host.host_key)
        write_known_hosts(hosts)
        try:
            for host in made:
                host.start()
            yield hosts
        finally:
            # A child that was forked here may leave this block as well, when Python exits: only the
            # owner stops the hosts.
            for host in made if os.getpid() == owner else ():
                host.stop()


@contextmanager
def _network() -> Iterator[Any]:
    """A function that returns the network of the k-th host: its namespace, its switch, its address
    and its port."""
    if not can_have_namespaces():
        yield lambda number, name: ("", "", f"127.0.0.{number + 2}" if sys.platform == "linux" else "127.0.0.1", _free_port())
        return
    _remove_stale()
    owner = os.getpid()
    number = next(_networks)
    me = f"{_MARK}{os.getpid()}-{number}"
    switch = f"{me}-switch"
    cable = f"ent{os.getpid()}-{number}"  # names of interfaces have 15 characters at most
    namespaces = [switch]
    subnet = _free_subnet()
    try:
        _do("ip", "netns", "add", switch)
        _do("ip", "-n", switch, "link", "add", "bridge", "type", "bridge")
        _do("ip", "-n", switch, "link", "set", "bridge", "up")
        _do("ip", "link", "add", cable, "type", "veth", "peer", "name", "uplink", "netns", switch)
        _do("ip", "-n", switch, "link", "set", "uplink", "master", "bridge", "up")
        _do("ip", "addr", "add", f"{subnet}.1/24", "dev", cable)
        _do("ip", "link", "set", cable, "up")

        def plug(number: int, name: str) -> tuple[str, str, str, int]:
            namespace, address = f"{me}-{name}", f"{subnet}.{number + 2}"
            _do("ip", "netns", "add", namespace)
            namespaces.append(namespace)
            _do("ip", "-n", namespace, "link", "add", "eth0", "type", "veth", "peer", "name", name, "netns", switch)
            _do("ip", "-n", switch, "link", "set", name, "master", "bridge", "up")
            _do("ip", "-n", namespace, "addr", "add", f"{address}/24", "dev", "eth0")
            _do("ip", "-n", namespace, "link", "set", "eth0", "up")
            _do("ip", "-n", namespace, "link", "set", "lo", "up")
            return namespace, switch, address, 22

        yield plug
    finally:
        if os.getpid() == owner:
            _try("ip", "link", "del", cable)
            for namespace in reversed(namespaces):
                _try("ip", "netns", "del", namespace)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def _free_subnet() -> str:
    """A free network of 198.18.0.0/15, which is reserved for network tests (RFC 2544)."""
    taken = _do("ip", "-o", "addr", "show")
    first = os.getpid() % 250
    for step in range(250):
        subnet = f"198.18.{(first + step) % 250 + 1}"
        if f" {subnet}." not in taken:
            return subnet
    raise RuntimeError("no network is free in 198.18.0.0/16")


def _remove_stale() -> None:
    """Remove the namespaces of test processes that were killed."""
    for line in _do("ip", "netns", "list").splitlines():
        name = line.split()[0]
        owner = name.removeprefix(_MARK).partition("-")[0]
        if name.startswith(_MARK) and owner.isdigit() and not alive(int(owner)):
            for pid in _do("ip", "netns", "pids", name).split():
                with suppress(ProcessLookupError):
                    os.kill(int(pid), signal.SIGKILL)
            end = time.monotonic() + 5
            while _do("ip", "netns", "pids", name).split() and time.monotonic() < end:
                time.sleep(0.01)
            _try("ip", "netns", "del", name)
