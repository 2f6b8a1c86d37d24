"""Every error that entangle raises on its own account, as one tree.

::

    EntangleError
    ├── OptionError (TypeError)               the author: a decorator was given an option that it does not have
    ├── ArgumentError (TypeError)             the author: a call does not fit the function's parameters
    ├── CycleError (ValueError)               the author: a call is, through some list, its own argument
    ├── UnpicklableError (TypeError)          the author: a value cannot travel to where it must
    ├── CacheKeyError (TypeError)             the author: with `cache=True`, something has no form that a value could be remembered by
    ├── RunAtImportError                      the author: a module runs a graph when it is imported, and a worker imports it
    ├── SchedulerImportError (ImportError)    the author: `impl` names no scheduler class
    ├── RequestError                          the far server, or the network before it
    ├── FarError                              another place: the root of what can go wrong there
    │   ├── UnreachableError (ConnectionError)   the place, or the way to it: no Python could be started there
    │   │   ├── HostKeyError                  the host, or whoever poses as it: its key is unknown, or not the known one
    │   │   └── LoginRefusedError             the user, or the host: it does not let the user in
    │   ├── ImageError                        the author: there is no such image, or packages cannot be added to it
    │   ├── UnfitPythonError                  the place: its Python is missing or too old, or another one than the code needs
    │   ├── LinkLostError (ConnectionError)   the way to it: the stream ended while calls were under way
    │   ├── ProtocolError                     the place: what comes from there is not what an agent says
    │   └── MissingModuleError (ModuleNotFoundError)   the place: it lacks a module that cannot be sent there
    ├── StoreFullError (OSError)              the machine: neither memory nor disk has room for a value
    ├── LimitError (OSError)                  the machine: a limit of descriptors, processes, memory or file sizes is reached
    ├── RunCancelledError                     the caller: the run was cancelled before it had a value
    ├── ProcessTerminatedException            the body, or whoever killed it: a worker process died
    ├── ProcessTimeoutException (TimeoutError)   the body: it ran, or its arguments took, longer than allowed
    ├── ProcessRetryException                 the body: every allowed attempt failed
    ├── ThreadTerminatedException             the body: it tried to end the interpreter from a thread
    ├── ThreadTimeoutException (TimeoutError) the body: a thread ran longer than allowed
    ├── RecordsError                          the machine, or whoever asks: records that are not there or cannot be read
    └── GraphError                            the Gremlin server, or the network before it

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


class CacheKeyError(EntangleError, TypeError):
    """Something that a task with `cache=True` uses or takes has no fixed form to remember a value by; the text names it. The author's
    fault."""


class RunAtImportError(EntangleError):
    """A module that a worker imports runs a graph while it is imported; the text names the module and the line. The author's fault."""


class SchedulerImportError(EntangleError, ImportError):
    """The `impl` of a scheduler cannot be imported, or is no scheduler. The author's fault."""


class RequestError(EntangleError):
    """An HTTP request was refused or answered with a status of 400 or above. The server's fault, or the network's."""


class FarError(EntangleError):
    """Something went wrong between here and another place (a host, a container, another Python), not in a body there."""


class UnreachableError(FarError, ConnectionError):
    """No Python could be started in another place: no such host, no way to it, refused. The place's fault, or the network's."""


class HostKeyError(UnreachableError):
    """A host's key is not in known_hosts, or is another one than there. The host's fault, or of whoever poses as it."""


class LoginRefusedError(UnreachableError):
    """A host does not let the user in: the key is not the right one, or not allowed. The user's fault, or the host's."""


class ImageError(FarError):
    """A container image is not there, or packages cannot be added to it. The author's fault."""


class UnfitPythonError(FarError):
    """The Python of another place is missing or too old, or code cannot be sent to its version. The text says which is there."""


class LinkLostError(FarError, ConnectionError):
    """The stream to another place ended while a call was under way. Whether its body ran to its end is not known."""


class ProtocolError(FarError):
    """What comes over a stream is not what an agent says: another version, a program that prints into it, or worse."""


class MissingModuleError(FarError, ModuleNotFoundError):
    """A module is needed in another place, is not there, and cannot be sent: it has compiled parts, or nobody has it."""


class StoreFullError(EntangleError, OSError):
    """Neither shared memory nor the temporary directory has room for a value. The machine's fault."""


class LimitError(EntangleError, OSError):
    """The system lets this process have no more descriptors, processes, threads or memory, or no larger file. The machine's fault."""


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


class RecordsError(EntangleError):
    """There is no such record, or the file of records cannot be used. The asker's fault, or the machine's."""


class GraphError(EntangleError):
    """A Gremlin server cannot be reached or refuses what it is sent; nothing is lost, it can be sent again. The server's fault."""


class RemoteTraceback(Exception):
    """The traceback of an error as the worker saw it, as text: the `__cause__` of the error that the caller gets."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Make `cause` the cause of an error, also where its class refuses attributes, as a frozen dataclass does."""
    vars(BaseException)["__cause__"].__set__(error, cause)


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error, on Python 3.10 too, where `__notes__` is kept but not printed."""
    notes = getattr(error, "__notes__", None)
    if notes is None:
        notes = []
        try:
            BaseException.__setattr__(error, "__notes__", notes)  # also where its class refuses attributes, as a frozen dataclass
        except (AttributeError, TypeError):  # an error class with slots: nothing to hang the note on
            return
    if isinstance(notes, list) and note not in notes:
        notes.append(note)
