"""coverage.py in workers: it saves what it has seen when an interpreter ends, and a worker ends without that."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

#: Seconds that workers get to save, where somebody measures them.
PATIENCE = 5.0


def _measurement() -> Any:
    """What measures this process, if it is to be measured as one of several."""
    coverage = sys.modules.get("coverage")
    if coverage is None or not hasattr(coverage, "Coverage"):
        return None
    current = coverage.Coverage.current()
    return current if current is not None and current.get_option("run:parallel") else None


def measured() -> bool:
    """Whether workers save something when they end."""
    return _measurement() is not None


def save() -> None:
    """Save what was seen in this worker, which is about to end."""
    with contextlib.suppress(Exception):
        measurement = _measurement()
        if measurement is not None:
            measurement.stop()
            measurement.save()
