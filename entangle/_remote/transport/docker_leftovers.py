"""Docker containers that a crash has left: which of them are ours and have nobody any more, and their removal."""

from __future__ import annotations

import os
from typing import Any

from entangle._remote.transport.docker_daemon import HOME, MACHINE, MARK, SOCKET, USER, connected, machine
from entangle._shared.home import sweep
from entangle.errors import UnreachableError


def sweep_containers(left: list[str] | None = None, unseen: list[str] | None = None) -> list[str]:
    """Remove this user's containers whose process is gone; gives what was removed. A container that cannot be removed is a line of
    `left`; that docker cannot be asked, one of `unseen`."""
    import importlib.util

    unasked: list[str] = []
    told: list[str] = []
    removed: list[str] = []
    if importlib.util.find_spec("docker") is not None and (os.environ.get("DOCKER_HOST") or os.path.exists(SOCKET)):
        try:
            with connected() as client:
                removed = _sweep(client, told, unasked)
        except UnreachableError as error:
            if not isinstance(error.__cause__, PermissionError):  # who is not let in has no container there
                unasked.append(f"containers, if there are any: {error}")
    if left is not None:
        left += told
    if unseen is not None:
        unseen += unasked
    return removed


def _sweep(client: Any, left: list[str], unseen: list[str]) -> list[str]:
    """Remove containers of ours whose home is gone. What the daemon does not tell is not gone, nor is what cannot be seen from here."""
    from docker import errors
    from requests.exceptions import RequestException

    sweep()  # a home that is there afterwards is somebody's
    removed: list[str] = []
    try:
        wanted = [f"{MARK}=container", f"{USER}={os.getuid()}"]
        for found in client.containers(all=True, filters={"label": wanted}):
            if _is_gone(found.get("Labels") or {}):
                name = f"container {found['Id'][:12]}"
                try:
                    client.remove_container(found["Id"], force=True, v=True)
                except errors.NotFound:
                    continue  # somebody else was quicker
                except errors.APIError as error:
                    if error.status_code != 409:  # 409: its removal is under way
                        left.append(f"{name}: {error.explanation or error}")
                    continue
                removed.append(name)
    except (errors.DockerException, RequestException) as error:
        unseen.append(f"containers, if there are any: docker does not list or remove them: {error}")
    return removed


def _is_gone(told: dict[str, str]) -> bool:
    """Whether the process that made a container is gone, by the labels of the container.

    It was this user's, and saw the files that we see: then it is gone if its home is. A home of another user cannot be looked into, and
    in another container or on another machine the same path is another place; there a home that is not found tells nothing.
    """
    path = told.get(HOME, "")
    if not path or told.get(USER) != str(os.getuid()) or told.get(MACHINE) != machine():
        return False
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


_swept = False


def sweep_once(client: Any) -> None:
    """Whoever uses docker anyway removes what others could not. What goes wrong with it is no affair of his call."""
    global _swept
    if not _swept:
        _swept = True
        _sweep(client, [], [])
