"""On a worker of another engine: records of the runs that bodies call, on their way home.

They are written here, as those of an agent are, and told to the caller of the run whose node has
called them, before that hears of the end of the node. Runs that no node of a caller has called are
not recorded here: this worker has no directory of records.
"""

from __future__ import annotations

import threading
from collections import OrderedDict

from entangle import _remote, _run
from entangle._run import ObservedRun, Observer
from entangle._shared.notes import WHOLE

#: The records of at most this many runs of callers are kept apart at a time.
_MOST = 64


class _NodeRecords:
    """Has the runs that nodes call recorded."""

    def __init__(self) -> None:
        self._guard = threading.Lock()
        #: Runs of callers whose nodes are here, and whether values are kept whole.
        self._whole: OrderedDict[str, bool] = OrderedDict()
        #: Of runs that are under way here, whose records they are.
        self._hosts: dict[str, Observer] = {}
        #: Runs of callers of which something was recorded.
        self._callers: set[str] = set()

    def hosts(self, caller: str) -> bool:
        """Whether anything was recorded for this run of a caller."""
        return caller in self._callers

    def expect(self, caller: str, whole: bool) -> None:
        """Have runs recorded that nodes of this run call."""
        if caller in self._whole:
            return
        with self._guard:
            self._whole[caller] = whole
            while len(self._whole) > _MOST:
                oldest, _ = self._whole.popitem(last=False)
                if oldest in self._callers:
                    self._callers.discard(oldest)
                    _remote.travels().forget(oldest)

    def started(self, run: ObservedRun) -> None:
        """A run begins here: of a node, or of what its run has called in turn."""
        host = self._host_of(run)
        if host is not None:
            self._hosts[run.id] = host
            if run.parent is not None and run.parent[0] in self._whole:
                self._callers.add(run.parent[0])
            host.started(run)

    def _host_of(self, run: ObservedRun) -> Observer | None:
        if run.parent is None:
            return None
        known = self._hosts.get(run.parent[0])
        whole = self._whole.get(run.parent[0])
        return known if known is not None or whole is None else _remote.travels().host_of(run.parent[0], whole)

    def looked(self, run: ObservedRun) -> None:
        """Some milliseconds have passed."""
        host = self._hosts.get(run.id)
        if host is not None:
            host.looked(run)

    def ended(self, run: ObservedRun) -> None:
        """A run is over here."""
        host = self._hosts.pop(run.id, None)
        if host is not None:
            host.ended(run)


_records: _NodeRecords | None = None


def expect(caller: str, noting: int) -> None:
    """Have runs recorded that nodes of this run of a caller call here, if it notes anything; and no
    other runs of this process."""
    global _records
    if _records is None:
        _records = _NodeRecords()
        _run.observers[:] = [_records]
    if noting:
        _records.expect(caller, noting == WHOLE)


def collected(caller: str) -> list[bytes]:
    """Take the records of runs that nodes of this run have called here, and that are over."""
    return _remote.travels().collect(caller) if _records is not None and _records.hosts(caller) else []
