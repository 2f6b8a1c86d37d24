"""A journal: what a worker process has got done of a node that holds many items, readable when it has been killed.

A file for each slot. Every entry is one `write`, so what is there is whole but for an entry that was being written when the
disk was full: reading stops there.
"""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

from entangle._shared.pickling import dumps
from entangle._shared.store import open_file


class Journal:
    """The journal of the worker in a slot, as that worker sees it."""

    def __init__(self, directory: str, slot: int) -> None:
        self._fd = open_file(_path(directory, slot), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)

    def begin(self, label: object) -> None:
        """Forget what was noted, and begin anew under a label that is used once."""
        os.ftruncate(self._fd, 0)
        os.write(self._fd, pickle.dumps(label, 5))

    def note(self, entry: object) -> None:
        """Note an entry. Raises what pickling it raises, and OSError where there is no room."""
        try:
            body = pickle.dumps(entry, 5)
        except Exception:  # what a __reduce__ raises is anybody's guess
            body = dumps(entry)
        written = os.write(self._fd, body)
        while written < len(body):
            written += os.write(self._fd, body[written:])


def read_journal(directory: str, slot: int, label: object) -> list[Any]:
    """What the worker in that slot, which is dead, had noted under this label. The journal is gone then: the next worker of the
    slot may be killed before it has begun its own."""
    try:
        with open(_path(directory, slot), "rb") as file:
            body = io.BytesIO(file.read())
        os.unlink(_path(directory, slot))
    except FileNotFoundError:
        return []
    found: list[Any] = []
    try:
        if pickle.load(body) != label:
            return []
        while True:
            found.append(pickle.load(body))
    except Exception:  # the end, or an entry cut short
        return found


def _path(directory: str, slot: int) -> str:
    return os.path.join(directory, f"journal-{slot}")
