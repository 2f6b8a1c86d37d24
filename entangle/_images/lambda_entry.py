"""What an image for Lambda has besides packages: Lambda's runtime client, and entangle itself."""

from __future__ import annotations

import hashlib
import os
import shutil

from entangle.errors import ImageError

#: The function that Lambda calls, in the form that its runtime client takes.
HANDLER = "entangle._aws.lambda_handler.handler"
#: The packages to install: the client of Lambda's runtime, and those that entangle needs.
PACKAGES = ("awslambdaric", "cloudpickle", "psutil")
#: Folders of entangle that no function needs there.
_APART = {"tests", "examples", "web", "cli", "__pycache__"}


def add_entangle(folder: str) -> None:
    """Copy entangle's modules to where packages lie. Raises ImageError where there are no files."""
    source = _source()
    shutil.copytree(source, os.path.join(folder, "entangle"), ignore=lambda _, names: _APART.intersection(names))


def fingerprint() -> str:
    """A hash of what `add_entangle` copies."""
    key = hashlib.sha256()
    source = _source()
    for at, folders, files in os.walk(source):
        folders[:] = sorted(set(folders) - _APART)
        for name in sorted(files):
            with open(os.path.join(at, name), "rb") as file:
                key.update(f"{os.path.relpath(at, source)}/{name}".encode() + b"\0" + hashlib.sha256(file.read()).digest())
    return key.hexdigest()


def _source() -> str:
    source = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if not os.path.isfile(os.path.join(source, "__init__.py")):
        raise ImageError(
            f"entangle cannot be put into an image, since it is installed here without its source ({source}); install it with its "
            "files that end in .py"
        )
    return source
