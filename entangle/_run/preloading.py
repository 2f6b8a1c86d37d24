"""Which modules workers from the forkserver are forked with: what earlier ones had to import.

::

    worker ── what it has imported ──▶ caller          a datagram, read at the next request
    caller ── state, names of modules ──▶ server       once; with each request, a key of the state
    server ── forks ──▶ template, which imports them   and then forks the workers of that key

Only what the caller has loaded too, from the same file, is passed on. So the caller's state already
has what these imports change in it, and workers do not miss what a template puts back. The state is
that on which imports rely: where it differs, a module may be another one. Nobody waits for a
template: until it is there, workers import for themselves.
"""

from __future__ import annotations

import json
import os
import socket
import sys
import zlib
from typing import Any

from entangle._run.forker import MOST
from entangle._shared import module_lookup
from entangle._shared.polling import readable
from entangle._worker import coverage
from entangle._worker.imported import file_of
from entangle._worker.library_threads import users_environment

#: Variables that change all the time, and on which no import relies.
_PASSING = frozenset(("PYTEST_CURRENT_TEST",))
#: Bytes of the largest datagram.
_DATAGRAM = 1 << 18


class Preloading:
    """What one caller has its workers forked with. Used by one thread at a time."""

    def __init__(self) -> None:
        self._hear, self.tell = socket.socketpair(socket.AF_UNIX, socket.SOCK_DGRAM)
        for end in (self._hear, self.tell):
            os.set_blocking(end.fileno(), False)
        #: What workers have imported, in their order: names and files.
        self._imported: dict[str, str] = {}
        self._names: list[str] = []
        #: Those of them that are worth a template: Python's own are imported quickly.
        self._slow: list[str] = []
        self._modules_seen = 0
        self._last = ""
        #: For which modules the server was told each key.
        self._told: dict[str, list[str]] = {}

    def close(self) -> None:
        """Close both ends."""
        self._hear.close()
        self.tell.close()

    def forget(self) -> None:
        """Drop both ends, after somebody has closed them."""
        self._hear.detach()
        self.tell.detach()

    def choose(self) -> tuple[str, dict[str, Any] | None]:
        """The key of the workers that are asked for now, "" for clean ones; and what the server has
        to be told before, None if it knows."""
        if self._hear.fileno() < 0:  # the server is gone
            return "", None
        while readable([self._hear.fileno()], 0):
            for name, file in json.loads(zlib.decompress(os.read(self._hear.fileno(), _DATAGRAM))):
                if self._imported.get(name) != file:
                    self._imported[name] = file
                    self._modules_seen = -1
        if len(sys.modules) != self._modules_seen:
            self._modules_seen = len(sys.modules)
            self._names = [name for name, file in self._imported.items() if _is_here(name, file)]
            self._slow = [name for name in self._names if name.partition(".")[0] not in sys.stdlib_module_names]
        # Where lines are measured, those of a template would be lost.
        if not self._slow or sys.platform != "linux" or coverage.measured():
            return "", None
        try:
            state: dict[str, Any] = {
                "environment": users_environment(),
                "argv": list(map(str, sys.argv)),
                "path": list(map(str, sys.path)),
                "directory": os.getcwd(),
            }
        except FileNotFoundError:  # our working directory was removed
            return "", None
        environment = sorted((name, value) for name, value in state["environment"].items() if name not in _PASSING)
        key = str(hash((*environment, None, *state["argv"], None, *state["path"], None, state["directory"])))
        if self._told.get(key) == self._slow:
            return key, None
        if self._told and key not in self._told and key != self._last:
            self._last = key  # a state that is never seen again is not worth a template
            return key, None
        known = {"key": key, "state": state, "names": self._names}
        if len(json.dumps(known)) > MOST:
            return "", None
        if len(self._told) > 100:
            self._told.clear()
        self._told[key] = self._slow
        return key, known


def _is_here(name: str, file: str) -> bool:
    """Whether this process has loaded the same module. Tests' conftest.py is known by many names,
    and is the main process's."""
    if name in module_lookup.travelled or name.rpartition(".")[2] == "conftest":
        return False
    ours = file_of(name, sys.modules.get(name))
    return ours == file or (bool(ours) and os.path.abspath(ours) == os.path.abspath(file))
