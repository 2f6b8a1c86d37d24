"""Services: places that take a call as a message, and give its outcome later.

A service may be a batch system, a queue with workers, or processes that something else starts. It
is one small class with five verbs. All else is shared: how the call is written, the mailbox, the
program that runs it there, and what becomes of its end. `docs/services.md` tells how to write one.

::

    here                                  mailbox                      there
    Watcher.begin ── the call ──────────▶ messages/ID
    Service.submit(messages) ──▶ ticket        │       the platform starts message.command
                                               ├─────▶ claim(ID), once; run the call
    Watcher looks: outcomes/ID ◀───────────────┴────── put(ID, outcome), the first wins
    Service.outcomes(tickets): pending because …; over, and why
"""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from entangle.errors import EntangleError, OptionError, ProcessTerminatedException, UnfitPythonError

#: What a platform may say of a ticket: it waits, it runs, or it runs no more, however it ended.
PENDING, RUNNING, OVER = "pending", "running", "over"

#: Told by a Python of itself: what `Service.about` gives.
TOLD = "dict(python=list(sys.version_info[:3]),implementation=sys.implementation.name,magic=u.MAGIC_NUMBER.hex())"
_ASKED = f"import sys,json,importlib.util as u;print(json.dumps({TOLD}))"


@dataclass(frozen=True)
class Submission:
    """A call for a service to deliver: `command` is what the platform must run, and all of it.

    `id` names the message in its mailbox, is unique there alone, and is safe in a file's name.
    `name` is the task's.
    `seconds` is how long its body may run, where the task says so. `attempt` counts from 1.
    """

    id: str
    name: str
    command: tuple[str, ...]
    seconds: float | None = None
    attempt: int = 1


@dataclass(frozen=True)
class State:
    """What the platform says of a ticket.

    `reason` is in the platform's words: why it waits, as a phrase that can follow "pending
    because", or why it is over. `error` is what a call raises whose ticket is over and that has no
    outcome.
    """

    state: str
    reason: str = ""
    error: type[EntangleError] = ProcessTerminatedException

    def __post_init__(self) -> None:
        # A ticket in a state that nobody knows would be waited for without end.
        if self.state not in (PENDING, RUNNING, OVER):
            raise OptionError(f"State: state={self.state!r}; choose one of {PENDING!r}, {RUNNING!r}, {OVER!r}")
        if not isinstance(self.reason, str):
            raise OptionError(f"State: reason={self.reason!r}; it must be a string")
        if not (isinstance(self.error, type) and issubclass(self.error, EntangleError)):
            raise OptionError(f"State: error={self.error!r}; it must be a class of entangle.errors")


@dataclass(frozen=True)
class Limits:
    """What a service can take.

    `message` is the largest command with its arguments (bytes), `life` the longest that a body may
    run (seconds), `at_once` how many messages one `submit` may be given.
    """

    message: int = 128 << 10
    life: float | None = None
    at_once: int = 1000

    def __post_init__(self) -> None:
        for name, value in (("message", self.message), ("at_once", self.at_once)):
            if not isinstance(value, int) or value < 1:
                raise OptionError(f"Limits: {name}={value!r}; it must be a whole number above 0")
        if self.life is not None and not (isinstance(self.life, (int, float)) and self.life > 0):
            raise OptionError(f"Limits: life={self.life!r}; it must be a number of seconds above 0, or None for no limit")


class Service:
    """A way to have commands run somewhere. Subclasses can be pickled and compared by options.

    The verbs are called by one thread at a time. A verb that cannot reach the platform raises, and
    is called again; only the error of `submit` ends the calls that it was for.
    """

    #: The name of the service, for errors.
    name: ClassVar[str] = "service"
    #: How often `outcomes` is asked (seconds).
    every: ClassVar[float] = 1.0
    #: How long an outcome may take to be seen once its ticket is over (seconds): shared file
    #: systems show a new file late.
    grace: ClassVar[float] = 5.0
    #: Whether what runs there ends by itself when its caller is gone.
    leased: ClassVar[bool] = True

    @property
    def place(self) -> str:
        """What people call the place. Prefixes its printed lines."""
        return self.name

    @property
    def python(self) -> Sequence[str]:
        """The command of the Python there, which may be a line with options."""
        raise NotImplementedError

    def submit(self, messages: Sequence[Submission]) -> Sequence[str]:
        """Have these run, each once, and give a ticket for each.

        Fewer tickets than messages means that the others did not fit yet: they come again. The
        platform must not run one again by itself.
        """
        raise NotImplementedError

    def outcomes(self, tickets: Collection[str]) -> Mapping[str, State]:
        """What the platform says of these tickets, in one request. Those it does not know are
        left out."""
        raise NotImplementedError

    def cancel(self, tickets: Collection[str]) -> None:
        """End these, whether they run or wait. Ignores tickets that it does not know."""
        raise NotImplementedError

    def logs(self, ticket: str) -> str:
        """The end of what the platform has of its output and errors, and where that lies."""
        return ""

    def limits(self) -> Limits:
        """What it can take."""
        return Limits()

    def kept(self, ticket: str) -> str:
        """Where people find what the platform has of a job: a note of each of its errors."""
        return ""

    def forget(self, tickets: Collection[str]) -> None:
        """These have given values: what is kept of them for people may go."""

    def about(self) -> dict[str, Any]:
        """What the Python there says of itself: `python` (a list), `implementation`, `magic`.

        It is asked once, before anything is submitted. By default that Python is asked here, which
        is right where both sides see the same files.
        """
        return asked(self.python, self.place)


def asked(python: Sequence[str], place: str, seconds: float = 30.0) -> dict[str, Any]:
    """What the Python that this command starts says of itself. Raises UnfitPythonError."""
    name = repr(" ".join(python))
    try:
        options: dict[str, Any] = {"stdin": subprocess.DEVNULL, "capture_output": True, "text": True, "errors": "replace"}
        done = subprocess.run([*python, "-c", _ASKED], **options, timeout=seconds, check=False)
    except (OSError, subprocess.SubprocessError) as error:
        raise UnfitPythonError(f"{place}: its Python {name} cannot be started: {error}") from None
    try:
        told: dict[str, Any] = json.loads(done.stdout.strip().rpartition("\n")[2])
        return told
    except ValueError:
        said = (done.stderr or done.stdout).strip()[-600:]
        raise UnfitPythonError(f"{place}: {name} is no Python that entangle can use (exit status {done.returncode}): {said}") from None


def known_python(version: str) -> dict[str, Any]:
    """What `Service.about` gives of a CPython of this minor version ("3.13") that nobody asks."""
    same = version == "{}.{}".format(*sys.version_info)
    return {
        "python": [*map(int, version.split(".")), 0],
        "implementation": "cpython",
        "magic": importlib.util.MAGIC_NUMBER.hex() if same else "",
    }
