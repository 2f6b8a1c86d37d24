"""paramiko as the carrier of @ssh: where there is no OpenSSH client, or on request.

Each agent has a login of its own. Of `~/.ssh/config` paramiko understands HostName, User, Port,
IdentityFile, ProxyCommand and ProxyJump.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import warnings
from typing import Any

from entangle._remote.transport.login_limit import FurtherLogins, turn
from entangle._remote.transport.ssh_diagnosis import diagnose
from entangle._remote.transport.ssh_options import CONNECT, LEARN, LOGIN, SSHOptions
from entangle._remote.wire.byte_stream import ByteStream, PumpedStream
from entangle._remote.wire.controls import escaped

#: Bytes in flight before the far side must wait. Over a long way paramiko's default, 2 MB, is used
#: up within a round trip.
_WINDOW = 1 << 27


def open_stream(ssh: SSHOptions, command: str) -> ByteStream:
    """Log in and start a command there."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about ciphers that cryptography is going to drop
        import paramiko

    identity = ssh.identity
    further = FurtherLogins()
    while True:
        clients: list[Any] = []
        try:
            with turn(ssh.host, LOGIN):
                client = _log_in(ssh, identity, clients)
            return _start(client, clients, command)
        except (paramiko.SSHException, OSError, EOFError) as error:
            _hang_up(clients)
            words = escaped(_words(error))
            if not further.allowed(words):
                raise diagnose(ssh, 255, words) from None
        except BaseException:
            _hang_up(clients)
            raise


def _hang_up(clients: list[Any]) -> None:
    for client in reversed(clients):
        with contextlib.suppress(Exception):
            client.close()


def _words(error: BaseException) -> str:
    """What paramiko means, in the words of OpenSSH where those say more."""
    import paramiko

    if isinstance(error, paramiko.BadHostKeyException):
        return f"REMOTE HOST IDENTIFICATION HAS CHANGED: {error}"
    if isinstance(error, paramiko.AuthenticationException):
        return f"Permission denied: {error}"
    if isinstance(error, socket.gaierror):
        return f"Could not resolve hostname: {error}"
    if isinstance(error, paramiko.ssh_exception.NoValidConnectionsError):
        return "; ".join(str(one) for one in error.errors.values())
    if isinstance(error, TimeoutError):
        return f"Connection timed out {error}"
    if isinstance(error, (EOFError, ConnectionResetError)):
        return "Connection reset by peer, reading SSH protocol banner"
    return f"{type(error).__name__}: {error}"


def _log_in(ssh: SSHOptions, identity: str | None, clients: list[Any]) -> Any:
    """A client that is logged in. It and the jump hosts before it are added to `clients`."""
    import paramiko

    configuration = paramiko.SSHConfig()
    path = os.path.expanduser("~/.ssh/config")
    if os.path.isfile(path):
        configuration = paramiko.SSHConfig.from_path(path)
    settings: dict[str, Any] = dict(configuration.lookup(ssh.host))
    host, port = settings.get("hostname", ssh.host), ssh.port or int(settings.get("port", 22))
    user = ssh.user or settings.get("user")
    carrier: Any = None
    if "proxycommand" in settings:
        carrier = paramiko.ProxyCommand(settings["proxycommand"])
    elif settings.get("proxyjump", "none") != "none":
        for jump in settings["proxyjump"].split(","):
            between: dict[str, Any] = dict(configuration.lookup(jump.rpartition("@")[2].partition(":")[0]))
            where = (between["hostname"], int(jump.rpartition("@")[2].partition(":")[2] or between.get("port", 22)))
            name = jump.rpartition("@")[0] or between.get("user")
            by = _connect(ssh, where, name, between.get("identityfile", []), identity, carrier, clients)
            carrier = None, by
    return _connect(ssh, (host, port), user, settings.get("identityfile", []), identity, carrier, clients)


def _connect(
    ssh: SSHOptions, where: tuple[str, int], user: str | None, files: list[str], identity: str | None, carrier: Any, clients: list[Any]
) -> Any:
    import paramiko

    if isinstance(carrier, tuple):  # the client of the jump host
        carrier = carrier[1].get_transport().open_channel("direct-tcpip", where, ("127.0.0.1", 0), timeout=CONNECT)
    client: Any = paramiko.SSHClient()
    clients.append(client)
    _trust(ssh, client)
    found = [identity] if identity is not None else [os.path.expanduser(file) for file in files]
    client.connect(
        where[0],
        where[1],
        username=user,
        key_filename=[file for file in found if os.path.isfile(file)] or None,
        look_for_keys=identity is None,
        allow_agent=identity is None or identity.endswith(".pub"),
        sock=carrier,
        timeout=CONNECT,
        banner_timeout=CONNECT,
        auth_timeout=CONNECT,
    )
    transport = client.get_transport()
    assert transport is not None
    transport.set_keepalive(15)
    return client


def _trust(ssh: SSHOptions, client: Any) -> None:
    """Tell a client which host keys to accept."""
    import paramiko

    if ssh.known_hosts is False:
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
        return
    if isinstance(ssh.known_hosts, str) and ssh.known_hosts != LEARN:
        path = os.path.expanduser(ssh.known_hosts)
        if os.path.isfile(path):
            client.load_system_host_keys(path)
    else:
        for path in ("/etc/ssh/ssh_known_hosts", "~/.ssh/known_hosts"):
            with contextlib.suppress(OSError):
                client.load_system_host_keys(os.path.expanduser(path))
    if ssh.known_hosts == LEARN:
        own = os.path.expanduser("~/.ssh/known_hosts")
        os.makedirs(os.path.dirname(own), mode=0o700, exist_ok=True)
        with open(own, "a", encoding="utf-8"):
            pass
        client.load_host_keys(own)  # new keys are written there
        client.set_missing_host_key_policy(paramiko.AutoAddPolicy())
    else:
        client.set_missing_host_key_policy(paramiko.RejectPolicy())


def _start(client: Any, clients: list[Any], command: str) -> ByteStream:
    transport = client.get_transport()
    channel = transport.open_session(window_size=_WINDOW, timeout=CONNECT)
    channel.exec_command(command)
    channel.settimeout(None)
    reads, writes = os.pipe()

    def errors() -> None:
        with contextlib.suppress(Exception):
            while data := channel.recv_stderr(1 << 16):
                view = memoryview(data)
                while view:
                    view = view[os.write(writes, view) :]
        os.close(writes)

    pump = threading.Thread(target=errors, name="entangle-stderr", daemon=True)
    pump.start()

    def end() -> None:
        with contextlib.suppress(Exception):
            channel.close()
        _hang_up(clients)
        pump.join(2.0)

    def status() -> int | None:
        ended = channel.recv_exit_status() if channel.exit_status_ready() else -1
        return None if ended < 0 else int(ended)  # -1: the server did not say how it ended

    return PumpedStream(channel.recv, channel.sendall, channel.shutdown_write, end, status, reads)
