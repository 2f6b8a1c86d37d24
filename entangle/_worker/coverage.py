"""coverage.py in workers: it saves its data at interpreter exit, which a worker does not reach."""

from __future__ import annotations

import contextlib
import sys
from typing import Any

#: Seconds that workers get to save their data, if they are measured.
PATIENCE = 5.0


def _measurement() -> Any:
    """The coverage measurement of this process, if it is one of several (`parallel`)."""
    coverage = sys.modules.get("coverage")
    if coverage is None or not hasattr(coverage, "Coverage"):
        return None
    current = coverage.Coverage.current()
    return current if current is not None and current.get_option("run:parallel") else None


def measured() -> bool:
    """Whether workers save coverage data when they end."""
    return _measurement() is not None


def save() -> None:
    """Save the coverage data of this worker, which is about to end."""
    with contextlib.suppress(Exception):
        measurement = _measurement()
        if measurement is not None:
            measurement.stop()
            measurement.save()
