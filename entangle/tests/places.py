"""Other places that tests run in: Pythons of this machine in which nothing is installed."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from entangle._remote.transport.docker import DockerTransport
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream

from .ways import missing


class Kept(DockerTransport):
    """A container that stays for all runs of a process. Inside a container, where there is no
    docker, it is another Python of that container."""

    ends_with_run = False

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Start the agent."""
        if os.path.exists("/.dockerenv"):
            return ProcessStream([sys.executable, *arguments])
        return super().open(arguments)


@functools.lru_cache(maxsize=1)
def _found() -> dict[tuple[int, int], str]:
    """Pythons of this machine that entangle can use, the newest of each version."""
    candidates = [shutil.which(f"python3.{minor}") for minor in range(10, 20)]
    candidates += [str(path) for path in Path.home().glob(".pyenv/versions/3.*/bin/python")]
    candidates += [str(path) for path in Path("/opt/hostedtoolcache/Python").glob("3.*/x64/bin/python")]
    found: dict[tuple[int, int], str] = {}
    for candidate in [os.path.join(sys.base_prefix, "bin", f"python3.{sys.version_info[1]}"), *candidates]:
        if candidate is None or not os.access(candidate, os.X_OK):
            continue
        told = subprocess.run(
            [candidate, "-c", "import sys; print(*sys.version_info[:2], sys.executable)"], capture_output=True, text=True, check=False
        )
        if told.returncode == 0:  # pyenv has shims also for versions that are not selected
            major, minor, path = told.stdout.strip().split(" ", 2)
            if (int(major), int(minor)) >= (3, 10):
                found.setdefault((int(major), int(minor)), path)
    return found


def far_pythons(same: bool) -> str:
    """The path of a Python of the same minor version as this one, or of another."""
    here = sys.version_info[:2]
    for version, path in sorted(_found().items()):
        if (version == here) == same:
            return path
    missing("a Python of another minor version, 3.10 or newer: put one on PATH, or install it with pyenv")
    raise AssertionError


def clock_that_is_off(folder: Path, off: float) -> str:
    """A shell command after which the clock of every Python is off by `off` seconds."""
    made = folder / f"clock{off:+.0f}"
    made.mkdir()
    (made / "sitecustomize.py").write_text(
        f"import time\nreal, real_ns = time.time, time.time_ns\ntime.time = lambda: real() + {off}\n"
        f"time.time_ns = lambda: real_ns() + {int(off) * 10**9}\n"
    )
    return f"export PYTHONPATH={made}"
