"""Calls over a stream to an agent, in any place: what is transferred, what is shared, and what
happens when a process dies."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import importlib
import os
import signal
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from entangle._remote.caller.open_channels import close_all
from entangle._remote.transport.interpreter import InterpreterTransport
from entangle.errors import (
    LinkLostError,
    MissingModuleError,
    ProcessRetryException,
    ProtocolError,
    RunCancelledError,
    UnpicklableError,
    UnreachableError,
)
from entangle.interpreter import interpreter
from entangle.process import ProcessTerminatedException, process
from entangle.task import task
from entangle.thread import ThreadTimeoutException, thread

from . import bodies
from .evidence import alive, note, notes, pids_in, wait_until
from .places import far_pythons
from .ways import installed, needed


@pytest.fixture(params=["this version", "another version"])
def python(request: pytest.FixtureRequest) -> str:
    """The path of a Python in which nothing is installed."""
    return far_pythons(same=request.param == "this version")


@task
def together(*values: Any) -> tuple[Any, ...]:
    return values


# --- one agent for all ----------------------------------------------------------------------------


def test_an_agent_is_shared_and_stays_warm() -> None:
    pid = interpreter(bodies.pid)
    again = interpreter(lambda: os.getpid())
    first = pid()()
    assert pid()() == again()() == first
    assert set(together(*(pid() for _ in range(20)))()) == {first}
    found: list[int] = []
    threads = [threading.Thread(target=lambda: found.append(pid()())) for _ in range(8)]
    for each in threads:
        each.start()
    for each in threads:
        each.join()
    assert set(found) == {first}


def test_threads_that_come_first_together_start_one_agent() -> None:
    pid = interpreter(bodies.pid)
    assert len(set(together(*(pid() for _ in range(30)))())) == 1


def test_many_calls_are_in_flight_at_a_time(tmp_path: Path) -> None:
    """Each body waits until all others have begun."""
    meet = interpreter(bodies.meet)
    pids = together(*(meet(str(tmp_path / "log"), 100) for _ in range(100)))()
    assert len(set(pids)) == 1


def test_large_values_both_ways_while_others_wait() -> None:
    same = interpreter(bodies.same)
    blocks = [os.urandom(5_000_000) for _ in range(6)]
    assert together(*(same(block) for block in blocks))() == tuple(blocks)


def test_arrays_are_not_pickled_and_can_be_written_to() -> None:
    numpy = needed("numpy")
    double = interpreter(lambda array: array * 2)
    array = numpy.arange(1_000_000, dtype="float64")
    result = double(array)()
    assert (result == array * 2).all()
    result[0] = 5
    views = interpreter(bodies.same)([array[::2], array[:0], array.reshape(1000, 1000).T])()
    assert (views[0] == array[::2]).all()
    assert views[1].size == 0
    assert (views[2] == array.reshape(1000, 1000).T).all()


def test_a_worker_process_has_an_agent_of_its_own() -> None:
    pid = interpreter(bodies.pid)

    @process
    def from_a_worker() -> int:
        value: int = pid()()
        return value

    here = pid()()
    assert from_a_worker()() != here
    assert pid()() == here


def test_the_process_may_fork_while_an_agent_is_warm() -> None:
    interpreter(bodies.pid)()()
    wait_until(lambda: threading.active_count() == 1)
    assert process(bodies.num)(5)(start="fork") == 5
    assert interpreter(bodies.num)(6)() == 6


# --- output ---------------------------------------------------------------------------------------


def test_what_is_printed_comes_with_place_and_call_path(python: str, capfd: pytest.CaptureFixture[str]) -> None:
    @interpreter(python=python)
    def chatty(x: int) -> int:
        print("one")
        print("two", "halves", end="")
        print("not well", file=sys.stderr)
        sys.stdout.buffer.write(b"raw\n")
        return x

    @task
    def last(x: int) -> int:
        return x

    assert last(chatty(3))() == 3
    out, err = capfd.readouterr()
    where = f"[{python} last → chatty] "
    assert out == f"{where}one\n{where}two halvesraw\n"
    assert err == f"{where}not well\n"


def shown(text: str) -> list[str]:
    """The lines without their prefix, which names the place."""
    return [line.partition("] ")[2] for line in text.split("\n")[:-1]]


def test_words_of_a_bodys_thread_are_not_lost(python: str, capfd: pytest.CaptureFixture[str]) -> None:
    @interpreter(python=python)
    def threaded() -> None:
        one = threading.Thread(target=lambda: print("lost words", end=""))
        one.start()
        one.join()
        print("own words", end="")

    threaded()()
    assert sorted(shown(capfd.readouterr().out)) == ["lost words", "own words"]


def test_words_of_a_thread_come_with_the_call_that_it_belongs_to(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The incomplete line of another call, which continues meanwhile, stays in one piece."""

    @interpreter
    def ends() -> None:
        bodies.meet(str(tmp_path / "began"), 2)
        one = threading.Thread(target=lambda: print("of a thread", end=""))
        one.start()
        one.join()

    @interpreter
    def goes_on() -> None:
        print("first half", end="")
        bodies.meet(str(tmp_path / "began"), 2)
        wait_until((tmp_path / "over").exists)
        print(", second half")

    caller = threading.Thread(target=lambda: goes_on()())
    caller.start()
    ends()()
    assert "of a thread" in capfd.readouterr().out
    (tmp_path / "over").touch()
    caller.join()
    assert shown(capfd.readouterr().out) == ["first half, second half"]


def test_words_that_were_flushed_come_even_if_the_agent_dies(capfd: pytest.CaptureFixture[str]) -> None:
    @interpreter
    def dies() -> None:
        print("dots", end="", flush=True)
        print("...", end="", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)

    with pytest.raises(LinkLostError):
        dies()()
    assert shown(capfd.readouterr().out) == ["dots..."]


def test_what_is_printed_to_is_a_file(python: str, capfd: pytest.CaptureFixture[str]) -> None:
    @interpreter(python=python)
    def gives_away() -> tuple[int, int, str]:
        import faulthandler

        faulthandler.enable()
        faulthandler.disable()
        sys.stdout.reconfigure(encoding="utf-8", errors="replace", line_buffering=True)  # type: ignore[union-attr]
        subprocess.run(["echo", "given stdout"], check=True, stdout=sys.stdout)
        subprocess.run(["sh", "-c", "echo given stderr >&2"], check=True, stderr=sys.stderr)
        print("own \udcff")
        return sys.stdout.fileno(), sys.stderr.fileno(), sys.stdout.errors or ""

    assert gives_away()() == (1, 2, "replace")
    told = capfd.readouterr()
    assert sorted(shown(told.out)) == ["given stdout", "own ?"]
    assert "given stderr" in shown(told.err)

    @interpreter(python=python)
    def wrongly() -> None:
        sys.stdout.reconfigure(encoding="no-such-code")  # type: ignore[union-attr]

    with pytest.raises(LookupError, match="no-such-code"):
        wrongly()()


def test_characters_come_whole_however_they_were_written(python: str, capfd: pytest.CaptureFixture[str]) -> None:
    line = "é€😀" * 3333
    text = f"{line}\n" * 20  # more than one read returns, on either side
    long = "€" * 100_000

    @interpreter(python=python)
    def in_pieces(text: str) -> None:
        for data in (b"\xc3", b"\xa9", b"\n"):
            sys.stdout.buffer.write(data)
        sys.stdout.buffer.write(memoryview(b"view\n"))
        os.write(1, b"\xe2\x82")
        time.sleep(0.1)
        os.write(1, b"\xac\n")
        subprocess.run(["cat"], input=text.encode(), check=True)
        sys.stdout.write(text)

    in_pieces(text)()
    assert sorted(shown(capfd.readouterr().out)) == sorted(["view", "é", "€"] + [line] * 40)
    interpreter(python=python)(lambda text: subprocess.run(["cat"], input=text.encode(), check=True).returncode)(long)()
    assert "".join(shown(capfd.readouterr().out)) == long  # in pieces, since nothing tells that the line will end


def test_signs_that_only_python_takes_for_the_end_of_a_line(python: str, capfd: pytest.CaptureFixture[str]) -> None:
    @interpreter(python=python)
    def strange() -> None:
        print("a\x0bb\x0cc\x85d\u2028e")
        print()
        print("10 %\r20 %\r\nend")

    strange()()
    assert shown(capfd.readouterr().out) == ["a\x0bb\x0cc\x85d\u2028e", "", "10 %", "20 %", "end"]


def test_a_child_that_a_body_forks_may_print_to_what_it_has(capfd: pytest.CaptureFixture[str]) -> None:
    @interpreter
    def forks() -> int:
        import warnings

        mine = sys.stdout
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            pid = os.fork()
        if pid == 0:
            mine.write("from a child\n")
            os._exit(7)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    assert forks()() == 7
    assert shown(capfd.readouterr().out) == ["from a child"]


def test_programs_that_a_body_starts_may_print_too(capfd: pytest.CaptureFixture[str]) -> None:
    @interpreter
    def starts() -> int:
        subprocess.run(["sh", "-c", "echo from the shell; echo complaint >&2"], check=True)
        os.write(1, b"by descriptor\n")
        return 1

    @interpreter
    @process
    def worker() -> int:
        print("from a worker")
        return 2

    assert starts()() == 1
    assert worker()() == 2
    out, err = capfd.readouterr()
    assert [line.partition("] ")[2] for line in out.splitlines()] == ["from the shell", "by descriptor", "from a worker"]
    assert "] complaint" in err


# --- code -----------------------------------------------------------------------------------------


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A package of the user, beside the script."""
    package = tmp_path / "ourproject"
    package.mkdir()
    (package / "__init__.py").write_text("from .shapes import Square\n")
    (package / "shapes.py").write_text(
        textwrap.dedent(
            """
            class Square:
                def __init__(self, side): self.side = side
                def area(self):
                    from ourproject.deep import power
                    return power(self.side)
            class Broken(Exception): pass
            def fail(): raise Broken("in the module")
            """
        )
    )
    (package / "deep.py").write_text("def power(x): return x ** 2\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    yield tmp_path
    for name in [name for name in sys.modules if name.partition(".")[0] == "ourproject"]:
        del sys.modules[name]


def test_modules_of_the_project_travel(python: str, project: Path) -> None:
    import ourproject  # type: ignore[import-not-found]

    @interpreter(python=python)
    def here(square: Any) -> Any:
        import ourproject

        return ourproject.Square(square.area()), __import__("ourproject.deep").deep.power(3)

    @interpreter(python=python)
    @process
    def in_a_process(square: Any) -> Any:
        from ourproject.shapes import Square  # type: ignore[import-not-found]

        return Square(square.area() + 1)

    square, nine = here(ourproject.Square(2))()
    assert (square.side, nine) == (4, 9)
    assert isinstance(square, ourproject.Square)
    assert in_a_process(ourproject.Square(3))().side == 10

    @interpreter(python=python)
    def fails() -> None:
        __import__("ourproject.shapes").shapes.fail()

    with pytest.raises(ourproject.shapes.Broken, match="in the module") as caught:
        fails()()
    assert 'raise Broken("in the module")' in str(caught.value.__cause__)


def test_a_module_with_compiled_parts_is_named(python: str) -> None:
    installed("numpy")

    def uses() -> Any:
        import numpy

        return numpy.zeros(3)

    for far in (interpreter(python=python)(uses), interpreter(python=python)(process(uses))):
        with pytest.raises(MissingModuleError, match=r"'numpy'.*compiled.*pip install 'numpy==") as caught:
            far()()
        assert isinstance(caught.value, ModuleNotFoundError)


def test_files_of_a_module_that_came_over_the_stream(python: str, project: Path) -> None:
    """They are not sent. Whichever way a program looks for them, it gets one clear error."""
    data = project / "ourproject" / "deep"
    data.mkdir()
    (data / "shape.txt").write_text("round")
    importlib.import_module("ourproject")

    def by_pkgutil() -> Any:
        import pkgutil

        return pkgutil.get_data("ourproject", "deep/shape.txt")

    def by_resources() -> str:
        from importlib import resources

        there = resources.files("ourproject") / "deep"
        return (there / "shape.txt").read_text()

    def as_a_file() -> str:
        from importlib import resources

        with resources.as_file(resources.files("ourproject").joinpath("deep").joinpath("shape.txt")) as path:
            return path.read_text()

    def the_old_way() -> str:
        from importlib import resources

        return resources.read_text("ourproject", "shape.txt")

    def with_a_name_alone() -> str:
        from importlib import resources

        import ourproject

        return f"{resources.files(ourproject).name}"

    told = r"'ourproject' was sent without the other files.*'ourproject' looked for '.*shape\.txt'"
    for body in (by_pkgutil, by_resources, as_a_file, the_old_way, process(by_resources)):
        with pytest.raises(MissingModuleError, match=told):
            interpreter(python=python)(body)()()
    assert interpreter(python=python)(with_a_name_alone)()() == "ourproject"

    def by_name() -> str:
        import ourproject

        # As on another machine.
        os.rename(os.path.dirname(ourproject.__file__), os.path.dirname(ourproject.__file__) + "-gone")
        return open(os.path.join(os.path.dirname(ourproject.__file__), "deep", "shape.txt")).read()

    with pytest.raises(FileNotFoundError) as caught:
        interpreter(python=python)(by_name)()()
    (project / "ourproject-gone").rename(project / "ourproject")
    assert "'ourproject' was sent without the other files" in " ".join(getattr(caught.value, "__notes__", []))


def test_files_and_metadata_of_what_pip_has_installed(python: str) -> None:
    installed("requests")
    installed("certifi")

    def files() -> str:
        import certifi

        return certifi.where()

    def metadata() -> str:
        from importlib.metadata import version

        return version("certifi")

    for body in (files, metadata, process(files), process(metadata)):
        with pytest.raises(MissingModuleError, match=r"'certifi' is not installed there.*pip install 'certifi=="):
            interpreter(python=python)(body)()()

    def by_another() -> str:
        import requests

        return requests.__version__

    with pytest.raises(MissingModuleError, match=r"'requests' is not.*pip install 'requests==.*'certifi' looked for 'cacert.pem'"):
        interpreter(python=python)(by_another)()()

    def of_nobody() -> str:
        from importlib.metadata import version

        return version("no-such-distribution-anywhere")

    with pytest.raises(ModuleNotFoundError, match="no-such-distribution-anywhere"):
        interpreter(python=python)(of_nobody)()()


def test_a_module_that_nobody_has(python: str) -> None:
    @interpreter(python=python)
    def uses() -> str:
        try:
            import no_such_module_anywhere  # type: ignore[import-not-found]
        except ImportError as error:
            return str(error)
        return str(no_such_module_anywhere)

    assert uses()() == "No module named 'no_such_module_anywhere'"


def test_functions_with_all_that_they_use(python: str) -> None:
    factor = 3

    class Local:
        def __init__(self, n: int) -> None:
            self.n = n

    def helper(n: int) -> int:
        return 1 if n < 1 else n * helper(n - 1)

    double = task(lambda x: x * 2)

    @interpreter(python=python)
    def all_of_it(x: int, f: Any, *rest: int, k: int = factor, **more: int) -> Any:
        return Local(helper(x)).n, double(x)(), f(x), rest, k, more, textwrap.dedent("  y"), bodies.inc(1)

    assert all_of_it(4, lambda x: x + factor, 5, z=6)() == (24, 8, 7, (5,), 3, {"z": 6}, "y", 2)


def test_an_argument_that_cannot_travel_is_named(python: str) -> None:
    far: Any = interpreter(python=python)(bodies.describe)
    with pytest.raises(UnpicklableError, match=r"argument 2.*describe.*lock"):
        far(1, {"deep": [threading.Lock()]})()
    with pytest.raises(UnpicklableError, match=r"argument 'k'.*describe"):
        far(1, k=threading.Lock())()


def test_what_only_the_same_version_can_take_is_named() -> None:
    local = type("Local", (), {})

    @interpreter(python=far_pythons(same=False))
    def gives() -> Any:
        class Theirs:
            pass

        return Theirs()

    with pytest.raises(UnpicklableError, match=r"argument 1 of task 'same'.*another version"):
        interpreter(python=far_pythons(same=False))(bodies.same)(local())()
    with pytest.raises(UnpicklableError, match=r"the value of task 'gives'.*Python 3\.\d+ to 3\.\d+"):
        gives()()


def test_a_value_that_cannot_travel_is_named(python: str) -> None:
    @interpreter(python=python)
    def gives() -> Any:
        return {"a": [threading.Lock()]}

    with pytest.raises(UnpicklableError, match=r"gives.*lock"):
        gives()()


def test_the_working_directory_there_is_no_place_of_modules(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "json.py").write_text("raise SystemExit('the wrong module')\n")
    monkeypatch.chdir(tmp_path)
    pid = interpreter(bodies.pid)()()
    assert pid != os.getpid()


# --- processes that die ---------------------------------------------------------------------------


def test_an_agent_that_dies_in_the_middle(python: str) -> None:
    @interpreter(python=python)
    def kills(log: str) -> None:
        note(log, os.getpid())
        os.kill(os.getpid(), signal.SIGKILL)

    pid = interpreter(python=python)(bodies.pid)
    before = pid()()
    with pytest.raises(LinkLostError, match=r"signal 9"):
        kills(os.devnull)()
    assert pid()() not in (before, os.getpid())  # the next call has a new agent


def test_an_agent_that_died_while_nobody_looked() -> None:
    pid = interpreter(bodies.pid)
    first = pid()()
    os.kill(first, signal.SIGKILL)
    # The pipe is open until the last thread has exited.
    wait_until(lambda: not alive(first) and len(os.listdir(f"/proc/{first}/task")) == 1)
    assert pid()() != first


@pytest.mark.parametrize("where", ["above", "below"])
def test_retry_recovers_from_a_lost_line(tmp_path: Path, where: str) -> None:
    log = str(tmp_path / "log")

    def dies_once(log: str) -> int:
        note(log, os.getpid())
        if len(notes(log)) < 2:
            os.kill(os.getpid(), signal.SIGKILL)
        return len(notes(log))

    def agent_dies_once(log: str, agent: int) -> int:
        note(log, os.getpid())
        if len(notes(log)) < 2:
            os.kill(agent, signal.SIGKILL)
            threading.Event().wait(60)
        return len(notes(log))

    if where == "above":
        assert thread(retry=2)(interpreter(dies_once))(log)() == 2
    else:
        agent = interpreter(bodies.pid)()()
        assert interpreter(process(retry=2)(agent_dies_once))(log, agent)() == 2


def test_retry_that_is_used_up_names_the_loss() -> None:
    @interpreter
    @process(retry=1)
    def kills_its_agent() -> None:
        import psutil

        found: Any = psutil.Process()
        while b"entangle-agent" not in " ".join(found.cmdline()).encode():
            found = found.parent()
        found.kill()
        threading.Event().wait(60)

    with pytest.raises(ProcessRetryException, match=r"2 times.*LinkLostError") as caught:
        kills_its_agent()()
    assert isinstance(caught.value.__cause__, LinkLostError)


def test_a_worker_there_that_dies_is_named_and_the_agent_lives() -> None:
    @interpreter
    @process
    def dies() -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    pid = interpreter(bodies.pid)
    before = pid()()
    with pytest.raises(ProcessTerminatedException, match="SIGKILL"):
        dies()()
    assert pid()() == before


def test_an_agent_that_says_nothing_any_more(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As if the connection were cut silently."""
    monkeypatch.setenv("ENTANGLE_SILENCE", "0.4")
    log = str(tmp_path / "log")

    @interpreter
    def freezes(log: str) -> None:
        note(log, os.getpid())
        os.kill(os.getpid(), signal.SIGSTOP)
        threading.Event().wait(60)  # the thread that stops its process may run for a moment longer

    with pytest.raises(LinkLostError, match=r"silent for 0\.4 s"):
        freezes(log)()
    wait_until(lambda: not alive(pids_in(log)[0]), 10.0)  # closing the channel kills it


def test_a_body_that_takes_long_is_not_taken_for_dead(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ENTANGLE_SILENCE", "0.2")

    @interpreter
    def sleeps() -> int:
        import time

        time.sleep(1.2)
        return 1

    assert sleeps()() == 1


def test_a_cancelled_call_ends_there(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @interpreter
    @process
    def lingers(log: str) -> None:
        note(log, os.getpid())
        threading.Event().wait(60)

    pid = interpreter(bodies.pid)
    agent = pid()()
    future = lingers(log)(proc=True)
    wait_until(lambda: bool(notes(log)))
    future.cancel()
    with pytest.raises(RunCancelledError):
        future.result(10)
    wait_until(lambda: not alive(pids_in(log)[0]), 5.0)
    assert pid()() == agent


def test_a_deadline_above_ends_the_process_there(tmp_path: Path) -> None:
    log = str(tmp_path / "log")

    @thread(timeout=1.0)
    @interpreter
    @process
    def lingers(log: str) -> None:
        note(log, os.getpid())
        threading.Event().wait(60)

    interpreter(process(bodies.one))()()  # else starting takes the whole second
    with pytest.raises(ThreadTimeoutException):
        lingers(log)()
    wait_until(lambda: not alive(pids_in(log)[0]), 5.0)


def test_a_caller_that_is_killed_leaves_nothing_there(tmp_path: Path) -> None:
    log = str(tmp_path / "log")
    script = tmp_path / "caller.py"
    script.write_text(
        textwrap.dedent(
            f"""
            import os, subprocess, sys, threading
            from entangle.interpreter import interpreter
            from entangle.process import process
            from entangle.task import task

            def note(pid):
                with open({log!r}, "a") as file:
                    file.write(f"{{pid}}\\n")

            @interpreter
            @process
            def worker():
                note(os.getpid())
                note(subprocess.Popen(["sleep", "60"]).pid)
                threading.Event().wait(60)

            @interpreter
            def agent():
                note(os.getpid())
                note(subprocess.Popen(["setsid", "sleep", "60"]).pid)
                threading.Event().wait(60)

            @task
            def both(*_): pass

            both(worker(), agent())()
            """
        )
    )
    caller = subprocess.Popen([sys.executable, str(script)])
    try:
        wait_until(lambda: os.path.exists(log) and len(Path(log).read_text().split()) == 4, 20.0)
    finally:
        caller.kill()
        caller.wait()
    pids = [int(pid) for pid in Path(log).read_text().split()]
    wait_until(lambda: not any(alive(pid) for pid in pids), 5.0)


# --- programs that are not agents -----------------------------------------------------------------


def _program(folder: Path, text: str) -> str:
    path = folder / "python"
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def test_a_banner_before_the_first_word_is_no_harm(tmp_path: Path) -> None:
    program = _program(tmp_path, f'echo "Welcome to this host"; echo "entangle-agent is nice"; exec {sys.executable} "$@"')
    assert interpreter(python=program)(bodies.num)(4)() == 4


def test_a_program_that_says_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(InterpreterTransport, "timeout", 0.5)
    program = _program(tmp_path, "exec sleep 60")
    with pytest.raises(UnreachableError, match="no answer"):
        interpreter(python=program)(bodies.one)()()


def test_a_program_that_talks_without_end(tmp_path: Path) -> None:
    program = _program(tmp_path, "exec yes nonsense")
    with pytest.raises(UnreachableError):
        interpreter(python=program)(bodies.one)()()


def test_something_else_that_prints_into_the_stream(tmp_path: Path) -> None:
    program = _program(tmp_path, 'printf "\\nentangle-agent 1 3.12.0\\nhello, this is no frame at all"; exec cat >/dev/null')
    with pytest.raises((ProtocolError, UnreachableError), match="no frame"):
        interpreter(python=program)(bodies.one)()()


def test_a_first_word_with_a_version_that_is_none(tmp_path: Path) -> None:
    digits = "9" * 6000
    program = _program(tmp_path, f'printf "\\nentangle-agent 1 {digits}.12.0\\n"')
    with pytest.raises(UnreachableError):
        interpreter(python=program)(bodies.one)()()


def test_a_first_word_that_comes_in_pieces(tmp_path: Path) -> None:
    """The agent's greeting may arrive split at any byte."""
    agent = f"""import os, subprocess, sys, time
started = subprocess.Popen([{sys.executable!r}, *sys.argv[1:]], stdout=subprocess.PIPE)
first = started.stdout.readline() + started.stdout.readline()
for byte in b"x" * 500 + first:
    os.write(1, bytes([byte]))
    time.sleep(0.001)  # a piece by itself, as a rule; nothing depends on it
while data := os.read(started.stdout.fileno(), 65536):
    os.write(1, data)
"""
    script = tmp_path / "slowly.py"
    script.write_text(agent)
    program = _program(tmp_path, f'exec {sys.executable} {script} "$@"')
    assert interpreter(python=program)(bodies.num)(4)() == 4


def test_a_place_that_fails_fails_once_for_all_who_wait(tmp_path: Path) -> None:
    log = tmp_path / "log"
    program = _program(tmp_path, f"echo started >> {log}; sleep 1; echo 'no licence' >&2; exit 3")
    one = interpreter(python=program)(bodies.one)
    with pytest.raises(UnreachableError, match=r"exit status 3.*no licence"):
        together(*(one() for _ in range(20)))()
    assert len(log.read_text().splitlines()) <= 3


def test_closing_is_final_and_quiet() -> None:
    pid = interpreter(bodies.pid)
    first = pid()()
    close_all()
    wait_until(lambda: not alive(first))
    assert pid()() != first


def test_agents_of_some_places_go_with_the_last_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """So do the agents of containers."""
    monkeypatch.setattr(InterpreterTransport, "ends_with_run", True)
    pid = interpreter(bodies.pid)
    first, again, _ = together(pid(), pid(), process(bodies.one)())()
    assert first == again
    wait_until(lambda: not alive(first))

    @thread
    def nested() -> int:
        value: int = pid()()
        return value

    one, two, three = together(nested(), pid(), nested())()
    assert one == two == three != first  # a nested run that ends does not end them
    wait_until(lambda: not alive(one))
