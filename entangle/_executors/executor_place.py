"""Any `concurrent.futures.Executor` as a place: the layer of @on submits the calls of a task to it.

If @on is given a function, the first call makes the executor, and all tasks with that function
share it. It ends with the last run of this process, or with the session if one is open.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import threading
import time
from collections.abc import Callable, Hashable, Sequence
from concurrent import futures
from typing import Any

from entangle import _run
from entangle._executors.executor_message import called, error_of, pack, pack_arguments, perform, value_of
from entangle._executors.submit_line import SubmitLine, Waits
from entangle._run.last_run import LastRun
from entangle._run.start import session
from entangle._shared.summaries import value_in_short
from entangle._worker.away import AwayCall
from entangle._worker.inheritance import in_context_of
from entangle.errors import EntangleError, OptionError, ProcessTerminatedException, RunCancelledError


class _InUse:
    """An executor, and how many calls of ours are under way there."""

    def __init__(self, executor: Any) -> None:
        self.executor = executor
        self.count = 0
        self.guard = threading.Lock()

    def add(self, by: int) -> None:
        with self.guard:
            self.count += by


class ExecutorPlace:
    """An executor, or the function that makes one, as the place of calls."""

    def __init__(self, executor: Any = None, make: Callable[[], Any] | None = None) -> None:
        self.make = make
        self._given = _InUse(executor) if make is None else None
        self._pid = os.getpid()
        #: The task that was sent last, its run, and its bytes.
        self._packed: tuple[Any, str, bytes] = (None, "", b"")
        self._line = SubmitLine(self._running, self._begin)
        if make is not None:
            _last_run.watch()

    def __reduce__(self) -> tuple[Any, ...]:
        if self.make is not None:
            return ExecutorPlace, (None, self.make)
        assert self._given is not None
        return _Elsewhere, (_kind(self._given.executor),)

    def begin(self, calls: Sequence[AwayCall]) -> None:
        """Submit these calls. If that may take a while, another thread does it."""
        running = self._given if self.make is None else _made_already(self.make)
        if running is None or not _takes_at_once(running.executor):
            self._line.add(calls)
            return
        self._check()
        for call in calls:
            self._begin(running, call)

    def _begin(self, running: _InUse, call: AwayCall) -> None:
        try:
            future = self._submitted(running.executor, call)
            if not callable(getattr(future, "add_done_callback", None)):
                raise EntangleError(
                    f"the {_kind(running.executor)} of task {call.name!r} gave {value_in_short(future)}, and no future; its submit must "
                    "return an object with add_done_callback and result"
                )
        except BaseException as error:
            if isinstance(error, futures.BrokenExecutor):
                _forget(running)
            call.handle = None
            call.failed(_refusal(running.executor, call, error, "has not taken"))
            return
        running.add(1)
        call.handle = future
        future.add_done_callback(functools.partial(_ended, running, call))

    def has_begun(self, call: AwayCall) -> bool:
        """Whether the executor says that the call runs."""
        future = call.handle
        if isinstance(future, Waits):
            return False
        return future is None or bool(future.running() or future.done()) or self._never_says(call)

    def cancel(self, call: AwayCall) -> bool:
        """Cancel the future, which only works while it waits in a queue."""
        future = call.handle
        if isinstance(future, Waits):
            future.cancelled = True
            return not future.submitting  # if it is, its future is cancelled as soon as there is one
        return future is None or (bool(future.cancel()) and not self._never_says(call))

    @staticmethod
    def _never_says(call: AwayCall) -> bool:
        return call.where == "ClientExecutor"

    def _submitted(self, executor: Any, call: AwayCall) -> Any:
        args, kwargs = call.take()
        call.where = _kind(executor)
        if _is_of_dask(executor) and not call.repeatable:
            raise OptionError(
                f"task {call.name!r}: Dask runs a call again when a worker is lost with it, so the body might run twice; "
                "say idempotent=True or retry= of @process if it may"
            )
        if _in_threads(executor):  # here: nothing needs to travel
            body = in_context_of(call.context, _perform_here) if call.context is not None else _perform_here
            return executor.submit(body, call.task, args, kwargs)
        arguments = pack_arguments(call.task, args, kwargs)
        return executor.submit(perform, call.name, call.attempt, sys.version_info[:2], self._bytes_of(call), arguments, os.urandom(8))

    def _bytes_of(self, call: AwayCall) -> bytes:
        """The task of a call as bytes: made once in each run, with the values that it uses then."""
        task, run, packed = self._packed
        if task is not call.task or run != call.run or not run:
            packed = pack(call.task)
            self._packed = call.task, call.run, packed
        return packed

    def _running(self) -> _InUse:
        """The executor. Makes it if there is none, which may take a while."""
        self._check()
        if self.make is not None:
            return _made_by(self.make)
        assert self._given is not None
        return self._given

    def _check(self) -> None:
        if self._given is not None and self._pid != os.getpid():
            raise EntangleError(_not_here(_kind(self._given.executor)))


class _Elsewhere:
    """Stands for the place in other processes: the executor lives in one process alone."""

    def __init__(self, kind: str) -> None:
        self.kind = kind

    def begin(self, calls: Sequence[AwayCall]) -> None:
        """Fail."""
        raise EntangleError(_not_here(self.kind))

    def has_begun(self, call: AwayCall) -> bool:
        """Nothing begins here."""
        return False

    def cancel(self, call: AwayCall) -> bool:
        """Nothing has begun."""
        return True


def _not_here(kind: str) -> str:
    return (
        f"the {kind} that @on was given lives in the process that made it, and cannot be used in another one; "
        "give @on a function that makes an executor"
    )


def _kind(executor: Any) -> str:
    return type(executor).__name__


# Calls --------------------------------------------------------------------------------------------


def _is_of_dask(part: Any) -> bool:
    """Whether an executor is Dask's. Its futures never say that they run. It runs a call again
    when a worker is lost, and a call that is cancelled runs on."""
    return type(part).__module__.partition(".")[0] == "distributed"


def _takes_at_once(executor: Any) -> bool:
    """Whether `submit` only puts a call into a queue that has room for any number."""
    kind = type(executor)
    return kind in (futures.ThreadPoolExecutor, futures.ProcessPoolExecutor) or kind.__module__ == "entangle.executor"


def _in_threads(executor: Any) -> bool:
    if not isinstance(executor, futures.ThreadPoolExecutor):
        return False
    interpreters = getattr(futures, "InterpreterPoolExecutor", ())  # since 3.14; one of threads, too
    return not isinstance(executor, interpreters)


def _perform_here(task: Any, args: Any, kwargs: dict[str, Any]) -> tuple[bool, float, Any]:
    began = time.perf_counter()
    try:
        value = called(task, args, kwargs)
        return True, time.perf_counter() - began, value
    except BaseException as error:
        return False, time.perf_counter() - began, error


def _ended(running: _InUse, call: AwayCall, future: Any) -> None:
    """Tell the outcome of a call. Runs in any thread of the executor."""
    running.add(-1)
    call.handle = None
    try:
        answer = future.result()
        if not (isinstance(answer, (tuple, list)) and len(answer) == 3):
            raise EntangleError(
                f"the {_kind(running.executor)} of task {call.name!r} answered {value_in_short(answer)}, which is no outcome; its futures "
                "must give what the submitted function returns"
            )
        there, seconds, body = answer
    except BaseException as error:
        if isinstance(error, futures.BrokenExecutor):
            _forget(running)
        call.failed(_refusal(running.executor, call, error))
        return
    try:
        here = _in_threads(running.executor)
        if there:
            call.done(body if here else value_of(call.name, body), seconds)
        else:
            call.failed(body if here else error_of(call.name, body), seconds)
    except BaseException as error:
        call.failed(error)


def _refusal(executor: Any, call: AwayCall, error: BaseException, what: str = "has lost") -> BaseException:
    """The error of a call that an executor has lost, or has not taken."""
    if isinstance(error, EntangleError) and not isinstance(error, futures.BrokenExecutor):
        return error
    if isinstance(error, futures.BrokenExecutor):
        what = "has lost"
    told = f"{type(error).__name__}: {error}" if str(error) else type(error).__name__
    refused: EntangleError
    if isinstance(error, ModuleNotFoundError) and (error.name or "").partition(".")[0] == "entangle":
        refused = EntangleError(
            f"task {call.name!r} cannot run in its {_kind(executor)}: py-entangle is not installed there ({told}); "
            "install it: pip install py-entangle"
        )
    elif isinstance(error, RuntimeError) and not isinstance(error, futures.BrokenExecutor) and "shutdown" in str(error):
        refused = EntangleError(f"task {call.name!r} cannot run: its {_kind(executor)} is shut down ({told}); shut it down after the run")
    else:
        refused = ProcessTerminatedException(f"the {_kind(executor)} of task {call.name!r} {what} the call: {told}")
    refused.__cause__ = error
    return refused


# Executors that functions make --------------------------------------------------------------------


class _Making:
    """An executor that a function makes. The first thread that wants it makes it; others wait."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.running: _InUse | None = None


_made: dict[tuple[Hashable, Any], _Making] = {}
_guard = threading.Lock()


def _made_already(make: Callable[[], Any]) -> _InUse | None:
    """The executor that this function has made for this session or these runs, if it has."""
    owner = session()
    with _guard:
        making = _made.get((make, owner))
    return making.running if making is not None else None


def _made_by(make: Callable[[], Any]) -> _InUse:
    """The executor that this function makes, or has made for this session or these runs."""
    owner = session()
    key = (make, owner)
    with _guard:
        making = _made.setdefault(key, _Making())
    with making.lock:
        if making.running is not None:
            return making.running
        try:
            executor = make()
            if not (callable(getattr(executor, "submit", None)) and callable(getattr(executor, "shutdown", None))):
                raise EntangleError(
                    f"@on was given a function that makes no executor: it returned {value_in_short(executor)}; return an object with "
                    "submit and shutdown"
                )
        except BaseException:
            with _guard:
                if _made.get(key) is making:
                    del _made[key]
            raise
        running = _InUse(executor)
        with _guard:
            wanted = _made.get(key) is making
            if wanted:
                making.running = running
    if not wanted:
        _close(running)
        raise RunCancelledError("the run was over before its executor was made")
    if owner is not None:
        owner.at_end(functools.partial(_close, running))
    return running


def _forget(running: _InUse) -> None:
    """Stop using a broken executor: the next call makes another one."""
    with _guard:
        for key in [key for key, known in _made.items() if known.running is running]:
            del _made[key]


def _close(running: _InUse) -> None:
    """End an executor that was made here. Its processes are killed if calls are under way."""
    _forget(running)
    executor = running.executor
    if running.count and callable(kill := getattr(executor, "kill_workers", None)):  # ours; since 3.14 the standard one's
        with contextlib.suppress(Exception):
            kill()
        return
    processes = list((getattr(executor, "_processes", None) or {}).values()) if running.count else []
    with contextlib.suppress(Exception):
        try:
            executor.shutdown(wait=not running.count, cancel_futures=True)
        except TypeError:  # not every executor knows that option
            executor.shutdown(wait=not running.count)
    for process in processes:
        with contextlib.suppress(Exception):
            process.kill()


def _end_with_runs() -> None:
    """End the executors that functions have made for runs. Those of a session or a warm worker
    stay."""
    if _run.warm_settings is None:
        with _guard:
            over = [key for key in _made if key[1] is None]
            ended = [_made.pop(key) for key in over]
        for making in ended:
            if making.running is not None:
                _close(making.running)


_last_run = LastRun(_end_with_runs)


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()
    _made.clear()


os.register_at_fork(after_in_child=_after_fork)
