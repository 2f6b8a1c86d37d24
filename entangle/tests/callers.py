"""Callers in processes of their own: scripts run as a user runs them, to be observed, interrupted
and killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import psutil

import entangle

from .evidence import alive, wait_until

ROOT = str(Path(entangle.__file__).resolve().parents[1])

#: However the caller ends, no process of its runs is left after this many seconds.
ORPHANS_GONE = 1.0


class Caller:
    """A script in a Python process of its own, with its own run directory, temporary directory and
    session."""

    def __init__(self, folder: Path, source: str, **environment: str) -> None:
        self.folder = folder
        self.runs = Path(environment.pop("ENTANGLE_RUN_DIR", "") or folder / "runs")
        self.temporary = Path(environment.pop("TMPDIR", "") or folder / "tmp")
        self.runs.mkdir(exist_ok=True)
        self.temporary.mkdir(exist_ok=True)
        self.script = folder / "script.py"
        self.script.write_text(textwrap.dedent(source), encoding="utf-8")
        self.environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([ROOT, *filter(None, [os.environ.get("PYTHONPATH")])]),
            "ENTANGLE_RUN_DIR": str(self.runs),
            "TMPDIR": str(self.temporary),
            "PYTHONWARNINGS": "error",
            **environment,
        }
        # A terminal is set up like this. With PYTHONUNBUFFERED one print is several writes, and the
        # output of two processes mixes.
        self.environment.pop("PYTHONUNBUFFERED", None)
        self.started: subprocess.Popen[str] | None = None

    def start(self, *arguments: str, **options: Any) -> Caller:
        """Start the script, and return at once."""
        self.started = subprocess.Popen(
            [sys.executable, str(self.script), *arguments],
            **{
                "stdin": subprocess.DEVNULL,
                "stdout": subprocess.PIPE,
                "stderr": subprocess.PIPE,
                "text": True,
                "env": self.environment,
                "cwd": self.folder,
                "start_new_session": True,
                **options,
            },
        )
        return self

    @property
    def process(self) -> subprocess.Popen[str]:
        """The script's process."""
        assert self.started is not None
        return self.started

    def family(self) -> list[int]:
        """All processes that the script has started, directly or indirectly."""
        try:
            return [child.pid for child in psutil.Process(self.process.pid).children(recursive=True)]
        except psutil.NoSuchProcess:
            return []

    def finish(self, seconds: float = 60.0) -> tuple[int, str, str]:
        """Wait until the script exits. Return its exit status, and what it wrote to stdout and
        stderr."""
        try:
            out, err = self.process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            family = self.family()
            self.stop()
            raise AssertionError(f"the script was still running after {seconds} s, with the processes {family}") from None
        return self.process.returncode, out, err

    def stop(self) -> None:
        """Kill the script and all that it started, in whatever state. Does nothing if all have
        exited."""
        if self.started is None:
            return
        # Once reaped, its number may belong to another process.
        itself = [self.started.pid] if self.started.poll() is None else []
        for pid in [*self.family(), *itself]:
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:
                pass
        self.started.wait()
        for stream in (self.started.stdin, self.started.stdout, self.started.stderr):
            if stream is not None:
                try:
                    stream.close()  # not read to the end: a stray process may hold it open
                except BrokenPipeError:
                    pass

    def files(self) -> list[str]:
        """The files in the script's run directory and temporary directory, as paths relative to its
        folder."""
        return [
            str(path.relative_to(top.parent))
            for top in (self.runs, self.temporary)
            for path in sorted(top.rglob("*"))
            # The directory of the user stays, because the next process uses it. It must be empty.
            if not (path.parent == top and path.name == f"entangle-{os.getuid()}")
        ]


def output_of(folder: Path, source: str, **environment: str) -> str:
    """Run a script to its end, check that it succeeded and left nothing behind, and return its
    output."""
    caller = Caller(folder, source, **environment).start()
    try:
        status, out, err = caller.finish()
    finally:
        caller.stop()
    assert status == 0, f"exit status {status}\n{out}\n{err}"
    assert caller.files() == []
    return out


def gone(pids: list[int], seconds: float = ORPHANS_GONE) -> None:
    """Check that all of these processes end within `seconds`."""
    assert pids, "there was no process to look for"
    wait_until(lambda: not any(map(alive, pids)), seconds, "processes that should be gone")


def output_of_next(folder: Path, caller: Caller) -> None:
    """Run once more, in another process, with the directories of `caller`."""
    output_of(
        folder,
        "from entangle.process import process\nprint(process(int)('3')())",
        ENTANGLE_RUN_DIR=str(caller.runs),
        TMPDIR=str(caller.temporary),
    )
