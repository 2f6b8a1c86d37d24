"""The ways to run a graph. The same promises hold for all of them."""

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
    """One way to run a graph: how workers start, what else the caller does, and where bodies run.

    `where` turns a task into one that runs elsewhere (by ssh, in a container); None leaves it on
    this machine. A new place to run is one more line in WAYS.
    """

    name: str
    start: str = "auto"
    second_thread: bool = False
    #: Whether the test runs in a session.
    session: bool = False
    where: Callable[[Any], Any] | None = None
    #: Whether all tests run in this way except `near` ones, or only those marked `everywhere`.
    whole: bool = True
    #: Whether the other tests run in this way as drills, if `whole` is False.
    drilled: bool = False
    #: Starts what the place needs, before a test counts processes and descriptors.
    warm: Callable[[], Any] | None = None

    def process(self, function: Any = None, /, **options: Any) -> Any:
        """`@process`, in this way: bare or with options."""
        if function is None:
            return lambda f: self.process(f, **options)
        return self.there(process(**options)(function) if options else process(function))

    def there(self, task: Any) -> Any:
        """A decorated task, run in this way."""
        return self.where(task) if self.where else task

    @property
    def here(self) -> bool:
        """Whether bodies run on this machine and see its files."""
        return self.where is None


def other_python(same: bool) -> Callable[[Any], Any]:
    """Returns a function that makes a task run in another Python of this machine, of the same or
    another version."""

    def there(task: Any) -> Any:
        from entangle.interpreter import interpreter

        from .places import far_pythons

        return interpreter(python=far_pythons(same))(task)

    return there


def warm_python(same: bool) -> Any:
    """Start the agent. Return the key under which it is kept."""
    from entangle._remote.caller.open_channels import channel_to
    from entangle._remote.transport.interpreter import InterpreterTransport

    from .places import far_pythons

    transport = InterpreterTransport(os.path.abspath(far_pythons(same)))
    other_python(same)(process(abs))(-1)()
    channel_to(transport)
    return transport.key


def by_ssh(task: Any) -> Any:
    """A task that runs on another host."""
    from entangle.ssh import ssh

    from .services import given

    return ssh(**given.shared_hosts().options("alpha"))(task)


def warm_ssh() -> Any:
    """Start the agent. Return the key under which it is kept."""
    from entangle._remote.caller.open_channels import channel_to

    task = by_ssh(process(abs))
    task(-1)()
    transport = task.layers[0].transport
    channel_to(transport)
    return transport.key


def in_a_container(task: Any) -> Any:
    """A task that runs in a container, which sees the tests' files."""
    from entangle._remote.caller.far import Far
    from entangle.task import decorate

    return decorate("docker", task, Far(_container()))


def on_an_executor(task: Any) -> Any:
    """A task that runs through an executor, which is made for each run."""
    from entangle.on import on

    return on(_executor)(task)


def _executor() -> Any:
    from entangle.executor import Executor

    return Executor(2)


@functools.lru_cache(maxsize=1)
def _container() -> Any:
    """One container for all tests, since starting one takes long."""
    import tempfile

    from .places import Kept
    from .services import given

    return Kept(given.image(), volumes=(f"{tempfile.gettempdir()}:{tempfile.gettempdir()}",))


def warm_container() -> Any:
    """Start the container. Return the key under which its agent is kept."""
    from entangle._remote.caller.open_channels import channel_to

    in_a_container(process(abs))(-1)()
    channel_to(_container())
    return _container().key


WAYS = [
    Way("fork", start="fork"),
    Way("forkserver", start="forkserver"),
    # Apart from its start, such a worker is like one of the forkserver. Starts are slow, so only CI
    # runs all tests by spawn, on other Pythons than the newest.
    Way("spawn", start="spawn", whole=False, drilled=True),
    Way("auto-with-a-second-thread", second_thread=True),
    Way("in-a-session", session=True),
    # All tests run by ssh, with the same agent over another transport. CI runs all tests in another
    # Python on other Pythons than the newest.
    Way("in-another-python", where=other_python(same=True), whole=False, drilled=True, warm=functools.partial(warm_python, same=True)),
    Way("in-another-version", where=other_python(same=False), whole=False, warm=functools.partial(warm_python, same=False)),
    Way("by-ssh", where=by_ssh, warm=warm_ssh),
    Way("in-a-container", where=in_a_container, whole=False, warm=warm_container),
]

#: The ways of `make test-engines`.
WAYS_OF_ENGINES = [Way("on-an-executor", where=on_an_executor, whole=False)]


@contextmanager
def second_thread() -> Iterator[threading.Thread]:
    """A thread that does nothing: most programs have other threads."""
    over = threading.Event()
    thread = threading.Thread(target=over.wait, name="second", daemon=True)
    thread.start()
    try:
        yield thread
    finally:
        over.set()
        thread.join()


def missing(what: str) -> None:
    """Skip a test because something is missing. In CI everything must be installed, so fail
    instead."""
    import pytest  # not at the top: workers import this module too

    if os.environ.get("CI"):
        pytest.fail(f"in CI this must be there: {what}")
    pytest.skip(what, allow_module_level=True)


def installed(name: str) -> None:
    """Skip the test unless a package is installed, without importing it. Many packages make forking
    unsafe, and later tests of this process would then run differently."""
    if importlib.util.find_spec(name) is None:
        missing(f"the package {name}: pip install 'py-entangle[test]'")


def needed(name: str) -> Any:
    """Import a package of `py-entangle[test]`. Without it the test is skipped, or fails in CI."""
    try:
        return importlib.import_module(name)
    except ImportError:
        missing(f"the package {name}: pip install 'py-entangle[test]'")
