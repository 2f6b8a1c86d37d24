"""Warnings of a depot that cannot be used: once, by one process of the tree."""

from __future__ import annotations

import hashlib
import os

from entangle._shared import home as homes

_told: set[str] = set()


def warn_once(text: str, about: str) -> None:
    """Log a warning, unless this process tree has warned of the same thing before."""
    if about in _told:
        return
    _told.add(about)
    try:
        mark = os.path.join(homes.home().path, f"told-{hashlib.sha256(about.encode()).hexdigest()[:16]}")
        os.close(os.open(mark, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    except FileExistsError:
        return
    except Exception:  # without a home, each process warns
        pass
    import logging

    logging.getLogger("entangle").warning("%s", text)
