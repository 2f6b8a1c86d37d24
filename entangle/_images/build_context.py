"""What docker gets to build from: a Dockerfile, packages, and how Python finds them.

The same packages make the same bytes, so docker finds the layers that it has made before.
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
#: Where packages lie in an image: a folder for each image that was built upon another of ours.
_ALL = "/opt/entangle/"
#: docker's own, for a container of an image that names none.
_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
#: 1980-01-01, before which a zip file cannot say a time.
_TIME = 315_532_800

#: In front of the base's own packages, so that a version here counts; behind the standard library.
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
#: Compiled with hashes that nobody checks: whoever runs the image may not write there, and times
#: change on the way through registries.
_COMPILES = (
    "import compileall, py_compile; "
    "compileall.compile_dir({place!r}, quiet=2, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH)"
)


def place(level: int) -> str:
    """Where the packages of an image lie that stands on `level - 1` others of ours."""
    return f"{_ALL}packages-{level:03}"


def add_finder(folder: str, level: int) -> None:
    """Write what makes a Python find the packages, for its site packages."""
    os.mkdir(folder)
    module = f"_entangle_packages_{level:03}"
    finds = _FINDS.format(place=place(level), all=_ALL)
    for name, text in ((f"{module}.py", finds), (f"entangle-packages-{level:03}.pth", f"import {module}\n")):
        with open(os.path.join(folder, name), "w", encoding="ascii") as file:
            file.write(text)


def dockerfile(
    base: dict[str, Any], python: BasePython, folder: str, level: int, entry: list[str], command: list[str], labels: Mapping[str, str]
) -> str:
    """The text of a Dockerfile for what lies in a folder. Labels are one step: each takes time."""
    config = base.get("Config") or {}
    environment = dict(one.partition("=")[::2] for one in config.get("Env") or ())
    lines = [f"FROM {base['Id']}"]
    if os.path.isdir(os.path.join(folder, PACKAGES)):
        lines += [f"COPY {PACKAGES} {place(level)}", f"COPY {SITE} {python.site}/"]
        if python.runs:
            user = config.get("User") or ""
            # Without a user in the base there must be none here: it then runs as the caller.
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
                # For every user: Lambda's is nobody's that one knows.
                info.mode = 0o755 if info.isdir() or info.mode & 0o100 else 0o644
                if info.isreg():
                    with open(path, "rb") as file:
                        archive.addfile(info, file)
                else:
                    archive.addfile(info)
