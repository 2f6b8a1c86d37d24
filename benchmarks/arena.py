"""The process in which one contestant runs some rows. ``contest.py``
starts a fresh one for each visit.

    python -m benchmarks.arena FD FIRST LAST CONTESTANT ROW...

Runs rounds FIRST to LAST - 1 of each row, fewer for a peer that takes very long. Writes a line of
JSON to the file descriptor FD as soon as a row is done. So what a peer prints does no harm, and a
row that fails spoils no other.
"""

from __future__ import annotations

import json
import math
import os
import sys
import traceback

from benchmarks import rows as _registered  # noqa: F401
from benchmarks.contestants import CONTESTANTS
from benchmarks.row import ROWS, within


def main(arguments: list[str]) -> int:
    """Run the visit that the arguments describe; gives 0, or 1 if a row failed or the contestant is
    not installed."""
    channel, first, last, name, *keys = arguments
    todo = [ROWS[key] for key in keys]
    workers = {row.workers for row in todo}
    if len(workers) != 1:
        raise ValueError(f"rows of one group want different numbers of workers: {keys}")
    contestant = CONTESTANTS[name](workers.pop() or len(os.sched_getaffinity(0)))
    failed = 0
    with os.fdopen(int(channel), "w", buffering=1, encoding="utf-8") as out:
        bare = all(row.bare for row in todo)
        if not bare:
            try:
                contestant.start()
            except ImportError as error:
                print(json.dumps({"missing": str(error)}), file=out)
                return 1
        for row in todo:
            try:
                measured = list(row.body(contestant, within(range(int(first), int(last)), math.inf if name in row.ours else 10.0)))
            except Exception as error:
                failed = 1
                traceback.print_exc()
                print(json.dumps({"row": row.key, "error": f"{type(error).__name__}: {error}"[:300]}), file=out)
            else:
                print(json.dumps({"row": row.key, "rounds": measured}), file=out)
        if not bare:
            contestant.stop()
    return failed


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
