"""Runs that are no runs of the user's: checks, and what a command asks."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator


@contextlib.contextmanager
def unrecorded() -> Iterator[None]:
    """Runs that start meanwhile, in any thread, are not remembered."""
    before = os.environ.get("ENTANGLE_RECORD")
    os.environ["ENTANGLE_RECORD"] = "0"
    try:
        yield
    finally:
        if before is None:
            os.environ.pop("ENTANGLE_RECORD", None)
        else:
            os.environ["ENTANGLE_RECORD"] = before
