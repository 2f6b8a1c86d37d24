"""Sources: each yields what is there and what comes later, and returns at once when stopped."""

from __future__ import annotations

import os
import queue as queues
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from itertools import count, islice
from pathlib import Path
from typing import Any

import pytest

from entangle.dataflow import dataflow, process
from entangle.errors import OptionError
from entangle.sources import directory, every, lines, merge, queue

from .ways import installed


@dataflow
@process
def double(x: Any) -> Any:
    return x * 2


class Reader:
    """Iterates in a thread of its own, so that a test can wait for what it has received."""

    def __init__(self, source: Iterable[Any]) -> None:
        self.source = source
        self.got: list[Any] = []
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._read)

    def __enter__(self) -> Reader:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.source.stop()  # type: ignore[attr-defined]
        self._thread.join(20)
        assert not self._thread.is_alive()

    def _read(self) -> None:
        for value in self.source:
            with self._changed:
                self.got.append(value)
                self._changed.notify_all()

    def until(self, done: Callable[[list[Any]], bool]) -> list[Any]:
        """Wait until the received values satisfy the condition. Return them."""
        with self._changed:
            assert self._changed.wait_for(lambda: done(self.got), 20), self.got
            return list(self.got)


def test_every() -> None:
    begin = time.monotonic()
    numbers = list(islice(every(0.02), 5))
    assert numbers == sorted(set(numbers))  # a busy machine may skip some
    assert numbers[0] == 0
    assert time.monotonic() - begin >= 0.08
    with pytest.raises(OptionError):
        every(0)


def test_every_leaves_out_what_nobody_was_ready_for() -> None:
    ticks = iter(every(0.01))
    assert next(ticks) == 0
    time.sleep(0.1)
    assert next(ticks) >= 1
    assert next(ticks) >= 9


def test_lines_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes("eins\r\nzwei\n\nvier ä".encode())
    assert list(lines(path, follow=False)) == ["eins", "zwei", "", "vier ä"]
    with pytest.raises(FileNotFoundError):
        list(lines(tmp_path / "none", follow=False))


def test_lines_that_are_appended(tmp_path: Path) -> None:
    path = tmp_path / "log"
    with Reader(lines(path)) as reader:
        path.write_text("one\ntw")
        reader.until(lambda got: got == ["one"])
        with open(path, "a") as file:
            file.write("o\nthree\n")
        reader.until(lambda got: got == ["one", "two", "three"])
        path.rename(tmp_path / "log.1")
        with open(tmp_path / "log.1", "a") as file:
            file.write("late\n")
        path.write_text("new\n")
        assert reader.until(lambda got: "new" in got) == ["one", "two", "three", "late", "new"]
        path.write_text("")
        path.write_text("cut\n")
        reader.until(lambda got: got[-1] == "cut" or got[-1] == "new")


def test_new_files_of_a_directory(tmp_path: Path) -> None:
    installed("watchfiles")
    (tmp_path / "b.csv").touch()
    (tmp_path / "a.csv").touch()
    (tmp_path / "a.txt").touch()
    (tmp_path / "sub.csv").mkdir()
    with Reader(directory(tmp_path, "*.csv")) as reader:
        reader.until(lambda got: [path.name for path in got] == ["a.csv", "b.csv"])
        (tmp_path / "c.tmp").write_text("whole")
        (tmp_path / "c.tmp").rename(tmp_path / "c.csv")
        reader.until(lambda got: got[2:] == [tmp_path / "c.csv"])
        for n in range(50):
            (tmp_path / f"many{n:02}.csv").touch()
        reader.until(lambda got: sorted(path.name for path in got[3:]) == [f"many{n:02}.csv" for n in range(50)])
    with Reader(directory(tmp_path, "*.csv", existing=False)) as reader:
        for n in count():  # the first file may exist before the directory is first listed
            (tmp_path / f"late{n}.csv").touch()
            if reader.got:
                break
            time.sleep(0.01)
        assert all(path.name.startswith("late") for path in reader.got)
    with pytest.raises(OptionError, match="no such directory"):
        directory(tmp_path / "none")


def test_a_queue() -> None:
    q: queues.Queue[Any] = queues.Queue()
    with Reader(queue(q)) as reader:
        for value in (1, None, 0):
            q.put(value)
        reader.until(lambda got: got == [1, None, 0])
    for word in (1, 2, "end", 3):
        q.put(word)
    assert list(queue(q, end="end")) == [1, 2]
    if hasattr(q, "shutdown"):
        q.shutdown()
        assert list(queue(q)) == [3]


def test_merge() -> None:
    assert sorted(merge(range(100), range(100, 200), [])) == list(range(200))
    assert list(merge()) == []
    assert list(islice(merge(every(0.01), count()), 3))
    assert sorted(merge(double().stream(range(10)), double().stream(range(10, 20)))) == [(2 * n,) for n in range(20)]


def test_merge_ends_with_the_error_of_one() -> None:
    def broken() -> Iterator[int]:
        yield 1
        raise LookupError("one of them")

    with pytest.raises(LookupError):
        list(merge(broken(), count()))


def test_a_stream_that_ends_lets_its_source_go(tmp_path: Path) -> None:
    """Even if the source waits for something that may never come."""
    (tmp_path / "log").write_text("1\n2\n")
    q: queues.Queue[int] = queues.Queue()
    q.put(1)
    nothing: list[Any] = []
    sources: list[Any] = [every(3600), lines(tmp_path / "log"), queue(q), merge(every(3600), lines(tmp_path / "log"))]
    if os.environ.get("CI") or __import__("importlib.util").util.find_spec("watchfiles"):
        (tmp_path / "there").mkdir()
        (tmp_path / "there" / "file").touch()
        sources.append(directory(tmp_path / "there"))
    for source in sources:
        with double().stream(nothing) as stream:
            assert list(stream) == []
        with double().stream(source) as stream:
            try:
                next(stream)
            except TypeError:  # a path cannot be doubled
                pass
        assert not any(thread.is_alive() for thread in stream._threads), source
