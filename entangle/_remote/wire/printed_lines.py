"""Lines that were printed elsewhere, shown here: each begins with where it comes from.

For a terminal, control characters other than colours are written out (`controls.py`). A file or a
pipe gets the text as it was printed. A worker process cannot know where its output ends up, so it
assumes a terminal.
"""

from __future__ import annotations

import contextlib
import sys
from typing import Any

from entangle._remote.wire.controls import escaped
from entangle._worker.worker import here


def show_lines(where: str, data: bytes, error: bool) -> None:
    """Show whole lines on stdout, or on stderr if `error`; each begins with `where`."""
    out = sys.stderr if error else sys.stdout
    lines: list[str] = []
    # `splitlines` ends lines at other characters as well. A return would overwrite our prefix.
    for line in data.decode("utf-8", "replace").split("\n"):
        lines += [part for part in line.split("\r") if part] or [""]
    if _is_terminal(out):
        lines = [escaped(line) for line in lines]
    text = "".join(f"{where}{line}\n" for line in lines)
    with contextlib.suppress(Exception):
        try:
            out.write(text)
        except UnicodeEncodeError:  # an encoding with few characters
            code = out.encoding or "ascii"
            out.write(text.encode(code, "backslashreplace").decode(code))
        out.flush()


def _is_terminal(out: Any) -> bool:
    """Whether what is written there is shown on a terminal, or may be."""
    worker = type(here).worker  # set for all threads of a worker process
    if worker is not None and worker.in_process:
        return True
    try:
        return bool(out.isatty())
    except Exception:  # any object may be in its place
        return False
