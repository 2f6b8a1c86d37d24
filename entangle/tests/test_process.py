"""`@process` in scripts: functions and classes of `__main__`, output, and what the terminal
shows."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from .callers import Caller, output_of
from .ways import installed

PLAIN = """
    import os
    from entangle.process import process

    class Point:
        def __init__(self, x):
            self.x = x
        def __eq__(self, other):
            return type(other) is Point and other.x == self.x
        __hash__ = None

    class Refused(Exception):
        pass

    scale = 10

    def helper(x):
        return x * scale

    @process
    def point(x):
        print("making", x)
        return Point(helper(x))

    @process
    def add(a, b):
        assert isinstance(a, Point), type(a)
        return Point(a.x + b.x)

    @process
    def refuse():
        raise Refused("not today")
"""


def test_functions_and_classes_of_a_script(tmp_path: Path, start: str) -> None:
    """The calls stand in no `if __name__ == "__main__"`, and no worker runs the script again."""
    out = output_of(
        tmp_path,
        PLAIN
        + """
    print("once")
    result = add(point(1), add(point(2), Point(3)))()
    print(type(result) is Point, result.x, result == Point(33))
    try:
        refuse()()
    except Refused as error:
        print("refused:", error)
""",
        ENTANGLE_START=start,
    )
    lines = out.splitlines()
    assert sorted(lines) == sorted(["once", "making 1", "making 2", "True 33 True", "refused: not today"])
    assert lines[0] == "once"


def test_a_script_from_stdin_and_from_the_command_line(tmp_path: Path, start: str) -> None:
    import subprocess

    from .callers import ROOT

    code = (
        "from entangle.process import process\n"
        "class P:\n    def __init__(self, x): self.x = x\n"
        "@process\ndef double(p): return P(2 * p.x)\n"
        "print(double(double(P(3)))().x)\n"
    )
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(tmp_path), "ENTANGLE_START": start}
    for command, given in (([sys.executable, "-c", code], None), ([sys.executable, "-"], code)):
        done = subprocess.run(command, input=given, env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=50)
        assert (done.returncode, done.stdout, done.stderr) == (0, "12\n", "")


def test_a_module_run_with_m(tmp_path: Path, start: str) -> None:
    import subprocess

    from .callers import ROOT

    package = tmp_path / "mypackage"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "other.py").write_text("from entangle.process import process\n@process\ndef double(x):\n    return 2 * x\n")
    (package / "__main__.py").write_text(
        "from entangle.process import process\nfrom .other import double\n"
        "@process\ndef inc(x):\n    return x + 1\nprint(inc(double(inc(1)))())\n"
    )
    environment = {**os.environ, "PYTHONPATH": ROOT, "ENTANGLE_RUN_DIR": str(tmp_path), "ENTANGLE_START": start}
    done = subprocess.run([sys.executable, "-m", "mypackage"], env=environment, capture_output=True, text=True, cwd=tmp_path, timeout=50)
    assert (done.returncode, done.stdout, done.stderr) == (0, "5\n", "")


def test_what_bodies_print_is_seen(tmp_path: Path, start: str) -> None:
    caller = Caller(
        tmp_path,
        """
        import os, subprocess, sys
        from entangle.process import process

        @process
        def say(n):
            print("printed", n)
            print("complained", n, file=sys.stderr)
            sys.stdout.write("no newline")
            os.write(1, b"written\\n")
            subprocess.run(["echo", "echoed"])
            return n

        print("before")
        assert say(say(1))() == 1
        print("after")
        """,
        ENTANGLE_START=start,
    ).start()
    status, out, err = caller.finish()
    assert status == 0
    assert out.startswith("before\n")
    assert out.endswith("after\n")
    for word in ("printed 1", "no newline", "written", "echoed"):
        assert out.count(word) == 2, out
    assert err.count("complained 1") == 2, err


def test_output_of_the_caller_is_not_printed_twice(tmp_path: Path, start: str) -> None:
    """Only the caller prints what its buffer holds at a fork."""
    source = """
    import sys
    from entangle.process import process
    sys.stdout.write("half a line ")

    @process
    def one():
        return 1

    assert one()() == 1
    print("and the rest")
    """
    status, out, err = Caller(tmp_path, source, ENTANGLE_START=start).start().finish()
    assert (status, out, err) == (0, "half a line and the rest\n", "")


def test_exit_functions_are_the_callers(tmp_path: Path, start: str) -> None:
    source = """
    import atexit, os
    from entangle.process import process
    me = os.getpid()
    atexit.register(lambda: print("at exit of", "the caller" if os.getpid() == me else "a worker"))

    @process
    def one():
        return 1

    assert one()() == 1
    """
    assert output_of(tmp_path, source, ENTANGLE_START=start) == "at exit of the caller\n"


def test_an_uncaught_error_is_readable(tmp_path: Path) -> None:
    """What the terminal shows: the error, its place in the body, and the path of calls to it."""
    source = """
    from entangle.process import process

    @process
    def divide(a, b):
        return a / b

    @process
    def add(a, b):
        return a + b

    add(1, divide(1, 0))()
    """
    status, out, err = Caller(tmp_path, source).start().finish()
    assert (status, out) == (1, "")
    assert "ZeroDivisionError: division by zero" in err
    assert "return a / b" in err
    if sys.version_info >= (3, 11):
        assert "add(1, divide(…)) → divide" in err


def test_a_large_interpreter_state_is_no_burden(tmp_path: Path, start: str) -> None:
    """The caller's garbage collection, recursion limit and warning filters stay as they are."""
    source = """
    import gc, sys, warnings
    gc.set_threshold(123, 4, 5)
    sys.setrecursionlimit(4321)
    from entangle.process import process

    @process
    def one():
        return 1

    assert one()() == 1
    print(gc.get_threshold(), sys.getrecursionlimit(), gc.isenabled(), gc.get_freeze_count() if False else "")
    """
    assert output_of(tmp_path, source, ENTANGLE_START=start).startswith("(123, 4, 5) 4321 True")


def test_stdin_of_a_body_is_empty(tmp_path: Path, start: str) -> None:
    """Workers do not read the caller's input."""
    import subprocess

    source = """
    import sys
    from entangle.process import process

    @process
    def read():
        return sys.stdin.read()

    print(repr(read()()), repr(sys.stdin.read()))
    """
    caller = Caller(tmp_path, source, ENTANGLE_START=start).start(stdin=subprocess.PIPE)
    out, err = caller.process.communicate("typed", timeout=50)
    assert (caller.process.returncode, out) == (0, "'' 'typed'\n"), err


@pytest.mark.parametrize("library", ["libgomp", "numba"])
def test_an_openmp_runtime_makes_auto_careful(tmp_path: Path, library: str) -> None:
    """A forked child that enters a parallel region would hang, so `auto` does not fork."""
    if library == "numba":
        installed("numba")
        load = "import numba"
        body = (
            "import numba, numpy\n"
            "        @numba.njit(parallel=True)\n"
            "        def f(n):\n"
            "            s = 0\n"
            "            for i in numba.prange(n):\n"
            "                s += i\n"
            "            return s\n"
            "        return f(1000)"
        )
        expected = 499500
    else:
        load = "import ctypes, ctypes.util; ctypes.CDLL('libgomp.so.1')"
        body = "return os.getppid() != me"
        expected = 1
        # Loaded in another process: this one must be able to fork in other tests.
        if subprocess.run([sys.executable, "-c", load], capture_output=True, timeout=50).returncode:
            pytest.skip("no libgomp here")
    source = f"""
    import os
    {load}
    from entangle.process import process
    me = os.getpid()

    @process
    def work():
        {body}

    print(int(work()()))
    """
    assert output_of(tmp_path, source) == f"{expected}\n"
