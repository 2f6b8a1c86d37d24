"""Contestants in other places: entangle by ssh, in a container and on Slurm, and the bare programs.

The ssh server is our own, on the loopback interface; the container's image is ENTANGLE_IMAGE, or
that of `make services`.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import struct
import subprocess
import sys
import tempfile
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

from benchmarks.contestants import CONTESTANTS, Contestant, Entangle

IMAGE = os.environ.get("ENTANGLE_IMAGE", "entangle-tests:1")


class WithServer:
    """An ssh server for as long as a visit lasts."""

    def serve(self) -> dict[str, Any]:
        """Start it; give the options of @ssh for it."""
        if shutil.which("ssh") is None or shutil.which("sshd", path=os.environ.get("PATH", "") + ":/usr/sbin") is None:
            raise ImportError("no OpenSSH here")
        self.stack = contextlib.ExitStack()
        folder = self.stack.enter_context(tempfile.TemporaryDirectory(prefix="ssh-"))
        hosts: Any = import_module("entangle.examples.hosts")
        options: dict[str, Any] = self.stack.enter_context(hosts.server(Path(folder), "server"))
        return options


class EntangleSsh(Entangle, WithServer):
    """entangle, tasks under @ssh."""

    name = "entangle by ssh"
    short = "by ssh"
    transport: ClassVar[str] = "openssh"

    def start(self) -> None:
        os.environ["ENTANGLE_RECORD"] = "0"  # P13 has what recording costs
        self.options = {**self.serve(), "transport": self.transport}
        self.ssh: Any = import_module("entangle.ssh")

    def stop(self) -> None:
        self.hang_up()
        self.stack.close()

    def hang_up(self) -> None:
        """End the agent, and with it the login."""
        import_module("entangle._remote.caller.open_channels").close_all()

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        decorated: Callable[..., Any] = self.ssh.ssh(**self.options)(function)
        return decorated


class EntangleParamiko(EntangleSsh):
    """entangle, tasks under @ssh(transport="paramiko")."""

    name = "entangle by paramiko"
    short = "by paramiko"
    transport = "paramiko"

    def start(self) -> None:
        import_module("paramiko")
        super().start()


class EntangleFarSsh(EntangleSsh):
    """entangle, tasks under @ssh, over a network on which an answer takes 50 ms."""

    name = "entangle by ssh, 50 ms away"
    short = "by ssh, 50 ms away"
    LATENCY: ClassVar[float] = 0.05

    def start(self) -> None:
        super().start()
        command = [sys.executable, "-m", "benchmarks.relay", str(self.options["port"]), str(self.LATENCY / 2)]
        self.relay = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        assert self.relay.stdout is not None
        self.options = {**self.options, "port": int(self.relay.stdout.readline()), "known_hosts": False}

    def stop(self) -> None:
        self.hang_up()
        self.relay.communicate()
        super().stop()


class BareSsh(Contestant, WithServer):
    """The ssh program by hand."""

    name = "ssh by hand"
    short = "ssh"

    def start(self) -> None:
        options = self.serve()
        self.command = ["ssh", "-F", "none", "-o", "BatchMode=yes", "-o", f"UserKnownHostsFile={options['known_hosts']}"]
        self.command += ["-i", options["key"], "-p", str(options["port"]), "-l", options["user"], options["host"]]

    def stop(self) -> None:
        self.stack.close()

    def run(self, *words: str, data: bytes = b"") -> bytes:
        """Log in, run a command, and give what it printed."""
        return subprocess.run([*self.command, *words], input=data, stdout=subprocess.PIPE, check=True).stdout


ECHO = (
    "import sys; r, w = sys.stdin.buffer, sys.stdout.buffer\nwhile h := r.read(8): w.write(h + r.read(int.from_bytes(h, 'big'))); w.flush()"
)


class BareFrames(BareSsh):
    """Empty frames, there and back over one exec channel of the ssh program."""

    name = "frames over ssh by hand"
    short = "frames"

    def start(self) -> None:
        super().start()
        self.program = subprocess.Popen(
            [*self.command, f'{sys.executable} -c "{ECHO}"'], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )
        self.echo(b"warm")

    def stop(self) -> None:
        self.program.communicate()
        super().stop()

    def echo(self, data: bytes) -> bytes:
        """One frame there and back."""
        assert self.program.stdin is not None
        assert self.program.stdout is not None
        self.program.stdin.write(struct.pack(">Q", len(data)) + data)
        return os.read(self.program.stdout.fileno(), 65536)[8:]


class EntangleDocker(Entangle):
    """entangle, tasks under @docker."""

    name = "entangle by docker"
    short = "by docker"

    def start(self) -> None:
        without_docker()
        import_module("docker")
        self.door: Any = import_module("entangle.docker")
        self.here: Any = import_module("entangle.workflow")

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        decorated: Callable[..., Any] = self.door.docker(image=IMAGE)(function)
        return decorated

    def within(self, function: Callable[..., Any]) -> Any:
        """Run a function within one run, whose container stays."""
        return self.here.workflow(function)()()


class DockerExec(Contestant):
    """`docker exec` of a Python in a container that runs."""

    name = "docker exec"
    short = "docker exec"

    def start(self) -> None:
        without_docker()
        self.container = docker("run", "--detach", "--rm", IMAGE, "sleep", "600").strip()

    def stop(self) -> None:
        docker("kill", self.container)

    def run(self) -> int:
        """One Python, from its start to its end."""
        return int(docker("exec", self.container, "python3", "-c", "print(1 + 1)"))


class WithSlurm:
    """A Slurm of two nodes on this machine, for as long as a visit lasts."""

    def serve(self) -> None:
        """Start it. Raises ImportError where it is not installed."""
        clusters: Any = import_module("entangle.tests.services.slurm_cluster")
        if lacking := clusters.what_is_missing():
            raise ImportError(lacking)
        self.stack = contextlib.ExitStack()
        self.stack.enter_context(clusters.slurm_cluster())


class EntangleSlurm(Entangle, WithSlurm):
    """entangle, tasks under @slurm."""

    name = "entangle by slurm"
    short = "by slurm"

    def start(self) -> None:
        self.serve()
        self.door: Any = import_module("entangle.slurm")
        self.here: Any = import_module("entangle.workflow")

    def stop(self) -> None:
        self.stack.close()

    def task(self, function: Callable[..., Any]) -> Callable[..., Any]:
        decorated: Callable[..., Any] = self.door.slurm(time=600, python=sys.executable, memory="400M")(function)
        return decorated

    def within(self, function: Callable[..., Any]) -> Any:
        """Run a function within one run, whose allocation stays."""
        return self.here.workflow(function)()()


class BareSrun(Contestant, WithSlurm):
    """`srun true`: each call is a job of its own."""

    name = "srun true"
    short = "srun true"

    def start(self) -> None:
        self.serve()

    def stop(self) -> None:
        self.stack.close()

    def run(self) -> int:
        """One job, from its submission to its end."""
        return subprocess.run(["srun", "true"], check=True).returncode


def docker(*words: str) -> str:
    """Run a docker command, and give what it printed."""
    return subprocess.run(["docker", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True, check=True).stdout


def without_docker() -> None:
    """Raise ImportError where there is no docker with the image."""
    try:
        docker("image", "inspect", IMAGE)
    except (OSError, subprocess.CalledProcessError):
        raise ImportError("no docker with the image: make services") from None


for _one in (EntangleSsh, EntangleFarSsh, EntangleParamiko, BareSsh, BareFrames, EntangleDocker, DockerExec, EntangleSlurm, BareSrun):
    CONTESTANTS[_one.name] = _one
