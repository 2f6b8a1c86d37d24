"""@ssh: the function runs on another host.

More: docs/how_to/ssh.md.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, overload

from entangle._remote.caller.far import Far, FarFunction
from entangle._remote.transport.ssh import SSHTransport
from entangle._remote.transport.ssh_options import LEARN, check_word
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle._tasks.layer import Decorated
from entangle.errors import OptionError
from entangle.task import Decorator, Task, decorate, refuse_unknown

__all__ = ["ssh"]

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("host", "user", "key", "python", "port", "env", "known_hosts", "transport")


class SSH(Far):
    """The layer of @ssh."""

    transport: SSHTransport

    def ship(self, rest: Decorated) -> FarFunction:
        """What runs here.

        The key is looked for now, where the call is about to run. Where the task was decorated, it
        may be missing.
        """
        _ = self.transport.identity
        shipped = super().ship(rest)
        if self.transport.env is not None:
            from entangle._remote.caller.requirements import furnished

            shipped.furnishing = furnished(rest.function)
        return shipped


@overload
def ssh(
    *,
    host: str,
    user: str | None = None,
    key: str | None = None,
    python: str = "python3",
    port: int | None = None,
    env: str | None = None,
    known_hosts: str | bool | None = None,
    transport: str | None = None,
) -> Decorator: ...
@overload
def ssh(function: Callable[P, R], /, *, host: str, **options: Any) -> Task[P, R]: ...
@edge
def ssh(
    function: Any = None,
    /,
    *,
    host: str | None = None,
    user: str | None = None,
    key: str | None = None,
    python: str = "python3",
    port: int | None = None,
    env: str | None = None,
    known_hosts: str | bool | None = None,
    transport: str | None = None,
    **unknown: Any,
) -> Any:
    """Run the function on another host, with the layers below; its value comes back.

    The processes and cookies of those layers are that host's.

    - `host`: a name, an address, or what `~/.ssh/config` calls it.
    - `user`, `port`, `key`: by default what that file says. `key` is a private key, or a path that
      ends in `.pub`, which means the private key beside it.
    - `python`: the interpreter there, 3.10 or newer. Nothing else needs to be installed.
    - `env`: the name or path of a virtual environment there. It is made if missing, and gets the
      packages that the function imports, in the versions that are here.
    - `known_hosts`: the file that host keys are checked with, "accept-new" to accept keys of new
      hosts, or False for no check.
    - `transport`: "openssh" (the ssh program; the default where there is one) or "paramiko".

    Raises OptionError here for bad options. Running a call raises OptionError for a key that is
    missing, UnreachableError, HostKeyError, LoginRefusedError, UnfitPythonError and LinkLostError;
    each says what to do.

        @ssh(host="miko", user="me")
        @process
        def simulate(seed): ...
    """
    refuse_unknown("ssh", _OPTIONS, unknown)
    if host is None:
        raise OptionError("@ssh needs a host: @ssh(host='name')")
    if user is None and isinstance(host, str) and "@" in host:
        user, _, host = host.rpartition("@")
    for option, value in (("host", host), ("user", user), ("key", key), ("python", python), ("env", env)):
        if value is not None:
            check_word(option, value)
    if port is not None and (isinstance(port, bool) or not isinstance(port, int) or not 0 < port < 65536):
        raise OptionError(f"@ssh: port={value_in_short(port)}; it must be a whole number from 1 to 65535")
    if known_hosts is True or not isinstance(known_hosts, (str, bool, type(None))):
        raise OptionError(
            f"@ssh: known_hosts={value_in_short(known_hosts)}; it must be the path of a file, {LEARN!r} to accept keys of new hosts, "
            f"or False for no check"
        )
    if transport not in (None, "openssh", "paramiko"):
        raise OptionError(f"@ssh: transport={value_in_short(transport)}; it must be 'openssh' or 'paramiko'")
    layer = SSH(SSHTransport(host, user, key, python, port, env, known_hosts, transport))

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return decorate("ssh", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
