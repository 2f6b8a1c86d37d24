"""A host by ssh: what the options of @ssh mean, whoever carries the bytes, and what it means when no Python answers.

`openssh.py` carries them by the OpenSSH client, so that everything in `~/.ssh/config` works; `paramiko.py` where there is no such
program, or where that is asked for.
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import ClassVar

from entangle._remote.transport import Transport, environment
from entangle._remote.wire.byte_stream import ByteStream
from entangle._shared.short import value_in_short
from entangle.errors import FarError, HostKeyError, LoginRefusedError, OptionError, UnfitPythonError, UnreachableError

#: Seconds for the network to answer and for the login; ssh's own settings, where there are any, go first.
CONNECT = 15
#: Seconds until a login is given up, with all further attempts.
LOGIN = 60.0
#: The value of `known_hosts` that learns keys of hosts not known yet; the word is OpenSSH's.
LEARN = "accept-new"


def check_word(option: str, value: object) -> None:
    """Refuse what would be another word to the ssh program or to the shell over there. Raises OptionError."""
    # A leading dash would be an option of ssh, a line's end the end of a command over there.
    if not isinstance(value, str) or not value.strip() or value.startswith("-") or any(c in value for c in "\0\r\n"):
        raise OptionError(f"@ssh: {option}={value_in_short(value)}; it is a {'name' if option in ('host', 'user') else 'path'}")


@dataclass(frozen=True)
class SSH(Transport):
    """The options of @ssh. `known_hosts` is a path, LEARN, False for no check at all, or None for what ssh does anyway."""

    host: str
    user: str | None = None
    key_file: str | None = None
    python: str = "python3"
    port: int | None = None
    env: str | None = None
    known_hosts: str | bool | None = None
    transport: str | None = None

    name: ClassVar[str] = "ssh"

    @property
    def login(self) -> tuple[Hashable, ...]:
        """What a connection depends on: options with the same login share one."""
        return (self.host, self.user, self.key_file, self.port, self.known_hosts)

    @property
    def place(self) -> str:
        """`user@host:port`, as far as given."""
        user = f"{self.user}@" if self.user else ""
        port = f":{self.port}" if self.port else ""
        return f"{user}{self.host}{port}"

    @property
    def timeout(self) -> float:
        """Longer where a virtual environment may have to be made first."""
        return 300.0 if self.env else 30.0

    @property
    def identity(self) -> str | None:
        """The file that says which key: of a path that ends in `.pub`, the private key beside it.

        Where only the public one is there, an agent may hold the private one, which ssh finds by the public. Raises OptionError
        where neither is there.
        """
        if self.key_file is None:
            return None
        path = os.path.expanduser(self.key_file)
        private = path.removesuffix(".pub")
        if os.path.isfile(private):
            return private
        if path != private and os.path.isfile(path):
            if os.environ.get("SSH_AUTH_SOCK"):
                return path
            raise OptionError(
                f"@ssh(host={self.host!r}): key={self.key_file!r} is a public key; the private one, {private}, is not beside it, "
                f"and no ssh-agent runs here"
            )
        raise OptionError(
            f"@ssh(host={self.host!r}): key={self.key_file!r}: there is no such file on {os.uname().nodename}; name a private key, "
            f"or leave `key` away"
        )

    def command(self, arguments: Sequence[str]) -> str:
        """What the shell over there is told: first of all an empty line, which says that it has let us in."""
        words = [_for_shell(self.python), *environment.words(self.env), *map(shlex.quote, arguments)]
        return f"echo; exec {' '.join(words)}"

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Log in and start the Python. Raises UnreachableError, HostKeyError, LoginRefusedError, OptionError."""
        if self._by_paramiko():
            from entangle._remote.transport import paramiko

            return paramiko.open_stream(self, self.command(arguments))
        from entangle._remote.transport import openssh

        return openssh.open_stream(self, self.command(arguments))

    def _by_paramiko(self) -> bool:
        import importlib.util

        from entangle._remote.transport import openssh

        client = openssh.client()
        if self.transport == "openssh" or (self.transport is None and client is not None):
            if client is None:
                raise UnreachableError("@ssh(transport='openssh'): there is no ssh program here; install an OpenSSH client")
            return False
        if importlib.util.find_spec("paramiko") is None:
            why = "is not installed" if self.transport else "is not installed, and there is no ssh program here either"
            raise UnreachableError(f"{self.place}: paramiko {why}: pip install 'py-entangle[ssh]'")
        return True

    def diagnose(self, status: int | None, words: str) -> FarError:
        """The error for what the ssh client or the shell over there has said."""
        found = _login_trouble(self, words) if status in (255, None) else None
        if found is not None:
            return found
        made = environment.trouble(self.place, self.env, status, words)
        if made is not None:
            return made
        if status in (126, 127) or re.search(r"(?i)not found|no such file", words):
            return UnfitPythonError(
                f"{self.place}: there is no Python at {self.python!r} there; say where it is, @ssh(python='/path/to/python3')\n"
                f"{_end_of(words)}"
            )
        return super().diagnose(status, words)


#: What the words of an ssh client mean. The first that is found counts.
_TROUBLE: list[tuple[str, type[UnreachableError], str]] = [
    (
        r"REMOTE HOST IDENTIFICATION HAS CHANGED|host key .{0,300} (has changed|does not match)",
        HostKeyError,
        "its host key is not the one in known_hosts. Either the host was set up anew, or somebody poses as it. Ask whoever runs "
        "it; if the new key is right, remove the old one: ssh-keygen {file}-R {entry}",
    ),
    (
        r"Host key verification failed|host key is known for|not found in known_hosts",
        HostKeyError,
        "its host key is not known here. Compare it with what whoever runs the host says, and write it down: "
        "ssh-keyscan {port}{host} >> {known_hosts} , or trust hosts at the first sight: @ssh(known_hosts='accept-new')",
    ),
    (r"UNPROTECTED PRIVATE KEY FILE|bad permissions", LoginRefusedError, "others can read the key file {key}: chmod 600 {key}"),
    (
        r"Load key .*(invalid format|error in libcrypto)|not a valid \w+ private key",
        LoginRefusedError,
        "{key} is not a private key, or needs a passphrase, which an ssh-agent must know: ssh-add {key}",
    ),
    (
        r"Permission denied|Too many authentication failures|Authentication failed|No authentication methods",
        LoginRefusedError,
        "it does not let {user} in with {key}. Is the public key in ~/.ssh/authorized_keys there? A key with a passphrase needs an "
        "ssh-agent; passwords are never asked for",
    ),
    (r"Could not resolve hostname|Name or service not known|getaddrinfo", UnreachableError, "there is no host of this name{hint}"),
    (r"Connection refused", UnreachableError, "no ssh server answers at this port"),
    (
        r"(?i)timed out|No route to host|Network is unreachable|Host is down",
        UnreachableError,
        "the host does not answer; is it up, and is there a way to it?",
    ),
    (
        r"Connection (closed|reset)|kex_exchange_identification|banner exchange",
        UnreachableError,
        "the host closed the connection before the login; too many logins at once (MaxStartups of its sshd), or a firewall",
    ),
    (r"Bad configuration option|terminating, \d+ bad", UnreachableError, "ssh cannot read its configuration"),
]


def _login_trouble(ssh: SSH, words: str) -> UnreachableError | None:
    for pattern, kind, advice in _TROUBLE:
        if re.search(pattern, words):
            known = ssh.known_hosts if isinstance(ssh.known_hosts, str) and ssh.known_hosts != LEARN else None
            entry = f"'[{ssh.host}]:{ssh.port}'" if ssh.port not in (None, 22) else ssh.host
            told = advice.format(
                host=ssh.host,
                entry=entry,
                port=f"-p {ssh.port} " if ssh.port not in (None, 22) else "",
                user=ssh.user or "this user",
                key=ssh.key_file or "the keys that it was offered",
                file=f"-f {known} " if known else "",
                known_hosts=known or "~/.ssh/known_hosts",
                hint=_port_inside(ssh.host),
            )
            return kind(f"{ssh.place}: {told}\n{_end_of(words)}")
    return None


def _port_inside(host: str) -> str:
    """What to write for a host that has its port, or the brackets of an address, in its name."""
    found = re.fullmatch(r"\[([^]]*)\](?::(\d+))?|([^:]+):(\d+)", host)
    if found is None:
        return ""
    port = found[2] or found[4]
    return f"; write it as @ssh(host={found[1] or found[3]!r}{f', port={port}' if port else ''})"


def no_answer(ssh: SSH, seconds: float, words: str) -> UnreachableError:
    """The error for a login that takes too long."""
    return _login_trouble(ssh, words) or UnreachableError(f"{ssh.place}: no login within {seconds:g} s\n{_end_of(words)}".rstrip())


def was_turned_away(words: str) -> bool:
    """Whether the server broke off before it looked at anything, as one does that has too many logins under way."""
    return (
        re.search(
            r"kex_exchange_identification|banner exchange|Connection (closed|reset) by .{0,300} port|reading SSH protocol banner", words
        )
        is not None
    )


def _end_of(words: str) -> str:
    lines = [line.rstrip() for line in words.splitlines() if line.strip() and not set(line.strip()) <= {"@"}]
    return "\n".join(f"  {line}" for line in lines[-6:])


def _for_shell(path: str) -> str:
    """A path as one word for a shell; a leading ~/ stays what it means."""
    if path.startswith("~/"):
        return f"~/{shlex.quote(path[2:])}"
    return shlex.quote(path)
