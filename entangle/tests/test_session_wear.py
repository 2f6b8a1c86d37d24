"""What wears a worker out: it is replaced between two runs, and the runs do not notice."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from entangle import session
from entangle.process import ProcessTerminatedException, process

from .callers import output_of
from .evidence import alive, note, pids_in, wait_until

#: So many runs may pass before a worker that leaks is replaced.
BOUND = 40

_kept: list[Any] = []


def thread() -> None:
    for _ in range(3):
        threading.Thread(target=time.sleep, args=(600,), daemon=True).start()


def descriptors() -> None:
    _kept.extend(os.dup(0) for _ in range(8))


def memory() -> None:
    _kept.append(b"x" * (20 << 20))


def zombies() -> None:
    for _ in range(2):
        if os.fork() == 0:
            os._exit(0)


def shared_memory() -> None:
    from multiprocessing.shared_memory import SharedMemory

    for _ in range(4):
        _kept.append(SharedMemory(create=True, size=4096))
        _kept[-1].unlink()


@process
def leaks(what: Callable[[], None]) -> int:
    what()
    time.sleep(0.006)  # a worker looks at itself at most so often
    return os.getpid()


@pytest.mark.parametrize("what", [thread, descriptors, memory, zombies, shared_memory])
def test_a_worker_whose_bodies_leak_is_replaced(what: Callable[[], None]) -> None:
    with session(workers=1):
        first = leaks(what)()
        for _ in range(BOUND):
            if leaks(what)() != first:
                break
        else:
            pytest.fail(f"the same worker after {BOUND} runs")
        wait_until(lambda: not alive(first))


@process
def as_a_library() -> int:
    """Threads, descriptors and memory that are kept, as a library does."""
    if not _kept:
        for _ in range(8):
            threading.Thread(target=time.sleep, args=(600,), daemon=True).start()
        _kept.extend([b"x" * (100 << 20), *(os.dup(0) for _ in range(50))])
    time.sleep(0.006)
    return os.getpid()


def test_what_is_kept_once_retires_nobody() -> None:
    with session(workers=1) as opened:
        assert {as_a_library()() for _ in range(BOUND)} == set(opened.pids)


@process
def grows(size: int) -> int:
    _kept.append(b"x" * size)
    return os.getpid()


def test_a_worker_with_more_than_max_memory_retires() -> None:
    with session(workers=1, max_memory="150MB"):
        first = grows(1 << 20)()
        assert grows(1 << 20)() == first
        assert grows(200 << 20)() == first
        assert grows(1 << 20)() != first


def test_a_module_that_has_changed_on_disk_is_imported_anew(tmp_path: Path) -> None:
    source = """
        import importlib, os, pathlib, sys
        from entangle import session
        from entangle.process import process

        sys.dont_write_bytecode = True
        path = pathlib.Path(__file__).with_name("changing.py")
        path.write_text("def version():\\n    return 'the first'\\n")
        import changing

        @process
        def version():
            import changing
            return changing.version(), os.getpid()

        if __name__ == "__main__":
            with session(workers=1):
                print(version()()[0], version()()[0], len({version()()[1] for _ in range(5)}))
                path.write_text("def version():\\n    return 'the second one'\\n")
                print(version()()[0], process(changing.version)()())
                path.unlink()
                print(process(len)("gone")())
    """
    assert output_of(tmp_path, source) == "the first the first 1\nthe second one the second one\n4\n"


@process(timeout=0.2)
def hangs(log: str) -> None:
    note(log, os.getpid())
    time.sleep(60)


@process
def pid() -> int:
    return os.getpid()


def test_a_worker_past_a_deadline_is_replaced(tmp_path: Path) -> None:
    with session(workers=1):
        with pytest.raises(TimeoutError):
            hangs(str(tmp_path / "log"))()
        (killed,) = pids_in(tmp_path / "log")
        assert pid()() != killed
        assert not alive(killed)


@process
def leaves_running(apart: bool) -> int:
    return subprocess.Popen(["sleep", "60"], start_new_session=apart).pid


def test_a_process_that_a_body_leaves_ends_with_its_run() -> None:
    with session(workers=1):
        first = pid()()
        left = leaves_running(apart=False)()
        wait_until(lambda: not alive(left), 2.0)
        assert pid()() != first


def test_a_daemon_lives_on_as_without_a_session() -> None:
    with session(workers=1):
        left = leaves_running(apart=True)()
        pid()()
    assert alive(left)
    os.kill(left, signal.SIGKILL)


@process
def starts_and_waits() -> int:
    subprocess.run(["true"], check=True)
    return os.getpid()


def test_a_process_that_a_body_has_waited_for_retires_nobody() -> None:
    with session(workers=1) as opened:
        assert {starts_and_waits()() for _ in range(10)} == set(opened.pids)


@process
def exits(code: int) -> None:
    os._exit(code)


@process
def raises_exit() -> None:
    sys.exit(3)


@process
def forks(log: str) -> int:
    if os.fork() == 0:
        note(log, "child", os.getpid())
        return 0
    os.wait()
    return os.getpid()


def test_bodies_that_exit_or_fork(tmp_path: Path) -> None:
    with session(workers=1):
        for _ in range(2):
            with pytest.raises(ProcessTerminatedException, match="exit code 7"):
                exits(7)()
            with pytest.raises(BaseException, match="3"):
                raises_exit()()
            parent = forks(str(tmp_path / "log"))()
            assert parent == pid()()
        assert len(pids_in(tmp_path / "log")) == 2


@process
def dies(number: int) -> None:
    os.kill(os.getpid(), number)
    time.sleep(60)


def test_a_worker_that_crashes_is_replaced_within_the_run(tmp_path: Path) -> None:
    with session(workers=1):
        with pytest.raises(ProcessTerminatedException, match="SIGSEGV"):
            dies(signal.SIGSEGV)()
        assert process(retry=3)(crashes_twice)(str(tmp_path / "log"))() == 3


def crashes_twice(log: str) -> int:
    note(log, os.getpid())
    if len(pids_in(log)) < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    return len(set(pids_in(log)))
