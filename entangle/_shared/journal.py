"""The journal of a worker: which items of its node are done, readable after it was killed.

One file for each slot. Each entry is one `write`, so entries are whole, except the last one if the
disk was full: reading stops there.
"""

from __future__ import annotations

import io
import os
import pickle
from typing import Any

from entangle._shared.pickling import dumps
from entangle._shared.spare_files import open_file


class Journal:
    """The journal of a slot, for the worker in it to write."""

    def __init__(self, directory: str, slot: int) -> None:
        self._fd = open_file(_path(directory, slot), os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC)

    def begin(self, label: object) -> None:
        """Empty the journal, and begin anew under a unique label."""
        os.ftruncate(self._fd, 0)
        os.write(self._fd, pickle.dumps(label, 5))

    def note(self, entry: object) -> None:
        """Append an entry. Raises what pickling it raises, or OSError if there is no room."""
        try:
            body = pickle.dumps(entry, 5)
        except Exception:  # a `__reduce__` may raise anything
            body = dumps(entry)
        written = os.write(self._fd, body)
        while written < len(body):
            written += os.write(self._fd, body[written:])


def read_journal(directory: str, slot: int, label: object) -> list[Any]:
    """The entries that the dead worker of that slot has made under this label.

    Removes the journal: the slot's next worker may be killed before it begins its own.
    """
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
    except Exception:  # the end, or an incomplete entry
        return found


def _path(directory: str, slot: int) -> str:
    return os.path.join(directory, f"journal-{slot}")
