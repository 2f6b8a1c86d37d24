"""Pools: before its body begins, a function needs a cookie of each of its pools.

`@scheduler`, `@local` and `@limit` give a task pools. A pool has a kind, which says what its
cookies stand for, and a name. All processes of a tree take from the same pool.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Collection, Iterable, Sequence
from typing import NamedTuple, Protocol

from entangle.cookies import ANY_CPU
from entangle.errors import OptionError

#: What the cookies of a pool stand for: a place in a named limit, a CPU, or the right to begin once
#: (a token, which is used up). This is also the order in which a body takes them. Tokens come last:
#: nothing may wait between taking a token and beginning the body. Devices are no pool: a worker has
#: the cookie of its device before it takes a node (`_worker/serving.py`).
PLACES, CPUS, TOKENS = range(3)


class Pool(NamedTuple):
    """A pool and its figures. Pools of one name and other figures are different pools.

    `size` is the number of cookies; of TOKENS, how many may be used at once after a pause. `rate`
    is how many TOKENS come each second.
    """

    kind: int
    name: str
    size: int
    rate: float = 0.0

    @property
    def file(self) -> str:
        """The name of its files in a home."""
        if self.kind == CPUS:
            return f"cookies-{self.size}"
        word = ("limit", "", "tokens")[self.kind]
        figures = f"{self.rate!r}-{self.size}" if self.kind == TOKENS else f"{self.size}"
        return f"{word}-{digest(self.name)}-{figures}"

    @property
    def stays(self) -> bool:
        """Whether any process of the tree may make it and fill it again.

        Not that of CPUs: programs such as `make` hold cookies of it that nobody counts.
        """
        return self.kind in (PLACES, TOKENS)

    def numbers(self, cpus: list[int]) -> Sequence[int]:
        """What its cookies stand for: of CPUs, the first of `cpus`."""
        return cpus[: self.size] if self.kind == CPUS else (ANY_CPU,) * self.size

    def __str__(self) -> str:
        if self.kind == CPUS:
            return f"cpus={self.size}"
        if self.kind == TOKENS:
            rate = repr(self.rate).removesuffix(".0")
            return f"limit {self.name!r}: per_second={rate}" + (f", burst={self.size}" if self.size > 1 else "")
        return f"limit {self.name!r}: at_once={self.size}"


class CookieSource(Protocol):
    """Gives the cookies of a pool, to any process of the tree: a queue, or a bucket of tokens.

    A cookie is known by its cell, a number from 0.
    """

    path: str

    def take_cell(self) -> int:
        """Take a cookie if there is one; -1 if there is none. Never waits."""

    def wait_cell(self, over: Callable[[], bool]) -> int:
        """Take a cookie; sleep until there is one. -1 as soon as `over` says so."""

    def give_cell(self, cell: int, thread: int = 0) -> None:
        """Put back a cookie that this process holds; with `thread`, only one that it has taken."""

    def number(self, cell: int) -> int:
        """What the cookie in a cell stands for."""

    def held_here(self) -> set[int]:
        """The cells of the cookies that this thread holds."""

    def give_back(self, but: Collection[int] = ()) -> None:
        """Put back all cookies that this thread holds, except those in the cells `but`."""

    def close(self) -> None:
        """Close its files."""


def digest(name: str) -> str:
    """A name of any length and any letters, as part of the name of a file."""
    import hashlib  # not at the top: it adds two milliseconds to an import of entangle

    return hashlib.blake2b(name.encode("utf-8", "surrogatepass"), digest_size=12).hexdigest()


def cpus(count: int) -> Pool:
    """The pool of `@scheduler(cpus=count)`."""
    return Pool(CPUS, "", count)


def merged(upper: Iterable[Pool], lower: Iterable[Pool]) -> tuple[Pool, ...]:
    """The pools of two layers, in the order in which they are taken; the lower layer counts."""
    known = {(pool.kind, pool.name): pool for pool in upper}
    known.update({(pool.kind, pool.name): pool for pool in lower})
    return tuple(sorted(known.values()))


#: The pools that schedulers have asked for so far. The process that starts the first run makes them
#: all, since a pool must outlive the nested runs that share it.
registered: set[Pool] = set()

# Figures of limits --------------------------------------------------------------------------------

#: For each name of a limit, its pools as each function has stated them last, by the function's
#: name.
_stated: dict[str, dict[str, tuple[Pool, ...]]] = {}


def state(name: str, function: str, pools: tuple[Pool, ...]) -> None:
    """Note that a function is decorated with a limit.

    Raises OptionError if another one has stated other figures. A function that is decorated again,
    as in a notebook or in a loop, replaces what it has stated; `compare` then has the last word.
    """
    known = _stated.setdefault(name, {})
    if function not in known:
        for other, stated in known.items():
            if stated != pools:
                raise OptionError(_differ(name, function, pools, other, stated))
    known[function] = pools


def limits_of(pools: Iterable[Pool]) -> dict[str, tuple[Pool, ...]]:
    """The limits among these pools: for each name, its pools."""
    found: dict[str, tuple[Pool, ...]] = {}
    for pool in pools:
        if pool.kind in (PLACES, TOKENS):
            found[pool.name] = (*found.get(pool.name, ()), pool)
    return found


def compare(bodies: Iterable[tuple[str, tuple[Pool, ...]]]) -> dict[str, tuple[str, tuple[Pool, ...]]]:
    """The limits of a flow: for each name, a task that has it, and its pools.

    Takes the name and the pools of each body. Raises OptionError if two state other figures for one
    name, or if a function that has been decorated since does.
    """
    found: dict[str, tuple[str, tuple[Pool, ...]]] = {}
    for task, pools in bodies:
        for name, stated in limits_of(pools).items():
            known = found.setdefault(name, (task, stated))
            if known[1] != stated:
                raise OptionError(_differ(name, task, stated, *known))
            for other, latest in _stated.get(name, {}).items():
                if latest != stated:
                    raise OptionError(_differ(name, task, stated, other, latest))
    return found


def agree(directory: str, name: str, task: str, pools: tuple[Pool, ...], replace: bool) -> None:
    """Compare the figures of a limit with those that the process tree has used so far.

    They are noted in `directory`; with `replace`, earlier figures no longer count. Raises
    OptionError.
    """
    import json

    path = os.path.join(directory, f"limit-{digest(name)}")
    while True:
        with contextlib.suppress(FileNotFoundError):
            with open(path, encoding="ascii") as file:
                known = json.load(file)
            if known["figures"] == figures_of(pools):
                return
            if not replace:
                raise OptionError(_text(name, task, figures_of(pools), known["task"], known["figures"]))
        draft = os.path.join(directory, f"l{os.urandom(6).hex()}")
        fd = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, json.dumps({"name": name, "figures": figures_of(pools), "task": task}).encode("ascii"))
            if replace:
                os.replace(draft, path)
            else:
                os.link(draft, path)  # of two processes that state a limit at once, one is first
            return
        except FileExistsError:
            continue
        finally:
            os.close(fd)
            with contextlib.suppress(FileNotFoundError):
                os.unlink(draft)


def figures_of(pools: Iterable[Pool]) -> str:
    """The figures of a limit, as they are written."""
    return ", ".join(str(pool).rpartition(": ")[2] for pool in pools)


def _differ(name: str, function: str, pools: tuple[Pool, ...], other: str, stated: tuple[Pool, ...]) -> str:
    return _text(name, function, figures_of(pools), other, figures_of(stated))


def _text(name: str, function: str, figures: str, other: str, stated: str) -> str:
    return (
        f"@limit({name!r}): {function} says {figures}, but {other} says {stated}; a limit has the same figures wherever its name is "
        "used, so write both alike, or give one of them another name"
    )
