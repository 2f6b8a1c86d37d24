"""Processes that are not children of the tests, and yet end with them."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import time
from collections.abc import Sequence
from pathlib import Path

from ..evidence import alive, wait_until

#: $1: the file for the pid; the rest: the command. Closing stdin ends it.
_HOLD = """
file=$1
shift
"$@" </dev/null &
echo $! >"$file.new" && mv "$file.new" "$file"
cat >/dev/null
kill $! 2>/dev/null
(sleep 15; kill -9 $! 2>/dev/null) &
late=$!
wait %1
kill $late 2>/dev/null
"""


class Lifeline:
    """Starts processes that end when the test process does, however it ends.

    They are not its descendants and have none of its marks in their environment. Otherwise what
    they start during a test would be reported as left behind by the test.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._read, self._write = os.pipe()
        self._pids: list[int] = []

    def start(self, name: str, command: Sequence[str], **environment: str) -> int:
        """Start a command. Return its pid. Its output goes to `name`.log in the directory."""
        file = self.folder / f"{name}.pid"
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("ENTANGLE_", "PYTEST_", "COV"))}
        with open(self.folder / f"{name}.log", "wb") as log:
            subprocess.run(
                ["setsid", "--fork", "sh", "-c", _HOLD, "hold", str(file), *command],
                stdin=self._read,
                stdout=log,
                stderr=log,
                env={**kept, "PYTHONUNBUFFERED": "1", **environment},
                cwd=self.folder,
                check=True,
                timeout=30,
            )
        wait_until(file.exists, 20, f"{name} was not started: {self.log(name)}")
        pid = int(file.read_text())
        self._pids.append(pid)
        return pid

    def log(self, name: str) -> str:
        """The output of a process."""
        with contextlib.suppress(OSError):
            return (self.folder / f"{name}.log").read_text(errors="replace")
        return ""

    def end(self) -> None:
        """Stop them all, and wait until they are gone."""
        os.close(self._write)
        os.close(self._read)
        until = time.monotonic() + 20
        while any(map(alive, self._pids)) and time.monotonic() < until:
            time.sleep(0.05)
        for pid in filter(alive, self._pids):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
