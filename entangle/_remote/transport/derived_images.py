"""Images with packages added: made from a given image by pip, once. The tag is the recipe's hash.

A container of the image runs pip as root, and is then committed as an image. What pip must know of
this machine (a package index, a certificate) goes to that one command and stays out of the image.
"""

from __future__ import annotations

import contextlib
import fcntl
import glob
import hashlib
import io
import os
import subprocess
import sys
import tarfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

from entangle._remote.transport.docker_daemon import MARK, labels, remove
from entangle._shared.home import private_folder
from entangle._shared.masks import masked
from entangle.errors import ImageError

#: The repository of derived images; the tag is made of the image below and of the packages.
REPOSITORY = "entangle-derived"
_PLACE = "/tmp/entangle-packages"
#: Settings of pip that depend on this machine.
_OF_THIS_MACHINE = (
    "PIP_INDEX_URL",
    "PIP_EXTRA_INDEX_URL",
    "PIP_TRUSTED_HOST",
    "PIP_DEFAULT_TIMEOUT",
    "PIP_TIMEOUT",
    "PIP_RETRIES",
    "PIP_PROXY",
)
_PROXIES = ("http_proxy", "https_proxy", "no_proxy")
_QUIETLY = {
    "PIP_DISABLE_PIP_VERSION_CHECK": "1",
    "PIP_NO_INPUT": "1",
    "PIP_ROOT_USER_ACTION": "ignore",
    "PIP_BREAK_SYSTEM_PACKAGES": "1",  # the image's system Python is ours to change
}


@dataclass(frozen=True)
class Recipe:
    """What goes into a derived image: packages, as names or as files of this machine."""

    image: str
    packages: tuple[str, ...]
    python: str
    network: str | None = None


def base_image(client: Any, image: str, platform: str | None = None, told: Callable[[str], None] | None = None) -> dict[str, Any]:
    """What the daemon knows of an image; pulled where it is not there, for a `platform` such as
    linux/arm64. Raises ImageError."""
    from docker import errors

    try:
        found: dict[str, Any] = client.inspect_image(image)
        return found
    except errors.ImageNotFound:
        pass
    except errors.APIError as error:
        if not error.is_client_error():
            raise
        said = error.explanation or error
        raise ImageError(f"image={image!r} is not a valid name: {said}; write it as 'python:3.13-slim'") from None
    return pulled(client, image, platform, told)


def pulled(client: Any, image: str, platform: str | None = None, told: Callable[[str], None] | None = None) -> dict[str, Any]:
    """Pull an image, whether there is one of that name or not; what the daemon knows of it then.

    `told` gets a line for each thing that happens. Raises ImageError.
    """
    from docker import errors

    try:
        name, tag = parted(image)
        for event in client.pull(name, tag=tag, platform=platform, stream=True, decode=True):
            if "error" in event:
                raise ImageError(f"there is no image {image!r} here, and it cannot be pulled: {event['error']}")
            if told is not None and event.get("status"):
                told(" ".join(part for part in (event.get("id", ""), event["status"], event.get("progress", "")) if part))
        found: dict[str, Any] = client.inspect_image(image)
        return found
    except errors.APIError as error:
        raise ImageError(f"there is no image {image!r} here, and it cannot be pulled: {error.explanation or error}") from None


def parted(image: str) -> tuple[str, str | None]:
    """The name and the tag. A digest stays with the name; a port is no tag."""
    if "@" in image:
        return image, None
    name, colon, tag = image.rpartition(":")
    return (name, tag) if colon and "/" not in tag else (image, "latest")


def with_packages(client: Any, base: dict[str, Any], recipe: Recipe) -> str:
    """The id of the image with these packages; it is made where there is none yet.

    Raises ImageError with pip's own words.
    """
    from docker import errors

    files = {package: os.path.abspath(package) for package in recipe.packages if os.path.isfile(package)}
    key = hashlib.sha256(base["Id"].encode())
    for package in sorted(recipe.packages):
        key.update(b"\0" + package.encode())
        if package in files:
            with open(files[package], "rb") as file:
                key.update(file.read())
    key.update(b"\0" + recipe.python.encode())
    tag = key.hexdigest()[:24]
    with _alone(tag):
        try:
            found: str = client.inspect_image(f"{REPOSITORY}:{tag}")["Id"]
        except errors.ImageNotFound:
            found = _make(client, base, recipe, files, tag)
    return found


@contextlib.contextmanager
def _alone(tag: str) -> Iterator[None]:
    """Hold a lock: one process of this user at a time makes an image."""
    # A folder of this user alone: nobody else can plant a link there.
    path = os.path.join(private_folder(), f"{tag}.lock")
    while True:
        fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
        fcntl.flock(fd, fcntl.LOCK_EX)
        with contextlib.suppress(FileNotFoundError):
            if os.path.samestat(os.fstat(fd), os.stat(path)):
                break
        # Its last holder has removed the file: lock the new one.
        os.close(fd)
    try:
        yield
    finally:
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        os.close(fd)


def _make(client: Any, base: dict[str, Any], recipe: Recipe, files: dict[str, str], tag: str) -> str:
    from docker import errors

    config = base.get("Config") or {}
    try:
        # An image has what its container had, where it is told nothing else: so none is named here.
        identity = client.create_container(
            base["Id"],
            [recipe.python, "-c", "import time; time.sleep(3600)"],
            entrypoint=[""],  # none, whatever the image has
            user="0:0" if config.get("User") else None,
            labels=labels(),
            host_config=client.create_host_config(network_mode=recipe.network if recipe.network == "host" else None),
        )["Id"]
        try:
            client.start(identity)
            _install(client, identity, recipe, files)
            made: str = client.commit(
                identity, REPOSITORY, tag, changes=[f"LABEL {MARK}=derived", *_as_it_was(config)], message=" ".join(recipe.packages)
            )["Id"]
            return made
        finally:
            remove(client, identity)
    except errors.APIError as error:
        told = str(error.explanation or error)
        if "executable file not found" in told or "no such file" in told:
            raise ImageError(
                f"the image {recipe.image!r} has no Python at {recipe.python!r} to install packages with; "
                f"say where it is: python='/path/to/python3'"
            ) from None
        raise ImageError(f"packages cannot be added to the image {recipe.image!r}: {told}") from None


def _as_it_was(config: dict[str, Any]) -> list[str]:
    """Dockerfile instructions that restore the image's own entry point, command and user."""
    import json

    told = [f"ENTRYPOINT {json.dumps(config['Entrypoint'])}"] if config.get("Entrypoint") else []
    told.append(f"CMD {json.dumps(config.get('Cmd') or [])}")
    return [*told, f"USER {config['User']}"] if config.get("User") else told


def _install(client: Any, identity: str, recipe: Recipe, files: dict[str, str]) -> None:
    environment, certificate = settings_of_pip()
    sent = {os.path.basename(path): path for path in files.values()}
    if certificate is not None:
        sent["certificate.pem"] = certificate
        environment["PIP_CERT"] = f"{_PLACE}/certificate.pem"
    pip = [recipe.python, "-m", "pip"]
    if _run(client, identity, [*pip, "--version"], {})[0]:
        wheel = bundled_pip()
        if wheel is None:
            raise ImageError(
                f"the image {recipe.image!r} has no pip, and the Python here bundles none; "
                f"name an image with pip to install {masked(' '.join(recipe.packages))}"
            )
        sent[os.path.basename(wheel)] = wheel
        pip = [recipe.python, f"{_PLACE}/{os.path.basename(wheel)}/pip"]
    _send(client, identity, sent)
    named = [f"{_PLACE}/{os.path.basename(files[package])}" if package in files else package for package in recipe.packages]
    status, said = _run(client, identity, [*pip, "install", "--no-cache-dir", "--", *named], environment)
    if status:
        end = "\n".join(f"  {line}" for line in said.strip().splitlines()[-8:])
        raise ImageError(f"{masked(' '.join(recipe.packages))} cannot be installed in the image {recipe.image!r}\n{end}")
    _run(client, identity, ["rm", "-rf", _PLACE], {})


def _run(client: Any, identity: str, command: list[str], environment: dict[str, str]) -> tuple[int, str]:
    """Run a command in a container; its exit status and its output."""
    started = client.exec_create(identity, command, environment=environment, user="0:0")
    said: bytes = client.exec_start(started["Id"])
    return client.exec_inspect(started["Id"])["ExitCode"] or 0, said.decode(errors="replace")


def _send(client: Any, identity: str, files: dict[str, str]) -> None:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w") as archive:
        folder = tarfile.TarInfo(os.path.basename(_PLACE))
        folder.type, folder.mode = tarfile.DIRTYPE, 0o755
        archive.addfile(folder)
        for name, path in files.items():
            archive.add(path, f"{os.path.basename(_PLACE)}/{name}", recursive=False)
    client.put_archive(identity, os.path.dirname(_PLACE), packed.getvalue())


def bundled_pip() -> str | None:
    """The wheel of pip that Python bundles for ensurepip. A wheel runs as it is."""
    import ensurepip

    found = sorted(glob.glob(os.path.join(glob.escape(os.path.dirname(ensurepip.__file__)), "_bundled", "pip-*.whl")))
    return found[-1] if found else None


def settings_of_pip() -> tuple[dict[str, str], str | None]:
    """What pip is told here about package indexes, and the certificate file that it trusts."""
    found = {}
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        told = subprocess.run([sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, timeout=20, check=True)
        for line in told.stdout.splitlines():
            name, _, value = line.partition("=")
            section, _, option = name.partition(".")
            if section in ("global", "install"):
                found["PIP_" + option.upper().replace("-", "_")] = value.strip("'\"")
    found.update(os.environ)
    settings = {name: value for name, value in found.items() if name in _OF_THIS_MACHINE or name.lower() in _PROXIES}
    certificate = found.get("PIP_CERT") or found.get("REQUESTS_CA_BUNDLE")
    return settings | _QUIETLY, certificate if certificate and os.path.isfile(certificate) else None
