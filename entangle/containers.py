"""@apptainer and @singularity, which start a container by their command; @docker beside them.

More: docs/how_to/containers.md.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, ParamSpec, TypeVar, overload

from entangle._remote.caller.far import Far
from entangle._remote.transport.apptainer import ApptainerTransport
from entangle._remote.transport.container_options import check_common
from entangle._shared.tracebacks import edge
from entangle.docker import Volumes, docker
from entangle.errors import OptionError
from entangle.task import Decorator, Task, decorate, refuse_unknown

__all__ = ["apptainer", "docker", "singularity"]

P = ParamSpec("P")
R = TypeVar("R")

_OPTIONS = ("image", "packages", "gpus", "env", "volumes", "memory", "cpus", "python")


class Apptainer(Far):
    """The layer of @apptainer."""


class Singularity(Far):
    """The layer of @singularity."""


@overload
def apptainer(
    *,
    image: str,
    packages: Sequence[str] = (),
    gpus: bool = False,
    env: Mapping[str, str] | None = None,
    volumes: Volumes = (),
    memory: str | int | None = None,
    cpus: float | None = None,
    python: str = "python3",
) -> Decorator: ...
@overload
def apptainer(function: Callable[P, R], /, *, image: str, **options: Any) -> Task[P, R]: ...
@edge
def apptainer(function: Any = None, /, *, image: str | None = None, **options: Any) -> Any:
    """Run the function in a container of Apptainer, with the layers below; its value comes back.

    `image` is a .sif file, a sandbox directory or a URL (docker://python:3.13-slim), with a Python
    3.10 or newer at `python`. The image's pip installs `packages` once, into a directory of the
    user's cache. `gpus=True` gives it the GPUs (--nv). `env`, `volumes`, `memory` and `cpus` are as
    those of @docker. The user's home is not in the container.

    Raises OptionError here for bad options. Running a call raises UnreachableError where apptainer
    is not installed, ImageError, UnfitPythonError and LinkLostError.

        @apptainer(image="analysis.sif")
        def solve(a, b): ...
    """
    return _contained("apptainer", Apptainer, function, image, options)


@overload
def singularity(
    *,
    image: str,
    packages: Sequence[str] = (),
    gpus: bool = False,
    env: Mapping[str, str] | None = None,
    volumes: Volumes = (),
    memory: str | int | None = None,
    cpus: float | None = None,
    python: str = "python3",
) -> Decorator: ...
@overload
def singularity(function: Callable[P, R], /, *, image: str, **options: Any) -> Task[P, R]: ...
@edge
def singularity(function: Any = None, /, *, image: str | None = None, **options: Any) -> Any:
    """Run the function in a container of Singularity, with the options of @apptainer.

    Apptainer is Singularity's newer name: whichever of the two is installed is used.

        @singularity(image="analysis.sif")
        def solve(a, b): ...
    """
    return _contained("singularity", Singularity, function, image, options)


def _contained(decorator: str, layer: type[Far], function: Any, image: str | None, options: dict[str, Any]) -> Any:
    refuse_unknown(decorator, _OPTIONS, {name: None for name in options if name not in _OPTIONS})
    gpus = options.pop("gpus", False)
    if not isinstance(gpus, bool):
        raise OptionError(f"@{decorator}: gpus={gpus!r}; it must be True or False")
    defaults: dict[str, Any] = {"packages": (), "env": None, "volumes": (), "memory": None, "cpus": None, "python": "python3"}
    given = check_common(decorator, image, **{**defaults, **options})
    made = layer(ApptainerTransport(gpus=gpus, program=decorator, **given))

    @edge
    def wrap(inner: Any) -> Task[..., Any]:
        return decorate(decorator, inner, made)

    return wrap if function is None else wrap(function)
