"""Where a run takes place: machine, Python, packages, program. What does not change is looked up
once in a process."""

from __future__ import annotations

import os
import sys
from typing import Any

_seen: tuple[int, dict[str, str]] = (0, {})
_place: dict[str, Any] | None = None


def place() -> dict[str, Any]:
    """Host, platform, Python and program of this process."""
    global _place
    if _place is None or _place["pid"] != os.getpid():
        system = os.uname()
        _place = {
            "host": system.nodename,
            "platform": f"{system.sysname} {system.release} {system.machine}",
            "pid": os.getpid(),
            "cpus": os.cpu_count(),
            "python": ".".join(map(str, sys.version_info[:3])),
            "implementation": sys.implementation.name,
            "executable": sys.executable,
            "entangle": getattr(sys.modules.get("entangle"), "__version__", ""),
            "program": sys.argv[0] if sys.argv else "",
            "user": os.environ.get("USER") or str(os.getuid()),
        }
    return _place


def packages() -> dict[str, str]:
    """The packages that this process has imported, with the versions that they state."""
    global _seen
    count = len(sys.modules)
    if _seen[0] != count:
        found = {}
        for name, module in list(sys.modules.items()):
            if "." in name or name.startswith("_") or name in sys.stdlib_module_names:
                continue
            # Not getattr(module, ...): that may import what the module loads lazily.
            version = getattr(module, "__dict__", {}).get("__version__")
            if isinstance(version, str) and len(version) < 60:
                found[name] = version
        _seen = (count, found)
    return _seen[1]
