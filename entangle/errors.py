"""Every error that entangle raises on its own account, as one tree.

::

    EntangleError
    ├── OptionError (TypeError)                       author: unknown option, or a wrong value
    ├── ArgumentError (TypeError)                     author: arguments do not fit the function
    ├── CycleError (ValueError)                       author: a call is its own argument
    ├── UnpicklableError (TypeError)                  author: a value cannot be sent
    ├── CacheKeyError (TypeError)                     author: no cache key can be made of it
    ├── DepotError                                    user: a depot that cannot be trusted or used
    ├── DurableError                                  user, machine: a durable run cannot be kept
    │   └── MayHaveRunError                           whoever killed it: a body may have run
    ├── RunAtImportError                              author: a module runs a graph on import
    ├── SchedulerImportError (ImportError)            author: `impl` names no scheduler class
    ├── DeviceError                                   machine: no GPU, or fewer than are wanted
    ├── RequestError                                  server, network: an HTTP request failed
    ├── LambdaError                                   that function: it has failed in Lambda
    ├── FarError                                      another place, or the way to it
    │   ├── UnreachableError (ConnectionError)        place, network: no Python started there
    │   │   ├── HostKeyError                          host: its key is unknown, or another one
    │   │   └── LoginRefusedError                     user, host: the user is not let in
    │   ├── ImageError                                author: no such image, or cannot be extended
    │   ├── UnfitPythonError                          place: Python is missing, old or another
    │   ├── LinkLostError (ConnectionError)           network: the connection ended in a call
    │   ├── ProtocolError                             place: it does not speak our protocol
    │   └── MissingModuleError (ModuleNotFoundError)  place: a module is missing there
    ├── StoreFullError (OSError)                      machine: no room in memory or on disk
    ├── LimitError (OSError)                          machine: a limit of the system is reached
    ├── RunCancelledError                             caller: the run was cancelled
    ├── RunTimeoutException (TimeoutError)            run: longer than the `timeout` of `run`
    ├── ProcessTerminatedException                    body, or its killer: a worker process died
    ├── ProcessTimeoutException (TimeoutError)        body: longer than `timeout` or `wait`
    ├── ProcessRetryException                         body: every allowed attempt failed
    ├── ThreadTerminatedException                     body: in a thread, it tried to end Python
    ├── ThreadTimeoutException (TimeoutError)         body: in a thread, longer than `timeout`
    ├── RecordsError                                  asker, machine: no such record, or no file
    └── GraphError                                    server, network: Gremlin is not reached

Each line says whose fault it is, and what has happened. An error that a task itself raises reaches
the caller unchanged, with a `RemoteTraceback` as its cause.

More: docs/how_to/errors.md.
"""

from __future__ import annotations


class EntangleError(Exception):
    """The root of the tree. Catch it to catch every error that entangle itself raises."""


class OptionError(EntangleError, TypeError):
    """A decorator lacks an option, or the option cannot take the value. The author's fault."""


class ArgumentError(EntangleError, TypeError):
    """The arguments of a call do not fit the parameters of its function. The author's fault."""


class CycleError(EntangleError, ValueError):
    """A call is its own argument, through a container changed later. The author's fault."""


class UnpicklableError(EntangleError, TypeError):
    """A value or an error cannot be sent to another process. The author's fault.

    The message names the task and the part that cannot be pickled.
    """


class CacheKeyError(EntangleError, TypeError):
    """No cache key can be made of something that a task with `cache=True` uses. The author's fault.

    The message names it.

    More: docs/caching.md.
    """


class DepotError(EntangleError):
    """Kept values cannot be trusted, or settings of the depot cannot be read. The user's fault.

    The message says what to set or to remove.
    """


class DurableError(EntangleError):
    """A durable run is in use, or its ledger cannot be read or written. The user's or the machine's
    fault.

    The message says what to do.
    """


class MayHaveRunError(DurableError):
    """Bodies of a durable run had begun and not ended when it was killed.

    They may have had effects. The message names the nodes and says how to decide. `nodes` are their
    names for `entangle resume`, `calls` what they are.

    More: docs/durable.md.
    """

    nodes: tuple[str, ...] = ()
    calls: tuple[str, ...] = ()


class RunAtImportError(EntangleError):
    """A module runs a graph while a worker imports it. The author's fault.

    The message names the module and the line.
    """


class SchedulerImportError(EntangleError, ImportError):
    """The `impl` of a scheduler cannot be imported, or is no scheduler. The author's fault."""


class DeviceError(EntangleError):
    """A task wants a GPU, or several, and there are none or fewer. The machine's fault.

    The message says what was looked for, and how to say which there are.
    """


class RequestError(EntangleError):
    """An HTTP request was refused, or answered with a status of 400 or above.

    The fault of the server or of the network.
    """


class LambdaError(EntangleError):
    """A function of AWS Lambda has failed there. The fault of that function.

    The message has its error and the end of its log. `error_type` and `error_message` are what
    Lambda tells of the error, `stack` its lines there, `log` the end of the log (at most 4 KB),
    and `request` the id of the request.
    """

    error_type: str = ""
    error_message: str = ""
    stack: tuple[str, ...] = ()
    log: str = ""
    request: str = ""


class FarError(EntangleError):
    """Another place, or the way to it, failed; a body there did not.

    A place is a host, a container or another Python.
    """


class UnreachableError(FarError, ConnectionError):
    """No Python could be started in another place. The fault of the place or of the network.

    There is no such host, no way to it, or it refuses.
    """


class HostKeyError(UnreachableError):
    """The key of a host is not in known_hosts, or differs from the one there.

    The fault of the host, or of another machine that poses as it.
    """


class LoginRefusedError(UnreachableError):
    """A host does not let the user in: the key is wrong or not allowed.

    The fault of the user or of the host.
    """


class ImageError(FarError):
    """A container image does not exist, or packages cannot be added to it. The author's fault."""


class UnfitPythonError(FarError):
    """The Python of another place is missing or too old, or code cannot be sent to its version.

    The message says which version is there.
    """


class LinkLostError(FarError, ConnectionError):
    """The connection to another place ended during a call.

    Whether the body there has run to its end is unknown.
    """


class ProtocolError(FarError):
    """A stream carries something other than the agent's protocol.

    Another version of entangle runs there, or a program prints into the stream.
    """


class MissingModuleError(FarError, ModuleNotFoundError):
    """A module is missing in another place and cannot be sent.

    It has compiled parts, or nobody has it.
    """


class StoreFullError(EntangleError, OSError):
    """Shared memory and the temporary directory have no room for a value. The machine's fault."""


class LimitError(EntangleError, OSError):
    """The system refuses more descriptors, processes, threads or memory, or a larger file.

    The machine's fault.
    """


class RunCancelledError(EntangleError):
    """The run was cancelled before it had a value. The caller asked for that."""


class RunTimeoutException(EntangleError, TimeoutError):
    """A run took longer than its `timeout`. The fault of what ran.

    The message names what was running then.
    """


class ProcessTerminatedException(EntangleError):
    """A worker process died while it ran a body: by a signal, by `os._exit` or by `sys.exit`.

    The fault of the body, or of whoever killed it.
    """


class ProcessTimeoutException(EntangleError, TimeoutError):
    """A body ran longer than its `timeout`, or its arguments took longer than its `wait`."""


class ProcessRetryException(EntangleError):
    """Every attempt that `retry` allows has failed. The body's fault.

    The last error is the cause; the notes list the others.
    """


class ThreadTerminatedException(EntangleError):
    """A body in a thread tried to end the interpreter. The body's fault."""


class ThreadTimeoutException(EntangleError, TimeoutError):
    """A body in a thread ran longer than its `timeout`.

    A thread cannot be killed: the body runs on, and its value is dropped.
    """


class RecordsError(EntangleError):
    """The record does not exist, or the file of records cannot be read or written."""


class GraphError(EntangleError):
    """A Gremlin server cannot be reached, or refuses what it is sent. The server's fault.

    Nothing is lost; send it again.
    """


class RemoteTraceback(Exception):
    """The traceback of an error in the worker: the `__cause__` of the caller's error. `text` is
    all of it."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self.text = text

    def __str__(self) -> str:
        return f"\n{self.text.rstrip()}"


def set_cause(error: BaseException, cause: BaseException) -> None:
    """Set the cause of an error, even where its class refuses attributes (a frozen dataclass)."""
    vars(BaseException)["__cause__"].__set__(error, cause)


def add_note(error: BaseException, note: str) -> None:
    """Add a note to an error, on Python 3.10 too, where `__notes__` is kept but not printed."""
    notes = getattr(error, "__notes__", None)
    if notes is None:
        notes = []
        try:
            # Not `setattr`: a class may refuse attributes, as a frozen dataclass does.
            BaseException.__setattr__(error, "__notes__", notes)
        except (AttributeError, TypeError):  # a class with slots has no place for notes
            return
    if isinstance(notes, list) and note not in notes:
        notes.append(note)
