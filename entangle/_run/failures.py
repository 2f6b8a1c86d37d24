"""How a node's failure is told: a worker describes it, the supervisor makes of that the error that the caller gets."""

from __future__ import annotations

import contextlib
import os
import pickle
from typing import Any

from entangle._run.pickling import dumps, why_not
from entangle._run.site import Site, cpu
from entangle._run.store import Store
from entangle.errors import EntangleError, ProcessRetryException, RemoteTraceback, UnpicklableError, add_note, set_cause
from entangle.flow import Body


def pause(body: Body, attempt: int) -> float:
    """Seconds between attempt number `attempt` (from 1) and the next one."""
    seconds = body.sleep * body.backoff ** (attempt - 1)
    if body.jitter:
        import random

        seconds += random.uniform(0, body.jitter)
    return seconds


def note_attempt(directory: str, node: int, attempt: int, error: BaseException) -> None:
    """Write down why an attempt failed, where the next one, which may run elsewhere, and the supervisor can read it.

    One line by one write to a file opened for appending: lines of several processes do not mix.
    """
    import json
    import traceback

    text = "".join(traceback.format_exception_only(type(error), error)).strip()
    line = json.dumps({"node": node, "attempt": attempt, "error": text[:1500]}) + "\n"
    with contextlib.suppress(OSError):  # on a full disk the attempt goes untold, and is made all the same
        fd = os.open(os.path.join(directory, "attempts"), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line.encode())
        finally:
            os.close(fd)


def describe(error: BaseException, name: str, attempt: int) -> dict[str, Any]:
    """An error as what can be sent: pickled where that is possible, and as text in any case."""
    import traceback

    text = "".join(traceback.format_exception(type(error), error, _own_frames(error)))
    pickled: bytes | None
    refused: UnpicklableError | None = None
    try:
        pickled = dumps(error)
        # Many an exception pickles and cannot be made again: its __init__ wants other arguments than it passed on.
        try:
            pickle.loads(pickled)
        except Exception:
            if type(error).__setattr__ is BaseException.__setattr__ or type(error).__reduce__ is not BaseException.__reduce__:
                raise
            pickled = dumps(_Frozen(error))
            pickle.loads(pickled)
    except Exception as why:
        pickled = None
        kind = f"{type(error).__module__}.{type(error).__qualname__}"
        try:
            dumps(error)
            reason = f"it cannot be made again from its arguments ({type(why).__name__}: {why})"
        except Exception:
            reason = str(why_not(error, f"the error of task {name!r}"))
        refused = UnpicklableError(f"task {name!r} failed with {kind}: {_text_of(error)}; that error cannot be sent: {reason}")
    return {
        "error": pickled if pickled is not None else pickle.dumps(refused, 5),
        "text": text,
        "where": f"host {os.uname().nodename}, pid {os.getpid()}, cpu {cpu()}, attempt {attempt}",
    }


class _Frozen:
    """Pickles as an error whose class refuses attributes, as a frozen dataclass does: pickle would assign them, and fail."""

    def __init__(self, error: BaseException) -> None:
        self.error = error

    def __reduce__(self) -> Any:
        return _made_as_it_was, (type(self.error), self.error.args, vars(self.error))


def _made_as_it_was(kind: type[BaseException], args: tuple[Any, ...], attributes: dict[str, Any]) -> BaseException:
    error: BaseException = kind.__new__(kind, *args)
    error.__dict__.update(attributes)
    return error


def _text_of(error: BaseException) -> str:
    try:
        return str(error)
    except Exception as problem:
        return f"<its text raises {type(problem).__name__}>"


def _own_frames(error: BaseException) -> Any:
    """The traceback without our frames at its head: the user's begin where our code calls them."""
    ours = (os.path.dirname(__file__), os.path.join(os.path.dirname(os.path.dirname(__file__)), "task.py"))
    at = error.__traceback__
    while at is not None and at.tb_next is not None and at.tb_frame.f_code.co_filename.startswith(ours):
        at = at.tb_next
    return at


def error_of(site: Site, store: Store | None, node: int) -> BaseException:
    """The error of the node that has ended a run, with the traceback of the worker as its cause and notes that say where."""
    flow = site.flow
    error: BaseException
    if node in site.errors:
        error = site.errors[node]
        add_note(error, f"call path: {flow.path(node)}")
    else:
        assert store is not None
        _, _, offset, size, where, _, _, _ = site.table.record(node)
        report: dict[str, Any] = store.get((where, offset, size))
        try:
            error = pickle.loads(report["error"])
        except Exception as problem:
            error = EntangleError(f"task {flow.body(node).name!r} failed with an error that cannot be made here ({problem})")
        set_cause(error, RemoteTraceback(report["text"]))
        add_note(error, f"call path: {flow.path(node)}")
        add_note(error, report["where"])
    if flow.body(node).retry:
        return used_up(site, node, error)
    return error


def used_up(site: Site, node: int, last: BaseException) -> BaseException:
    """The error of a node whose attempts are used up. An error that was not to be tried again stays what it is."""
    import json

    flow = site.flow
    body = flow.body(node)
    attempts = site.table.attempts[node] + 1
    if attempts <= body.retry and isinstance(last, Exception):
        return last
    error = ProcessRetryException(f"task {body.name!r} failed {attempts} times; the last time with {type(last).__name__}: {last}")
    error.__cause__ = last
    with contextlib.suppress(FileNotFoundError), open(os.path.join(site.directory, "attempts"), "rb") as lines:
        for line in lines:
            told = json.loads(line)
            if told["node"] == node:
                add_note(error, f"attempt {told['attempt']}: {told['error']}")
    add_note(error, f"call path: {flow.path(node)}")
    return error
