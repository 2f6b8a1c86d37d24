"""@docker: the function runs in a docker container.

More: docs/how_to/containers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from entangle._remote.caller.far import Far
from entangle._remote.transport.container_options import check_common, pairs, words
from entangle._remote.transport.docker import DockerTransport
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.door import named_as_its_decorator
from entangle.errors import OptionError
from entangle.task import Decorator, Task, decorate, refuse_unknown

__all__ = ["docker"]

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("image", "packages", "consume_gpu", "gpus", "env", "volumes", "network", "memory", "cpus", "python")
Volumes = Mapping[str, str] | Sequence[str]
Gpus = str | int | Sequence[str] | None


class Docker(Far):
    """The layer of @docker."""


@overload
def docker(
    *,
    image: str,
    packages: Sequence[str] = (),
    consume_gpu: bool = True,
    gpus: Gpus = None,
    env: Mapping[str, str] | None = None,
    volumes: Volumes = (),
    network: str | None = None,
    memory: str | int | None = None,
    cpus: float | None = None,
    python: str = "python3",
) -> Decorator: ...
@overload
def docker(function: Callable[P, R], /, *, image: str, **options: Any) -> Task[P, R]: ...
@edge
def docker(
    function: Any = None,
    /,
    *,
    image: str | None = None,
    packages: Sequence[str] = (),
    consume_gpu: bool = True,
    gpus: Gpus = None,
    env: Mapping[str, str] | None = None,
    volumes: Volumes = (),
    network: str | None = None,
    memory: str | int | None = None,
    cpus: float | None = None,
    python: str = "python3",
    **unknown: Any,
) -> Any:
    """Run the function in a docker container, with the layers below; its value comes back.

    - `image`: needs a Python 3.10 or newer, at `python`, and nothing else. Pulled if it is not
      here.
    - `packages`: what pip installs, names or wheel files of this machine, into an image that is
      built once.
    - `env`: environment variables.
    - `volumes`: maps paths here, or names of docker volumes, to paths there ("/there:ro" to read
      only).
    - `network`: a docker network, "none" or "host".
    - `memory`: bytes, or a string such as "2g".
    - `cpus`: how many it may use at most.
    - `gpus`: a number, "all", or a list of ids; by default all, where docker's runtime has any.
    - `consume_gpu`: False has TensorFlow take GPU memory as it needs it
      (TF_FORCE_GPU_ALLOW_GROWTH).

    The container serves the calls of a run and is removed at its end. It runs as the calling user,
    unless the image names one. Needs the extra `docker`.

    Raises OptionError here for bad options, and in a run for a path of `volumes` that is missing.
    Running a call raises UnreachableError without a docker daemon, ImageError for an image or
    packages that cannot be had, UnfitPythonError, and LinkLostError where the container dies.

        @docker(image="python:3.13-slim", packages=["numpy"])
        def solve(a, b): ...
    """
    refuse_unknown("docker", _OPTIONS, unknown)
    given = check_common("docker", image, packages, env, volumes, memory, cpus, python)
    if network is not None and (not isinstance(network, str) or not network):
        raise OptionError(f"@docker: network={value_in_short(network)}; it must be the name of a docker network, 'none' or 'host'")
    chosen: Any = gpus
    if isinstance(gpus, (list, tuple)):
        chosen = words("docker", "gpus", gpus)
    elif gpus is not None and gpus != "all" and (isinstance(gpus, bool) or not isinstance(gpus, int) or gpus < 0):
        raise OptionError(f"@docker: gpus={value_in_short(gpus)}; it must be a number, 'all', or a list of device ids")
    if not isinstance(consume_gpu, bool):
        raise OptionError(f"@docker: consume_gpu={value_in_short(consume_gpu)}; it must be True or False")
    if not consume_gpu:
        given["environment"] = pairs({"TF_FORCE_GPU_ALLOW_GROWTH": "true", **dict(given["environment"])})
    layer = Docker(DockerTransport(gpus=chosen, network=network, **given))

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return decorate("docker", inner, layer)

    return wrap if function is None else wrap(function)


named_as_its_decorator(__name__)
