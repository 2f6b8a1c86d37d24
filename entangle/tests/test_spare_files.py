"""Files of large values are reused, but never while any process can still see their content."""

from __future__ import annotations

import contextlib
import errno
import os
import random
import signal
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle import session
from entangle._shared import spare_files as module
from entangle._shared.home import home
from entangle._shared.spare_files import SpareFiles, remove_of_dead, spare_files
from entangle._shared.store import map_privately
from entangle.executor import Executor
from entangle.process import process

from . import executor_bodies
from .evidence import wait_until
from .executor_bodies import Buffered

SIZE = 1 << 20
#: Values that bodies keep between runs.
kept: list[Any] = []


def seen(path: Path) -> bytes:
    return path.read_bytes()[:4]


@pytest.fixture
def own(tmp_path: Path) -> tuple[SpareFiles, Callable[..., Path], Path]:
    """Spare files of this process, a function that writes one, and their directory."""
    files, spares = SpareFiles(), tmp_path / "spares"

    def write(name: str, letter: bytes, size: int = SIZE) -> Path:
        path = tmp_path / name
        files.write(str(path), size, [(memoryview(letter * size), 0)], str(spares))
        return path

    return files, write, spares


def is_mapped(pid: int | str, part: str) -> bool:
    """Whether a process has mapped a file whose path contains this string."""
    return part in Path(f"/proc/{pid}/maps").read_text()


def has_open(pid: int | str, part: str) -> bool:
    """Whether a process has opened a file whose path contains this string."""
    for fd in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if part in os.readlink(f"/proc/{pid}/fd/{fd}"):
                return True
    return False


def number_of(path: Path) -> int:
    return path.stat().st_ino


def test_a_file_is_written_again_only_when_nobody_can_see_it(own: Any) -> None:
    files, write, spares = own
    first = write("a", b"1")
    file = number_of(first)
    assert number_of(write("b", b"2")) != file  # it has a name
    os.link(first, spares.parent / "link")
    first.unlink()
    assert number_of(write("c", b"3")) != file  # it has another name
    (spares.parent / "link").unlink()
    files.give_back()

    mapped: dict[int, tuple[int, str]] = {}
    first = write("d", b"4")
    file, view = number_of(first), map_privately(str(first), mapped)
    part = view[8:16]
    first.unlink()
    assert number_of(write("e", b"5")) != file  # it is mapped here
    del view
    assert number_of(write("f", b"6")) != file  # a view of it still exists
    read, out = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(out)
        os.read(read, 1)
        os._exit(int(bytes(part) != b"4" * 8))
    os.close(read)
    assert bytes(part) == b"4" * 8
    del part
    assert number_of(write("g", b"7")) != file  # a forked child has inherited the view
    os.close(out)
    assert os.waitpid(child, 0)[1] == 0  # the child saw the old content
    again = write("h", b"8")
    assert number_of(again) == file
    assert again.read_bytes() == b"8" * SIZE
    assert not mapped
    files.give_back()
    assert os.listdir(spares) == []


def test_what_is_kept_stays_within_a_bound(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files, write, spares = own
    monkeypatch.setattr(module, "_MOST", 5 * SIZE)

    def total() -> int:
        return sum((spares / name).stat().st_size for name in os.listdir(spares))

    rest = random.Random(3)
    for number in range(200):
        path = write(f"v{number}", b"%d" % (number % 10), rest.randrange(300_000, 2 * SIZE))
        assert seen(path) == b"%d" % (number % 10) * 4
        if rest.random() < 0.8:
            path.unlink()
        assert total() <= 5 * SIZE
        assert len(files) <= 16
    write("large", b"x", 6 * SIZE)
    assert total() <= 5 * SIZE
    files.give_back()
    assert os.listdir(spares) == []


def test_where_there_is_no_room_free_files_go_first(own: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    files, write, spares = own
    write("a", b"1").unlink()
    held = write("b", b"2", 8 * SIZE)
    assert len(files) == 2
    full = iter((OSError(errno.ENOSPC, "no room"),))

    def reserve(fd: int, at: int, size: int) -> None:
        for error in full:
            raise error
        os.posix_fallocate(fd, at, size)

    monkeypatch.setattr(module, "reserve", reserve)
    write("c", b"3", 3 * SIZE)
    assert len(os.listdir(spares)) == len(files) == 2  # those of "b", which is in use, and of "c"
    assert seen(held) == b"2222"
    files.give_back()


def test_files_of_the_dead_are_removed(own: Any) -> None:
    files, write, spares = own
    child = os.fork()
    if child == 0:
        write("a", b"1")
        os.kill(os.getpid(), signal.SIGKILL)
    os.waitpid(child, 0)
    assert len(os.listdir(spares)) == 1
    write("b", b"2")
    assert len(os.listdir(spares)) == len(files) == 1
    assert remove_of_dead(str(spares)) == SIZE
    files.give_back()


def test_a_forked_child_keeps_none_of_its_parents(own: Any) -> None:
    files, write, spares = own
    write("a", b"1").unlink()
    (name,) = os.listdir(spares)
    kept = spare_files._files
    spare_files._files = files._files  # a fork clears this process-wide object in the child
    child = os.fork()
    if child == 0:
        os._exit(int(len(spare_files) > 0 or has_open("self", name) or is_mapped("self", name)))
    spare_files._files = kept
    assert os.waitpid(child, 0)[1] == 0
    assert os.listdir(spares) == [name]
    files.give_back()


# --- in a session ---------------------------------------------------------------------------------


@process
def made(number: int, size: int = SIZE) -> Buffered:
    return Buffered.of(number, size)


@process
def untouched(value: Buffered) -> Buffered:
    return value


@process
def keeps(value: Buffered) -> int:
    kept.append(value)
    return os.getpid()


@process
def ends_of_kept() -> list[tuple[int, int, int]]:
    return [value.ends() for value in kept]


@process
def joined(*values: Buffered) -> list[tuple[int, int, int]]:
    return [value.ends() for value in values]


@process(retry=1)
def dies_while_it_is_written(marks: str, number: int) -> Buffered:
    """Kills its worker in the first attempt, when half of the value is written."""
    if not os.path.exists(marks):
        write_whole = module._Spare.write

        def write(spare: Any, parts: Any) -> None:
            Path(marks).touch()
            write_whole(spare, [(buffer[: len(buffer) // 2], at) for buffer, at in parts])
            os.kill(os.getpid(), signal.SIGKILL)

        module._Spare.write = write  # type: ignore[assignment, method-assign]
    return Buffered.of(number, SIZE)


def ends(number: int, size: int = SIZE) -> tuple[int, int, int]:
    return size, number, number


def test_values_that_the_caller_keeps_stay_as_they_are() -> None:
    with session(workers=1) as opened:
        held = [made(number)() for number in range(30)]
        (worker,) = opened.pids
        views = [value.data[100:200] for value in held[::3]]
        del held[::3]
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(int([value.ends() for value in held] != [ends(number) for number in range(30) if number % 3]))
        os.waitpid(child, os.WUNTRACED)
        mine = [value.ends() for value in held]
        del held
        for number in range(100, 130):  # only the child still uses 20 of these files
            assert made(number)().ends() == ends(number)
        assert opened.pids == [worker]
    assert mine == [ends(number) for number in range(30) if number % 3]
    assert [bytes(view) for view in views] == [bytes([number]) * 100 for number in range(0, 30, 3)]
    os.kill(child, signal.SIGCONT)
    assert os.waitpid(child, 0)[1] == 0


def test_arguments_that_a_worker_keeps_stay_as_they_are() -> None:
    with session(workers=1):
        value = Buffered.of(0, SIZE)
        worker = keeps(value)()
        for number in range(1, 12):
            value.data[:] = bytes([number]) * SIZE
            assert joined(value)() == [ends(number)]
            if number % 4 == 0:
                assert keeps(untouched(made(number)))() == worker
        assert 0 < len(spare_files) <= 3
        # The leak check of a user's tests would report an open file of a run's directory.
        assert not has_open("self", os.path.join(home().path, "r"))
        assert ends_of_kept()() == [ends(0), ends(4), ends(8)]
    assert not len(spare_files)


def test_a_worker_killed_while_it_writes_a_value(tmp_path: Path) -> None:
    with session() as opened:
        for number in range(3):
            assert made(number)().ends() == ends(number)
        (before,) = opened.pids
        value = dies_while_it_is_written(str(tmp_path / "mark"), 7)()
        assert (tmp_path / "mark").exists()  # it was written to a reused file
        assert value.ends() == ends(7)
        assert before not in opened.pids


def test_values_between_workers_in_threads_and_sizes_that_vary() -> None:
    with session():

        def several(seed: int) -> None:
            rest = random.Random(seed)
            held = []
            for _ in range(10):
                sizes = [rest.randrange(100_000, SIZE) for _ in range(3)]
                numbers = [rest.randrange(256) for _ in range(3)]
                given = Buffered.of(numbers[0], sizes[0])
                calls = [untouched(given), *map(made, numbers[1:], sizes[1:])]
                assert joined(*calls)() == [ends(number, size) for number, size in zip(numbers, sizes, strict=True)]
                held.append((numbers[1], sizes[1], made(numbers[1], sizes[1])()))
            assert all(value.ends() == ends(number, size) for number, size, value in held)

        with ThreadPoolExecutor(2) as threads:
            list(threads.map(several, range(2)))


@process
def quiet_after(seconds: float) -> None:
    from entangle._run import warm_life

    warm_life._QUIET = seconds


def test_an_idle_worker_gives_its_files_back() -> None:
    with session(workers=1) as opened:
        quiet_after(0.2)()
        made(1)()
        (worker,) = opened.pids
        made(1)()
        assert is_mapped(worker, "/spares/")
        wait_until(lambda: not is_mapped(worker, "/spares/") and not has_open(worker, "/spares/"))
        assert made(2)().ends() == ends(2)
        assert opened.pids == [worker]


# --- of an executor -------------------------------------------------------------------------------


def test_an_executors_value_that_a_forked_child_has() -> None:
    with Executor(1) as executor:
        value = executor.submit(executor_bodies.repeated, Buffered.of(1, SIZE)).result()
        child = os.fork()
        if child == 0:
            os.kill(os.getpid(), signal.SIGSTOP)
            os._exit(int(value.ends() != ends(1)))
        os.waitpid(child, os.WUNTRACED)
        del value
        for number in range(2, 12):
            assert executor.submit(executor_bodies.repeated, Buffered.of(number, SIZE)).result().ends() == ends(number)
        os.kill(child, signal.SIGCONT)
        assert os.waitpid(child, 0)[1] == 0
