"""The watchers of this process, one for each service and each place of mailboxes."""

from __future__ import annotations

import atexit
import contextlib
import os
import threading

from entangle import _run
from entangle._services import Service
from entangle._services.caller.watcher import Watcher
from entangle._services.mailbox import Where

_watchers: dict[tuple[Service, Where], Watcher] = {}
_opening = threading.Lock()


def watcher_of(service: Service, where: Where) -> Watcher:
    """The watcher of this process for a service, with a mailbox there."""
    with _opening:
        found = _watchers.get((service, where))
        if found is None:
            if not _watchers:
                atexit.register(close_all)
                _run.at_termination.append(close_all)
            found = _watchers[service, where] = Watcher(service, where)
        return found


def close_all(where: Where | None = None) -> None:
    """End all that is under way at services, and remove the mailboxes of this process; or those in
    this place."""
    for (_, place), watcher in list(_watchers.items()):
        if where is None or place == where:
            watcher.close()


def _after_fork() -> None:
    """A child has none of the threads, and leaves the mailboxes to its parent."""
    global _opening
    _opening = threading.Lock()
    _watchers.clear()
    with contextlib.suppress(ValueError):
        _run.at_termination.remove(close_all)


os.register_at_fork(after_in_child=_after_fork)
