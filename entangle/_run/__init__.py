"""Running flows, in the process that calls. Private: it knows flows, not calls. Start at `run.py`.

Rooms above fill in the hooks below. They are declared here, since importing this file is cheap:
`entangle/__init__.py` fills them in before the engine is imported.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    from contextvars import Context

    from entangle._run.history import History
    from entangle._run.worker_process import WorkerProcess
    from entangle._shared.frame import Frame
    from entangle._shared.home import Home
    from entangle._shared.site import Site
    from entangle._shared.table import Table
    from entangle._shared.whereabouts import Whereabouts
    from entangle.flow import Flow


class ObservedRun(Protocol):
    """What an observer may read of a run (`run.py`)."""

    id: str
    way: str
    flow: Flow
    context: Context
    nested: bool
    parent: tuple[str, int] | None
    table: Table | None
    #: Whether it may be over before anybody could look at it: nobody supervises it yet.
    brief: bool
    #: What the stages of a rearmed run have done; None for any other run.
    history: History | None
    #: Where its nodes are that are away; None where there were none yet.
    whereabouts: Whereabouts | None
    #: The calls whose values a depot had, so that they are no nodes of it: task, key, when the
    #: value was made (seconds since 1970).
    taken: list[tuple[str, str, float]]

    @property
    def name(self) -> str:
        """The task whose value the run gives."""

    @property
    def site(self) -> Site | None:
        """What the workers of the run share; None after the run has ended."""

    @property
    def workers_started(self) -> int:
        """How many workers it has started so far."""

    def how_far(self) -> dict[str, Any]:
        """What the stages of a rearmed run have done so far, as JSON takes it."""

    @property
    def many(self) -> bool:
        """Whether it is a stream: any number of values may go through it."""

    def reason(self) -> BaseException | None:
        """What ended the run, if not its value. Known when it has ended."""

    def take_prints(self) -> None:
        """Have what bodies print pass through this process. For a run that is about to start."""


class Observer(Protocol):
    """Is told of runs, in the thread that supervises the run. May read the table at any time."""

    def started(self, run: ObservedRun, /) -> None:
        """The run is about to start."""

    def looked(self, run: ObservedRun, /) -> None:
        """Some milliseconds have passed."""

    def ended(self, run: ObservedRun, /) -> None:
        """The run is over; its table is still there."""


#: Told of every run of this process.
observers: list[Observer] = []

#: In a thread that runs the body of a node for another engine: the run of that node, and the node.
called_for: contextvars.ContextVar[tuple[str, int] | None] = contextvars.ContextVar("entangle.called_for", default=None)

#: Called when SIGTERM ends this process during a run, to end what it has started in other places.
at_termination: list[Callable[[], None]] = []


class Warm(Protocol):
    """What a session has for runs."""

    #: What its warm workers are told: `idle` (seconds) and `max_memory` (bytes; 0: no limit).
    settings: dict[str, Any]

    def lend(self, site: Site, slot: int, lane: int, serial: int, capture: bool, /) -> WorkerProcess | None:
        """A warm worker that joins the run; `capture` says whether prints are. None if the session
        is over. Raises NoWorkerNow if all are lent to others."""

    def ready(self) -> tuple[Frame, Any] | None:
        """A frame that is free and a worker that is idle, for a run that begins at once; None if
        that would take a while."""

    def join(self, worker: Any, site: Site, slot: int, /) -> WorkerProcess:
        """Have a worker that `ready` gave join the run. Raises OSError if it is gone."""

    def not_needed(self, worker: Any, /) -> None:
        """Take back a worker that `ready` gave and that has joined no run."""

    def frame(self, home: Home, /) -> Frame | None:
        """A frame for a run that begins now; None if there is none."""

    def give_frame(self, frame: Frame, /) -> None:
        """Take back a frame whose run is over."""

    def at_end(self, close: Callable[[], None], /) -> None:
        """Have this called when the session ends: it closes what was opened for its runs."""


#: Told why a warm worker ended: where its last run is recorded, its pid, the reason.
retired: Callable[[str, int, str], None] | None = None

#: The session that is open, if one is.
warm: Warm | None = None

#: In a warm worker: the settings of its session. What it opens for a run stays as long as it does.
warm_settings: dict[str, Any] | None = None


class Elsewhere(Protocol):
    """Makes runs on other engines: `entangle.engine`."""

    def run_of(self, flow: Flow, way: str | None, observer: Observer | None, timeout: float | None, workers: int | None, /) -> Any:
        """The run of a flow on the engine of this thread; None if it is ours."""

    def completions_of(self, flow: Flow, tell: Callable[[int, Any, BaseException | None], object], /) -> Any:
        """The run of a flow whose kept nodes are told as they end; None if the engine is ours."""

    def stream_of(self, task: Any, instance: tuple[Any, ...], source: Any, inflight: int | None, ordered: bool, on_error: Any, /) -> Any:
        """The stream of a task on the engine of this thread; None if it is ours. `instance` is
        empty, or has that of a method."""

    def title(self) -> str:
        """The engine of this thread, as errors name it; empty if it is ours."""


#: Gives what makes runs on other engines, where one is chosen.
elsewhere: Callable[[], Elsewhere | None] | None = None

#: Opens a session for the whole program, if its environment says so.
open_session: Callable[[], None] | None = None
