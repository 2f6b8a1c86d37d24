"""The shelf: the directory in which runs are remembered.

::

    records.sqlite     what has been bound: runs, tasks, nodes, inputs
    sheets/<id>.run    what has not: one file for each run that lasts, or that nobody has looked for yet

It is ENTANGLE_RECORD_DIR where that is set; else the nearest `.entangle` upward from the working directory, as git finds its
`.git`; else `entangle` in the user's state directory ($XDG_STATE_HOME, ~/.local/state). No `.entangle` is made unasked: `mkdir
.entangle` is how a project says that it keeps its own records. One that belongs to somebody else is not trusted.
"""

from __future__ import annotations

import os
import stat

PROJECT = ".entangle"
_OFF = ("0", "off", "no", "false", "never")


def recording() -> bool:
    """Whether runs are to be remembered: ENTANGLE_RECORD=0 says no."""
    return os.environ.get("ENTANGLE_RECORD", "").lower() not in _OFF


def whole_values() -> bool:
    """Whether values are kept whole: ENTANGLE_RECORD=values."""
    return os.environ.get("ENTANGLE_RECORD", "").lower() == "values"


def find_shelf() -> str:
    """The path of the shelf as things are now; it need not exist yet."""
    chosen = os.environ.get("ENTANGLE_RECORD_DIR")
    if chosen:
        return os.path.abspath(os.path.expanduser(chosen))
    try:
        at = os.getcwd()
    except FileNotFoundError:
        at = "/"
    while True:
        found = os.path.join(at, PROJECT)
        try:
            status = os.lstat(found)
            if stat.S_ISDIR(status.st_mode) and status.st_uid == os.getuid():
                return found
        except OSError:
            pass
        above = os.path.dirname(at)
        if above == at:
            break
        at = above
    state = os.environ.get("XDG_STATE_HOME") or os.path.join(os.path.expanduser("~"), ".local", "state")
    return os.path.join(state, "entangle")


def sheets_of(shelf: str) -> str:
    """Where the sheets of a shelf lie."""
    return os.path.join(shelf, "sheets")


def make_shelf(shelf: str) -> str:
    """Make the shelf for this user alone, unless it is there, and give the directory of its sheets. Raises OSError."""
    sheets = sheets_of(shelf)
    if not os.path.isdir(sheets):
        os.makedirs(shelf, mode=0o700, exist_ok=True)
        os.makedirs(sheets, mode=0o700, exist_ok=True)
        if os.path.basename(shelf) == PROJECT and not os.path.exists(os.path.join(shelf, ".gitignore")):
            with open(os.path.join(shelf, ".gitignore"), "w", encoding="ascii") as file:
                file.write("*\n")  # records are nobody's source code
    return sheets
