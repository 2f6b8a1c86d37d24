"""Docker containers that a crash has left: how they are told from those in use, and removed."""

from __future__ import annotations

import os
from typing import Any

from entangle._remote.transport.docker_daemon import HOME, MACHINE, MARK, SOCKET, USER, connected, machine
from entangle._shared.home import sweep
from entangle.errors import UnreachableError


def sweep_containers(left: list[str] | None = None, unseen: list[str] | None = None) -> list[str]:
    """Remove this user's containers whose process is gone; gives the names of those removed.

    Appends a line to `left` for each container that cannot be removed, and to `unseen` where docker
    cannot be asked.
    """
    import importlib.util

    unasked: list[str] = []
    told: list[str] = []
    removed: list[str] = []
    if importlib.util.find_spec("docker") is not None and (os.environ.get("DOCKER_HOST") or os.path.exists(SOCKET)):
        try:
            with connected() as client:
                removed = _sweep(client, told, unasked)
        except UnreachableError as error:
            # A user who may not ask the daemon has no container there.
            if not isinstance(error.__cause__, PermissionError):
                unasked.append(f"containers, if there are any: {error}")
    if left is not None:
        left += told
    if unseen is not None:
        unseen += unasked
    return removed


def _sweep(client: Any, left: list[str], unseen: list[str]) -> list[str]:
    """Remove containers of ours whose home is gone. What cannot be seen from here is not gone."""
    from docker import errors
    from requests.exceptions import RequestException

    sweep()  # removes homes of dead processes: those that remain are in use
    removed: list[str] = []
    try:
        wanted = [f"{MARK}=container", f"{USER}={os.getuid()}"]
        for found in client.containers(all=True, filters={"label": wanted}):
            if _is_gone(found.get("Labels") or {}):
                name = f"container {found['Id'][:12]}"
                try:
                    client.remove_container(found["Id"], force=True, v=True)
                except errors.NotFound:
                    continue  # another sweep was quicker
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

    It is gone if its home is, provided that it was this user's and saw the files that we see. The
    home of another user cannot be looked into. In another container or on another machine the same
    path is another place, so a home that is not found there proves nothing.
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
    """Sweep at this process's first use of docker. A failure is no concern of the call at hand."""
    global _swept
    if not _swept:
        _swept = True
        _sweep(client, [], [])
