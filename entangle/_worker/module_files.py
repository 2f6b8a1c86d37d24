"""Files of the user's modules that are loaded, and whether they have changed since.

Modules of Python and of installed packages are taken to stay while a program runs.
"""

from __future__ import annotations

import contextlib
import os
import sys
import sysconfig
from types import ModuleType

#: Name of the module: file, time of its last change (ns), size (bytes).
Stamps = dict[str, tuple[str, int, int]]

#: The modules that this process was forked with, as they were when they were imported.
forked_with: Stamps = {}


class ModuleFiles:
    """The files of the user's modules that this process has loaded."""

    def __init__(self) -> None:
        self.stamps: Stamps = dict(forked_with)
        self._modules_seen = 0

    def note(self) -> None:
        """Note the modules that have been loaded since the last time."""
        if len(sys.modules) == self._modules_seen:
            return
        self._modules_seen = len(sys.modules)
        for name, module in list(sys.modules.items()):
            if name in self.stamps:
                continue
            file = module.__dict__.get("__file__") if isinstance(module, ModuleType) else None
            if isinstance(file, str) and not file.startswith(_INSTALLED):
                with contextlib.suppress(OSError):
                    file = os.path.abspath(file)
                    status = os.stat(file)
                    self.stamps[name] = (file, status.st_mtime_ns, status.st_size)

    def outdated(self) -> str:
        """Which module has changed on disk, in a few words; "" if none has."""
        return outdated(self.stamps)


def outdated(stamps: Stamps) -> str:
    """Which of these modules has changed on disk, in a few words; "" if none has."""
    for name, (file, changed, size) in stamps.items():
        try:
            status = os.stat(file)
        except OSError:
            return f"module {name!r} is gone from {file}"
        if (status.st_mtime_ns, status.st_size) != (changed, size):
            return f"module {name!r} has changed on disk"
    return ""


def installed_places() -> list[str]:
    """The directories where installed modules lie."""
    return sorted({path for name in ("stdlib", "platstdlib", "purelib", "platlib") if (path := sysconfig.get_path(name))})


_INSTALLED = tuple(os.path.join(place, "") for place in (*installed_places(), os.path.dirname(os.path.dirname(os.path.abspath(__file__)))))
