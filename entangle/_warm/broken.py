"""The error of an executor that a worker's death has broken."""

from __future__ import annotations

from concurrent.futures.process import BrokenProcessPool

from entangle._run.worker_process import signal_name
from entangle.errors import ProcessTerminatedException, add_note


class BrokenExecutorError(ProcessTerminatedException, BrokenProcessPool):
    """A worker process of an executor has died in a call, or could not begin.

    The message names the call, and how the process ended. Nothing more runs in that executor.
    """

    __module__ = "entangle.executor"  # where users find it, so that tracebacks say so


def broken_by(why: str, cause: BaseException | None = None, call: str = "", killed: str = "") -> BrokenExecutorError:
    """The error that says why, and in which call; `killed`: where the signal came from."""
    error = BrokenExecutorError(why)
    if call:
        add_note(error, f"call: {call}")
    if killed:
        add_note(error, killed)
    error.__cause__ = cause
    return error


def how_it_ended(code: int) -> str:
    """How a process ended, by its exit code or minus the signal."""
    return f"exit code {code}" if code >= 0 else f"signal {signal_name(-code)}"
