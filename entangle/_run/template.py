"""A template: a child of the forkserver that has modules loaded, and forks workers of its own.

The server stays clean. What a template has imported is put back as in a warm worker
(`_worker/putting_back.py`), and what cannot be put back makes it no template: a thread, an open
descriptor, a child, a library that does not survive a fork. A template that the server has retired
takes no more orders, and lives until its last worker has ended::

    server ── orders for workers, `retire` ──▶ template
    server ◀── `ready`, or `refused` ───────── template
"""

from __future__ import annotations

import _socket
import contextlib
import gc
import importlib
import mmap
import os
import signal
import sys
import time
from collections.abc import Iterable
from typing import Any, NoReturn

from entangle._run import life
from entangle._run.forker import Forker, send
from entangle._run.forking import why_not_template
from entangle._shared.orders import pair
from entangle._worker import inheritance, library_threads, module_files
from entangle._worker.joining import BROKEN
from entangle._worker.putting_back import Before, Descriptors, identity, limits

#: Clocks of file systems are behind by up to a tick of the kernel (seconds).
_TICK = 0.02
#: What timers send when they are over.
_OF_TIMERS = (signal.SIGALRM, signal.SIGVTALRM, signal.SIGPROF)


class NotPreloadable(Exception):
    """Modules that no template may have: their places in the list, and why."""

    def __init__(self, places: Iterable[int], why: str) -> None:
        super().__init__(why)
        self.places = list(places)


def fork_template(server: Forker, wanted: dict[str, Any], others: list[_socket.socket], at: mmap.mmap) -> tuple[int, _socket.socket]:
    """Fork a template, and return its pid and the socket that leads there.

    It writes to `at` which of the wanted modules it imports, the first as 1; `others` lead to other
    templates.
    """
    ours, theirs = pair()
    parent = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    try:
        for channel in (ours, *others):
            channel.close()
        server.let_go()
        life.die_with(parent)
        os.setpgid(0, 0)
        _be_template(theirs, server, wanted, at)
    except (BrokenPipeError, ConnectionResetError):
        pass  # the server has ended, with its program
    except BaseException:
        life.report_bug()
    finally:
        os._exit(BROKEN)


def _be_template(channel: _socket.socket, server: Forker, wanted: dict[str, Any], at: mmap.mmap) -> NoReturn:
    try:
        stamps, settled = _load(wanted["names"], wanted["state"], at)
    except NotPreloadable as why:
        send(channel, {"refused": why.places, "why": str(why)})
        os._exit(0)
    at.close()
    module_files.forked_with = stamps
    gc.collect()
    gc.freeze()  # workers need not copy what the collector does not touch
    send(channel, {"ready": stamps, "settled": settled, "took": time.process_time()})
    _Template(channel, server.caller, server.home, server.news).serve()


def _load(names: list[str], state: dict[str, Any], at: mmap.mmap) -> tuple[module_files.Stamps, bool]:
    """Import these modules. Return the files of the user's among them, and whether none was written
    meanwhile: it may be another one than was read."""
    descriptors = Descriptors()
    before = Before(descriptors)
    null = os.open(os.devnull, os.O_WRONLY)
    for fd in (1, 2):  # the worker that had imported them first has said what there was to say
        os.dup2(null, fd)
    os.close(null)
    inheritance.take_on(state, "before")
    # A timer that an import leaves on would end this process before it is stopped with the rest.
    signal.pthread_sigmask(signal.SIG_BLOCK, _OF_TIMERS)
    # With one thread, libraries start none: any thread that is there is another's. Each worker
    # tells them how many they may have.
    library_threads.keep_to_one()
    importlib.invalidate_caches()
    began = time.time_ns() - int(_TICK * 1e9)
    opened = len(os.listdir("/proc/self/fd"))
    user, limited = identity(), limits()
    limiting = []
    for index, name in enumerate(names):
        if name in sys.modules:
            continue
        at[:8] = (index + 1).to_bytes(8, "little")
        try:
            importlib.import_module(name)
        except BaseException as error:
            raise NotPreloadable([index], f"its import raises {type(error).__name__}") from None
        # Asked first, and at once: what comes next may fail only because of this.
        why = "it has changed the user, groups, session or root directory" if identity() != user else why_not_template()
        if not why and len(os.listdir("/proc/self/fd")) > opened:
            why = "it has opened files or sockets"
        if not why and _children():
            why = "it has started processes"
        if why:
            raise NotPreloadable([index], why)
        if (now := limits()) != limited:
            limited = now
            limiting.append(index)
    at[:8] = (len(names) + 1).to_bytes(8, "little")
    files = module_files.ModuleFiles()
    files.note()
    if why := before.put_back():  # the streams as well
        raise NotPreloadable(limiting or range(len(names)), why)
    descriptors.close()
    return files.stamps, all(not began <= changed <= time.time_ns() for _, changed, _ in files.stamps.values())


def _children() -> bool:
    with contextlib.suppress(OSError), open(f"/proc/self/task/{os.getpid()}/children", "rb", buffering=0) as file:
        return bool(file.read(16))
    return False


class _Template(Forker):
    """The forker in a template."""

    _retired = False
    #: Whether it has had an order: before that, it is not known that anybody needs it.
    _used = False

    def goes_on(self) -> bool:
        return not self._retired or bool(self.status)

    def spares_wanted(self) -> int:
        return super().spares_wanted() if self._used and not self._retired else 0

    def carry_out(self, order: dict[str, Any], fds: list[int]) -> None:
        if "retire" in order:
            self._retired = True
            spares, self.spares = self.spares, []
            for _, to_spare in spares:
                to_spare.close()  # it ends
        else:
            self._used = True
            self.start_worker(order, fds)
