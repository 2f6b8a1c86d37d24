"""Pushes an image to the registry that its name says."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from entangle._images.image_name import ImageName
from entangle._shared.masks import masked
from entangle.errors import ImageError, OptionError

_NOT_LET_IN = ("denied", "unauthorized", "no basic auth", "authentication required", "forbidden", "403", "401")


def check_registry(name: ImageName) -> None:
    """Raises OptionError for a name without a registry: docker would push it to its own."""
    if not name.registry:
        raise OptionError(f"{str(name)!r} names no registry to push to; write HOST/NAME:TAG, as 'localhost:5000/{name}'")


def push(client: Any, name: ImageName, told: Callable[[str], None]) -> str:
    """Push; gives the digest, by which the image can be pulled as HOST/NAME@DIGEST.

    docker's own logins are used. Raises ImageError if the registry does not take the image.
    """
    from docker import errors

    digest = ""
    try:
        for event in client.push(name.name, tag=name.tag, stream=True, decode=True):
            if "error" in event:
                raise ImageError(_why(name, str(event["error"])))
            if event.get("status"):
                told(" ".join(part for part in (event.get("id", ""), event["status"], event.get("progress", "")) if part))
            digest = (event.get("aux") or {}).get("Digest") or digest
    except errors.DockerException as error:  # a missing login helper is one of these, too
        raise ImageError(_why(name, str(getattr(error, "explanation", None) or error))) from None
    if not digest:
        raise ImageError(f"{name} was pushed, and docker does not say which digest it has there; look at the registry {name.registry}")
    return digest


def _why(name: ImageName, said: str) -> str:
    text = f"{name} cannot be pushed: {masked(said)}"
    if any(word in said.lower() for word in _NOT_LET_IN):
        return (
            f"{text}\n  The registry does not let you push there: docker login {name.registry}, or ask for the right to push to {name.name}"
        )
    if "does not exist" in said.lower() or "name unknown" in said.lower():
        return f"{text}\n  Make the repository {name.name} in the registry first"
    return text
