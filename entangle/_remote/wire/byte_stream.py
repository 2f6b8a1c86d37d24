"""Byte streams to a program in another place, over pipes or over any object with read and write."""

from __future__ import annotations

import contextlib
import os
import select
import signal
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

from entangle._shared.polling import new_poll
from entangle._worker import janitor

#: Size of a pipe where the system allows it (bytes). A large value then needs fewer wake-ups.
PIPE_SIZE = 1 << 20
#: Time for the program to exit by itself once its stdin is closed (seconds).
GRACE = 2.0


class ByteStream:
    """A stream as a channel uses it: descriptors to read and write, and a way to end the program.

    `reads` carries the program's stdout, `writes` its stdin and `errors` its stderr (-1: there is
    none, or it goes elsewhere). The channel makes them non-blocking and waits with `poll`.
    """

    reads: int
    writes: int
    errors: int = -1

    def status(self) -> int | None:
        """The exit status of the program, or minus its signal; None while it runs or if unknown."""
        return None

    def hang_up(self) -> None:
        """Close our ends, so that the program notices. Does not wait. May be called twice."""

    def close(self) -> None:
        """Close our ends, give the program a moment to exit, then kill it.

        Called once. Must not raise and must not hang.
        """
        raise NotImplementedError

    def kill(self) -> None:
        """End the program at once: it does not answer. `close` follows.

        A program that cannot be killed from here ends by itself when its stdin does.
        """

    def abandon(self) -> None:
        """In a forked child: close the copies of the descriptors, and nothing else."""
        for fd in {self.reads, self.writes, self.errors}:
            if fd >= 0:
                with contextlib.suppress(OSError):
                    os.close(fd)


class ProcessStream(ByteStream):
    """A program on this machine (a Python, the ssh client, `docker exec`), connected by pipes.

    It leads a session of its own: Ctrl-C in the terminal does not reach it, and it is killed with
    its group. Raises OSError if it cannot be started.
    """

    def __init__(self, command: Sequence[str], environment: dict[str, str] | None = None, directory: str | None = None) -> None:
        import subprocess

        with janitor.off_duty():
            self.process = subprocess.Popen(
                list(command),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                cwd=directory,
                bufsize=0,
                start_new_session=True,
            )
        #: When our ends were closed; 0 while they are open.
        self._hung_up = 0.0
        process = self.process
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.reads, self.writes, self.errors = process.stdout.fileno(), process.stdin.fileno(), process.stderr.fileno()
        for fd in (self.reads, self.writes):
            _enlarge(fd)

    def status(self) -> int | None:
        """The exit status of the program, or minus its signal; None while it runs."""
        return self.process.poll()

    def hang_up(self) -> None:
        """Close its stdin, and its stdout: a program that never stops writing must notice, too."""
        self._hung_up = self._hung_up or time.monotonic()
        for file in (self.process.stdin, self.process.stdout):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()

    def close(self) -> None:
        """Hang up, and kill the program if that does not end it."""
        from subprocess import TimeoutExpired

        process = self.process
        self.hang_up()
        end = self._hung_up + GRACE
        for number in (None, signal.SIGTERM, signal.SIGKILL):
            if number is not None:
                with contextlib.suppress(ProcessLookupError, PermissionError):
                    os.killpg(process.pid, number)
                end = time.monotonic() + 1.0
            try:
                process.wait(max(0.0, end - time.monotonic()))
                break
            except TimeoutExpired:
                pass
        if process.stderr is not None:
            process.stderr.close()

    def kill(self) -> None:
        """Kill the program with its group."""
        if self.process.poll() is None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self.process.pid, signal.SIGKILL)

    def abandon(self) -> None:
        """Close the pipes. The parent reaps the process."""
        for file in (self.process.stdin, self.process.stdout, self.process.stderr):
            if file is not None:
                with contextlib.suppress(OSError):
                    file.close()
        self.process.returncode = 0


class PumpedStream(ByteStream):
    """Any object that can be read and written, behind a socket pair: two threads carry the bytes.

    `read(n)` returns up to n bytes, and b"" at the end. `write(data)` takes all of it. `shut` ends
    the direction to the program. `end` closes everything and makes a blocked `read` return.
    """

    def __init__(
        self,
        read: Callable[[int], bytes],
        write: Callable[[memoryview], Any],
        shut: Callable[[], None],
        end: Callable[[], None],
        status: Callable[[], int | None] = lambda: None,
        errors: int = -1,
    ) -> None:
        import socket

        self._ours, self._theirs = socket.socketpair()
        self.reads = self.writes = self._ours.fileno()
        self.errors = errors
        self._read, self._write, self._shut, self._end, self._status = read, write, shut, end, status
        self._threads = [threading.Thread(target=pump, name="entangle-pump", daemon=True) for pump in (self._bring, self._send)]
        for thread in self._threads:
            thread.start()

    def _bring(self) -> None:
        with contextlib.suppress(Exception):
            while data := self._read(1 << 18):
                self._theirs.sendall(data)
        with contextlib.suppress(OSError):
            self._theirs.shutdown(1)  # SHUT_WR

    def _send(self) -> None:
        buffer = memoryview(bytearray(1 << 18))
        with contextlib.suppress(Exception):
            while size := self._theirs.recv_into(buffer):
                self._write(buffer[:size])
        with contextlib.suppress(Exception):
            self._shut()

    def status(self) -> int | None:
        """The exit status of the program, if it is known."""
        return self._status()

    def hang_up(self) -> None:
        """Stop both threads: the program's stdin ends, and its output is discarded."""
        with contextlib.suppress(OSError):
            self._ours.shutdown(2)  # SHUT_RDWR

    def close(self) -> None:
        """Stop both threads, and close what they read and write."""
        self.hang_up()
        # Close it first: the program may be blocked writing there.
        if self.errors >= 0:
            with contextlib.suppress(OSError):
                os.close(self.errors)
        self._threads[1].join(GRACE / 4)  # let it pass on the end of the stream
        with contextlib.suppress(Exception):
            self._end()
        until = time.monotonic() + GRACE / 2
        for thread in self._threads:
            thread.join(max(0.0, until - time.monotonic()))
        self._ours.close()
        self._theirs.close()

    def kill(self) -> None:
        """The program cannot be killed from here: close the way to it."""
        self.hang_up()

    def abandon(self) -> None:
        """Close the sockets. The threads do not exist in the child."""
        self._ours.close()
        self._theirs.close()


def wait_ready(reads: Sequence[int], writes: Sequence[int], seconds: float) -> set[int]:
    """Wait until one of these descriptors can be read or written; gives those that can.

    Negative descriptors are skipped. Gives an empty set after `seconds`.
    """
    poll = new_poll()
    for fd in reads:
        if fd >= 0:
            poll.register(fd, select.POLLIN)
    for fd in writes:
        if fd >= 0:
            poll.register(fd, select.POLLOUT | (select.POLLIN if fd in reads else 0))
    return {fd for fd, _ in poll.poll(max(0.0, seconds) * 1000)}


def read_now(fd: int, size: int) -> bytes | None:
    """What can be read without waiting: None if nothing has come, b"" at the end."""
    try:
        return os.read(fd, size)
    except BlockingIOError:
        return None
    except OSError:
        return b""


def _enlarge(fd: int) -> None:
    import fcntl

    with contextlib.suppress(AttributeError, OSError):
        fcntl.fcntl(fd, fcntl.F_SETPIPE_SZ, PIPE_SIZE)  # Linux only, and up to the user's limit
