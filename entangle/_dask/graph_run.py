"""One execution of a graph of dask: a Run that calls dask's callbacks for its tasks."""

from __future__ import annotations

import os
import threading
import time
from typing import Any

from entangle._dask.graph_flow import DATA, MUCH, GraphFlow
from entangle._dask.telling import Telling
from entangle._run import Observer
from entangle._run.forking import fork_is_safe
from entangle._run.run import Run
from entangle._run.start import chosen_way
from entangle._run.supervisor import Supervisor
from entangle._shared.site import Site
from entangle._shared.store import Store
from entangle._shared.table import DONE, FAILED_NODE, RUNNING, UNCLAIMED
from entangle._shared.tracebacks import passes_on
from entangle._warm.session import Session, current
from entangle._worker.worker import here


class GraphRun(Run):
    """One execution of the flow of a graph.

    `telling` hears of each task that begins and ends. With `rerun`, a task that fails runs once
    more in this thread, with the same arguments, where a debugger can look at it.
    """

    def __init__(
        self,
        graph: GraphFlow,
        telling: Telling | None = None,
        rerun: bool = False,
        workers: int | None = None,
        observer: Observer | None = None,
    ) -> None:
        assert graph.flow is not None
        # In a session, graphs use the workers of the session. The workers of a graph that runs in a
        # task end with the graph.
        inside = here.worker is not None and here.worker.in_process
        own = None if inside or graph.by_fork or current() is not None else _session()
        super().__init__(graph.flow, "fork" if graph.by_fork else _way(not inside), observer, workers=workers)
        self.warm = own
        self._telling, self._rerun = telling, rerun
        tasks = [node for node, key in enumerate(graph.key_of) if key is not DATA]
        self._keeps = rerun or (telling is not None and telling.takes_values)
        if self._keeps:
            # Every value goes into the store. It stays until callbacks have had it; with `rerun`,
            # until no task needs it any more.
            self.flow.kept = frozenset(tasks)
        self._left = tasks
        #: For each task, how many of the tasks that take its value have not ended.
        self._takers = [len(self.flow.takers(node)) for node in range(self.flow.count)] if rerun else []
        self._looks_at = 0.0

    @property
    def name(self) -> str:
        """The name of the run: that of its only key, else `compute`."""
        return self.flow.name(self.flow.sinks[0])

    def _make_supervisor(self, *known: Any) -> Supervisor:
        supervisor = super()._make_supervisor(*known)
        if self._telling is not None or self._rerun:
            supervisor.told = lambda: self._look(supervisor.site, supervisor.store)
        return supervisor

    @passes_on
    def _outcome(self, supervisor: Supervisor, site: Site, store: Store | None) -> Any:
        if self._telling is not None:
            self._looks_at = 0.0
            self._look(site, store)
        try:
            return super()._outcome(supervisor, site, store)
        except Exception:
            failed = site.table.header[FAILED_NODE]
            if self._rerun and failed >= 0:
                self._run_again(failed, site, store)
            raise

    @passes_on
    def _run_again(self, node: int, site: Site, store: Store | None) -> None:
        """Run the body of a task that has failed in this thread."""
        args, named = self.flow.arguments(node, lambda taken: self._value_of(taken, site, store))
        self.flow.body(node).function(*args, **named)

    def _look(self, site: Site, store: Store | None) -> None:
        """Tell what has happened since the last time."""
        looked = time.monotonic()
        if looked < self._looks_at:
            return
        table, telling = site.table, self._telling
        states = bytes(table.states)
        ended = [node for node in self._left if states[node] == DONE]
        if ended:
            gone = frozenset(ended)
            self._left = [node for node in self._left if node not in gone]
            # By the time of their end. No task begins before its inputs have ended, and nodes that
            # end in one moment are in order of their numbers.
            ended.sort(key=lambda node: (table.record(node)[1], node))
        for node in ended:
            self._end(node, site, store)
        if telling is not None:
            for node in self._left:
                if states[node] == RUNNING:
                    telling.begun(node)
            telling.looked()
        # Of very many tasks, looking must not take more time than the tasks.
        self._looks_at = time.monotonic() + 4 * (time.monotonic() - looked) if len(self._left) > _MANY else 0.0

    def _end(self, node: int, site: Site, store: Store | None) -> None:
        if self._telling is not None:
            started, ended, _, _, _, pid, _, _ = site.table.record(node)
            value = None
            if self._telling.takes_values:  # in an inline run, the value must stay for the run
                value = site.local[node] if node in site.local else self._value_of(node, site, store)
            self._telling.ended(node, value, started, ended, pid)
        if not self._keeps or store is None:
            return
        if not self._rerun:
            self._release(node, site, store)
            return
        for taken in self.flow.sources(node):
            self._takers[taken] -= 1
            if not self._takers[taken]:
                self._release(taken, site, store)

    def _release(self, node: int, site: Site, store: Store) -> None:
        """Drop a kept value, unless it is the value of the run."""
        if node in self.flow.sinks or node not in self.flow.kept:
            return
        with site.table.locked(UNCLAIMED):
            gone = store.count_read(node)
        if gone is not None:
            store.remove(gone)


def _way(warm: bool) -> str:
    """How the workers of a graph are started: all in one way. dask groups by `hash`, so they must
    agree on the hashes of strings. Forked workers have those of the caller."""
    way = chosen_way(None)
    return way if way != "auto" or warm else "fork" if fork_is_safe() else "forkserver"


def forks(large: int) -> bool:
    """Whether the workers are forked for a graph with `large` bytes of arrays of this process."""
    way = chosen_way(None)
    return way == "fork" or (way == "auto" and large >= MUCH and fork_is_safe())


_guard = threading.Lock()
_opened: Session | None = None


def _session() -> Session:
    """The warm workers that graphs use in this process."""
    global _opened
    with _guard:
        if _opened is None:
            _opened = Session(None, 60.0, 0).begin()
        return _opened


def close() -> None:
    """End the warm workers that graphs use in this process."""
    global _opened
    with _guard:
        ended, _opened = _opened, None
    if ended is not None:
        ended.end()


def _after_fork() -> None:
    global _guard, _opened
    _guard, _opened = threading.Lock(), None


os.register_at_fork(after_in_child=_after_fork)


#: With more tasks than this, looks are rarer.
_MANY = 500
