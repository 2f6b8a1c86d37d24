"""A Run is one execution of a flow: equip it, supervise it, take the value, clean up."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import resource
import signal
import threading
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from typing import Any

from entangle import _run
from entangle._run import Observer, at_termination, first_moments, library_shares, observers, reaper
from entangle._run.history import History
from entangle._run.start import chosen_way, session
from entangle._run.supervisor import MOST_THREADS, Supervisor
from entangle._run.worker_process import WorkerProcess
from entangle._shared import home as homes
from entangle._shared import limits, notes
from entangle._shared.block import block
from entangle._shared.devices import Claim, Visible
from entangle._shared.frame import LINK, ROOM, Frame
from entangle._shared.interrupts import Deferred, Terminated, plain
from entangle._shared.removal import DIRECTORY
from entangle._shared.site import Site, claims_of, lanes_of, own_lanes_of
from entangle._shared.store import Store
from entangle._shared.table import FINISHED, MOST_WORKERS, RUNNING, STARTED_AT, STOP, Table
from entangle._shared.tracebacks import passes_on
from entangle._shared.whereabouts import Whereabouts
from entangle._watch.outline import LASTING, write_outline
from entangle._worker import importing, inline
from entangle._worker.away import AwayFunction
from entangle._worker.failures import call_of, note_call, prepare
from entangle._worker.worker import Worker, here
from entangle.cookies import CookieQueue, check_jobserver
from entangle.errors import EntangleError, RunAtImportError, RunCancelledError
from entangle.flow import AWAY, HERE, IN_CALLER, PROCESS, THREAD, Flow
from entangle.pools import agree, compare

importing.runs_bodies(Worker.work)
importing.unpickles(Store.get)


class Run:
    """One execution of a flow with a single sink.

    `way` says how workers are started, `timeout` after how many seconds the run is stopped, and
    `workers` how many processes, and threads, it has at most.
    """

    def __init__(
        self,
        flow: Flow,
        way: str | None = None,
        observer: Observer | None = None,
        timeout: float | None = None,
        workers: int | None = None,
    ) -> None:
        importing.refuse_run(here.worker is not None and here.worker.in_process)
        self.flow = inline.inlined(flow) if inline.on else flow
        self.way = chosen_way(way)
        check_jobserver()  # here, and not in a worker
        self.observers = [*observers, observer] if observer is not None else list(observers)
        #: The worker in whose body this run was called, if any.
        self.caller = here.worker
        #: Whether a worker process of another run has started this one.
        self.nested = here.worker is not None and here.worker.in_process
        self.id = os.urandom(8).hex()
        #: The run and the node in whose body this run was called, if any.
        self.parent = (here.worker.site.run_id, here.worker.node()) if here.worker is not None else _run.called_for.get()
        #: The context of the call, which holds tags. Another thread may execute the run.
        self.context = contextvars.copy_context()
        self.timeout = timeout
        self.workers = _fewest(workers, self.caller.site.table.header[MOST_WORKERS] if self.caller is not None else 0)
        #: What ended the run, if not its value; for observers, when it has ended.
        self.raised: BaseException | None = None
        self.table: Table | None = None
        self.history: History | None = None
        self.supervisor: Supervisor | None = None
        #: The session that this run has for itself, in the place of the one that is open.
        self.warm: _run.Warm | None = None
        self.cancelled = False
        #: Whether it may be over before anybody could look at it: nobody supervises it yet.
        self.brief = False
        #: The calls whose values a depot had, so that they are no nodes of it: task, key, when the
        #: value was made (seconds since 1970).
        self.taken: list[tuple[str, str, float]] = []
        #: Whether an observer wants what bodies print.
        self.wants_prints = False
        self._site: Site | None = None
        self._outlined = self._opening = self._in_order = False
        #: Where its nodes are that are away; None until there is one.
        self.whereabouts: Whereabouts | None = None
        #: The directory in which other processes see it; "" until they do.
        self._seen_in = ""
        #: The directories of a run that needs none itself, made to show its table to other
        #: processes.
        self._shown: tuple[str, str] | None = None
        self._guard = threading.Lock()

    def stand_for(self, other: Run) -> None:
        """Be what another run was to be, which does not begin: of the same caller, with the same
        observers."""
        self.way, self.observers, self.context = other.way, other.observers, other.context
        self.caller, self.nested, self.parent = other.caller, other.nested, other.parent
        self.timeout, self.workers = other.timeout, other.workers

    @property
    def name(self) -> str:
        """The name of the run: the task whose value it gives."""
        return self.flow.name(self.flow.sinks[0])

    @property
    def site(self) -> Site | None:
        """What the workers of the run share; None before it begins and after it has ended."""
        return self.supervisor.site if self.supervisor is not None else self._site

    @property
    def workers_started(self) -> int:
        """How many workers it has started so far; 0 after it has ended."""
        return self.supervisor.serial if self.supervisor is not None else int(self._site is not None)

    def how_far(self) -> dict[str, Any]:
        """What the stages have done so far: nothing, in a run that is not rearmed."""
        return {}

    def reason(self) -> BaseException | None:
        """What ended the run, if not its value; for observers, when it has ended."""
        return self.raised

    @property
    def many(self) -> bool:
        """Whether it is a stream: any number of values may go through it."""
        return False

    def take_prints(self) -> None:
        """Have what bodies print pass through this process. For observers, when the run is about to
        start."""
        self.wants_prints = True
        if self.supervisor is not None:
            self.supervisor.capture = True

    def value(self) -> Any:
        """Run the flow in this thread and return the value of its sink.

        Raises the error of the task that failed first, RunCancelledError after `cancel`.
        """
        outer = here.worker
        if outer is None and self.caller is not None:
            return self._value_for(self.caller)
        with outer.waiting_for(self.cancel) if outer is not None else contextlib.nullcontext():
            if outer is None and threading.current_thread() is threading.main_thread():
                with _sigterm_ends_the_run():
                    return self._execute()
            return self._execute()

    def _value_for(self, caller: Worker) -> Any:
        """Run it in a helper thread for a body that waits elsewhere. Stopping the body stops the
        run."""
        here.worker = caller
        try:
            with caller.ending_with(self.cancel):
                return self._execute()
        finally:
            here.worker = None

    def cancel(self) -> None:
        """End the run from another thread; `value` raises RunCancelledError there."""
        with self._guard:
            self.cancelled = True
            if self.supervisor is not None:
                self.supervisor.cancel()

    def _execute(self) -> Any:
        if first_moments.may_be_over_soon(self):
            value = first_moments.value_soon(self)
            if value is not first_moments.LATER:
                return value
        leaving: list[WorkerProcess] = []
        large: list[str] = []
        expires = time.monotonic() + self.timeout if self.timeout is not None else None
        room = limits.room_of_process()
        with Deferred() as deferred:
            with deferred.lifted():
                room.enter(self.caller is None, lambda: self.cancelled)
            self._opening = True
            try:
                return self._supervised(leaving, large, deferred, expires)
            finally:
                try:
                    reaper.leave(leaving, large)
                finally:
                    self._has_opened(room)
                    room.leave()

    def _has_opened(self, room: Any) -> None:
        """Note that the run has all the resources that it needs, or is over."""
        if self._opening:
            self._opening = False
            room.opened()

    def _supervised(self, still_ending: list[WorkerProcess], large: list[str], deferred: Deferred, expires: float | None) -> Any:
        """Equip the run, supervise it, take its value, and clean up. Workers that are still ending
        are added to `still_ending`, and directories that take long to remove to `large`."""
        with contextlib.ExitStack() as leaving:
            with limits.explaining_limits(f"the run of {self.name!r} cannot begin"):
                site, budget, listen, slots, processes = self._equipped(leaving, large)
            store = site.stores[0] if site.stores else None
            supervisor = self._make_supervisor(site, store, self.way, budget, listen, slots, processes, self._looked)
            with self._guard:
                self.table, self.supervisor = site.table, supervisor
                supervisor.cancelled = self.cancelled
            supervisor.limit(self.timeout, expires, self.workers)
            with limits.explaining_limits(f"the run of {self.name!r} cannot begin"):
                for observer in self.observers:
                    observer.started(self)
            return self._supervised_by(supervisor, site, store, still_ending, deferred)

    def _supervised_by(
        self, supervisor: Supervisor, site: Site, store: Store | None, still_ending: list[WorkerProcess], deferred: Deferred
    ) -> Any:
        """Supervise the run, take its value, and end its workers."""
        try:
            with deferred.lifted():
                supervisor.supervise()
                if self.nested:
                    supervisor.finish()
                value = self._outcome(supervisor, site, store)
            self._in_order = True
            return value
        except BaseException as error:
            self.raised = error
            raise
        finally:
            supervisor.finish()
            still_ending += supervisor.leaving
            for observer in self.observers:
                observer.ended(self)
            # The error holds the frames that hold this run: a reference cycle.
            self.raised = None
            with self._guard:
                self.table = self.supervisor = None

    # Without a supervisor (`first_moments.py`) ----------------------------------------------------

    def begin_in(self, site: Site) -> None:
        """Begin in a frame, without a supervisor yet."""
        self.table, self._site, self.brief = site.table, site, True
        for observer in self.observers:
            observer.started(self)

    def is_under_way(self) -> None:
        """A worker has been told to begin: there is a moment for what observers have put off."""
        for observer in self.observers:
            observer.looked(self)

    def over_in(self, frame: Frame, site: Site, warm: _run.Warm, lent: WorkerProcess) -> Any:
        """Take the value of a run that is over, which has had no supervisor."""
        try:
            return self._value_of(self.flow.sinks[0], site, site.stores[0])
        except BaseException as error:
            self.raised = error
            raise
        finally:
            site.table.header[STOP] = 1
            for observer in self.observers:
                observer.ended(self)
            self.table = self._site = self.raised = None
            library_shares.end(self.id)
            lent.close()
            large: list[str] = []
            self.leave_frame(warm, frame, large)
            if large:
                reaper.leave([], large)

    def supervised_in(
        self,
        frame: Frame,
        site: Site,
        warm: _run.Warm,
        workers: list[WorkerProcess],
        deferred: Deferred,
        error: BaseException | None = None,
    ) -> Any:
        """Supervise a run that has begun in a frame, with these workers. An error has come
        meanwhile: it ends the run."""
        still_ending: list[WorkerProcess] = []
        large: list[str] = []
        frame.forget_row(let_go=False)  # its site ends with the run
        self.brief = False
        home = homes.home()
        slots = site.table.slot_count
        try:
            with contextlib.ExitStack() as leaving:
                home.run_begins()
                leaving.callback(lambda: home.run_ends(self._in_order))
                leaving.callback(self.leave_frame, warm, frame, large)
                leaving.callback(library_shares.end, self.id)
                leaving.callback(site.leave)
                supervisor = self._make_supervisor(
                    site, site.stores[0], self.way, home.budget, frame.listen, slots, slots - 2, self._looked
                )
                supervisor.adopt(workers, error)
                supervisor.capture = supervisor.capture or self.wants_prints
                with self._guard:
                    self.supervisor = supervisor
                    supervisor.cancelled = self.cancelled
                supervisor.limit(None, None, self.workers)
                for observer in self.observers:
                    observer.looked(self)
                return self._supervised_by(supervisor, site, site.stores[0], still_ending, deferred)
        finally:
            self._site = None
            reaper.leave(still_ending, large)

    def _equipped(self, leaving: contextlib.ExitStack, large: list[str]) -> tuple[Site, CookieQueue | None, int, int, int]:
        """Make what the run needs; `leaving` takes it down. Return what the workers share, the
        budget, the descriptor that workers write to, and how many slots and processes there may be.
        The caller has a store where processes take part."""
        flow = self.flow
        claims = claims_of(flow)
        visible = self._visible(claims)
        first, lanes = lanes_of(flow), own_lanes_of(flow)
        used = {lane for body in flow.bodies_used() for lane in (first[body], lanes[body])}
        for one in flow.bodies:
            for part in (one.ahead, one.function):
                if isinstance(part, AwayFunction):
                    part.prepare()
        needs_files = not used <= {*IN_CALLER} or any(body.pools or body.shared_memory or body.retry for body in flow.bodies)
        directory = spill = home_path = ""
        budget: CookieQueue | None = None
        frame: Frame | None = None
        if needs_files:
            home = homes.home()
            home_path, budget = home.path, home.budget
            if home.pid == os.getpid():
                home.run_begins()
                leaving.callback(lambda: home.run_ends(self._in_order))
            warm = self._session_for(home, used, claims)
            frame = warm.frame(home) if warm is not None else None
            if warm is not None and frame is not None:
                frame.move(os.path.join(home.path, f"r{self.id}"), os.path.join(home.spill, f"r{self.id}"))
                directory, spill = frame.directory, frame.spill
                leaving.callback(self.leave_frame, warm, frame, large)
            else:
                directory, spill = self._make_directory(home, self.id)
                leaving.callback(_remove, directory, spill, large)
            for pool in _open_pools(home, flow, directory):
                leaving.callback(pool.close)
        if flow.guarded is not None and not used <= {*IN_CALLER}:
            prepare(flow)
        processes = min(_fewest(_most_workers(), self.workers), flow.count) if not used <= {*IN_CALLER} else 0
        # A thread past its deadline keeps its slot. So each attempt needs a slot of its own.
        in_threads = (flow.bodies[body].retry + 1 for body in flow.body_of if lanes[body] == THREAD)
        threads = min(2 * MOST_THREADS, sum(in_threads)) if THREAD in used else 0
        slots = 2 + processes + threads + (AWAY in used)
        if frame is not None:
            return self._equipped_in(frame, leaving, home, lanes, slots, processes, visible)
        with contextlib.ExitStack() as undone:  # until the site exists, which closes all of it
            try:
                if processes:
                    table = Table.create(flow, slots, first, os.path.join(directory, "table"))
                else:
                    table = Table.create(flow, slots, first, None, homes.nameless() if threads or AWAY in used else -1)
            except OSError as error:
                if not processes or error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                # Shared memory has no room even for the table: put the whole run on disk.
                os.makedirs(spill, mode=0o700, exist_ok=True)
                try:
                    table = Table.create(flow, slots, first, os.path.join(spill, "table"))
                except OSError:
                    doing = f"no room for the table of {flow.count:,} nodes"
                    raise limits.limit_error(doing, error) or EntangleError(f"{doing}: {error}") from None
                directory = spill
            undone.callback(table.close)
            leaving.callback(self._hide)
            if not used.isdisjoint((THREAD, AWAY)) or len(used) > 1:
                table.thread_lock = threading.RLock()
            wake = _pipe(undone) if processes else (-1, -1)
            wake_threads = _pipe(undone) if threads else (-1, -1)
            wake_devices = [_pipe(undone) for _ in claims]
            listen, tell = _pipe(undone)
            for fd in (listen, tell, wake[1], wake_threads[1], *(write for _, write in wake_devices)):
                if fd >= 0:
                    os.set_blocking(fd, False)
            site = Site(flow, table, directory, home_path, spill, wake, wake_threads, tell, wake_devices)
            site.visible = visible
            site.elsewhere = self.way != "fork"
            if processes:
                site.shares = library_shares.begin(self.id, flow, lanes, home.most, processes, self.caller)
                leaving.callback(library_shares.end, self.id)
                site.stores.append(Store(directory, table, 0, 0, spill))
            undone.pop_all()
        leaving.callback(os.close, listen)
        site.own_id = self.id
        site.warm = self.warm
        site.context = self.context
        leaving.callback(site.leave)
        if needs_files:
            site.makeflags = home.makeflags
        return site, budget, listen, slots, processes

    def _session_for(self, home: homes.Home, used: set[int], claims: list[Claim]) -> _run.Warm | None:
        """The session in which this run may begin in a frame, if one is open and the run is
        small."""
        if self.nested or claims or self.flow.rearmed or not used <= {PROCESS, HERE} or self.way not in ("auto", "forkserver"):
            return None
        room = Table.size(self.flow.count, _most_workers() + 2, len(self.flow.bodies), len(self.flow.pools)) <= ROOM
        return (self.warm or session()) if room and home.pid == os.getpid() else None

    @staticmethod
    def leave_frame(warm: _run.Warm, frame: Frame, large: list[str]) -> None:
        """Give a frame back, with nothing of this run in it."""
        with contextlib.suppress(OSError):  # somebody has removed the directory
            if not frame.spoiled and not frame.outgrown and _empty(frame):
                warm.give_frame(frame)
                return
        frame.close()
        _remove(frame.directory, frame.spill, large)

    def _equipped_in(
        self, frame: Frame, leaving: contextlib.ExitStack, home: homes.Home, lanes: list[int], slots: int, processes: int, visible: Visible
    ) -> tuple[Site, CookieQueue | None, int, int, int]:
        """Make what the run needs, as `_equipped` does, in a frame."""
        frame.empty_pipes()
        frame.forget_row()
        notes.begin_in(frame.notes)
        table = Table.again(frame.memory, frame.table_fd, self.flow, slots, lanes)
        if HERE in {lanes[body] for body in self.flow.bodies_used()}:
            table.thread_lock = threading.RLock()
        site = Site(self.flow, table, frame.directory, home.path, frame.spill, frame.wake, (-1, -1), frame.tell)
        site.frame = frame
        site.visible = visible
        site.elsewhere = True
        site.shares = library_shares.begin(self.id, self.flow, lanes, home.most, processes, self.caller)
        leaving.callback(library_shares.end, self.id)
        site.stores.append(store := frame.store_for(table, 0, 0))
        store.elsewhere = True
        site.own_id = self.id
        site.warm = self.warm
        site.context = self.context
        site.makeflags = home.makeflags
        leaving.callback(site.leave)
        return site, home.budget, frame.listen, slots, processes

    def _visible(self, claims: list[Claim]) -> Visible:
        """The devices that this run may use: those of the run around it, else what is found here.

        Raises DeviceError if there are fewer than a body wants.
        """
        outer = self.caller.site.visible if self.caller is not None else Visible()
        if not claims:
            return outer
        from entangle._run import gpus

        body = max(self.flow.bodies, key=lambda body: body.gpus)
        return gpus.needed(body.name, body.gpus, outer)

    def _make_supervisor(self, *known: Any) -> Supervisor:
        """The supervisor of this run."""
        return Supervisor(*known)

    def _looked(self) -> None:
        self._has_opened(limits.room_of_process())
        if not self._outlined:
            self._outline()
        supervisor = self.supervisor
        if supervisor is not None and (supervisor.away is not None or supervisor.site.away):
            self._look_at_away(supervisor)
        for observer in self.observers:
            observer.looked(self)

    def _look_at_away(self, supervisor: Supervisor) -> None:
        """See where the nodes are that run elsewhere, if it is time."""
        told = self.whereabouts = self.whereabouts or Whereabouts()
        if not told.is_due():
            return
        states, waited_for = supervisor.table.states, supervisor.site.away
        for node in list(waited_for):
            if states[node] != RUNNING:
                waited_for.pop(node, None)
        away = list(supervisor.away[1].calls.values()) if supervisor.away is not None else []
        told.look([*away, *waited_for.values()], self._seen_in)

    def _outline(self) -> None:
        """Write names and edges for `entangle top` and the page, once the run has lasted a
        while."""
        table, supervisor = self.table, self.supervisor
        if table is None or supervisor is None or time.monotonic_ns() - table.header[STARTED_AT] < LASTING * 1e9:
            return
        self._outlined = True
        directory = supervisor.site.directory
        if table.fd < 0:
            try:
                if not directory:
                    self._shown = self._make_directory(homes.home(), self.id)
                    directory = self._shown[0]
                table.show(os.path.join(directory, "table"))
            except (OSError, EntangleError):  # nothing depends on it
                return
        self._seen_in = directory
        write_outline(directory, self.flow, parent=self.parent)

    def _hide(self) -> None:
        if self._shown is not None:
            _remove(*self._shown, [])

    @passes_on
    def _raise_failure(self, supervisor: Supervisor, site: Site) -> None:
        """Raise what ended the run, if it was not its value."""
        error = supervisor.failure()
        if error is not None:
            try:
                raise error
            finally:
                # The traceback holds this frame, which holds the error: a reference cycle.
                del error
        if not site.table.header[FINISHED]:
            raise RunCancelledError("the run was cancelled before it had a value")

    @passes_on
    def _outcome(self, supervisor: Supervisor, site: Site, store: Store | None) -> Any:
        self._raise_failure(supervisor, site)
        (sink,) = self.flow.sinks
        return self._value_of(sink, site, store)

    @passes_on
    def _value_of(self, node: int, site: Site, store: Store | None) -> Any:
        """The value of a node that is done, for the caller, who takes it for the last time."""
        if node in site.local:
            return site.local.pop(node) if site.table.readers[node] <= 1 else site.local[node]
        assert store is not None
        _, _, offset, size, where, _, _, _ = site.table.record(node)
        try:
            return store.get((where, offset, size))
        except RunAtImportError:
            raise
        except Exception as problem:
            what = f"the value of task {self.flow.name(node)!r} cannot be unpickled in this process"
            error = store.unpickling_error(problem, (where, offset, size), what)
            note_call(error, self.flow, node, call_of(site, store, node))
            raise error from problem

    @staticmethod
    def _make_directory(home: homes.Home, run_id: str) -> tuple[str, str]:
        """Make the directory of this run, inside that of the run around it if there is one. Return
        it with the name of its twin on disk."""
        name = f"r{run_id}"
        outer = here.worker
        if outer is None or not outer.in_process:
            return home.make_directory(name)
        directory, spill = os.path.join(outer.site.directory, name), os.path.join(outer.site.spill, name)
        os.mkdir(directory, 0o700)
        return directory, spill


def _fewest(*limits: int | None) -> int:
    """The least of these limits that are any; 0 if none is."""
    return min((limit for limit in limits if limit), default=0)


def _most_workers() -> int:
    """How many worker processes a run may have.

    That is ENTANGLE_MAX_WORKERS, or 512, and less where descriptors are short: a worker needs two
    or three.
    """
    given = os.environ.get("ENTANGLE_MAX_WORKERS", "512")
    try:
        wanted = int(given)
    except ValueError:
        wanted = 0
    if wanted < 1:
        raise EntangleError(
            f"ENTANGLE_MAX_WORKERS={given!r} is no whole number above 0; set it to the most worker processes of a run, such as 16"
        )
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, max(2, (soft - 128) // 3))
    return wanted


def _pipe(undone: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends `undone` closes."""
    ends = os.pipe()
    for end in ends:
        undone.callback(os.close, end)
    return ends


def _open_pools(home: homes.Home, flow: Flow, directory: str) -> list[CookieQueue]:
    """Open the pools that the flow needs: in the home if it is ours, else in the run's own
    directory. Those of limits always lie in the home, where the whole tree finds them."""
    ours = home.pid == os.getpid()
    for name, (task, stated) in compare((body.name, body.pools) for body in flow.bodies).items():
        agree(home.path, name, task, stated, replace=ours)
    for pool in flow.pools:
        if pool.stays:
            homes.make_pool(pool, home.path, home.cpus, home.spill)
    others = [pool for pool in flow.pools if not pool.stays]
    if ours:
        home.open_pools(set(others))
        return []
    missing = [pool for pool in others if not os.path.exists(os.path.join(home.path, pool.file))]
    return [homes.open_queue(pool, directory, home.path, home.cpus, home.spill) for pool in missing]


def _empty(frame: Frame) -> bool:
    """Remove what a run has left in a frame. Return False if that is much."""
    if frame.is_untouched():
        return True
    stays = ("table", "values", LINK) if frame.link else ("table", "values")
    with os.scandir(frame.directory) as found:
        entries = [entry for entry in found if entry.name not in stays]
    if not entries:
        frame.note_size()
        return True
    if any(entry.is_dir(follow_symlinks=False) for entry in entries) or os.path.exists(frame.spill):
        return False
    if _freed(entries) > reaper.MUCH:
        return False
    for entry in entries:
        os.unlink(entry.path)
    return True


def _freed(entries: Iterable[os.DirEntry[str]]) -> int:
    """How many bytes are free once these files are removed, if nobody has them mapped. Spare files
    stay: they have another name."""
    found = [entry.stat(follow_symlinks=False) for entry in entries]
    names = Counter(file.st_ino for file in found)
    return sum(file.st_size // file.st_nlink for file in found if names[file.st_ino] == file.st_nlink)


def _remove(directory: str, spill: str, large: list[str]) -> None:
    """Remove the files of a run. What is mapped stays in memory. A directory with large values is
    left to `large`: the kernel frees two megabytes in a millisecond, and the caller has its value
    already."""
    with contextlib.suppress(OSError):
        # Open the directory once, and not through a link. What is unlinked then lies in the
        # directory that was listed, even if the path leads elsewhere by now.
        fd = os.open(directory, DIRECTORY)
        try:
            with os.scandir(fd) as found:
                entries = list(found)
            if _freed(entry for entry in entries if entry.name.startswith("v") and entry.name != "values") > reaper.MUCH:
                large.append(directory)
                if os.path.exists(spill):
                    large.append(spill)
                return
            for entry in entries:
                os.unlink(entry.name, dir_fd=fd)
        finally:
            os.close(fd)
        os.rmdir(directory)
    for left in (directory, spill):
        if os.path.exists(left):  # left by a nested run that was killed, or spilled
            import shutil

            # It refuses a link, and uses descriptors below.
            shutil.rmtree(left, ignore_errors=True)


@block
def _sigterm_ends_the_run() -> Iterator[None]:
    """During a run, let SIGTERM end the run in good order first: workers, shared memory, files.
    Then let it end the process."""
    if plain.getsignal(_SIGTERM) != signal.SIG_DFL:
        yield  # the program handles SIGTERM itself
        return

    plain.signal(_SIGTERM, _terminated)
    try:
        yield
    except Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for leave in at_termination:
            leave()
        homes.leave()
        os.kill(os.getpid(), signal.SIGTERM)
        # The first process of a container outlives that.
        raise SystemExit(128 + signal.SIGTERM) from None
    finally:
        # A body that ran here may have set a handler of its own.
        _forget_sigterm()


def _terminated(*_: object) -> None:
    raise Terminated


def _forget_sigterm() -> None:
    """End the process by SIGTERM as before, unless somebody else handles it."""
    if plain.getsignal(_SIGTERM) is _terminated:
        plain.signal(_SIGTERM, int(signal.SIG_DFL))


# A process that another thread forks meanwhile, as of a pool, has no part in the run. What it runs
# may catch any exception, and would go on when it is to end.
os.register_at_fork(after_in_child=_forget_sigterm)

#: As a plain number: an enum takes longer to read than the call.
_SIGTERM = int(signal.SIGTERM)
