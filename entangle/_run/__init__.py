"""Running flows: private. Knows flows, not calls. Start at `run.py`, or at the drawing at the top of `worker.py`."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

#: The one hook for who wants to know of runs: each is an `entangle._run.run.Observer`. It lies here, in a room that costs
#: nothing to enter, so that the recorder can be wired to it before the engine is imported.
observers: list[Any] = []

#: How records of runs in other places come home (`entangle._records.travels`), wired in the same way.
travels: Any = None

#: What is called when SIGTERM ends the process in a run: what it has in other places ends too. Wired in the same way.
at_termination: list[Callable[[], None]] = []
