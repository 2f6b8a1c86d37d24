"""What a worker has imported since it was forked, told to its caller.

Later workers are forked with these modules loaded (`_run/preloading.py`). The news is one datagram,
which nobody waits for: names and files as JSON, compressed. Where it finds no room, it is lost, and
the next worker tells the same.
"""

from __future__ import annotations

import contextlib
import os
import sys
from types import ModuleType

from entangle._shared import module_lookup

#: A datagram has no room for more. So many names take about 50 KB.
_MOST = 4000


class Imported:
    """The modules of a process at one moment. It tells which have come since, to a socket.

    `news` is -1 where nobody wants to know.
    """

    def __init__(self, news: int) -> None:
        self._news = news
        self._file = _identity(news)
        self._known = set(sys.modules)
        self._count = len(sys.modules)

    def tell(self) -> None:
        """Tell what has been imported by name since the last time."""
        if len(sys.modules) == self._count:
            return
        self._count = len(sys.modules)
        fresh = []
        for name, module in list(sys.modules.items()):
            if name not in self._known:
                self._known.add(name)
                file = file_of(name, module)
                if file and name not in module_lookup.arrived:
                    fresh.append((name, file))
        # A body may have closed it, and opened something else under its number.
        if fresh and self._file is not None and self._file == _identity(self._news):
            import json
            import zlib

            with contextlib.suppress(OSError):
                os.write(self._news, zlib.compress(json.dumps(fresh[:_MOST]).encode(), 1))


def file_of(name: str, module: object) -> str:
    """The file of a module that can be imported by this name; "" if it has none, or is ours."""
    if not isinstance(module, ModuleType) or name.partition(".")[0] in ("entangle", "__main__", "__mp_main__"):
        return ""
    known = module.__dict__  # some modules load others when they are asked for attributes
    file = known.get("__file__")
    return file if isinstance(file, str) and getattr(known.get("__spec__"), "name", None) == name else ""


def _identity(fd: int) -> tuple[int, int] | None:
    try:
        status = os.fstat(fd)
    except OSError:
        return None
    return status.st_dev, status.st_ino
