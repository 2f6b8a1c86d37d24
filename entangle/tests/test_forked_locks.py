"""Workers forked while threads hold locks (`start="fork"`). A worker has none of those threads, and
must work all the same."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from entangle._run import start
from entangle.process import process
from entangle.thread import thread

from .callers import Caller
from .ways import needed


def more(number: int) -> int:
    return number + 1


@contextmanager
def held(lock: Any) -> Iterator[None]:
    """Another thread holds the lock during the block."""
    has, go = threading.Event(), threading.Event()

    def hold() -> None:
        with lock:
            has.set()
            go.wait()

    holder = threading.Thread(target=hold)
    holder.start()
    assert has.wait(10)
    try:
        yield
    finally:
        go.set()
        holder.join()


@pytest.mark.parametrize("name", ["thread_lock", "_leaving", "telling"])
def test_a_thread_of_the_run_holds_a_lock(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    fork = start._fork

    def fork_while_locked(site: Any, *rest: Any) -> int:
        with held(site.table.thread_lock if name == "thread_lock" else getattr(site, name)):
            return fork(site, *rest)

    monkeypatch.setattr(start, "_fork", fork_while_locked)
    assert process(more)(thread(more)(1))(start="fork") == 3


def test_a_thread_draws_from_numpys_generator() -> None:
    numpy = needed("numpy")

    @process
    def draw() -> float:
        return float(numpy.random.random())

    with held(numpy.random.get_bit_generator().lock):
        call, other = draw(), draw()
        assert call(start="fork") != other(start="fork")


def test_a_thread_pickles_a_class() -> None:
    """cloudpickle tracks classes under a private lock. This test fails if that lock is renamed."""
    from cloudpickle import cloudpickle

    @process
    def made() -> Any:
        class Point:
            x = 7

        return Point().x, cloudpickle.dumps(Point) != b""

    with held(cloudpickle._DYNAMIC_CLASS_TRACKER_LOCK):
        assert made()(start="fork") == (7, True)


_PRINTS = """
import logging, os, sys, threading, time
from entangle._run import start
from entangle.process import process

logging.basicConfig(stream=sys.{stream})

@process
def more(number):
    print("from a worker")
    logging.getLogger("here").warning("told")
    return number + 1

fork = start._fork

def fork_while_printing(*all):
    # A thread writes more than the pipe takes, and has the stream's lock until somebody reads.
    read, write = os.pipe()
    before = os.dup({fd})
    os.dup2(write, {fd})
    threading.Thread(target=lambda: sys.{stream}.write("x" * 200000 + "\\n")).start()
    while not os.get_blocking(read) or _waiting(read) < 60000:
        time.sleep(0.001)
    try:
        return fork(*all)
    finally:
        os.dup2(before, {fd})
        os.set_blocking(read, False)
        end = time.monotonic() + 5
        while threading.active_count() > 1 and time.monotonic() < end:
            try:
                os.read(read, 65536)
            except BlockingIOError:
                time.sleep(0.001)

def _waiting(fd):
    import array, fcntl, termios
    held = array.array("i", [0])
    fcntl.ioctl(fd, termios.FIONREAD, held)
    return held[0]

if __name__ == "__main__":
    start._fork = fork_while_printing
    value = more(1)(start="fork")
    print("the value is", value)
"""


@pytest.mark.parametrize(("stream", "fd"), [("stdout", 1), ("stderr", 2)])
def test_a_thread_prints(tmp_path: Path, stream: str, fd: int) -> None:
    caller = Caller(tmp_path, _PRINTS.format(stream=stream, fd=fd), PYTHONWARNINGS="ignore").start()
    code, out, err = caller.finish(20)
    assert code == 0, err
    assert "the value is 2" in out
