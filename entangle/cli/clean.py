"""`entangle clean`: remove what runs of killed processes have left behind. Needs nothing but the core."""

from __future__ import annotations

import importlib
import importlib.util
import json
import sys

from entangle._shared.home import sweep
from entangle.cli.status import DONE, FAILED
from entangle.cli.streams import plain, stdout

#: Rooms that leave something outside the run directory, and the function of each that sweeps it, gives the names of what went and
#: adds to two lists what is left, with the reason,
#: and what it cannot look at.
ELSEWHERE = {"entangle._remote.transport.docker_leftovers": "sweep_containers"}


def clean(as_json: bool) -> int:
    """Remove stale directories and containers, and say which; gives the exit status. What had to be left is a failure; what cannot
    be looked at is said alone."""
    left: list[str] = []
    unseen: list[str] = []
    removed = sweep(left)
    containers = _sweep_elsewhere(left, unseen)
    if as_json:
        print(json.dumps({"removed": removed, "containers": containers, "left": [*left, *unseen]}))
        return FAILED if left else DONE
    for path in (*containers, *removed):
        print(f"removed {plain(path)}", file=stdout())
    print(f"{len(removed)} stale director{'y' if len(removed) == 1 else 'ies'} removed", file=sys.stderr)
    for line in (*left, *unseen):
        print(f"entangle: left {plain(line)}", file=sys.stderr)
    return FAILED if left else DONE


def _sweep_elsewhere(left: list[str], unseen: list[str]) -> list[str]:
    found: list[str] = []
    for room, sweeper in ELSEWHERE.items():
        package, _, _ = room.partition(".")
        for part in room.split(".")[1:]:
            package = f"{package}.{part}"
            if importlib.util.find_spec(package) is None:
                break
        else:
            found += map(str, getattr(importlib.import_module(room), sweeper)(left, unseen))
    return found
