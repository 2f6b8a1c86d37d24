"""`start="auto"` forks where that is safe in every respect, and only there."""

import textwrap
from pathlib import Path

from .callers import output_of
from .ways import installed

#: A task, and a function that tells how its worker was started.
HOW = """
import os, sys
from entangle.process import process

@process
def parent():
    return os.getppid()

def way():
    return "fork" if parent()() == os.getpid() else "another"
"""

THREAD = """
import ctypes, time
def native_thread(name=None):
    libc, number = ctypes.CDLL(None), ctypes.c_ulong()
    assert libc.pthread_create(ctypes.byref(number), None, ctypes.cast(libc.pause, ctypes.c_void_p), None) == 0
    if name:
        assert libc.pthread_setname_np(number, name) == 0
"""


def test_a_task_that_groups_by_polars_after_its_caller_has(tmp_path: Path) -> None:
    """polars has a pool of native threads, and a forked child has none of them."""
    installed("polars")
    source = """
    import polars
    frame = polars.DataFrame({"a": range(300_000), "g": [i % 3 for i in range(300_000)]})

    def groups(frame):
        return frame.group_by("g").agg(polars.col("a").sum()).height

    from entangle.process import process

    @process
    def counted(frame):
        return groups(frame)

    if __name__ == "__main__":
        print(groups(frame), counted(frame)())
    """
    assert output_of(tmp_path, source) == "3 3\n"


def test_native_threads_that_begin_between_two_runs(tmp_path: Path) -> None:
    """A library creates its pool when it is first used. That may be after many runs, and loads no
    new module."""
    source = HOW + THREAD + "print(way(), native_thread(b'pool-0'), way())"
    assert output_of(tmp_path, source) == "fork None another\n"
    assert output_of(tmp_path, HOW + THREAD + "native_thread(); print(way())") == "another\n"


def test_a_thread_that_is_slow_to_go(tmp_path: Path) -> None:
    """On a busy machine, the kernel lists a thread for some time after it has ended."""
    ending = """
    import ctypes
    libc, number = ctypes.CDLL(None), ctypes.c_ulong()
    assert parent()() == os.getpid()
    assert libc.pthread_create(ctypes.byref(number), None, ctypes.cast(libc.usleep, ctypes.c_void_p), ctypes.c_void_p(20_000)) == 0
    print(way())
    """
    assert output_of(tmp_path, HOW + textwrap.dedent(ending)) == "fork\n"


def test_libraries_whose_threads_survive(tmp_path: Path) -> None:
    """numpy's OpenBLAS has threads, and creates them again in a child."""
    source = HOW + "import numpy\nnumpy.ones((400, 400)) @ numpy.ones((400, 400))\nprint(way())"
    assert output_of(tmp_path, source, OPENBLAS_NUM_THREADS="2") == "fork\n"


def test_names_that_the_user_adds(tmp_path: Path) -> None:
    """ENTANGLE_FORK_UNSAFE names modules or libraries that do not survive a fork."""
    source = HOW + "print(way())\nimport colorsys\nprint(way())\ndel os.environ['ENTANGLE_FORK_UNSAFE']\nprint(way())"
    assert output_of(tmp_path, source, ENTANGLE_FORK_UNSAFE="no_such, colorsys") == "fork\nanother\nfork\n"
    assert output_of(tmp_path, HOW + "print(way())", ENTANGLE_FORK_UNSAFE="libc.so") == "another\n"


def test_a_reaper_that_has_just_ended(tmp_path: Path) -> None:
    """Our own threads, which reap workers, do not keep the next run from forking."""
    source = HOW + "print({way() for _ in range(30)})"
    assert output_of(tmp_path, source) == "{'fork'}\n"


def test_what_another_thread_forks_during_a_run_has_no_part_in_it(tmp_path: Path) -> None:
    """Such as a worker of a pool that catches all exceptions of its jobs, and is ended by
    SIGTERM."""
    source = """
    import multiprocessing, signal, time
    from entangle.process import process
    from entangle.thread import thread

    def stubborn(told):
        told.send(signal.getsignal(signal.SIGTERM))
        for _ in range(600):
            try:
                time.sleep(1)
            except BaseException:
                pass

    @thread
    def pool():
        context = multiprocessing.get_context("fork")
        told, tell = context.Pipe(duplex=False)
        child = context.Process(target=stubborn, args=(tell,), daemon=True)
        child.start()
        handler = told.recv()
        child.terminate()
        child.join(20)
        code = child.exitcode
        child.kill()
        return handler == signal.SIG_DFL, code

    @process
    def shown(pair):
        return pair

    if __name__ == "__main__":
        print(shown(pool())(start="forkserver"), signal.getsignal(signal.SIGTERM) == signal.SIG_DFL)
    """
    assert output_of(tmp_path, source) == "(True, -15) True\n"
