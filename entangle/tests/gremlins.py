"""Gremlin servers for tests: real ones, each a process of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from pathlib import Path

from .callers import ROOT
from .ways import missing

SCRIPT = os.path.join(ROOT, ".ci", "gremlin")


def free_port() -> int:
    """A port of the loopback interface on which nothing listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        return int(server.getsockname()[1])


class Gremlin:
    """A Gremlin server with an empty graph in memory."""

    def __init__(self, folder: Path) -> None:
        if not os.path.exists(SCRIPT) or subprocess.run([SCRIPT, "ready"], capture_output=True).returncode:
            missing("a Gremlin server: make services-gremlin (needs java and mvn)")
        self.port = free_port()
        self.address = f"ws://127.0.0.1:{self.port}/gremlin"
        self._log = folder / "gremlin.log"
        self._process: subprocess.Popen[bytes] | None = None
        try:
            self.start()
        except BaseException:
            self.kill()
            raise

    def start(self) -> None:
        """Start it with an empty graph, and wait until it answers."""
        self.kill()
        with open(self._log, "ab") as log:
            self._process = subprocess.Popen(
                [SCRIPT, "serve", str(self.port)], stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True
            )
        until = time.monotonic() + 60
        while time.monotonic() < until:
            assert self._process.poll() is None, self._log.read_text()
            try:
                socket.create_connection(("127.0.0.1", self.port), timeout=1).close()
                return
            except OSError:
                time.sleep(0.02)
        raise AssertionError(f"no Gremlin server after a minute: {self._log.read_text()}")

    def kill(self) -> None:
        """Kill it, as a power failure would."""
        if self._process is not None:
            self._process.send_signal(signal.SIGKILL)
            self._process.wait()
            self._process = None
