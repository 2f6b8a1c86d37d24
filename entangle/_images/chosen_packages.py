"""Packages for another Python, chosen and unpacked by the pip of this one.

So the index, the login and the certificate that pip knows here are enough: the image needs no pip,
and a container no network. pip evaluates markers, such as `python_version < "3.11"`, for the Python
that runs it, whatever `--python-version` says; only that is changed here, to the other Python.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from importlib import metadata

from entangle._images.base_python import BasePython
from entangle._images.needs import Needs
from entangle._remote.transport.derived_images import bundled_pip
from entangle._shared.masks import masked
from entangle.errors import ImageError

_PIP = """\
import sys
sys.path[:] = [one for one in sys.path if one]
import importlib.util, json
markers, bundled = json.loads(sys.argv.pop(1))
if importlib.util.find_spec("pip") is None:
    sys.path.insert(0, bundled)
from pip._vendor.packaging import markers as evaluated
evaluated.default_environment = lambda: dict(markers)
from pip._internal.cli.main import main
sys.exit(main())
"""
#: The beginnings of lines in which pip says what it does.
_NEWS = ("Collecting ", "Downloading ", "Processing ", "Installing collected")


def unpack(needs: Needs, python: BasePython, folder: str, told: Callable[[str], None]) -> None:
    """Put the packages into a folder, as the Python of the image imports them.

    Raises ImageError, with pip's own words, where a package cannot be had for it.
    """
    bundled = bundled_pip() or ""
    command = [sys.executable, "-c", _PIP, json.dumps([python.markers, bundled]), "install", "--target", folder, *_quietly()]
    command += ["--only-binary=:all:", "--implementation", "cp", "--python-version", python.text, "--abi", python.abi]
    command += [word for platform in python.platforms for word in ("--platform", platform)]
    if needs.file is not None:
        command += ["--requirement", needs.file]
    if needs.constraints:
        path = f"{folder}-constraints.txt"
        with open(path, "w", encoding="utf-8") as file:
            file.write("\n".join(needs.constraints) + "\n")
        command += ["--constraint", path]
    status, lines = _run([*command, "--", *needs.packages], told)
    if status:
        raise ImageError(_why(needs, python, lines))
    _name_the_python(os.path.join(folder, "bin"), python.executable)


def _quietly() -> list[str]:
    return [
        *("--no-compile", "--no-input", "--no-user", "--disable-pip-version-check", "--no-color"),
        *("--no-warn-conflicts", "--progress-bar", "off", "--root-user-action", "ignore"),
    ]


def _run(command: list[str], told: Callable[[str], None]) -> tuple[int, list[str]]:
    environment = {**os.environ, "PYTHONWARNINGS": "ignore", "PYTHONUNBUFFERED": "1"}
    lines: list[str] = []
    pip = subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, errors="replace"
    )
    with pip:
        try:
            assert pip.stdout is not None
            for line in pip.stdout:
                lines.append(line.rstrip())
                if line.strip().startswith(_NEWS):
                    told(masked(line.strip()))
        except BaseException:
            pip.kill()
            raise
    return pip.returncode, lines


def _why(needs: Needs, python: BasePython, lines: list[str]) -> str:
    wrong = [line for line in lines if line.startswith(("ERROR", "    ")) or "conflict" in line] or lines
    said = "\n".join(f"  {masked(line)}" for line in [line for line in wrong if line.strip()][-8:])
    named = masked(" ".join(needs.packages) or os.path.basename(needs.file or ""))
    text = f"{named} cannot be had for Python {python.text} on linux/{python.arch}\n{said}"
    if any("No module named pip" in line or "No module named 'pip'" in line for line in lines):
        return f"{text}\n  This Python ({sys.executable}) has no pip, and bundles none; install pip for it"
    here = sys.version_info[:2]
    if needs.imported and python.version[:2] != here:
        text += (
            f"\n  Versions are those installed here, for Python {here[0]}.{here[1]}. Take a base with that Python, or name versions for "
            f"{python.version[0]}.{python.version[1]}: --package NAME==VERSION"
        )
    elif any("No matching distribution" in line for line in lines):
        text += (
            "\n  Either the index has no such version, or no wheel of it for that Python and processor. Name another version "
            "(--package NAME==VERSION), or a wheel that you made (pip wheel NAME): --package ./NAME.whl"
        )
    return text


def _name_the_python(folder: str, executable: str) -> None:
    """Make scripts name the Python of the image; pip wrote the name of the one here."""
    for name in os.listdir(folder) if os.path.isdir(folder) else ():
        path = os.path.join(folder, name)
        with open(path, "rb") as file:
            content = file.read()
        head, newline, rest = content.partition(b"\n")
        if not head.startswith((b"#!" + os.fsencode(sys.executable), b"#!/bin/sh")):
            continue
        if head == b"#!/bin/sh":  # a long path: '''exec' /path "$0" "$@", over three lines
            lines = rest.split(b"\n", 2)
            if not lines[0].startswith(b"'''exec'") or len(lines) < 3:
                continue
            rest = lines[2]
        with open(path, "wb") as file:
            file.write(b"#!" + os.fsencode(executable) + newline + rest)


def names_in(folder: str) -> list[str]:
    """The distributions in a folder, `name==version`, sorted."""
    return sorted(f"{one.metadata['Name']}=={one.version}" for one in metadata.distributions(path=[folder]) if one.metadata["Name"])
