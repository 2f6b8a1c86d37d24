"""Functions that the tests of executors call."""

from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from entangle._worker import called
from entangle._worker.board import BEGUN, HIGH, LOW

known: list[Any] = []


def put(value: Any) -> None:
    known.append(value)


def get() -> list[Any]:
    return known


def add(a: int, b: int = 0) -> int:
    return a + b


def total(values: Any) -> Any:
    return sum(values)


def given(*args: Any, **named: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, named


def fail(text: str) -> None:
    raise ValueError(text)


def die(number: int = signal.SIGKILL, *rest: object, **named: object) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def leave(code: int, *rest: object, **named: object) -> None:
    os._exit(code)


def exit_by_name(code: Any) -> None:
    sys.exit(code)


def pid() -> int:
    return os.getpid()


def meet(folder: str, name: str, others: list[str]) -> str:
    """Wait until all others have called this as well."""
    Path(folder, name).touch()
    while not all(Path(folder, other).exists() for other in others):
        time.sleep(0.002)
    return name


def wait_for(path: str) -> None:
    while not os.path.exists(path):
        time.sleep(0.002)


def wait_and_fail(path: str) -> None:
    wait_for(path)
    raise ValueError("on purpose")


def waits_in_its_worker(folder: str) -> None:
    Path(folder, f"in-{os.getpid()}").touch()
    wait_for(f"{folder}/go-{os.getpid()}")


class Paused:
    """Stands for the words of the board, to simulate a worker that loses its CPU.

    The worker pauses before the second call of its next message but one. It goes on when that call
    is being taken back. With `after`, it pauses just after it has checked whether the call is taken
    back."""

    def __init__(self, words: Any, folder: str, after: bool) -> None:
        self.words = words
        self.folder = folder
        self.after = after
        self.looks = 0

    def __setitem__(self, index: int, word: int) -> None:
        if index == BEGUN and self.looks == 2 and not self.after:
            Path(self.folder, "paused").touch()
            while not self.words[LOW]:
                pass
        self.words[index] = word

    def __getitem__(self, index: int) -> int:
        word: int = self.words[index]
        self.looks += index == LOW
        if index == HIGH and self.looks == 3 and self.after:
            Path(self.folder, "paused").touch()
            wait_for(f"{self.folder}/resumed")
        return word


def pause_later(folder: str, after: bool) -> int:
    board: Any = called._answering.board  # type: ignore[union-attr]
    board.words = Paused(board.words, folder, after)
    return os.getpid()


def note(folder: str, number: int) -> None:
    with open(f"{folder}/notes", "a") as notes:
        notes.write(f"{number}\n")


def closes_all(size: int) -> bytes:
    os.closerange(3, 10_000)
    return bytes(size)


def begun_and_waits(folder: str) -> None:
    Path(folder, f"{os.getpid()}").touch()
    time.sleep(60)


def run_begun_and_waits(folder: str) -> None:
    from entangle.process import process

    process(begun_and_waits)(folder)()


def broken_initializer(text: str) -> None:
    raise RuntimeError(text)


class Refuses:
    """An object that cannot be pickled."""

    def __reduce__(self) -> Any:
        raise TypeError("refuses to be pickled")


class RefusesToArrive:
    """An object that cannot be unpickled."""

    def __reduce__(self) -> Any:
        return fail, ("refuses to arrive",)


class DiesOnArrival:
    """An object that ends the process that unpickles it."""

    def __reduce__(self) -> Any:
        return os._exit, (7,)


class LeavesOnArrival:
    """An object that raises SystemExit when it is unpickled."""

    def __reduce__(self) -> Any:
        return sys.exit, (3,)


class OnlyThere:
    """An object that cannot be unpickled in the process with that number."""

    def __init__(self, process: int) -> None:
        self.process = process

    def __reduce__(self) -> Any:
        return _only_elsewhere, (self.process,)


def _only_elsewhere(process: int) -> OnlyThere:
    if os.getpid() == process:
        raise AssertionError("unpickled in the caller")
    return OnlyThere(process)


def made(kind: Callable[..., Any], *args: Any) -> Any:
    return kind(*args)


def made_later(path: str, kind: Callable[..., Any], *args: Any) -> Any:
    wait_for(path)
    return kind(*args)


def kind_of(value: Any) -> str:
    return type(value).__name__


class TwoArguments(Exception):
    def __init__(self, one: int, other: int) -> None:
        super().__init__(f"{one} and {other}")
        self.one, self.other = one, other


def fail_with_two() -> None:
    raise TwoArguments(1, 2)


def deep(levels: int) -> Any:
    found: list[Any] = []
    for _ in range(levels):
        found = [found]
    return found


def nested(numbers: list[int]) -> list[int]:
    from entangle.executor import Executor

    with Executor() as executor:
        return list(executor.map(add, numbers, numbers))


def default_workers() -> int:
    from entangle.executor import Executor

    return Executor()._max_workers


def in_an_executor_within(numbers: list[int]) -> int:
    from entangle.executor import Executor

    with Executor(1) as executor:
        futures = [executor.submit(add, number, 1) for number in numbers]
        return sum(future.result() for future in futures)


def leave_if(wanted: bool) -> bool:
    if wanted:
        os._exit(5)
    return wanted


def get_after(seconds: float) -> list[Any]:
    time.sleep(seconds)
    return known


_left_open: list[int] = []


def leak_descriptors(count: int) -> int:
    time.sleep(0.006)
    _left_open.extend(os.open(os.devnull, os.O_RDONLY) for _ in range(count))
    return os.getpid()


class Buffered:
    """Holds bytes that are pickled out of band, as those of an array are."""

    def __init__(self, data: Any) -> None:
        self.data = memoryview(data)

    @classmethod
    def of(cls, number: int, size: int) -> Buffered:
        return cls(bytearray([number]) * size)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return Buffered, (pickle.PickleBuffer(self.data),)

    def ends(self) -> tuple[int, int, int]:
        return len(self.data), self.data[0], self.data[-1]


def repeated(value: Buffered) -> Buffered:
    return Buffered(bytearray(value.data))


def untouched(value: Buffered) -> Buffered:
    return value


def touched(value: Buffered) -> Buffered:
    value.data[0] = 99
    return value


def first_known() -> int:
    return int(known[0].data[0])


def length(value: Buffered, less: int) -> int:
    return len(value.data) - less
