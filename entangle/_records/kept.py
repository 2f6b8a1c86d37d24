"""Kept calls among the records: they are found here, told of in errors, and removed with their
runs."""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Iterable
from typing import Any, NamedTuple

from entangle._shared import kept_calls
from entangle._shared.kept_calls import FOLDER
from entangle.errors import add_note

#: How notes begin that say how a call can be run again, or why it cannot.
COMMAND, NO_COMMAND = "replay: ", "no replay: "
#: The most bytes that all kept calls have together, and how many there are at most; the oldest go
#: first.
MOST, MOST_CALLS = 512 << 20, 10_000
#: A file written to this recently (seconds) may belong to a run whose record is not there yet.
YOUNG = 600


class KeptFile(NamedTuple):
    """A kept call: the run, the node, its file, when it was written (seconds since 1970), and its
    size (bytes). Or the task of calls (`is_call` is false); its number is that of a body."""

    run: str
    node: int
    is_call: bool
    path: str
    at: float
    size: int


def folder_of(place: str) -> str:
    """The directory of kept calls in a directory of records."""
    return os.path.join(place, FOLDER)


def path_of(place: str, run: str, node: int) -> str:
    """The file of a kept call; it need not exist."""
    return os.path.join(folder_of(place), kept_calls.name_of(run, node))


def all_kept(place: str, run: str | None = None) -> list[KeptFile]:
    """The kept calls, or those of a run, by run and node."""
    return [one for one in _files(place, run) if one.is_call]


def _files(place: str, run: str | None = None) -> list[KeptFile]:
    """The files of kept calls and of their tasks, or those of a run, by run and number."""
    found = []
    with contextlib.suppress(OSError), os.scandir(folder_of(place)) as entries:
        for entry in entries:
            named = kept_calls.whose(entry.name)
            if named is None or (run is not None and named[0] != run):
                continue
            with contextlib.suppress(OSError):
                status = entry.stat(follow_symlinks=False)
                found.append(KeptFile(*named, entry.path, status.st_mtime, status.st_size))
    return sorted(found)


def add_command(error: BaseException, place: str, run: str, node: int) -> None:
    """Add a note to the error of a run: the command that runs the failed call again, or why none
    can. Nothing where the call was not kept, or a run inside has said so already. Never raises."""
    try:
        notes = getattr(error, "__notes__", ())
        if not any(isinstance(note, str) and note.startswith((COMMAND, NO_COMMAND)) for note in notes):
            add_note(error, _note(kept_calls.head_of(path_of(place, run, node))))
            trim(place)
    except Exception:  # a class of the user's may have odd notes
        return


def _note(head: dict[str, Any]) -> str:
    for value in head["values"]:
        if value["why"]:
            return f"{NO_COMMAND}argument {value['argument']} {value['why']}"
    return f"{COMMAND}entangle replay {head['run']} --node {head['node']}"


def trim(place: str, most: int = MOST, calls: int = MOST_CALLS) -> None:
    """Remove the oldest kept calls until the others have at most so many bytes together, with their
    tasks, and are at most so many."""
    size = count = 0
    for file in sorted(_files(place), key=lambda file: file.at, reverse=True):
        size += file.size
        count += file.is_call
        if size > most or count > calls:  # a task was written after its calls, and stays as long as they do
            _remove(file.path)


def remove_of(place: str, runs: Iterable[str]) -> None:
    """Remove the kept calls of these runs, and their tasks."""
    gone = set(runs)
    for file in _files(place):
        if file.run in gone:
            _remove(file.path)


def sweep(place: str, remembered: Iterable[str]) -> list[str]:
    """Remove the kept calls of runs that are not among these ids, and what writers left that were
    killed. Gives the paths. The record of a run that has just ended may be on its way: what is
    young stays."""
    known = set(remembered)
    removed = []
    with contextlib.suppress(OSError), os.scandir(folder_of(place)) as entries:
        for entry in entries:
            ours = kept_calls.whose(entry.name)
            draft = ours is None and kept_calls.whose(entry.name.rpartition(".")[0]) is not None
            if (draft or (ours is not None and ours[0] not in known)) and _is_old(entry) and _remove(entry.path):
                removed.append(entry.path)
    return removed


def _is_old(entry: os.DirEntry[str]) -> bool:
    try:
        return time.time() - entry.stat(follow_symlinks=False).st_mtime > YOUNG
    except OSError:
        return False


def _remove(path: str) -> bool:
    try:
        os.unlink(path)
    except OSError:
        return False
    return True
