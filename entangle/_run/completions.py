"""A run of several calls, whose outcomes are told one by one, as soon as they are there."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

from entangle._run import Observer
from entangle._run.progress import observer_for
from entangle._run.run import Run
from entangle._run.supervisor import Supervisor
from entangle._shared.site import Site
from entangle._shared.store import Store
from entangle._shared.table import DONE, FAILED, SKIPPED, UNCLAIMED
from entangle._shared.tracebacks import passes_on
from entangle._worker.failures import error_of
from entangle.errors import RunAtImportError
from entangle.flow import Flow

#: Gets a node, its value, and its error in place of that.
Tell = Callable[[int, Any, "BaseException | None"], object]


class CompletionsRun(Run):
    """One execution of a flow whose kept nodes are told to `tell`, in the order of their ends.

    Its own value is None. Raises what ends the run as a whole: it was cancelled, or no worker can
    be started.
    """

    def __init__(self, flow: Flow, tell: Tell, way: str | None = None, observer: Observer | None = None) -> None:
        super().__init__(flow, way, observer or observer_for(None))
        self._tell = tell
        self._left = sorted(flow.kept)
        self._looks_at = 0.0

    @property
    def name(self) -> str:
        """The name of the run: that of its only call, else what it is for."""
        return self.flow.name(self._left[0]) if len(self.flow.kept) == 1 and self._left else "as_completed"

    def _make_supervisor(self, *known: Any) -> Supervisor:
        supervisor = super()._make_supervisor(*known)
        supervisor.told = lambda: self._tell_ended(supervisor.site, supervisor.store)
        return supervisor

    @passes_on
    def _outcome(self, supervisor: Supervisor, site: Site, store: Store | None) -> None:
        self._looks_at = 0.0
        self._tell_ended(site, store)
        self._raise_failure(supervisor, site)

    def _tell_ended(self, site: Site, store: Store | None) -> None:
        """Tell the kept nodes that have ended since the last time."""
        began = time.monotonic()
        if began < self._looks_at:
            return
        table = site.table
        states = bytes(table.states)
        ended = [node for node in self._left if states[node] in (DONE, FAILED, SKIPPED)]
        if ended:
            told = frozenset(ended)
            self._left = [node for node in self._left if node not in told]
            for node in sorted(ended, key=lambda node: (table.record(table.cause(node))[1], states[node])):
                self._tell_one(site, store, node, states[node])
        # Of very many calls, looking at all must not take more time than the calls.
        self._looks_at = time.monotonic() + 4 * (time.monotonic() - began) if len(self._left) > _MANY else 0.0

    def _tell_one(self, site: Site, store: Store | None, node: int, state: int) -> None:
        if state != DONE:
            self._tell(node, None, error_of(site, store, node))
            return
        try:
            value = self._value_of(node, site, store)
        except RunAtImportError:
            raise
        except Exception as error:
            self._tell(node, None, error)
            return
        gone = None
        with site.table.locked(UNCLAIMED):
            if store is not None:
                gone = store.count_read(node)
            else:
                site.table.readers[node] -= 1
        if gone is not None and store is not None:
            store.remove(gone)
        self._tell(node, value, None)


#: With more calls than this, looks are rarer.
_MANY = 500
