"""What an image must hold: packages as pip takes them, and versions of their dependencies."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import os
import re
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from typing import Any

from entangle._remote.caller.modules import version_of
from entangle._remote.caller.requirements import modules_behind, requirements
from entangle._shared.summaries import value_in_short
from entangle._tasks.option_values import check_path
from entangle.errors import OptionError

_NAME = re.compile(r"[A-Za-z0-9](?:[A-Za-z0-9._-]*[A-Za-z0-9])?")
#: A requirement that always gives the same package: a name, perhaps with extras, and a version.
_PINNED = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*\s*(?:\[[^\]]*\])?\s*==\s*[^\s*;,]+")


@dataclass(frozen=True)
class Needs:
    """Packages for an image."""

    #: As pip takes them: `name==version`, or the path of a file.
    packages: tuple[str, ...] = ()
    #: A requirements file of pip's.
    file: str | None = None
    #: The versions of their dependencies.
    constraints: tuple[str, ...] = ()
    #: Whether functions import some of the packages, whose versions are then those installed here.
    imported: bool = False
    #: Modules that functions import and that are not installed here.
    left_out: tuple[str, ...] = ()

    @property
    def fixed(self) -> bool:
        """Whether an installation gives the same packages at any time."""
        lines = [line.partition(" #")[0].strip() for line in self._text().splitlines()]
        named = [line for line in lines if line and not line.startswith("#")]
        return all(os.path.isfile(one) or _PINNED.fullmatch(one) for one in self.packages) and all(map(_PINNED.fullmatch, named))

    def fingerprint(self) -> str:
        """A hash of all this, with the content of files."""
        key = hashlib.sha256()
        for one in self.packages:
            key.update(b"\0" + one.encode())
            if os.path.isfile(one):
                with open(one, "rb") as file:
                    key.update(hashlib.sha256(file.read()).digest())
        key.update(b"\1" + self._text().encode() + b"\1" + "\0".join(self.constraints).encode())
        return key.hexdigest()

    def _text(self) -> str:
        if self.file is None:
            return ""
        with open(self.file, encoding="utf-8", errors="replace") as file:
            return file.read()

    @property
    def wanted(self) -> bool:
        """Whether there is anything to install."""
        return bool(self.packages or self.file)


def needs(packages: Sequence[str], file: str | os.PathLike[str] | None, functions: Iterable[Callable[..., Any]]) -> Needs:
    """The packages that were named, and those that functions import, as installed here.

    A version that was named counts, not the one installed here. Raises OptionError.
    """
    if isinstance(packages, str) or not isinstance(packages, Iterable) or not all(isinstance(one, str) and one.strip() for one in packages):
        raise OptionError(f"packages={value_in_short(packages)}; it must be a list of strings, as ['numpy==2.1']")
    if isinstance(functions, str) or not isinstance(functions, Iterable):
        raise OptionError(f"functions={value_in_short(functions)}; it must be a list of functions, as [solve]")
    if file is not None:
        check_path("build_image", "requirements", file)
    named = [one.strip() for one in packages]
    for one in named:
        if one.startswith("-"):
            raise OptionError(f"{one!r} is no package: write its name, or NAME==VERSION, or the path of a wheel")
        if one.endswith(".whl") and not os.path.isfile(one):
            raise OptionError(f"there is no file {one!r}")
    path = None if file is None else os.path.abspath(os.fspath(file))
    if path is not None and not os.path.isfile(path):
        raise OptionError(f"there is no requirements file {os.fspath(file or '')!r}")
    found = Needs(tuple(os.path.abspath(one) if os.path.isfile(one) else one for one in named), path)
    wanted = list(functions)
    if other := [function for function in wanted if not callable(function)]:
        raise OptionError(f"functions: {value_in_short(other[0])} is no function")
    imported = requirements(*wanted)
    told = {_key(one) for one in (*named, *found._text().splitlines())}
    mine = [one for one in imported if _key(one) not in told]
    told.update(map(_key, mine))
    below = [one for one in _below(imported) if _key(one) not in told]
    left_out = [one for one in _unknown(wanted) if _key(one) not in told]
    return Needs((*found.packages, *mine), path, tuple(below), bool(mine), tuple(left_out))


def with_these(found: Needs, names: Iterable[str]) -> Needs:
    """The needs and these packages, in the versions that are installed here, if they are."""
    told = {_key(one) for one in (*found.packages, *found._text().splitlines())}
    more = [version_of(name) or name for name in names if _key(name) not in told]
    return replace(found, packages=(*found.packages, *more))


def _key(requirement: str) -> str:
    """The name in a requirement or in the name of a wheel, as indexes compare names; "" if there
    is none."""
    text = os.path.basename(requirement).partition("-")[0] if requirement.endswith(".whl") else requirement
    name = _NAME.match(text.strip())
    return re.sub(r"[-_.]+", "-", name[0]).lower() if name else ""


def _unknown(functions: Iterable[Callable[..., Any]]) -> list[str]:
    """The modules that functions import and that are not installed here."""
    modules = {one for function in functions for one in modules_behind(function)[1]}
    return sorted(one for one in modules if one not in sys.modules and importlib.util.find_spec(one) is None)


def _below(wanted: Iterable[str]) -> list[str]:
    """The dependencies of these distributions, `name==version` as installed here, sorted.

    Markers and extras are ignored: a version of a package that nothing needs does no harm.
    """
    found: dict[str, str] = {}
    waiting = [one.partition("==")[0] for one in wanted]
    while waiting:
        name = waiting.pop()
        if _key(name) in found:
            continue
        found[_key(name)] = ""
        with contextlib.suppress(metadata.PackageNotFoundError):
            distribution = metadata.distribution(name)
            # With that file, it is a working copy or came from a file: no index has this version.
            if distribution.read_text("direct_url.json") is None:
                found[_key(name)] = f"{name}=={distribution.version}"
            waiting += [match[0] for one in distribution.requires or () if (match := _NAME.match(one))]
    return sorted(filter(None, found.values()))
