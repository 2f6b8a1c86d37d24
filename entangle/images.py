"""Images that hold the packages of functions: `entangle image build`, as a function.

More: docs/images.md.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from typing import Any

from entangle._images.building import ARCHES, SERVICES, BuiltImage, Wanted, build
from entangle._images.image_name import image_name
from entangle._images.lambda_entry import HANDLER
from entangle._images.needs import needs
from entangle._images.pushing import check_registry
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.option_values import check_whether
from entangle.errors import OptionError

__all__ = ["BuiltImage", "build_image"]


@edge
def build_image(
    tag: str,
    *,
    functions: Iterable[Callable[..., Any]] = (),
    packages: Sequence[str] = (),
    requirements: str | os.PathLike[str] | None = None,
    service: str = "docker",
    base: str | None = None,
    python: str | None = None,
    executable: str = "python3",
    arch: str | None = None,
    handler: str = HANDLER,
    push: bool = False,
    fresh: bool = False,
    told: Callable[[str], None] | None = None,
) -> BuiltImage:
    """Build an image with a Python and the packages that functions need, as `entangle image build`.

    - `tag`: its name, as "work:1" or "registry.example:5000/work:1".
    - `functions`: tasks or functions, whose imports are installed in the versions installed here.
      Modules of your own are not: they travel with each call.
    - `packages`: further ones, as pip takes them, or paths of wheels.
    - `requirements`: a requirements file.
    - `service`: what it is for: "docker", "batch", "fargate" or "lambda". For Lambda it also has
      entangle and Lambda's runtime client, which calls `handler`.
    - `base`: an image with Python 3.10 or newer, at `executable`; by default the official slim one
      of `python`, which is the version of this Python, as "3.13".
    - `arch`: "amd64" or "arm64"; by default as the base image here.
    - `push`: push it to the registry that its name says, with docker's own login.
    - `fresh`: build it anew, also where the same was built before.
    - `told`: gets a line for each step.

    The packages are chosen by the pip here, with its index and its login, and only as wheels;
    neither is in the image. A first build takes as long as pip takes to get the packages, and some
    seconds; the same again, where all versions are given, about one.

    Raises OptionError for bad options, UnreachableError without a docker daemon, ImageError for a
    base, a package or a registry that cannot be had, UnfitPythonError for a Python that is too old.

        build_image("work:1", functions=[solve])
        docker(image="work:1")(solve)
    """
    name = image_name(tag)
    if service not in SERVICES:
        raise OptionError(f"service={value_in_short(service)}; it must be one of {', '.join(SERVICES)}")
    if arch is not None and arch not in ARCHES:
        raise OptionError(f"arch={value_in_short(arch)}; it must be {' or '.join(ARCHES)}")
    version = None if python is None else re.fullmatch(r"3\.([0-9]+)(\.[0-9]+)?", str(python))
    if python is not None and (version is None or int(version[1]) < 10):
        raise OptionError(f"python={value_in_short(python)}; it must be a version from 3.10 up, as '3.13'")
    for option, value in (("base", base), ("executable", executable), ("handler", handler)):
        if value is not None and (not isinstance(value, str) or not value.strip() or value.startswith("-")):
            raise OptionError(f"{option}={value_in_short(value)}; it must be a name, without a dash first")
    if service != "lambda" and handler != HANDLER:
        raise OptionError(f"handler={value_in_short(handler)} is for Lambda; add service='lambda' (--for lambda)")
    check_whether("build_image", push=push, fresh=fresh)
    if told is not None and not callable(told):
        raise OptionError(f"told={value_in_short(told)}; it must be a function of one line")
    if push:
        check_registry(name)
    wanted = Wanted(
        name=name,
        needs=needs(packages, requirements, functions),
        base=base or f"python:{python or '{}.{}'.format(*sys.version_info)}-slim",
        python=python,
        executable=executable,
        arch=arch,
        service=service,
        handler=handler,
    )
    return build(wanted, fresh, push, told or (lambda line: None))
