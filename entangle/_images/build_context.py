"""The build context for docker: a Dockerfile, packages, and a file by which Python finds them.

The same packages make the same bytes, so docker reuses the layers that it has made before.
"""

from __future__ import annotations

import io
import json
import os
import tarfile
from collections.abc import Mapping
from typing import IO, Any

from entangle._images.base_python import BasePython

PACKAGES, SITE, DOCKERFILE = "packages", "site", "Dockerfile"
#: Where packages lie in an image. One that was built upon another of ours has a folder of each.
_ALL = "/opt/entangle/"
#: The PATH that docker gives a container whose image has none.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: 1980-01-01, the earliest time that a zip file can hold.
_TIME = 315_532_800

#: Puts the packages behind the standard library, and before those of the base, so that these
#: versions are the ones that are imported.
_FINDS = """\
\"\"\"Has this Python find the packages of the image before those of its base.\"\"\"

import site
import sys

_before = list(sys.path)
site.addsitedir({place!r})
_added = [one for one in sys.path if one not in _before]
_at = next((at for at, one in enumerate(_before) if one.startswith({all!r}) or one.endswith("-packages")), len(_before))
sys.path[:] = _before[:_at] + _added + _before[_at:]
"""
#: Compiles with hashes that are not checked: the user of a container may not be allowed to write
#: there, and files get other times on the way through registries.
_COMPILES = (
    "import compileall, py_compile; "
    "compileall.compile_dir({place!r}, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
)


def place(level: int) -> str:
    """The folder of the packages of an image that was built upon `level - 1` others of ours."""
    return f"{_ALL}packages-{level:03}"


def add_finder(folder: str, level: int) -> None:
    """Write the file for the site packages by which a Python finds the packages."""
    os.mkdir(folder)
    module = f"_entangle_packages_{level:03}"
    finds = _FINDS.format(place=place(level), all=_ALL)
    for name, text in ((f"{module}.py", finds), (f"entangle-packages-{level:03}.pth", f"import {module}\n")):
        with open(os.path.join(folder, name), "w", encoding="ascii") as file:
            file.write(text)


def dockerfile(
    base: dict[str, Any], python: BasePython, folder: str, level: int, entry: list[str], command: list[str], labels: Mapping[str, str]
) -> str:
    """The text of a Dockerfile for the content of a folder. All labels are one step: each step
    takes time."""
    config = base.get("Config") or {}
    environment = dict(one.partition("=")[::2] for one in config.get("Env") or ())
    lines = [f"FROM {base['Id']}"]
    if os.path.isdir(os.path.join(folder, PACKAGES)):
        lines += [f"COPY {PACKAGES} {place(level)}", f"COPY {SITE} {python.site}/"]
        if python.runs:
            user = config.get("User") or ""
            # A base without a user must stay so: its container runs as the user of the caller.
            lines += [*(["USER 0"] if user else []), f"RUN {json.dumps([python.executable, '-c', _COMPILES.format(place=place(level))])}"]
            lines += [f"USER {user}"] if user else []
        if os.path.isdir(os.path.join(folder, PACKAGES, "bin")):
            lines.append(f"ENV PATH={place(level)}/bin:{environment.get('PATH') or _PATH}")
    told = " ".join(f"{name}={json.dumps(value)}" for name, value in labels.items()).replace("$", "\\$")
    return "\n".join([*lines, f"LABEL {told}", f"ENTRYPOINT {json.dumps(entry)}", f"CMD {json.dumps(command)}", ""])


def pack(folder: str, recipe: str, into: IO[bytes]) -> None:
    """Write the folder and the Dockerfile as the archive that docker takes."""
    with tarfile.open(fileobj=into, mode="w") as archive:
        content = recipe.encode()
        head = tarfile.TarInfo(DOCKERFILE)
        head.size, head.mtime = len(content), _TIME
        archive.addfile(head, io.BytesIO(content))
        for at, folders, files in os.walk(folder):
            folders[:] = sorted(one for one in folders if one != "__pycache__")
            for name in sorted([*folders, *files]):
                path = os.path.join(at, name)
                info = archive.gettarinfo(path, os.path.relpath(path, folder))
                info.uid = info.gid = 0
                info.uname = info.gname = ""
                info.mtime = _TIME
                # Readable for every user: which one Lambda uses is not known.
                info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
                if info.isreg():
                    with open(path, "rb") as file:
                        archive.addfile(info, file)
                else:
                    archive.addfile(info)
