"""Where what outlives a run is kept: records, and beside them the depot.

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


def find_directory() -> str:
    """The path of the directory as things are now; it need not exist yet."""
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


def make_directory_of_state(directory: str) -> None:
    """Make it for this user alone, unless it exists. Raises OSError."""
    os.makedirs(directory, mode=0o700, exist_ok=True)
    if os.path.basename(directory) == PROJECT and not os.path.exists(os.path.join(directory, ".gitignore")):
        with open(os.path.join(directory, ".gitignore"), "w", encoding="ascii") as file:
            file.write("*\n")  # git must not take what is kept for source code
