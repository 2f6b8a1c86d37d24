"""What all workers of one run share: flow, table, stores, cookies, and the pipes that wake them."""

from __future__ import annotations

import contextvars
import ctypes
import errno
import os
import posix  # eventlet's `os.write` never returns on a pipe that nobody reads any more
import threading
from collections.abc import Callable, Sequence
from itertools import chain
from typing import Any, NamedTuple

from entangle._shared.devices import Claim, Devices, Visible
from entangle._shared.frame import Frame
from entangle._shared.home import devices_of, home_of_tree, open_pool
from entangle._shared.interrupts import Deferred
from entangle._shared.store import Store
from entangle._shared.table import LANES, NOBODY, Table
from entangle.errors import OptionError
from entangle.flow import AWAY, DEVICE, FRESH, HERE, THREAD, Body, Flow
from entangle.pools import CPUS, CookieSource, Pool


def _find_cpu() -> Callable[[], int]:
    """A function that tells on which CPU this thread runs; -1 if unknown (macOS)."""
    found: Callable[[], int] = getattr(ctypes.PyDLL(None), "sched_getcpu", lambda: -1)
    return found


cpu = _find_cpu()


class Shares(NamedTuple):
    """How many threads numerical libraries may use (`_run/library_shares.py`).

    In `each` worker process; and as a `whole` for nodes that run `alone`. 0: as they are.
    """

    each: int = 0
    whole: int = 0
    alone: tuple[int, ...] = ()


class Site:
    """What all workers of one run share."""

    def __init__(
        self,
        flow: Flow,
        table: Table,
        directory: str,
        home: str,
        spill: str,
        wake: tuple[int, int],
        wake_threads: tuple[int, int],
        tell: int,
        wake_devices: Sequence[tuple[int, int]] = (),
    ) -> None:
        self.flow = flow
        self.table = table
        self.directory = directory
        self.home = home
        self.spill = spill
        self.wake = wake
        self.wake_threads = wake_threads
        self.tell = tell
        #: The pipes that wake workers that serve devices, one for each of their lanes.
        self.wake_devices = list(wake_devices)
        #: What bodies want of devices; the lane of the first is DEVICE.
        self.claims = claims_of(flow)
        #: The devices that this run and those in its bodies may use, if any are known.
        self.visible = Visible()
        self.lanes = lanes_of(flow)
        #: The lanes in which bodies run: they differ where something is done ahead of them.
        self.own_lanes = own_lanes_of(flow)
        #: The lanes of workers that the supervisor wakes: of devices, and of the away worker.
        self.woken_lanes = tuple(range(DEVICE, DEVICE + len(self.claims))) + ((AWAY,) if AWAY in self.lanes else ())
        table.flow, table.lanes = flow, self.lanes
        #: The pools that this site has opened itself; others are open in the home.
        self.pools: dict[Pool, CookieSource] = {}
        #: The context in which the run began, for bodies in threads.
        self.context: contextvars.Context | None = None
        #: MAKEFLAGS for programs that bodies start.
        self.makeflags: str | None = None
        self.shares = Shares()
        #: What forked workers set to keep to their share (`_worker/library_threads.py`).
        self.settings: Any = None
        #: The file with the flow, for workers that were not forked.
        self.flow_path = ""
        #: Notes of workers in the invoking process.
        self.noted: list[bytes] = []
        #: Values of nodes that ran in the invoking process, for consumers that run there too.
        self.local: dict[int, Any] = {}
        #: What was done ahead of nodes that run in the invoking process.
        self.done_ahead: dict[int, Any] = {}
        #: Errors of nodes that ran in the invoking process, as they were raised.
        self.errors: dict[int, BaseException] = {}
        #: The call that each of these errors is of, in short.
        self.failed: dict[int, str] = {}
        #: Of a run without a directory, for records: what its bodies have printed.
        self.printed: dict[int, str] = {}
        #: How many use this site: the supervisor, and threads. The last one closes it.
        self.users = 1
        #: The name of a run that has no directory.
        self.own_id = ""
        self.stores: list[Store] = []
        #: Whether workers may have another `__main__` than the invoking process (not forked).
        self.elsewhere = False
        #: Where bodies are that threads of the invoking process wait for, by node; of a stream, by
        #: body and place (`_shared/whereabouts.py`).
        self.away: dict[int, Any] = {}
        self.stage_places: dict[tuple[int, str], None] = {}
        #: Attempts that failed and were followed by others, of a run without a directory.
        self.tries: list[dict[str, Any]] = []
        #: The progress of nodes whose threads were abandoned, for their next attempt
        #: (`_run/rearmed.py`).
        self.resumed: dict[int, Any] = {}
        #: The frame in which the run has begun, if any: files and pipes are the frame's.
        self.frame: Frame | None = None
        #: What workers that were not forked need to know, once it is known (`_worker/joining.py`).
        self.described = b""
        #: Arguments that they are told beside it, and the number under which they are told the rest
        #: once; 0: they are told all of it each time.
        self.given, self.told = b"", 0
        #: In the caller: the file to which this run is recorded; "" if it is not.
        self.record = ""
        #: The session that this run has for itself (`_run.Warm`), in the place of the open one.
        self.warm: Any = None
        self._leaving = threading.Lock()
        #: Held while a thread of this process calls back with a value.
        self.telling = threading.RLock()

    def begin_again(self, flow: Flow, directory: str, spill: str) -> None:
        """Become the site of another run in the same frame, whose flow has the same form."""
        self.flow = self.table.flow = flow
        self.directory, self.spill = directory, spill
        self.flow_path, self.described, self.given, self.told, self.record = "", b"", b"", 0, ""
        self.local, self.done_ahead, self.errors, self.failed, self.noted, self.resumed = {}, {}, {}, {}, [], {}
        self.tries, self.away = [], {}

    @property
    def run_id(self) -> str:
        """The name of the run: that of its directory, if it has one."""
        return os.path.basename(self.directory)[1:] if self.directory else self.own_id

    def queue(self, pool: Pool) -> CookieSource:
        """The cookies of a pool."""
        queue = self.pools.get(pool)
        if queue is None:
            home = home_of_tree(self.home)
            queue = home.pools.get(pool) if home is not None else None
        if queue is None:
            directory = self.home
            if pool.kind == CPUS and os.path.exists(os.path.join(self.directory, pool.file)):
                # A scheduler decorated after the process tree began has its cookies in the run's
                # directory.
                directory = self.directory
            with Deferred():
                queue = self.pools[pool] = open_pool(pool, directory, self.home)
        return queue

    @property
    def devices(self) -> Devices:
        """The cookies of devices of this process tree."""
        with Deferred():  # it opens files
            return devices_of(self.home)

    def wake_of(self, lane: int) -> tuple[int, int]:
        """The pipe that wakes workers of this lane."""
        return self.wake_devices[lane - DEVICE] if lane >= DEVICE else self.wake_threads if lane == THREAD else self.wake

    def forked(self) -> None:
        """In a forked worker: make new locks. Threads that held the old ones do not exist here."""
        self._leaving, self.telling = threading.Lock(), threading.RLock()
        if self.table.thread_lock is not None:
            self.table.thread_lock = threading.RLock()

    def leave(self) -> None:
        """Drop a reference; the last one closes the files.

        A thread past its deadline may return long after its run.
        """
        with self._leaving:
            self.users -= 1
            if self.users:
                return
        if self.frame is not None:
            for store in self.stores:
                if store is not self.frame.store:
                    store.close()
            self.table.release()
        else:
            for store in self.stores:
                store.close()
            self.table.close()
            opened, self.tell = {*self.wake, *self.wake_threads, *chain(*self.wake_devices), self.tell}, -1
            for fd in opened:
                if fd >= 0:
                    os.close(fd)
        for queue in self.pools.values():
            queue.close()

    def rest(self) -> None:
        """In a warm worker that leaves the run: keep this site for the next one in the frame, if
        nobody else can be using it."""
        if self.frame is None or self.users > 1 or self.pools or threading.active_count() > 1 or self.flow.plan is None:
            self.leave()
        else:
            self.forget_arguments()
            self.frame.keep_site(self)

    def forget_arguments(self) -> None:
        """Between two runs: hold nothing of what the bodies of the last one were given."""
        self.flow = self.table.flow = self.flow.plan or self.flow.without_constants()
        self.local, self.given = {}, b""

    def notify(self) -> None:
        """Wake the supervisor to look at the table.

        A full pipe serves as well: it is still unread.
        """
        try:
            posix.write(self.tell, b"!")
        except (BlockingIOError, BrokenPipeError):
            pass
        except OSError as error:
            if error.errno != errno.EBADF:  # the run may be over, and its files closed
                raise


def claims_of(flow: Flow) -> list[Claim]:
    """What the bodies of a flow want of devices, each kind once."""
    found = sorted({Claim(body.gpus, body.share, body.carrier == FRESH) for body in flow.bodies if body.gpus and not flow.inline})
    if len(found) > LANES - DEVICE:
        raise OptionError(f"a run has tasks with {len(found)} different pairs of gpus= and share=; it may have {LANES - DEVICE}; use fewer")
    return found


def lanes_of(flow: Flow) -> list[int]:
    """For each body, the lane of its nodes: whose ready list they go to first."""
    own = own_lanes_of(flow)
    if flow.inline or flow.rearmed:
        return own
    return [AWAY if body.ahead is not None else lane for body, lane in zip(flow.bodies, own, strict=True)]


def own_lanes_of(flow: Flow) -> list[int]:
    """For each body, the lane in which it runs.

    A body of the calling process takes the calling thread if it is the only sink, as nothing else
    is left to do then; otherwise a worker thread, or none at all where it waits elsewhere. In a
    flow that is armed again, its carrier decides.
    """
    if flow.inline:
        # What ends a set of rows is nothing to run: it is collected.
        ends = {flow.body_of[sink] for sink in flow.sinks} if flow.rearmed else ()
        return [THREAD if index in ends else HERE for index in range(len(flow.bodies))]
    claims = claims_of(flow)
    serving = [DEVICE + claims.index(Claim(body.gpus, body.share, body.carrier == FRESH)) if body.gpus else 0 for body in flow.bodies]
    if flow.rearmed:
        return [lane or body.carrier for lane, body in zip(serving, flow.bodies, strict=True)]
    here = flow.body_of[flow.sinks[0]] if len(flow.sinks) == 1 else NOBODY
    # No leaf has a body of the calling process.
    alone = here >= 0 and (flow.bodies[here].carrier != HERE or flow.body_of[flow.leaves :].count(here) == 1)
    return [
        lane or (HERE if body.carrier == HERE and index == here and alone else _lane_of(body))
        for index, (lane, body) in enumerate(zip(serving, flow.bodies, strict=True))
    ]


def _lane_of(body: Body) -> int:
    """The lane of nodes that do not take the calling thread."""
    if body.carrier in (HERE, THREAD):
        return AWAY if body.may_be_away else THREAD
    return body.carrier
