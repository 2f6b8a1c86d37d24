"""The forkserver: a clean process that forks workers where the caller itself must not fork.

It has one thread. A process starts it once, when it is first needed, and it keeps a few spare
workers forked ahead. One request starts one worker::

    caller ── run directory, slot, descriptors ──▶ server ──▶ a spare, which joins the run and works
    caller ◀── status pipe: pid (8 bytes) at first, exit code or minus signal (4) at last ── server

Requests are JSON over a socket pair, with the descriptors beside them (SCM_RIGHTS). When the caller
ends, the server ends, and kills all workers that it has started.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import importlib
import json
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from array import array
from typing import Any

from entangle._run import life, python_command
from entangle._shared.home import home
from entangle._shared.polling import readable
from entangle._shared.site import Site
from entangle._shared.table import Table
from entangle._worker import coverage, janitor
from entangle._worker.joining import BROKEN, NotJoined, join_run, write_flow
from entangle._worker.worker import run_as
from entangle.cookies import available_cpus, jobserver_style
from entangle.errors import EntangleError
from entangle.flow import PROCESS, Body, Flow, Shape

# Bytes of a request. The paths of a run may have thousands, and JSON takes up to six for a letter.
_MOST = 1 << 20
# Seconds without a request before a spare is forked. Runs that follow each other then find one that
# has rehearsed.
_QUIET = 0.002


# The caller's side --------------------------------------------------------------------------------


class _Server:
    def __init__(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        # The caller's modules of ours are loaded once here, so that no worker has to load them.
        loaded = [name for name in sys.modules if name.startswith("entangle.") and name.count(".") <= 2]
        loaded = [name for name in loaded if not name.startswith(("entangle.tests", "entangle.examples", "entangle.logging"))]
        where = f"{theirs.fileno()}, {os.getpid()}, {home().path!r}, {jobserver_style()!r}, {loaded!r}"
        code = f"from entangle._run.forkserver import serve; serve({where})"
        with theirs, janitor.off_duty():
            self.process = subprocess.Popen(
                python_command.command(code),
                pass_fds=[theirs.fileno()],
                env=python_command.environment(),
                cwd="/",
                stdin=subprocess.DEVNULL,
                start_new_session=True,
            )
        self.socket = ours
        self.pid = os.getpid()
        self.lock = threading.Lock()

    def alive(self) -> bool:
        return self.pid == os.getpid() and self.process.poll() is None


_server: _Server | None = None
_guard = threading.Lock()


def _after_fork() -> None:
    """Forget the parent's server in a forked child. The child starts its own if it needs one."""
    global _server, _guard
    if _server is not None:
        _server.socket.close()
        _server.process.returncode = 0  # not our child
    _server, _guard = None, threading.Lock()


os.register_at_fork(after_in_child=_after_fork)


def warm_up() -> None:
    """Start the server if there is none, without waiting for it."""
    global _server
    with _guard:
        if _server is None or not _server.alive():
            if _server is not None:
                _server.socket.close()
                if _server.pid == os.getpid() and _server.process.returncode == 1:
                    _server = None
                    raise EntangleError(
                        "the forkserver ended while it started; its error is on stderr. Workers started with start='spawn' do not need it"
                    )
            else:
                atexit.register(stop)
            _server = _Server()


def ask(directory: str, flow_path: str, slot: int, lane: int, serial: int, fds: list[int]) -> int:
    """Ask for a worker. Return the read end of its status pipe."""
    marks = [0 if fd >= 0 else -1 for fd in fds]
    order = {"directory": directory, "flow_path": flow_path, "slot": slot, "lane": lane, "serial": serial, "fds": marks}
    return _ask(order, [fd for fd in fds if fd >= 0])


def ask_for_warm_worker(channel: int, stderr: int, settings: dict[str, Any]) -> int:
    """Ask for a worker that outlives runs (`warm_life.py`); `channel` is its end of a socket pair,
    `stderr` where it writes, or -1: where this process does. Return the read end of its status
    pipe."""
    return _ask({"warm": settings}, [fd for fd in (channel, stderr) if fd >= 0])


def _ask(order: dict[str, Any], present: list[int]) -> int:
    attempt = 0
    while True:
        attempt += 1
        warm_up()
        server = _server
        assert server is not None
        status_read, status_write = os.pipe()
        text = json.dumps(order).encode()
        try:
            with server.lock:
                socket.send_fds(server.socket, [len(text).to_bytes(4, "little") + text], [status_write, *present])
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
        server.socket.close()
        try:
            server.process.wait(2 + (coverage.PATIENCE if coverage.measured() else 0.0))
        except subprocess.TimeoutExpired:
            server.process.kill()
            server.process.wait()


# The server's side --------------------------------------------------------------------------------


def _receive(channel: socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receive one order with its descriptors; None where the other side is gone."""
    head, fds, _, _ = socket.recv_fds(channel, 4, 16)
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "little")
    if size > _MOST:
        raise ValueError(f"an order of {size:,} bytes to the forkserver; the most is {_MOST:,}")
    text = b""
    while len(text) < size:
        more = channel.recv(size - len(text))
        if not more:
            return None
        text += more
    order: dict[str, Any] = json.loads(text)
    return order, list(fds)


def _pass_on(channel: socket.socket, order: dict[str, Any], fds: list[int]) -> None:
    text = json.dumps(order).encode()
    socket.send_fds(channel, [len(text).to_bytes(4, "little") + text], fds)


def serve(channel_fd: int, caller: int, home_path: str, jobserver: str, loaded: list[str]) -> None:
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
    channel = socket.socket(fileno=channel_fd)
    channel.setblocking(True)  # gevent's sockets, one of which this was, do not block
    wake_read, wake_write = os.pipe()
    os.set_blocking(wake_write, False)
    os.set_blocking(wake_read, False)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.set_wakeup_fd(wake_write, warn_on_full_buffer=False)
    watched = [channel_fd, wake_read]
    with contextlib.suppress(AttributeError, OSError):
        # Shows the end of the caller even while its other children hold our socket open.
        watched.append(os.pidfd_open(caller))
    wanted = min(len(available_cpus()) + 2, 8)
    spares: list[tuple[int, socket.socket]] = []
    status: dict[int, int] = {}
    try:
        while True:
            ready = readable(watched, _QUIET if len(spares) < wanted else None)
            if wake_read in ready:
                with contextlib.suppress(BlockingIOError):
                    os.read(wake_read, 4096)
                _reap(status, spares)
            if len(watched) > 2 and watched[2] in ready:
                return
            if channel_fd in ready:
                received = _receive(channel)
                if received is None:
                    return
                order, fds = received
                if not spares:
                    spares.append(_fork_spare(channel, spares, status, ""))
                pid, to_spare = spares.pop(0)  # the oldest has most likely rehearsed
                with contextlib.suppress(OSError):  # the run is over; the spare will see that too
                    os.write(fds[0], pid.to_bytes(8, "little"))
                with contextlib.suppress(OSError):  # the spare was killed; its end will be reported
                    _pass_on(to_spare, order, fds[1:])
                to_spare.close()
                for fd in fds[1:]:
                    os.close(fd)
                status[pid] = fds[0]
            elif not ready and len(spares) < wanted:
                spares.append(_fork_spare(channel, spares, status, home_path))
    finally:
        until = time.monotonic() + (coverage.PATIENCE if coverage.measured() else 0.0)
        while status and time.monotonic() < until:
            _reap(status, spares)
            time.sleep(0.01)
        for pid in (*status, *(pid for pid, _ in spares)):
            for kill in (os.killpg, os.kill):
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    kill(pid, signal.SIGKILL)
        os._exit(0)


def _reap(status: dict[int, int], spares: list[tuple[int, socket.socket]]) -> None:
    while True:
        try:
            found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:
            return
        if found is None:
            return
        pid = found.si_pid
        # Kill what it has left in its process group, before the pid can be used again.
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
        code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
        fd = status.pop(pid, -1)
        if fd >= 0:
            with contextlib.suppress(OSError):
                os.write(fd, code.to_bytes(4, "little", signed=True))
            os.close(fd)
        for spare in [spare for spare in spares if spare[0] == pid]:
            spares.remove(spare)
            spare[1].close()


def _fork_spare(
    channel: socket.socket, spares: list[tuple[int, socket.socket]], status: dict[int, int], home_path: str
) -> tuple[int, socket.socket]:
    """Fork a worker that waits for an order. It rehearses first if it is told the home that it will
    work in."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    server = os.getpid()
    pid = os.fork()
    if pid:
        theirs.close()
        return pid, ours
    code = BROKEN
    try:
        # Close what is the server's alone. A spare that kept it would hide the end of a stream.
        ours.close()
        channel.close()
        for _, to_spare in spares:
            to_spare.close()
        for fd in status.values():
            os.close(fd)
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        life.die_with(server)
        stderr = os.dup(2)  # a rehearsal replaces it
        if home_path:
            with contextlib.suppress(OSError):  # on a full disk it waits without a rehearsal
                _rehearse(home_path, server)
        received = _receive(theirs)
        if received is None:
            os._exit(0)
        theirs.close()
        order, fds = received
        if "warm" in order:
            from entangle._run import warm_life

            warm_life.begin(server, fds[1] if len(fds) > 1 else stderr, fds[0], order["warm"])
        os.close(stderr)
        present = iter(fds)
        err, out, *others = [next(present) if mark == 0 else -1 for mark in order["fds"]]
        life.settle_in(server, err, out)
        code = life.live(join_run(order["directory"], order["flow_path"], order["slot"], order["lane"], order["serial"], others))
    except NotJoined as why:
        code = why.code
    except BaseException:
        life.report_bug()
    finally:
        os._exit(code)


def _rehearse(home: str, server: int) -> None:
    """Go once through all that a worker does first, while there is nothing else to do.

    A new process copies every page when it first touches it: the same steps take five times as
    long.
    """
    import cloudpickle

    null = os.open(os.devnull, os.O_RDWR)
    life.settle_in(server, null, -1)
    directory = os.path.join(home, f"w{os.urandom(8).hex()}")
    os.mkdir(directory, 0o700)
    try:
        one = array("i", (0,))
        flow = Flow([Body(_nothing, "rehearsal")], [Shape(0)], one, one, array("q", (0, 0)), array("q"), [], leaves=1)
        lanes = [PROCESS]
        table = Table.create(flow, 4, lanes, os.path.join(directory, "table"))
        wake, (listen, tell) = os.pipe(), os.pipe()
        site = Site(flow, table, directory, home, directory, wake, (-1, -1), tell)
        write_flow(site)
        others = [os.dup(fd) for fd in wake] + [-1, -1, os.dup(tell)]
        worker = join_run(directory, site.flow_path, 1, PROCESS, 1, others)
        run_as(worker)
        worker.site.leave()
        site.leave()
        os.close(listen)
        pickle.loads(cloudpickle.dumps(lambda: None))
    finally:
        for name in os.listdir(directory):
            os.unlink(os.path.join(directory, name))
        os.rmdir(directory)


def _nothing() -> None:
    """The body of a rehearsal."""
