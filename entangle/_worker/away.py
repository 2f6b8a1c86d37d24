"""Bodies that run elsewhere: what the away worker asks of a place, and what a place tells it.

::

    away worker (`away_worker.py`)          place: an executor, a service, streams
      begin([call, …])  ──────────────────▶ takes them over and returns at once; nothing waits
      has_begun(call)   ──────────────────▶ for `timeout`, which does not count time in a queue
      completion queue  ◀────────────────── call.done(value), call.failed(error): from any thread
      cancel(call)      ──────────────────▶ nobody wants its outcome any more

A call is one attempt of one node. A place keeps what it needs of it (a future, a ticket) in
`call.handle`. It may have a thread of its own that asks for many outcomes at once, and submits many
calls at once: `begin` then only leaves them to it.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import os
import posix
import select
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from entangle._shared.polling import new_poll
from entangle._shared.table import NOBODY
from entangle._shared.tracebacks import passes_on
from entangle._shared.whereabouts import tell_of
from entangle._worker import inline
from entangle._worker.worker import here
from entangle.errors import RunCancelledError

if TYPE_CHECKING:
    from entangle._worker.worker import Worker

#: How often a thread that waits for a call says where the call is, if that has changed (seconds).
_TELLS = 0.5


class AwayPlace(Protocol):
    """Where calls run that are away. One object for each layer; any thread may call it.

    Hashable by identity. All methods return at once.
    """

    def begin(self, calls: Sequence[AwayCall], /) -> None:
        """Take over these calls. What it raises is the error of those that have no outcome yet."""

    def has_begun(self, call: AwayCall, /) -> bool:
        """Whether the body of a call may have begun: it waits in no queue there. Asked some times a
        second, of calls with a `timeout`."""

    def cancel(self, call: AwayCall, /) -> bool:
        """Nobody wants the outcome of this call any more. Return whether its body is stopped, or
        will never begin; False where it runs on. A call that has its outcome may be cancelled."""


class AwayOutcome(NamedTuple):
    """What has become of a call: its value, or its error; the seconds of its body there, or -1 if
    that is not known."""

    call: AwayCall
    value: Any
    error: BaseException | None
    seconds: float


class Again(Exception):
    """In place of an error: the call is to begin again after so many seconds. That is no attempt of
    the engine's."""

    def __init__(self, seconds: float) -> None:
        super().__init__(seconds)
        self.seconds = seconds


class AwayCall:
    """One attempt of a node whose body runs elsewhere."""

    # fmt: off
    __slots__ = (
        "_given", "_tell", "attempt", "began", "context", "cookies", "handle", "lets_go", "name", "node", "place", "repeatable", "run",
        "size", "submitted", "task", "ticket", "timeout", "using", "waits", "where", "worker",
    )
    # fmt: on

    def __init__(
        self,
        function: AwayFunction,
        args: Sequence[Any],
        kwargs: dict[str, Any],
        tell: Callable[[AwayOutcome], None],
        run: str = "",
        node: int = -1,
        attempt: int = 1,
        timeout: float | None = None,
        context: contextvars.Context | None = None,
        repeatable: bool = False,
        worker: Worker | None = None,
    ) -> None:
        #: What runs there: the function and the layers below the place, as a task.
        self.task = function.task
        self.place = function.place
        self.name: str = function.task.__name__
        #: Run, node and attempt (from 1) tell it from all others.
        self.run, self.node, self.attempt = run, node, attempt
        #: Seconds that its body may take; None: any time.
        self.timeout = timeout
        #: Whether its body may run again where nobody knows whether it has ended.
        self.repeatable = repeatable or any(layer.terms().get("idempotent") or layer.terms().get("retry") for layer in self.task.layers)
        #: For records and for those who look on: what runs it, the name that it has there, and why
        #: that does not run it yet ("" where it does, or nobody knows).
        self.where = self.ticket = self.waits = ""
        #: The worker that has it; None outside of any run.
        self.worker = worker
        #: The context of the run, for a body in this process.
        self.context = context
        #: The place's own.
        self.handle: Any = None
        self._given: tuple[Sequence[Any], dict[str, Any]] | None = (args, kwargs)
        self._tell = tell
        # The away worker's own: when it was submitted and began (ns), the nodes whose values it
        # takes, its cookies, about how many bytes its arguments have, and what `let_go` calls.
        self.began = self.submitted = time.monotonic_ns()
        self.using: dict[int, None] = {}
        self.cookies: tuple[Any, ...] = ()
        self.size = 0
        self.lets_go: Callable[[AwayCall], None] | None = None

    def path(self) -> str:
        """The call path, for what its body prints."""
        return self.worker.site.flow.path(self.node) if self.worker is not None and self.node >= 0 else self.name

    def runs(self) -> None:
        """Its place runs it now, which had said why it waits. From any thread."""
        if self.waits:
            self.began, self.waits = time.monotonic_ns(), ""

    def there(self) -> dict[str, Any]:
        """Where this attempt was, for records."""
        return {"place": self.where, "ticket": self.ticket, "queued": max(0, self.began - self.submitted)} if self.where else {}

    def lost(self, error: BaseException, number: int) -> None:
        """Attempt `number` has failed, and the place begins another one by itself. From any
        thread."""
        worker = self.worker
        if worker is not None and self.node >= 0:
            from entangle._worker.failures import note_attempt

            with contextlib.suppress(ValueError, IndexError):  # the run is over
                note_attempt(worker.site, self.node, number, error, worker.slot, self.began, **self.there(), inside=True)
        self.began = self.submitted = time.monotonic_ns()

    def take(self) -> tuple[Sequence[Any], dict[str, Any]]:
        """The arguments of the body. Only once: a call that is under way need not hold them."""
        given, self._given = self._given, None
        assert given is not None
        return given

    def done(self, value: Any, seconds: float = -1.0) -> None:
        """Its body has given this value; it took so many seconds there, if that is known.

        From any thread. The first outcome counts, and none after `cancel`.
        """
        self._tell(AwayOutcome(self, value, None, seconds))

    def failed(self, error: BaseException, seconds: float = -1.0) -> None:
        """Its body has raised this error, or is lost to it."""
        self._tell(AwayOutcome(self, None, error, seconds))

    def let_go(self) -> None:
        """Its arguments are no longer in this process, though the call is under way: others may
        begin in their place. From any thread."""
        if self.lets_go is not None:
            self.lets_go(self)

    def again(self, seconds: float) -> None:
        """Begin it anew after so many seconds: its cookies are free meanwhile."""
        self._tell(AwayOutcome(self, None, Again(seconds), -1.0))


class AwayFunction:
    """What runs here in place of a function whose place is elsewhere.

    The engine has the away worker begin it. Where a layer of the user's own stands around it, it is
    called, and the thread waits.
    """

    #: Whether a worker that has nothing else to do may call it and wait.
    may_wait = False

    def __init__(self, place: AwayPlace, task: Any) -> None:
        self.place = place
        self.task = task

    def prepare(self) -> None:
        """Have the place import what it takes, where it has something to prepare."""
        prepare = getattr(self.place, "prepare", None)
        if prepare is not None:
            prepare()

    @passes_on
    def __call__(self, /, *args: Any, **kwargs: Any) -> Any:
        """The value of the body; this thread waits for it."""
        if inline.on:
            return self.task(*args, **kwargs)()
        ended = threading.Event()
        outcomes: list[AwayOutcome] = []

        def tell(outcome: AwayOutcome) -> None:
            outcomes.append(outcome)
            ended.set()

        worker = here.worker
        whose = (worker.site.run_id, worker.node()) if worker is not None else ("", NOBODY)
        call = AwayCall(self, args, kwargs, tell, *whose, worker=worker)
        args, kwargs = (), {}

        def cancel() -> None:
            self.place.cancel(call)
            call.failed(RunCancelledError("the run is over"))

        with contextlib.ExitStack() as waiting:
            if worker is not None:
                waiting.enter_context(worker.expiring())
                waiting.enter_context(worker.ending_with(cancel))
            try:
                self.place.begin([call])
                told: Any = None
                while not ended.wait(_TELLS if worker is not None else None):
                    now = call.where, call.ticket, call.waits, call.began
                    if call.where and worker is not None and now != told:
                        tell_of(worker, call.node, *now)
                        told = now
            except BaseException:
                self.place.cancel(call)
                raise
        _, value, error, _ = outcomes[0]
        del outcomes[:]
        if error is not None:
            try:
                raise error
            finally:
                del error
        return value


class Completions:
    """Outcomes on their way to the away worker: any thread adds them, and wakes it."""

    def __init__(self) -> None:
        self._outcomes: collections.deque[AwayOutcome | Callable[[], None]] = collections.deque()
        self._guard = threading.Lock()
        self._asleep = self._wanted = self._closed = False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)

    def put(self, outcome: AwayOutcome | Callable[[], None]) -> None:
        """Add an outcome, or what is to be done in the away worker's thread. After `close` it is
        dropped."""
        with self._guard:
            if self._closed:
                return
            self._outcomes.append(outcome)
            self._rouse()

    def wake(self) -> None:
        """End the next wait, or the one under way."""
        with self._guard:
            if not self._closed:
                self._wanted = True
                self._rouse()

    def _rouse(self) -> None:
        if self._asleep:
            self._asleep = False
            with contextlib.suppress(BlockingIOError):
                posix.write(self._write, b"!")

    def take(self) -> list[AwayOutcome | Callable[[], None]]:
        """The outcomes that are there, as they came."""
        outcomes = self._outcomes
        return [outcomes.popleft() for _ in range(len(outcomes))]

    def wait(self, seconds: float | None, fds: Iterable[int] = ()) -> None:
        """Sleep until there are outcomes, `wake` is called, one of these descriptors can be read,
        or the time is over (None: any time)."""
        with self._guard:
            if self._outcomes or self._wanted:
                self._wanted = False
                return
            self._asleep = True
        poll = new_poll()
        poll.register(self._read, select.POLLIN)
        for fd in fds:
            poll.register(fd, select.POLLIN)
        found = poll.poll(None if seconds is None else max(0.0, seconds) * 1000)
        with self._guard:
            roused = not self._asleep
            self._asleep = self._wanted = False
        if roused or any(fd == self._read for fd, _ in found):
            os.read(self._read, 64)

    def close(self) -> None:
        """Drop what is there, and whatever comes later."""
        with self._guard:
            if not self._closed:
                self._closed = True
                self._outcomes.clear()
                os.close(self._read)
                os.close(self._write)
