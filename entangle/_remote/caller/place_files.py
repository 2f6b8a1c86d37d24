"""Places by name: the files that say what they are, and what these say.

A program's names are those of its project: the nearest directory upward from its script that has
such a file, else upward from the working directory. There, `pyproject.toml` says it in tables
`[tool.entangle.places.NAME]`, `entangle.toml` in `[places.NAME]`. The user's own file,
`$XDG_CONFIG_HOME/entangle/entangle.toml` (`~/.config`), adds names that the project does not have.

A table has the `kind` of the place, which is the decorator, and options of that. Hosts that are
tried in turn are `hosts` of one table, or tables of one name (`[[places.NAME]]`). Paths are from
the directory of the file.

What a table says is run: a file that belongs to another user is not read, as with `.entangle`.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

from entangle._shared.summaries import value_in_short
from entangle._tasks.unknown_options import nearest
from entangle.errors import OptionError

#: Each kind, and the module of the decorator that has its name.
KINDS = {
    "ssh": "entangle.ssh",
    "slurm": "entangle.slurm",
    "docker": "entangle.docker",
    "apptainer": "entangle.containers",
    "singularity": "entangle.containers",
    "interpreter": "entangle.interpreter",
    "local": "entangle.local",
}
#: Options that hold paths of this machine.
_PATHS = {
    "ssh": ("key", "known_hosts"),
    "docker": ("packages", "volumes"),
    "apptainer": ("image", "packages", "volumes"),
    "singularity": ("image", "packages", "volumes"),
    "slurm": ("mailbox",),
    "interpreter": ("python",),
}
PROJECT, OWN = "pyproject.toml", "entangle.toml"


@dataclass(frozen=True)
class Definition:
    """What a file says of one place: the kind and the options of each of its hosts, in turn."""

    name: str
    file: str
    table: str
    hosts: tuple[tuple[str, dict[str, Any]], ...]

    @property
    def where(self) -> str:
        """File and table, for errors."""
        return f"{self.file}: [{self.table}]"


@dataclass
class Places:
    """The places that are known, and the files that say so."""

    files: list[str] = field(default_factory=list)
    #: Files that belong to other users.
    foreign: list[str] = field(default_factory=list)
    #: The tables by name: the file, the table's name, and what stands in it.
    tables: dict[str, tuple[str, str, Any]] = field(default_factory=dict)

    def __getitem__(self, name: str) -> Definition:
        """The place of that name. Raises OptionError for a table with a mistake."""
        file, table, told = self.tables[name]
        try:
            hosts = tuple(_hosts_of(told, os.path.dirname(file)))
        except OptionError as error:
            raise OptionError(f"{file}: [{table}]: {error}") from None
        return Definition(name, file, table, hosts)

    def absent(self, name: str) -> str:
        """Why there is no such place, and what to do."""
        told = f"there is no place {name!r}"
        if not self.tables:
            return f"{told}: {self.none()}"
        near = nearest(name, self.tables)
        meant = f"; did you mean {near!r}?" if near else "."
        return f"{told}{meant} There are: {', '.join(sorted(self.tables))} ({', '.join(self.files)}){self._not_read()}"

    def none(self) -> str:
        """Where there are no places: where they are looked for."""
        return (
            f"no {PROJECT} upward from here has tables [tool.entangle.places.NAME], no {OWN} has [places.NAME], and there is no "
            f"{user_file()}{self._not_read()}"
        )

    def _not_read(self) -> str:
        return f". Not read, since another user owns it: {', '.join(self.foreign)}" if self.foreign else ""


def known_places(of_script: bool = True) -> Places:
    """The places of the program, or else those of the working directory alone. Raises OptionError
    for a file that cannot be read."""
    found = Places()
    script = _script() if of_script else ""
    for start, owner in ((os.path.dirname(script), script), (_working_directory(), "")):
        if start and _look_upward(start, owner, found):
            break
    own = user_file()
    if own not in found.files and os.path.isfile(own):
        _add(own, "", found)
    return found


def user_file() -> str:
    """The path of the user's own file."""
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.join(os.path.expanduser("~"), ".config")
    return os.path.join(config, "entangle", OWN)


def _working_directory() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _script() -> str:
    """The path of the program's script; empty where it has none, or a program that is installed."""
    main = sys.modules.get("__main__")
    named = getattr(main, "__file__", None) or ""
    called = sys.argv[0] if sys.argv else ""  # as in the caller, where this is a worker
    beside = os.path.join(sys.path[0], os.path.basename(called)) if sys.path and called else ""
    for path in (named, called, beside):
        path = os.path.abspath(path) if path else ""
        if path and os.path.isfile(path) and not _is_installed(path):
            return path
    return ""


def _is_installed(path: str) -> bool:
    """Whether this is a program of an environment, such as pytest or a kernel, or our own."""
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    return any(
        path.startswith(os.path.join(root, folder, ""))
        for root in {sys.prefix, sys.base_prefix, sys.exec_prefix, os.path.expanduser("~/.local")}
        for folder in ("bin", "lib", "lib64")
    ) or path in (os.path.join(ours, "__main__.py"), os.path.join(ours, "cli", "__main__.py"))


def _look_upward(start: str, script: str, found: Places) -> bool:
    """Add the places of the nearest directory that has any. Whether there is one."""
    at = start
    while True:
        for name in (PROJECT, OWN):
            path = os.path.join(at, name)
            if os.path.isfile(path):
                _add(path, script, found)
        above = os.path.dirname(at)
        if found.files or above == at:
            return bool(found.files)
        at = above


def _add(path: str, script: str, found: Places) -> None:
    """Add what a file says, if it says anything of places."""
    owners = {0, os.getuid()}
    try:
        if script:  # whoever owns it could do anything in it
            owners.add(os.stat(script).st_uid)
        with open(path, "rb") as file:
            owner = os.fstat(file.fileno()).st_uid
            body = file.read()
    except OSError as error:
        raise OptionError(f"{path} cannot be read: {error.strerror}") from None
    project = os.path.basename(path) == PROJECT
    if project and b"entangle" not in body:
        return
    if owner not in owners:
        found.foreign += [path] if path not in found.foreign else []
        return
    tables = _tables(path, body, project)
    if not tables:
        return
    prefix = "tool.entangle.places" if project else "places"
    for name, told in tables.items():
        if (other := found.tables.get(name)) is not None:
            if os.path.dirname(other[0]) != os.path.dirname(path):
                continue  # the user's own file: the project's name holds
            raise OptionError(f"the place {name!r} stands in {other[0]} and in {path}; take it out of one")
        found.tables[name] = path, f"{prefix}.{name}", told
    found.files.append(path)


def _tables(path: str, body: bytes, project: bool) -> dict[str, Any]:
    try:
        document = toml(body.decode())
    except ValueError as error:
        raise OptionError(f"{path} cannot be read: {error}") from None
    if project:
        tool = document.get("tool")
        document = tool.get("entangle", {}) if isinstance(tool, dict) else {}
    elif strange := next((name for name in document if name != "places"), ""):
        wanted = "places.NAME" if strange == "tool" else f"places.{strange}"
        raise OptionError(f"{path}: there is nothing called {strange!r} in this file; a place is a table [{wanted}]")
    places = document.get("places", {}) if isinstance(document, dict) else {}
    if not isinstance(places, dict):
        raise OptionError(f"{path}: places={value_in_short(places)}; it must be tables, one for each place")
    return places


def toml(text: str) -> dict[str, Any]:
    """A document of TOML. Raises ValueError."""
    if sys.version_info >= (3, 11):
        import tomllib
    else:
        import tomli as tomllib
    document: dict[str, Any] = tomllib.loads(text)
    return document


def _hosts_of(told: Any, folder: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The kind and the options of each host of a place. Raises OptionError."""
    tables = told if isinstance(told, list) else [told]
    if not tables or not all(isinstance(one, dict) for one in tables):
        raise OptionError(f"{value_in_short(told)}; it must be a table with a kind and its options, or several")
    for table in tables:
        options = dict(table)
        kind = options.pop("kind", None)
        if not isinstance(kind, str) or kind not in KINDS:
            meant = nearest(kind, KINDS) if isinstance(kind, str) else ""
            said = "it says no kind" if kind is None else f"kind={value_in_short(kind)}"
            raise OptionError(f"{said}; {f'did you mean {meant!r}? ' if meant else ''}it must be one of {', '.join(KINDS)}")
        for name in _PATHS.get(kind, ()):
            if name in options:
                options[name] = _from(folder, options[name])
        if kind != "ssh" or "hosts" not in options:
            yield kind, options
            continue
        hosts = options.pop("hosts")
        if "host" in options:
            raise OptionError("it has host and hosts; put the host first in hosts")
        if not isinstance(hosts, list) or not hosts or not all(isinstance(host, (str, dict)) for host in hosts):
            raise OptionError(f"hosts={value_in_short(hosts)}; it must be a list of names, or of tables with options of their own")
        for host in hosts:
            own = {"host": host} if isinstance(host, str) else host
            yield kind, {**options, **{name: _from(folder, value) if name in _PATHS[kind] else value for name, value in own.items()}}


def _from(folder: str, value: Any) -> Any:
    """The value of an option that holds a path, or several, from the directory of its file."""
    if isinstance(value, dict):
        return {_from(folder, path): to for path, to in value.items()}
    if isinstance(value, list):
        return [_from(folder, one) for one in value]
    if not isinstance(value, str) or value.startswith(("~", "/")) or "://" in value:
        return value
    path, colon, rest = value.partition(":")  # of a volume: where it is there
    whole = os.path.join(folder, path)
    return os.path.normpath(whole) + colon + rest if path.startswith(("./", "../")) or os.path.exists(whole) else value
