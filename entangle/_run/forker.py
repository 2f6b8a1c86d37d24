"""A process with one thread that forks workers ahead and gives them to runs.

Such are the clean server (`forkserver.py`), and its templates, which have modules loaded
(`template.py`)::

    order, descriptors ──▶ forker ──▶ a spare, which joins the run and works
    caller ◀── status pipe: pid (8 bytes) at first, exit code or minus signal (4) at last

Orders are JSON over a socket pair, with the descriptors beside them (SCM_RIGHTS). When the other
end or the caller is gone, a forker ends, and kills all workers that it has forked.
"""

from __future__ import annotations

import _socket
import contextlib
import json
import os
import pickle
import signal
import socket
import time
from array import array
from typing import Any, NoReturn

from entangle._run import life
from entangle._run.worker_process import end_rest_of_group
from entangle._shared.orders import pair
from entangle._shared.polling import readable
from entangle._shared.site import Site
from entangle._shared.table import Table
from entangle._worker import coverage, trackers
from entangle._worker.imported import Imported
from entangle._worker.joining import BROKEN, NotJoined, join_run, write_flow
from entangle._worker.worker import run_as
from entangle.cookies import available_cpus
from entangle.flow import PROCESS, Body, Flow, Shape

# Bytes of an order. The paths of a run may have thousands, and JSON takes up to six for a letter.
MOST = 1 << 20
# Seconds without an order before a spare is forked. Runs that follow each other then find one that
# has rehearsed.
_QUIET = 0.002


def send(channel: _socket.socket, order: dict[str, Any], fds: list[int] | None = None) -> None:
    """Send an order with its descriptors.

    Raises OSError if the other side is gone.
    """
    text = json.dumps(order).encode()
    whole = len(text).to_bytes(4, "little") + text
    rights = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array("i", fds))] if fds else []
    sent = channel.sendmsg([whole], rights)
    channel.sendall(memoryview(whole)[sent:])


def receive(channel: _socket.socket) -> tuple[dict[str, Any], list[int]] | None:
    """Receive one order with its descriptors; None where the other side is gone."""
    try:
        of_python: Any = channel  # a class below it is asked for, though it would do
        head, fds, _, _ = socket.recv_fds(of_python, 4, 16)
    except ConnectionResetError:
        return None
    if len(head) < 4:
        return None
    size = int.from_bytes(head, "little")
    if size > MOST:
        raise ValueError(f"an order of {size:,} bytes to the forkserver; the most is {MOST:,}")
    text = b""
    while len(text) < size:
        more = channel.recv(size - len(text))
        if not more:
            return None
        text += more
    order: dict[str, Any] = json.loads(text)
    return order, list(fds)


class Forker:
    """Forks workers ahead, gives each order to one of them, and tells how they end.

    `home` is where they will work. To `news` they write what they import (`_worker/imported.py`).
    """

    def __init__(self, channel: _socket.socket, caller: int, home: str, news: int) -> None:
        self.channel = channel
        self.caller = caller
        self.home = home
        self.news = news
        #: Workers that wait for an order: pid, and the socket that leads there.
        self.spares: list[tuple[int, _socket.socket]] = []
        #: The status pipe of each worker that has got one.
        self.status: dict[int, int] = {}
        self._wake = os.pipe()
        for fd in self._wake:
            os.set_blocking(fd, False)
        #: Shows the end of the caller even while its other children hold our socket open.
        self._caller_watch = -1
        with contextlib.suppress(AttributeError, OSError):
            self._caller_watch = os.pidfd_open(caller)

    def serve(self) -> NoReturn:
        """Carry out orders until the caller is gone."""
        signal.signal(signal.SIGCHLD, lambda *_: None)
        signal.set_wakeup_fd(self._wake[1], warn_on_full_buffer=False)
        try:
            while self.goes_on():
                ready = readable(self.watched(), self.patience())
                if self._wake[0] in ready:
                    with contextlib.suppress(BlockingIOError):
                        os.read(self._wake[0], 4096)
                    self._reap()
                if self._caller_watch in ready:
                    return  # type: ignore[misc]  # the process ends below
                if self.channel.fileno() in ready:
                    received = receive(self.channel)
                    if received is None:
                        return  # type: ignore[misc]
                    self.carry_out(*received)
                elif not ready and len(self.spares) < self.spares_wanted():
                    self._fork_spare(self.home)
                self.look_around(ready)
        finally:
            self.end()

    # What the server and its templates do in ways of their own.

    def goes_on(self) -> bool:
        """Whether more may come."""
        return True

    def watched(self) -> list[int]:
        """What it waits for."""
        return [fd for fd in (self.channel.fileno(), self._wake[0], self._caller_watch) if fd >= 0]

    def patience(self) -> float | None:
        """How long it waits for that (seconds); None: as long as it takes."""
        return _QUIET if len(self.spares) < self.spares_wanted() else None

    def spares_wanted(self) -> int:
        """How many workers are to be forked ahead."""
        return min(len(available_cpus()) + 2, 8)

    def carry_out(self, order: dict[str, Any], fds: list[int]) -> None:
        """Carry out one order: by default, give it to a worker."""
        self.start_worker(order, fds)

    def look_around(self, ready: list[int]) -> None:
        """Do what else there is to do; `ready` are those watched that can be read."""

    def child_ended(self, pid: int) -> None:
        """Hear of the end of a child that is no worker."""

    # Workers.

    def start_worker(self, order: dict[str, Any], fds: list[int]) -> None:
        """Give an order to a worker. The first descriptor is its status pipe, the others go
        along."""
        if not self.spares:
            self._fork_spare("")
        pid, to_spare = self.spares.pop(0)  # the oldest has most likely rehearsed
        with contextlib.suppress(OSError):  # the run is over; the spare will see that too
            os.write(fds[0], pid.to_bytes(8, "little"))
        with contextlib.suppress(OSError):  # the spare was killed; its end will be reported
            send(to_spare, order, fds[1:])
        to_spare.close()
        for fd in fds[1:]:
            os.close(fd)
        self.status[pid] = fds[0]

    def _reap(self) -> None:
        while True:
            try:
                found = os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG | os.WNOWAIT)
            except ChildProcessError:
                return
            if found is None:
                return
            pid = found.si_pid
            # Kill what it has left in its process group, before the pid can be used again.
            end_rest_of_group(pid, found)
            os.waitpid(pid, 0)
            code = found.si_status if found.si_code == os.CLD_EXITED else -found.si_status
            fd = self.status.pop(pid, -1)
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.write(fd, code.to_bytes(4, "little", signed=True))
                os.close(fd)
            for spare in [spare for spare in self.spares if spare[0] == pid]:
                self.spares.remove(spare)
                spare[1].close()
            self.child_ended(pid)

    def end(self) -> NoReturn:
        """Kill all workers, and end."""
        until = time.monotonic() + (coverage.PATIENCE if coverage.measured() else 0.0)
        while self.status and time.monotonic() < until:
            self._reap()
            time.sleep(0.01)
        for pid in (*self.status, *(pid for pid, _ in self.spares)):
            trackers.kill_group(pid)
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.kill(pid, signal.SIGKILL)
        os._exit(0)

    def let_go(self) -> None:
        """In a forked child: close what is its parent's alone.

        A worker that kept it would hide the end of a stream.
        """
        signal.set_wakeup_fd(-1)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        self.channel.close()
        for _, to_spare in self.spares:
            to_spare.close()
        for fd in (*self.status.values(), *self._wake, self._caller_watch):
            if fd >= 0:
                os.close(fd)

    def _fork_spare(self, home: str) -> None:
        """Fork a worker that waits for an order. It rehearses first if it is told the home that it
        will work in."""
        ours, theirs = pair()
        parent = os.getpid()
        pid = os.fork()
        if pid:
            theirs.close()
            self.spares.append((pid, ours))
            return
        code = BROKEN
        try:
            ours.close()
            self.let_go()
            life.die_with(parent)
            stderr = _copy_of_stderr()  # a rehearsal replaces it
            if home:
                with contextlib.suppress(OSError):  # on a full disk it waits without a rehearsal
                    _rehearse(home, parent)
            imported = Imported(self.news)
            received = receive(theirs)
            if received is None:
                os._exit(0)
            theirs.close()
            order, fds = received
            if "warm" in order:
                from entangle._run import warm_life

                warm_life.begin(parent, fds[1] if len(fds) > 1 else stderr, fds[0], order["warm"], imported)
            os.close(stderr)
            present = iter(fds)
            err, out, *others = [next(present) if mark == 0 else -1 for mark in order["fds"]]
            life.settle_in(parent, err, out)
            code = life.live(join_run(order["directory"], order["flow_path"], order["slot"], order["lane"], order["serial"], others))
            imported.tell()
        except NotJoined as why:
            code = why.code
        except BaseException:
            life.report_bug()
        finally:
            os._exit(code)


def _rehearse(home: str, parent: int) -> None:
    """Go once through all that a worker does first, while there is nothing else to do.

    A new process copies every page when it first touches it: the same steps take five times as
    long.
    """
    import cloudpickle

    null = os.open(os.devnull, os.O_RDWR)
    life.settle_in(parent, null, -1)
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


def _copy_of_stderr() -> int:
    """A copy of descriptor 2, or one of /dev/null where the caller has closed it."""
    try:
        return os.dup(2)
    except OSError:
        return os.open(os.devnull, os.O_WRONLY)
