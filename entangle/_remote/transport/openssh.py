"""The OpenSSH client as the carrier of @ssh: one login a host, shared by all of this process tree.

::

    ssh -M -S <home>/s-… host 'exec cat >/dev/null'    the shared connection: logs in, and stays
    ssh    -S <home>/s-… host 'echo; exec python3 …'   an agent: no login, 1 to 2 ms to open

The stdin of the shared connection is a pipe that only we hold. When we die, however that is, `cat`
over there ends, and with it the connection.

Only the process that owns the home of the tree keeps connections: a worker may be killed at a
deadline, and would take the connection of all others with it. Workers use a connection if there is
one, else they log in by themselves.

A ControlPath in the user's own configuration is kept: that connection may be the only way in.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import time
from collections.abc import Sequence

from entangle._remote.transport.login_limit import FurtherLogins, turn
from entangle._remote.transport.openssh_connections import SharedConnection, connection_of_the_tree, give_back, login_error, take
from entangle._remote.transport.ssh_diagnosis import diagnose
from entangle._remote.transport.ssh_options import CONNECT, LEARN, LOGIN, SSHOptions, client_words
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream
from entangle._shared.home import home
from entangle._shared.polling import new_poll, readable
from entangle._worker import janitor

#: Bytes that a socket's path may have: the system's limit, less what ssh appends while it binds,
#: and less our random suffix.
_LONGEST = 104 - 18 - 5
#: Seconds within which a live connection starts a command.
_LIVELY = 10.0


def client() -> list[str] | None:
    """The ssh program with the options of ENTANGLE_SSH_COMMAND; None where there is none."""
    words = client_words()
    return words if shutil.which(words[0]) else None


def arguments(ssh: SSHOptions, settings: dict[str, str]) -> list[str]:
    """The options of @ssh as arguments of ssh; `settings` are those of its configuration."""
    found = ["-T", "-o", "BatchMode=yes", "-o", "ClearAllForwardings=yes", "-o", "LogLevel=ERROR", "-o", "EscapeChar=none"]
    if settings.get("connecttimeout", "none") == "none":
        found += ["-o", f"ConnectTimeout={CONNECT}"]
    if settings.get("serveraliveinterval", "0") == "0":
        found += ["-o", "ServerAliveInterval=15"]
    if ssh.known_hosts is False:
        found += ["-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null", "-o", "GlobalKnownHostsFile=/dev/null"]
    elif ssh.known_hosts == LEARN:
        found += ["-o", "StrictHostKeyChecking=accept-new"]
    elif isinstance(ssh.known_hosts, str):
        path = _quoted(os.path.abspath(os.path.expanduser(ssh.known_hosts)))
        found += ["-o", "StrictHostKeyChecking=yes", "-o", f"UserKnownHostsFile={path}", "-o", "GlobalKnownHostsFile=/dev/null"]
    identity = ssh.identity
    if identity is not None:
        found += ["-i", identity, "-o", "IdentitiesOnly=yes"]
    if ssh.user is not None:
        found += ["-l", ssh.user]
    if ssh.port is not None:
        found += ["-p", str(ssh.port)]
    return found


def _quoted(path: str) -> str:
    """A path as the value of an ssh option, where % and blanks have a meaning."""
    return '"' + path.replace("%", "%%").replace('"', '\\"') + '"'


def open_stream(ssh: SSHOptions, command: str) -> ByteStream:
    """Start a command on the host; log in first, unless a shared connection is there."""
    program = client()
    assert program is not None
    settings = _settings(program, ssh)
    options = [*program, *arguments(ssh, settings)]
    if settings.get("controlpath", "none") != "none":
        return _log_in_for(ssh, [*options, "--", ssh.host, command])
    name = "s-" + hashlib.sha256(repr((program, ssh.login)).encode()).hexdigest()[:8]
    if home().pid != os.getpid():
        return _log_in_for(ssh, [*options, *_using(connection_of_the_tree(name)), "--", ssh.host, command])
    if len(os.path.join(home().path, name).encode()) > _LONGEST:
        return _log_in_for(ssh, [*options, *_using(None), "--", ssh.host, command])
    while True:
        connection, fresh = take(ssh, options, name)
        try:
            stream = SSHStream([*options, *_using(connection.path), "--", ssh.host, command], connection)
        except BaseException:
            give_back(connection)
            raise
        try:
            if _let_in(stream, _LIVELY) or fresh:
                return stream
        except BaseException:
            stream.close()
            raise
        # The socket is there and nothing comes through: the network is gone. Log in anew.
        connection.doubtful = True
        stream.close()


def _using(path: str | None) -> list[str]:
    """Arguments for a shared connection at `path`, used if it is there; None: log in alone."""
    return ["-o", "ControlMaster=no", "-S", "none" if path is None else path.replace("%", "%%")]


def _settings(program: list[str], ssh: SSHOptions) -> dict[str, str]:
    """The ssh client's configuration for this host; empty where the client does not tell."""
    command = [*program, "-G", *(["-l", ssh.user] if ssh.user else []), *(["-p", str(ssh.port)] if ssh.port else []), "--", ssh.host]
    with janitor.off_duty():
        try:
            done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=CONNECT, errors="replace")
        except subprocess.TimeoutExpired:
            return {}
    if done.returncode and "onfiguration" in done.stderr:
        raise diagnose(ssh, 255, done.stderr)
    return dict(line.split(" ", 1) for line in done.stdout.splitlines() if " " in line)


def _log_in_for(ssh: SSHOptions, command: Sequence[str]) -> ByteStream:
    """Start a program that logs in by itself, and wait until it is in."""
    end, further = time.monotonic() + LOGIN, FurtherLogins()
    while True:
        with turn(ssh.host, LOGIN):
            stream = SSHStream(command, None)
            try:
                if _let_in(stream, end - time.monotonic()):
                    return stream
                trouble, words = login_error(ssh, stream.process, end)
            except BaseException:
                stream.close()
                raise
            stream.close()
        if not further.allowed(words):
            raise trouble


def _let_in(stream: SSHStream, seconds: float) -> bool:
    """Wait for the first output of the shell over there; False if none came."""
    if not readable([stream.reads], max(0.0, seconds)):
        return False
    import select

    poll = new_poll()
    poll.register(stream.reads, select.POLLIN)
    return any(event & select.POLLIN for _, event in poll.poll(0))


class SSHStream(ProcessStream):
    """A program of the far side by an ssh client, and the shared connection that it uses."""

    def __init__(self, command: Sequence[str], connection: SharedConnection | None) -> None:
        super().__init__(command)
        self._connection = connection

    def close(self) -> None:
        """End it. A connection through which even that does not go is in doubt."""
        connection, self._connection = self._connection, None
        super().close()
        if connection is not None:
            if self.process.returncode < 0:
                connection.doubtful = True
            give_back(connection)

    def abandon(self) -> None:
        """In a forked child: the shared connection is the parent's."""
        self._connection = None
        super().abandon()
