"""The ways to run a graph, over which the same promises hold."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from entangle.process import process


@dataclass(frozen=True)
class Way:
    """One way to run a graph: how workers start, what else the caller is doing, and where bodies
    run.

    `where` turns a task into one that runs somewhere else (by ssh, in a container); None leaves it
    on this machine. A new place to run is one more line in WAYS."""

    name: str
    start: str = "auto"
    second_thread: bool = False
    #: Whether the test runs in a session.
    session: bool = False
    where: Callable[[Any], Any] | None = None
    #: Whether all tests but the `near` ones run there, or only those that are marked `everywhere`.
    whole: bool = True
    #: Whether the others are drills there, where not all run.
    drilled: bool = False
    #: Makes sure that the place is there, before a test counts what there is.
    warm: Callable[[], Any] | None = None

    def process(self, function: Any = None, /, **options: Any) -> Any:
        """`@process`, in this way: bare or with options."""
        if function is None:
            return lambda f: self.process(f, **options)
        return self.there(process(**options)(function) if options else process(function))

    def there(self, task: Any) -> Any:
        """A task that was decorated elsewhere, in this way."""
        return self.where(task) if self.where else task

    @property
    def here(self) -> bool:
        """Whether bodies run on this machine, with its files."""
        return self.where is None


def other_python(same: bool) -> Callable[[Any], Any]:
    """What turns a task into one that runs in another Python of this machine, of this version or
    not."""

    def there(task: Any) -> Any:
        from entangle.interpreter import interpreter

        from .places import far_pythons

        return interpreter(python=far_pythons(same))(task)

    return there


def warm_python(same: bool) -> Any:
    """Have the agent there, and give the key under which it is kept."""
    from entangle._remote.caller.open_channels import channel_to
    from entangle._remote.transport.interpreter import InterpreterTransport

    from .places import far_pythons

    transport = InterpreterTransport(os.path.abspath(far_pythons(same)))
    other_python(same)(process(abs))(-1)()
    channel_to(transport)
    return transport.key


def by_ssh(task: Any) -> Any:
    """A task as one that runs on another host."""
    from entangle.ssh import ssh

    from .services import given

    return ssh(**given.shared_hosts().options("alpha"))(task)


def warm_ssh() -> Any:
    """Have the agent there, and give the key under which it is kept."""
    from entangle._remote.caller.open_channels import channel_to

    task = by_ssh(process(abs))
    task(-1)()
    transport = task.layers[0].transport
    channel_to(transport)
    return transport.key


def in_a_container(task: Any) -> Any:
    """A task as one that runs in a container, which has the files of the tests."""
    from entangle._remote.caller.far import Far
    from entangle.task import decorate

    return decorate("docker", task, Far(_container()))


def on_an_executor(task: Any) -> Any:
    """A task as one that runs through an executor, which is made for each run."""
    from entangle.on import on

    return on(_executor)(task)


def _executor() -> Any:
    from entangle.executor import Executor

    return Executor(2)


@functools.lru_cache(maxsize=1)
def _container() -> Any:
    """One container for all tests: else each of them would wait for its own."""
    import tempfile

    from .places import Kept
    from .services import given

    return Kept(given.image(), volumes=(f"{tempfile.gettempdir()}:{tempfile.gettempdir()}",))


def warm_container() -> Any:
    """Have the container there, and give the key under which its agent is kept."""
    from entangle._remote.caller.open_channels import channel_to

    in_a_container(process(abs))(-1)()
    channel_to(_container())
    return _container().key


WAYS = [
    Way("fork", start="fork"),
    Way("forkserver", start="forkserver"),
    # But for its start, a worker of a forkserver. Starts are slow: CI runs all by spawn on other
    # Pythons than the newest.
    Way("spawn", start="spawn", whole=False, drilled=True),
    Way("auto-with-a-second-thread", second_thread=True),
    Way("in-a-session", session=True),
    # All tests run by ssh too, with the same agent behind another transport. CI runs all here on
    # other Pythons than the newest.
    Way("in-another-python", where=other_python(same=True), whole=False, drilled=True, warm=functools.partial(warm_python, same=True)),
    Way("in-another-version", where=other_python(same=False), whole=False, warm=functools.partial(warm_python, same=False)),
    Way("by-ssh", where=by_ssh, warm=warm_ssh),
    Way("in-a-container", where=in_a_container, whole=False, warm=warm_container),
]

#: Those of `make test-engines`.
WAYS_OF_ENGINES = [Way("on-an-executor", where=on_an_executor, whole=False)]


@contextmanager
def second_thread() -> Iterator[threading.Thread]:
    """A thread that does nothing but be there, as the threads of most programs do."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="second", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        over.set()
        thread.join()


def missing(what: str) -> None:
    """Skip a test for want of something; in continuous integration, where everything must be there,
    fail instead."""
    import pytest  # not up there: workers import this module too

    if os.environ.get("CI"):
        pytest.fail(f"in CI this must be there: {what}")
    pytest.skip(what, allow_module_level=True)


def installed(name: str) -> None:
    """A package that a program of the test needs. It is not loaded: many make a fork unsafe, and
    every later test of this process would run in another way."""
    if importlib.util.find_spec(name) is None:
        missing(f"the package {name}: pip install 'py-entangle[test]'")


def needed(name: str) -> Any:
    """A package that `py-entangle[test]` brings: a test that cannot have it is no test that has
    passed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"the package {name}: pip install 'py-entangle[test]'")
