"""Sources of a stream: iterables that wait for values to come, and end at once when stopped.

::

    flow.stream(every(1.0))                      the number of the tick, each second
    flow.stream(lines("access.log"))             what is in the file, then what is appended to it
    flow.stream(directory("incoming", "*.csv"))  the files that are there, then new ones
    flow.stream(queue(q))                        what others put
    flow.stream(sqs("jobs"))                     the messages of a queue of AWS
    flow.stream(merge(lines(a), lines(b)))       several at once, as they come

More: docs/dataflows.md.
"""

from __future__ import annotations

import codecs
import os
import queue as queues
import threading
import time
import weakref
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, Generic, TypeVar

from entangle._dataflow.iteration import Iteration
from entangle._dataflow.merging import Merging
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge, passes_on
from entangle._tasks.option_values import check_path, check_whether, is_number
from entangle.errors import OptionError

__all__ = ["Source", "directory", "every", "lines", "merge", "queue", "sqs"]

T = TypeVar("T")

#: Seconds between two looks at a file that is followed.
_LOOK = 0.05


class Source(Generic[T]):
    """An iterable that another thread can stop; all iterations over it then end."""

    stops_at_once = True

    def __init__(self, values: Callable[[threading.Event], Iterator[T]]) -> None:
        self._values = values
        self._going: weakref.WeakSet[Any] = weakref.WeakSet()

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
    if not is_number(seconds) or not seconds > 0:
        raise OptionError(f"every({value_in_short(seconds)}): the time between two ticks must be a number of seconds above 0")

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
    its start. A line is given when its end has been written. With `follow`, bytes that `encoding`
    cannot read become U+FFFD.

    Raises OptionError for bad options. Iterating raises FileNotFoundError without `follow`.

        for line in lines("access.log"): print(line)
    """
    where = f"lines({value_in_short(path)})"
    check_path(where, "path", path)
    check_whether(where, follow=follow)
    try:
        codecs.lookup(encoding)
    except (LookupError, TypeError, ValueError):
        raise OptionError(f"{where}: encoding={value_in_short(encoding)}; it must be the name of an encoding, as 'utf-8'") from None

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

    Raises OptionError for bad options, where there is no such directory, and where watchfiles is
    not installed.

        for path in directory("incoming", "*.csv"): print(path)
    """
    where = f"directory({value_in_short(path)})"
    check_path(where, "path", path)
    if not isinstance(pattern, str) or not pattern:
        raise OptionError(f"{where}: pattern={value_in_short(pattern)}; it must be a pattern of file names, as '*.csv'")
    check_whether(where, existing=existing)
    try:
        import watchfiles
    except ImportError:
        raise OptionError('directory(…) needs watchfiles: pip install "py-entangle[dataflow]"') from None
    folder = Path(path)
    if not folder.is_dir():
        raise OptionError(f"{where}: there is no such directory; make it first, or correct the path")

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

    Ends when `end` comes, or the queue is shut down. Raises OptionError for what is no queue.

        for value in queue(q, end="that was all"): print(value)
    """
    if not callable(getattr(q, "get", None)):
        raise OptionError(f"queue({value_in_short(q)}): it must be a queue, such as queue.Queue or multiprocessing.Queue")

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

    Ends when all have ended, or with the first error of one. Raises OptionError for what cannot be
    iterated.

        for value in merge(lines("a.log"), lines("b.log")): print(value)
    """
    for source in sources:
        if not isinstance(source, Iterable) and not hasattr(source, "__getitem__"):
            raise OptionError(f"merge takes sources, streams and other iterables, not {value_in_short(source)}")

    return _Made(lambda: Merging(sources))


class _Made(Source[T]):
    """A source whose iterations are of a kind of their own."""

    def __init__(self, make: Callable[[], Any]) -> None:
        self._make = make
        self._going = weakref.WeakSet()

    def __iter__(self) -> Any:
        going = self._make()
        self._going.add(going)
        return going


@edge
def sqs(
    queue: str,
    *,
    profile: str | None = None,
    region: str | None = None,
    keys: Sequence[str] = (),
    role: str | None = None,
    endpoint: str | None = None,
    visibility: int | None = None,
    raw: bool = False,
    batch: int = 10,
    wait: int = 20,
    idle: float | None = None,
) -> Source[Any]:
    """The messages of a queue of Amazon SQS. Each is deleted when its item has ended in the stream.

    - `queue`: its name, address or ARN. In a FIFO queue, the messages of a group come in order, one
      after another: the next one when the item before has ended. Other groups go on meanwhile.
    - `profile`, `region`, `keys`, `role`, `endpoint`: as for `@aws`; boto3's own search by default.
    - `visibility`: for how long others do not see a message that is here (seconds); by default as
      the queue has it. It is extended while an item takes longer, up to SQS's twelve hours.
    - `raw`: an item is the whole message, a dict as boto3 gives it. Else it is the body, decoded
      where it is JSON, and a text where it is not.
    - `batch`: the messages that one request takes, 1 to 10.
    - `wait`: how long a request waits for messages (seconds, 1 to 20). It ends at once when the
      stream is stopped.
    - `idle`: end after so many seconds without a message; by default never.

    An item has ended when the consumer of the stream asks for the next one. An item that fails is
    not deleted, and comes again after its visibility timeout. What is under way when the stream is
    closed is visible to others at once; when the program is killed, after the timeout. So a message
    may come twice, and none is lost. Without a stream, `for message in sqs("jobs")`, a message has
    ended when the next one is asked for. Needs the extra `aws`.

    Raises OptionError for bad options. Iterating raises UnreachableError where there is no such
    queue, or AWS refuses.

        for path in shrink.stream(sqs("pictures"), ordered=False): print(path)
    """
    from entangle._aws.account_options import account_from
    from entangle._aws.queue_messages import QueueMessages, Wishes

    who = f"sqs({value_in_short(queue)})"
    if not isinstance(queue, str) or not queue.strip():
        raise OptionError(f"{who}: the queue must be a name, an address or an ARN")
    account = account_from(who, keys, {"profile": profile, "region": region, "role": role, "endpoint": endpoint})
    bounds = {"visibility": (visibility, 1, 43200), "batch": (batch, 1, 10), "wait": (wait, 1, 20)}
    for name, (value, least, most) in bounds.items():
        if (value is not None or name != "visibility") and (type(value) is not int or not least <= value <= most):
            raise OptionError(f"{who}: {name}={value_in_short(value)}; it must be a whole number, {least} to {most}")
    if idle is not None and (not is_number(idle) or not idle > 0):
        raise OptionError(f"{who}: idle={value_in_short(idle)}; it must be a number of seconds above 0")
    check_whether(who, raw=raw)
    wishes = Wishes(queue, account, visibility, bool(raw), batch, wait, idle)
    return _Made(lambda: QueueMessages(wishes))
