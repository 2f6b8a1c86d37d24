"""How far runs are, for people: on a terminal, in a log, in a notebook.

::

    following     which runs are shown, and when to look
      │ tally     what a run has done, by task name, and how long the rest may take: from its table
      ▼
    wording       a line about a run, and its last line
      ▼
    terminal  log  notebook
"""

from __future__ import annotations

import os
import sys

from entangle._run import Observer
from entangle._worker.worker import here


def observer_for(progress: bool | None) -> Observer | None:
    """What shows a run, if that is wanted: by `progress` or, where it is None, by
    ENTANGLE_PROGRESS. False also takes it from what shows all runs of a block.

    Called in the thread that asks for the run, whose terminal or cell it is.
    """
    if progress is None:
        if os.environ.get("ENTANGLE_PROGRESS", "") in ("", "0"):
            return None
        progress = True
    if here.worker is not None and here.worker.in_process:
        return None  # what bodies in worker processes call has no line of its own
    if progress:
        from entangle._run.progress.following import Bar

        return Bar()
    if "entangle._run.progress.following" in sys.modules:
        from entangle._run.progress.following import NoBar

        return NoBar()
    return None
