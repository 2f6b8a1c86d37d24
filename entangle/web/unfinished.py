"""Answers for the page about unfinished durable runs. Looking changes nothing."""

from __future__ import annotations

import os
import shlex
import threading
from typing import Any

from entangle._depot.durable_directory import UnfinishedRun, file_name, is_finished, is_in_use, look, names, root
from entangle._shared.masks import masked

#: The most runs that are listed, and the most tasks that had begun of each.
_MOST, _NAMED = 50, 3

_guard = threading.Lock()
#: What was read of each run, with the sizes and times of its ledgers: a ledger may be long, so it
#: is read again only if these have changed.
_known: dict[str, tuple[Any, UnfinishedRun | None]] = {}


def unfinished() -> dict[str, Any]:
    """The durable runs that were not left in good order or are in use, the last changed first, and
    how many there are."""
    with _guard:
        there = [name for name in names() if not is_finished(name)]
        for gone in _known.keys() - set(there):
            del _known[gone]
        found = [run for name in there if (run := _look(name)) is not None]
    found.sort(key=lambda run: run.changed, reverse=True)
    return {"runs": [_told(run) for run in found[:_MOST]], "count": len(found)}


def _look(name: str) -> UnfinishedRun | None:
    at = os.path.join(root(), file_name(name))
    try:
        with os.scandir(at) as entries:
            written = sorted((one.name, one.stat().st_size, one.stat().st_mtime_ns) for one in entries if one.name.startswith("ledger."))
    except OSError:
        return None
    before = _known.get(name)
    if before is None or before[0] != (at, written):
        before = _known[name] = (at, written), look(name)
    run = before[1]
    if run is None:  # it has only just begun
        del _known[name]
        return None
    return run._replace(in_use=is_in_use(at))


def _told(run: UnfinishedRun) -> dict[str, Any]:
    return {
        "name": run.name,
        "state": "in use" if run.in_use else "unfinished",
        "begun": run.begun,
        "changed": run.changed,
        "ended": run.ended,
        "open": run.open[:_NAMED],
        "more_open": max(0, len(run.open) - _NAMED),
        "program": masked(shlex.join(run.program)),
        "command": f"entangle resume {shlex.quote(run.name)}",
    }
