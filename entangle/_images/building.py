"""Builds an image: base, packages, docker, labels."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import IO, Any

from entangle._images import lambda_entry
from entangle._images.base_python import base_python
from entangle._images.build_context import PACKAGES, SITE, add_finder, dockerfile, pack
from entangle._images.chosen_packages import names_in, unpack
from entangle._images.image_name import ImageName
from entangle._images.needs import Needs, with_these
from entangle._images.pushing import push
from entangle._remote.transport.derived_images import base_image, parted, pulled
from entangle._remote.transport.docker_daemon import connected
from entangle.errors import ImageError

#: The services that an image may be built for. All but Lambda start its Python with a command.
SERVICES = ("docker", "batch", "fargate", "lambda")
ARCHES = ("amd64", "arm64")
#: Labels of an image: what it was made from and for, and what it holds.
RECIPE, FOR, BASE, PYTHON, HELD, LEVEL = (f"entangle.image.{name}" for name in ("recipe", "for", "base", "python", "packages", "level"))
#: Part of each recipe. Increase it when a change here makes another image of the same needs.
_EDITION = "1"
#: Seconds that docker may be silent, as when it stores a layer of many gigabytes.
_SILENT = 1800

Told = Callable[[str], None]


@dataclass(frozen=True)
class Wanted:
    """The image to build."""

    name: ImageName
    needs: Needs
    base: str
    #: Such as "3.12"; None: the version that the base has.
    python: str | None
    executable: str
    arch: str | None
    service: str
    handler: str


@dataclass(frozen=True)
class BuiltImage:
    """An image that was built: its name, and what is in it.

    `size` is in bytes, with the base; `digest` is that of the registry, "" if it was not pushed;
    `packages` are `name==version`; `reused` says that the same image was there already; `left_out`
    are modules that functions import, and that are not installed here.
    """

    tag: str
    id: str
    size: int
    digest: str
    service: str
    base: str
    arch: str
    python: str
    packages: tuple[str, ...]
    reused: bool
    left_out: tuple[str, ...] = ()


def build(wanted: Wanted, fresh: bool, pushes: bool, told: Told) -> BuiltImage:
    """Build it, and push it if asked. Raises UnreachableError and ImageError."""
    with connected(_SILENT) as client, _errors_of_docker(wanted.name):
        told(f"base image {wanted.base}")
        base = _base(client, wanted, told)
        recipe = _recipe(wanted, base)
        identity = None if fresh or not wanted.needs.fixed else _made_before(client, recipe)
        reused = identity is not None
        if identity is None:
            identity = _make(client, wanted, base, recipe, fresh, told)
        client.tag(identity, wanted.name.name, wanted.name.tag)
        digest = push(client, wanted.name, told) if pushes else ""
        made = client.inspect_image(identity)
    labels = made["Config"]["Labels"]
    return BuiltImage(
        tag=str(wanted.name),
        id=made["Id"],
        size=made["Size"],
        digest=digest,
        service=wanted.service,
        base=wanted.base,
        arch=made["Architecture"],
        python=labels[PYTHON],
        packages=tuple(json.loads(labels[HELD])),
        reused=reused,
        left_out=wanted.needs.left_out,
    )


@contextlib.contextmanager
def _errors_of_docker(name: ImageName) -> Iterator[None]:
    from docker import errors

    try:
        yield
    except errors.APIError as error:
        raise ImageError(f"docker does not build {name}: {error.explanation or error}") from None


def _base(client: Any, wanted: Wanted, told: Told) -> dict[str, Any]:
    """The base image. It is pulled if it is not here, or is here for another processor."""
    platform = None if wanted.arch is None else f"linux/{wanted.arch}"
    here = base_image(client, wanted.base, platform, told)
    if wanted.arch is None or here["Architecture"] == wanted.arch:
        return here
    name, tag = parted(wanted.base)
    try:
        found = pulled(client, wanted.base, platform, told)
    except ImageError as error:
        raise ImageError(f"the image {wanted.base!r} that is here is for {here['Architecture']}, not for {wanted.arch}: {error}") from None
    finally:
        if tag is not None:  # the pull has taken the name: give it back to the image that was here
            client.tag(here["Id"], name, tag)
    if found["Architecture"] != wanted.arch:
        raise ImageError(
            f"the image {wanted.base!r} is for {found['Architecture']}, and there is none for {wanted.arch}; name another base, "
            "or leave out arch"
        )
    return found


def _recipe(wanted: Wanted, base: dict[str, Any]) -> str:
    """A hash of all that goes into the image."""
    key = hashlib.sha256()
    parts = [_EDITION, base["Id"], wanted.service, wanted.executable, wanted.python or "", wanted.needs.fingerprint()]
    if wanted.service == "lambda":
        parts += [wanted.handler, lambda_entry.fingerprint()]
    for part in parts:
        key.update(part.encode() + b"\0")
    return key.hexdigest()[:32]


def _made_before(client: Any, recipe: str) -> str | None:
    """The id of an image that was made by the same recipe; None where there is none."""
    found = client.images(filters={"label": f"{RECIPE}={recipe}"}, quiet=True)
    return found[0] if found else None


def _make(client: Any, wanted: Wanted, base: dict[str, Any], recipe: str, fresh: bool, told: Told) -> str:
    """Build the image without a name; gives its id."""
    told(f"the Python of {wanted.base}")
    python = base_python(client, base, wanted.base, wanted.executable)
    if wanted.python is not None and python.text != wanted.python and not python.text.startswith(f"{wanted.python}."):
        raise ImageError(
            f"the base image {wanted.base!r} has Python {python.text}, not {wanted.python}; name another base, or leave one out"
        )
    needs = with_these(wanted.needs, lambda_entry.PACKAGES) if wanted.service == "lambda" else wanted.needs
    with tempfile.TemporaryDirectory(prefix="entangle-image-") as folder, tempfile.TemporaryFile() as context:
        packages, site = os.path.join(folder, "context", PACKAGES), os.path.join(folder, "context", SITE)
        os.mkdir(os.path.dirname(packages))
        below = (base.get("Config") or {}).get("Labels") or {}
        level = int(below.get(LEVEL, 0)) + 1
        held = dict(one.split("==") for one in json.loads(below.get(HELD, "[]")))
        if needs.wanted:
            told("packages")
            unpack(needs, python, packages, told)
            held |= dict(one.split("==") for one in names_in(packages))
            if wanted.service == "lambda":
                lambda_entry.add_entangle(packages)
            add_finder(site, level)
        entry, command = _started_as(wanted)
        labels = {RECIPE: recipe, FOR: wanted.service, BASE: wanted.base, PYTHON: python.text, LEVEL: str(level)}
        labels[HELD] = json.dumps([f"{name}=={version}" for name, version in sorted(held.items())])
        folder = os.path.dirname(packages)
        pack(folder, dockerfile(base, python, folder, level, entry, command, labels), context)
        context.seek(0)
        return _built(client, context, fresh, told)


def _started_as(wanted: Wanted) -> tuple[list[str], list[str]]:
    """The entry point and the command."""
    if wanted.service == "lambda":
        return [wanted.executable, "-m", "awslambdaric"], [wanted.handler]
    return [], [wanted.executable]


def _built(client: Any, context: IO[bytes], fresh: bool, told: Told) -> str:
    identity, said = "", ""
    for event in client.build(fileobj=context, custom_context=True, rm=True, forcerm=True, nocache=fresh, decode=True):
        if "error" in event:
            raise ImageError(f"docker cannot build the image: {event['error'].strip()}{said}")
        line = str(event.get("stream") or event.get("status") or "").strip()
        if line.startswith("Step "):
            told(line)
            said = ""
        elif line and not line.startswith("--->"):
            said += f"\n  {line}"
        identity = (event.get("aux") or {}).get("ID") or identity
    if not identity:
        raise ImageError(f"docker has built an image and does not say which{said}")
    return identity
