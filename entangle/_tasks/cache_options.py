"""`Cache`: what counts for the key of a remembered value, for how long, and where it stays."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from datetime import timedelta
from typing import Any

from entangle._depot.opened import check_place
from entangle._shared.identity import check_ignored, check_packages
from entangle._shared.summaries import value_in_short
from entangle._shared.tracebacks import edge
from entangle._tasks.option_values import check_seconds
from entangle.errors import OptionError


class Cache:
    """How values are remembered, for `cache=` of @process and @thread. `cache=True` is `Cache()`.

    - `version`: counts in place of the code: a string or a number that you change when old values
      must not be found any more.
    - `ignore`: names of arguments that do not count.
    - `expire`: a value that is older is computed anew (seconds, or a timedelta).
    - `packages`: installed packages whose version counts.
    - `where`: the depot: a directory, or a URL of fsspec. None: the usual one.

    Raises OptionError for bad options: here, and at decoration where a name in `ignore` is no
    parameter of the function.

        @process(cache=Cache(ignore=["verbose"], packages=["numpy"], expire=86400))
        def fit(data, verbose=False): ...
    """

    __slots__ = ("expire", "ignore", "packages", "version", "where")

    @edge
    def __init__(
        self,
        *,
        version: str | float | None = None,
        ignore: Sequence[str] = (),
        expire: float | timedelta | None = None,
        packages: Sequence[str] = (),
        where: str | os.PathLike[str] | None = None,
    ) -> None:
        if version is not None and (isinstance(version, bool) or not isinstance(version, (str, int, float))):
            raise OptionError(f"Cache: version={value_in_short(version)}; it must be a string or a number")
        for name, names in (("ignore", ignore), ("packages", packages)):
            if (
                isinstance(names, str)
                or not isinstance(names, (list, tuple, set, frozenset))
                or not all(isinstance(one, str) for one in names)
            ):
                raise OptionError(f"Cache: {name}={value_in_short(names)}; it must be a list of names")
        if isinstance(expire, timedelta):
            expire = expire.total_seconds()
        check_seconds("Cache", expire=expire)
        check_packages(packages, "Cache: packages")
        self.version = version
        self.ignore = tuple(ignore)
        self.expire = expire
        self.packages = tuple(packages)
        self.where = None if where is None else check_place(where)

    def accept(self, function: Callable[..., Any]) -> None:
        """Raise OptionError if a name in `ignore` is no parameter of the function."""
        if self.ignore:
            check_ignored(function, self.ignore, "Cache: ignore")

    def __repr__(self) -> str:
        stated = [f"{name}={value!r}" for name in sorted(self.__slots__) if (value := getattr(self, name)) not in (None, ())]
        return f"Cache({', '.join(stated)})"

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Cache) and all(getattr(self, name) == getattr(other, name) for name in self.__slots__)

    def __hash__(self) -> int:
        return hash(tuple(getattr(self, name) for name in self.__slots__))


def options_of(decorator: str, cache: Any) -> Cache | None:
    """The options that a decorator was given for `cache`; None where values are not remembered."""
    if isinstance(cache, Cache):
        return cache
    if cache is not None and not isinstance(cache, int) and type(cache).__name__ not in ("bool_", "bool"):
        raise OptionError(f"@{decorator}: cache={value_in_short(cache)}; it must be True, False or entangle.Cache(…)")
    return Cache() if cache else None
