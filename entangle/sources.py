"""Sources of a stream: iterables that wait for values to come, and end at once when stopped.

::

    flow.stream(every(1.0))                      the number of the tick, each second
    flow.stream(lines("access.log"))             what is in the file, then what is appended to it
    flow.stream(directory("incoming", "*.csv"))  the files that are there, then new ones
    flow.stream(queue(q))                        what others put
    flow.stream(merge(lines(a), lines(b)))       several at once, as they come
"""

from __future__ import annotations

import collections
import contextlib
import os
import queue as queues
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

from entangle._shared.tracebacks import edge, hide, passes_on
from entangle.errors import OptionError

__all__ = ["Source", "directory", "every", "lines", "merge", "queue"]

T = TypeVar("T")

#: Seconds between two looks at a file that is followed.
_LOOK = 0.05


class Iteration(Iterator[T]):
    """One pass through a source; another thread can stop it."""

    #: A stream that ends calls `stop`, and does not wait for the next value.
    stops_at_once = True

    def __init__(self, values: Callable[[threading.Event], Iterator[T]]) -> None:
        self._stopped = threading.Event()
        self._values = values(self._stopped)

    def __next__(self) -> T:
        try:
            return next(self._values)
        except StopIteration:
            raise
        except BaseException as error:
            hide(error)
            raise

    def stop(self) -> None:
        """End it: a thread that waits for its next value gets StopIteration at once."""
        self._stopped.set()

    def close(self) -> None:
        """Close what it has open."""
        close = getattr(self._values, "close", None)
        if close is not None:
            close()


class Source(Generic[T]):
    """An iterable that another thread can stop; all iterations over it then end."""

    stops_at_once = True

    def __init__(self, values: Callable[[threading.Event], Iterator[T]]) -> None:
        self._values = values
        self._going: weakref.WeakSet[Iteration[T]] = weakref.WeakSet()

    def __iter__(self) -> Iteration[T]:
        going = Iteration(self._values)
        self._going.add(going)
        return going

    def stop(self) -> None:
        """End it: all iterations under way end at once."""
        for going in list(self._going):
            going.stop()


@edge
def every(seconds: float) -> Source[int]:
    """The number of the tick (0, 1, 2 …), one every so many seconds, without drift.

    Ticks that nobody was ready to take are skipped. Raises OptionError unless `seconds` is above 0.

        for tick in every(0.5): print(tick)
    """
    if not seconds > 0:
        raise OptionError(f"every({seconds!r}): the time between two ticks must be a number of seconds above 0")

    @passes_on
    def values(stopped: threading.Event) -> Iterator[int]:
        begin = time.monotonic()
        tick = 0
        while not stopped.wait(max(0.0, begin + tick * seconds - time.monotonic())):
            yield tick
            tick = max(tick + 1, int((time.monotonic() - begin) / seconds))

    return Source(values)


@edge
def lines(path: str | os.PathLike[str], follow: bool = True, encoding: str = "utf-8") -> Source[str]:
    """The lines of a text file, without their ends; with `follow`, also those appended later.

    A file that is not there yet is waited for. One that is replaced or cut short is read anew from
    its start. A line is given when its end has been written. Raises FileNotFoundError without
    `follow`.

        for line in lines("access.log"): print(line)
    """

    @passes_on
    def values(stopped: threading.Event) -> Iterator[str]:
        if not follow:
            with open(path, encoding=encoding, newline=None) as text:
                for line in text:
                    if stopped.is_set():
                        return
                    yield line.rstrip("\n")
            return
        while not stopped.is_set():
            try:
                file = open(path, "rb")
            except FileNotFoundError:
                stopped.wait(_LOOK)
                continue
            with file:
                yield from _followed(file, os.fspath(path), stopped, encoding)

    return Source(values)


@passes_on
def _followed(file: Any, path: str, stopped: threading.Event, encoding: str) -> Iterator[str]:
    """The lines of an open file, until its name stands for another file or it has shrunk."""
    begun = b""
    replaced = False
    while True:
        block = file.read(65536)
        if block:
            *whole, begun = (begun + block).split(b"\n")
            for line in whole:
                if stopped.is_set():
                    return
                yield line.removesuffix(b"\r").decode(encoding, "replace")
            continue
        if replaced:  # what was written before that has been read by now
            return
        if stopped.wait(_LOOK):
            return
        here = os.fstat(file.fileno())
        try:
            there = os.stat(path)
        except FileNotFoundError:
            continue  # moved away; its writer may still append to it
        replaced = (here.st_dev, here.st_ino) != (there.st_dev, there.st_ino)
        if here.st_size < file.tell():
            file.seek(0)
            begun = b""


@edge
def directory(path: str | os.PathLike[str], pattern: str = "*", existing: bool = True) -> Source[Path]:
    """The paths of a directory's files that match the pattern, then of new ones, each once.

    A file is new when its name is. Write it under another name and rename it, so that nobody reads
    half of it. `existing=False` leaves out those that are there at the start. Needs the extra
    `dataflow`.

    Raises OptionError where there is no such directory, or watchfiles is not installed.

        for path in directory("incoming", "*.csv"): print(path)
    """
    try:
        import watchfiles
    except ImportError:
        raise OptionError('directory(…) needs watchfiles: pip install "py-entangle[dataflow]"') from None
    folder = Path(path)
    if not folder.is_dir():
        raise OptionError(f"directory({os.fspath(path)!r}): there is no such directory; make it first, or correct the path")

    def there() -> set[str]:
        with os.scandir(folder) as entries:
            return {entry.name for entry in entries if Path(entry.name).match(pattern) and entry.is_file()}

    @passes_on
    def values(stopped: threading.Event) -> Iterator[Path]:
        seen: set[str] = set() if existing else there()
        # The listing decides. The watcher says when to read it, and so does a timeout: an event may
        # get lost.
        watcher = watchfiles.watch(
            folder,
            recursive=False,
            stop_event=stopped,
            debounce=50,
            step=10,
            rust_timeout=500,
            yield_on_timeout=True,
            raise_interrupt=False,
        )
        looks = _looks(watcher)
        while True:
            now = there()
            for name in sorted(now - seen):
                if stopped.is_set():
                    return
                yield folder / name
            seen = now
            if stopped.is_set() or not next(looks):
                return

    return Source(values)


def _looks(watcher: Iterator[Any]) -> Iterator[bool]:
    for _ in watcher:
        yield True
    yield False


_NEVER = object()


@edge
def queue(q: Any, end: Any = _NEVER) -> Source[Any]:
    """What is put into a queue (`queue.Queue`, `multiprocessing.Queue` …).

    Ends when `end` comes, or the queue is shut down.

        for value in queue(q, end="that was all"): print(value)
    """

    @passes_on
    def values(stopped: threading.Event) -> Iterator[Any]:
        while not stopped.is_set():
            try:
                value = q.get(timeout=0.1)
            except queues.Empty:
                continue
            except Exception as error:
                if type(error).__name__ == "ShutDown":  # Python 3.13
                    return
                raise
            if value is end or (end is not _NEVER and type(value) is type(end) and bool(value == end)):
                return
            yield value

    return Source(values)


@edge
def merge(*sources: Iterable[T]) -> Source[T]:
    """The values of several sources or streams, as they come.

    Ends when all have ended, or with the first error of one.

        for value in merge(lines("a.log"), lines("b.log")): print(value)
    """

    @passes_on
    def values(stopped: threading.Event) -> Iterator[T]:
        changed = threading.Condition()
        come: collections.deque[tuple[bool, Any]] = collections.deque()
        going = [iter(source) for source in sources]  # stopping these leaves other iterations alone
        left = len(going)

        def pull(source: Iterator[T]) -> None:
            nonlocal left
            try:
                for value in source:
                    with changed:
                        changed.wait_for(lambda: len(come) < len(going) or stopped.is_set())
                        if stopped.is_set():
                            return
                        come.append((True, value))
                        changed.notify_all()
            except BaseException as error:
                with changed:
                    come.append((False, error))
            finally:
                with changed:
                    left -= 1
                    changed.notify_all()

        threads = [threading.Thread(target=pull, args=(source,), name="entangle-merge", daemon=True) for source in going]
        for thread in threads:
            thread.start()
        try:
            while True:
                with changed:
                    while not come and left and not stopped.is_set():
                        changed.wait(_LOOK)
                    if stopped.is_set() or not come:
                        return
                    fine, value = come.popleft()
                    changed.notify_all()
                if not fine:
                    raise value
                yield value
        finally:
            stopped.set()
            with changed:
                changed.notify_all()
            for source in going:
                for name in ("stop", "close"):
                    end = getattr(source, name, None)
                    if end is not None:
                        # A generator that is running refuses to close, and ends by itself.
                        with contextlib.suppress(Exception):
                            end()
            for thread in threads:
                thread.join(0.5)

    return Source(values)
