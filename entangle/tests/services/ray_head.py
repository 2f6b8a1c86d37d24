"""A Ray head on this machine, with two CPUs, a pretended GPU, and a port for clients."""

from __future__ import annotations

import contextlib
import importlib.util
import os
import shutil
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from ..evidence import alive
from .lifeline import Lifeline

_HOST = "127.0.0.2"


def what_is_missing() -> str:
    """Why there can be no head here; an empty string if nothing is missing."""
    return "no package ray here: make test-engines (or: pip install ray)" if importlib.util.find_spec("ray") is None else ""


def _free_ports(count: int) -> list[int]:
    with contextlib.ExitStack() as stack:
        found = []
        for _ in range(count):
            sock = stack.enter_context(socket.socket())
            sock.bind((_HOST, 0))
            found.append(sock.getsockname()[1])
    return found


def _listens(port: int) -> bool:
    with socket.socket() as sock:
        return sock.connect_ex((_HOST, port)) == 0


class RayHead:
    """A Ray head. A driver connects to `address` ("127.0.0.2:port"), a client to `client`
    ("ray://127.0.0.2:port").

    The address is on loopback, but not 127.0.0.1: Ray would replace that by another address of this
    machine.
    """

    def __init__(self, folder: Path) -> None:
        self._lifeline = Lifeline(folder)
        self.folder = folder
        self.address = self.client = ""

    def start(self) -> None:
        """Start the head, and wait until it accepts connections."""
        port, clients = _free_ports(2)
        options = (
            *("--head", "--block", "--disable-usage-stats", f"--node-ip-address={_HOST}", f"--port={port}"),
            *(f"--ray-client-server-port={clients}", "--num-cpus=2", "--num-gpus=1", "--include-dashboard=false"),
            *("--object-store-memory=200000000", f"--temp-dir={self.folder}"),
        )
        # An earlier Ray may have left a token in the user's home: processes without it would be
        # refused.
        settings = {"RAY_USAGE_STATS_ENABLED": "0", "RAY_DISABLE_IMPORT_WARNING": "1", "RAY_AUTH_MODE": "disabled"}
        pid = self._lifeline.start("head", [sys.executable, "-m", "ray.scripts.scripts", "start", *options], **settings)
        until = time.monotonic() + 90
        while "Ray runtime started" not in (said := self._lifeline.log("head")):
            if not alive(pid) or time.monotonic() > until:
                raise RuntimeError(f"Ray's head does not start: {said[-2000:]}")
            time.sleep(0.1)
        self.address, self.client = f"{_HOST}:{port}", f"ray://{_HOST}:{clients}"
        while not _listens(clients) and time.monotonic() < until:
            time.sleep(0.1)

    def processes(self) -> list[int]:
        """The pids of this head's processes, which have its directory on their command lines."""
        mark, found = os.fsencode(str(self.folder)), []
        for name in os.listdir("/proc"):
            if name.isdigit() and int(name) != os.getpid():
                with contextlib.suppress(OSError), open(f"/proc/{name}/cmdline", "rb") as file:
                    if mark in file.read():
                        found.append(int(name))
        return found

    def stop(self) -> None:
        """Kill all of its processes."""
        self._lifeline.end()
        for pid in self.processes():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)


@contextlib.contextmanager
def ray_head() -> Iterator[RayHead]:
    """A head that is stopped at the end of the block."""
    # A short path: Ray puts its sockets there, and their paths may have 107 bytes at most.
    folder = Path(tempfile.mkdtemp(prefix="entangle-ray-"))
    head = RayHead(folder)
    try:
        head.start()
        yield head
    finally:
        head.stop()
        shutil.rmtree(folder, ignore_errors=True)
