"""entangle: run ordinary Python functions in parallel, on one machine or
many, with no server between.

A decorator makes a function a task, calling it builds a graph, calling the graph runs it::

    from entangle.process import process

    @process
    def add(a, b):
        return a + b

    print(add(add(1, 2), add(3, 4))())

What users import, each with a docstring of its own:

    process  thread  workflow  task   `from entangle.process import process`: how a function runs
    local  http  interpreter  ssh     where: `@local`, `@request`, `@interpreter`, `@ssh`
    docker  containers  on  place     and `@docker`, `@apptainer`, `@singularity`, `@on`, `@place`
    slurm  aws  service  images       `@slurm`; `@aws` and what runs there; `@service`; images
    Cache                             what `cache=` counts, for how long, where values stay
    scheduler  limit                  with what: CPUs, GPUs, named limits
    dataflow  sources                 values pushed through functions, and streams
    gather  as_completed              many calls as one
    session  executor.Executor        warm workers
    durable  attempt                  runs that go on after they were killed
    engine                            whole graphs on Dask or Ray
    joblib  dask                      in place of their own workers
    progress  tags  records           to see what runs, and what ran
    testing  pytest_plugin            for tests of what users write
    errors                            every error

The documentation is in the folder `docs` of the project; begin with docs/index.md.

For contributors: the floors of the package from the ground up, and their rooms (folders). Imports
point down only; `tests/test_floors.py` checks it, and `docs/architecture.md` shows who imports
whom::

    errors                            every error, as one tree
    flow  cookies                     what can be run, and with what
    _shared/                          what all processes of a run share: table, store, pickling
    _depot/                           values that stay: what `cache=True` finds again
    _worker/                          what happens in a worker: the loop, delivery, joining a run
    _watch/                           looking at runs from outside
    _run/                             what happens in the caller: start, supervise, deadlines, run
    _warm/                            workers that outlive runs: sessions
    _tasks/  task                     what users hold: tasks, layers, calls; a call tree as a flow
    _remote/wire/                     both sides of a byte stream
    _services/mailbox                 both sides of a mailbox
    _remote/agent/                    the far side: a Python that runs calls for another one
    _remote/transport/                how a far Python is started: ssh, docker, interpreter …
    _services/far/                    the far side of services
    _remote/caller/                   the near side: channels, what is sent, what is printed
    _executors/                       executors as places of calls
    _dataflow/                        dataflows and streams
    _engines/                         whole graphs on other engines
    _services/caller/                 the near side of services
    _aws/                             a cloud
    process  thread  workflow …       doors: a signature, a docstring, a layer
    ssh  docker  _images/  dataflow … doors to other places, and of dataflows
    _testing/  testing …              for tests of what users write
    dask  _dask/  joblib  executor …  in place of what people have: dask's, joblib's, Python's own
    records  _records/                what is remembered of runs
    cli/  web/  examples/             for people

A lower floor that has to call a higher one declares a hook where it calls it. This module fills in
the hooks that no door fills in.
"""

from __future__ import annotations

import os
import sys
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, Literal, TypeVar, overload

from entangle import _remote, _run, _tasks

if TYPE_CHECKING:
    from collections.abc import Coroutine, Generator, Iterable, Iterator
    from typing import Protocol

    # What is imported when it is asked for (`__getattr__`). Checkers have to be told of each name.
    from entangle import cache as cache
    from entangle import containers as containers
    from entangle import cookies as cookies
    from entangle import dask as dask
    from entangle import dataflow as dataflow
    from entangle import docker as docker
    from entangle import errors as errors
    from entangle import executor as executor
    from entangle import flow as flow
    from entangle import http as http
    from entangle import interpreter as interpreter
    from entangle import joblib as joblib
    from entangle import limit as limit
    from entangle import local as local
    from entangle import logging as logging
    from entangle import on as on
    from entangle import place as place
    from entangle import pools as pools
    from entangle import process as process
    from entangle import records as records
    from entangle import scheduler as scheduler
    from entangle import sources as sources
    from entangle import ssh as ssh
    from entangle import task as task
    from entangle import thread as thread
    from entangle import token_bucket as token_bucket
    from entangle import workflow as workflow
    from entangle._engines.chosen import EngineBlock
    from entangle._remote import Travels
    from entangle._run import Elsewhere
    from entangle._tasks import Drawings, Keeps, Streams
    from entangle._tasks.call import Call
    from entangle._tasks.completing import CompletedCall
    from entangle._tasks.durable import BodyAttempt, Durable
    from entangle._warm.session import Session
    from entangle.cache import Cache
    from entangle.executor import Executor

V = TypeVar("V")
W = TypeVar("W")
X = TypeVar("X")
Y = TypeVar("Y")

if TYPE_CHECKING:
    V_co = TypeVar("V_co", covariant=True)

    class _CallOf(Protocol[V_co]):
        """A call whose value, as `await` gives it, is of this type: also one of an `async def` task
        or of a workflow."""

        def __await__(self) -> Generator[Any, None, V_co]: ...
        def named(self, name: str, /) -> Any: ...


__all__ = ["Cache", "Executor", "Session", "as_completed", "attempt", "durable", "engine", "gather", "progress", "session", "tags"]

__version__ = "0.3.0"


class _Recording:
    """Records runs. The recorder is imported when there is something to record: importing entangle
    stays quick, and an agent, which would have to fetch the recorder from its caller, does without.
    """

    def __init__(self) -> None:
        self._recorder: Any = None
        self._made: dict[str, Any] = {}

    def started(self, run: Any) -> None:
        if self._recorder is None:
            if not _to_be_remembered(run):
                return
            try:
                from entangle._records.recorder import Recorder
            except OSError:  # no descriptor is left: the run says so itself, if it cannot begin
                return
            # Two threads may begin the first runs at once: both must have one recorder.
            self._recorder = self._made.setdefault("recorder", Recorder())
        self._recorder.started(run)

    def looked(self, run: Any) -> None:
        if self._recorder is not None:
            self._recorder.looked(run)

    def ended(self, run: Any) -> None:
        if self._recorder is not None:
            self._recorder.ended(run)


def _to_be_remembered(run: Any) -> bool:
    if not run.nested:
        return os.environ.get("ENTANGLE_RECORD") != "0"
    from entangle._shared.table import NOTING
    from entangle._worker.worker import here

    return here.worker is not None and here.worker.site.table.header[NOTING] != 0


def _travels() -> Travels:
    from entangle._records import travels

    return travels


def _retired(segment: str, pid: int, why: str) -> None:
    from entangle._records import retirements

    retirements.note(segment, pid, why)


def _streams() -> Streams:
    from entangle._dataflow import task_stream

    return task_stream


def _elsewhere() -> Elsewhere | None:
    """What makes runs on other engines, where a block or ENTANGLE_ENGINE has chosen one."""
    chosen: Any = sys.modules.get("entangle._engines.chosen")
    if chosen is None:
        if not os.environ.get("ENTANGLE_ENGINE"):
            return None
        from entangle._engines import chosen
    found: Elsewhere = chosen.elsewhere
    return found


def _keeping() -> Keeps | None:
    """What keeps runs, within a durable block or the body of a node that is kept; else None."""
    found: Any = sys.modules.get("entangle._tasks.durable")
    if found is None:
        engine: Any = sys.modules.get("entangle._worker.worker")
        worker = engine.here.worker if engine is not None else None
        if worker is None or worker.books is None:
            return None
        from entangle._tasks import durable

        found = durable
    if found.scope_here() is None:  # a block is over, or another thread's
        return None
    keeps: Keeps = found
    return keeps


def _open_session() -> None:
    """Open a session for the whole program where ENTANGLE_SESSION says so, but not in workers."""
    if os.environ.get("ENTANGLE_SESSION", "0") in ("", "0"):
        return
    from entangle._worker.worker import here

    if here.worker is None or not here.worker.in_process:
        from entangle._warm.session import open_for_program

        open_for_program()


def _drawings() -> Drawings:
    from entangle._records.drawing import calls

    return calls


#: Modules that users know. `import entangle` brings none of them in: its attributes do.
_MODULES = frozenset(
    {"cache", "containers", "cookies", "dask", "dataflow", "docker", "errors", "executor", "flow", "http", "interpreter", "joblib", "limit"}
    | {
        "local",
        "logging",
        "on",
        "place",
        "pools",
        "process",
        "records",
        "scheduler",
        "sources",
        "ssh",
        "task",
        "thread",
        "token_bucket",
        "workflow",
    }
)

#: And classes, by the modules that have them.
_CLASSES = {"Cache": "entangle.cache", "Executor": "entangle.executor", "Session": "entangle._warm.session"}

if not TYPE_CHECKING:  # checkers would take any name for one of ours

    def __getattr__(name: str) -> Any:
        """A module by its name: used as a decorator, `entangle.process` then says what it is."""
        if name not in _MODULES and name not in _CLASSES:
            raise AttributeError(f"module 'entangle' has no attribute {name!r}", name=name, obj=sys.modules[__name__])
        import importlib

        if name in _CLASSES:
            return getattr(importlib.import_module(_CLASSES[name]), name)
        return importlib.import_module(f"entangle.{name}")


def __dir__() -> list[str]:
    """What users write. The rest is ours, or Python's."""
    return sorted({*__all__, *_MODULES, *(name for name in globals() if name.startswith("__"))})


_run.observers.append(_Recording())
_run.open_session = _open_session
_run.elsewhere = _elsewhere
_run.retired = _retired
_remote.travels = _travels
_tasks.streams = _streams
_tasks.keeping = _keeping
_tasks.drawings = _drawings


# Of calls that differ, mypy would say that they give objects: each of the first ones has a type.
# That of an `async def` task gives what it awaits. With `_CallOf` everywhere there would be fewer,
# but mypy then forgets what a `gather` inside a `gather` gives.
@overload
def gather(*calls: Call[Coroutine[Any, Any, V]], return_exceptions: Literal[False] = False) -> Call[list[V]]: ...
@overload
def gather(*calls: Call[Coroutine[Any, Any, V]], return_exceptions: bool) -> Call[list[V | BaseException]]: ...
@overload
def gather(*calls: Call[Call[V]], return_exceptions: Literal[False] = False) -> Call[list[V]]: ...
@overload
def gather(*calls: Call[Call[V]], return_exceptions: bool) -> Call[list[V | BaseException]]: ...
@overload
def gather(a: Call[Coroutine[Any, Any, V]], b: _CallOf[W], /, *, return_exceptions: Literal[False] = False) -> Call[list[V | W]]: ...
@overload
def gather(a: Call[Coroutine[Any, Any, V]], b: _CallOf[W], /, *, return_exceptions: bool) -> Call[list[V | W | BaseException]]: ...
@overload
def gather(a: _CallOf[V], b: Call[Coroutine[Any, Any, W]], /, *, return_exceptions: Literal[False] = False) -> Call[list[V | W]]: ...
@overload
def gather(a: _CallOf[V], b: Call[Coroutine[Any, Any, W]], /, *, return_exceptions: bool) -> Call[list[V | W | BaseException]]: ...
@overload
def gather(a: Call[V], b: Call[W], /, *, return_exceptions: Literal[False] = False) -> Call[list[V | W]]: ...
@overload
def gather(a: Call[V], b: Call[W], /, *, return_exceptions: bool) -> Call[list[V | W | BaseException]]: ...
@overload
def gather(
    a: Call[Coroutine[Any, Any, V]], b: _CallOf[W], c: _CallOf[X], /, *, return_exceptions: Literal[False] = False
) -> Call[list[V | W | X]]: ...
@overload
def gather(
    a: Call[Coroutine[Any, Any, V]], b: _CallOf[W], c: _CallOf[X], /, *, return_exceptions: bool
) -> Call[list[V | W | X | BaseException]]: ...
@overload
def gather(
    a: _CallOf[V], b: Call[Coroutine[Any, Any, W]], c: _CallOf[X], /, *, return_exceptions: Literal[False] = False
) -> Call[list[V | W | X]]: ...
@overload
def gather(
    a: _CallOf[V], b: Call[Coroutine[Any, Any, W]], c: _CallOf[X], /, *, return_exceptions: bool
) -> Call[list[V | W | X | BaseException]]: ...
@overload
def gather(
    a: _CallOf[V], b: _CallOf[W], c: Call[Coroutine[Any, Any, X]], /, *, return_exceptions: Literal[False] = False
) -> Call[list[V | W | X]]: ...
@overload
def gather(
    a: _CallOf[V], b: _CallOf[W], c: Call[Coroutine[Any, Any, X]], /, *, return_exceptions: bool
) -> Call[list[V | W | X | BaseException]]: ...
@overload
def gather(a: Call[V], b: Call[W], c: Call[X], /, *, return_exceptions: Literal[False] = False) -> Call[list[V | W | X]]: ...
@overload
def gather(a: Call[V], b: Call[W], c: Call[X], /, *, return_exceptions: bool) -> Call[list[V | W | X | BaseException]]: ...
@overload
def gather(
    a: _CallOf[V], b: _CallOf[W], c: _CallOf[X], d: _CallOf[Y], /, *, return_exceptions: Literal[False] = False
) -> Call[list[V | W | X | Y]]: ...
@overload
def gather(
    a: _CallOf[V], b: _CallOf[W], c: _CallOf[X], d: _CallOf[Y], /, *, return_exceptions: bool
) -> Call[list[V | W | X | Y | BaseException]]: ...
@overload
def gather(*calls: Call[V], return_exceptions: Literal[False] = False) -> Call[list[V]]: ...
@overload
def gather(*calls: Call[V], return_exceptions: bool) -> Call[list[V | BaseException]]: ...
def gather(*calls: Any, return_exceptions: bool = False, **unknown: Any) -> Any:
    """A call whose value is the list of the values of these calls, which run in parallel.

    With `return_exceptions`, a failure becomes a value in the list: nothing that depends on the
    failed task runs, and the rest goes on. A failure still ends the run if it also reaches the
    value of the run by a path without such a `gather`.

    Raises ArgumentError if an argument is no call.

        gather(load("a"), load("b"))()
    """
    from entangle._shared.tracebacks import hide
    from entangle.task import gathered

    try:
        return gathered(calls, return_exceptions, unknown)
    except TypeError as error:
        hide(error)
        raise


@overload
def as_completed(calls: Iterable[_CallOf[V]], timeout: float | None = None) -> Iterator[CompletedCall[V]]: ...
@overload
def as_completed(calls: Iterable[Call[Any]], timeout: float | None = None) -> Iterator[CompletedCall[Any]]: ...
def as_completed(calls: Iterable[Any], timeout: float | None = None, **unknown: Any) -> Iterator[CompletedCall[Any]]:
    """Run calls as one graph; gives a future of each as soon as it is done.

    What the calls share runs once. Each future has its `call`, and a `result()` that gives its
    value or raises its error: the failure of one does not end the others. The run begins with the
    first step of the iteration. Leaving the iteration stops what is left of it.

    Raises ArgumentError if an argument is no call. The iteration raises RunTimeoutException if not
    all are done `timeout` seconds after it began.

        for future in entangle.as_completed([load(name) for name in names]):
            print(future.call, future.result())
    """
    from entangle._shared.tracebacks import hide
    from entangle._tasks.completing import completed

    try:
        return completed(calls, timeout, unknown)
    except Exception as error:  # one of ours, or of what gives the calls
        hide(error)
        raise


def tags(**tags: str | int | float | bool) -> AbstractContextManager[None]:
    """Tag all runs called in the block. Tags are recorded with a run; records are searched by them.

    Blocks nest; the inner one adds to the outer. Takes names and plain values.

        with entangle.tags(project="turbine", revision=7):
            flow()
    """
    from entangle._records.tags import tagging

    return tagging(tags)


def progress() -> AbstractContextManager[None]:
    """Show the progress of the runs in the block that last longer than a second.

    On a terminal, a line at the bottom says how much of each task is done, what has failed, and how
    long the rest may take, estimated from how long its tasks have taken so far and how many run at
    once. In Jupyter and marimo it is a table that is updated in place. Where stderr is no terminal,
    as in a log or a pipe, a line is written every ten seconds, or after a tenth of the run. A last
    line says how a run has ended.

        with entangle.progress():
            flow()
    """
    from entangle._run.progress.following import showing

    return showing()


def session(workers: int | None = None, idle: float = 60.0, max_memory: int | str | None = None) -> Session:
    """Warm workers for the runs in a `with` block, in whatever thread these begin.

    - `workers`: the most worker processes that the runs have together. Left out, each run has as
      many as it would have without a session.
    - `idle`: seconds without work after which a worker ends; agents and containers end ten seconds
      later.
    - `max_memory`: a worker that has more memory of its own than this retires after a run: bytes,
      or a string such as "2GB".

    Bodies run as they do with `start="forkserver"`; a run whose arguments cannot be pickled is
    forked instead, if that is safe. After each run a worker puts back what bodies have changed:
    directory, environment, umask, signal handlers, streams, limits, warning filters, `sys.path`,
    decimal context, locale and the like. Random generators are seeded anew. Globals of imported
    modules stay as bodies have left them; functions of the script get a fresh copy of the script's
    globals for each run. Where what bodies leave behind keeps growing (threads, child processes,
    descriptors, memory), or a module has changed on disk, a worker retires between two runs, and
    another takes its place.

    A session within another one is the outer one, and takes no options. With ENTANGLE_SESSION=1 in
    the environment, the whole program is in a session. A forked child is in none. `async with`
    works as well.

    Raises OptionError for options that make no sense.

        with entangle.session():
            for chunk in chunks:
                crunch(chunk)()
    """
    from entangle._warm.session import session

    return session(workers, idle, max_memory)


def durable(name: str, busy: Literal["wait", "raise"] = "wait", sync: Literal["disk"] | None = None) -> Durable:
    """Make the runs in a `with` block durable, under a name: killed at any moment, they can go on.

    When the program is started again and enters the block, nodes that have ended well do not run
    again, nor do those of runs that bodies make. What has failed runs again. A node that had begun
    and not ended runs again if it has `retry` or `idempotent=True`, or is a workflow; else
    MayHaveRunError names it and says how to decide. Where code has changed, whatever the change
    affects runs again.

    - `busy`: where another process is in the run: "wait" until it has left, or "raise".
    - `sync`: with "disk", outcomes survive a power failure, too. It costs some ms a task on most
      disks.

    The runs that this thread begins count; other threads take the block along with
    `contextvars.copy_context()`. Within a block of the same name, it is that block; within one of
    another name, a durable run of its own. A forked child is in none. `async with` works as well.
    `entangle resume` lists what is unfinished.

    More: docs/durable.md.

    Raises OptionError for bad options; on entering DurableError where the run is in use or its
    directory cannot be used.

        with entangle.durable("nightly-2026-11-25"):
            report(*[fetch(day) for day in days])()
    """
    from entangle._tasks.durable import durable

    return durable(name, busy, sync)


def attempt() -> BodyAttempt:
    """The attempt that runs here: its `number`, from 1, and a `key` that all attempts share.

    In a durable run the number goes on counting, and the key stays the same, however often the run
    is taken up. The key (32 hexadecimal digits) can serve as the idempotency key of a request.

    Raises DurableError where no body runs.

        charge(card, amount, idempotency_key=entangle.attempt().key)
    """
    from entangle._tasks.durable import attempt

    return attempt()


def engine(address: str) -> EngineBlock:
    """Run whole graphs on another engine: the runs that this thread begins in a `with` block.

    `address` is `dask://host:8786`, the scheduler of a Dask cluster; `ray://host:10001`, the head
    of a Ray cluster; or `ray`, the cluster that this machine is part of. The same tasks and calls
    become a graph of that engine: its scheduler places them, and values go from worker to worker.
    Errors, `retry`, deadlines, `return_exceptions`, progress and records are as in any run. Runs
    that a body calls run on entangle's own engine again, on the machine of the body's worker.

    Other threads take the block along with `contextvars.copy_context()`. With ENTANGLE_ENGINE in
    the environment, all runs of the program go there. `async with` works as well.

    A task runs once. Where the engine loses the worker that ran it, or its value, it runs again
    only if it says `retry` or `idempotent`; else the run ends with ProcessTerminatedException.

    Connecting takes a second on Dask and a few on Ray; then a small graph takes some 20 ms. If the
    caller dies, the engine drops what has not begun.

    More: docs/engines.md.

    Raises OptionError for another address; on entering, UnreachableError where nobody answers, and
    UnfitPythonError where the versions of Python or entangle differ.

        with entangle.engine("dask://localhost:8786"):
            total(square.map(range(1000)))()
    """
    from entangle._engines.chosen import engine

    return engine(address)
