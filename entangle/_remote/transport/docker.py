"""A docker container. Its first process is the agent: when the agent ends, docker removes it.

The container's stdin is open for one client only (StdinOnce). When that client goes away, however
we end, the agent reads the end of its stdin, and ends. `docker_leftovers.py` removes the rest:
containers that were made and never started.
"""

from __future__ import annotations

import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from entangle._remote.transport import Transport
from entangle._remote.transport.docker_daemon import connected, labels, remove
from entangle._remote.transport.docker_leftovers import sweep_once
from entangle._remote.transport.docker_streams import start
from entangle._remote.wire.byte_stream import ByteStream
from entangle.errors import FarError, ImageError, OptionError, UnfitPythonError, UnreachableError


@dataclass(frozen=True)
class DockerTransport(Transport):
    """The options of @docker. Pairs instead of dicts, so that they can be compared and hashed."""

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
        """Start a container with the agent in it.

        Raises UnreachableError without a daemon, ImageError without the image.
        """
        with connected() as client:
            from docker import errors

            from entangle._remote.transport.derived_images import Recipe, base_image, with_packages

            sweep_once(client)
            base = base_image(client, self.image)
            image = base["Id"]
            if self.packages:
                image = with_packages(client, base, Recipe(self.image, self.packages, self.python, self.network))
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
                        f"@docker: volumes: there is no {absent[1]!r} on the machine of the docker daemon; make it first, or write "
                        f"the name of a docker volume, without a slash"
                    ) from None
                raise ImageError(f"@docker(image={self.image!r}): docker cannot make a container of it: {told}") from None
            try:
                return start(client, identity)
            except BaseException:
                remove(client, identity)
                raise

    def _environment(self) -> dict[str, str]:
        given = dict(self.environment)
        # A user that the image does not know has no home there.
        return given if os.geteuid() == 0 else {"HOME": "/tmp", **given}

    def _host_config(self, client: Any) -> Any:
        from docker import errors, types

        requests = None
        # Asking for the runtimes takes a round trip: only where GPUs may be wanted.
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
                f"@docker(gpus={self.gpus!r}): docker has no GPU runtime here; install the NVIDIA container toolkit, or leave out gpus"
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
                # Its output is frames, for us alone; docker would log all of them on its disk.
                log_config=types.LogConfig(type="none"),
                security_opt=["no-new-privileges:true"],
                # The store needs it; with docker's default, 64 MB, large values would go to a disk.
                shm_size=max(1 << 26, os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2),
            )
        except (errors.DockerException, TypeError, ValueError) as error:
            raise ImageError(f"@docker(image={self.image!r}): {error}") from None

    def _mounted(self) -> tuple[list[str], list[Any]]:
        """Volumes, as binds and as mounts.

        Where the path is missing, a bind would make a directory of root's; a mount refuses.
        """
        from docker import types

        binds, mounts = [], []
        for volume in self.volumes:
            here, there, *words = volume.split(":", 2)
            if here.startswith("/") and not set(words) - {"ro", "rw"}:
                mounts.append(types.Mount(there, here, type="bind", read_only="ro" in words))
            else:  # a volume of docker's, or options that mounts lack, as SELinux labels
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


def _user(base: dict[str, Any]) -> str | None:
    """The caller's ids, so that files stay the caller's; None where the image names a user."""
    if (base.get("Config") or {}).get("User"):
        return None
    return f"{os.geteuid()}:{os.getegid()}"
