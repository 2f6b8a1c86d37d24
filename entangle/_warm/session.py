"""Sessions: runs that use the same warm workers, one after another."""

from __future__ import annotations

import contextlib
import os
import threading
from collections.abc import Callable
from types import TracebackType
from typing import Any

from entangle import _run
from entangle._run.worker_process import WorkerProcess
from entangle._shared.devices import Claim, Visible
from entangle._shared.frame import LINK, Frame
from entangle._shared.home import Home
from entangle._shared.site import Site
from entangle._shared.spare_files import place_of_spares, remove_of_dead, spare_files
from entangle._shared.summaries import value_in_short
from entangle._warm.lending import join, lend
from entangle._warm.warm_pool import WarmPool, WarmWorker
from entangle.errors import EntangleError, OptionError
from entangle.flow import DEVICE, PROCESS

_guard = threading.RLock()


class Session:
    """Warm workers that every run of this process uses while the session is open.

    Made by `entangle.session`; a context manager, also an asynchronous one. `entangle.Session` is
    its name for annotations.
    """

    __module__ = "entangle"

    def __init__(self, workers: int | None, idle: float, max_memory: int) -> None:
        self._stated = (workers, idle, max_memory)
        self._workers = workers
        self.settings: dict[str, Any] = {"idle": idle, "max_memory": max_memory}
        self._pool: WarmPool | None = None
        #: Workers that serve devices, by what they want of which devices.
        self._serving: dict[tuple[Claim, Visible], WarmPool] = {}
        self._frames: list[Frame] = []
        self._frames_made = 0
        self._depth = 0
        self._pid = os.getpid()
        self._closing: list[Callable[[], None]] = []

    @property
    def pids(self) -> list[int]:
        """The process ids of its workers that are alive."""
        if self._pool is None:
            return []
        return [worker.pid for pool in (self._pool, *list(self._serving.values())) for worker in pool.living()]

    def __enter__(self) -> Session:
        global _open
        with _guard:
            outer = current()
            if outer is None:
                if self._pid != os.getpid():
                    raise OptionError("this session was made by the process that forked this one; make one here")
                self.begin()._depth = 1
                _open = self
                _run.warm = self
                return self
            if outer is not self and self._stated != _NOTHING_STATED:
                raise OptionError(
                    "a session within another one uses that one's workers, so it can state nothing; "
                    "leave out workers=, idle= and max_memory="
                )
            outer._depth += 1
            return outer

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        global _open
        with _guard:
            found = current()
            if found is None:
                return  # in a forked child, or closed already
            found._depth -= 1
            if found._depth:
                return
            _open = _run.warm = None
        found.end()

    def begin(self) -> Session:
        """Have workers for runs that name this session; no other run sees it. `end` ends it."""
        self._pool = WarmPool(self._workers, **self.settings, listened_to=True)
        return self

    def end(self) -> None:
        """End the workers that are lent to no run; the others end when they are given back."""
        with _guard:
            pool, self._pool = self._pool, None
            frames, self._frames = self._frames, []
            serving, self._serving = self._serving, {}
            closing, self._closing = self._closing, []
        with contextlib.ExitStack() as leaving:  # each, though an interrupt comes meanwhile
            leaving.callback(_give_back_spares, {os.path.dirname(frame.directory) for frame in frames})
            if pool is not None:
                for each in (pool, *serving.values()):
                    leaving.callback(each.close)
            for frame in frames:
                leaving.callback(_remove, frame)
            for close in closing:
                leaving.callback(close)

    # What runs ask for (`_run.Warm`) --------------------------------------------------------------

    def lend(self, site: Site, slot: int, lane: int, serial: int, capture: bool) -> WorkerProcess | None:
        """A warm worker that joins the run; None if the session is over.

        Raises NoWorkerNow if all are lent to others.
        """
        pool = self._pool if lane < DEVICE else self._pool_for(site.claims[lane - DEVICE], site.visible)
        try:
            return lend(pool, site, slot, lane, serial, capture) if pool is not None else None
        except EntangleError:
            if pool is None or not pool.closed:
                raise
            return None  # another thread has just ended the session

    def _pool_for(self, claim: Claim, visible: Visible) -> WarmPool | None:
        """The workers that serve devices for such bodies; None if the session is over.

        As many as runs ask for: the cookies of a device say which worker may use it.
        """
        with _guard:
            if self._pool is None:
                return None
            pool = self._serving.get((claim, visible))
            if pool is None:
                pool = self._serving[claim, visible] = WarmPool(None, **self.settings, listened_to=True, clean=True)
            others = [other for other in self._serving.values() if other is not pool]
        if not pool.rests():
            # One will be started. What others have left in the memory of the device would be in its
            # way.
            for other in others:
                other.dismiss()
        return pool

    def ready(self) -> tuple[Frame, WarmWorker] | None:
        """A frame that is free and a worker that is idle; None if that would take a while."""
        pool = self._pool
        worker = pool.take_idle() if pool is not None else None
        if worker is None or pool is None:
            return None
        with _guard:
            for at in range(len(self._frames) - 1, -1, -1):
                if self._frames[at].is_free():
                    return self._frames.pop(at), worker
        pool.give(worker)
        return None

    def join(self, worker: WarmWorker, site: Site, slot: int) -> WorkerProcess:
        """Have a worker that `ready` gave join the run.

        Raises OSError if it is gone.
        """
        assert self._pool is not None
        return join(self._pool, worker, site, slot, PROCESS, slot, False)

    def not_needed(self, worker: WarmWorker) -> None:
        """Take back a worker that `ready` gave and that has joined no run."""
        if self._pool is not None:
            self._pool.give(worker)

    def frame(self, home: Home) -> Frame | None:
        """A frame for a run that begins now; None if there is no room for one."""
        pool = self._pool
        if pool is not None:
            pool.look()
        with _guard:
            frames = self._frames
            for frame in reversed(frames):
                if os.path.dirname(frame.directory) == home.path and frame.is_free():
                    frames.remove(frame)
                    return frame
            if self._pool is None:
                return None
            self._frames_made += 1
            number = self._frames_made
        name = f"f{number:x}"
        try:
            made = Frame.create(number, os.path.join(home.path, name), os.path.join(home.spill, name))
            made.home = home
            return made
        except OSError:
            return None  # the run makes what it needs itself, and says what is missing

    def give_frame(self, frame: Frame) -> None:
        """Take back a frame whose run is over."""
        frame.move(*frame.idle_at)
        with _guard:
            if self._pool is not None and len(self._frames) < _MOST_FRAMES:
                self._frames.append(frame)
                return
        _remove(frame)

    def at_end(self, close: Callable[[], None]) -> None:
        """Have this called when the session ends; at once if it has."""
        with _guard:
            if self._pool is not None:
                self._closing.append(close)
                return
        close()

    async def __aenter__(self) -> Session:
        return self.__enter__()

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        import asyncio

        await asyncio.get_running_loop().run_in_executor(None, self.__exit__, kind, error, at)

    def __repr__(self) -> str:
        if self._pool is None:
            return "<session that is not open>"
        return f"<session of {len(self.pids)} warm workers>"


#: How many frames a session keeps that no run uses.
_MOST_FRAMES = 8
_NOTHING_STATED: tuple[Any, ...] = (None, 60.0, 0)

_open: Session | None = None


def current() -> Session | None:
    """The session that is open in this process, if any."""
    return _open if _open is not None and _open._pid == os.getpid() else None


def session(workers: int | None, idle: float, max_memory: int | str | None) -> Session:
    """Make a session, as `entangle.session` says."""
    if workers is not None and (isinstance(workers, bool) or not isinstance(workers, int) or workers < 1):
        raise OptionError(f"workers={workers!r} is no number of workers; give a whole number from 1 on, or leave it out")
    if isinstance(idle, bool) or not isinstance(idle, (int, float)) or not idle > 0:
        raise OptionError(f"idle={idle!r} is no time; give seconds, such as 60")
    return Session(workers, float(idle), _bytes(max_memory))


_UNITS = {
    "": 1,
    "B": 1,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
    "KIB": 1 << 10,
    "MIB": 1 << 20,
    "GIB": 1 << 30,
    "TIB": 1 << 40,
}


def _bytes(size: int | str | None) -> int:
    if size is None:
        return 0
    try:
        if isinstance(size, str):
            number = size.strip().upper().rstrip("KMGTIB")
            found = int(float(number) * _UNITS[size.strip().upper()[len(number) :].strip()])
        else:
            found = int(size)
        if found > 0 and not isinstance(size, bool):
            return found
    except (TypeError, ValueError, KeyError, OverflowError):
        pass
    raise OptionError(f'max_memory={value_in_short(size)} is no size; give bytes, or a string such as "2GB"')


def _give_back_spares(homes: set[str]) -> None:
    """Keep no files of large values any more, nor those of workers that were killed."""
    spare_files.give_back()
    for home in homes:
        with contextlib.suppress(OSError):  # there are none
            remove_of_dead(place_of_spares(home))


def _remove(frame: Frame) -> None:
    """Remove a frame that no run uses. Workers that have it open keep it until they end."""
    frame.close()
    for name in ("table", "values", LINK):
        with contextlib.suppress(OSError):
            os.unlink(os.path.join(frame.directory, name))
    with contextlib.suppress(OSError):
        os.rmdir(frame.directory)


def open_for_program() -> None:
    """Open a session that lasts as long as the program, unless one is open."""
    with _guard:
        if current() is None:
            session(None, 60.0, None).__enter__()


def _after_fork() -> None:
    global _guard, _open
    _guard, _open, _run.warm = threading.RLock(), None, None


os.register_at_fork(after_in_child=_after_fork)
