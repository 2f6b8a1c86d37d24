"""`entangle clean`: remove what runs of killed processes have left behind. Needs nothing but the
core."""

from __future__ import annotations

import json
import os
import sys

from entangle._shared.home import sweep
from entangle.cli.exit_status import DONE, FAILED
from entangle.cli.terminal_text import plain, stdout


def clean(as_json: bool) -> int:
    """Remove stale directories and containers, and say which; gives the exit status. It is a
    failure where something had to be left, and none where something could not be looked at."""
    from entangle._remote.transport.docker_leftovers import sweep_containers

    left: list[str] = []
    unseen: list[str] = []
    removed = [*sweep(left), *_forgotten_calls(), *_old_durable_runs(unseen)]
    containers = sweep_containers(left, unseen)
    if as_json:
        print(json.dumps({"removed": removed, "containers": containers, "left": [*left, *unseen]}))
        return FAILED if left else DONE
    for path in (*containers, *removed):
        print(f"removed {plain(path)}", file=stdout())
    print(f"{len(removed)} stale director{'y' if len(removed) == 1 else 'ies'} removed", file=sys.stderr)
    for line in (*left, *unseen):
        print(f"entangle: left {plain(line)}", file=sys.stderr)
    return FAILED if left else DONE


def _old_durable_runs(unseen: list[str]) -> list[str]:
    """Remove finished durable runs that were not entered for long; gives their directories."""
    from entangle._depot.durable_directory import file_name, root, trim
    from entangle.errors import DepotError

    removed: list[str] = []
    try:
        trim(said=lambda name: removed.append(os.path.join(root(), file_name(name))))
    except DepotError as error:
        unseen.append(str(error))
    return removed


def _forgotten_calls() -> list[str]:
    """Remove calls that were kept of runs which nobody remembers any more; gives the files."""
    from entangle._records.directory import find_directory
    from entangle._records.retention import remove_unremembered
    from entangle.errors import RecordsError

    try:
        return remove_unremembered(find_directory())
    except RecordsError:  # whoever looks at the records is told
        return []
