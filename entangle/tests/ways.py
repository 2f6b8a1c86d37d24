"""The ways to run a graph, over which the same promises hold."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from entangle.process import process


@dataclass(frozen=True)
class Way:
    """One way to run a graph: how workers start, what else the caller is doing, and where bodies run.

    `where` turns a task into one that runs somewhere else (by ssh, in a container); None leaves it on this machine.
    A new place to run is one more line in WAYS.
    """

    name: str
    start: str = "auto"
    second_thread: bool = False
    where: Callable[[Any], Any] | None = None

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


WAYS = [
    Way("fork", start="fork"),
    Way("forkserver", start="forkserver"),
    Way("spawn", start="spawn"),
    Way("auto-with-a-second-thread", second_thread=True),
]


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
    """Skip a test for want of something; in continuous integration, where everything must be there, fail instead."""
    import pytest  # not up there: workers import this module too

    if os.environ.get("CI"):
        pytest.fail(f"in CI this must be there: {what}")
    pytest.skip(what)
