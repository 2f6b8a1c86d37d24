"""Shared connections of the OpenSSH client: a login, kept as long as a stream here uses it."""

from __future__ import annotations

import contextlib
import glob
import os
import subprocess
import threading
import time
from collections.abc import Sequence

from entangle._remote.transport.login_limit import FurtherLogins, turn
from entangle._remote.transport.ssh_diagnosis import diagnose, no_answer
from entangle._remote.transport.ssh_options import LOGIN, SSHOptions
from entangle._remote.wire.controls import escaped
from entangle._shared.home import home
from entangle._shared.polling import readable
from entangle._worker import janitor
from entangle.errors import FarError


class SharedConnection:
    """A login that is kept, and the number of streams that use it. It ends with the last of them.

    Each login has a socket name of its own: an ssh that ends removes its socket by name, and must
    not remove that of its successor.
    """

    def __init__(self, name: str) -> None:
        self.name = name
        self.path = os.path.join(home().path, f"{name}-{os.urandom(2).hex()}")
        self.users = 0
        self.doubtful = False
        self.process: subprocess.Popen[bytes] | None = None
        self.login_lock = threading.Lock()

    def log_in(self, ssh: SSHOptions, options: Sequence[str]) -> None:
        """Log in. Raises what `SSHTransport.open` does."""
        end, further = time.monotonic() + LOGIN, FurtherLogins()
        command = [*options, "-M", "-o", "ControlPersist=no", "-S", self.path.replace("%", "%%"), "--", ssh.host, "exec cat >/dev/null"]
        while True:
            with turn(ssh.host, LOGIN):
                with janitor.off_duty():
                    process = subprocess.Popen(
                        command,
                        stdin=subprocess.PIPE,
                        stdout=subprocess.DEVNULL,
                        stderr=subprocess.PIPE,
                        bufsize=0,
                        start_new_session=True,
                    )
                self.process = process
                try:
                    # The socket appears when ssh is in. It does not say so otherwise.
                    while not os.path.exists(self.path) and process.poll() is None and time.monotonic() < end:
                        assert process.stderr is not None
                        readable([process.stderr.fileno()], 0.002)
                        time.sleep(0.002)
                    if os.path.exists(self.path):
                        return
                    trouble, words = login_error(ssh, process, end)
                except BaseException:
                    self.end()
                    raise
            self.end()
            if not further.allowed(words):
                raise trouble

    def alive(self) -> bool:
        """Whether its program runs and nobody has put it in doubt."""
        return self.process is not None and self.process.poll() is None and not self.doubtful and os.path.exists(self.path)

    def end(self) -> None:
        """Close it, and reap its program."""
        process, self.process = self.process, None
        if process is None:
            return
        assert process.stdin is not None
        assert process.stderr is not None
        with contextlib.suppress(OSError):
            process.stdin.close()
        # No orderly logout: nothing uses it any more, and the server notices the closed socket.
        process.terminate()
        try:
            process.wait(1.0)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()
        process.stderr.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.path)

    def abandon(self) -> None:
        """In a forked child: close the copies of its descriptors; it is the parent's."""
        process, self.process = self.process, None
        if process is not None:
            for file in (process.stdin, process.stderr):
                if file is not None:
                    with contextlib.suppress(OSError):
                        file.close()
            process.returncode = 0


_connections: dict[str, SharedConnection] = {}
_guard = threading.Lock()


def _after_fork() -> None:
    global _guard
    _guard = threading.Lock()  # a thread that held it was not forked along
    for connection in _connections.values():
        connection.abandon()
    _connections.clear()


os.register_at_fork(after_in_child=_after_fork)


def take(ssh: SSHOptions, options: Sequence[str], name: str) -> tuple[SharedConnection, bool]:
    """The connection to a host, with one more user, and whether it was made just now."""
    while True:
        with _guard:
            connection = _connections.get(name)
            if connection is None:
                connection = _connections[name] = SharedConnection(name)
            connection.users += 1
        fresh = False
        try:
            with connection.login_lock:
                if connection.process is None and not connection.doubtful:
                    connection.log_in(ssh, options)
                    fresh = True
        except BaseException:
            connection.doubtful = True
            give_back(connection)
            raise
        if connection.alive():
            return connection, fresh
        connection.doubtful = True
        give_back(connection)


def give_back(connection: SharedConnection) -> None:
    """Drop a user; the last one ends the connection. One in doubt is given to nobody any more."""
    with _guard:
        connection.users -= 1
        last = not connection.users
        if (connection.doubtful or last) and _connections.get(connection.name) is connection:
            del _connections[connection.name]
    if last:
        connection.end()


def connection_of_the_tree(name: str) -> str | None:
    """The socket of a connection that the owner of the home of our tree keeps, if there is one."""
    found = glob.glob(os.path.join(glob.escape(home().path), f"{name}-????"))
    return max(found, default=None, key=lambda path: os.stat(path).st_mtime_ns if os.path.exists(path) else 0)


def login_error(ssh: SSHOptions, process: subprocess.Popen[bytes], end: float) -> tuple[FarError, str]:
    """Why a login failed, and the words of the ssh client; "" where it gave no answer in time."""
    try:
        status = process.wait(max(0.0, min(2.0, end - time.monotonic())))
    except subprocess.TimeoutExpired:
        return no_answer(ssh, LOGIN, _words(process)), ""
    words = _words(process)
    return diagnose(ssh, status, words), words if status == 255 else ""


def _words(process: subprocess.Popen[bytes]) -> str:
    """What a program has written to stderr so far."""
    assert process.stderr is not None
    said = b""
    while len(said) < 1 << 16 and readable([process.stderr.fileno()], 0.0):
        more = os.read(process.stderr.fileno(), 1 << 14)
        if not more:
            break
        said += more
    return escaped(said.decode(errors="replace"))
