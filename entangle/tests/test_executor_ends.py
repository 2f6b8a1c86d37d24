"""Programs with executors: how they end, and that they leave nothing behind."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from .evidence import alive

_HEAD = "from entangle.executor import Executor\nimport os, sys, time, atexit, signal\n"
_WAIT = """
def begun(*paths):
    while not all(map(os.path.exists, paths)):
        time.sleep(0.005)
def mark(path, seconds=60):
    with open(path + ".", "w") as file:
        file.write(str(os.getpid()))
    os.rename(path + ".", path)
    time.sleep(seconds)
"""


def _start(body: str, **more: Any) -> subprocess.Popen[str]:
    text = _HEAD + _WAIT + body
    return subprocess.Popen(
        [sys.executable, "-W", "error::ResourceWarning", "-c", text], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **more
    )


def _run(body: str) -> tuple[int, str, str]:
    with _start(body) as started:
        out, err = started.communicate(timeout=40)
        return started.returncode, out, err


def _wait_until(condition: Callable[[], Any]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)


_LATE = "def late(text):\n    time.sleep(0.2)\n    print(text, flush=True)\n"


@pytest.mark.parametrize("end", ["", "executor.shutdown(wait=False)", "del executor"])
def test_a_program_waits_for_its_calls(end: str) -> None:
    code, out, err = _run(f"{_LATE}executor = Executor(2)\nfor text in 'abc': executor.submit(late, text)\n{end}\n")
    assert (code, sorted(out.split()), err) == (0, ["a", "b", "c"], "")


def test_workers_retire_while_the_program_waits_for_its_calls() -> None:
    body = """
kept = []
def leak():
    time.sleep(0.006)
    kept.extend(os.dup(0) for _ in range(8))
    return os.getpid()
executor = Executor(1)
for _ in range(40):
    executor.submit(leak).add_done_callback(lambda future: print(future.result()))
"""
    code, out, err = _run(body)
    assert (code, err, len(out.split())) == (0, "", 40)
    assert len(set(out.split())) > 1
    assert not any(alive(int(pid)) for pid in set(out.split()))


def test_the_last_calls_may_be_cancelled() -> None:
    body = f"{_LATE}executor = Executor(1)\nexecutor.submit(late, 'a')\nexecutor.submit(late, 'b')\n"
    code, out, err = _run(body + "executor.shutdown(wait=False, cancel_futures=True)\n")
    assert (code, err) == (0, "")
    assert out.split() in ([], ["a"])


def test_submitting_when_the_interpreter_ends() -> None:
    body = """
@atexit.register
def last():
    try:
        executor.submit(id, None)
    except RuntimeError as error:
        print(error)
executor = Executor(2)
print(executor.submit(abs, -4).result())
"""
    code, out, err = _run(body)
    assert (code, out.splitlines(), err) == (0, ["4", "cannot schedule new futures after interpreter shutdown"], "")


def test_an_error_that_ends_the_program(tmp_path: Path) -> None:
    code, out, err = _run(f"{_LATE}executor = Executor(2)\nexecutor.submit(late, 'a')\nraise ValueError('the end')\n")
    assert (code, out.split()) == (1, ["a"])
    assert err.count("Traceback") == 1
    assert "the end" in err


def test_a_script_without_a_guard_runs_its_functions(tmp_path: Path) -> None:
    """Workers do not run the script."""
    script = tmp_path / "script.py"
    script.write_text(
        _HEAD + "factor = 3\ndef times(x): return factor * x\nclass Pair:\n    def __init__(self, a): self.a = a\n"
        "def pair(a): return Pair(a)\nprint('once')\nwith Executor(2) as executor:\n    print(list(executor.map(times, range(3))))\n"
        "    factor = 4\n    print(executor.submit(times, 2).result(), type(executor.submit(pair, 1).result()) is Pair)\n"
    )
    found = subprocess.run([sys.executable, str(script)], capture_output=True, text=True, timeout=40, check=False)
    assert (found.stdout.splitlines(), found.stderr) == (["once", "[0, 3, 6]", "8 True"], "")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_no_worker_outlives_the_program(tmp_path: Path, number: int) -> None:
    paths = [str(tmp_path / name) for name in "ab"]
    body = f"paths = {paths!r}\nwith Executor(2) as executor:\n    for path in paths: executor.submit(mark, path)\n    begun(*paths)\n"
    with _start(body + "    print('begun', flush=True)\n    time.sleep(60)\n") as started:
        assert started.stdout is not None
        assert started.stdout.readline() == "begun\n"
        pids = [int(Path(path).read_text()) for path in paths]
        assert all(map(alive, pids))
        os.kill(started.pid, number)
        started.wait(20)
        _wait_until(lambda: not any(map(alive, pids)))
        started.communicate()


def test_ctrl_c_while_the_program_waits_for_its_calls(tmp_path: Path) -> None:
    path = str(tmp_path / "a")
    with _start(f"executor = Executor(1)\nexecutor.submit(mark, {path!r})\nbegun({path!r})\n") as started:
        _wait_until(lambda: os.path.exists(path))
        time.sleep(0.3)
        os.kill(started.pid, signal.SIGINT)
        started.wait(20)
        _wait_until(lambda: not alive(int(Path(path).read_text())))
        started.communicate()


@pytest.mark.parametrize(
    ("ended", "body"),
    [
        ("KeyboardInterrupt", "executor = Executor(1)\nexecutor.submit(mark, path).result()\n"),
        ("KeyboardInterrupt", "with Executor(1) as executor:\n    executor.submit(mark, path)\n"),
        (
            "KeyboardInterrupt",
            "import asyncio\nasync def main():\n    with Executor(1) as executor:\n"
            "        await asyncio.get_running_loop().run_in_executor(executor, mark, path)\nasyncio.run(main())\n",
        ),
        (
            "caught",
            "executor = Executor(1)\nfuture = executor.submit(mark, path, 1)\ntry: future.result()\n"
            "except KeyboardInterrupt: future.add_done_callback(lambda future: print('caught', future.result(), flush=True))\n",
        ),
    ],
    ids=["a result", "a with block", "asyncio", "caught"],
)
def test_ctrl_c_ends_calls_with_the_program(tmp_path: Path, ended: str, body: str) -> None:
    path = str(tmp_path / "a")
    with _start(f"path = {path!r}\n{body}") as started:
        _wait_until(lambda: os.path.exists(path))
        time.sleep(0.2)  # so that the program waits by then
        os.kill(started.pid, signal.SIGINT)
        try:
            out, err = started.communicate(timeout=20)
        finally:
            started.kill()
    assert ended == ("caught" if out == "caught None\n" else err.rstrip().rpartition("\n")[2])
    _wait_until(lambda: not alive(int(Path(path).read_text())))


def test_a_program_that_closes_all_descriptors(tmp_path: Path) -> None:
    """Its executor is broken, and says why; the next executor works. Files that the program then
    opens under the same descriptor numbers are not touched."""
    code, out, err = _run(f"""
executor = Executor(2)
waiting = executor.submit(time.sleep, 60)
executor.submit(abs, 1).result()
os.closerange(3, 10_000)
mine = [os.open({str(tmp_path / "mine")!r}, os.O_RDWR | os.O_CREAT) for _ in range(60)]
for call in (lambda: waiting.result(20), lambda: executor.submit(abs, 1)):
    try:
        call()
    except Exception as error:
        print(type(error).__name__, str(error)[:51])
executor.shutdown()
with Executor(1) as other:
    print(other.submit(abs, -3).result(20))
print(len([os.fstat(fd) for fd in mine]), os.path.getsize(mine[0]), flush=True)
""")
    told = "BrokenExecutorError this process has closed descriptors of the executor\n"
    assert (code, out, err) == (0, 2 * told + "3\n60 0\n", "")


def test_nothing_stays_in_shared_memory(tmp_path: Path) -> None:
    body = """
import numpy
from entangle._shared.home import home
with Executor(2) as executor:
    for value in executor.map(lambda x: x + 1, (numpy.ones(1 << 20) for _ in range(10))):
        assert value[7] == 2
    assert executor._calls.files is not None
    where = executor._calls.files.directory
assert not os.path.exists(where), os.listdir(where)
print(len(os.listdir(home().path)) > 0)
"""
    pytest.importorskip("numpy")
    assert _run(body)[::2] == (0, "")
