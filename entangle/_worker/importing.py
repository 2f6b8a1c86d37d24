"""A run must not begin while one of our processes imports modules that it needs.

A worker that was not forked, or that receives a value, imports modules by name. A module that runs
a graph at that moment lacks an `if __name__ == "__main__":`. Its run would start processes that
import the same module, without end. So whoever begins a run calls `refuse_run` first.
"""

from __future__ import annotations

import contextlib
import os
import sys
import threading
import weakref
from collections.abc import Callable, Iterator
from types import CodeType, FrameType
from typing import Any

from entangle._shared import module_lookup
from entangle.errors import RunAtImportError

#: The first statement of an interpreter that we start. Its imports before it has joined a run may
#: hit any code: a script called `queue.py` in the first folder of `sys.path` shadows Python's own.
prelude = "entangle_joins = True; "

_joining = hasattr(sys.modules.get("__main__"), "entangle_joins")

#: True in an agent, whose modules are the caller's.
agent = False

_bodies: set[CodeType] = set()
_unpickling: set[CodeType] = set()
_started_by_imports: weakref.WeakSet[threading.Thread] = weakref.WeakSet()


def runs_bodies(function: Callable[..., Any]) -> None:
    """Declare that this function calls bodies, which may begin runs."""
    _bodies.add(function.__code__)


def unpickles(function: Callable[..., Any]) -> None:
    """Declare that this function unpickles what comes from elsewhere, and so may import modules."""
    _unpickling.add(function.__code__)


@contextlib.contextmanager
def joining() -> Iterator[None]:
    """Mark this process as joining a run during the block."""
    global _joining
    _joining = True
    try:
        yield
    finally:
        _joining = False
        _started_by_imports.update(thread for thread in threading.enumerate() if thread is not threading.current_thread())


def refuse_run(in_worker: bool) -> None:
    """Raise RunAtImportError if no run may begin here; `in_worker`: this process is a worker."""
    if not (_joining or in_worker or agent):
        return
    here = sys._getframe(1)
    main = threading.main_thread()
    threads = [here]
    if threading.current_thread() is not main and main.ident in (frames := sys._current_frames()):
        # The main thread may import a module that waits for the thread that begins the run.
        threads.append(frames[main.ident])
    if _joining:
        raise _error(next(filter(None, map(_module_of, threads)), None) or _user_of(here))
    for frame in threads:
        at = _at_import(frame)
        if at is not None:
            raise _error(at)
    if again := _not_again(here):
        raise _error(again)
    if threading.current_thread() in _started_by_imports:
        raise _error(_user_of(here))


def _at_import(frame: FrameType | None) -> FrameType | None:
    """The frame of a module that is imported for unpickling, and not by a body."""
    module = None
    while frame is not None and frame.f_code not in _bodies:
        if frame.f_code in _unpickling and module is not None:
            return module
        if module is None and frame.f_code.co_name == "<module>":
            module = frame
        frame = frame.f_back
    return None


def _not_again(frame: FrameType | None) -> FrameType | None:
    """The frame of a module that a body imports here although its content has travelled along.

    This module began the run of that body, or it was never imported by name.
    """
    while frame is not None and (frame.f_code.co_name != "<module>" or frame.f_globals.get("__name__") not in module_lookup.arrived):
        frame = frame.f_back
    return frame


def _module_of(frame: FrameType | None) -> FrameType | None:
    """The frame of the innermost module that a thread imports."""
    while frame is not None and (frame.f_code.co_name != "<module>" or frame.f_globals.get("__name__") == "__main__"):
        frame = frame.f_back
    return frame


def _user_of(frame: FrameType | None) -> FrameType | None:
    """The innermost frame that is not entangle's."""
    ours = os.path.dirname(os.path.dirname(__file__)) + os.sep
    while frame is not None and frame.f_code.co_filename.startswith(ours):
        frame = frame.f_back
    return frame


def _error(frame: FrameType | None) -> RunAtImportError:
    where = "a module"
    if frame is not None:
        where = f"module {frame.f_globals.get('__name__')!r} ({frame.f_code.co_filename}, line {frame.f_lineno})"
    return RunAtImportError(
        f"{where} runs a graph while it is imported, and a worker imports it: each worker of that run would import it in turn, and so on. "
        'Put what runs the graph below `if __name__ == "__main__":`, or into a function'
    )
