"""Whether the kernel has killed processes of our control group because its memory was used up.

The kernel counts them for each group: `oom_kill` in `memory.events` (version 2) or in
`memory.oom_control` (version 1); see Documentation/admin-guide/cgroup-v2.rst and
cgroup-v1/memory.rst. A batch system gives each job such a group, and so do containers. Memory of
the whole machine that is used up is counted there as well.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re

_KILLS = re.compile(r"^oom_kill (\d+)$", re.MULTILINE)
#: From here on a group of version 1 has no limit (bytes): the largest number of pages.
_NO_LIMIT = 1 << 62


def _group(groups: str, membership: str) -> tuple[str, str, str]:
    """The folder of our group, and the names of its count and its limit; "" where there is none."""
    with contextlib.suppress(OSError), open(membership) as lines:
        for line in lines:
            _, controllers, path = line.rstrip("\n").split(":", 2)
            if controllers and "memory" not in controllers.split(","):
                continue
            top, *names = (
                (os.path.join(groups, "memory"), "memory.oom_control", "memory.limit_in_bytes")
                if controllers
                else (groups, "memory.events", "memory.max")
            )
            # A container sees its own group as the top, whatever its path says.
            for folder in (os.path.join(top, path.lstrip("/")), top):
                if os.path.exists(os.path.join(folder, names[0])):
                    return folder, names[0], names[1]
    return "", "", ""


def _read(*path: str) -> str:
    with contextlib.suppress(OSError), open(os.path.join(*path)) as file:
        return file.read()
    return ""


class MemoryKills:
    """Counts kills that have not yet been given as the reason of a death, from its creation on."""

    def __init__(self, groups: str = "/sys/fs/cgroup", membership: str = "/proc/self/cgroup") -> None:
        self._groups, self._membership = groups, membership
        self._told = self._count()

    def _count(self) -> int:
        folder, count, _ = _group(self._groups, self._membership)
        found = _KILLS.search(_read(folder, count)) if folder else None
        return int(found[1]) if found else 0

    def why(self) -> str:
        """Why a process of ours was killed by SIGKILL, as far as that is known. Call it once for
        each."""
        if self._count() <= self._told:
            return "SIGKILL comes from the system when memory is short (see dmesg), or from a user"
        self._told += 1
        folder, _, limit = _group(self._groups, self._membership)
        most = _read(folder, limit).strip()
        whole = f"; this group of processes may use {int(most) / 2**20:,.0f} MiB" if most.isdigit() and int(most) < _NO_LIMIT else ""
        return f"out of memory: the kernel has killed it, or another process of its control group{whole}"


@functools.lru_cache(maxsize=1)
def kills() -> MemoryKills:
    """Those from the first call on, which must come before the first worker starts."""
    return MemoryKills()
