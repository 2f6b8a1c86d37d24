"""A Run is one execution of a flow: make what it needs, supervise it, take the value, leave nothing behind."""

from __future__ import annotations

import contextlib
import contextvars
import errno
import os
import resource
import signal
import threading
import time
from collections.abc import Iterator
from typing import Any

from entangle._run import Observer, at_termination, observers, reaper
from entangle._run.start import chosen_way
from entangle._run.supervisor import MOST_THREADS, Supervisor
from entangle._run.worker_process import WorkerProcess
from entangle._shared import home as homes
from entangle._shared import limits
from entangle._shared.block import block
from entangle._shared.interrupts import Deferred, Terminated
from entangle._shared.removal import DIRECTORY
from entangle._shared.site import Site, lanes_of
from entangle._shared.store import Store
from entangle._shared.table import FINISHED, STARTED_AT, Table
from entangle._shared.tracebacks import passes_on
from entangle._watch.outline import LASTING, write_outline
from entangle._worker import importing
from entangle._worker.failures import call_of, note_call
from entangle._worker.worker import Worker, here
from entangle.cookies import CookieQueue
from entangle.errors import EntangleError, RunAtImportError, RunCancelledError
from entangle.flow import FRESH, PROCESS, THREAD, Flow

importing.runs_bodies(Worker.work)
importing.unpickles(Store.get)


class Run:
    """One execution of a flow with a single sink. `way` says how workers are started."""

    def __init__(self, flow: Flow, way: str | None = None, observer: Observer | None = None) -> None:
        importing.refuse_run(here.worker is not None and here.worker.in_process)
        self.flow = flow
        self.way = chosen_way(way)
        self.observers = [*observers, observer] if observer is not None else list(observers)
        #: In whose body this run was called, if in one.
        self.caller = here.worker
        #: Whether a worker process of another run has started this one.
        self.nested = here.worker is not None and here.worker.in_process
        self.id = os.urandom(8).hex()
        #: The run and the node in whose body this run was called, where it was called in one.
        self.parent = (here.worker.site.run_id, here.worker.node()) if here.worker is not None else None
        #: What was said around the call, such as tags; the run itself may be executed by another thread.
        self.context = contextvars.copy_context()
        #: What ended the run, if not its value; for observers, when it has ended.
        self.raised: BaseException | None = None
        self.table: Table | None = None
        self.supervisor: Supervisor | None = None
        self._cancelled = False
        self._outlined = self._opening = self._in_order = False
        #: The directories of a run that has none but to be seen from outside.
        self._shown: tuple[str, str] | None = None
        self._guard = threading.Lock()

    @property
    def name(self) -> str:
        """What the run is known by: the task whose value it gives."""
        return self.flow.body(self.flow.sinks[0]).name

    @property
    def site(self) -> Site | None:
        """What the workers of the run share; None before and after."""
        return self.supervisor.site if self.supervisor is not None else None

    @property
    def workers_started(self) -> int:
        """How many workers it has had so far; 0 when it is over."""
        return self.supervisor.serial if self.supervisor is not None else 0

    def reason(self) -> BaseException | None:
        """What ended the run, if not its value; for observers, when it has ended."""
        return self.raised

    def value(self) -> Any:
        """Run the flow in this thread and give the value of its sink. Raises the error of the task that failed first."""
        outer = here.worker
        if outer is None and self.caller is not None:
            return self._value_for(self.caller)
        with outer.waiting_for(self.cancel) if outer is not None else contextlib.nullcontext():
            if outer is None and threading.current_thread() is threading.main_thread():
                with _sigterm_ends_the_run():
                    return self._execute()
            return self._execute()

    def _value_for(self, caller: Worker) -> Any:
        """Run it for a body that does something else meanwhile, or waits in a loop: who stops that stops the run too."""
        here.worker = caller
        try:
            with caller.ending_with(self.cancel):
                return self._execute()
        finally:
            here.worker = None

    def cancel(self) -> None:
        """End the run from another thread; `value` raises RunCancelledError there."""
        with self._guard:
            self._cancelled = True
            if self.supervisor is not None:
                self.supervisor.cancel()

    def _execute(self) -> Any:
        leaving: list[WorkerProcess] = []
        large: list[str] = []
        room = limits.room_of_process()
        with Deferred() as deferred:
            with deferred.lifted():
                room.enter(self.caller is None, lambda: self._cancelled)
            self._opening = True
            try:
                return self._supervised(leaving, large, deferred)
            finally:
                try:
                    reaper.leave(leaving, large)
                finally:
                    self._has_opened(room)
                    room.leave()

    def _has_opened(self, room: Any) -> None:
        """The run has what it needs to begin, or is over."""
        if self._opening:
            self._opening = False
            room.opened()

    def _supervised(self, seen_off: list[WorkerProcess], large: list[str], deferred: Deferred) -> Any:
        """Make what the run needs, supervise it, take the value, take everything down. Workers that are still on their
        way out are added to `seen_off`, directories that take long to remove to `large`."""
        with contextlib.ExitStack() as leaving:
            with limits.explaining_limits(f"the run of {self.name!r} cannot begin"):
                site, budget, listen, slots, processes = self._equipped(leaving, large)
            table = site.table
            store = site.stores[0] if site.stores else None
            supervisor = self._make_supervisor(site, store, self.way, budget, listen, slots, processes, self._looked)
            with self._guard:
                self.table, self.supervisor = table, supervisor
                supervisor.cancelled = self._cancelled
            for observer in self.observers:
                observer.started(self)
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
                seen_off += supervisor.leaving
                for observer in self.observers:
                    observer.ended(self)
                self.raised = None  # it would keep itself alive, and with it all that its frames hold
                with self._guard:
                    self.table = self.supervisor = None

    def _equipped(self, leaving: contextlib.ExitStack, large: list[str]) -> tuple[Site, CookieQueue | None, int, int, int]:
        """Make what the run needs: what its workers share, with the store of the caller where processes take part, the budget,
        the descriptor by which workers call the supervisor, how many slots and processes there may be. `leaving` takes it down."""
        flow = self.flow
        lanes = lanes_of(flow)
        used = {lanes[body] for body in set(flow.body_of)}
        needs_files = bool(used & {PROCESS, FRESH}) or any(body.pool or body.shared_memory or body.retry for body in flow.bodies)
        directory = spill = home_path = ""
        budget: CookieQueue | None = None
        if needs_files:
            home = homes.home()
            home_path, budget = home.path, home.budget
            if home.pid == os.getpid():
                home.run_begins()
                leaving.callback(lambda: home.run_ends(self._in_order))
            directory, spill = self._make_directory(home, self.id)
            leaving.callback(_remove, directory, spill, large)
            for pool in _open_pools(home, flow, directory):
                leaving.callback(pool.close)
        processes = min(_most_workers(), flow.count) if used & {PROCESS, FRESH} else 0
        # One past its deadline keeps its slot, so a thread that may be tried again needs more than one.
        in_threads = (flow.bodies[body].retry + 1 for body in flow.body_of if lanes[body] == THREAD)
        threads = min(2 * MOST_THREADS, sum(in_threads)) if THREAD in used else 0
        slots = 2 + processes + threads
        with contextlib.ExitStack() as undone:  # until the site is there, which closes all of it
            try:
                if processes:
                    table = Table.create(flow, slots, lanes, os.path.join(directory, "table"))
                else:
                    table = Table.create(flow, slots, lanes, None, homes.nameless() if threads else -1)
            except OSError as error:
                if not processes or error.errno in (errno.EMFILE, errno.ENFILE):
                    raise
                # Shared memory has no room even for the table: the whole run lives on disk.
                os.makedirs(spill, mode=0o700, exist_ok=True)
                try:
                    table = Table.create(flow, slots, lanes, os.path.join(spill, "table"))
                except OSError:
                    doing = f"no room for the table of {flow.count:,} nodes"
                    raise limits.limit_error(doing, error) or EntangleError(f"{doing}: {error}") from None
                directory = spill
            undone.callback(table.close)
            leaving.callback(self._hide)
            if THREAD in used or len(used) > 1:
                table.thread_lock = threading.RLock()
            wake = _pipe(undone) if processes else (-1, -1)
            wake_threads = _pipe(undone) if threads else (-1, -1)
            listen, tell = _pipe(undone)
            for fd in (listen, tell, wake[1], wake_threads[1]):
                if fd >= 0:
                    os.set_blocking(fd, False)
            site = Site(flow, table, directory, home_path, spill, wake, wake_threads, tell)
            site.elsewhere = self.way != "fork"
            if processes:
                site.stores.append(Store(directory, table, 0, 0, spill))
            undone.pop_all()
        leaving.callback(os.close, listen)
        site.own_id = self.id
        site.context = self.context
        leaving.callback(site.leave)
        if needs_files:
            site.makeflags = home.makeflags
        return site, budget, listen, slots, processes

    def _make_supervisor(self, *known: Any) -> Supervisor:
        """Who supervises the run."""
        return Supervisor(*known)

    def _looked(self) -> None:
        self._has_opened(limits.room_of_process())
        if not self._outlined:
            self._outline()
        for observer in self.observers:
            observer.looked(self)

    def _outline(self) -> None:
        """Write down names and edges for who watches from outside, once the run has lasted a while."""
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
        write_outline(directory, self.flow, parent=self.parent)

    def _hide(self) -> None:
        if self._shown is not None:
            _remove(*self._shown, [])

    @passes_on
    def _outcome(self, supervisor: Supervisor, site: Site, store: Store | None) -> Any:
        error = supervisor.failure()
        if error is not None:
            try:
                raise error
            finally:
                del error  # else the traceback would keep itself alive, and with it all that its frames hold
        if not site.table.header[FINISHED]:
            raise RunCancelledError("the run was cancelled before it had a value")
        (sink,) = self.flow.sinks
        if sink in site.local:
            return site.local.pop(sink)
        assert store is not None
        _, _, offset, size, where, _, _, _ = site.table.record(sink)
        try:
            return store.get((where, offset, size))
        except RunAtImportError:
            raise
        except Exception as problem:
            what = f"the value of task {self.flow.body(sink).name!r} cannot be unpickled in this process"
            error = store.unpickling_error(problem, (where, offset, size), what)
            note_call(error, self.flow, sink, call_of(site, store, sink))
            raise error from problem

    @staticmethod
    def _make_directory(home: homes.Home, run_id: str) -> tuple[str, str]:
        """A directory for this run, in that of the run around it where there is one; and the name of its twin on disk."""
        name = f"r{run_id}"
        outer = here.worker
        if outer is not None and outer.in_process:
            directory, spill = os.path.join(outer.site.directory, name), os.path.join(outer.site.spill, name)
        else:
            directory, spill = os.path.join(home.path, name), os.path.join(home.spill, name)
        os.mkdir(directory, 0o700)
        return directory, spill


def _most_workers() -> int:
    """How many worker processes a run may have: ENTANGLE_MAX_WORKERS, else 512, as far as descriptors go (two or three each)."""
    given = os.environ.get("ENTANGLE_MAX_WORKERS", "512")
    try:
        wanted = int(given)
    except ValueError:
        raise EntangleError(f"ENTANGLE_MAX_WORKERS={given}: it is a whole number of processes") from None
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != resource.RLIM_INFINITY:
        wanted = min(wanted, max(2, (soft - 128) // 3))
    return max(1, wanted)


def _pipe(undone: contextlib.ExitStack) -> tuple[int, int]:
    """A pipe whose ends `undone` closes."""
    ends = os.pipe()
    for end in ends:
        undone.callback(os.close, end)
    return ends


def _open_pools(home: homes.Home, flow: Flow, directory: str) -> list[CookieQueue]:
    """Have the pools that the flow wants: in the home where that is ours, else in the run's own directory."""
    sizes = {body.pool for body in flow.bodies if body.pool}
    if home.pid == os.getpid():
        home.open_pools(sizes)
        return []
    missing = [size for size in sizes if not os.path.exists(os.path.join(home.path, f"cookies-{size}"))]
    return [CookieQueue.create(os.path.join(directory, f"cookies-{size}"), home.cpus[:size], home.spill) for size in missing]


def _remove(directory: str, spill: str, large: list[str]) -> None:
    """Remove the files of a run; who has mapped one of its values keeps the memory. A directory with much in it is left to
    `large`: the kernel takes half a millisecond to free a megabyte, and the caller has his value already."""
    with contextlib.suppress(OSError):
        # Opened once, and not through a link: what is unlinked lies in the directory that was listed, whatever has its name now.
        fd = os.open(directory, DIRECTORY)
        try:
            with os.scandir(fd) as found:
                entries = list(found)
            values = (entry for entry in entries if entry.name.startswith("v") and entry.name != "values")
            if sum(entry.stat(follow_symlinks=False).st_size for entry in values) > reaper.MUCH:
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
        if os.path.exists(left):  # what a nested run that was killed has left, or what was spilled
            import shutil

            shutil.rmtree(left, ignore_errors=True)  # which refuses a link, and works by descriptors below that


@block
def _sigterm_ends_the_run() -> Iterator[None]:
    """While a run lasts, SIGTERM ends it in good order first: workers, shared memory, files. Then it does what it does."""
    if signal.getsignal(signal.SIGTERM) is not signal.SIG_DFL:
        yield  # the caller has his own ideas
        return

    def terminated(*_: object) -> None:
        raise Terminated

    signal.signal(signal.SIGTERM, terminated)
    try:
        yield
    except Terminated:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for leave in at_termination:
            leave()
        homes.leave()
        os.kill(os.getpid(), signal.SIGTERM)
        raise
    finally:
        if signal.getsignal(signal.SIGTERM) is terminated:  # a body that ran here may have said otherwise
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
