"""Durable runs: programs that are killed and started again."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
from collections import Counter
from pathlib import Path

import pytest

import entangle
from entangle.errors import DurableError, OptionError
from entangle.process import process
from entangle.tests.callers import ROOT

HEAD = """
import os, signal, sys, time
import entangle
from entangle import gather
from entangle.errors import *
from entangle.process import process
from entangle.thread import thread
from entangle.workflow import workflow

HERE = os.path.dirname(os.path.abspath(__file__))
os.environ.setdefault("TOP", str(os.getpid()))

def ran(what):
    with open(os.path.join(HERE, "log"), "a") as log:
        log.write(f"{what}\\n")

def kill_once(name, number=signal.SIGKILL):
    "Kill the program, the first time that this is called with that name."
    try:
        os.close(os.open(os.path.join(HERE, f"killed-{name}"), os.O_CREAT | os.O_EXCL))
    except FileExistsError:
        return
    os.kill(int(os.environ["TOP"]), number)
    time.sleep(60)
"""


class Program:
    """A program in a directory of its own, which can be started again and again."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    def write(self, text: str) -> Program:
        (self.directory / "program.py").write_text(HEAD + textwrap.dedent(text))
        return self

    def start(self, *args: str, kind: str = "") -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONPATH": ROOT}
        environment.pop("TOP", None)
        command = [sys.executable, *(["-X", "dev"] if kind else []), "program.py", *args]
        return subprocess.run(command, cwd=self.directory, env=environment, capture_output=True, text=True, timeout=60)

    def killed(self, *args: str) -> None:
        ended = self.start(*args)
        assert ended.returncode == -signal.SIGKILL, ended.stderr

    def gives(self, *args: str) -> str:
        ended = self.start(*args)
        assert ended.returncode == 0, ended.stderr
        return ended.stdout.strip()

    def ran(self) -> Counter[str]:
        """How often each body has run."""
        try:
            return Counter((self.directory / "log").read_text().split("\n")[:-1])
        except FileNotFoundError:
            return Counter()

    def forget(self) -> None:
        (self.directory / "log").unlink(missing_ok=True)


@pytest.fixture
def program(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Program:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path / "records"))
    return Program(tmp_path)


def test_what_has_ended_is_not_run_again(program: Program) -> None:
    program.write(
        """
        @process
        def square(x):
            ran(f"square {x}")
            return x * x

        @process(retry=1)
        def total(xs):
            ran("total")
            kill_once("total")
            return sum(xs)

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(total(square.map(range(40)))())
        """
    )
    program.killed()
    assert program.gives() == str(sum(x * x for x in range(40)))
    assert program.ran() == {**{f"square {x}": 1 for x in range(40)}, "total": 2}
    program.forget()
    assert program.gives() == str(sum(x * x for x in range(40)))
    assert not program.ran()


@pytest.mark.parametrize("terms", ["", "retry=1", "idempotent=True"])
def test_one_that_had_begun_is_named_or_runs_again(program: Program, terms: str) -> None:
    program.write(
        f"""
        @process({terms})
        def charge(card, amount):
            ran("charge")
            kill_once("charge")
            return amount

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(charge("x", amount=17)())
        """
    )
    program.killed()
    if terms:
        assert program.gives() == "17"
        assert program.ran() == {"charge": 2}
        return
    ended = program.start()
    assert "MayHaveRunError" in ended.stderr
    assert "charge('x', amount=17)" in ended.stderr
    assert program.ran() == {"charge": 1}


def test_what_has_failed_runs_again(program: Program) -> None:
    program.write(
        """
        @process
        def fails_once(x):
            ran("fails_once")
            if not os.path.exists(os.path.join(HERE, "mended")):
                raise ValueError("not yet")
            return x

        @process
        def before():
            ran("before")
            return 3

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(fails_once(before())())
        """
    )
    assert "not yet" in program.start().stderr
    (program.directory / "mended").touch()
    assert program.gives() == "3"
    assert program.ran() == {"fails_once": 2, "before": 1}


def test_equal_calls_are_nodes_of_their_own(program: Program) -> None:
    program.write(
        """
        @process
        def draw():
            ran("draw")
            return os.urandom(8).hex()

        @process(idempotent=True)
        def both(a, b, c):
            kill_once("both")
            return a, b, c

        if __name__ == "__main__":
            with entangle.durable("a"):
                first = draw()()
                print(first, *both(draw(), draw(), draw())())
        """
    )
    program.killed()
    values = program.gives().split()
    assert len(set(values)) == 4
    assert program.gives().split() == values
    assert program.ran() == {"draw": 4}


def test_bad_options(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("ENTANGLE_RECORD_DIR", str(tmp_path))
    for bad in ({"name": ""}, {"name": 3}, {"name": "x", "busy": "no"}, {"name": "x", "sync": True}, {"name": "x" * 300}):
        with pytest.raises(OptionError):
            entangle.durable(**bad)
    assert not list(tmp_path.iterdir())


def test_attempts_have_one_key(program: Program) -> None:
    program.write(
        """
        @process(retry=2)
        def body(x):
            told = entangle.attempt()
            ran(f"{x} {told.number} {told.key}")
            if told.number == 1:
                raise ValueError
            kill_once("body")
            return told.number

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(body(1)(), body(2)(), body(1)())
        """
    )
    program.killed()
    assert program.gives() == "3 2 2"
    told = [line.split() for line in program.ran()]
    assert sorted(number for x, number, _ in told if x == "2") == ["1", "2"]
    assert len({key for _, _, key in told}) == 3
    first = [key for _, number, key in told if number == "3"]
    assert len([1 for _, _, key in told if [key] == first]) == 3


def test_attempt_without_a_body() -> None:
    with pytest.raises(DurableError, match="none runs here"):
        entangle.attempt()


@process
def _attempt() -> tuple[int, str]:
    number, key = entangle.attempt()
    return number, key


def test_attempt_without_a_durable_run() -> None:
    number, key = _attempt()()
    assert number == 1
    assert len(key) == 32
    assert key != _attempt()()[1]


def test_in_threads(program: Program) -> None:
    program.write(
        """
        @thread
        def part(x):
            ran(f"part {x}")
            return [x]

        @thread(retry=1)
        def total(xs):
            ran("total")
            kill_once("total")
            return xs

        if __name__ == "__main__":
            with entangle.durable("a"):
                print(total(part.map(range(5)))())
        """
    )
    program.killed()
    assert program.gives() == str([[x] for x in range(5)])
    assert program.ran() == {**{f"part {x}": 1 for x in range(5)}, "total": 2}
