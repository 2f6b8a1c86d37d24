"""Every error that entangle raises on its own account, as one tree.

::

    EntangleError
    ├── OptionError (TypeError)               the author: a decorator was given an option that it does not have
    ├── ArgumentError (TypeError)             the author: a call does not fit the function's parameters
    ├── CycleError (ValueError)               the author: a call is, through some list, its own argument
    ├── UnpicklableError (TypeError)          the author: a value cannot travel to where it must
    ├── SchedulerImportError (ImportError)    the author: `impl` names no scheduler class
    ├── RequestError                          the far server, or the network before it
    ├── StoreFullError (OSError)              the machine: neither memory nor disk has room for a value
    ├── RunCancelledError                     the caller: the run was cancelled before it had a value
    ├── ProcessTerminatedException            the body, or whoever killed it: a worker process died
    ├── ProcessTimeoutException (TimeoutError)   the body: it ran, or its arguments took, longer than allowed
    ├── ProcessRetryException                 the body: every allowed attempt failed
    ├── ThreadTerminatedException             the body: it tried to end the interpreter from a thread
    └── ThreadTimeoutException (TimeoutError) the body: a thread ran longer than allowed

An error that a task raises itself reaches the caller as it is, with a `RemoteTraceback` as its cause.
"""

from __future__ import annotations


class EntangleError(Exception):
    """The root of the tree: catch it to catch everything that entangle itself has to complain about."""


class OptionError(EntangleError, TypeError):
    """A decorator was given an option that it does not have, or a value that the option cannot take. The author's fault."""


class ArgumentError(EntangleError, TypeError):
    """The arguments of a call do not fit the parameters of its function. The author's fault."""


class CycleError(EntangleError, ValueError):
    """A call is, by way of a container that was changed later, its own argument. The author's fault."""


class UnpicklableError(EntangleError, TypeError):
    """A value or an error cannot travel between processes; the text names the task and the offending part. The author's fault."""


class SchedulerImportError(EntangleError, ImportError):
    """The `impl` of a scheduler cannot be imported, or is no scheduler. The author's fault."""


class RequestError(EntangleError):
    """An HTTP request was refused or answered with a status of 400 or above. The server's fault, or the network's."""


class StoreFullError(EntangleError, OSError):
    """Neither shared memory nor the temporary directory has room for a value. The machine's fault."""


class RunCancelledError(EntangleError):
    """The run was cancelled before it had a value. The caller's wish."""


class ProcessTerminatedException(EntangleError):
    """A worker process died while it ran a body: by a signal, by `os._exit`, by `sys.exit`. The body's fault, or the killer's."""


class ProcessTimeoutException(EntangleError, TimeoutError):
    """A body ran longer than its `timeout`, or its arguments took longer than its `wait`. The body's fault."""


class ProcessRetryException(EntangleError):
    """Every attempt that `retry` allows has failed; the last error is the cause, the others are in the notes. The body's fault."""


class ThreadTerminatedException(EntangleError):
    """A body in a thread tried to end the interpreter. The body's fault."""


class ThreadTimeoutException(EntangleError, TimeoutError):
    """A body in a thread ran longer than its `timeout`. The thread cannot be killed: it goes on, and its value is dropped."""


class RemoteTraceback(Exception):
    """The traceback of an error as the worker saw it, as text: the `__cause__` of the error that the caller gets."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error, on Python 3.10 too, where `__notes__` is kept but not printed."""
    notes = getattr(error, "__notes__", None)
    if notes is None:
        notes = []
        try:
            error.__notes__ = notes  # type: ignore[attr-defined]
        except AttributeError:  # an error class with slots: nothing to hang the note on
            return
    if note not in notes:
        notes.append(note)
