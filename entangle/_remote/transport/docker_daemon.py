"""The docker daemon: how to reach it, and the labels that mark a container as ours."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import Any

from entangle._shared.home import home
from entangle.errors import UnreachableError

#: Labels of our containers and images: what it is, the user, the home of the process that made it,
#: and where the path of that home is valid.
MARK, USER, HOME, MACHINE = "entangle", "entangle.user", "entangle.home", "entangle.machine"
SOCKET = "/var/run/docker.sock"
#: Seconds that an answer of the daemon may take.
_ANSWER = 60


@contextlib.contextmanager
def connected(seconds: int = _ANSWER) -> Iterator[Any]:
    """A client of the daemon, from docker's own library; each answer may take `seconds`.

    Raises UnreachableError where no daemon answers.
    """
    try:
        import docker
        import docker.utils
    except ImportError:
        raise UnreachableError("@docker needs docker's library: pip install 'py-entangle[docker]'") from None
    _knock()
    # In two steps: an __init__ that fails leaves sockets open, and must leave a client to close.
    client = docker.APIClient.__new__(docker.APIClient)
    try:
        docker.APIClient.__init__(client, **docker.utils.kwargs_from_env(), version="auto", timeout=seconds)
    except docker.errors.DockerException as error:
        with contextlib.suppress(Exception):
            client.close()
        raise UnreachableError(_no_daemon(error)) from None
    import requests

    try:
        yield client
    except requests.exceptions.RequestException as error:
        raise UnreachableError(_no_daemon(error)) from None
    finally:
        client.close()


def _knock() -> None:
    """Fail early where nobody listens: docker's library would leave a socket open."""
    where = os.environ.get("DOCKER_HOST") or f"unix://{SOCKET}"
    if not where.startswith("unix://"):
        return
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(where.removeprefix("unix://"))
        except OSError as error:
            raise UnreachableError(_no_daemon(error)) from error


def _no_daemon(error: Exception) -> str:
    where = os.environ.get("DOCKER_HOST") or SOCKET
    told = str(error)
    # An exception of requests with a response: the daemon answered, with an error.
    if any(getattr(one, "response", None) is not None for one in (error, error.__cause__)):
        return f"the docker daemon at {where} answers, but not with what @docker needs of it. It said: {told[-300:]}"
    if "Permission denied" in told or "PermissionError" in told:
        return f"the docker daemon at {where} does not let this user in. As root: usermod -aG docker USER, then log in anew"
    return f"no docker daemon answers at {where}; is it running? (systemctl start docker) It said: {told[-300:]}"


def labels() -> dict[str, str]:
    """The labels of a container that this process makes."""
    return {MARK: "container", USER: str(os.getuid()), HOME: home().path, MACHINE: machine()}


def machine() -> str:
    """Where a path means the same file: this boot of this machine, and this mount namespace."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/mnt')}"
    except OSError:
        return platform.node()


def remove(client: Any, identity: str) -> None:
    """Remove a container, running or not; one that is gone already is fine."""
    from docker import errors

    with contextlib.suppress(errors.APIError):
        client.remove_container(identity, force=True, v=True)
