"""@interpreter: bodies in another Python of this machine, of the same version and of another."""

# mypy: disable-error-code="untyped-decorator"

from __future__ import annotations

import importlib
import os
import signal
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from entangle import gather
from entangle.errors import (
    LinkLostError,
    OptionError,
    ProcessRetryException,
    ProcessTerminatedException,
    RunTimeoutException,
    UnfitPythonError,
    UnreachableError,
)
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.scheduler import scheduler
from entangle.task import Start, task

from . import bodies
from .callers import gone
from .evidence import most_at_once, note, notes, pids_in, span, wait_until
from .places import far_pythons
from .services import given
from .services.hosts import Hosts
from .ways import installed


@pytest.fixture(params=["this version", "another version"])
def python(request: pytest.FixtureRequest) -> str:
    """The path of a Python in which nothing is installed."""
    return far_pythons(same=request.param == "this version")


@pytest.fixture(scope="session")
def hosts() -> Hosts:
    """Hosts reached by ssh."""
    return given.shared_hosts()


def test_a_value_comes_back(python: str) -> None:
    @interpreter(python=python)
    def where(x: int) -> tuple[int, int, str]:
        return x + 1, os.getpid(), sys.executable

    value, pid, executable = where(1)()
    assert value == 2
    assert pid != os.getpid()
    assert os.path.samefile(executable, python)


def test_a_run_past_its_timeout(tmp_path: Path) -> None:
    """The calling thread only waits for the value."""
    log = str(tmp_path / "log")

    @interpreter
    @process
    def lasting() -> None:
        note(log, os.getpid())
        time.sleep(1000)

    with pytest.raises(RunTimeoutException, match="lasting\\(\\) ran"):
        lasting().run(timeout=3)
    with pytest.raises(RunTimeoutException):
        task(lambda: lasting()())().run(timeout=3)
    gone(pids_in(log))


def test_bare_it_is_this_python() -> None:
    @interpreter
    def where() -> tuple[str, int]:
        return sys.executable, os.getpid()

    executable, pid = where()()
    assert os.path.samefile(executable, sys.executable)
    assert pid != os.getpid()


def test_an_error_is_the_bodys_own(python: str) -> None:
    @interpreter(python=python)
    def fail() -> None:
        raise KeyError("nothing of that name")

    with pytest.raises(KeyError, match="nothing of that name") as caught:
        fail()()
    assert "in fail" in str(caught.value.__cause__)


@pytest.mark.parametrize("retry", [0, 1])
@pytest.mark.parametrize("dies", [False, True], ids=["raises", "dies"])
def test_an_error_says_once_which_call_failed_and_as_which_attempt(dies: bool, retry: int) -> None:
    """The worker there, its agent, the worker here and the caller each know the call, and could
    each name it."""

    @process(retry=retry, sleep=0)
    @interpreter(python=sys.executable)
    @process
    def failing(x: int) -> None:
        if dies:
            os._exit(7)
        raise ValueError(x)

    with pytest.raises(ProcessRetryException if retry else ProcessTerminatedException if dies else ValueError) as caught:
        gather(failing(1))()
    last = caught.value.__cause__ if retry else caught.value
    told = [note for note in getattr(last, "__notes__", []) if not note.startswith("more: ")]
    kinds = [note.split()[0] for note in told]
    assert kinds == ["call", "call:", "host", *([] if retry else ["replay:"])], told
    assert told[0] == "call path: gather(failing(…)) → failing"
    assert told[2].endswith(f", attempt {retry + 1}")
    if retry:
        first, *call = [note for note in getattr(caught.value, "__notes__", []) if not note.startswith("more: ")]
        assert first.startswith("attempt 1: ")
        assert "call" not in first
        assert "\n" not in first
        assert call[:2] == told[:2]
        assert [note.split()[0] for note in call[2:]] == ["replay:"]


@pytest.mark.parametrize("start", ["fork", "forkserver"])
def test_between_tasks_of_processes(start: Start) -> None:
    """The worker that delivers the last argument knows that no worker here can run the body."""
    near, there = process(bodies.inc), interpreter(python=sys.executable)(process(bodies.inc))
    assert near(there(near(1)))(start=start) == 4


def test_layers_below_are_that_places_business(python: str) -> None:
    @interpreter(python=python)
    @process
    def pids() -> tuple[int, int]:
        return os.getpid(), os.getppid()

    @interpreter(python=python)
    def agent() -> int:
        return os.getpid()

    pid, _ = pids()()
    assert pid not in (os.getpid(), agent()())


# --- cookies in another Python --------------------------------------------------------------------


@pytest.mark.parametrize("cpus", [1, 2])
def test_callers_in_several_processes_share_the_cookies_of_a_place(python: str, cpus: int, tmp_path: Path) -> None:
    """Each worker has its own agent there. The agents of one process tree here share the cookies
    there."""
    log, agents = str(tmp_path / "spans"), str(tmp_path / "agents")

    @interpreter(python=python)
    @scheduler(cpus=cpus)
    @process
    def bound() -> list[int]:
        with span(log):
            time.sleep(0.05)
            return sorted(os.sched_getaffinity(0))

    @process
    def caller(n: int) -> list[list[int]]:
        note(agents, interpreter(python=python)(os.getpid)()())
        wait_until(lambda: len(notes(agents)) == 3)
        return [bound()() for _ in range(4)]

    usable = [[cpu] for cpu in sorted(os.sched_getaffinity(0))[:cpus]]
    (*all_found,), _ = process(bodies.gather)(*(caller(n) for n in range(3)))()
    for found in all_found:
        assert all(cpu in usable for cpu in found)
    assert len(set(pids_in(agents))) == 3
    assert len(notes(log)) == 12
    assert most_at_once(log) <= cpus


def test_the_cookie_of_an_agent_that_is_killed_is_there_for_the_others(python: str, tmp_path: Path) -> None:
    held = str(tmp_path / "held")

    @interpreter(python=python)
    @scheduler(cpus=1)
    @process
    def hold(n: int) -> int:
        note(held, n)
        time.sleep(60 if n == 0 else 0)
        return n

    @process
    def caller(n: int) -> int:
        agent = interpreter(python=python)(os.getpid)()()
        if n:
            wait_until(lambda: notes(held))
        note(tmp_path / f"agent-{n}", agent)
        return int(hold(n)())

    def kill_the_holder() -> None:
        wait_until(lambda: notes(held) and (tmp_path / "agent-1").exists())
        # So that the other caller waits by then. If it comes later, the result is the same.
        time.sleep(0.2)
        os.kill(pids_in(tmp_path / "agent-0")[0], signal.SIGKILL)

    killer = threading.Thread(target=kill_the_holder)
    killer.start()
    futures = [caller(n)(proc=True) for n in range(2)]
    assert futures[1].result() == 1
    with pytest.raises(LinkLostError):
        futures[0].result()
    killer.join()


def test_who_holds_a_cookie_there_can_wait_for_one_further_on(python: str) -> None:
    """With a single pool, each level would wait for the cookie of the one above."""

    @scheduler(cpus=1)
    @interpreter(python=python)
    @scheduler(cpus=1)
    @process
    def last(n: int) -> int:
        return n + 1

    @scheduler(cpus=1)
    @interpreter(python=python)
    @scheduler(cpus=1)
    @process
    def first(n: int) -> int:
        return int(last(n)()) + 1

    assert first(1)() == 3


def test_no_such_python_is_told_when_it_is_decorated(tmp_path: Path) -> None:
    for wrong in ("/no/such/python", "no-such-python-anywhere", tmp_path, "", 3):
        with pytest.raises(OptionError, match="python="):
            interpreter(python=wrong)  # type: ignore[arg-type]
    with pytest.raises(OptionError, match="pyhton"):
        interpreter(pyhton="x")  # type: ignore[call-overload]


#: A module with tasks of several places. Importing it in one of the places creates the tasks of the
#: others, too.
_SEVERAL = """
import os
from entangle.docker import docker
from entangle.interpreter import interpreter
from entangle.process import process
from entangle.ssh import ssh

@interpreter(python={python!r})
def near():
    return os.getpid()

@docker(image={image!r})
def contained():
    return os.path.exists("/.dockerenv")

@docker(image={image!r})
@process
def contained_in_a_process():
    return os.path.exists("/.dockerenv")

@docker(image={image!r})
def calls_near():
    return near()()

@ssh(**{options!r})
def on_a_host():
    return os.uname().nodename
"""


def test_a_task_of_this_machines_python_does_not_hinder_the_others_of_its_module(
    python: str, hosts: Hosts, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    installed("docker")
    name = f"several{os.getpid()}{len(sys.modules)}"
    link = tmp_path / "a-python-of-this-machine"  # a path that exists only on this machine
    link.write_text(f'#!/bin/sh\nexec {python} "$@"\n')
    link.chmod(0o755)
    options = hosts.options("alpha")
    (tmp_path / f"{name}.py").write_text(_SEVERAL.format(python=str(link), image=given.image(), options=options))
    monkeypatch.syspath_prepend(str(tmp_path))
    module = importlib.import_module(name)
    assert module.contained()() is True
    assert module.contained_in_a_process()() is True
    assert module.on_a_host()()
    assert module.near()() != os.getpid()
    with pytest.raises(OptionError, match=r"a-python-of-this-machine.*there is no such program on"):
        module.calls_near()()


def test_a_module_that_is_loaded_anew_here_is_the_new_one_there(python: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As in a notebook, while the agent stays warm."""
    deep, top = f"deep_{tmp_path.name}", f"top_{tmp_path.name}"

    def write(text: str) -> None:
        (tmp_path / f"{deep}.py").write_text(f"def text():\n    return {text!r}\n")
        importlib.invalidate_caches()

    write("old")
    (tmp_path / f"{top}.py").write_text(f"import os\nfrom {deep} import text\ndef told():\n    return text(), os.getpid()\n")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    task = interpreter(python=python)(importlib.import_module(top).told)
    in_process: Any = interpreter(python=python)(process(importlib.import_module(top).told))
    first, agent = task()()
    assert first == "old"
    write("edited")
    assert task()() == ("old", agent)
    importlib.reload(sys.modules[deep])
    # As in this process, where `top` still has the function that it imported.
    assert task()() == ("old", agent)
    importlib.reload(sys.modules[top])
    assert sys.modules[top].told()[0] == "edited"
    again = interpreter(python=python)(sys.modules[top].told)
    with ThreadPoolExecutor(4) as threads:
        assert set(threads.map(lambda _: again()(), range(8))) == {("edited", agent)}
    assert in_process()()[0] == "edited"
    for name in (deep, top):
        del sys.modules[name]


def test_what_is_no_python_or_too_old_is_named(tmp_path: Path) -> None:
    def task(program: str) -> Any:
        @interpreter(python=program)
        def one() -> int:
            return 1

        return one()

    with pytest.raises(UnreachableError, match="false"):
        task("/bin/false")()
    old = tmp_path / "python3.8"
    old.write_text("#!/bin/sh\nprintf '\\nentangle-agent 1 3.8.18\\n'\nexit 86\n")
    old.chmod(0o755)
    with pytest.raises(UnfitPythonError, match=r"3\.8\.18.*3\.10"):
        task(str(old))()
