"""The directory of records: what lies in it.

::

    records.sqlite     what has been ingested: runs, tasks, nodes, inputs
    sheets/<id>.run    log segments: a file for each run that is live, or not ingested yet
    sheets/<id>-<pid>.retired    why a warm worker ended after that run, not ingested yet
    calls/<id>-<node>.call    the arguments of calls that were kept (`_shared/kept_calls.py`)
    depot/             values that stay (`_depot/`), unless ENTANGLE_DEPOT names another place

`_shared/state_directory.py` says where it is.
"""

from __future__ import annotations

import os

from entangle._shared.state_directory import find_directory, make_directory_of_state

__all__ = ["find_directory", "make_directory", "recording", "segments_of", "whole_values"]

#: Where the log segments lie, in the directory of records. An old name, kept: under another one,
#: records of older versions are lost.
SEGMENTS = "sheets"
_OFF = ("0", "off", "no", "false", "never")
_ON = ("", "1", "on", "yes", "true")
_unknown: set[str] = set()


def recording() -> bool:
    """Whether runs are to be remembered: ENTANGLE_RECORD=0 says no. An unknown word says yes, and
    is told of once."""
    word = os.environ.get("ENTANGLE_RECORD", "").lower()
    if word not in (*_OFF, *_ON, "values") and word not in _unknown:
        _unknown.add(word)
        import logging

        logging.getLogger("entangle").warning(
            "ENTANGLE_RECORD=%r is not known, so runs are recorded without whole values; set it to 0, 1 or values", word
        )
    return word not in _OFF


def whole_values() -> bool:
    """Whether values are kept whole: ENTANGLE_RECORD=values."""
    return os.environ.get("ENTANGLE_RECORD", "").lower() == "values"


def segments_of(directory: str) -> str:
    """The path of the log segments in a directory of records."""
    return os.path.join(directory, SEGMENTS)


def make_directory(directory: str) -> str:
    """Make the directory of records for this user alone, unless it exists; gives the path of its
    log segments. Raises OSError."""
    folder = segments_of(directory)
    if not os.path.isdir(folder):
        make_directory_of_state(directory)
        os.makedirs(folder, mode=0o700, exist_ok=True)
    return folder
