"""A docker container: the agent is its first process, so that with the agent everything in it ends, and docker removes it.

The container's stdin is open for one client only (StdinOnce). When that client goes away, however we end, the agent reads the end
of its stdin, and ends. What remains for `sweep` are containers that were made and never started.
"""

from __future__ import annotations

import contextlib
import os
import platform
import re
import shutil
import struct
import threading
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from entangle._remote.transport import Transport
from entangle._remote.wire.byte_stream import ByteStream, ProcessStream, PumpedStream
from entangle._shared.home import home, sweep
from entangle.errors import FarError, ImageError, OptionError, UnfitPythonError, UnreachableError

#: Labels of our containers and images: what made them, for which user, for which home, and where its path is valid.
MARK, USER, HOME, MACHINE = "entangle", "entangle.user", "entangle.home", "entangle.machine"
_SOCKET = "/var/run/docker.sock"
#: Seconds for the daemon to answer, and for a container to be gone once its agent has ended.
_ANSWER, _GONE = 60, 3.0


@dataclass(frozen=True)
class Docker(Transport):
    """The options of @docker, as what can be compared: pairs instead of dicts."""

    image: str
    packages: tuple[str, ...] = ()
    gpus: str | int | tuple[str, ...] | None = None
    environment: tuple[tuple[str, str], ...] = ()
    volumes: tuple[str, ...] = ()
    network: str | None = None
    memory: str | int | None = None
    cpus: float | None = None
    python: str = "python3"

    name: ClassVar[str] = "docker"
    ends_with_run: ClassVar[bool] = True

    @property
    def place(self) -> str:
        """The image."""
        return self.image

    def open(self, arguments: Sequence[str]) -> ByteStream:
        """Start a container with the agent in it. Raises UnreachableError without a daemon, ImageError without the image."""
        with connected() as client:
            from docker import errors

            _sweep_once(client)
            from entangle._remote.transport import derived

            base = derived.base_image(client, self.image)
            image = derived.with_packages(client, base, self) if self.packages else base["Id"]
            try:
                identity = client.create_container(
                    image,
                    list(arguments),
                    entrypoint=[self.python],
                    stdin_open=True,
                    user=_user(base),
                    environment=self._environment(),
                    labels=labels(),
                    working_dir="/tmp",
                    host_config=self._host_config(client),
                )["Id"]
            except errors.APIError as error:
                told = str(error.explanation or error)
                absent = re.search(r"bind source path does not exist: (.*)", told)
                if absent:
                    raise OptionError(
                        f"@docker: volumes: there is no {absent[1]!r} on the machine of the docker daemon; make it first, or name a "
                        f"volume of docker's, which has no slash in its name"
                    ) from None
                raise ImageError(f"@docker(image={self.image!r}): {told}") from None
            try:
                program = shutil.which("docker")
                if program is not None:
                    return _Attached([program, "--context", "default", "start", "--attach", "--interactive", identity], identity)
                return _attach(client, identity)
            except BaseException:
                remove(client, identity)
                raise

    def _environment(self) -> dict[str, str]:
        given = dict(self.environment)
        # A user whom the image does not know has no home of his own there.
        return given if os.geteuid() == 0 else {"HOME": "/tmp", **given}

    def _host_config(self, client: Any) -> Any:
        from docker import errors, types

        requests = None
        # What the runtime has is asked for only where somebody might want it.
        has_gpus = self.gpus not in (0, ()) and "nvidia" in client.info().get("Runtimes", {})
        if has_gpus:
            chosen: dict[str, Any] = {"count": -1}
            if isinstance(self.gpus, tuple):
                chosen = {"device_ids": list(self.gpus)}
            elif isinstance(self.gpus, int):
                chosen = {"count": self.gpus}
            requests = [types.DeviceRequest(driver="nvidia", capabilities=[["gpu"]], **chosen)]
        elif self.gpus not in (None, 0, ()):
            raise UnreachableError(
                f"@docker(gpus={self.gpus!r}): docker has no GPU runtime here; install the NVIDIA container toolkit, or leave gpus away"
            )
        binds, mounts = self._mounted()
        try:
            return client.create_host_config(
                auto_remove=True,
                binds=binds or None,
                mounts=mounts or None,
                network_mode=self.network,
                mem_limit=self.memory,
                nano_cpus=None if self.cpus is None else round(self.cpus * 1e9),
                device_requests=requests,
                # What it writes are frames, for us alone; docker would keep a copy of all of them on its disk.
                log_config=types.LogConfig(type="none"),
                security_opt=["no-new-privileges:true"],
                # Values travel through it; docker's own 64 MB would send everything large over a disk.
                shm_size=max(1 << 26, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2),
            )
        except (errors.DockerException, TypeError, ValueError) as error:
            raise ImageError(f"@docker(image={self.image!r}): {error}") from None

    def _mounted(self) -> tuple[list[str], list[Any]]:
        """Volumes, as binds and as mounts. Of a path that is not there a bind makes a directory of root's; a mount refuses it."""
        from docker import types

        binds, mounts = [], []
        for volume in self.volumes:
            here, there, *words = volume.split(":", 2)
            if here.startswith("/") and not set(words) - {"ro", "rw"}:
                mounts.append(types.Mount(there, here, type="bind", read_only="ro" in words))
            else:  # a volume of docker's, or what mounts cannot say, as labels of SELinux
                binds.append(volume)
        return binds, mounts

    def diagnose(self, status: int | None, words: str) -> FarError:
        """The error for a container that ended, or kept silent."""
        if "executable file not found" in words or "no such file or directory" in words or status in (126, 127):
            return UnfitPythonError(
                f"{self.place}: there is no Python at {self.python!r} in this image; take one with Python 3.10 or newer, or say where it "
                f"is: @docker(python='/path/to/python3')"
            )
        return super().diagnose(status, words)


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
    where = os.environ.get("DOCKER_HOST") or f"unix://{_SOCKET}"
    if not where.startswith("unix://"):
        return
    import socket

    with socket.socket(socket.AF_UNIX) as probe:
        try:
            probe.connect(where.removeprefix("unix://"))
        except OSError as error:
            raise UnreachableError(_no_daemon(error)) from error


def _no_daemon(error: Exception) -> str:
    where = os.environ.get("DOCKER_HOST") or _SOCKET
    told = str(error)
    # requests has one tree for both: what an answer says, and that there is none.
    if any(getattr(one, "response", None) is not None for one in (error, error.__cause__)):
        return f"the docker daemon at {where} answers, but not with what @docker needs of it. It said: {told[-300:]}"
    if "Permission denied" in told or "PermissionError" in told:
        return f"the docker daemon at {where} does not let this user in. As root: usermod -aG docker USER, then log in anew"
    return f"no docker daemon answers at {where}; is it running? (systemctl start docker) It said: {told[-300:]}"


def _user(base: dict[str, Any]) -> str | None:
    """The caller, so that files he shares stay his; where the image says who runs in it, that one."""
    if (base.get("Config") or {}).get("User"):
        return None
    return f"{os.geteuid()}:{os.getegid()}"


def labels() -> dict[str, str]:
    """Whose container it is."""
    return {MARK: "container", USER: str(os.getuid()), HOME: home().path, MACHINE: _machine()}


# Streams ------------------------------------------------------------------------------------------------------------------


class _Attached(ProcessStream):
    """A container by way of docker's own program, which carries the bytes without a thread of ours."""

    def __init__(self, command: Sequence[str], identity: str) -> None:
        super().__init__(command)
        self._identity = identity

    def close(self) -> None:
        """End the agent; the container goes with it, or is made to."""
        super().close()
        _see_off(self._identity)


def _see_off(identity: str) -> None:
    """Wait until a container is gone; remove it if that takes long."""
    with contextlib.suppress(Exception), connected(5) as client:
        end = time.monotonic() + _GONE
        while time.monotonic() < end:
            found = client.containers(all=True, quiet=True, filters={"id": identity})
            if not found:
                return
            time.sleep(0.02)
        remove(client, identity)


def remove(client: Any, identity: str) -> None:
    """Remove a container, running or not; one that is gone already is fine."""
    from docker import errors

    with contextlib.suppress(errors.APIError):
        client.remove_container(identity, force=True, v=True)


def _attach(client: Any, identity: str) -> ByteStream:
    """A container by way of docker's library, where there is no docker program. Its stdout and stderr come mixed, in frames."""
    held = client.attach_socket(identity, {"stdin": 1, "stdout": 1, "stderr": 1, "stream": 1})
    link = getattr(held, "_sock", held)
    link.settimeout(None)
    client.start(identity)
    ended = threading.Event()
    errors, into = os.pipe()
    left = 0  # bytes of the frame that is being read

    def exactly(size: int) -> bytes:
        data = b""
        while len(data) < size:
            more = link.recv(size - len(data))
            if not more:
                return b""
            data += more
        return data

    def read(size: int) -> bytes:
        nonlocal left
        while not left:
            head = exactly(8)
            if not head:
                os.close(into)
                return b""
            kind, left = struct.unpack(">BxxxL", head)
            if kind == 2:
                view = memoryview(exactly(left))
                left = 0
                while view:
                    view = view[os.write(into, view) :]
        data: bytes = link.recv(min(size, left))
        left -= len(data)
        return data

    def shut() -> None:
        import socket

        link.shutdown(socket.SHUT_WR)

    def end() -> None:
        ended.set()
        _see_off(identity)
        held.close()

    return PumpedStream(read, link.sendall, shut, end, lambda: None, errors)


# After a crash ------------------------------------------------------------------------------------------------------------


def sweep_containers(left: list[str] | None = None, unseen: list[str] | None = None) -> list[str]:
    """Remove this user's containers whose process is gone; gives what was removed. A container that cannot be removed is a line of
    `left`; that docker cannot be asked, one of `unseen`."""
    import importlib.util

    unasked: list[str] = []
    told: list[str] = []
    removed: list[str] = []
    if importlib.util.find_spec("docker") is not None and (os.environ.get("DOCKER_HOST") or os.path.exists(_SOCKET)):
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
    if not path or told.get(USER) != str(os.getuid()) or told.get(MACHINE) != _machine():
        return False
    try:
        os.lstat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def _machine() -> str:
    """What a path means the same in: this machine, until it is started anew, and the mounts that this process sees."""
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return f"{file.read().strip()} {os.readlink('/proc/self/ns/mnt')}"
    except OSError:
        return platform.node()


_swept = False


def _sweep_once(client: Any) -> None:
    """Whoever uses docker anyway removes what others could not. What goes wrong with it is no affair of his call."""
    global _swept
    if not _swept:
        _swept = True
        _sweep(client, [], [])
