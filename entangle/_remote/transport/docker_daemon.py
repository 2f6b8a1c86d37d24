"""The docker daemon: how it is reached, and what marks a container there as ours."""

from __future__ import annotations

import contextlib
import os
import platform
from collections.abc import Iterator
from typing import Any

from entangle._shared.home import home
from entangle.errors import UnreachableError

#: Labels of our containers and images: what made them, for which user, for which home, and where its path is valid.
MARK, USER, HOME, MACHINE = "entangle", "entangle.user", "entangle.home", "entangle.machine"
SOCKET = "/var/run/docker.sock"
#: Seconds for the daemon to answer.
_ANSWER = 60


@contextlib.contextmanager
def connected(seconds: int = _ANSWER) -> Iterator[Any]:
    """The daemon, as docker's own library speaks to it, with so long for each answer. Raises UnreachableError where there is none."""
    try:
        import docker
        import docker.utils
    except ImportError:
        raise UnreachableError("@docker needs docker's library: pip install 'py-entangle[docker]'") from None
    _knock()
    client = docker.APIClient.__new__(docker.APIClient)  # so that there is something to close when the rest fails
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
    """See whether somebody listens at the usual socket: docker's library leaves a socket open where nobody does."""
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
    # requests has one tree for both: what an answer says, and that there is none.
    if any(getattr(one, "response", None) is not None for one in (error, error.__cause__)):
        return f"the docker daemon at {where} answers, but not with what @docker needs of it. It said: {told[-300:]}"
    if "Permission denied" in told or "PermissionError" in told:
        return f"the docker daemon at {where} does not let this user in. As root: usermod -aG docker USER, then log in anew"
    return f"no docker daemon answers at {where}; is it running? (systemctl start docker) It said: {told[-300:]}"


def labels() -> dict[str, str]:
    """Whose container it is."""
    return {MARK: "container", USER: str(os.getuid()), HOME: home().path, MACHINE: machine()}


def machine() -> str:
    """What a path means the same in: this machine, until it is started anew, and the mounts that this process sees."""
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
