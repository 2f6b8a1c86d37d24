"""The server's templates: which there are, which must not be used any more, and what is refused.

A template serves callers' requests with its key until one of its modules has changed on disk, or a
newer one has taken its place. A module that cannot be in a template is never tried again.
"""

from __future__ import annotations

import _socket
import contextlib
import mmap
import os
import signal
import time
from typing import Any

from entangle._run.forker import Forker, receive, send
from entangle._run.template import fork_template
from entangle._shared.polling import readable
from entangle._worker.module_files import Stamps, installed_places, outdated

#: The most templates that serve at once, and that are alive at once.
_SERVING, _ALIVE = 2, 6
#: Making templates takes this part of a CPU at most: where environment or files change with each
#: run, none would ever be used.
_PART = 0.1
#: Up to this many refusals, the next try follows at once.
_AT_ONCE = 8
#: After this many refusals no template is made any more: the modules are not the cause then.
_MOST_REFUSED = 16
#: An import that takes longer is given up (seconds).
_LONGEST = 60.0
#: How long templates may take to end (seconds).
_ENDING = 1.0


class _Made:
    """A template, as the server sees it."""

    def __init__(self, wanted: dict[str, Any], pid: int, channel: _socket.socket, at: mmap.mmap, installed: list[int]) -> None:
        self.wanted = wanted
        self.pid = pid
        self.channel = channel
        self.at = at
        self.began = time.monotonic()
        self.stamps: Stamps = {}
        self.installed = installed

    @property
    def key(self) -> str:
        """The key of the state in which its modules were imported."""
        return str(self.wanted["key"])

    def fresh(self) -> bool:
        """Whether another process would import the same modules now."""
        return not outdated(self.stamps) and self.installed == _changes_of_installed()


def _changes_of_installed() -> list[int]:
    """When packages were last installed or removed."""
    changes = []
    for place in installed_places():
        with contextlib.suppress(OSError):
            changes.append(os.stat(place).st_mtime_ns)
    return changes


class Templates:
    """The templates of a server."""

    def __init__(self, server: Forker) -> None:
        self._server = server
        #: Those that serve, the last one used at the end.
        self._serving: list[_Made] = []
        self._retired: list[_Made] = []
        self._making: _Made | None = None
        #: What is wanted and is not there yet, by key.
        self._wanted: dict[str, dict[str, Any]] = {}
        #: Modules that no template may have, and how many templates were refused for some.
        self._refused: set[str] = set()
        self._refusals = 0
        self._not_before = 0.0

    @property
    def serving(self) -> int:
        """How many there are that fork workers."""
        return len(self._serving)

    def want(self, wanted: dict[str, Any]) -> None:
        """Make a template with these modules in this state, as soon as may be."""
        self._wanted.pop(wanted["key"], None)
        self._wanted[wanted["key"]] = wanted
        while len(self._wanted) > _SERVING:
            del self._wanted[next(iter(self._wanted))]

    def pass_on(self, key: str, order: dict[str, Any], fds: list[int]) -> bool:
        """Pass an order for a worker on to the template of this key. Return whether there is
        one."""
        made = next((made for made in self._serving if made.key == key), None)
        if made is None:
            return False
        if not made.fresh():
            self._retire(made)
            self._wanted.setdefault(key, made.wanted)
            return False
        try:
            send(made.channel, order, fds)
        except OSError:  # it has just ended
            return False
        self._serving.remove(made)
        self._serving.append(made)
        return True

    # In the server's loop.

    def watched(self) -> list[int]:
        """What there may be news on."""
        return [self._making.channel.fileno()] if self._making is not None else []

    def patience(self) -> float | None:
        """In how many seconds there is something to do; None: when there is news."""
        if self._making is not None:
            return max(0.0, self._making.began + _LONGEST - time.monotonic())
        return max(0.0, self._not_before - time.monotonic()) if self._wanted and self._may_be_more() else None

    def look_around(self, ready: list[int]) -> None:
        """Hear of the template that is being made; make one that is wanted."""
        made = self._making
        if made is not None and made.channel.fileno() in ready:
            self._hear(made)
        elif made is not None and time.monotonic() > made.began + _LONGEST:
            with contextlib.suppress(ProcessLookupError):
                os.kill(made.pid, signal.SIGKILL)
        if self._making is None and self._wanted and self._may_be_more() and time.monotonic() >= self._not_before:
            self._make()

    def child_ended(self, pid: int) -> None:
        """Hear of the end of a child."""
        made = self._making
        if made is not None and made.pid == pid:
            if readable([made.channel.fileno()], 0):
                self._hear(made)
            else:
                self._lost(made)
        for group in (self._serving, self._retired):
            for made in [made for made in group if made.pid == pid]:
                group.remove(made)
                made.channel.close()
                if group is self._serving:
                    self._wanted.setdefault(made.key, made.wanted)

    def end(self) -> None:
        """End all templates, and with them their workers."""
        alive = self._alive()
        for made in alive:
            made.channel.close()
        until = time.monotonic() + _ENDING
        for made in alive:
            with contextlib.suppress(OSError):
                readable([os.pidfd_open(made.pid)], max(0.0, until - time.monotonic()))
            with contextlib.suppress(ProcessLookupError):
                os.kill(made.pid, signal.SIGKILL)  # and the kernel kills its workers

    def _alive(self) -> list[_Made]:
        return [*self._serving, *self._retired, *([self._making] if self._making is not None else [])]

    def _may_be_more(self) -> bool:
        return len(self._alive()) < _ALIVE

    def _make(self) -> None:
        wanted = self._wanted.pop(next(reversed(self._wanted)))
        names = [name for name in wanted["names"] if name not in self._refused]
        if (
            not names
            or self._refusals > _MOST_REFUSED
            or any(made.key == wanted["key"] and made.wanted["names"] == names for made in self._serving)
        ):
            return
        wanted = {**wanted, "names": names}
        at, installed = mmap.mmap(-1, mmap.PAGESIZE), _changes_of_installed()
        pid, channel = fork_template(self._server, wanted, [made.channel for made in self._alive()], at)
        self._making = _Made(wanted, pid, channel, at, installed)

    def _hear(self, made: _Made) -> None:
        """Hear how the making of a template went."""
        news = receive(made.channel)
        if news is None:
            self._lost(made)
            return
        told, _ = news
        if "ready" not in told:
            self._refuse(made, [made.wanted["names"][place] for place in told["refused"]])
            return
        self._making = None
        self._not_before = time.monotonic() + told["took"] / _PART
        made.at.close()
        made.stamps = {name: (file, changed, size) for name, (file, changed, size) in told["ready"].items()}
        for other in [other for other in self._serving if other.key == made.key]:
            self._retire(other)
        self._serving.append(made)
        if not told["settled"]:
            self._retire(made)
            self._wanted.setdefault(made.key, made.wanted)
        while len(self._serving) > _SERVING:
            self._retire(self._serving[0])

    def _lost(self, made: _Made) -> None:
        """Note that a template has died: while it imported something, before, or after that."""
        names, number = made.wanted["names"], int.from_bytes(made.at[:8], "little")
        self._refuse(made, names if number > len(names) else names[max(0, number - 1) : number])

    def _refuse(self, made: _Made, names: list[str]) -> None:
        """Note that there must be no template with these modules."""
        took = time.monotonic() - made.began
        self._making = None
        made.channel.close()
        made.at.close()
        self._refusals += 1
        self._refused.update(names)
        self._not_before = time.monotonic() + (took / _PART if self._refusals > _AT_ONCE else 0.0)
        self._wanted.setdefault(made.key, made.wanted)

    def _retire(self, made: _Made) -> None:
        self._serving.remove(made)
        self._retired.append(made)
        with contextlib.suppress(OSError):  # it has just ended
            send(made.channel, {"retire": True})
