"""Source lines that a traceback lacks, since it was written where the source is not: in a worker
that was not forked from a notebook, or in another place.
"""

from __future__ import annotations

import contextlib
import re
import sys
from collections.abc import Callable

_FRAME = re.compile(r' *File "([^"]+)", line (\d{1,9}), in .+')


def with_lines(text: str, shown: Callable[[str], str] = str) -> str:
    """A traceback with source lines that are missing there and known here, each as `shown`."""
    import linecache

    told: list[str] = []
    frame: re.Match[str] | None = None
    files: dict[str, bool] = {}
    for line in [*text.splitlines(), ""]:
        if frame is not None and not line.startswith("    "):
            file = frame[1]
            if file not in files and len(files) < 64:
                files[file] = _is_source(file)
            source = linecache.getline(file, int(frame[2])).strip() if files.get(file) else ""
            told += [f"    {shown(source)}"] if source else []
        told.append(line)
        frame = _FRAME.fullmatch(line)
    return "\n".join(told)


def _is_source(path: str) -> bool:
    """Whether this is a source file here, or a cell. The other side names it, and it might name a
    device."""
    import linecache
    import os
    import stat

    if path in linecache.cache:
        return True
    with contextlib.suppress(OSError, ValueError):
        found = os.stat(path)
        known = path.endswith(".py") or path == getattr(sys.modules.get("__main__"), "__file__", None)
        return known and stat.S_ISREG(found.st_mode) and found.st_size < 4 << 20
    return False
