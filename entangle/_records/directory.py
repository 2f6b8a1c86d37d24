"""The directory of records: where it is, and what lies in it.

::

    records.sqlite     what has been ingested: runs, tasks, nodes, inputs
    sheets/<id>.run    log segments: a file for each run that is live, or not ingested yet
    sheets/<id>-<pid>.retired    why a warm worker ended after that run, not ingested yet

ENTANGLE_RECORD_DIR names it. Without that, it is the nearest `.entangle` upward from the working
directory, as git finds its `.git`; without one of those, `entangle` in the user's state directory
($XDG_STATE_HOME, ~/.local/state). No `.entangle` is made unasked: with `mkdir .entangle` a project
says that it keeps its own records. One that belongs to another user is not trusted.
"""

from __future__ import annotations

import functools
import os
import stat

PROJECT = ".entangle"
#: Where the log segments lie, in the directory of records. An old name, kept: under another one,
#: records of older versions are lost.
SEGMENTS = "sheets"
_OFF = ("0", "off", "no", "false", "never")


def recording() -> bool:
    """Whether runs are to be remembered: ENTANGLE_RECORD=0 says no."""
    return os.environ.get("ENTANGLE_RECORD", "").lower() not in _OFF


def whole_values() -> bool:
    """Whether values are kept whole: ENTANGLE_RECORD=values."""
    return os.environ.get("ENTANGLE_RECORD", "").lower() == "values"


def find_directory() -> str:
    """The path of the directory of records as things are now; it need not exist yet."""
    chosen = os.environ.get("ENTANGLE_RECORD_DIR")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    try:
        at = os.getcwd()
    except FileNotFoundError:
        at = "/"
    for found in _projects_around(at):
        try:
            status = os.lstat(found)
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                return found
        except OSError:
            pass
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "entangle")


@functools.lru_cache(maxsize=64)
def _projects_around(at: str) -> list[str]:
    """Where the records of a project would lie that has this directory, the nearest first."""
    found = [os.path.join(at, PROJECT)]
    while (above := os.path.dirname(at)) != at:
        at = above
        found.append(os.path.join(at, PROJECT))
    return found


def segments_of(directory: str) -> str:
    """The path of the log segments in a directory of records."""
    return os.path.join(directory, SEGMENTS)


def make_directory(directory: str) -> str:
    """Make the directory of records for this user alone, unless it exists; gives the path of its
    log segments. Raises OSError."""
    folder = segments_of(directory)
    if not os.path.isdir(folder):
        os.makedirs(directory, mode=0o700, exist_ok=True)
        os.makedirs(folder, mode=0o700, exist_ok=True)
        if os.path.basename(directory) == PROJECT and not os.path.exists(os.path.join(directory, ".gitignore")):
            with open(os.path.join(directory, ".gitignore"), "w", encoding="ascii") as file:
                file.write("*\n")  # git must not take records for source code
    return folder
