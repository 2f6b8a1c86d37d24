"""Programs whose threads are greenlets: gevent and eventlet, with everything patched."""

import importlib.util
from pathlib import Path

import pytest

from .callers import output_of
from .ways import installed, missing

PROGRAM = """
import os, time
import entangle
from entangle.dataflow import dataflow
from entangle.errors import ProcessTerminatedException, ProcessTimeoutException
from entangle.process import process
from entangle.thread import thread

@process
def double(x):
    time.sleep(0.01)
    return 2 * x

@process
def add(*x):
    return sum(x)

@process
def nested(x):
    return add(double(x), double(x))()

@process
def dies():
    os._exit(7)

@process(timeout=0.2)
def late():
    time.sleep(60)

@thread
def waits(x):
    time.sleep(0.01)
    return x

@dataflow
@process
def each(x):
    return x + 1

def runs():
    assert add(double(1), double(2))() == 6
    assert nested(1)() == 4
    assert sum_of_threads() == 6
    assert add(waits(1), double(waits(2)))() == 5
    assert add(double(1), double(2))(proc=True).result() == 6
    assert [x for (x,) in each().stream(range(5))] == [1, 2, 3, 4, 5]
    for call, error, said in ((dies(), ProcessTerminatedException, "7"), (late(), ProcessTimeoutException, "late")):
        try:
            call()
        except error as raised:
            assert said in str(raised), raised
        else:
            raise AssertionError("no error")

def warm():
    # Fills the sockets of workers as well.
    with entangle.Executor(2) as executor:
        assert executor.submit(abs, -1).result(30) == 1
        sent = [bytes([n]) * 60_000 for n in range(20)]
        assert list(executor.map(bytes.upper, sent)) == [one.upper() for one in sent]
    with entangle.session():
        assert [add(double(n), double(n))() for n in range(3)] == [0, 4, 8]

@thread
def plus(*x):
    return sum(x)

def sum_of_threads():
    return plus(waits(1), waits(2), waits(3))()
"""

GEVENT = (
    """
from gevent import monkey
monkey.patch_all()
"""
    + PROGRAM
    + """
import gevent
if __name__ == "__main__":
    runs()
    warm()
    ticks = []
    def tick():
        while True:
            ticks.append(1)
            gevent.sleep(0.005)
    ticking = gevent.spawn(tick)
    together = [gevent.spawn(runs) for _ in range(2)]
    gevent.joinall(together, raise_error=True)
    ticking.kill()
    assert len(ticks) > 5  # others go on while a run is awaited
    print("all")
"""
)

EVENTLET = (
    """
import warnings
warnings.simplefilter("ignore")
import eventlet
eventlet.monkey_patch()
"""
    + PROGRAM
    + """
if __name__ == "__main__":
    runs()
    warm()
    together = [eventlet.spawn(runs) for _ in range(2)]
    for one in together:
        one.wait()
    print("all")
"""
)


@pytest.mark.parametrize("way", ["auto", *(pytest.param(way, marks=pytest.mark.drill) for way in ("fork", "forkserver", "spawn"))])
def test_a_program_under_gevent(tmp_path: Path, way: str) -> None:
    """In every way to run, alone and in several greenlets at once."""
    installed("gevent")
    assert output_of(tmp_path, GEVENT, ENTANGLE_START=way, PYTHONWARNINGS="default") == "all\n"


@pytest.mark.parametrize("way", [pytest.param(way, marks=pytest.mark.drill) for way in ("auto", "fork")])
def test_a_program_under_eventlet(tmp_path: Path, way: str) -> None:
    """As under gevent, if eventlet is installed."""
    if importlib.util.find_spec("eventlet") is None:
        missing("the package eventlet: pip install 'py-entangle[test]'")
    assert output_of(tmp_path, EVENTLET, ENTANGLE_START=way, PYTHONWARNINGS="default") == "all\n"
