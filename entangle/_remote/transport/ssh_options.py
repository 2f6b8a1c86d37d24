"""What the options of @ssh mean, whichever client carries the bytes."""

from __future__ import annotations

import os
import shlex
from collections.abc import Hashable, Sequence
from dataclasses import dataclass

from entangle._remote.transport import virtual_environment
from entangle._shared.summaries import value_in_short
from entangle.errors import OptionError

#: Seconds for the network to answer, and for the login. The user's own settings of ssh go first.
CONNECT = 15
#: Seconds after which a login, with all its further attempts, is given up.
LOGIN = 60.0
#: Seconds for which a server may turn logins away before that is an error.
TURNED_AWAY = 15.0
#: The `known_hosts` that accepts and stores keys of new hosts; the word is OpenSSH's.
LEARN = "accept-new"


def client_words() -> list[str]:
    """The ssh program of the user's choice, with its options: ENTANGLE_SSH_COMMAND, or ssh."""
    return shlex.split(os.environ.get("ENTANGLE_SSH_COMMAND", "")) or ["ssh"]


def check_word(option: str, value: object, door: str = "ssh") -> None:
    """Refuse what ssh or the shell over there would take for something else. Raises OptionError."""
    # A leading dash is an option to ssh; a line break ends a command over there.
    if not isinstance(value, str) or not value.strip() or value.startswith("-") or any(c in value for c in "\0\r\n"):
        kind = "path" if option in ("key", "python", "env") else "name"
        raise OptionError(f"@{door}: {option}={value_in_short(value)}; it must be a {kind}: not empty, no dash first, no line break")


@dataclass(frozen=True)
class SSHOptions:
    """The options of @ssh.

    `known_hosts` is a path, LEARN, False for no check, or None for what ssh does by default.
    """

    host: str
    user: str | None = None
    key_file: str | None = None
    python: str = "python3"
    port: int | None = None
    env: str | None = None
    known_hosts: str | bool | None = None
    transport: str | None = None

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
        """The key file for the client: of a path that ends in `.pub`, the private key beside it.

        Where only the public key is there, an ssh-agent may hold the private one; ssh finds it by
        the public one. Raises OptionError where neither is there.
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
                f"and no ssh-agent runs here; name the private key, or add it to an agent: ssh-add"
            )
        raise OptionError(
            f"@ssh(host={self.host!r}): key={self.key_file!r}: there is no such file on {os.uname().nodename}; name a private key, "
            f"or leave out key"
        )

    def program(self, arguments: Sequence[str]) -> str:
        """The Python there, in words for a shell."""
        return " ".join([_for_shell(self.python), *virtual_environment.words(self.env), *map(shlex.quote, arguments)])

    def command(self, arguments: Sequence[str]) -> str:
        """The command for the shell over there. It prints an empty line first: we are in."""
        return f"echo; exec {self.program(arguments)}"


def _for_shell(path: str) -> str:
    """A path as one word for a shell; a leading ~/ keeps its meaning."""
    if path.startswith("~/"):
        return f"~/{shlex.quote(path[2:])}"
    return shlex.quote(path)
