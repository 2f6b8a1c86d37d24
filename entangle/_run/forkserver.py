"""The forkserver: a clean process that forks workers where the caller itself must not fork.

It has one thread. A process starts it once, when it is first needed, and it keeps a few spare
workers forked ahead, as `forker.py` says. One request starts one worker. What workers had to import
later ones have from the beginning: the server forks a template for it (`preloading.py`).
"""

from __future__ import annotations

import _socket
import atexit
import contextlib
import gc
import importlib
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from typing import Any, NoReturn

from entangle._run import python_command
from entangle._run.forker import Forker, send
from entangle._run.preloading import Preloading
from entangle._run.templates import Templates
from entangle._shared.descriptors import OwnDescriptors
from entangle._shared.home import home
from entangle._shared.orders import pair
from entangle._worker import coverage, janitor
from entangle.cookies import jobserver_style
from entangle.errors import EntangleError
from entangle.flow import DEVICE

# Seconds that the server gets to end, with its templates.
_ENDING = 2


# The caller's side --------------------------------------------------------------------------------


class _Server:
    def __init__(self) -> None:
        ours, theirs = pair()
        # The caller's modules of ours are loaded once here, so that no worker has to load them.
        loaded = [name for name in sys.modules if name.startswith("entangle.") and name.count(".") <= 2]
        loaded = [name for name in loaded if not name.startswith(("entangle.tests", "entangle.examples", "entangle.logging"))]
        self.preloading = Preloading()
        news = self.preloading.tell.fileno()
        where = f"{theirs.fileno()}, {news}, {os.getpid()}, {home().path!r}, {jobserver_style()!r}, {loaded!r}"
        code = f"from entangle._run.forkserver import serve; serve({where})"
        with contextlib.closing(theirs), janitor.off_duty():
            self.process = subprocess.Popen(
                python_command.command(code),
                pass_fds=[theirs.fileno(), news],
                env=python_command.environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.preloading.tell.close()
        self.socket = ours
        self._own = OwnDescriptors(ours.fileno(), self.preloading._hear.fileno())
        self.pid = os.getpid()
        self.lock = threading.Lock()

    def close(self) -> None:
        """Close what leads to the server: it ends."""
        if not self._own.lost():
            self.socket.close()
            self.preloading.close()
            return
        self.socket.detach()
        self.preloading.forget()
        if self.pid == os.getpid():
            self.process.kill()
            self.process.wait()

    def alive(self) -> bool:
        return self.pid == os.getpid() and self.process.poll() is None and not self._own.lost()


_server: _Server | None = None
_guard = threading.Lock()


def _after_fork() -> None:
    """Forget the parent's server in a forked child. The child starts its own if it needs one."""
    global _server, _guard
    if _server is not None:
        _server.close()
        _server.process.returncode = 0  # not our child
    _server, _guard = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def warm_up() -> None:
    """Start the server if there is none, without waiting for it."""
    global _server
    with _guard:
        if _server is None or not _server.alive():
            if _server is not None:
                _server.close()
                if _server.pid == os.getpid() and _server.process.returncode == 1:
                    _server = None
                    raise EntangleError(
                        "the forkserver ended while it started; its error is on stderr. Workers started with start='spawn' do not need it"
                    )
            else:
                atexit.register(_end_with_the_program)
            _server = _Server()


def ask(directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int]) -> int:
    """Ask for a worker. Return the read end of its status pipe."""
    marks = [0 if fd >= 0 else -1 for fd in fds]
    order = {"directory": directory, "flow_path": flow_path, "slot": slot, "lane": lane, "serial": serial, "fds": marks}
    return _ask(order, [fd for fd in fds if fd >= 0], clean=lane >= DEVICE)


def ask_for_warm_worker(channel: int, stderr: int, settings: dict[str, Any], clean: bool = False) -> int:
    """Ask for a worker that outlives runs (`warm_life.py`); `channel` is its end of a socket pair,
    `stderr` where it writes, or -1: where this process does. A `clean` one has loaded nothing of
    the user's. Return the read end of its status pipe."""
    return _ask({"warm": settings}, [fd for fd in (channel, stderr) if fd >= 0], clean)


def _ask(order: dict[str, Any], present: list[int], clean: bool = False) -> int:
    """Ask for a worker. A `clean` one sets its environment before anything is imported."""
    attempt = 0
    while True:
        attempt += 1
        warm_up()
        server = _server
        assert server is not None
        status_read, status_write = os.pipe()
        try:
            with server.lock:
                order["key"], news = ("", None) if clean else server.preloading.choose()
                if news is not None:
                    send(server.socket, news)
                send(server.socket, order, [status_write, *present])
            return status_read
        except OSError:
            os.close(status_read)
            if attempt == 2:
                raise
            with contextlib.suppress(subprocess.TimeoutExpired):
                server.process.wait(1)  # it was killed; a new one takes over
        finally:
            os.close(status_write)


def stop() -> None:
    """End the server and its spare workers."""
    global _server
    with _guard:
        server, _server = _server, None
    if server is not None and server.pid == os.getpid():
        server.close()
        try:
            server.process.wait(_ENDING + (coverage.PATIENCE if coverage.measured() else 0.0))
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


#: Called at the end of the program while the server is there: those it serves end first, in order.
served: list[Callable[[], None]] = []


def _end_with_the_program() -> None:
    for end in served:
        end()
    stop()


# The server's side --------------------------------------------------------------------------------


def serve(channel_fd: int, news: int, caller: int, home_path: str, jobserver: str, loaded: list[str]) -> None:
    """Serve orders until the caller ends: the main function of the server's interpreter."""
    # Every worker would run make to find out otherwise.
    os.environ["ENTANGLE_JOBSERVER"] = jobserver
    # What a worker needs is loaded before it is forked.
    for name in ("cloudpickle", "entangle._run.start", "entangle._run.warm_life", *loaded):
        importlib.import_module(name)
    gc.collect()
    gc.freeze()  # workers need not copy what the collector does not touch
    for number in (signal.SIGINT, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    os.set_inheritable(news, False)
    channel = _socket.socket(fileno=channel_fd)
    channel.setblocking(True)
    os.set_inheritable(channel_fd, False)
    _Forkserver(channel, caller, home_path, news).serve()


class _Forkserver(Forker):
    """The forker in the server: it gives orders to its own workers, or to templates."""

    def __init__(self, channel: _socket.socket, caller: int, home: str, news: int) -> None:
        super().__init__(channel, caller, home, news)
        self.templates = Templates(self)

    def watched(self) -> list[int]:
        return [*super().watched(), *self.templates.watched()]

    def patience(self) -> float | None:
        return min((seconds for seconds in (super().patience(), self.templates.patience()) if seconds is not None), default=None)

    def spares_wanted(self) -> int:
        return min(2, super().spares_wanted()) if self.templates.serving else super().spares_wanted()

    def carry_out(self, order: dict[str, Any], fds: list[int]) -> None:
        if "names" in order:
            self.templates.want(order)
        elif self.templates.pass_on(order.pop("key"), order, fds):
            for fd in fds:
                os.close(fd)
        else:
            self.start_worker(order, fds)

    def look_around(self, ready: list[int]) -> None:
        self.templates.look_around(ready)

    def child_ended(self, pid: int) -> None:
        self.templates.child_ended(pid)

    def end(self) -> NoReturn:
        self.templates.end()
        super().end()
