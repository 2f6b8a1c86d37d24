"""Installed packages count by name and version, where a task says which."""

from __future__ import annotations

import functools
from collections.abc import Collection

from entangle.errors import OptionError


def check_packages(packages: Collection[str], option: str = "packages") -> None:
    """Raises OptionError for a package that is not installed."""
    if isinstance(packages, str) or not all(isinstance(name, str) and name for name in packages):
        raise OptionError(f"{option}={packages!r}; it is a list of names of installed packages")
    for name in packages:
        version_of(name)


@functools.lru_cache(maxsize=256)
def version_of(name: str) -> str:
    """The version of an installed package, by its own name or that of a module of it.

    Raises OptionError if there is none.
    """
    from importlib import metadata  # not at the top: it takes 15 ms, and most tasks name no package

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    for distribution in metadata.packages_distributions().get(name, ()):
        return metadata.version(distribution)
    raise OptionError(f"packages=[{name!r}]: no package of this name is installed here; name it as pip does")
