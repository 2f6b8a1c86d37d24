"""A value is looked for before a body runs, and kept after it. One process computes a key; others
wait for it.

Where the depot cannot be used (a full disk, no right to write, a place that does not answer), the
body runs and its value is given anyway; a warning says once what is wrong.
"""

from __future__ import annotations

import contextlib
import contextvars
import os
import pickle
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any, NamedTuple

from entangle._depot.circles import Wait, breaks_a_circle
from entangle._depot.compression import Unreadable
from entangle._depot.entry import About, Kept
from entangle._depot.warned_once import warn_once
from entangle._shared.pickling import dumps
from entangle._shared.tracebacks import passes_on
from entangle._shared.value_files import pickled
from entangle.errors import DepotError, UnpicklableError

#: A body that waits looks for the value after this time at first (seconds), then less often, as the
#: depot says. It checks more often whether it was cancelled.
_FIRST, _CHECKS = 0.0005, 0.02

#: After waiting this long, a body checks whether it waits for itself, and again after as long
#: (seconds).
_CIRCLES = 0.25
#: What it has said of its wait is said anew this often (seconds): in a store it ends after a
#: minute.
_SAID = 30.0

#: The keys that the bodies around this one compute, in this process and in those that wait for it.
computing: contextvars.ContextVar[frozenset[str]] = contextvars.ContextVar("computing", default=frozenset())


class Looked(NamedTuple):
    """A value that was found, what is known of it, and its size (bytes, pickled)."""

    value: Any
    about: About
    size: int


@passes_on
def remembered(
    depot: Any,
    key: str,
    task: str,
    parts: dict[str, str],
    compute: Callable[[], Any],
    *,
    expire: float | None = None,
    waiting: Callable[[], AbstractContextManager[object]] = contextlib.nullcontext,
    check: Callable[[], None] = lambda: None,
    seen: Callable[[About | None], None] = lambda about: None,
) -> Any:
    """The value under a key, else what `compute` gives, which is then kept.

    `expire`: an older value (seconds) is computed anew. Where a body itself asks for its own key,
    that value is computed each time. While another process computes it, this one waits in
    `waiting()`, and calls `check` now and then, which may raise. `seen` is told of the value that
    was found, or None for one that is computed. Raises what `compute` raises, and DepotError for a
    value that is not signed as it has to be.
    """
    found = look(depot, key, expire)
    if found is not None:
        seen(found.about)
        return found.value
    around = computing.get()
    if key in around:  # that body waits for this one: waiting for it would never end
        return compute()
    lock, found = _alone(depot, key, expire, waiting, check)
    seen(found.about if found is not None else None)
    if found is not None:
        return found.value
    pid, began = os.getpid(), time.monotonic()
    token = computing.set(around | {key})
    try:
        value = compute()
        if os.getpid() == pid:  # a child that the body has forked has come here, too
            keep(depot, key, About(task, time.time(), time.monotonic() - began, parts), value)
        return value
    finally:
        computing.reset(token)
        if lock is not None:
            lock.give()


def look(depot: Any, key: str, expire: float | None = None) -> Looked | None:
    """The value under a key; None where there is none that can be used."""
    try:
        kept: Kept | None = depot.find(key)
    except OSError as error:
        warn_once(f"the depot {depot.name} cannot be read ({_said(error)}): values are computed anew", f"read {depot.name}")
        return None
    except Unreadable as error:
        warn_once(f"a value in the depot {depot.name} cannot be read: {error}", f"codec {depot.name}")
        return None
    if kept is None or (expire is not None and time.time() - kept.about.made > expire):
        return None
    try:
        size = len(kept.body) + sum(map(len, kept.buffers))
        return Looked(pickle.loads(kept.body, buffers=kept.buffers), kept.about, size)
    except Exception as error:  # made by classes that are not there any more
        what = f"a value of task {kept.about.task!r} in the depot {depot.name} cannot be loaded ({type(error).__name__}: {error})"
        warn_once(f"{what}: it is computed anew", f"load {depot.name} {kept.about.task}")
        return None


def keep(depot: Any, key: str, about: About, value: Any) -> None:
    """Keep a value; where that cannot be, say so once."""
    try:
        body, buffers = pickled(dumps, value)
    except Exception as error:
        why = str(error) if isinstance(error, UnpicklableError) else f"{type(error).__name__}: {error}"
        warn_once(
            f"the value of task {about.task!r} cannot be pickled ({why}): cache=True does not remember it, and each call computes it anew",
            f"pickle {about.task}",
        )
        return
    try:
        depot.put(key, about, body, buffers)
    except DepotError as error:
        warn_once(f"the value of task {about.task!r} is not remembered: {error}", f"put {depot.name}")
    except OSError as error:
        warn_once(f"the depot {depot.name} cannot be written to ({_said(error)}): values are not remembered", f"write {depot.name}")


def _alone(
    depot: Any,
    key: str,
    expire: float | None,
    waiting: Callable[[], AbstractContextManager[object]],
    check: Callable[[], None],
) -> tuple[Any, Looked | None]:
    """The right to compute a key, or the value that another has computed meanwhile.

    Neither where the depot cannot be written to: then several may compute it.
    """
    try:
        lock = depot.try_alone(key)
        if lock is None:
            with waiting(), _Circle(depot, key) as circle:
                pause = _FIRST
                while (lock := depot.try_alone(key)) is None:
                    check()
                    if (found := look(depot, key, expire)) is not None:
                        return None, found
                    if circle.is_to_be_broken():
                        return None, None
                    _sleep(pause, check)
                    pause = min(pause * 1.5, depot.looks_again)
    except OSError as error:
        warn_once(f"the depot {depot.name} cannot be written to ({_said(error)}): values are not remembered", f"write {depot.name}")
        return None, None
    try:
        found = look(depot, key, expire)  # another may have computed it just before
    except BaseException:
        lock.give()
        raise
    if found is not None:
        lock.give()
        return None, found
    return lock, None


class _Circle:
    """What a waiting body says to others, and learns from them; nothing where no body around it
    computes a key, since nobody can wait for it then."""

    def __init__(self, depot: Any, key: str) -> None:
        self._depot = depot
        self._wait = Wait(key, tuple(sorted(computing.get())))
        self._said: Any = None
        self._pause = max(_CIRCLES, 4 * depot.looks_again)
        self._next = time.monotonic() + self._pause
        self._renewed = self._next + _SAID

    def __enter__(self) -> _Circle:
        return self

    def __exit__(self, *_: object) -> None:
        if self._said is not None:
            self._said.give()

    def is_to_be_broken(self) -> bool:
        """Whether this one waits for itself, and is to go on."""
        now = time.monotonic()
        if not self._wait.around or now < self._next:
            return False
        self._next = now + self._pause
        if self._said is not None and now > self._renewed:
            self._said.give()
            self._said = None
        if self._said is None:
            self._said = self._depot.say_waiting(self._wait)
            self._renewed = now + _SAID
        return breaks_a_circle(self._wait, self._depot.waits())


def _sleep(seconds: float, check: Callable[[], None]) -> None:
    while seconds > _CHECKS:
        time.sleep(_CHECKS)
        seconds -= _CHECKS
        check()
    time.sleep(seconds)


def _said(error: OSError) -> str:
    return error.strerror or str(error)
